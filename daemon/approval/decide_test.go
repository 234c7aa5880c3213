package approval_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
)

var update = flag.Bool("update", false, "write the golden files")

const decideGolden = "testdata/decide.golden"

// room is what is decided on: three officers with keys in files (alice, bob, carol), of whom two have to sign.
type room struct {
	approval.Policy
	request    approval.Request
	now        time.Time
	text       []byte // what arrives; nil: the request's
	signatures [][]byte
}

func newRoom() *room {
	r := &room{request: sample(), now: askedAt.Add(time.Hour)}
	r.Threshold = 2
	for _, name := range []string{"alice", "bob", "carol"} {
		r.Officers = append(r.Officers, officer(name, public(name)))
	}
	return r
}

func public(name string) ssh.PublicKey { return fileKey(name).PublicKey() }

func (r *room) original() []byte {
	text, err := r.request.Text()
	if err != nil {
		panic(err)
	}
	return text
}

// sign adds signatures with these officers' keys in files over the request as it is.
func (r *room) sign(names ...string) {
	for _, name := range names {
		r.signatures = append(r.signatures, signFile(fileKey(name), approval.Namespace, r.original()))
	}
}

// hardware gives the officers keys in authenticators.
func (r *room) hardware() {
	r.RequireHardware = true
	for i, o := range r.Officers {
		r.Officers[i] = officer(o.Name, hardwareKey(o.Name))
	}
}

func (r *room) touch(name string, flags byte) {
	r.signatures = append(r.signatures, signHardware(name, flags, approval.Namespace, r.original()))
}

// alter replaces the last signature with one whose blob is changed.
func (r *room) alter(t *testing.T, change func(blob []byte) []byte) {
	t.Helper()
	last := len(r.signatures) - 1
	r.signatures[last] = rearmor(change(unarmor(t, r.signatures[last])))
}

