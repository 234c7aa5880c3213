package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/postgres"
)

// standIn is an open token that does nothing.
type standIn struct {
	Token
	once     sync.Once
	ended    chan struct{}
	replaced bool
}

func (*standIn) Identity() wrapping.TokenIdentity             { return wrapping.TokenIdentity{Serial: "1"} }
func (*standIn) Keys(context.Context) ([]wrapping.Key, error) { return nil, nil }
func (*standIn) Warnings() []string                           { return nil }
func (*standIn) PINTriesLow() bool                            { return false }
func (*standIn) PID() int                                     { return 1 }
func (*standIn) Isolation() string                            { return "none" }
func (*standIn) Err() error                                   { return nil }
func (s *standIn) Ended() <-chan struct{}                     { return s.ended }
func (s *standIn) Replace(error)                              { s.replaced = true }
func (s *standIn) Close() error                               { s.once.Do(func() { close(s.ended) }); return nil }

// opens has a daemon open such tokens. last gives the one that it opened last.
func opens(d *Daemon) (last func() *standIn) {
	var token *standIn
	d.tokens.open = func(ctx context.Context, _ configs.Token, l Login) (Token, error) {
		if err := l.Begin(ctx); err != nil {
			return nil, err
		}
		token = &standIn{ended: make(chan struct{})}
		return token, nil
	}
	return func() *standIn { return token }
}

