package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/softhsm"
)

// operations are the calls of a token, with the function of PKCS#11 in which each is when the test stops it.
func operations() []struct {
	name, function string
	do             func(ctx context.Context, t *remote.Token, s scene) error
} {
	return []struct {
		name, function string
		do             func(ctx context.Context, t *remote.Token, s scene) error
	}{
		{"mechanisms", "C_GetMechanismInfo", func(ctx context.Context, t *remote.Token, _ scene) error { _, err := t.Mechanisms(ctx); return err }},
		{"probe", "C_WrapKey", func(ctx context.Context, t *remote.Token, _ scene) error {
			_, err := t.Probe(ctx, wrapping.HMAC256)
			return err
		}},
		{"keys", "C_FindObjects", func(ctx context.Context, t *remote.Token, _ scene) error { _, err := t.Keys(ctx); return err }},
		{"find", "C_FindObjectsInit", func(ctx context.Context, t *remote.Token, _ scene) error {
			_, err := t.Find(ctx, pkcs11uri.URI{Object: "k"})
			return err
		}},
		{"generate", "C_GenerateKey", func(ctx context.Context, t *remote.Token, _ scene) error {
			_, err := t.Generate(ctx, wrapping.SymmetricDefault, "another", nil)
			return err
		}},
		{"generate a signing key", "C_GenerateKeyPair", func(ctx context.Context, t *remote.Token, _ scene) error {
			_, err := t.GenerateSigning(ctx, "another", nil)
			return err
		}},
		{"wrap", "C_WrapKey", func(ctx context.Context, t *remote.Token, s scene) error {
			_, err := t.Wrap(ctx, s.key, s.pub(), s.plan)
			return err
		}},
		{"public key", "C_GetAttributeValue", func(ctx context.Context, t *remote.Token, s scene) error {
			_, err := t.PublicKey(ctx, s.signing)
			return err
		}},
		{"MAC", "C_Sign", func(ctx context.Context, t *remote.Token, s scene) error {
			_, err := t.MAC(ctx, s.mac, []byte("m"))
			return err
		}},
		{"sign", "C_SignInit", func(ctx context.Context, t *remote.Token, s scene) error {
			_, err := t.SignVerified(ctx, s.signing, s.public, []byte("m"))
			return err
		}},
		{"check value", "C_Encrypt", func(ctx context.Context, t *remote.Token, s scene) error {
			_, err := t.CheckValue(ctx, s.key)
			return err
		}},
	}
}

// scene is what a token holds for the tests: the keys k, mac and signing.
type scene struct {
	key, mac, signing wrapping.Key
	public            []byte
	plan              wrapping.Plan
	rsa               *trial.RSAKey
}

func (s scene) pub() *rsa.PublicKey { return s.rsa.Public() }

// set makes the keys.
func (s *scene) set(t *testing.T, tok *remote.Token) {
	t.Helper()
	var errs [3]error
	s.key, s.plan, s.rsa = generated(t, tok)
	s.mac, errs[0] = tok.Generate(t.Context(), wrapping.HMAC256, "mac", nil)
	s.signing, errs[1] = tok.GenerateSigning(t.Context(), "signing", nil)
	s.public, errs[2] = tok.PublicKey(t.Context(), s.signing)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
}

// find finds the keys over a new connection.
func (s *scene) find(t *testing.T, tok *remote.Token) {
	t.Helper()
	var err error
	for label, k := range map[string]*wrapping.Key{"k": &s.key, "mac": &s.mac, "signing": &s.signing} {
		if *k, err = tok.Find(t.Context(), pkcs11uri.URI{Object: label}); err != nil {
			t.Fatal(err)
		}
	}
}

