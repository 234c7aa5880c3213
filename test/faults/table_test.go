package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
)

var update = flag.Bool("update", false, "write docs/faults.md anew")

// cell is one entry of the table: a fault in a call of an operation, and what became of it.
type cell struct {
	entry, fault, call string
	outcome            string // how the operation ended
	after              string // what made the token usable again
	err                error
}

// TestFaults has every operation meet every fault in every PKCS#11 call that it makes, and writes down what became of it. Whatever happens: the
// fault did happen, an error says what to do next, nothing is left in the token, and the token is usable when the fault is gone.
func TestFaults(t *testing.T) {
	w := newWorld(t)
	var cells []cell
	cells = append(cells, w.openings()...)
	for _, e := range entries() {
		w.use(e)
		for _, call := range w.callsOf(e) {
			for _, f := range faults() {
				if f.fits(call) && (f.only == "" || f.only == e.name) && (f.core || !e.slow) {
					cells = append(cells, w.meet(e, f, call))
				}
			}
		}
	}
	w.fresh()
	w.stored = false
	cells = append(cells, w.closings()...)
	golden(t, render(cells))
}

// callsOf learns which functions the operation calls when nothing is wrong. The token has been opened before, and no session is idle.
func (w *world) callsOf(e entry) []string {
	w.t.Helper()
	return w.calls(func(tok *hsm.Token, keys map[string]wrapping.Key) {
		if err := e.run(w.t.Context(), w, tok, keys); err != nil {
			w.t.Fatalf("%s: %v", e.name, err)
		}
	}, e.prepare)
}

func (w *world) calls(run func(*hsm.Token, map[string]wrapping.Key), prepare []string) []string {
	w.t.Helper()
	w.fresh()
	tok := w.token()
	keys := w.prepared(tok, prepare)
	before := w.module.Counters(w.t).Calls
	run(tok, keys)
	return called(before, w.module.Counters(w.t).Calls)
}

