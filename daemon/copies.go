package daemon

import (
	"context"
	"slices"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
)

// held is what is known of the generations of all keys, and what tokens were seen to hold of them, by key.
func (d *Daemon) held(ctx context.Context) (known map[string][]store.Material, replicas map[string][]store.Replica, err error) {
	rows, err := d.store.Replicas(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	replicas = map[string][]store.Replica{}
	for _, r := range rows {
		replicas[r.Key] = append(replicas[r.Key], r)
	}
	known, err = d.store.Generations(ctx)
	return known, replicas, err
}

// generations are those that tokens have to hold: before anything is known, the first.
func generations(known []store.Material) []store.Material {
	if len(known) == 0 {
		return []store.Material{{Generation: 1}}
	}
	return known
}

// replicaStates tells of the tokens of keys that several tokens hold.
func replicaStates(k configs.Key, known []store.Material, rows []store.Replica) []control.Replica {
	if len(k.Replicas) == 0 {
		return nil
	}
	var out []control.Replica
	for _, m := range generations(known) {
		want := runner.Reference(k, m, rows)
		for _, t := range k.Tokens() {
			r := control.Replica{Replica: store.Replica{Key: k.Name, Generation: m.Generation, Token: t, Problem: "not looked at yet"}, Object: runner.ObjectIn(k, t, m.Generation).String(), Required: t == k.Token}
			if x, ok := k.Replica(t); ok {
				r.Required = x.Required
			}
			for _, row := range rows {
				if row.Key == k.Name && row.Generation == m.Generation && row.Token == t {
					r.Replica = row
				}
			}
			r.Agrees = want != "" && r.Identity == want
			if !r.Agrees && r.Problem == "" {
				r.Problem = "another key: it has to be " + want
				if want == "" {
					r.Problem = "it is not known yet which key it has to be"
				}
			}
			out = append(out, r)
		}
	}
	return out
}

// stateUnreached is of a token that no living daemon reaches.
const stateUnreached = "unreached"

// withTokens adds to each replica the state of its token: at this daemon, or where it does not reach the token, at the one that can do most with it.
func (d *Daemon) withTokens(list []control.Replica) {
	states := map[string]string{}
	for _, t := range d.tokenStates() {
		states[t.Name] = t.State
		if t.State != stateElsewhere {
			continue
		}
		states[t.Name] = stateUnreached
		for _, p := range d.peerList() {
			if s, ok := p.Tokens[t.Name]; ok && p.Alive && !usableState(states[t.Name]) {
				states[t.Name] = s
			}
		}
	}
	for i := range list {
		list[i].TokenState = states[list[i].Token]
	}
}

// Copies tells what a token holds of keys that several tokens hold: what is not as it has to be first, then in the order of the configuration,
// at most limit of it. total is how much there is.
func (d *Daemon) Copies(ctx context.Context, token string, limit int) (list []control.Replica, total int, err error) {
	c := d.config.Load()
	if !replicated(c) {
		return nil, 0, nil
	}
	known, byKey, err := d.held(ctx)
	if err != nil {
		return nil, 0, err
	}
	var fine []control.Replica
	for _, k := range c.Keys {
		if len(k.Replicas) == 0 || !slices.Contains(k.Tokens(), token) {
			continue
		}
		for _, r := range replicaStates(k, known[k.Name], byKey[k.Name]) {
			switch {
			case r.Token != token:
			case r.Agrees:
				fine = append(fine, r)
			default:
				list = append(list, r)
			}
		}
	}
	list = append(list, fine...)
	total = len(list)
	list = list[:min(total, limit)]
	d.withTokens(list)
	return list, total, nil
}
