package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
)

// sites is what a daemon knows of the others on its database, and of what they reach.
type sites struct {
	peers  atomic.Pointer[[]store.Daemon]
	asked  atomic.Int64    // when: time since the start
	usable map[string]bool // own tokens, at the last sign of life
	beaten time.Time       // when that was
	fresh  []string        // those that had become usable then
}

// beatEvery is how often a daemon gives the others a sign of life, and looks for what they left.
func (d *Daemon) beatEvery() time.Duration {
	if !d.store.Postgres() {
		return wakeEvery
	}
	const most, part = 2 * time.Second, 4
	return min(most, d.store.LeaseTime()/part)
}

// beat tells the others which tokens this daemon can use, and asks what they can. Jobs that waited for a token which can be used now begin.
func (d *Daemon) beat(ctx context.Context) error {
	now, fresh := map[string]string{}, []string{}
	if d.sites.usable == nil || time.Since(d.sites.beaten) > d.store.LeaseTime() {
		d.sites.usable = map[string]bool{} // this daemon was away for the others, and may be waited for
	}
	d.sites.beaten = time.Now()
	for _, t := range d.tokenStates() {
		if t.State == stateElsewhere {
			continue
		}
		is := d.tokens.Usable(t.Name)
		if now[t.Name] = t.State; !is && usableState(t.State) {
			now[t.Name] = stateAway
		}
		if is && !d.sites.usable[t.Name] {
			fresh = append(fresh, t.Name)
		}
	}
	if d.store.Postgres() {
		if err := errors.Join(d.store.Beat(ctx, now), d.peersNow(ctx)); err != nil {
			return err
		}
	}
	// The others know by now. One that asked a moment before may only now have written that its job waits: so the next sign of life does it again.
	hurry := append(slices.Clone(fresh), d.sites.fresh...)
	d.sites.fresh = fresh
	for _, name := range hurry {
		if _, err := d.store.HurryToken(ctx, name, d.queue.Enqueue); err != nil {
			return err
		}
	}
	for name := range now {
		d.sites.usable[name] = usableState(now[name])
	}
	return nil
}

// peersNow asks who else is there.
func (d *Daemon) peersNow(ctx context.Context) error {
	at := int64(time.Since(d.started))
	all, err := d.store.Daemons(ctx)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(p store.Daemon) bool { return p.Name == d.store.Daemon() })
	d.sites.peers.Store(&all)
	d.sites.asked.Store(at)
	return nil
}

// States of tokens beside those that a slot has.
const (
	stateElsewhere = "elsewhere" // this daemon does not reach it
	stateAway      = "away"      // it failed, and was not opened since
)

func usableState(s string) bool { return s == "open" || s == "closed" || s == "opening" }

// others says that another daemon, which is alive, can use one of the tokens. Before it says no it asks again: one may have come in this moment.
func (d *Daemon) others(ctx context.Context, tokens []string) bool {
	const recent = 100 * time.Millisecond
	if d.can(tokens) || !d.store.Postgres() {
		return d.can(tokens)
	}
	if time.Since(d.started)-time.Duration(d.sites.asked.Load()) > recent {
		if err := d.peersNow(ctx); err != nil {
			d.log.Warn("database", zap.Error(err))
		}
	}
	return d.can(tokens)
}

func (d *Daemon) can(tokens []string) bool {
	for _, p := range d.peerList() {
		if p.Alive && slices.ContainsFunc(tokens, func(t string) bool { return usableState(p.Tokens[t]) }) {
			return true
		}
	}
	return false
}

func (d *Daemon) peerList() []store.Daemon {
	if p := d.sites.peers.Load(); p != nil {
		return *p
	}
	return nil
}

// alone says that neither another daemon nor another token could do what a token of this one cannot.
func (d *Daemon) alone() bool {
	return !slices.ContainsFunc(d.peerList(), func(p store.Daemon) bool { return p.Alive }) && !replicated(d.config.Load())
}

func replicated(c *configs.Config) bool {
	return slices.ContainsFunc(c.Keys, func(k configs.Key) bool { return len(k.Replicas) > 0 })
}

// sets are the queues that a daemon serves: for each token that it reaches, and for the tokens of each key of which it reaches one.
func sets(c *configs.Config) []string {
	out := c.Reached()
	for _, k := range c.Keys {
		if set := k.TokenSet(); reaches(c, set) && !slices.Contains(out, set) {
			out = append(out, set)
		}
	}
	return out
}

