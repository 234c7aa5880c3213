package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// officers are people with SSH keys; two of them have to approve.
type officers struct {
	w       *world
	names   []string
	signers []ssh.Signer
}

// officers asks for the approval of two of three officers for every key.
func (w *world) officers() officers {
	w.t.Helper()
	o := officers{w: w, names: []string{"alice", "bob", "carol"}}
	w.extra += "approval:\n  threshold: 2\n  standing: 90d\n  officers:\n"
	for _, name := range o.names {
		s := newSigner(w.t)
		o.signers = append(o.signers, s)
		w.extra += fmt.Sprintf("    - {name: %s, keys: [%q]}\n", name, publicLine(s.PublicKey()))
	}
	return o
}

func newSigner(tb testing.TB) ssh.Signer {
	tb.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// publicLine is a key as it stands in a .pub file.
func publicLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// sign is the approval of officer i.
func (o officers) sign(i int, text string) ([]byte, error) {
	s := o.signers[i]
	sig, err := s.Sign(rand.Reader, approval.ToSign(approval.Namespace, []byte(text)))
	if err != nil {
		return nil, err
	}
	return approval.Armor(s.PublicKey(), approval.Namespace, sig), nil
}

// open lists what waits; nil while no daemon answers.
func (o officers) open(ctx context.Context, c *control.Client) []control.Request {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := c.Requests(ctx, "", false, 0)
	if err != nil {
		return nil
	}
	var out []control.Request
	for _, r := range list {
		if r.State == store.RequestOpen {
			out = append(out, r)
		}
	}
	return out
}

// signEverything signs whatever a daemon asks for, until the test ends.
func (o officers) signEverything(daemon string) {
	c := control.NewClient(o.w.socket(daemon))
	done := make(chan struct{})
	o.w.t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			for _, r := range o.open(context.Background(), c) {
				for i := range 2 {
					sig, err := o.sign(i, r.Text)
					if err != nil {
						continue
					}
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					_, _ = c.Approve(ctx, r.Name, sig) // it may be closed, or its daemon gone: it is tried again
					cancel()
				}
			}
		}
	}()
}

// everyWrapApproved holds that each wrap in the log has its own permission immediately before it, by a request that two officers had
// approved by then.
func everyWrapApproved(t *testing.T, events []store.Event) (wraps int) {
	t.Helper()
	signed, allowed := map[string]map[string]bool{}, map[int64]string{}
	for _, e := range events {
		switch e.Kind {
		case "approval":
			if signed[e.Fields["request"]] == nil {
				signed[e.Fields["request"]] = map[string]bool{}
			}
			signed[e.Fields["request"]][e.Fields["officer"]] = true
		case "allowed":
			if n := len(signed[e.Fields["request"]]); n < 2 {
				t.Errorf("record %d allows a wrap by request %s, which %d officers had approved", e.ID, e.Fields["request"], n)
			}
			allowed[e.Job] = e.Fields["request"]
		case "wrap":
			wraps++
			if allowed[e.Job] == "" {
				t.Errorf("record %d: job %d wrapped the key, and nothing allowed it", e.ID, e.Job)
			}
			delete(allowed, e.Job)
		}
	}
	return wraps
}

// Nothing is wrapped for a key with approval: before two officers have signed, on whichever way the wrap is come to.
func TestNoWayAroundOfficers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.SymmetricDefault, "prove: true")
	o := w.officers()
	p := w.start("first", "")
	ctx := t.Context()
	materials := 1
	waits := func(what string) control.Request {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(30 * time.Millisecond) {
			list := o.open(ctx, p.client)
			jobs, err := p.client.Jobs(ctx, store.JobFilter{Open: true})
			if err == nil && len(list) == materials && len(jobs) == 1 && jobs[0].State == store.Waiting {
				return list[0]
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %d requests wait, jobs %+v, %v", what, len(list), jobs, err)
			}
		}
	}
	fetched := 0
	nothing := func(what string) control.Request {
		t.Helper()
		r := waits(what)
		if n := w.emu.Count("GetParametersForImport"); n != fetched {
			t.Fatalf("%s: parameters were fetched %d times, and %d were approved", what, n, fetched)
		}
		return r
	}
	approve := func(r control.Request, i int) {
		t.Helper()
		for _, r := range append(o.open(ctx, p.client), r) { // of a rotated key there is one for each material
			sig, err := o.sign(i, r.Text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.client.Approve(ctx, r.Name, sig); err != nil && !strings.Contains(err.Error(), "has signed already") && !strings.Contains(err.Error(), "is used") {
				t.Fatal(err)
			}
		}
	}
	restart := func(kill bool) {
		t.Helper()
		if kill {
			p.kill()
		} else {
			_ = p.Process.Signal(os.Interrupt)
			p.kill()
		}
		p = w.start("first", "")
	}
	first := nothing("the scheduler")
	for what, f := range map[string]func() error{
		"a command": func() error {
			_, err := p.client.Start(ctx, control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport})
			return err
		},
		"retry of the key": func() error { _, err := p.client.Retry(ctx, "k"); return err },
		"reload":           func() error { return p.client.Reload(ctx) },
		"pause and resume": func() error {
			if _, err := p.client.Pause(ctx, "k", false); err != nil {
				return err
			}
			_, err := p.client.Pause(ctx, "k", true)
			return err
		},
		"kill and recovery": func() error { restart(true); return nil },
		"one approval":      func() error { approve(nothing("before it"), 0); return nil },
	} {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if r := nothing(what); r.Name != first.Name {
			t.Errorf("%s: it is asked anew, %s after %s", what, r.Name, first.Name)
		}
	}
	// A signature over another text, by whoever may write to the socket.
	changed := strings.Replace(first.Text, "90d", "91d", 1)
	sig, err := o.sign(1, changed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Approve(ctx, first.Name, sig); err == nil || !strings.Contains(err.Error(), "over another text") {
		t.Errorf("a signature over another text: %v", err)
	}
	nothing("a signature over another text")
	approve(nothing("the second"), 1)
	p.settled()
	fetched = w.emu.Count("GetParametersForImport")
	if fetched != 2 {
		t.Errorf("parameters were fetched %d times for the import and its proof", fetched)
	}
	// The approval of the first import is used up: for the next one officers are asked again.
	for _, next := range []struct {
		what string
		f    func()
	}{
		{"a renewal", func() { p.ask(store.KindImport, "k", true) }},
		{"a rotation", func() { p.ask(store.KindRotate, "k", false) }},
	} {
		next.f()
		r := nothing(next.what)
		restart(true)
		nothing(next.what + ", after a kill")
		approve(r, 1)
		nothing(next.what + ", with one approval")
		approve(r, 2)
		p.settled()
		fetched = w.emu.Count("GetParametersForImport")
	}
	// Approved, and then the configuration names other officers: what was signed does not count any more.
	materials = 2
	p.ask(store.KindImport, "k", true)
	r := nothing("another renewal")
	approve(r, 0)
	path := filepath.Join(w.dir, "first.yaml")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(before), "\n")
	for i, l := range lines {
		if strings.Contains(l, "{name: alice,") {
			lines = append(lines[:i], lines[i+1:]...)
			break
		}
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil { //nolint:gosec // the test made the directory
		t.Fatal(err)
	}
	if err := p.client.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	approve(r, 1)
	if r := nothing("one who is no officer any more"); r.Decision.Have != 1 {
		t.Errorf("%d approvals count: %s", r.Decision.Have, r.Decision.Message)
	}
	approve(r, 2)
	p.settled()
	if n := everyWrapApproved(t, p.events("k")); n < 4 {
		t.Errorf("the log has %d wraps", n)
	}
}

