package fleet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/postgres"
	"hsmbridge/test/softhsm"
)

// bulk is a fleet of keys over account-Regions, imported in simulated time: the clocks of daemons, database and KMS are one, which stands
// still while anybody works and jumps to the next timer when all wait. Everything else is real: the token, the database, the requests.
type bulk struct {
	keys, places, daemons int
	postgres              string // empty: SQLite
	short                 bool   // with wrapping keys of 2048 bits, which take the test a sixth of the time
}

func (b bulk) open(ctx context.Context, c configs.Token, l daemon.Login) (daemon.Token, error) {
	token, err := here(ctx, c, l)
	if err != nil || !b.short {
		return token, err
	}
	return short{token}, nil
}

// here opens the token in this process: while something waits for another one, simulated time stands still.
func here(ctx context.Context, c configs.Token, l daemon.Login) (daemon.Token, error) {
	token, err := hsm.Open(ctx, hsm.Config{Name: c.Name, Module: c.Module, Parameters: c.ModuleParameters, Environment: c.Environment, URI: c.URI},
		func(ctx context.Context, _ wrapping.TokenIdentity) ([]byte, error) {
			if err := l.Begin(ctx); err != nil {
				return nil, err
			}
			return os.ReadFile(c.PINFile)
		})
	if err != nil {
		return nil, err
	}
	return inProcess{token, make(chan struct{})}, nil
}

// inProcess is a token whose module has no process of its own.
type inProcess struct {
	*hsm.Token
	ended chan struct{}
}

// Close closes the token, and the process that it has not.
func (t inProcess) Close() error {
	defer close(t.ended)
	return t.Token.Close()
}

func (t inProcess) Ended() <-chan struct{} { return t.ended }
func (inProcess) PID() int                 { return os.Getpid() }
func (inProcess) Isolation() string        { return "none" }
func (inProcess) Err() error               { return nil }
func (inProcess) Replace(error)            {}

// short is a token that takes no wrapping key of more than 2048 bits.
type short struct{ daemon.Token }

// Probe says so.
func (s short) Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	c, err := s.Token.Probe(ctx, specs...)
	c.Trials = slices.DeleteFunc(slices.Clone(c.Trials), func(t wrapping.Trial) bool { return t.WrappingKeySpec != "RSA_2048" })
	return c, err
}

// sent is one request for import parameters that KMS got.
type sent struct {
	at    time.Time
	place string
	code  string
}

// report is what came of it.
type report struct {
	sent      []sent
	throttled int
	took      time.Duration // from the first request to the last import, in simulated time
	real      time.Duration
}

// direct takes requests to an emulator in the same process and in the same simulated time, which does not go on while a socket is waited for.
type direct struct{ emu *kmsemu.Server }

// RoundTrip has the emulator answer.
func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	d.emu.ServeHTTP(rec, r)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// deaf is the control socket of a daemon that nobody talks to.
type deaf struct{ closed chan struct{} }

func (d deaf) Accept() (net.Conn, error) { <-d.closed; return nil, net.ErrClosed }
func (d deaf) Addr() net.Addr            { return &net.UnixAddr{Name: "none", Net: "unix"} }
func (d deaf) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

// regions and accounts of places.
func place(i int) (region, account string) {
	all := []string{"eu-central-1", "eu-west-1", "us-east-1", "us-west-2", "ap-southeast-2"}
	return all[i%len(all)], fmt.Sprintf("%012d", 111122223333+i/len(all))
}

// run imports all and waits for the end.
func (b bulk) run(t *testing.T) (r report) {
	t.Helper()
	token := softhsm.New(t, "hsm")
	dir, pin := t.TempDir(), token.PINFile(t)
	started := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(started.Add(-time.Hour))) // the database's own clock is ahead: what it dates is never in the future
		emu, err := kmsemu.New(kmsemu.Options{Wrappers: wrappers(), Accounts: true})
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: direct{emu}}
		file := filepath.Join(dir, "fleet.yaml")
		b.configure(t, token.Module, token.URI(), pin, token.Environment["SOFTHSM2_CONF"], client, file)
		generate(t, file)
		emu.SetQuotas(true)
		began := time.Now()
		var stops []func() error
		var first *daemon.Daemon
		for i := range b.daemons {
			c, err := configs.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			c.Name = fmt.Sprintf("daemon-%d", i)
			d, err := daemon.New(t.Context(), daemon.Options{
				Config: c, OpenToken: b.open, Log: zap.NewNop(), Version: "test", NoSync: true, Clock: time.Now, HTTP: client,
				Control: deaf{make(chan struct{})},
			})
			if err != nil {
				t.Fatal(err)
			}
			stop, err := d.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stops = append(stops, stop)
			if first == nil {
				first = d
			}
		}
		b.wait(t, first, began)
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
		r = judge(emu)
	})
	r.real = time.Since(started)
	return r
}

