package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// scenario is a job that is done from a known state.
type scenario struct {
	name string
	spec wrapping.KeySpec
	// prepare brings the world to where the job begins; begin asks for it.
	prepare func(w *world)
	begin   func(p *process)
	kind    store.Kind
	// held says what is wrong with what KMS holds at the end; empty: nothing.
	held func(w *world, arn string) string
	want map[string]int // key objects in the token at the end

	officers bool // two of them have to approve, and do so as soon as they are asked
}

func scenarios() []scenario {
	imported := func(w *world) {
		p := w.start("first", "")
		p.settled()
		p.kill()
	}
	one := func(w *world, arn string) string {
		info, err := w.client.DescribeKey(context.Background(), arn)
		if err != nil || info.State != "Enabled" {
			return fmt.Sprintf("the KMS key is %s, %v", info.State, err)
		}
		if info.KeySpec != "SYMMETRIC_DEFAULT" {
			return ""
		}
		if list := w.materials(arn); len(list) != 1 || list[0].ImportState != "IMPORTED" {
			return fmt.Sprintf("KMS has %+v", list)
		}
		return ""
	}
	return []scenario{
		{
			name: "first import of an AES key that officers approve", spec: wrapping.SymmetricDefault, kind: store.KindImport, held: one, want: map[string]int{"k": 1},
			prepare: func(*world) {}, begin: func(*process) {}, officers: true,
		},
		{
			name: "first import of an AES key", spec: wrapping.SymmetricDefault, kind: store.KindImport, held: one, want: map[string]int{"k": 1},
			prepare: func(*world) {}, begin: func(*process) {},
		},
		{
			name: "first import of an EC key", spec: wrapping.ECCNISTP384, kind: store.KindImport, held: one, want: map[string]int{"k": 1},
			prepare: func(*world) {}, begin: func(*process) {},
		},
		{
			name: "renewal", spec: wrapping.SymmetricDefault, kind: store.KindImport, held: one, want: map[string]int{"k": 1},
			prepare: imported, begin: func(p *process) { p.ask(store.KindImport, "k", true) },
		},
		{
			name: "rotation", spec: wrapping.SymmetricDefault, kind: store.KindRotate, want: map[string]int{"k": 1, "k.2": 1},
			prepare: imported, begin: func(p *process) { p.ask(store.KindRotate, "k", false) },
			held: func(w *world, arn string) string {
				list := w.materials(arn)
				if len(list) != 2 || list[0].State != "NON_CURRENT" || list[1].State != "CURRENT" || list[1].Description != "hsmbridge: k.2" {
					return fmt.Sprintf("KMS has %+v", list)
				}
				return ""
			},
		},
		{
			name: "revocation", spec: wrapping.SymmetricDefault, kind: store.KindRevoke, want: map[string]int{"k": 1},
			prepare: imported, begin: func(p *process) {
				if _, err := p.client.Revoke(context.Background(), "k", control.ReasonRequest{Reason: "test", Confirm: "k"}); err != nil && !strings.Contains(err.Error(), "did not answer") {
					p.t.Fatal(err)
				}
			},
			held: func(w *world, arn string) string {
				if slices.ContainsFunc(w.materials(arn), func(m kmsclient.KeyMaterial) bool { return m.ImportState == "IMPORTED" }) {
					return "KMS still has material"
				}
				return ""
			},
		},
	}
}

// run does a scenario with a daemon that dies on the way, and one that comes after it. die prepares that before the daemon is started, which started gives.
func (s scenario) run(t *testing.T, die func(w *world, started <-chan *process) (env []string)) {
	t.Helper()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", s.spec)
	if s.officers {
		w.officers().signEverything("first")
	}
	s.prepare(w)
	started := make(chan *process, 1)
	p := w.start("first", "", die(w, started)...)
	started <- p
	if s.kind != store.KindImport || s.name == "renewal" {
		ready(t, p)
		s.begin(p)
	}
	p.died()
	w.hook(nil, nil)
	p = w.start("first", "")
	jobs := p.settled()
	last := jobs[len(jobs)-1]
	if last.Kind != s.kind || last.State != store.Done {
		t.Errorf("the last job is %s", asJSON(last))
	}
	for _, j := range jobs {
		if j.State == store.Failed {
			t.Errorf("a job failed: %s", asJSON(j))
		}
	}
	if wrong := s.held(w, arn); wrong != "" {
		t.Error(wrong)
	}
	events := p.events("k")
	kinds := map[string]int{}
	for _, e := range events {
		if e.Job == last.ID {
			kinds[e.Kind]++
		}
	}
	if kinds["reclaimed"] > 1 || kinds["finished"] != 1 && !s.officers {
		t.Errorf("the journal of the job: %v", kinds)
	}
	if s.officers {
		everyWrapApproved(t, events)
	}
	p.kill()
	if got := w.objects(); !maps.Equal(got, s.want) {
		t.Errorf("the token holds %v, want %v", got, s.want)
	}
}

func ready(t testing.TB, p *process) {
	t.Helper()
	p.settled()
}

// steps runs a scenario undisturbed and gives the steps that its job writes down, as "kind/step/n".
func (s scenario) steps(t *testing.T) []string {
	t.Helper()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", s.spec)
	if s.officers {
		w.officers().signEverything("first")
	}
	s.prepare(w)
	p := w.start("first", "")
	if s.kind != store.KindImport || s.name == "renewal" {
		ready(t, p)
		s.begin(p)
	}
	jobs := p.settled()
	last := jobs[len(jobs)-1]
	seen := map[string]int{}
	var out []string
	for _, e := range p.events("k") {
		if e.Job != last.ID || slices.Contains([]string{"queued", "finished", "reclaimed", "request", "approval", "approved", "used"}, e.Kind) {
			continue
		}
		seen[e.Kind]++
		out = append(out, fmt.Sprintf("%s/%s/%d", last.Kind, e.Kind, seen[e.Kind]))
	}
	p.kill()
	return out
}

// The daemon is killed behind every step of every kind of job. The next one finds what was done, does the rest, and does nothing twice.
func TestKillAtEveryStep(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			steps := s.steps(t)
			if len(steps) < 2 {
				t.Fatalf("the job wrote down %v", steps)
			}
			for i, at := range steps {
				t.Run(fmt.Sprintf("%02d after %s", i+1, strings.ReplaceAll(at, "/", " ")), func(t *testing.T) {
					t.Parallel()
					s.run(t, func(*world, <-chan *process) []string { return []string{envKill + "=" + at} })
				})
			}
		})
	}
}

// The daemon is killed when KMS has done what it was asked for and has not answered yet: the outcome is not lost.
func TestKillWhileKMSAnswers(t *testing.T) {
	for _, s := range scenarios() {
		for _, op := range []string{"GetParametersForImport", "ImportKeyMaterial", "RotateKeyOnDemand", "DeleteImportedKeyMaterial"} {
			changes := map[store.Kind][]string{
				store.KindImport: {"GetParametersForImport", "ImportKeyMaterial"},
				store.KindRotate: {"ImportKeyMaterial", "RotateKeyOnDemand"},
				store.KindRevoke: {"DeleteImportedKeyMaterial"},
			}[s.kind]
			if !slices.Contains(changes, op) {
				continue
			}
			t.Run(s.name+"/"+op, func(t *testing.T) {
				t.Parallel()
				s.run(t, func(w *world, started <-chan *process) []string {
					var once sync.Once
					w.hook(nil, func(done string) {
						if done == op {
							once.Do(func() { _ = (<-started).Process.Kill() })
						}
					})
					return nil
				})
			})
		}
	}
}