// In each operation the module's process is killed from outside, crashes, and hangs. The caller gets to know at once and by name; the next
// process does the same operation well, and nothing is left in the token.
func TestEndsInEachOperation(t *testing.T) {
	m := faulty(t)
	var starter remote.Starter
	c := config(t, m.Token)
	tok := open(t, &starter, c, m.PIN)
	var s scene
	s.set(t, tok)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	for _, op := range operations() {
		for _, end := range []struct {
			name, action, code, says string
		}{
			{"killed", "hang", failure.ProcessDied, "SIGKILL"},
			{"crashed", "crash", failure.ProcessDied, "SIGSEGV"},
			{"hung", "hang", failure.CallTimeout, "did not come back within"},
		} {
			if end.name == "hung" && !slices.Contains([]string{"find", "wrap", "MAC"}, op.name) {
				continue // the others wait longer, see limit, for the same end
			}
			t.Run(op.name+" "+end.name, func(t *testing.T) {
				m, c, s := m, c, s
				if end.name == "hung" { // with a token of its own, as it takes long
					t.Parallel()
					m = faulty(t)
					c = config(t, m.Token)
					first := open(t, &starter, c, m.PIN)
					s.set(t, first)
					c.CallTimeout = 5 * time.Second
				}
				tok := open(t, &starter, c, m.PIN)
				s.find(t, tok)
				before := m.Counters(t).Injected
				m.Script(t, op.function+": "+end.action)
				failed := make(chan error, 1)
				go func() { failed <- op.do(context.Background(), tok, s) }()
				if end.name == "killed" {
					until(t, "the hang", func() bool { return m.Counters(t).Injected > before })
					if err := syscall.Kill(tok.PID(), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
				err := <-failed
				m.Script(t)
				if code(err) != end.code || !strings.Contains(err.Error(), end.says) {
					t.Errorf("the call ended with %s: %v", code(err), err)
				}
				var e *failure.Error
				if !errors.As(err, &e) || e.Class() != failure.ClassSession || e.Fix == "" {
					t.Errorf("the error is %+v", e)
				}
				<-tok.Ended()
				if code(tok.Err()) != end.code {
					t.Errorf("the token says %v", tok.Err())
				}
				until(t, "the end of the process", func() bool { return gone(tok.PID()) })
				next := open(t, &starter, config(t, m.Token), m.PIN)
				s.find(t, next)
				if op.function != "C_GenerateKey" && op.function != "C_GenerateKeyPair" {
					if err := op.do(t.Context(), next, s); err != nil {
						t.Errorf("the next process: %v", err)
					}
				}
				if keys, err := next.Keys(t.Context()); err != nil || len(keys) != 3 {
					t.Errorf("the token holds %v (%v)", keys, err)
				}
			})
		}
	}
}

// When one call hangs, the others that are under way get an error that says so.
func TestOthersUnderWay(t *testing.T) {
	t.Parallel()
	m := faulty(t)
	var starter remote.Starter
	c := config(t, m.Token)
	c.CallTimeout = 5 * time.Second
	tok := open(t, &starter, c, m.PIN)
	key, plan, wk := generated(t, tok)
	m.Script(t, "C_WrapKey: hang")
	var wg sync.WaitGroup
	errs := make([]error, 5)
	for i := range errs {
		wg.Go(func() { _, errs[i] = tok.Wrap(t.Context(), key, wk.Public(), plan) })
		time.Sleep(20 * time.Millisecond)
	}
	wg.Wait()
	m.Script(t)
	for i, err := range errs {
		if c := code(err); c != failure.CallTimeout && c != failure.ProcessDied {
			t.Errorf("call %d ended with %v", i, err)
		}
	}
	if _, err := tok.CheckValue(t.Context(), key); !strings.Contains(fmt.Sprint(err), "did not come back") {
		t.Errorf("a later call: %v", err)
	}
}

// Sixteen callers at once, and more than there are sessions: each gets its own answer.
func TestManyAtOnce(t *testing.T) {
	tok := softhsm.New(t)
	var starter remote.Starter
	h := open(t, &starter, config(t, tok.Token), tok.PIN)
	key, plan, wk := generated(t, h)
	want, err := h.CheckValue(t.Context(), key)
	if err != nil || len(want) != 6 {
		t.Fatal(want, err)
	}
	mac, err := h.Generate(t.Context(), wrapping.HMAC256, "mac", nil)
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range 40 {
		wg.Go(func() {
			message := []byte(strconv.Itoa(i))
			one, err := h.MAC(t.Context(), mac, message)
			two, err2 := h.MAC(t.Context(), mac, message)
			if err != nil || err2 != nil || !bytes.Equal(one, two) {
				t.Errorf("MAC %d: %v, %v", i, err, err2)
			}
			out, err := h.Wrap(t.Context(), key, wk.Public(), plan)
			if err != nil {
				t.Errorf("wrap %d: %v", i, err)
				return
			}
			material, err := wk.OpenOAEP(plan.Algorithm, out)
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = material
			}
			if err != nil || len(material) != 32 || !bytes.Equal(material, first) {
				t.Errorf("wrap %d opens to %d bytes (%v)", i, len(material), err)
			}
		})
	}
	wg.Wait()
}

// A refused PIN is not tried again by another process, also under another name of the token, until a person says so.
func TestRefusedPIN(t *testing.T) {
	m := faulty(t)
	var starter remote.Starter
	c := config(t, m.Token)
	logins := func() int { return m.Counters(t).Calls["C_Login"] }
	if _, err := starter.Open(t.Context(), c, pin("not-the-pin")); code(err) != "CKR_PIN_INCORRECT" || logins() != 1 {
		t.Fatalf("a wrong PIN: %v after %d logins", err, logins())
	}
	other := c
	other.URI.Serial = m.Serial
	for _, c := range []remote.Config{c, other} {
		if _, err := starter.Open(t.Context(), c, pin(m.PIN)); code(err) != failure.PINRefused || logins() != 1 {
			t.Errorf("after a wrong PIN: %v after %d logins", err, logins())
		}
	}
	c.LoginAgain = true
	open(t, &starter, c, m.PIN)
}

// A process that dies in C_Login may have cost a try: nobody tries again by itself.
func TestLoginWithoutOutcome(t *testing.T) {
	for _, action := range []string{"crash", "exit", "hang"} {
		t.Run(action, func(t *testing.T) {
			m := faulty(t)
			var starter remote.Starter
			c := config(t, m.Token)
			m.Script(t, "C_Login: "+action)
			opened := make(chan error, 1)
			var pid int
			go func() {
				_, err := starter.Open(context.Background(), c, pin(m.PIN))
				opened <- err
			}()
			if action == "hang" {
				until(t, "the login", func() bool { return m.Counters(t).Injected > 0 })
				pid = child(t)
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-opened; code(err) != failure.PINRefused || !strings.Contains(err.Error(), "is not known") {
				t.Errorf("%s: %v", code(err), err)
			}
			m.Script(t)
			before := m.Counters(t).Calls["C_Login"]
			if _, err := starter.Open(t.Context(), c, pin(m.PIN)); code(err) != failure.PINRefused || m.Counters(t).Calls["C_Login"] != before {
				t.Errorf("the next: %v", err)
			}
			c.LoginAgain = true
			open(t, &starter, c, m.PIN)
		})
	}
}

// child is the one process that this one has started and that lives.
func child(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	for _, f := range strings.Fields(string(b)) {
		pid, _ := strconv.Atoi(f)
		if !gone(pid) {
			return pid
		}
	}
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		if pid, _ := strconv.Atoi(e.Name()); pid > 0 && !gone(pid) && parentOf(pid) == os.Getpid() {
			return pid
		}
	}
	t.Fatal("there is no such process", err)
	return 0
}

// A module that cannot be loaded, a token that is not there, keys that are none or two: the same errors as without a process in between.
func TestErrorsCross(t *testing.T) {
	tok := softhsm.New(t)
	var starter remote.Starter
	c := config(t, tok.Token)
	bad := c
	bad.Module = "/lib/not-there.so"
	if _, err := starter.Open(t.Context(), bad, pin("x")); !strings.Contains(fmt.Sprint(err), "the PKCS#11 module cannot be found") {
		t.Errorf("no module: %v", err)
	}
	bad = c
	bad.URI.Token = "another"
	if _, err := starter.Open(t.Context(), bad, pin("x")); !errors.Is(err, failure.ErrNoSuchToken) || !strings.Contains(err.Error(), "there are: token=") {
		t.Errorf("no token: %v", err)
	}
	sorry := errors.New("the vault is closed")
	_, err := starter.Open(t.Context(), c, func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return nil, sorry })
	if !errors.Is(err, sorry) || code(err) != failure.PINUnavailable {
		t.Errorf("no PIN: %v", err)
	}
	h := open(t, &starter, c, tok.PIN)
	if _, err := h.Find(t.Context(), pkcs11uri.URI{Object: "none"}); !errors.Is(err, wrapping.ErrKeyNotFound) || !strings.Contains(err.Error(), "it holds: no keys") {
		t.Errorf("no key: %v", err)
	}
	key, _, _ := generated(t, h)
	if _, err := h.Generate(t.Context(), wrapping.SymmetricDefault, "k", nil); !errors.Is(err, failure.ErrExists) {
		t.Errorf("a second of the label: %v", err)
	}
	var e *failure.Error
	if _, err := h.MAC(t.Context(), key, []byte("m")); !errors.As(err, &e) || e.Class() != failure.ClassCaller {
		t.Errorf("a MAC with an AES key: %v", err)
	}
	key.Epoch++
	if _, err := h.CheckValue(t.Context(), key); code(err) != "" || !errors.As(err, &e) || e.Class() != failure.ClassSession {
		t.Errorf("a key of another connection: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Keys(t.Context()); !errors.Is(err, failure.ErrClosed) || h.Err() != nil {
		t.Errorf("after Close: %v, %v", err, h.Err())
	}
}

// parent opens a token, says which process it has, and makes a key.
func parent() int {
	u, err := pkcs11uri.Parse(os.Getenv("URI"))
	if err != nil {
		return 1
	}
	var starter remote.Starter
	environment := map[string]string{}
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "HSMBRIDGE_SHIM") || name == "SOFTHSM2_CONF" {
			environment[name] = value
		}
	}
	tok, err := starter.Open(context.Background(), remote.Config{Name: "test", Module: os.Getenv("MODULE"), Environment: environment, URI: u}, pin(os.Getenv(envParent)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, tok.PID())
	_, err = tok.Generate(context.Background(), wrapping.SymmetricDefault, "k", nil)
	fmt.Fprintln(os.Stderr, "generated", err)
	return 1
}

