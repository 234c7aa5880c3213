package hsm

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestLeftoverLabel(t *testing.T) {
	l, err := newLeftover()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := parseLeftover(l.label())
	if !ok || got != l || len(l.label()) != 39 {
		t.Errorf("%q: %+v, %t, want %+v", l.label(), got, ok, l)
	}
	for _, label := range []string{"", "payments", leftoverPrefix, l.label() + "A", l.label()[:38], leftoverPrefix + "AAAA", " " + l.label(), l.label()[:38] + "!"} {
		if _, ok := parseLeftover(label); ok {
			t.Errorf("%q counts as hsmbridge's own", label)
		}
	}
}

func TestAbandoned(t *testing.T) {
	now := time.Now()
	mine, err := newLeftover()
	if err != nil {
		t.Fatal(err)
	}
	ended := exec.CommandContext(t.Context(), "true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	dead, reused, elsewhere, child := mine, mine, mine, mine
	dead.PID, dead.Process = uint32(ended.Process.Pid), 1 //nolint:gosec // numbers of processes are small
	reused.Process++                                      // an earlier process that had this process's number
	elsewhere.Host++
	elsewhere.PID = dead.PID
	child.PID, child.Process = uint32(os.Getppid()), processID(os.Getppid()) //nolint:gosec // the same
	for _, tt := range []struct {
		name string
		l    leftover
		at   time.Time
		want bool
	}{
		{"this process", mine, now, false},
		{"another living process", child, now, false},
		{"a dead process", dead, now, true},
		{"a dead process whose number is taken", reused, now, true},
		{"another machine", elsewhere, now, false},
		{"another machine, a day later", elsewhere, now.Add(25 * time.Hour), true},
		{"this process, a day later", mine, now.Add(25 * time.Hour), true},
		{"made by a clock that is ahead", mine, now.Add(-time.Hour), false},
	} {
		if got := tt.l.abandoned(tt.at); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	first, again := processID(os.Getpid()), processID(os.Getpid())
	if first == 0 || first != again || processID(1<<30) != 0 {
		t.Error("processes are not told apart")
	}
}

func FuzzParseLeftover(f *testing.F) {
	f.Add("payments")
	f.Add(leftover{Host: 1, Process: 2, PID: 3, Minute: 4}.label())
	f.Fuzz(func(t *testing.T, label string) {
		if l, ok := parseLeftover(label); ok && l.label() != label {
			t.Errorf("%q is read as %q", label, l.label())
		}
	})
}