// TestDecide has every reason for which a signature, or all of them, do not approve. What people read is in the golden file.
func TestDecide(t *testing.T) {
	want := string(readFile(t, decideGolden))
	var golden bytes.Buffer
	for _, c := range []struct {
		name   string
		reason approval.Reason // of the decision, or of the last signature that does not count; empty: approved, and all count
		make   func(t *testing.T, r *room)
	}{
		{"two of three", "", func(_ *testing.T, r *room) { r.sign("alice", "bob") }},
		{"three of three", "", func(_ *testing.T, r *room) { r.sign("carol", "alice", "bob") }},
		{"two in hardware, verified", "", func(_ *testing.T, r *room) {
			r.hardware()
			r.RequireUserVerification = true
			r.touch("alice", 5)
			r.touch("bob", 5)
		}},
		{"the last second", "", func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.now = r.request.ValidUntil.Add(-time.Second)
		}},
		{"a clock that is five minutes behind", "", func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.now = askedAt.Add(-5 * time.Minute)
		}},

		{"nobody signed", approval.NotEnough, func(_ *testing.T, _ *room) {}},
		{"too few", approval.NotEnough, func(_ *testing.T, r *room) { r.sign("alice") }},
		{"fewer officers than the threshold", approval.NotEnough, func(_ *testing.T, r *room) {
			r.sign("alice", "bob", "carol")
			r.Threshold = 4
		}},
		{"fewer than the threshold without the requester", approval.NotEnough, func(_ *testing.T, r *room) {
			r.request.AskedBy, r.Threshold = "carol", 3
			r.sign("alice", "bob")
		}},
		{"no threshold", approval.NotEnough, func(_ *testing.T, r *room) {
			r.sign("alice")
			r.Threshold = 0
		}},
		{"expired", approval.RequestExpired, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.now = r.request.ValidUntil
		}},
		{"not yet valid", approval.RequestNotYet, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.now = askedAt.Add(-5*time.Minute - time.Second)
		}},

		{"one officer twice", approval.SamePerson, func(_ *testing.T, r *room) { r.sign("alice", "alice") }},
		{"two keys of one officer", approval.SamePerson, func(_ *testing.T, r *room) {
			r.Officers[0] = officer("alice", public("alice"), public("alice's other"))
			r.sign("alice", "alice's other")
		}},
		{"one officer listed in two spellings", approval.SamePerson, func(_ *testing.T, r *room) {
			r.Officers = append(r.Officers, officer("Alice", public("alice's other")))
			r.sign("alice", "alice's other")
		}},
		{"the requester", approval.Requester, func(_ *testing.T, r *room) {
			r.request.AskedBy = "Alice"
			r.sign("alice", "bob")
		}},
		{"the requester by another user name", approval.Requester, func(_ *testing.T, r *room) {
			r.request.AskedBy, r.Officers[0].Users = "al", []string{"adm-alice", "AL"}
			r.sign("alice", "bob")
		}},
		{"a key of two officers", approval.NotAnOfficer, func(_ *testing.T, r *room) {
			r.request.AskedBy = "bob"
			r.Officers[1].Keys = append(r.Officers[1].Keys, r.Officers[0].Keys[0])
			r.sign("alice", "carol")
		}},
		{"a stranger", approval.NotAnOfficer, func(_ *testing.T, r *room) { r.sign("alice", "mallory") }},
		{"an officer who was removed", approval.NotAnOfficer, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.Officers = slices.Delete(r.Officers, 1, 2)
		}},
		{"a key that was revoked", approval.OutOfTime, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.Officers[1].Keys[0].Until = r.now
		}},
		{"a key that does not count yet", approval.OutOfTime, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.Officers[1].Keys[0].From = r.now.Add(time.Second)
		}},

		{"the namespace of another program", approval.WrongNamespace, func(_ *testing.T, r *room) {
			r.sign("alice")
			r.signatures = append(r.signatures, signFile(fileKey("bob"), "git", r.original()))
		}},
		{"a rejection", approval.WrongNamespace, func(t *testing.T, r *room) {
			t.Helper()
			said, err := approval.RejectionText(r.original(), "no")
			if err != nil {
				t.Fatal(err)
			}
			r.sign("alice")
			r.signatures = append(r.signatures, signFile(fileKey("bob"), approval.RejectionNamespace, said))
		}},
		{"the namespace changed afterwards", approval.OtherText, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("alice")
			r.signatures = append(r.signatures, signFile(fileKey("bob"), "hsmbridge-approvam", r.original()))
			r.alter(t, func(b []byte) []byte { return bytes.Replace(b, []byte("approvam"), []byte("approval"), 1) })
		}},
		{"another request", approval.OtherText, func(_ *testing.T, r *room) {
			r.sign("alice")
			r.request.ID = "0000-0000-0000-0000"
			r.sign("bob")
		}},
		{"a byte of the text changed", approval.OtherText, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.text = bytes.Replace(r.original(), []byte("check value 1A2B3C"), []byte("check value 1A2B3D"), 1)
		}},
		{"the wrapping key swapped", approval.OtherText, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.request.WrappingKeys[0] = spki("mallory's")
		}},
		{"wrapping key and proof key exchanged", approval.OtherText, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			slices.Reverse(r.request.WrappingKeys)
		}},
		{"a signature under another officer's name", approval.OtherText, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("alice", "bob")
			r.alter(t, func(b []byte) []byte { return bytes.Replace(b, public("bob").Marshal(), public("carol").Marshal(), 1) })
		}},

		{"a key in a file", approval.NoHardware, func(_ *testing.T, r *room) {
			r.hardware()
			r.touch("alice", 1)
			r.Officers[1] = officer("bob", public("bob"))
			r.sign("bob")
		}},
		{"no touch", approval.NoTouch, func(_ *testing.T, r *room) {
			r.hardware()
			r.touch("alice", 1)
			r.touch("bob", 4)
		}},
		{"no touch, and hardware is not even required", approval.NoTouch, func(_ *testing.T, r *room) {
			r.hardware()
			r.RequireHardware = false
			r.touch("alice", 1)
			r.touch("bob", 0)
		}},
		{"no verification", approval.NoVerification, func(_ *testing.T, r *room) {
			r.hardware()
			r.RequireUserVerification = true
			r.touch("alice", 5)
			r.touch("bob", 1)
		}},
		{"verification required, a key in a file", approval.NoHardware, func(_ *testing.T, r *room) {
			r.RequireUserVerification = true
			r.sign("bob")
		}},
		{"no flags at all", approval.NoTouch, func(t *testing.T, r *room) {
			t.Helper()
			r.hardware()
			r.touch("alice", 1)
			bare := signHardware("bob", 1, approval.Namespace, r.original())
			r.signatures = append(r.signatures, rearmor(withSignature(t, unarmor(t, bare), func(s *ssh.Signature) { s.Rest = nil })))
		}},

		{"no signature", approval.NotASignature, func(_ *testing.T, r *room) {
			r.sign("alice")
			r.signatures = append(r.signatures, []byte("yes, go ahead. Bob\n"))
		}},
		{"broken armor", approval.NotASignature, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.signatures[1] = bytes.Replace(r.signatures[1], []byte("U1NIU0lH"), []byte("U1NI*0lH"), 1)
		}},
		{"half of the armor", approval.NotASignature, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.signatures[1] = r.signatures[1][:len(r.signatures[1])/2]
		}},
		{"too long", approval.NotASignature, func(_ *testing.T, r *room) {
			r.sign("alice")
			r.signatures = append(r.signatures, bytes.Repeat([]byte("A"), 16<<10+1))
		}},
		{"two signatures in one file", approval.NotASignature, func(_ *testing.T, r *room) {
			r.sign("alice", "bob")
			r.signatures = [][]byte{slices.Concat(r.signatures...)}
		}},
		{"another magic", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("bob")
			r.alter(t, func(b []byte) []byte { return append([]byte("SSHCRT"), b[6:]...) })
		}},
		{"another version", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("bob")
			r.alter(t, func(b []byte) []byte { b[9] = 2; return b })
		}},
		{"bytes behind the signature", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("alice", "bob")
			r.alter(t, func(b []byte) []byte { return append(b, 0) })
		}},
		{"bytes behind the inner signature", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("alice", "bob")
			r.alter(t, func(b []byte) []byte { return withSignature(t, b, func(s *ssh.Signature) { s.Rest = []byte{1} }) })
		}},
		{"bytes behind the authenticator's counter", approval.OtherText, func(t *testing.T, r *room) {
			t.Helper()
			r.hardware()
			r.touch("alice", 1)
			r.touch("bob", 1)
			r.alter(t, func(b []byte) []byte {
				return withSignature(t, b, func(s *ssh.Signature) { s.Rest = append(s.Rest, 1) })
			})
		}},
		{"something in the reserved field", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("bob")
			r.alter(t, func(b []byte) []byte { return withBlob(t, b, func(s *blob) { s.Reserved = "x" }) })
		}},
		{"an unknown hash", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("bob")
			r.alter(t, func(b []byte) []byte { return withBlob(t, b, func(s *blob) { s.Hash = "md5\x1b[2J" }) })
		}},
		{"a certificate", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			r.sign("bob")
			r.alter(t, func(b []byte) []byte {
				return withBlob(t, b, func(s *blob) { s.PublicKey = string(certificate("bob").Marshal()) })
			})
		}},
		{"SHA-1", approval.NotASignature, func(t *testing.T, r *room) {
			t.Helper()
			key := rsaKey(t)
			r.Officers[1] = officer("bob", key.PublicKey())
			r.sign("alice")
			r.signatures = append(r.signatures, signSHA1(t, key, approval.Namespace, r.original()))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRoom()
			c.make(t, r)
			if r.text == nil {
				r.text = r.original()
			}
			d, err := r.Decide(r.text, r.signatures, r.now)
			if err != nil {
				t.Fatal(err)
			}
			reason := d.Reason
			for _, v := range d.Verdicts {
				if !v.Counts {
					reason = v.Reason
				}
				if v.Counts != (v.Reason == "") || v.Counts != (v.Message == "") {
					t.Errorf("a verdict that contradicts itself: %+v", v)
				}
			}
			if reason != c.reason {
				t.Errorf("the reason is %q and not %q", reason, c.reason)
			}
			if d.Approved != (c.reason == "") || d.Approved != (d.Err() == nil) || d.Need != r.Threshold || d.Have != len(d.People()) {
				t.Errorf("%+v", d)
			}
			got := describe(c.name, d)
			golden.WriteString(got)
			if !*update && !strings.Contains("\n\n"+want, "\n\n"+got) {
				t.Errorf("%s differs (-update writes it anew); got\n%s", decideGolden, got)
			}
		})
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(decideGolden, golden.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// describe is what people are told.
func describe(name string, d approval.Decision) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s\n", name)
	for i, v := range d.Verdicts {
		fmt.Fprintf(b, "  %d: ", i+1)
		if v.Counts {
			fmt.Fprintf(b, "%s\n", v.Officer)
		} else {
			fmt.Fprintf(b, "%s: %s\n", v.Reason, v.Message)
		}
	}
	if err := d.Err(); err != nil {
		fmt.Fprintf(b, "  %s: %v\n\n", d.Reason, err)
	} else {
		fmt.Fprintf(b, "  approved by %s\n\n", strings.Join(d.People(), ", "))
	}
	return b.String()
}

// The error has the decision, and says that people have to act.
func TestNotApproved(t *testing.T) {
	r := newRoom()
	r.sign("alice")
	d, err := r.Decide(r.original(), r.signatures, r.now)
	if err != nil {
		t.Fatal(err)
	}
	var e *approval.NotApprovedError
	if err := fmt.Errorf("import: %w", d.Err()); !errors.As(err, &e) || e.Class() != "caller" || e.Code() != "NotApproved" {
		t.Fatalf("%v", d.Err())
	}
	if got := e.Decision; got.Have != 1 || !slices.Equal(got.Remaining, []string{"bob", "carol"}) || got.Request.ID != r.request.ID {
		t.Errorf("%+v", got)
	}
}

// What is no request is not decided on, whoever signed it.
func TestDecideNoRequest(t *testing.T) {
	r := newRoom()
	text := append(r.original(), ' ')
	for _, name := range []string{"alice", "bob"} {
		r.signatures = append(r.signatures, signFile(fileKey(name), approval.Namespace, text))
	}
	d, err := r.Decide(text, r.signatures, r.now)
	var format *approval.FormatError
	if !errors.As(err, &format) || d.Approved {
		t.Errorf("%+v, %v", d, err)
	}
}