// hsmbridge is killed while the module hangs: the module's process ends at once, and nothing is left in the token.
func TestParentKilled(t *testing.T) {
	m := faulty(t)
	m.Script(t, "C_GenerateKey: hang")
	p := exec.CommandContext(t.Context(), "/proc/self/exe")
	p.Env = append(os.Environ(), envParent+"="+m.PIN, "URI="+m.URI(), "MODULE="+m.Module)
	for name, value := range m.Environment {
		p.Env = append(p.Env, name+"="+value)
	}
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || perr != nil {
		t.Fatal(line, err, perr)
	}
	until(t, "the hang", func() bool { return m.Counters(t).Injected > 0 })
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	until(t, "the end of the module's process", func() bool { return gone(pid) })
	m.Script(t)
	var starter remote.Starter
	h := open(t, &starter, config(t, m.Token), m.PIN)
	if keys, err := h.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("the token holds %v (%v)", keys, err)
	}
}

// Bytes that are no frames end the module's process.
func TestGarbageToProcess(t *testing.T) {
	for i, garbage := range [][]byte{[]byte(rand.Text() + rand.Text()), {0, 0, 0, 0, 6, 12, 0, 0, 0, 0, 0, 0, 0, 1}, {0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'x'}, {0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(ends[0]), "ours"), os.NewFile(uintptr(ends[1]), "theirs")
		p := exec.CommandContext(t.Context(), "/proc/self/exe", "module-process", "test")
		p.Env, p.ExtraFiles = []string{"HSMBRIDGE_MODULE_PROCESS=none"}, []*os.File{theirs}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		_ = theirs.Close()
		if _, err := ours.Write(garbage); err != nil {
			t.Fatal(err)
		}
		_ = p.Wait()
		if got := p.ProcessState.ExitCode(); got != 3 {
			t.Errorf("garbage %d: the process ended with %s", i, p.ProcessState)
		}
		_ = ours.Close()
	}
}
