package fleet

import (
	"context"
	"crypto/rsa"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

const day = 24 * time.Hour

// clock is the one clock of daemon and KMS.
type clock struct {
	start  time.Time
	passed atomic.Int64
}

func (c *clock) now() time.Time          { return c.start.Add(time.Duration(c.passed.Load())) }
func (c *clock) advance(d time.Duration) { c.passed.Add(int64(d)) }

// unplugged is a token that can be taken away: every call answers as a removed device does.
type unplugged struct {
	daemon.Token
	gone *atomic.Bool
}

// removed is what a removed device answers.
type removed struct{}

func (removed) Error() string { return "CKR_DEVICE_REMOVED (0x32): the token was removed" }

// CKR is the code for the table of retries.
func (removed) CKR() string { return "CKR_DEVICE_REMOVED" }

// Class is "token".
func (removed) Class() string { return "token" }

func (u unplugged) Find(ctx context.Context, uri pkcs11uri.URI) (wrapping.Key, error) {
	if u.gone.Load() {
		return wrapping.Key{}, removed{}
	}
	return u.Token.Find(ctx, uri)
}

func (u unplugged) Wrap(ctx context.Context, k wrapping.Key, pub *rsa.PublicKey, p wrapping.Plan) ([]byte, error) {
	if u.gone.Load() {
		return nil, removed{}
	}
	return u.Token.Wrap(ctx, k, pub, p)
}

// breaking is a way to KMS that breaks.
type breaking struct {
	http.RoundTripper
	gone *atomic.Bool
}

// RoundTrip answers as a connection does that is cut.
func (b breaking) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.gone.Load() {
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return b.RoundTripper.RoundTrip(r) //nolint:wrapcheck // as it came
}

// outage is a time in which something is away.
type outage struct {
	what     string // kms, hsm or daemon
	from, to int    // days
}

// Two years of a fleet of 200 keys in a token, with renewals, rotations, drills, and outages of KMS, of the HSM and of the daemon.
func TestTwoYears(t *testing.T) {
	t.Parallel()
	const (
		keys = 200
		days = 730
		step = 24 * time.Hour
	)
	outages := []outage{
		{"kms", 40, 42},
		{"hsm", 90, 93},
		{"daemon", 150, 155},
		{"kms", 200, 201},
		{"hsm", 300, 301},
		{"daemon", 380, 440}, // longer than anything is renewed before its end: material expires
		{"kms", 500, 545},    // the same
		{"hsm", 600, 640},    // the same
	}
	c := &clock{start: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	var kmsGone, hsmGone atomic.Bool
	w := newWorld(t, kmsemu.Options{Now: c.now})
	w.emu.Refuse("RSA_4096", "ValidationException") // the shorter key is as good here, and checked six times as fast
	w.emu.Refuse("RSA_3072", "ValidationException")
	client := &http.Client{Transport: breaking{direct{w.emu}, &kmsGone}} // without sockets: there are some 150,000 requests
	w.kms = ", watch_every: 1d"
	arns := fleet(w, keys)
	path := w.config("one", "")
	config, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var d *daemon.Daemon
	var stop func() error
	begin := func() {
		d, err = daemon.New(t.Context(), daemon.Options{
			Config: config, Log: zap.NewNop(), Version: "test", Now: c.now, NoSync: true, Poll: 10 * time.Millisecond, Manual: true, HTTP: client,
			Wait: func(context.Context, time.Duration) error { return nil },
			OpenToken: func(ctx context.Context, tc configs.Token, l daemon.Login) (daemon.Token, error) {
				if hsmGone.Load() {
					return nil, removed{}
				}
				token, err := openToken()(ctx, tc, l)
				if err != nil {
					return nil, err
				}
				return unplugged{token, &hsmGone}, nil
			},
		})
		if err == nil {
			stop, err = d.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	begin()
	end := func() {
		if stop != nil {
			if err := stop(); err != nil {
				t.Errorf("the daemon's end: %v", err)
			}
			d, stop = nil, nil
		}
	}
	defer end()

	calm := 0 // steps since the last outage
	for today := 0; today < days; {
		away := map[string]bool{}
		for _, o := range outages {
			away[o.what] = away[o.what] || o.from <= today && today < o.to
		}
		kmsGone.Store(away["kms"])
		hsmGone.Store(away["hsm"])
		switch {
		case away["daemon"]:
			end()
		case d == nil:
			begin()
		}
		if d != nil {
			// What waits for a next try gets two in a step.
			for range 2 {
				if err := d.Tick(t.Context()); err != nil {
					t.Fatal(err)
				}
				drain(t, d)
				c.advance(step / 2)
			}
		} else {
			c.advance(step)
		}
		calm++
		if away["kms"] || away["hsm"] || away["daemon"] {
			calm = 0
		}
		if calm > 3 {
			if bad := w.unusable(arns); len(bad) > 0 {
				known, _ := d.Store().Destinations(t.Context())
				known = slices.DeleteFunc(known, func(x store.Destination) bool { return !strings.HasPrefix(bad[0], x.Destination) })
				open, _ := d.Store().Jobs(t.Context(), store.JobFilter{Key: known[0].Key, Limit: 3})
				t.Fatalf("day %d: %d KMS keys have no material, though nothing is away since %d steps: %s; the daemon knows %s and did %s", today, len(bad), calm, bad[0], asJSON(known), asJSON(open))
			}
		}
		if today%97 == 50 && calm > 4 && c.now().Sub(c.start)%day < step {
			if err := w.client.DeleteImportedKeyMaterial(t.Context(), arns[today%len(arns)], ""); err != nil { // behind the daemon's back
				t.Fatal(err)
			}
			calm = 0
		}
		today = int(c.now().Sub(c.start) / day)
	}
	account(t, w, d, arns)
}

// fleet configures keys of all kinds.
func fleet(w *world, n int) (arns []string) {
	for i := range n {
		name, rest := fmt.Sprintf("k%03d", i), []string{"expires: 200d", "renew_before: 30d"}
		spec := wrapping.SymmetricDefault
		switch {
		case i%10 == 3:
			spec = wrapping.HMAC256
		case i%20 == 7:
			spec = wrapping.ECCNISTP384
		case i%10 == 4:
			rest = []string{"expires: never", "drill_every: 180d"}
		case i%10 == 5:
			rest = append(rest, `window: {days: [sat, sun], from: "00:00", to: "24:00"}`)
		case i%10 == 6:
			rest = append(rest, "rotate_every: 270d")
		case i%20 == 8:
			rest = append(rest, `schedule: {cron: "0 3 1 1,7 *"}`)
		}
		arns = append(arns, w.key(name, spec, rest...))
	}
	return arns
}

// drain waits until nothing is queued or running.
func drain(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		counts, err := d.Store().CountJobs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if counts[store.Queued] == 0 && counts[store.Running] == 0 {
			return
		}
		if time.Now().After(end) {
			open, _ := d.Store().Jobs(t.Context(), store.JobFilter{Open: true, Limit: 3})
			t.Fatalf("the queue does not drain: %v, %s", counts, asJSON(open))
		}
	}
}

// unusable lists KMS keys that do not hold their material.
func (w *world) unusable(arns []string) (bad []string) {
	for _, arn := range arns {
		if state := w.emu.State(arn); state != "Enabled" {
			bad = append(bad, arn+" is "+state)
		}
	}
	return bad
}

// account holds the database, KMS and the journal against each other.
func account(t *testing.T, w *world, d *daemon.Daemon, arns []string) {
	t.Helper()
	took := 0
	for _, r := range w.emu.Requests() {
		if r.Operation == "ImportKeyMaterial" && r.Code == "" {
			took++
		}
	}
	imports, err := d.Store().Imports(t.Context(), "", 0, 1000000)
	if err != nil {
		t.Fatal(err)
	}
	requests, results := 0, map[string]int{}
	for _, i := range imports {
		requests += len(i.RequestIDs)
		results[i.Result]++
	}
	journal, jobs := 0, map[int64]bool{}
	for after := int64(0); ; {
		list, err := d.Store().Events(t.Context(), store.EventFilter{After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			after = e.ID
			if e.Kind == string(importer.StepImport) {
				journal++
				jobs[e.Job] = true
			}
		}
	}
	t.Logf("KMS took %d imports in two years; the table has %d rows (%v) with %d requests, the journal %d imports in %d jobs", took, len(imports), results, requests, journal, len(jobs))
	if took != requests || took != journal {
		t.Errorf("KMS took %d imports, the table knows %d and the journal %d", took, requests, journal)
	}
	if results[string(importer.Imported)] < len(arns) || results[string(importer.Reimported)] < 4*len(arns) || results[string(importer.Restored)] == 0 {
		t.Errorf("the results are %v", results)
	}
	open, err := d.Store().Jobs(t.Context(), store.JobFilter{Limit: 1000000})
	if err != nil {
		t.Fatal(err)
	}
	rotated := 0
	for _, j := range open {
		if j.State == store.Failed {
			t.Errorf("a job failed: %s", asJSON(j))
		}
		if j.Kind == store.KindRotate && j.State == store.Done {
			rotated++
		}
	}
	if rotated != 20*2 {
		t.Errorf("%d rotations of 20 keys in two years, every 270 days", rotated)
	}
	for i, arn := range arns {
		if i%10 != 6 || i%20 == 7 {
			continue
		}
		if list := w.materials(arn); len(list) != 3 || slices.ContainsFunc(list, func(m kmsclient.KeyMaterial) bool { return m.ImportState != "IMPORTED" }) {
			t.Errorf("a key that was rotated twice has %s", asJSON(list))
		}
	}
}
