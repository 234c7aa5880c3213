package daemon

import (
	"sync"
	"time"
)

// calls are the calls to tokens that have not come back. A call into a vendor's library cannot be cancelled: one that hangs is the
// reason to have systemd replace the process.
type calls struct {
	mu      sync.Mutex
	next    int
	running map[int]running
}

type running struct {
	what  string
	since time.Time
}

func newCalls() *calls { return &calls{running: map[int]running{}} }

func (c *calls) begin(what string) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	id := c.next
	c.running[id] = running{what, time.Now()}
	return func() {
		c.mu.Lock()
		delete(c.running, id)
		c.mu.Unlock()
	}
}

// hung names the oldest call that runs longer than limit; empty: none.
func (c *calls) hung(limit time.Duration) (what string, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.running {
		if time.Since(r.since) > limit && (since.IsZero() || r.since.Before(since)) {
			what, since = r.what, r.since
		}
	}
	return what, since
}
