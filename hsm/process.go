package hsm

/*
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *network = "shared";

static int put(const char *file, const char *line) {
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	if (fd < 0) return -1;
	ssize_t n = write(fd, line, strlen(line));
	close(fd);
	return n == (ssize_t)strlen(line) ? 0 : -1;
}

// hb_alone runs before Go starts its threads: only a process of one thread can leave its user namespace, which somebody without
// privileges has to do to get a network of their own. It acts in the process of a module that needs no network, and nowhere else.
__attribute__((constructor)) static void hb_alone(int argc, char **argv) {
	const char *stage = getenv("HSMBRIDGE_MODULE_PROCESS");
	if (argc != 3 || strcmp(argv[1], "module-process") != 0 || stage == NULL || strcmp(stage, "none") != 0) return;
	if (unshare(CLONE_NEWNET) == 0) {
		network = "own network namespace";
		return;
	}
	unsigned uid = geteuid(), gid = getegid();
	char line[64];
	if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return;
	network = "own network and user namespace";
	snprintf(line, sizeof line, "%u %u 1", uid, uid);
	if (put("/proc/self/uid_map", line) != 0) network = "own network and user namespace, without its user";
	put("/proc/self/setgroups", "deny");
	snprintf(line, sizeof line, "%u %u 1", gid, gid);
	put("/proc/self/gid_map", line);
}

static const char *hb_network(void) { return network; }

// hb_plain_signals gives faults their default action. Go's own, which prints registers and stacks, would show what a module was working on,
// and would hide by which signal the process ended.
static void hb_plain_signals(void) {
	int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS };
	for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++) signal(faults[i], SIG_DFL);
}
*/
import "C"

// PlainSignals has the kernel end the process at a fault in the module, at once and without a trace. For a process that does nothing else.
func PlainSignals() { C.hb_plain_signals() }

// NetworkNamespace says which network the process has: "shared", or one of its own that leads nowhere.
func NetworkNamespace() string { return C.GoString(C.hb_network()) }
