package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/hsm/wrapping"
)

// replicaRow is what a token that was just asked holds of a key that several tokens hold.
type replicaRow struct {
	Key      string `json:"key"`
	Token    string `json:"token"`
	Identity string `json:"identity,omitempty"` // what tells the material
	Same     bool   `json:"same"`               // as in the first of the tokens that were asked
	Problem  string `json:"problem,omitempty"`
}

// replicas shows of each key that several tokens hold what those of them that were opened hold, and whether they agree.
func (a *app) replicas(ctx context.Context, conn *connections) error {
	var rows []replicaRow
	differ := 0
	for _, k := range conn.config.Keys {
		if len(k.Replicas) == 0 {
			continue
		}
		list, err := conn.held(ctx, k)
		if err != nil {
			return err
		}
		if len(list) < 2 {
			continue // nothing to compare with
		}
		for _, r := range list {
			if !r.Same {
				differ++
			}
		}
		rows = append(rows, list...)
	}
	if a.json {
		for _, r := range rows {
			if err := writeJSON(a.out, map[string]replicaRow{"replica": r}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 {
		return nil
	}
	lines := make([][]string, 0, len(rows))
	for _, r := range rows {
		lines = append(lines, []string{r.Key, r.Token, dash(r.Identity), yesNo(r.Same), r.Problem})
	}
	fmt.Fprintln(a.out, "\nKeys that several tokens hold, first generation:")
	table(a.out, []string{"KEY", "TOKEN", "HOLDS", "THE SAME", ""}, lines)
	if differ > 0 {
		wrapped(a.out, "", "", "A token that does not hold the same key is not used for it, and new material is not imported before all that are required do.")
	}
	return nil
}

// copies opens the tokens of a key that several hold, and says what each holds, its own first. A token that cannot be opened says why, and is an error too.
func (c *connections) copies(ctx context.Context, k configs.Key) (list []replicaRow, err error) {
	if len(k.Replicas) == 0 {
		return nil, nil
	}
	var closed []replicaRow
	var failed []error
	c.prepare(k.Tokens())
	for _, name := range k.Tokens() {
		if _, err := c.token(ctx, name); err != nil {
			closed = append(closed, replicaRow{Key: k.Name, Token: name, Problem: "not looked at: " + firstLine(err.Error())})
			failed = append(failed, fmt.Errorf("token %s, which has a copy of %s, cannot be used: %w", name, k.Name, err))
		}
	}
	list, err = c.held(ctx, k)
	return append(list, closed...), errors.Join(append(failed, err)...)
}

// held asks the open tokens of a key.
func (c *connections) held(ctx context.Context, k configs.Key) (list []replicaRow, err error) {
	first := ""
	for _, name := range k.Tokens() {
		t := c.tokens[name]
		if t == nil {
			continue
		}
		r := replicaRow{Key: k.Name, Token: name}
		key, err := t.Find(ctx, k.ObjectIn(name, k.URI))
		switch {
		case errors.Is(err, wrapping.ErrKeyNotFound):
			r.Problem = "it is not there"
		case err != nil:
			return nil, fmt.Errorf("token %s: %w", name, err)
		default:
			if r.Identity, err = wrapping.Identify(ctx, t, key, k.KeySpec); err != nil {
				r.Problem = err.Error()
			}
		}
		switch {
		case r.Identity == "" && r.Problem == "":
			r.Problem = "it gives no check value, so nobody can tell"
		case first == "":
			first = r.Identity
		}
		if r.Same = r.Identity != "" && r.Identity == first; !r.Same && r.Problem == "" {
			r.Problem = "another key"
		}
		list = append(list, r)
	}
	return list, nil
}

// printReplicas tells what tokens hold of a key, as the daemons saw it.
func (a *app) printReplicas(list []control.Replica) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(a.out)
	rows := make([][]string, 0, len(list))
	for _, r := range list {
		token := r.Token
		if !r.Required {
			token += " (not required)"
		}
		seen, same := "", "-"
		if !r.Seen.IsZero() {
			same = yesNo(r.Agrees)
			seen = r.Seen.UTC().Format(time.RFC3339) + " by " + r.Daemon
		}
		rows = append(rows, []string{strconv.FormatInt(r.Generation, 10), token, dash(r.TokenState), dash(r.Serial), dash(r.Identity), same, dash(seen), dash(r.Object)})
	}
	table(a.out, []string{"GENERATION", "TOKEN", "STATE", "SERIAL", "HOLDS", "THE SAME", "SEEN", "OBJECT"}, rows)
	for _, r := range list {
		if !r.Agrees {
			wrapped(a.out, fmt.Sprintf("  %s, generation %d: ", r.Token, r.Generation), "    ", r.Problem)
		}
	}
}

// printDaemons tells of the daemons on a shared database.
func (a *app) printDaemons(s control.Status) {
	if len(s.Daemons) < 2 {
		return
	}
	fmt.Fprintln(a.out)
	rows := make([][]string, 0, len(s.Daemons))
	for _, d := range s.Daemons {
		var tokens []string
		for _, name := range slices.Sorted(maps.Keys(d.Tokens)) {
			tokens = append(tokens, name+" "+d.Tokens[name])
		}
		state := "alive"
		if !d.Alive {
			state = "gone, last seen " + d.Seen.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{d.Name, state, strings.Join(tokens, ", ")})
	}
	table(a.out, []string{"DAEMON", "STATE", "TOKENS THAT IT REACHES"}, rows)
}
