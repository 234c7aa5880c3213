package hsm

/*
#define _GNU_SOURCE
#include <sched.h>

// hb_polite changes nothing for a thread that was given another policy than the usual one, and leaves its niceness.
static void hb_polite(int thread) {
	struct sched_param none = { 0 };
	if (sched_getscheduler(thread) == SCHED_OTHER) sched_setscheduler(thread, SCHED_BATCH, &none);
}
*/
import "C"

import (
	"os"
	"strconv"
	"sync"
)

// politeMonitor has the thread with which Go's runtime watches the others (sysmon) wait for a processor instead of taking one away: SCHED_BATCH, sched(7). While a
// call into C lasts it wakes every 20 µs, to make room for other goroutines. With a processor to spare it still does so at once; with all of them busy
// each of its wakes took one from a thread that worked, as often as not the one that held the module's lock, for which all sessions then waited
// (BenchmarkMonitor in hsm/bench). The threads that it starts, most of those that make calls, inherit the policy, and so does what a module starts from them. It is
// done once, and where it is not allowed all is as it was.
//
//nolint:gochecknoglobals // the runtime has one such thread
var politeMonitor = sync.OnceFunc(func() {
	if thread, ok := monitor(); ok {
		C.hb_polite(C.int(thread))
	}
})

// monitor is the thread's number. The runtime starts it before any other, and /proc lists threads in the order in which they began. A library that the process
// was linked with may have started one before: then it is that one that is polite.
func monitor() (thread int, ok bool) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, false
	}
	names, _ := dir.Readdirnames(-1)                             // not os.ReadDir, which sorts
	_ = dir.Close()                                              // was only read
	if len(names) < 2 || names[0] != strconv.Itoa(os.Getpid()) { // a /proc of another PID namespace
		return 0, false
	}
	thread, err = strconv.Atoi(names[1])
	return thread, err == nil
}
