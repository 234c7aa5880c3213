package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// The screen is one screen: what does not fit is counted.
func TestStatusExpiries(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := control.Status{Now: now, Started: now}
	for i := range 20 {
		s.Next = append(s.Next, control.Expiry{Key: fmt.Sprintf("key-%02d", i), ValidTo: now.AddDate(0, 0, i+1), Renewal: now})
	}
	for expiring, want := range map[int]string{20: "  and 10 later ", 10000: "  and 9990 later "} {
		s.Counts.Expiring = expiring
		var out bytes.Buffer
		(&app{out: &out}).printStatus(s)
		if !strings.Contains(out.String(), "key-09 ") || strings.Contains(out.String(), "key-10 ") || !strings.Contains(out.String(), want) {
			t.Errorf("of %d:\n%s", expiring, out.String())
		}
	}
	s.Next, s.Counts.Expiring = s.Next[:10], 10
	var out bytes.Buffer
	(&app{out: &out}).printStatus(s)
	if strings.Contains(out.String(), "later") {
		t.Errorf("of ten:\n%s", out.String())
	}
}

// An import is one that the journal knows; of other material the screen says when KMS was first found to hold it. Of each copy it says where it is
// and whether it is the key.
func TestStatusOfKey(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k := control.ManagedKey{
		Name: "payments", Token: "a", Tokens: []string{"a", "b"}, KeySpec: "SYMMETRIC_DEFAULT", Expires: "90d", Renewals: make([]time.Time, 3),
		Destinations: []store.Destination{{Destination: "arn:ours", Present: true, ImportedAt: at}, {Destination: "arn:found", Present: true, FirstSeenAt: at}, {Destination: "arn:new"}},
		Replicas: []control.Replica{
			{Replica: store.Replica{Generation: 1, Token: "a", Identity: "check value 1a2b3c", Serial: "100", Daemon: "one", Seen: at}, Object: "pkcs11:object=payments", TokenState: "open", Required: true, Agrees: true},
			{Replica: store.Replica{Generation: 1, Token: "b", Problem: "not looked at yet"}, Object: "pkcs11:object=copy", TokenState: "unreached"},
		},
	}
	var out bytes.Buffer
	(&app{out: &out}).printKey(k)
	for _, want := range []string{
		"payments, SYMMETRIC_DEFAULT in tokens a, b, expires 90d\n",
		"arn:ours\n  KMS key      -\n  expires      never\n  imported     2026-01-01T00:00:00Z\n\n",
		"arn:found\n  KMS key      -\n  expires      never\n  first seen   2026-01-01T00:00:00Z, KMS held it already; the journal has no import that KMS\n               confirmed\n\n",
		"arn:new\n  KMS key      -\n\n",
		"GENERATION  TOKEN             STATE      SERIAL  HOLDS               THE SAME  SEEN                         OBJECT\n",
		"1           a                 open       100     check value 1a2b3c  yes       2026-01-01T00:00:00Z by one  pkcs11:object=payments\n",
		"1           b (not required)  unreached  -       -                   -         -                            pkcs11:object=copy\n",
		"  b, generation 1: not looked at yet\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}

// Of a revoked key that the configuration has no more the screen says that it is one, what KMS holds of it and which job deletes that.
func TestStatusOfRemoved(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := control.Status{Now: at, Started: at, Counts: control.Counts{Keys: 3, Removed: 12}}
	for i := range 12 {
		s.Removed = append(s.Removed, control.RemovedKey{Name: fmt.Sprintf("gone-%02d", i), RevokedAt: at, RevokedBy: "alice", Destinations: 2})
	}
	s.Removed[0].Present, s.Removed[0].Job, s.Removed[0].JobState = 1, 7, store.Waiting
	var out bytes.Buffer
	a := &app{out: &out}
	a.printStatus(s)
	for _, want := range []string{
		"keys: 3, revoked: 0, paused: 0, revoked and no longer in the configuration: 12; destinations: 0,",
		"REVOKED, NO LONGER CONFIGURED  AT (UTC)          BY     KMS KEYS THAT HOLD IT  JOB THAT DELETES IT\ngone-00                        2026-01-01 00:00  alice  1 of 2                 7, waiting\ngone-01                        2026-01-01 00:00  alice  0 of 2                 -\n",
		"gone-09 ", "  and 2 more (of one key: hsmbridge status NAME)\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
	k := control.ManagedKey{
		Name: "gone", Removed: true, State: store.Key{RevokedAt: at, RevokedBy: "alice", RevokedReason: "leak"}, Renewals: make([]time.Time, 2),
		Destinations: []store.Destination{{Destination: "arn:1", Present: true, State: "Enabled"}, {Destination: "arn:2", State: "PendingImport"}},
	}
	for want, job := range map[string]*store.Job{
		"not done: when KMS was asked last, 1 of 2 KMS keys held the material, and no job\n               deletes it\n": nil,
		"job 7 waits, next try 2026-01-01T00:00:00Z\n":                                                                  {ID: 7, State: store.Waiting, NotBefore: at},
		"job 7 is running\n": {ID: 7, State: store.Running},
	} {
		out.Reset()
		k.Deletion = job
		a.printKey(k)
		want = "gone, revoked and no longer in the configuration\n  revoked      2026-01-01T00:00:00Z by alice: leak\n  deletion     " + want
		if !strings.HasPrefix(out.String(), want) {
			t.Errorf("it does not begin with %q:\n%s", want, out.String())
		}
	}
}

// An error that several keys share is told once, in a few lines, with the names of the keys; of one key it is told whole, with its line breaks.
func TestStatusSharedError(t *testing.T) {
	long := func(key string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "no way to wrap %s:", key)
		for i := range 19 {
			fmt.Fprintf(&b, "\n  way %d: CKR_MECHANISM_INVALID", i)
		}
		return b.String()
	}
	var s control.Status
	for i := range 6 {
		key := fmt.Sprintf("k%02d", i)
		s.People = append(s.People, control.NeedsPerson{Key: key, Destination: "arn:" + key, Class: "caller", Message: long(key), Retry: "hsmbridge retry " + key})
	}
	s.People = append(s.People, control.NeedsPerson{Key: "other", Message: "denied", Class: "kms", Retry: "hsmbridge retry other"})
	var out bytes.Buffer
	a := &app{out: &out}
	a.printStatus(s)
	want := "\nWAITS FOR A PERSON\n  k00 -> arn:k00\n  k01 -> arn:k01\n  k02 -> arn:k02\n  k03 -> arn:k03\n  k04 -> arn:k04\n  k05 -> arn:k05\n" +
		"    no way to wrap k00:\n    way 0: CKR_MECHANISM_INVALID\n    way 1: CKR_MECHANISM_INVALID\n    way 2: CKR_MECHANISM_INVALID\n    ... 16 more lines: hsmbridge status k00\n" +
		"    first: change what is named there; until then a retry fails in the same way\n    then: hsmbridge retry k00 k01 k02 k03 k04 k05\n" +
		"  other\n    denied\n    then: hsmbridge retry other\n"
	if !strings.Contains(out.String(), want) {
		t.Errorf("want\n%sin\n%s", want, out.String())
	}
	out.Reset()
	a.printKey(control.ManagedKey{Name: "k00", State: store.Key{Error: long("k00")}})
	if got := out.String(); !strings.Contains(got, "  error        no way to wrap k00:\n               way 0: CKR_MECHANISM_INVALID\n") || !strings.Contains(got, "               way 18: CKR_MECHANISM_INVALID\n") {
		t.Errorf("of one key:\n%s", got)
	}
	jobs := []store.Job{{ID: 1, Key: "k00", State: store.Failed, Error: long("k00")}, {ID: 2, Key: "k01", State: store.Failed, Error: long("k01")}}
	for n, want := range map[int]string{1: "way 18: ", 2: "... 16 more lines: hsmbridge jobs k01\n"} {
		out.Reset()
		if err := a.printJobs(jobs[:n]); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%d jobs: %v\n%s", n, err, out.String())
		}
	}
}