// reaches says that the daemon reaches one of a set of tokens.
func reaches(c *configs.Config, set string) bool {
	return slices.ContainsFunc(configs.TokensIn(set), c.Reach)
}

// watchSites looks into tokens that failed, and into what the tokens of this daemon hold of keys that several tokens hold.
func (d *Daemon) watchSites(ctx context.Context) {
	every := max(d.beatEvery(), time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		d.lookAround(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAround does that once. A daemon that parked a token may be gone before the others look: what it found out counts also where this one is alone.
func (d *Daemon) lookAround(ctx context.Context) {
	if d.store.Postgres() {
		if err := d.tokens.obey(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("which tokens are parked could not be looked at; it is tried again", zap.Error(err))
		}
	}
	if d.alone() {
		return
	}
	d.tokens.revive(ctx)
	if err := d.lookAtReplicas(ctx); err != nil && ctx.Err() == nil {
		d.log.Warn("what the tokens hold of keys with replicas could not be looked at; it is tried again", zap.Error(err))
	}
}

// look is one thing to look at: what a token holds of a generation.
type look struct {
	key   configs.Key
	token string
	store.Material
	was  store.Replica // as it is noted; zero: it is not
	want string        // what tells the material; empty: nobody knows yet
}

// lookAtReplicas looks at what was not looked at for a while, and soon again at what is not as it has to be.
func (d *Daemon) lookAtReplicas(ctx context.Context) error {
	c := d.config.Load()
	if !replicated(c) {
		return nil
	}
	list, err := d.unlooked(ctx, c)
	if err != nil {
		return err
	}
	failed := map[string]bool{}
	for _, l := range list {
		if failed[l.token] || ctx.Err() != nil {
			continue
		}
		row, err := d.runner.LookInto(ctx, l.key, l.token, l.Material)
		if err != nil {
			failed[l.token] = true
			d.log.Warn("a token could not be looked into", zap.String("token", l.token), zap.String("key", l.key.Name), zap.Error(err))
			continue
		}
		d.progressed()
		hurry := news(l, row, c.KMS.Watch(), d.now())
		if !hurry {
			if hurry, err = d.copied(ctx, l); err != nil {
				return err
			}
		}
		if !hurry {
			continue
		}
		if _, err := d.store.HurryKey(ctx, l.key.Name, runner.WaitsForReplicas(), d.queue.Enqueue); err != nil {
			return err
		}
	}
	return nil
}

// copied says that all tokens which have to hold the material are noted with the same: a job that failed while that became true waits no longer.
func (d *Daemon) copied(ctx context.Context, l look) (bool, error) {
	rows, err := d.store.Replicas(ctx, l.key.Name)
	if err != nil {
		return false, err
	}
	same := map[string]bool{}
	for _, t := range l.key.Tokens() {
		if r, ok := l.key.Replica(t); ok && !r.Required {
			continue
		}
		identity := ""
		if i := slices.IndexFunc(rows, func(r store.Replica) bool { return r.Token == t && r.Generation == l.Generation }); i >= 0 {
			identity = rows[i].Identity
		}
		same[identity] = true
	}
	return len(same) == 1 && !same[""], nil
}

// news says that a job which waits for what a token holds may end otherwise than before: that is not what was noted, nobody has looked for long, or it is
// what it has to be. The same fault again would only be the same failure again.
func news(l look, row store.Replica, every time.Duration, now time.Time) bool {
	return row.Identity != l.was.Identity || row.Problem != l.was.Problem || now.Sub(l.was.Seen).Abs() >= every || row.Identity != "" && row.Identity == l.want
}

// unlooked lists what is to be looked at now, at most so many.
func (d *Daemon) unlooked(ctx context.Context, c *configs.Config) ([]look, error) {
	const most, soon = 200, 5 * time.Second
	known, byKey, err := d.held(ctx)
	if err != nil {
		return nil, err
	}
	var out []look
	for _, k := range c.Keys {
		if len(k.Replicas) == 0 {
			continue
		}
		for _, m := range generations(known[k.Name]) {
			want := runner.Reference(k, m, byKey[k.Name])
			for _, t := range k.Tokens() {
				if !d.tokens.Usable(t) {
					continue
				}
				i := slices.IndexFunc(byKey[k.Name], func(r store.Replica) bool { return r.Token == t && r.Generation == m.Generation })
				every := c.KMS.Watch()
				if i >= 0 && (want == "" || byKey[k.Name][i].Identity != want) {
					every = soon
				}
				l := look{key: k, token: t, Material: m, want: want}
				if i >= 0 {
					l.was = byKey[k.Name][i]
				}
				if i < 0 || d.now().Sub(l.was.Seen).Abs() >= every {
					out = append(out, l)
				}
				if len(out) == most {
					return out, nil
				}
			}
		}
	}
	return out, nil
}

// daemons are the daemons on a shared database, this one first.
func (d *Daemon) daemons(own []control.Token) []control.Site {
	if !d.store.Postgres() {
		return nil
	}
	now := d.now()
	me := control.Site{Name: d.store.Daemon(), Alive: true, Seen: now, Tokens: map[string]string{}}
	for _, t := range own {
		if t.State != stateElsewhere {
			me.Tokens[t.Name] = t.State
		}
	}
	out := []control.Site{me}
	for _, p := range d.peerList() {
		out = append(out, control.Site{Name: p.Name, Alive: p.Alive, Seen: now.Add(-p.Ago), Tokens: p.Tokens})
	}
	return out
}

// unserved adds what a person has to do about tokens that no daemon reaches, and about replicas that are not what they have to be.
func (d *Daemon) unserved(ctx context.Context, s *control.Status, c *configs.Config) error {
	for _, t := range s.Tokens {
		if t.State == stateElsewhere && !slices.ContainsFunc(s.Daemons, func(p control.Site) bool { _, ok := p.Tokens[t.Name]; return ok && p.Alive }) {
			s.People = append(s.People, control.NeedsPerson{
				Token: t.Name, Code: runner.CodeNotReached, Message: "no daemon that is alive reaches this token (reaches:); keys that no other token holds wait", Retry: "start the daemon that reaches it",
			})
		}
	}
	if !replicated(c) {
		return nil
	}
	known, byKey, err := d.held(ctx)
	if err != nil {
		return err
	}
	for _, k := range c.Keys {
		for _, r := range replicaStates(k, known[k.Name], byKey[k.Name]) {
			if r.Agrees || r.Seen.IsZero() { // what nobody has looked at yet is looked at in a moment
				continue
			}
			s.People = append(s.People, control.NeedsPerson{
				Key: k.Name, Code: runner.CodeNoReplica, Retry: "hsmbridge retry " + k.Name,
				Message: fmt.Sprintf("token %s (generation %d): %s; it is not used for this key", r.Token, r.Generation, r.Problem),
			})
		}
	}
	return nil
}

// write writes down that a token is parked: for all daemons, or where only this one's module is to blame for this one.
func (ts *tokens) write(ctx context.Context, p store.Parked) error {
	if runner.ParksHere(p.Code) {
		return ts.store.ParkHere(ctx, p)
	}
	return ts.store.Park(ctx, p)
}

// Usable says that the daemon reaches a token and knows of no reason why it would not work.
func (ts *tokens) Usable(name string) bool {
	return ts.config().Reach(name) && !ts.slot(name).trouble.Load()
}

// revive finds out whether tokens that failed work again, so that no job has to. Those that rest or were told to be left alone are.
func (ts *tokens) revive(ctx context.Context) {
	for _, name := range ts.config().Reached() {
		s := ts.slot(name)
		if !s.trouble.Load() || !s.TryLock() {
			continue
		}
		leave := s.resting.After(ts.now())
		s.Unlock()
		if !leave {
			_, _ = ts.Get(ctx, name) // it writes down and logs what becomes of it
		}
	}
}

// obey closes open tokens that another daemon has parked since they were opened, where that is for those who have them open too.
func (ts *tokens) obey(ctx context.Context) error {
	parked, err := ts.store.ParkedTokens(ctx)
	if err != nil {
		return err
	}
	for name, p := range parked {
		s := ts.slot(name)
		if !runner.ParksOpen(p.Code) || !s.TryLock() {
			continue
		}
		if s.parked == nil && s.token != nil {
			s.parked = &p
			s.trouble.Store(true)
			ts.log.Error("token is parked until a person acts: another daemon found out", zap.String("token", name), zap.String("daemon", p.Daemon), zap.String("reason", p.Reason))
			ts.shut(s, name)
		}
		s.Unlock()
	}
	return nil
}
