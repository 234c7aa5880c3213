package hsm

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMonitor shows that the thread which is polite is the one that Go's runtime watches the others with: it sleeps in nanosleep(2) again and again while goroutines
// run, which Go does nowhere else but for a moment.
func TestMonitor(t *testing.T) {
	politeMonitor()
	thread, ok := monitor()
	if !ok {
		t.Fatal("no thread of the runtime found")
	}
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		t.Fatal(err)
	}
	if attr.Policy != unix.SCHED_BATCH {
		t.Errorf("the policy is %d, want SCHED_BATCH", attr.Policy)
	}
	own, err := unix.SchedGetAttr(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if own.Policy != unix.SCHED_NORMAL {
		t.Errorf("the policy of the first thread is %d, want SCHED_NORMAL", own.Policy)
	}
	var done atomic.Bool
	defer done.Store(true)
	go func() { // without somebody to watch the thread sleeps until there is
		for !done.Load() {
		}
	}()
	sleeping := fmt.Sprintf("%d ", unix.SYS_NANOSLEEP)
	for end, seen := time.Now().Add(time.Minute), 0; ; time.Sleep(time.Millisecond) {
		call, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", thread))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(call), sleeping) {
			seen++
			if seen == 20 {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("thread %d does not sleep in nanosleep(2); last seen in %q", thread, call)
		}
	}
}