// A job's error comes when the token that it used was closed and opened anew: it says nothing of the new one, which stays open. Another login may take a person.
func TestErrorOfTheTokenBefore(t *testing.T) {
	now := time.Now()
	d := still(t, fleet(t, t.TempDir()+"/hsmbridge.db", 1, false), func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the test is over
	last, removed := opens(d), errors.New("CKR_DEVICE_REMOVED")
	get := func() importer.Token {
		t.Helper()
		token, err := d.tokens.Get(t.Context(), "hsm")
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	first := get()
	d.tokens.Rest(t.Context(), "hsm", first, now.Add(time.Minute), removed)
	if _, err := d.tokens.Get(t.Context(), "hsm"); err == nil {
		t.Error("the token does not rest")
	}
	now = now.Add(2 * time.Minute)
	second := get()
	if second == first {
		t.Fatal("it was not opened anew")
	}
	d.tokens.Replace(t.Context(), "hsm", first, removed)
	d.tokens.Rest(t.Context(), "hsm", first, now.Add(time.Minute), removed)
	if last().replaced {
		t.Error("the new process is ended because of the former one's error")
	}
	if get() != second {
		t.Error("the new token was closed because of the former one's error")
	}
	d.tokens.Replace(t.Context(), "hsm", second, removed)
	if !last().replaced {
		t.Error("its own error does not end a process")
	}
}

// The PIN cannot be read. Who asks while the token is left alone is told so too, and not only that it rests: somebody has to mend it. A person
// who has mended it, and says so, does not wait.
func TestRestForWhichSomebodyIsNeeded(t *testing.T) {
	now := time.Now()
	d := still(t, fleet(t, t.TempDir()+"/hsmbridge.db", 1, false), func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the test is over
	opens(d)
	open, tried := d.tokens.open, 0
	unreadable := &runner.Error{ErrCode: "PINUnavailable", ErrClass: "token", Message: "pin_file /x can be read by others"}
	var fails error = unreadable
	d.tokens.open = func(ctx context.Context, c configs.Token, l Login) (Token, error) {
		tried++
		if fails != nil {
			return nil, fails
		}
		return open(ctx, c, l)
	}
	get := func(wantCode string, wantTries int) {
		t.Helper()
		_, err := d.tokens.Get(t.Context(), "hsm")
		if runner.Code(err) != wantCode || tried != wantTries {
			t.Errorf("%v after %d tries, want %s after %d", err, tried, wantCode, wantTries)
		}
		if wantCode == "PINUnavailable" && (!strings.Contains(err.Error(), unreadable.Message) || !runner.NeedsPerson(err)) {
			t.Errorf("what a person is to mend is not told: %v", err)
		}
	}
	get("PINUnavailable", 1)
	get("PINUnavailable", 1)
	d.rouse("key-000000")
	get("PINUnavailable", 2)
	fails = &runner.Error{ErrCode: "CKR_DEVICE_REMOVED", ErrClass: "token", Message: "removed"}
	d.rouse("key-000000")
	get("CKR_DEVICE_REMOVED", 3)
	get("TokenResting", 3) // it mends itself
	fails = &runner.Error{ErrCode: "CKR_PIN_INCORRECT", ErrClass: "token", Message: "wrong"}
	d.rouse("key-000000")
	get("CKR_PIN_INCORRECT", 4)
	fails = nil
	d.rouse("key-000000")
	get("TokenParked", 4) // whatever is asked for: a PIN is tried once
}

// The database is away in the moment in which a login has ended well. That does not park the token at its next login.
func TestEndOfALoginIsWrittenLate(t *testing.T) {
	now := time.Now()
	d := still(t, fleet(t, t.TempDir()+"/hsmbridge.db", 1, false), func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the test is over
	opens(d)
	token, err := d.tokens.Get(t.Context(), "hsm")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.store.BeginLogin(t.Context(), "hsm"); err != nil { // as it stands there when its end could not be written down
		t.Fatal(err)
	}
	d.tokens.slot("hsm").begun = true
	d.tokens.Rest(t.Context(), "hsm", token, now.Add(time.Minute), errors.New("CKR_TOKEN_NOT_PRESENT"))
	now = now.Add(2 * time.Minute)
	if _, err := d.tokens.Get(t.Context(), "hsm"); err != nil {
		t.Error(err)
	}
	if parked, err := d.store.ParkedTokens(t.Context()); err != nil || len(parked) != 0 {
		t.Errorf("parked: %+v, %v", parked, err)
	}
}

// The outcome of a login is not known, and the database is away when that is to be written down: the row of the login that began is all that stands there. It stays
// until the token stands there as parked, also where a reload has taken the token out of the configuration: the next process would give the PIN once more.
func TestUnknownLoginOfATokenTakenOut(t *testing.T) {
	database := t.TempDir() + "/hsmbridge.db"
	d := still(t, fleet(t, database, 1, false), time.Now)
	databaseDoes := func(statement string) {
		t.Helper()
		if err := d.store.Tx(t.Context(), func(tx *store.Tx) error {
			_, err := tx.ExecContext(t.Context(), statement)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	given := 0
	d.tokens.open = func(ctx context.Context, _ configs.Token, l Login) (Token, error) {
		if err := l.Begin(ctx); err != nil {
			return nil, err
		}
		given++
		databaseDoes("ALTER TABLE parked RENAME TO away") // what is to be written down cannot be
		return nil, errors.New("the process of the module is no more")
	}
	get := func(want string) {
		t.Helper()
		if _, err := d.tokens.Get(t.Context(), "hsm"); runner.Code(err) != want {
			t.Errorf("it gives %v, want %q", err, want)
		}
	}
	get(runner.CodeLogin)
	databaseDoes("ALTER TABLE away RENAME TO parked")
	with := d.config.Load()
	without := *with
	without.Tokens = nil
	d.config.Store(&without)
	get("NotConfigured") // a job that began before
	if parked, err := d.store.ParkedTokens(t.Context()); err != nil || parked["hsm"].Code == "" {
		t.Errorf("it stands in the database as %+v, %v", parked, err)
	}
	open := d.tokens.open
	if err := d.store.Close(); err != nil {
		t.Fatal(err)
	}
	d = still(t, fleet(t, database, 1, false), time.Now) // with the token again
	defer d.store.Close()                                //nolint:errcheck // the test is over
	d.tokens.open = open
	get(runner.CodeParked)
	if given != 1 {
		t.Errorf("the PIN was given %d times", given)
	}
}

// The configuration of a token changes while it asks for its PIN at its device, by what it was before. Who has changed it is there: it asks again at once, and is not
// parked at its next use because somebody typed the PIN already.
func TestChangedWhileItAsks(t *testing.T) {
	d := still(t, fleet(t, t.TempDir()+"/hsmbridge.db", 1, false), time.Now)
	defer d.store.Close() //nolint:errcheck // the test is over
	configure := func(serial string) {
		c := *d.config.Load()
		c.Tokens = slices.Clone(c.Tokens)
		c.Tokens[0].Quirks.ProtectedPath, c.Tokens[0].URI.Serial = new(true), serial
		d.config.Store(&c)
	}
	asks, typed := make(chan string), make(chan struct{})
	d.tokens.open = func(ctx context.Context, c configs.Token, l Login) (Token, error) {
		if err := l.AtDevice(ctx, wrapping.TokenIdentity{}, time.Hour); err != nil {
			return nil, err
		}
		asks <- c.URI.Serial
		<-typed
		return &standIn{ended: make(chan struct{})}, nil
	}
	person := func(want string) {
		t.Helper()
		select {
		case got := <-asks:
			if got != want {
				t.Errorf("it asks by the configuration %s, want %s", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nobody is asked at the device by the configuration %s", want)
		}
	}
	configure("1")
	if _, err := d.tokens.Get(t.Context(), "hsm"); runner.Code(err) != runner.CodeResting {
		t.Fatal(err)
	}
	person("1")
	configure("2")
	d.tokens.askAnew(t.Context())
	typed <- struct{}{}
	person("2")
	typed <- struct{}{}
	d.tokens.devices.running.Wait()
	if _, err := d.tokens.Get(t.Context(), "hsm"); err != nil {
		t.Error(err)
	}
}

// A daemon has a token open, and another one parks it: because of what C_WrapKey gave it is not used here either, until a person says so, also where the other one was
// gone before anybody looked, and this one is alone. Another daemon's wrong PIN says nothing of a login that is there.
func TestParkedWhileItIsOpen(t *testing.T) {
	d := still(t, fleet(t, postgres.Shared(t), 1, false), time.Now)
	defer d.store.Close() //nolint:errcheck // the test is over
	opens(d)
	get := func(want string) {
		t.Helper()
		d.lookAround(t.Context())
		if _, err := d.tokens.Get(t.Context(), "hsm"); runner.Code(err) != want {
			t.Errorf("it gives %v, want %q", err, want)
		}
	}
	park := func(code string) {
		t.Helper()
		if err := d.store.Park(t.Context(), store.Parked{Token: "hsm", Code: code, Reason: "another daemon found out"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.peersNow(t.Context()); err != nil || !d.alone() {
		t.Fatalf("another daemon is there: %+v, %v", d.peerList(), err)
	}
	for _, others := range []bool{false, true} {
		if others {
			d.sites.peers.Store(&[]store.Daemon{{Name: "other", Alive: true}})
		}
		get("")
		park("CKR_PIN_INCORRECT")
		get("")
		park("UnsafeOutput")
		get(runner.CodeParked)
		if err := d.tokens.unpark(t.Context(), "hsm", "alice"); err != nil {
			t.Fatal(err)
		}
	}
	get("")
}