// Whoever can open the socket may hand in signatures. With keys of their own, or copies of an officer's signature, nobody fills the audit log.
func TestRefusedSignaturesAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	o := w.officers()
	p := w.start("one", "")
	ctx, c := t.Context(), p.client
	until(t, "a request", func() bool { return len(o.open(ctx, c)) == 1 })
	r := o.open(ctx, c)[0]
	approved, err := o.sign(0, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Approve(ctx, r.Name, approved); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		s := newSigner(t)
		sig, err := s.Sign(rand.Reader, approval.ToSign(approval.Namespace, []byte(r.Text)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Approve(ctx, r.Name, approval.Armor(s.PublicKey(), approval.Namespace, sig)); err == nil || !strings.Contains(err.Error(), "is no officer's") {
			t.Errorf("a stranger's signature: %v", err)
		}
		if _, err := c.Approve(ctx, r.Name, approved); err == nil || !strings.Contains(err.Error(), "has signed already") {
			t.Errorf("a copy of a signature: %v", err)
		}
	}
	n, last := 0, ""
	for _, e := range p.events("k") {
		if e.Kind == "refused-signature" {
			n++
			last = e.Message
		}
	}
	if n != 40 || !strings.Contains(last, "further ones are not written down") {
		t.Errorf("%d refused signatures are in the audit log; the last one says %q", n, last)
	}
	other, err := o.sign(1, r.Text+"x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Approve(ctx, r.Name, other); err == nil || !strings.Contains(err.Error(), "is over another text") {
		t.Errorf("got %v", err)
	}
	good, err := o.sign(1, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	if q, err := c.Approve(ctx, r.Name, good); err != nil || !q.Decision.Approved && q.State == store.RequestOpen {
		t.Errorf("the second officer: %+v, %v", q.Decision, err)
	}
}

// Officers approve the revocation of the KMS keys that they read. One that was added since is not revoked by it.
func TestRevocationOfWhatWasRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	first := w.key("k", wrapping.HMAC256)
	o := w.officers()
	p := w.start("one", "")
	ctx, c := t.Context(), p.client
	revocation := func() (found control.Request) {
		t.Helper()
		if _, err := c.Revoke(ctx, "k", control.ReasonRequest{Reason: "incident", Confirm: "k"}); err == nil || !strings.Contains(err.Error(), "officers have to approve it") {
			t.Fatalf("got %v", err)
		}
		for _, r := range o.open(ctx, c) {
			if r.Purpose == string(approval.Revoke) {
				found = r
			}
		}
		return found
	}
	approve := func(r control.Request) (q control.Request) {
		t.Helper()
		for i := range 2 {
			sig, err := o.sign(i, r.Text)
			if err != nil {
				t.Fatal(err)
			}
			if q, err = c.Approve(ctx, r.Name, sig); err != nil {
				t.Fatal(err)
			}
		}
		return q
	}
	until(t, "a request", func() bool { return len(o.open(ctx, c)) == 1 })
	r := revocation()
	second, err := w.client.CreateKey(ctx, kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
	if err != nil {
		t.Fatal(err)
	}
	w.keys = nil
	w.manage("k", wrapping.HMAC256, []string{first, second.ARN})
	w.config("one", "")
	if err := c.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if q := approve(r); q.State != store.RequestWithdrawn || !strings.Contains(q.Reason, "has changed since it was asked") {
		t.Errorf("a revocation of another KMS key than officers read: %s %s", q.State, q.Reason)
	}
	if r = revocation(); !strings.Contains(r.Text, second.ARN) {
		t.Errorf("officers read\n%s", r.Text)
	}
	if q := approve(r); q.State != store.RequestUsed {
		t.Errorf("got %s %s", q.State, q.Reason)
	}
}
