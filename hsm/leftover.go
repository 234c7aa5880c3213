package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/pkcs11"
)

// Some tokens take a wrapping public key only as a token object (quirks.TokenPublicKey), which outlives its session and its process. Such an
// object is destroyed after use whatever happens, and its label says who made it, so that the next open finds what a killed process left:
//
//	hsmbridge-wk-BASE64URL(host 4, process 4, PID 4, minute 4, random 3)
//
// 39 characters: a YubiHSM 2 has room for 40.
const leftoverPrefix = "hsmbridge-wk-"

// leftoverAge is after how long an object is nobody's any more, whatever became of its maker: import parameters live 24 hours.
const leftoverAge = 24 * time.Hour

// leftover is what such a label says.
type leftover struct {
	Host, Process, PID, Minute uint32
	Random                     [3]byte
}

const leftoverBytes = 4*4 + 3

func (l leftover) label() string {
	b := binary.BigEndian.AppendUint32(nil, l.Host)
	for _, n := range []uint32{l.Process, l.PID, l.Minute} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return leftoverPrefix + base64.RawURLEncoding.EncodeToString(append(b, l.Random[:]...))
}

// parseLeftover reads a label; false for any that hsmbridge did not make.
func parseLeftover(label string) (leftover, bool) {
	text, ok := strings.CutPrefix(label, leftoverPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != leftoverBytes {
		return leftover{}, false
	}
	var l leftover
	for i, n := range []*uint32{&l.Host, &l.Process, &l.PID, &l.Minute} {
		*n = binary.BigEndian.Uint32(b[4*i:])
	}
	copy(l.Random[:], b[16:])
	return l, l.label() == label
}

// newLeftover names an object of this process.
func newLeftover() (leftover, error) {
	pid := os.Getpid()
	l := leftover{Host: thisHost(), Process: processID(pid), PID: uint32(pid), Minute: uint32(time.Now().Unix() / 60)} //nolint:gosec // PIDs are small, and minutes fit until the year 10136
	if _, err := rand.Read(l.Random[:]); err != nil {
		return l, fmt.Errorf("name the wrapping public key: %w", err)
	}
	return l, nil
}

// abandoned says that whoever made the object needs it no more: its process is dead, or it is older than anything that is in use.
func (l leftover) abandoned(now time.Time) bool {
	if age := now.Sub(time.Unix(60*int64(l.Minute), 0)); age > leftoverAge {
		return true
	}
	if l.Host != thisHost() {
		return false // another machine or container: whether it lives cannot be told
	}
	// A process that cannot be seen in /proc (ProtectProc=) still shows that it is there.
	if err := syscall.Kill(int(l.PID), 0); errors.Is(err, syscall.ESRCH) {
		return true
	}
	alive := processID(int(l.PID))
	return alive != 0 && alive != l.Process
}

// thisHost tells machines and containers on one machine apart: PIDs mean something only within one.
func thisHost() uint32 {
	machine, _ := os.ReadFile("/etc/machine-id")
	name, _ := os.Hostname()
	space, _ := os.Readlink("/proc/self/ns/pid")
	return short(string(machine), name, space)
}

// processID tells a process apart from a later one of the same PID: by its start and the boot of the machine. 0: it cannot be seen.
func processID(pid int) uint32 {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, after, ok := bytes.Cut(stat, []byte(") ")) // the name of the program, in parentheses, may hold anything
	for rest, more := after, true; more; {
		if _, rest, more = bytes.Cut(rest, []byte(") ")); more {
			after = rest
		}
	}
	const start = 22 - 3 // field 22 of the line is starttime, field 3 the first after the name; proc(5)
	fields := bytes.Fields(after)
	if err != nil || !ok || len(fields) <= start {
		return 0
	}
	return short(string(boot), string(fields[start]))
}

func short(parts ...string) uint32 {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return binary.BigEndian.Uint32(sum[:])
}

// keepTrack notes a token object that has to be destroyed; 0: its handle is not known.
func (t *Token) keepTrack(label string, h pkcs11.ObjectHandle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stored == nil {
		t.stored = map[string]pkcs11.ObjectHandle{}
	}
	t.stored[label] = h
}

func (t *Token) storedLabel(h pkcs11.ObjectHandle) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for label, stored := range t.stored {
		if stored == h && h != 0 {
			return label, true
		}
	}
	return "", false
}

func (t *Token) forget(label string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.stored, label)
}

// destroyStored destroys a token object, by its handle or, where its session or handle is lost, by its label over another session.
func (t *Token) destroyStored(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, label string) error {
	if err := t.module.ctx.DestroyObject(s, h); err == nil {
		t.forget(label)
		return nil
	}
	t.keepTrack(label, 0) // what has this handle from now on is another object
	return t.destroyNamed(label)
}

