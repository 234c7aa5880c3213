package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A login that nobody ended stays, is no parked token that a person can let go, and gives way to one.
func TestLogin(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		code := func() string { return must[map[string]Parked](t)(s.ParkedTokens(t.Context()))["hsm"].Code }
		ok(s.BeginLogin(t.Context(), "hsm"))
		if err := s.BeginLogin(t.Context(), "hsm"); !errors.Is(err, ErrParked) || code() != LoginBegun {
			t.Errorf("a second login: %v, and the code is %q", err, code())
		}
		if must[bool](t)(s.Unpark(t.Context(), "hsm", "alice", "mended")) {
			t.Error("a login under way was unparked")
		}
		ok(s.EndLogin(t.Context(), "hsm"))
		if code() != "" {
			t.Errorf("after the login the code is %q", code())
		}
		ok(s.BeginLogin(t.Context(), "hsm"))
		ok(s.Park(t.Context(), Parked{Token: "hsm", Code: "CKR_PIN_INCORRECT", Reason: "wrong"}))
		ok(s.EndLogin(t.Context(), "hsm"))
		if code() != "CKR_PIN_INCORRECT" {
			t.Errorf("the end of the login left the code %q", code())
		}
		if err := s.BeginLogin(t.Context(), "hsm"); !errors.Is(err, ErrParked) {
			t.Errorf("a login to a parked token: %v", err)
		}
	})
}

// A job that begins to wait for a parked token in the moment in which a person lets it be used is not left to its six hours.
func TestUnparkedInThatMoment(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		j := must[[]Job](t)(s.AddJobs(t.Context(), []Job{{Key: "k", Destination: "arn", Kind: KindImport, Token: "hsm", Reason: "first", RequestedBy: "planner"}}, q.enqueue))[0]
		l := must[*Lease](t)(s.Lock(t.Context(), "k"))
		j = must[Job](t)(s.StartJob(t.Context(), l, j.ID))
		if err := s.Park(t.Context(), Parked{Token: "hsm", Code: "CKR_PIN_INCORRECT", Reason: "wrong"}); err != nil {
			t.Fatal(err)
		}
		out := Outcome{State: Waiting, NotBefore: c.Now().Add(6 * time.Hour), Error: "wrong", ErrorClass: "token", ErrorCode: "CKR_PIN_INCORRECT"}
		if err := s.FinishJob(t.Context(), l, j, out, q.enqueue); err != nil {
			t.Fatal(err)
		}
		parks := []string{"TokenParked", "CKR_PIN_INCORRECT"}
		if n := must[int](t)(s.Wake(t.Context(), parks, q.enqueue)); n != 0 {
			t.Errorf("%d jobs of a parked token were queued", n)
		}
		if !must[bool](t)(s.Unpark(t.Context(), "hsm", "alice", "mended")) {
			t.Error("not parked")
		}
		if n := must[int](t)(s.Wake(t.Context(), parks, q.enqueue)); n != 1 {
			t.Errorf("%d jobs were queued after the token was unparked", n)
		}
	})
}

// The parked tokens are read without a daemon: while its files are as kill -9 left them, after it ended in good order, and where none was.
func TestReadParked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hsmbridge.db")
	read := func() map[string]Parked {
		t.Helper()
		return must[map[string]Parked](t)(ReadParked(t.Context(), path))
	}
	if got := read(); len(got) != 0 {
		t.Errorf("without a database: %v", got)
	}
	s := must[*Store](t)(Open(t.Context(), Config{Path: path, Daemon: "one"}))
	if err := errors.Join(s.Park(t.Context(), Parked{Token: "hsm", Code: "CKR_PIN_INCORRECT", Reason: "wrong"}), s.BeginLogin(t.Context(), "spare")); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"while its files are in use", "afterwards"} {
		if got := read(); got["hsm"].Reason != "wrong" || got["spare"].Code != LoginBegun || len(got) != 2 {
			t.Errorf("%s: %v", when, got)
		}
		if when != "afterwards" {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := must[[]os.DirEntry](t)(os.ReadDir(filepath.Dir(path)))
	for _, f := range files {
		if strings.HasSuffix(f.Name(), "-wal") || strings.HasSuffix(f.Name(), "-shm") {
			t.Errorf("reading left %s behind", f.Name())
		}
	}
}
