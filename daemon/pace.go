package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
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
	store turns
	self  string // other than that of any other process

	mu    sync.Mutex
	lanes map[string]*lane
}

// turns is the part of the store that is used.
type turns interface {
	Claim(ctx context.Context, name string, by store.Sender, step time.Duration) (store.Turn, time.Duration, error)
	Renew(ctx context.Context, t store.Turn) (store.Turn, error)
	Answered(ctx context.Context, t store.Turn, late, usual time.Duration) error
	Unused(ctx context.Context, t store.Turn) error
}

func newPaces(s turns) *paces {
	return &paces{store: s, self: rand.Text(), lanes: map[string]*lane{}}
}

// lane is the queue of one account and Region in this process. One request of it is under way.
type lane struct {
	busy   bool
	first  []chan struct{} // waiting, before those of proof
	proofs []chan struct{}
	next   time.Time // nobody has to ask for a turn before
	had    time.Time // when this process had its last turn
	run    int       // how many it had since it let others have one
	others bool      // wait
	stand  bool      // it lets others have one now
	floor  time.Time // no request is sent before, whatever the database says: it may not know of the last answer

	key   string // the KMS key of the request under way
	held  *held  // the turn of that
	step  time.Duration
	trips []time.Duration // how long the last requests took, the latest last
}

// margin is what the steps are longer than the quota says: AWS's clock and this one need not run equally fast, and both round.
const margin = 1.001

// enter waits until a request may be sent, perSecond of them a second; answered ends the turn. A proof goes after everything
// else that waits.
func (p *paces) enter(ctx context.Context, name, key string, perSecond float64, proof bool) error {
	l, next, err := p.queue(ctx, name, proof)
	if err != nil {
		return err
	}
	step := time.Duration(float64(time.Second) / perSecond * margin)
	if err := sleep(ctx, time.Until(next)+p.courtesy(l, step)); err != nil {
		p.pass(l)
		return err
	}
	for {
		p.mu.Lock()
		by, floor := store.Sender{Name: p.self, Usual: usual(l.trips)}, l.floor
		p.mu.Unlock()
		turn, wait, err := p.store.Claim(ctx, name, by, step)
		if err == nil && wait == 0 {
			h := p.hold(turn, step) //nolint:contextcheck // the turn is kept until its request was answered, also when whoever asked is gone
			if err = sleep(ctx, max(time.Until(turn.Slot), time.Until(floor))); err == nil && h.ours(step) {
				p.mu.Lock()
				l.key, l.held, l.step = key, h, step
				l.had, l.run, l.others, l.stand = time.Now(), l.run+1, turn.Others, false
				p.mu.Unlock()
				return nil
			}
			p.unused(ctx, h)
		}
		if err == nil {
			err = sleep(ctx, wait+p.courtesy(l, step))
		}
		if err != nil {
			p.pass(l)
			return err
		}
	}
}

// unused gives a turn back; else it is lost, which costs a little.
func (p *paces) unused(ctx context.Context, h *held) {
	if turn, lost := h.end(); !lost {
		_ = p.store.Unused(context.WithoutCancel(ctx), turn)
	}
}

// dropped says that the request is not sent after all.
func (p *paces) dropped(ctx context.Context, name, key string) {
	p.mu.Lock()
	l := p.lanes[name]
	if l == nil || l.key != key {
		p.mu.Unlock()
		return
	}
	h := l.held
	l.key, l.held = "", nil
	p.mu.Unlock()
	p.unused(ctx, h)
	p.pass(l)
}

// courtesy is how much later a process asks for a turn because of others that wait. It has some in a row, since to change costs time: the answer to another
// one's request says less. Then it lets one of the others have a turn, and the longer it has had none, the less it waits: so one that is farther from the
// database or from KMS gets there too. But for once after each run it costs nothing, being a part of the time before the slot.
func (p *paces) courtesy(l *lane, step time.Duration) time.Duration {
	const (
		row      = 8
		patience = 64
		parts    = 16
	)
	p.mu.Lock()
	defer p.mu.Unlock()
	most := store.Ahead(step) / 2
	switch {
	case l.stand || time.Since(l.had) > 2*step:
		left := max(0, patience-time.Since(l.had)/step)      // steps until it is not polite any more
		return most*left/patience + mathrand.N(most/parts+1) //nolint:gosec // so that not all ask in the same moment
	case l.others && l.run >= row:
		l.run, l.stand = 0, true
		return most + usual(l.trips)
	default:
		return 0
	}
}

// held is a turn that is kept while its request is to be sent or under way: else it counts as lost soon, because the daemon may have been killed.
type held struct {
	notAfter time.Time // of the turn

	mu   sync.Mutex
	turn store.Turn
	lost bool
	stop chan struct{}
	done chan struct{}
}

// hold keeps a turn until its end, renewing it long before it counts as lost.
func (p *paces) hold(turn store.Turn, step time.Duration) *held {
	h := &held{notAfter: turn.NotAfter, turn: turn, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(h.done)
		often := store.Lost(step) / 4
		timer := time.NewTimer(often)
		defer timer.Stop()
		for {
			select {
			case <-h.stop:
				return
			case <-timer.C:
			}
			ctx, cancel := context.WithTimeout(context.Background(), answerTime)
			renewed, err := p.store.Renew(ctx, turn)
			cancel()
			if err == nil {
				turn = renewed
			}
			h.mu.Lock()
			h.turn, h.lost = turn, errors.Is(err, store.ErrTurnLost)
			h.mu.Unlock()
			if errors.Is(err, store.ErrTurnLost) {
				return
			}
			timer.Reset(often)
		}
	}()
	return h
}

// ours says that nobody else can have a turn within a step.
func (h *held) ours(step time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.lost && time.Now().Add(step).Before(h.turn.Until)
}

// end ends the keeping.
func (h *held) end() (turn store.Turn, lost bool) {
	close(h.stop)
	<-h.done
	return h.turn, h.lost // nobody writes them any more
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

// answered says that the request under way was answered, and lets the next one in. It came: else this side has given it up, and it may arrive at KMS still.
func (p *paces) answered(ctx context.Context, name, key string, came bool) error {
	p.mu.Lock()
	l := p.lanes[name]
	if l == nil || l.key != key {
		p.mu.Unlock()
		return nil // it did not wait for a turn
	}
	h := l.held
	l.key, l.held = "", nil
	took := max(0, time.Since(h.notAfter)) + clockStep
	usual := usual(l.trips)
	late := max(0, took-usual)
	if came {
		l.trips = append(l.trips[max(0, len(l.trips)-trips+1):], took)
	} else {
		late = max(late, l.step)
	}
	l.floor = h.notAfter.Add(l.step + late)
	l.next = l.floor.Add(-store.Ahead(l.step))
	p.mu.Unlock()
	defer p.pass(l)
	turn, _ := h.end()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	return p.store.Answered(ctx, turn, late, usual)
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
