package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/remote/wire"
)

// answer is what came back for a call.
type answer struct {
	failed  bool
	payload []byte
	err     error // the process ended first
}

// call is a call that was sent. It is begun when a session is free for it in the process, which is when its time begins to count.
type call struct {
	op    wire.Op
	began time.Time // zero: it waits for a session
	timer *time.Timer
	done  chan answer
}

// ahead is how many calls are sent for each session: while one is carried out the next is there already, so that a session does not wait for
// the way through the kernel.
const ahead = 2

// death is why a process is no more.
type death struct {
	mark  string // empty: it was closed
	cause string
}

// do has the process do something: m is what is asked, out what comes back; both may be nil.
func (t *Token) do(ctx context.Context, op wire.Op, m, out wire.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.exchange(ctx.Done(), ctx.Err, op, m, out)
}

// exchange is do until the caller gives up, and why it did.
func (t *Token) exchange(gone <-chan struct{}, why func() error, op wire.Op, m, out wire.Message) error {
	select {
	case t.places <- struct{}{}:
	case <-t.ended:
		return t.lost(op.String())
	case <-gone:
		return fmt.Errorf("wait for a session of %s: %w", t.name, why())
	}
	number, c := t.begin(op)
	if c == nil {
		<-t.places
		return t.lost(op.String())
	}
	if err := t.conn.Send(wire.KindCall, op, number, m); err != nil {
		if errors.Is(err, wire.ErrMalformed) { // nothing was sent
			t.complete(number, answer{})
			return &failure.Error{Op: op.String(), ErrClass: failure.ClassCaller, Cause: "what is asked for is too long for the module's process: " + err.Error(), Err: err}
		}
		t.broken(err)
	}
	select {
	case a := <-c.done:
		switch {
		case a.err != nil:
			return a.err
		case a.failed:
			return t.failure(a.payload)
		case out == nil && len(a.payload) > 0:
			return t.violation(fmt.Errorf("%w: an answer with a payload", wire.ErrMalformed))
		case out == nil:
			return nil
		}
		if err := wire.Decode(a.payload, out); err != nil {
			return t.violation(err)
		}
		return nil
	case <-gone:
		_ = t.conn.Send(wire.KindCancel, 0, number, nil) // one that waits for a session is not begun any more, a probe stops
		return &failure.Error{
			Op: "wait for " + t.name, ErrClass: failure.ClassSession, Cause: "the token did not answer in time; its call goes on in the background and what it gives is dropped",
			Fix: "check the HSM and the connection to it, then run this again", Err: why(),
		}
	}
}

// begin notes a call; nil: the process is no more.
func (t *Token) begin(op wire.Op) (uint64, *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dead != nil {
		return 0, nil
	}
	t.last++
	c := &call{op: op, done: make(chan answer, 1)}
	t.calls[t.last] = c
	t.waiting = append(t.waiting, t.last)
	t.start()
	return t.last, c
}

// start sets the deadlines of calls for which there is a session. The process takes them in the order in which they were sent, or nearly.
func (t *Token) start() {
	for len(t.waiting) > 0 && t.begun < cap(t.places)/ahead {
		number := t.waiting[0]
		t.waiting = t.waiting[1:]
		c := t.calls[number]
		if c == nil {
			continue // it was answered, or given up, before
		}
		t.begun++
		limit := limit(c.op, t.timeout)
		c.began = time.Now()
		c.timer = time.AfterFunc(limit, func() {
			t.mu.Lock()
			_, there := t.calls[number]
			t.mu.Unlock()
			if there {
				_ = t.overdue(c.op.String(), limit)
			}
		})
	}
}

// complete ends a call, also one that nobody waits for any more. False: there is none of the number.
func (t *Token) complete(number uint64, a answer) bool {
	t.mu.Lock()
	c := t.calls[number]
	delete(t.calls, number)
	if c != nil && c.timer != nil {
		c.timer.Stop()
		t.begun--
		t.start()
	}
	t.mu.Unlock()
	if c == nil {
		return false
	}
	c.done <- a
	<-t.places
	return true
}

// overdue kills the process because an operation is past its deadline, and gives the error of that operation.
func (t *Token) overdue(op string, limit time.Duration) error {
	t.end(death{mark: failure.CallTimeout, cause: fmt.Sprintf("%s did not come back within %s; a call into a module cannot be cancelled, so the module's process was killed", op, limit)})
	return t.lost(op)
}

// nobodyCame kills the process because its login at the device is past its deadline.
func (t *Token) nobodyCame(limit time.Duration) error {
	t.end(death{mark: failure.CallTimeout, cause: fmt.Sprintf("C_Login did not come back within %s: nobody logged in at the device, or the device hangs; the module's process was killed", limit)})
	return t.lost("C_Login")
}

// end ends the process, once; what is under way gets an error that says so.
func (t *Token) end(d death) {
	t.mu.Lock()
	if t.dead != nil {
		t.mu.Unlock()
		return
	}
	var under []string
	for _, c := range t.calls {
		if c.began.IsZero() {
			continue
		}
		under = append(under, fmt.Sprintf("%s for %s", c.op, time.Since(c.began).Round(time.Millisecond)))
	}
	if d.mark == failure.ProcessDied && len(under) > 0 {
		d.cause += " while it was asked to " + strings.Join(under, ", ")
	}
	if t.closing && d.mark == failure.ProcessDied {
		d = death{cause: failure.ErrClosed.Error()} // as it was asked to
	}
	t.dead = &d
	left := t.calls
	t.calls = map[uint64]*call{}
	t.mu.Unlock()
	t.kill()
	for _, c := range left {
		if c.timer != nil {
			c.timer.Stop()
		}
		c.done <- answer{err: t.lost(c.op.String())}
		<-t.places
	}
	close(t.ended)
}

// lost is the error of an operation whose process is no more.
func (t *Token) lost(op string) error {
	t.mu.Lock()
	d := *t.dead
	t.mu.Unlock()
	e := &failure.Error{Op: op, ErrClass: failure.ClassSession, Cause: d.cause, Mark: d.mark, Fix: "run this again: the module's process is replaced and what was done is found out"}
	switch {
	case d.mark == "":
		return &failure.Error{Op: "use " + t.name, ErrClass: failure.ClassSession, Cause: failure.ErrClosed.Error(), Fix: "run this again: the token is opened anew", Err: failure.ErrClosed}
	case d.mark == failure.CallTimeout && strings.HasPrefix(d.cause, op+" "):
		e.Fix = "check the HSM and the connection to it; where it needs more time, raise tokens[].call_timeout"
	case d.mark == failure.CallTimeout: // another one hung
		e.Mark = failure.ProcessDied
	}
	return e
}

// failure reads an error that came back.
func (t *Token) failure(payload []byte) error {
	var f wire.Failure
	if err := wire.Decode(payload, &f); err != nil {
		return t.violation(err)
	}
	return f.Err()
}
