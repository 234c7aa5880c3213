package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// connections are the tokens and KMS clients of one run of the command. Each token is opened once.
type connections struct {
	app    *app
	config *configs.Config
	daemon *neighbour
	start  remote.Starter
	pins   map[string]pin.Source
	tokens map[string]*remote.Token
	failed map[string]error // tokens that could not be opened: they are not tried again
	told   map[string]bool  // those of which this was said
	kms    map[string]*kmsclient.Client
	mu     sync.Mutex
	ids    []string // AWS request IDs of GetParametersForImport that KMS answered

	importers map[string]*importer.Importer
	back      []string // keys that were revoked while they were imported, so that KMS holds their material
}

var _ importer.Token = (*remote.Token)(nil)

// connect prepares the PINs of the named tokens: none is read before its token asks for it.
func (a *app) connect(c *configs.Config, tokens []string) *connections {
	conn := &connections{
		app: a, config: c, daemon: a.neighbour(c), pins: map[string]pin.Source{}, tokens: map[string]*remote.Token{}, failed: map[string]error{}, told: map[string]bool{},
		kms: map[string]*kmsclient.Client{}, importers: map[string]*importer.Importer{},
	}
	conn.prepare(tokens)
	return conn
}

// prepare adds tokens to those that may be opened.
func (c *connections) prepare(tokens []string) {
	for _, name := range tokens {
		t, ok := c.config.Token(name)
		if _, done := c.pins[name]; done || !ok {
			continue
		}
		source, err := pin.Later(t)
		if err != nil {
			c.failed[name] = &exitError{exitToken, err}
			continue
		}
		c.pins[name] = source
	}
}

// connectTokens loads the configuration and prepares the named tokens, or all of them, and gives their names.
func (a *app) connectTokens(names []string) (*connections, []string, error) {
	c, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	if len(names) == 0 {
		names = c.Reached()
	}
	if err := knownTokens(c, names); err != nil {
		return nil, nil, err
	}
	names = unique(names)
	return a.connect(c, names), names, nil
}

// connectKeys loads the configuration and prepares the tokens of the named managed keys, or of all.
func (a *app) connectKeys(names []string, all bool) (*connections, []configs.Key, error) {
	c, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	keys, err := keysNamed(c, names, all)
	if err != nil {
		return nil, nil, err
	}
	return a.connect(c, tokensOf(keys)), keys, nil
}

// unique keeps the first of each name.
func unique(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func knownTokens(c *configs.Config, names []string) error {
	for _, n := range names {
		if !knownToken(c, n) {
			return usageError(fmt.Errorf("there is no token %q%s", n, configured(n, tokenNames(c))))
		}
	}
	return nil
}

// token opens a token, once.
func (c *connections) token(ctx context.Context, name string) (*remote.Token, error) {
	if t := c.tokens[name]; t != nil {
		return t, nil
	}
	if err := c.failed[name]; err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err // no login after Ctrl-C
	}
	t, _ := c.config.Token(name)
	if !c.config.Reach(name) {
		c.failed[name] = &exitError{exitToken, fmt.Errorf("token %s is not reached from here (reaches: in the configuration)", name)}
		return nil, c.failed[name]
	}
	if err := c.parkedByDaemon(ctx, name); err != nil {
		c.failed[name] = err
		return nil, err
	}
	module, asked := moduleOf(t), false
	module.AtDevice = func(ctx context.Context, id wrapping.TokenIdentity, wait time.Duration) error {
		err := c.atDevice(ctx, t, id, wait)
		asked = err == nil
		return err
	}
	open, err := c.start.Open(ctx, module, remote.PINSource(c.pins[name]))
	switch {
	case err == nil && asked:
		fmt.Fprintf(c.app.err, "hsmbridge: logged in to token %s at its device\n", name)
	case asked && ctx.Err() != nil:
		fmt.Fprintf(c.app.err, "hsmbridge: token %s may still ask for its PIN: cancel that at its device; it may count as a try\n", name)
	}
	if err != nil {
		c.failed[name] = err
		return nil, err
	}
	id := open.Identity()
	c.app.log.Info("token opened", zap.String("token", name), zap.String("serial", id.Serial), zap.String("model", id.Model), zap.String("firmware", id.Firmware))
	c.app.log.Info("its module has a process of its own", zap.String("token", name), zap.Int("pid", open.PID()), zap.String("isolation", open.Isolation()))
	for _, w := range open.Warnings() {
		c.app.log.Warn(w, zap.String("token", name))
	}
	c.tokens[name] = open
	return open, nil
}

