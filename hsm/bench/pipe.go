package bench

/*
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CALLERS = 64, REQUEST = 506, ANSWER = 274 }; // bytes: a wrap under RSA-2048, as hsm/remote/wire has it

struct caller {
	int fd, calls, failed; // fd -1: it waits itself
	long wait;
	pid_t pid;
};

struct pipe {
	int n;
	struct caller c[MOST_CALLERS];
};

static void wait_for(long ns) {
	struct timespec t = { ns / 1000000000, ns % 1000000000 };
	nanosleep(&t, NULL);
}

// whole reads or writes all of a buffer; 0: it could not.
static int whole(ssize_t (*f)(int, void *, size_t), int fd, char *b, size_t size) {
	for (ssize_t n; size > 0; b += n, size -= (size_t)n)
		if ((n = f(fd, b, size)) <= 0) return 0;
	return 1;
}

static ssize_t put(int fd, void *b, size_t size) { return send(fd, b, size, MSG_NOSIGNAL); }

static void *call(void *p) {
	struct caller *c = p;
	char b[REQUEST] = { 0 };
	for (int i = 0; i < c->calls && !c->failed; i++) {
		if (c->fd < 0) wait_for(c->wait);
		else c->failed = !whole(put, c->fd, b, REQUEST) || !whole(read, c->fd, b, ANSWER);
	}
	return NULL;
}

// answer is the process at the other end. It calls nothing that is not async-signal-safe.
static void answer(int fd, long wait) {
	char b[REQUEST] = { 0 };
	while (whole(read, fd, b, REQUEST)) {
		wait_for(wait);
		if (!whole(put, fd, b, ANSWER)) break;
	}
	_exit(0);
}

static int pipe_start(struct caller *c) {
	int ends[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return errno;
	if ((c->pid = fork()) == 0) {
		close(ends[0]);
		answer(ends[1], c->wait);
	}
	int e = errno;
	close(ends[1]);
	if (c->pid < 0) {
		close(ends[0]);
		return e;
	}
	c->fd = ends[0];
	return 0;
}

static void pipe_close(struct pipe *p) {
	for (int i = 0; i < p->n; i++) {
		if (p->c[i].fd < 0) continue;
		close(p->c[i].fd);
		kill(p->c[i].pid, SIGKILL); // a process that was started after it has its end of the socket too
		waitpid(p->c[i].pid, NULL, 0);
	}
	free(p);
}

static int pipe_open(struct pipe **out, int callers, long wait, int processes) {
	struct pipe *p = calloc(1, sizeof *p);
	if (p == NULL) return ENOMEM;
	if (callers > MOST_CALLERS) callers = MOST_CALLERS;
	for (; p->n < callers; p->n++) {
		p->c[p->n].fd = -1;
		p->c[p->n].wait = wait;
		int e = processes ? pipe_start(&p->c[p->n]) : 0;
		if (e != 0) {
			pipe_close(p);
			return e;
		}
	}
	*out = p;
	return 0;
}

static int pipe_run(struct pipe *p, int calls) {
	pthread_t threads[MOST_CALLERS];
	int e = 0, started = 0;
	while (started < p->n && e == 0) {
		p->c[started].calls = calls;
		e = pthread_create(&threads[started], NULL, call, &p->c[started]);
		started += e == 0;
	}
	for (int i = 0; i < started; i++) {
		pthread_join(threads[i], NULL);
		if (p->c[i].failed) e = EPIPE;
	}
	return e;
}
*/
import "C"

import (
	"fmt"
	"syscall"
	"time"
)

// Pipe is the least that a process of its own for a module can cost: callers in C, each with a process in C at the other end of a socket pair, which waits as
// long as a wrap takes and answers. There is nothing between them but the kernel.
type Pipe struct{ p *C.struct_pipe }

// NewPipe starts a process for each caller. Without processes, the callers wait themselves.
func NewPipe(callers int, wait time.Duration, processes bool) (*Pipe, error) {
	var p Pipe
	with := C.int(0)
	if processes {
		with = 1
	}
	if e := C.pipe_open(&p.p, C.int(callers), C.long(wait.Nanoseconds()), with); e != 0 { //nolint:gocritic // of what cgo makes of it
		return nil, fmt.Errorf("a process in C: %w", syscall.Errno(e))
	}
	return &p, nil
}

// Close ends the processes.
func (p *Pipe) Close() { C.pipe_close(p.p) }

// Run has each caller ask so many times, all at once, and says how long that took.
func (p *Pipe) Run(calls int) (time.Duration, error) {
	begin := time.Now()
	if e := C.pipe_run(p.p, C.int(calls)); e != 0 {
		return 0, fmt.Errorf("a process in C: %w", syscall.Errno(e))
	}
	return time.Since(begin), nil
}