func called(before, after map[string]int) (names []string) {
	for name, n := range after {
		if n > before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (w *world) prepared(tok *hsm.Token, labels []string) map[string]wrapping.Key {
	w.t.Helper()
	keys := map[string]wrapping.Key{}
	for _, label := range labels {
		keys[label] = w.find(tok, label)
	}
	return keys
}

// meet has one operation meet one fault.
func (w *world) meet(e entry, f fault, call string) cell {
	w.t.Helper()
	name := fmt.Sprintf("%s, %s in %s", e.name, f.name, call)
	c := cell{entry: e.name, fault: f.name, call: call}
	if call == "C_OpenSession" || w.made >= 20 {
		w.fresh()
		w.made = 0
	}
	tok := w.token()
	keys := w.prepared(tok, e.prepare)
	before := w.module.Counters(w.t)
	w.module.Script(w.t, call+": "+f.rule)
	ctx, cancel := w.context(f, before.Injected)
	hangs := 10 * time.Second // more than whoever gives up needs to do so
	if e.name == "WrappingKey" {
		hangs = 2 * time.Second // it does not give up, however long that is
	}
	err := w.ended(f, hangs, func() error { return e.run(ctx, w, tok, keys) })
	cancel()
	w.module.Script(w.t)
	after := w.settle(f, before.OpenSessions)

	if after.Injected == before.Injected {
		w.t.Errorf("%s: the fault did not happen", name)
	}
	w.clean(name, before, after, e.stores, err)
	c.err = err
	c.outcome = e.outcome(err, f)
	w.says(name, f, err)
	c.after = w.usable(name, e, f)
	if f.rule == hang {
		w.fresh() // waits for what goes on in the background: it would meet the next fault
	}
	return c
}

// context is that of an operation that meets f: it ends when a call hangs, as if its deadline had passed.
func (w *world) context(f fault, injected int) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(w.t.Context())
	if f.rule != hang {
		return ctx, cancel
	}
	l := late{ctx, make(chan struct{})}
	go func() {
		for ctx.Err() == nil {
			if w.module.Counters(w.t).Injected > injected {
				close(l.done)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return l, cancel
}

// late is a context whose deadline passes when done is closed.
type late struct {
	context.Context
	done chan struct{}
}

func (l late) Done() <-chan struct{} { return l.done }

func (l late) Err() error {
	select {
	case <-l.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// settle reads the counters when what goes on in the background has ended.
func (w *world) settle(f fault, sessions int) shim.Counters {
	w.t.Helper()
	c := w.module.Counters(w.t)
	if f.rule != hang {
		return c
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c = w.module.Counters(w.t); c.SessionObjects == 0 && c.OpenSessions <= sessions {
			break
		}
	}
	return c
}

// clean holds that nothing was left behind.
func (w *world) clean(name string, before, after shim.Counters, stores int, err error) {
	w.t.Helper()
	if after.SessionObjects != 0 {
		w.t.Errorf("%s: %d session objects are left (%v)", name, after.SessionObjects, err)
	}
	if after.OpenSessions > before.OpenSessions+1 {
		w.t.Errorf("%s: %d sessions are open, there were %d (%v)", name, after.OpenSessions, before.OpenSessions, err)
	}
	stored := after.TokenObjects - before.TokenObjects
	switch {
	case err == nil && stored != stores:
		w.t.Errorf("%s: %d objects were stored, want %d", name, stored, stores)
	case err != nil && stored != 0 && !strings.Contains(err.Error(), stays) && !errors.Is(err, context.DeadlineExceeded):
		w.t.Errorf("%s: %d objects are left in the token, and nothing says so: %v", name, stored, err)
	}
}

// says holds that an error is of use to a person.
func (w *world) says(name string, f fault, err error) {
	w.t.Helper()
	if err == nil || errors.Is(err, errWrong) {
		return
	}
	var e *hsm.Error
	text := err.Error()
	switch {
	case !errors.As(err, &e):
		w.t.Errorf("%s: the error has no class: %v", name, err)
	case e.Cause == "" || e.Fix == "":
		w.t.Errorf("%s: it does not say why, or not what to do: %v", name, err)
	case strings.Contains(text, w.module.PIN) || strings.Contains(text, w.module.SOPIN) || strings.Contains(text, "%!"):
		w.t.Errorf("%s: it says what it must not: %v", name, err)
	case f.only == "" && strings.HasPrefix(f.rule, "return CKR_") && f.rule[len("return "):len(f.rule)-len(" times 1")] != e.CKR() && !strings.Contains(text, f.name):
		w.t.Logf("%s: the code is not shown: %v", name, err)
	}
}

// outcome is how an operation ended, for the table.
func (e entry) outcome(err error, f fault) string {
	switch {
	case err == nil && f.rule == hang:
		return "waits"
	case err == nil:
		return "done"
	case errors.Is(err, errWrong):
		return "wrong result: " + e.caught
	}
	return class(err)
}

// class is the class of an error and what the daemon does about it.
func class(err error) string {
	var e *hsm.Error
	code := ""
	if errors.As(err, &e) && e.CKR() != "" {
		code = " " + e.CKR()
	}
	return fmt.Sprintf("%s%s, %s", importer.Class(err), code, runner.Action(err))
}

// usable does the operation again now that the fault is gone: on the same connection, else on a new one.
func (w *world) usable(name string, e entry, f fault) string {
	w.t.Helper()
	tok := w.token()
	if e.slow {
		e = entries()[0]
	}
	err := e.run(w.t.Context(), w, tok, w.preparedAgain(tok, e.prepare))
	for deadline := time.Now().Add(30 * time.Second); err != nil && f.rule == hang && time.Now().Before(deadline); {
		w.t.Logf("%s: what was given up goes on in the background: %v", name, err)
		time.Sleep(50 * time.Millisecond)
		err = e.run(w.t.Context(), w, tok, w.preparedAgain(tok, e.prepare))
	}
	if err == nil {
		return "goes on"
	}
	w.fresh()
	tok = w.token()
	if err := e.run(w.t.Context(), w, tok, w.prepared(tok, e.prepare)); err != nil {
		w.t.Errorf("%s: the token is of no use afterwards: %v", name, err)
	}
	return "opened anew"
}

// preparedAgain is prepared where a key that is not found is left out.
func (w *world) preparedAgain(tok *hsm.Token, labels []string) map[string]wrapping.Key {
	w.t.Helper()
	keys := map[string]wrapping.Key{}
	for _, label := range labels {
		if key, err := tok.Find(w.t.Context(), hsmtest.URI(w.t, "pkcs11:object="+label)); err == nil {
			keys[label] = key
		}
	}
	return keys
}

// openings is Open with every fault in its calls.
func (w *world) openings() []cell {
	w.t.Helper()
	before := w.module.Counters(w.t).Calls
	w.shut(w.open())
	var cells []cell
	for _, call := range called(before, w.module.Counters(w.t).Calls) {
		if call == "C_CloseSession" || call == "C_Finalize" {
			continue
		}
		for _, f := range faults() {
			if f.fits(call) {
				cells = append(cells, w.opening(f, call))
			}
		}
	}
	return cells
}

func (w *world) opening(f fault, call string) cell {
	w.t.Helper()
	name := fmt.Sprintf("Open, %s in %s", f.name, call)
	config := hsmtest.Config(w.t, w.module.Token)
	before := w.module.Counters(w.t)
	w.module.Script(w.t, call+": "+f.rule)
	ctx, cancel := w.context(f, before.Injected)
	tok, err := hsm.Open(ctx, config, hsmtest.PIN(w.module.PIN))
	cancel()
	w.module.Script(w.t)
	c := cell{entry: "Open", fault: f.name, call: call, outcome: "done", after: "goes on", err: err}
	if err != nil {
		c.outcome = class(err)
		if strings.Contains(c.outcome, "caller") {
			c.outcome = strings.Replace(c.outcome, ", stop", ", rest", 1) // that is of a key; a token that cannot be opened rests
		}
	}
	w.says(name, f, err)
	if tok != nil {
		w.shut(tok)
	}
	after := w.settle(f, 0)
	if f.rule == hang { // the call that was given up ends, and then gives the module back: the next Open initialises it again
		made := func(name string) int { return after.Calls[name] - before.Calls[name] }
		for deadline := time.Now().Add(20 * time.Second); made("C_Finalize") < made("C_Initialize") && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			after = w.module.Counters(w.t)
		}
	}
	if after.Injected == before.Injected {
		w.t.Errorf("%s: the fault did not happen", name)
	}
	w.clean(name, shim.Counters{Calls: before.Calls, TokenObjects: before.TokenObjects}, after, 0, err)
	if after.OpenSessions != 0 {
		w.t.Errorf("%s: %d sessions are open", name, after.OpenSessions)
	}
	again, err := hsm.Open(w.t.Context(), config, hsmtest.PIN(w.module.PIN))
	switch {
	case err == nil:
		w.shut(again)
	case strings.Contains(class(err), hsm.PINRefused):
		c.after = "a person"
		w.shut(w.open())
	default:
		w.t.Errorf("%s: the token cannot be opened afterwards: %v", name, err)
	}
	return c
}

// closings is Close with every fault in its calls.
func (w *world) closings() []cell {
	w.t.Helper()
	var cells []cell
	for _, call := range []string{"C_CloseSession", "C_Finalize"} {
		for _, f := range faults() {
			if !f.fits(call) {
				continue
			}
			name := fmt.Sprintf("Close, %s in %s", f.name, call)
			tok := w.open()
			w.find(tok, "aes")
			before := w.module.Counters(w.t)
			w.module.Script(w.t, call+": "+f.rule)
			err := w.ended(f, 50*time.Millisecond, tok.Close)
			w.module.Script(w.t)
			w.says(name, f, err)
			c := cell{entry: "Close", fault: f.name, call: call, outcome: "done", after: "opened anew", err: err}
			if err != nil {
				c.outcome = class(err)
			} else if f.rule == hang {
				c.outcome = "waits"
			}
			w.shut(w.open())
			after := w.settle(fault{rule: hang}, 0)
			if after.Injected == before.Injected {
				w.t.Errorf("%s: the fault did not happen", name)
			}
			if after.OpenSessions != 0 {
				w.t.Errorf("%s: %d sessions are open", name, after.OpenSessions)
			}
			w.clean(name, shim.Counters{TokenObjects: before.TokenObjects}, after, 0, err)
			cells = append(cells, c)
		}
	}
	return cells
}

// ended is do, and the end of a hang some time after it began: not everything gives up.
func (w *world) ended(f fault, after time.Duration, do func() error) error {
	if f.rule == hang {
		before := w.module.Counters(w.t).Injected
		over, let := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(let)
			for w.module.Counters(w.t).Injected == before {
				select {
				case <-over:
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
			select {
			case <-over:
			case <-time.After(after):
				w.module.Script(w.t)
			}
		}()
		defer func() { close(over); <-let }()
	}
	return do()
}

// golden compares with docs/faults.md, or writes it.
func golden(t *testing.T, got string) {
	t.Helper()
	const path = "../../docs/faults.md"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("docs/faults.md is out of date: look at the difference, then run go test ./test/faults -update\n%s", differences(string(want), got))
	}
}

// differences are the lines that are in one of the two only.
func differences(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var b strings.Builder
	for _, line := range w {
		if !slices.Contains(g, line) {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}
