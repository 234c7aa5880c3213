package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/web"
	"hsmbridge/hsm/wrapping"
)

// KeyPage tells of keys in the order of the configuration: at most limit of them, those that come after a name and whose name contains
// search. more says that there are others behind them.
func (d *Daemon) KeyPage(ctx context.Context, after, search string, limit int) (page []control.ManagedKey, more bool, err error) {
	var at []int
	found := after == ""
	keys := d.config.Load().Keys
	for i := range keys {
		switch k := &keys[i]; {
		case !found:
			found = k.Name == after
		case search != "" && !strings.Contains(strings.ToLower(k.Name), strings.ToLower(search)):
		case len(at) == limit:
			page, err = d.managed(ctx, at)
			return page, true, err
		default:
			at = append(at, i)
		}
	}
	if !found {
		return nil, false, d.noKey(ctx, after)
	}
	page, err = d.managed(ctx, at)
	return page, false, err
}

// Expiries are the times at which destinations expire, and how many never do.
func (d *Daemon) Expiries(ctx context.Context) (at []time.Time, never int, err error) {
	list, err := d.store.Times(ctx)
	if err != nil {
		return nil, 0, err
	}
	configured := map[schedule.Target]bool{}
	for _, k := range *d.keys.Load() {
		for _, arn := range k.Destinations {
			configured[schedule.Target{Key: k.Name, Destination: arn}] = true
		}
	}
	for _, x := range list {
		switch {
		case !x.Present || !configured[schedule.Target{Key: x.Key, Destination: x.Destination}]:
		case x.ValidTo.IsZero():
			never++
		default:
			at = append(at, x.ValidTo)
		}
	}
	return at, never, nil
}

// Capabilities is what was proved of a token since it was opened; nothing is tried for the question.
func (d *Daemon) Capabilities(_ context.Context, token string) (map[wrapping.KeySpec]wrapping.Capabilities, error) {
	if _, ok := d.config.Load().Token(token); !ok {
		return nil, fmt.Errorf("the daemon's configuration has no token %q: %w", token, control.ErrNotFound)
	}
	s := d.tokens.slot(token)
	if !s.TryLock() {
		return nil, nil // it is being opened
	}
	defer s.Unlock()
	if s.token == nil || !s.token.mu.TryLock() {
		return nil, nil
	}
	defer s.token.mu.Unlock()
	return maps.Clone(s.token.probed), nil
}

// pages are the officers' pages, for the control socket and for the loopback address.
func (d *Daemon) pages() (http.Handler, error) {
	s := &web.Server{Service: d, Log: d.log.Named("web"), Now: d.now, Actor: control.Caller}
	return s.Handler()
}

// listenWeb serves the pages on the loopback address of the configuration, if it names one.
func (d *Daemon) listenWeb(ctx context.Context, pages http.Handler) (*http.Server, error) {
	address := d.config.Load().WebListen()
	if address == "" {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("web: %w; set web.listen to another address, or to none", err)
	}
	mux := http.NewServeMux()
	mux.Handle(web.Root, pages)
	mux.Handle("GET /{$}", http.RedirectHandler(web.Root, http.StatusSeeOther))
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: zap.NewStdLog(d.log.Named("web")),
	}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("the pages are not served any more", zap.Error(err))
		}
	}()
	d.log.Info("pages for officers", zap.String("at", "http://"+l.Addr().String()+web.Root))
	return srv, nil
}

// known of the keys at these places of the configuration.
func (d *Daemon) managed(ctx context.Context, at []int) ([]control.ManagedKey, error) {
	c, compiled := d.config.Load(), *d.keys.Load()
	names := make([]string, len(at))
	for i, k := range at {
		names[i] = c.Keys[k].Name
	}
	known, err := d.knownOf(ctx, names)
	if err != nil {
		return nil, err
	}
	out := make([]control.ManagedKey, 0, len(at))
	for _, i := range at {
		k := c.Keys[i]
		x := control.ManagedKey{Name: k.Name, Token: k.Token, KeySpec: string(k.KeySpec), Expires: k.Expires.String(), State: known.keys[k.Name]}
		if len(k.Replicas) > 0 {
			x.Tokens = k.Tokens()
		}
		for _, dest := range k.Destinations {
			s := known.destination(k.Name, dest.ARN)
			x.Destinations = append(x.Destinations, s)
			var renewal time.Time // a revoked key is not renewed
			if !x.State.Revoked() {
				renewal = compiled[i].Renewal(schedule.Target{Key: k.Name, Destination: dest.ARN}, schedule.State{ValidTo: s.ValidTo, Life: s.Life})
			}
			x.Renewals = append(x.Renewals, renewal)
		}
		out = append(out, x)
	}
	return out, nil
}

var _ web.Service = (*Daemon)(nil)