// wait waits until every key is imported.
func (b bulk) wait(t *testing.T, d *daemon.Daemon, began time.Time) {
	t.Helper()
	for limit := 3 * time.Duration(b.keys/b.places+60) * time.Second; ; time.Sleep(5 * time.Second) {
		s, err := d.Status(t.Context())
		switch {
		case err != nil:
			t.Fatal(err)
		case s.Counts.Ready == b.keys && s.Jobs[string(store.Queued)]+s.Jobs[string(store.Running)] == 0:
			return
		case time.Since(began) > limit:
			t.Fatalf("after %s: %+v, jobs %v, people %s", time.Since(began), s.Counts, s.Jobs, asJSON(s.People))
		}
	}
}

// configure makes the KMS keys and writes the configuration. The managed keys of a fleet of thousands share some key objects: SoftHSM reads
// all its objects for every search.
func (b bulk) configure(t *testing.T, module, uri, pin, conf string, client *http.Client, file string) {
	t.Helper()
	database := filepath.Join(filepath.Dir(file), "hsmbridge.db")
	if b.postgres != "" {
		database = b.postgres
	}
	var y strings.Builder
	fmt.Fprintf(&y, "name: one\ndatabase: %q\nkms: {endpoint: \"http://127.0.0.1:1\"}\ncontrol: {socket: %q}\nmetrics: {listen: none}\n", database, filepath.Join(filepath.Dir(file), "x.sock"))
	fmt.Fprintf(&y, "tokens:\n  - name: hsm\n    module: %q\n    uri: %q\n    pin_file: %q\n    environment: {SOFTHSM2_CONF: %q}\nkeys:\n", module, uri, pin, conf)
	clients := make([]*kmsclient.Client, b.places)
	for i := range clients {
		region, account := place(i)
		var err error
		if clients[i], err = kmsclient.New(t.Context(), kmsclient.Config{Region: region, Endpoint: "http://127.0.0.1:1", RoleARN: role(account), HTTPClient: client}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range b.keys {
		info, err := clients[i%b.places].CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
		if err != nil {
			t.Fatal(err)
		}
		_, account := place(i % b.places)
		fmt.Fprintf(&y, "  - {name: key-%05d, token: hsm, uri: \"pkcs11:object=key-%02d;type=secret-key\", key_spec: HMAC_256, expires: 90d, destinations: [{arn: %q, role_arn: %q}]}\n",
			i, i/b.places%objects, info.ARN, role(account))
	}
	if err := os.WriteFile(file, []byte(y.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// objects is how many key objects there are in the token.
const objects = 20

// generate makes them.
func generate(t *testing.T, file string) {
	t.Helper()
	c, err := configs.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	token, err := here(t.Context(), c.Tokens[0], daemon.Login{Begin: func(context.Context) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range objects {
		if _, err := token.Generate(t.Context(), wrapping.HMAC256, fmt.Sprintf("key-%02d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
}

func role(account string) string { return "arn:aws:iam::" + account + ":role/hsmbridge" }

// judge reads the emulator's log.
func judge(emu *kmsemu.Server) (r report) {
	var last time.Time
	for _, q := range emu.Requests() {
		switch q.Operation {
		case "GetParametersForImport":
			parts := strings.Split(q.KeyID, ":")
			r.sent = append(r.sent, sent{q.Time, parts[4] + "/" + parts[3], q.Code})
		case "ImportKeyMaterial":
			last = q.Time
		}
		if strings.Contains(q.Code, "Throttl") {
			r.throttled++
		}
	}
	slices.SortFunc(r.sent, func(a, b sent) int { return a.at.Compare(b.at) })
	if len(r.sent) > 0 {
		r.took = last.Sub(r.sent[0].at)
	}
	return r
}

// check holds a bulk against its goal: N / (q R) seconds, within two hundredths, and nothing throttled.
func (b bulk) check(t *testing.T, r report) {
	t.Helper()
	const perSecond = 1.0 // GetParametersForImport, AWS's default
	ideal := time.Duration(float64(b.keys) / perSecond / float64(b.places) * float64(time.Second))
	t.Logf("%d keys over %d account-Regions by %d daemons: %s, ideal %s (%+.2f %%); %d requests for parameters, %d throttled; simulated in %s",
		b.keys, b.places, b.daemons, r.took, ideal, 100*(float64(r.took)/float64(ideal)-1), len(r.sent), r.throttled, r.real.Round(time.Second))
	if r.throttled > 0 {
		t.Errorf("KMS throttled %d requests", r.throttled)
	}
	if r.took > ideal+ideal/50 {
		t.Errorf("it took %s, and %s is ideal", r.took, ideal)
	}
	if len(r.sent) != b.keys {
		t.Errorf("%d requests for parameters for %d keys", len(r.sent), b.keys)
	}
}

// A bulk ends as early as KMS's quota lets it, from one daemon and from four.
func TestBulk(t *testing.T) {
	t.Parallel()
	for _, b := range []bulk{
		{keys: 160, places: 8, daemons: 1, short: true},
		{keys: 60, places: 4, daemons: 4, postgres: "yes", short: true},
	} {
		t.Run(fmt.Sprintf("%d", b.daemons), func(t *testing.T) {
			if b.postgres != "" {
				b.postgres = postgres.Shared(t)
			}
			b.check(t, b.run(t))
		})
	}
}
