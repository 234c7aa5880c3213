package runner

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// looked is a token that is looked into: during is called while it is asked.
type looked struct {
	importer.Token
	holds  bool
	during func()
}

func (*looked) Identity() wrapping.TokenIdentity { return wrapping.TokenIdentity{Serial: "1"} }

func (l *looked) CheckValue(context.Context, wrapping.Key) (string, error) { return "1a2b3c", nil }

// Find finds what was there when it was asked, and answers late.
func (l *looked) Find(context.Context, pkcs11uri.URI) (wrapping.Key, error) {
	holds := l.holds
	if f := l.during; f != nil {
		l.during = nil
		f()
	}
	if !holds {
		return wrapping.Key{}, wrapping.ErrKeyNotFound
	}
	return wrapping.Key{Label: "k"}, nil
}

// A daemon looks into a token, and before it writes down what it saw another look sees something newer: that is not overwritten.
func TestLookThatIsLate(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db"), NoSync: true, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the test is over
	r := &Runner{Store: s, Now: clock}
	k := configs.Key{Name: "k", Token: "a", KeySpec: wrapping.SymmetricDefault, URI: pkcs11uri.URI{Object: "k"}, Replicas: []configs.Replica{{Token: "b"}}}
	look := func(token *looked) string {
		t.Helper()
		row, err := r.Look(t.Context(), k, "b", token, store.Material{Generation: 1})
		if err != nil {
			t.Fatal(err)
		}
		return row.Identity
	}
	noted := func() string {
		t.Helper()
		rows, err := s.Replicas(t.Context(), "k")
		if err != nil || len(rows) != 1 {
			t.Fatalf("%+v, %v", rows, err)
		}
		return rows[0].Identity
	}
	const is = "check value 1a2b3c"
	token := &looked{}
	copied := func(holds bool) func() {
		return func() { // while the first look waits for the token's answer
			token.holds = holds
			now = now.Add(time.Second)
			look(token)
		}
	}
	for _, holds := range []bool{true, false} {
		want := ""
		if holds {
			want = is
		}
		now = now.Add(time.Hour) // what was noted a moment ago would not be noted again
		token.during = copied(holds)
		if got := look(token); got != want || noted() != want {
			t.Errorf("the token holds it: %t; the look gives %q, and %q is noted", holds, got, noted())
		}
	}
}