// unmake destroys a token object whose making failed with err: the token may have made it all the same.
func (t *Token) unmake(label string, err error) error {
	if onlyCaller(err) {
		t.forget(label) // the token refused
		return nil
	}
	if failed := t.destroyNamed(label); !neverBegun(err) {
		return failed
	}
	return nil
}

// neverBegun says that a call failed before it did anything, by the words of the standard (PKCS#11 v2.40, 5.1).
func neverBegun(err error) bool {
	switch codeOf(err) {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_SESSION_READ_ONLY, pkcs11.CKR_TOKEN_WRITE_PROTECTED:
		return true
	}
	return false
}

// destroyNamed destroys the token object of the label over another session. One that is not seen there stays on the list of what is looked for
// once more when the token is closed: nothing says that it is gone.
func (t *Token) destroyNamed(label string) error {
	other, err := t.openSession()
	if err == nil {
		defer t.drop(other)
		var n int
		if n, err = t.destroyLabelled(other, func(l string) bool { return l == label }); n > 0 && err == nil {
			t.forget(label)
			return nil
		}
		if err == nil {
			err = t.loggedIn(other) // or a private object would not be seen
		}
	}
	if err == nil {
		return nil
	}
	return &Error{
		Op: "C_DestroyObject", ErrClass: ClassToken, Err: err, Cause: fmt.Sprintf("the wrapping public key %q is a token object, could not be destroyed and may still be in the token: %v", label, err),
		Fix: "it is looked for when the token is closed, and when another process opens it; until then it may stay: it holds a public key of AWS KMS and no secret",
	}
}

// destroyLabelled destroys the stored RSA public keys whose labels are wanted. Nothing but an object that hsmbridge named is ever touched.
func (t *Token) destroyLabelled(s pkcs11.SessionHandle, want func(label string) bool) (int, error) {
	found, err := t.find(s, attributes{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA)}, 0)
	if err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, h := range found {
		r := &reader{t: t, s: s, o: h}
		label := r.text(pkcs11.CKA_LABEL)
		if r.err != nil {
			if !isCode(r.err, pkcs11.CKR_OBJECT_HANDLE_INVALID) { // one that another process destroys at this moment
				errs = append(errs, r.err)
			}
			continue
		}
		if _, ours := parseLeftover(label); !ours || !want(label) {
			continue
		}
		if err := t.module.ctx.DestroyObject(s, h); err != nil && !isCode(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			errs = append(errs, fault("C_DestroyObject", err, about{what: t.name, key: label}))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}

// sweep destroys the wrapping public keys that dead processes left in the token.
func (t *Token) sweep(s pkcs11.SessionHandle) {
	if !t.quirks.TokenPublicKey {
		return
	}
	now := time.Now()
	n, err := t.destroyLabelled(s, func(label string) bool {
		l, _ := parseLeftover(label)
		return l.abandoned(now)
	})
	if n > 0 {
		t.warnings = append(t.warnings, fmt.Sprintf("%d wrapping public keys that an earlier process left in the token were destroyed", n))
	}
	if err != nil {
		t.warnings = append(t.warnings, "wrapping public keys that an earlier process left in the token could not be destroyed: "+err.Error())
	}
}

// sweepOwn destroys what this connection could not destroy in time, before it is closed.
func (t *Token) sweepOwn(s pkcs11.SessionHandle) error {
	t.mu.Lock()
	var labels []string
	for label := range t.stored {
		labels = append(labels, label)
	}
	t.mu.Unlock()
	if len(labels) == 0 {
		return nil
	}
	n, err := t.destroyLabelled(s, func(label string) bool { return slices.Contains(labels, label) })
	if err == nil && n < len(labels) {
		err = t.loggedIn(s) // or private objects would not be seen
	}
	if err == nil {
		return nil
	}
	slices.Sort(labels)
	return &Error{
		Op: "C_DestroyObject", ErrClass: ClassToken, Err: err, Cause: fmt.Sprintf("of the wrapping public keys %q, which are token objects, some may still be in the token: %v", labels, err),
		Fix: "they are destroyed when another process opens the token; they hold public keys of AWS KMS and no secret",
	}
}

// Leftovers lists the labels of the wrapping public keys that hsmbridge, here or elsewhere, has in the token now.
func (t *Token) Leftovers(ctx context.Context) ([]string, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) ([]string, error) {
		found, err := t.find(s, attributes{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_TOKEN, true)}, 0)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, h := range found {
			r := &reader{t: t, s: s, o: h}
			if label := r.text(pkcs11.CKA_LABEL); strings.HasPrefix(label, leftoverPrefix) {
				out = append(out, label)
			}
			if r.err != nil {
				return nil, r.err
			}
		}
		return out, nil
	})
}
