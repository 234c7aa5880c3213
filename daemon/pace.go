package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"hsmbridge/daemon/store"
)

// paces lets the requests of an operation go whose quota is what a bulk of imports waits for: one at a time for each account and Region, as
// soon as KMS's quota lets it pass and never earlier, for all daemons on the database together.
//
// KMS counts when a request arrives, and nobody sees that from here: one that was held up on the way and one that was not arrive closer to
// each other than they were sent. So the answer to each says how late it may have arrived, and the next one is sent that much later. The
// answer itself takes a while without any delay, which is known from the fastest ones.
type paces struct {
	store *store.Store

	mu    sync.Mutex
	lanes map[string]*lane
}

// lane is the queue of one account and Region in this process. One request of it is under way.
type lane struct {
	busy   bool
	first  []chan struct{} // waiting, before those of proof
	proofs []chan struct{}
	next   time.Time // nobody has to ask for a turn before

	key   string     // the KMS key of the request under way
	turn  store.Turn // of that
	step  time.Duration
	trips []time.Duration // how long the last requests took, the latest last
}

// margin is what the steps are longer than the quota says: AWS's clock and this one need not run equally fast, and both round.
const margin = 1.001

// enter waits until a request may be sent, perSecond of them a second; leave ends it when it was answered. A proof goes after everything
// else that waits.
func (p *paces) enter(ctx context.Context, name, key string, perSecond float64, proof bool) error {
	l, next, err := p.queue(ctx, name, proof)
	if err != nil {
		return err
	}
	step := time.Duration(float64(time.Second) / perSecond * margin)
	if err := sleep(ctx, time.Until(next)); err != nil {
		p.pass(l)
		return err
	}
	for {
		turn, wait, err := p.store.Claim(ctx, name, step)
		if err == nil && wait == 0 {
			if err = sleep(ctx, time.Until(turn.Slot)); err == nil {
				p.mu.Lock()
				l.key, l.turn, l.step = key, turn, step
				p.mu.Unlock()
				return nil
			}
			_ = p.store.Unused(context.WithoutCancel(ctx), turn) // else it is lost, which costs one step
		}
		if err == nil {
			err = sleep(ctx, wait)
		}
		if err != nil {
			p.pass(l)
			return err
		}
	}
}

// queue waits until no other request of this process is under way, and says from when on a turn may be had.
func (p *paces) queue(ctx context.Context, name string, proof bool) (*lane, time.Time, error) {
	p.mu.Lock()
	l := p.lanes[name]
	if l == nil {
		l = &lane{}
		p.lanes[name] = l
	}
	if !l.busy {
		l.busy = true
		defer p.mu.Unlock()
		return l, l.next, nil
	}
	mine := make(chan struct{})
	if proof {
		l.proofs = append(l.proofs, mine)
	} else {
		l.first = append(l.first, mine)
	}
	p.mu.Unlock()
	select {
	case <-mine:
		p.mu.Lock()
		defer p.mu.Unlock()
		return l, l.next, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	waits := func(list []chan struct{}) bool { return slices.Contains(list, mine) }
	if waits(l.first) || waits(l.proofs) {
		other := func(c chan struct{}) bool { return c == mine }
		l.first, l.proofs = slices.DeleteFunc(l.first, other), slices.DeleteFunc(l.proofs, other)
		p.mu.Unlock()
		return nil, time.Time{}, ctx.Err()
	}
	p.mu.Unlock()
	p.pass(l) // it had its turn at the same moment
	return nil, time.Time{}, ctx.Err()
}

// pass lets the next one in.
func (p *paces) pass(l *lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range []*[]chan struct{}{&l.first, &l.proofs} {
		if len(*list) > 0 {
			close((*list)[0])
			*list = (*list)[1:]
			return
		}
	}
	l.busy = false
}

// answered says that the request under way was answered, and lets the next one in.
func (p *paces) answered(ctx context.Context, name, key string) error {
	p.mu.Lock()
	l := p.lanes[name]
	if l == nil || l.key != key {
		p.mu.Unlock()
		return nil // it did not wait for a turn
	}
	turn := l.turn
	l.key = ""
	took := max(0, time.Since(turn.NotAfter)) + clockStep
	late := max(0, took-usual(l.trips))
	l.trips = append(l.trips[max(0, len(l.trips)-trips+1):], took)
	l.next = turn.NotAfter.Add(l.step + late - store.Ahead(l.step))
	p.mu.Unlock()
	defer p.pass(l)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	return p.store.Answered(ctx, turn, late)
}

const (
	trips      = 512              // that are remembered
	clockStep  = time.Millisecond // of SQLite's clock, which a slot may therefore be off
	answerTime = 5 * time.Second  // for writing down that a request was answered
)

// usual is how long a request takes that nothing holds up, or less: a later one may be faster than all before, by as much as those differ,
// and after a few by several times that. Of very few nothing is concluded. A way that opens later, or seldom, and is much faster than all that was seen
// can bring one request too early, which KMS then throttles and which is sent again.
func usual(trips []time.Duration) time.Duration {
	const enough, quarter, few = 16, 4, 96
	n := len(trips)
	if n < enough {
		return 0
	}
	sorted := slices.Sorted(slices.Values(trips))
	least, differ := sorted[0], sorted[n/quarter]-sorted[0]
	return max(0, least-differ-differ*few/time.Duration(n)-clockStep)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
