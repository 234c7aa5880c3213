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