// moduleOf is how the process of a token's module is started.
func moduleOf(t configs.Token) remote.Config {
	return remote.Config{
		Name: t.Name, Module: t.Module, Parameters: t.ModuleParameters, Environment: t.Environment, URI: t.URI, Quirks: t.Quirks,
		Network: t.Network == configs.NetworkAllowed, CallTimeout: t.Timeout(),
	}
}

// parked tells once for each token that it cannot be used and which keys have to wait for it.
func (c *connections) parked(token string, keys []configs.Key, err error) error {
	if c.told[token] {
		return nil
	}
	c.told[token] = true
	var waiting []string
	for _, k := range keys {
		if k.Token == token {
			waiting = append(waiting, k.Name)
		}
	}
	return fmt.Errorf("token %s cannot be used, which stops %s: %w", token, strings.Join(waiting, ", "), err)
}

// destination is the KMS client of a destination: its Region, its endpoint and its role.
func (c *connections) destination(ctx context.Context, arn string) (importer.KMS, error) {
	parsed, err := kmsclient.ParseARN(arn)
	if err != nil {
		return nil, err
	}
	var d configs.Destination
	for _, k := range c.config.Keys {
		for _, there := range k.Destinations {
			if there.ARN == arn {
				d = there
			}
		}
	}
	place := kmsclient.Config{Region: parsed.Region, Endpoint: cmp.Or(d.Endpoint, c.config.KMS.Endpoint), Profile: c.config.KMS.Profile, FIPS: c.config.KMS.FIPS, RoleARN: d.RoleARN, ExternalID: d.ExternalID}
	name := strings.Join([]string{place.Region, place.Endpoint, place.RoleARN, place.ExternalID}, " ")
	if k := c.kms[name]; k != nil {
		return k, nil
	}
	place.Log = func(call kmsclient.Call) {
		if call.Operation == "GetParametersForImport" && call.Code == "" && call.RequestID != "" {
			c.mu.Lock()
			c.ids = append(c.ids, call.RequestID)
			c.mu.Unlock()
		}
		c.app.log.Debug("KMS call", zap.String("operation", call.Operation), zap.String("key", call.Key), zap.Int("attempt", call.Attempt),
			zap.String("request_id", call.RequestID), zap.String("code", call.Code), zap.Duration("duration", call.Duration))
	}
	k, err := kmsclient.New(ctx, place)
	if err != nil {
		return nil, err
	}
	c.kms[name] = k
	return k, nil
}

// authorize wraps no key in this process that officers have to approve, because only the daemon asks them, and none that was revoked since the command began: the
// daemon has deleted its material perhaps by now.
func (c *connections) authorize(ctx context.Context, a importer.Act) error {
	k, ok := c.config.Key(a.Plan.Key)
	if !ok {
		return fmt.Errorf("there is no managed key %q", a.Plan.Key)
	}
	if err := c.needsDaemon(k, a.Plan.Destination); err != nil || !a.Now {
		return err
	}
	if state, revoked := c.daemon.revoked(ctx, k.Name)[k.Name]; revoked {
		return &importer.RefusedError{Key: k.Name, Destination: a.Plan.Destination, Reason: state.Barred(), Fix: "nothing more was wrapped"}
	}
	return nil // also where no daemon says so: nobody knows, as at the beginning
}

func (c *connections) needsDaemon(k configs.Key, destination string) error {
	if _, needed := c.config.ApprovalFor(k); !needed {
		return nil
	}
	return &importer.RefusedError{
		Key: k.Name, Destination: destination, Reason: "officers have to approve it (approval:), and only the daemon asks them",
		Fix: "start the daemon (hsmbridge serve), which does; --direct is not for such keys",
	}
}

func (c *connections) close() error {
	var errs []error
	for _, t := range c.tokens {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// request is the import of one key to one destination.
func request(c *configs.Config, k configs.Key, d configs.Destination, o importOptions) importer.Request {
	expires := k.Expires.Duration()
	if o.expires != nil {
		expires = time.Duration(*o.expires)
	}
	return importer.Request{
		Name: k.Name, Object: k.URI, KeySpec: k.KeySpec, Destination: d.ARN, Generate: k.Generate == configs.GenerateIfMissing,
		Expires: expires, Prove: k.Prove && !o.noProve, Renew: o.renew, Policy: c.Wrapping.Policy(d.Partition()),
	}
}

// importOptions are the flags that plan and import share.
type importOptions struct {
	expires *configs.Duration
	renew   bool
	noProve bool
}

// tokensOf are the names of the tokens that hold the keys, in the order of the keys.
func tokensOf(keys []configs.Key) []string {
	var out []string
	seen := map[string]bool{}
	for _, k := range keys {
		if !seen[k.Token] {
			seen[k.Token] = true
			out = append(out, k.Token)
		}
	}
	return out
}
