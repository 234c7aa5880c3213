package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/wrapping"
)

func sampleKey() Key {
	return Key{wrapping.Key{
		Label: "k\xff", ID: []byte{0, 1}, Class: "CKO_SECRET_KEY", KeyType: "CKK_AES", Bits: 256, KeySpec: wrapping.SymmetricDefault, Extractable: true, Sensitive: true, Handle: math.MaxUint,
		Blockers: []string{"because"},
	}}
}

// samples are one message of each kind, and the empty one that it is read into.
func samples() []struct{ m, empty Message } {
	key := sampleKey()
	id := wrapping.TokenIdentity{Label: "demo", Serial: "1", Firmware: "2.6"}
	mechanism := wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Form: wrapping.FormOAEP}
	return []struct{ m, empty Message }{
		{&Hello{Version: 1, Isolation: []Measure{{"seccomp", "on"}}}, &Hello{}},
		{&Open{Name: "n", Module: "/m.so", Parameters: "p", URI: "pkcs11:", Quirks: `{"family":"none"}`, LoginAgain: true}, &Open{}},
		{&Report{Version: "1", Private: []string{"a", "b"}}, &Report{}},
		{&Document{JSON: []byte("{}")}, &Document{}},
		{&WantPIN{id, true}, &WantPIN{}},
		{&Opened{Token: id, Warnings: []string{"w"}, PINTriesLow: true, Sessions: 16}, &Opened{}},
		{&Text{"t"}, &Text{}},
		{&Bytes{[]byte{1, 2, 3}}, &Bytes{}},
		{&key, &Key{}},
		{&Keys{[]Key{key, key}}, &Keys{}},
		{&Find{"pkcs11:object=k"}, &Find{}},
		{&Generate{wrapping.HMAC256, "l", []byte{9}}, &Generate{}},
		{&Specs{wrapping.KeySpecs()}, &Specs{}},
		{&Wrap{Key: key, Modulus: []byte{5}, Exponent: 65537, Plan: wrapping.Plan{KeySpec: wrapping.HMAC256, Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA4096, Mechanism: mechanism, Length: 32, Padded: true}}, &Wrap{}},
		{&Sign{key, []byte{1}, []byte{2}}, &Sign{}},
		{&Capabilities{wrapping.Capabilities{Token: id, Trials: []wrapping.Trial{{KeySpec: wrapping.HMAC256, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048, Mechanism: mechanism, Outcome: wrapping.Exact, Length: 3}}}}, &Capabilities{}},
		{&Mechanisms{[]wrapping.MechanismInfo{{Name: "n", Type: 1, Listed: true, Wrap: true, Min: 2, Max: 3}}}, &Mechanisms{}},
		{FailureOf(&failure.Error{Op: "C_Login", Code: 0xa0, Name: "CKR_PIN_INCORRECT (0xA0)", ErrClass: "token", Cause: "c", Fix: "f", Mark: "m", Err: failure.ErrParked}), &Failure{}},
	}
}

// What is sent is what arrives, and every shorter or longer payload is refused.
func TestMessages(t *testing.T) {
	for _, s := range samples() {
		name := fmt.Sprintf("%T", s.m)
		b, err := Encode(s.m)
		if err != nil {
			t.Fatal(name, err)
		}
		for n := range b {
			if err := Decode(b[:n], fresh(s.empty)); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %d of %d bytes: %v", name, n, len(b), err)
			}
		}
		if err := Decode(append(bytes.Clone(b), 0), fresh(s.empty)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: a byte too many: %v", name, err)
		}
		if err := Decode(b, s.empty); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(s.m, s.empty); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", name, diff)
		}
	}
	if _, err := Encode(&Text{strings.Repeat("x", maxText+1)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a text that is too long: %v", err)
	}
}

// fresh is another empty message of the type.
func fresh(m Message) Message {
	for _, s := range samples() {
		if fmt.Sprintf("%T", s.empty) == fmt.Sprintf("%T", m) {
			return s.empty
		}
	}
	return nil
}

// An error is the same on the other side: its text, its class, and what errors.Is says of it.
func TestErrorsCross(t *testing.T) {
	told := &failure.Error{Op: "find k", ErrClass: failure.ClassCaller, Cause: "two", Fix: "name one", Err: failure.ErrAmbiguous}
	for _, err := range []error{
		told, fmt.Errorf("%q: %w", "k", failure.ErrNoPublicHalf), fmt.Errorf("around: %w", told), errors.Join(told, errors.New("and another")),
		&failure.Error{Op: "C_Login", Name: "CKR_PIN_LOCKED (0xA4)", Code: 0xa4, ErrClass: failure.ClassToken, Err: errors.New("pkcs11: 0xA4")},
		fmt.Errorf("wait: %w", context.DeadlineExceeded), &failure.Error{Mark: failure.PINRefused, Err: failure.ErrParked}, errors.New("bytes \xff\x00"),
	} {
		b, eerr := Encode(FailureOf(err))
		var f Failure
		if eerr != nil || Decode(b, &f) != nil {
			t.Fatal(err, eerr)
		}
		got := f.Err()
		if got.Error() != err.Error() {
			t.Errorf("%q became %q", err, got)
		}
		for _, s := range sentinels() {
			if errors.Is(got, s.err) != errors.Is(err, s.err) {
				t.Errorf("%v: errors.Is(%v) is %t", err, s.err, errors.Is(got, s.err))
			}
		}
		var x, y *failure.Error
		if errors.As(err, &x) != errors.As(got, &y) || x != nil && (x.CKR() != y.CKR() || x.Class() != y.Class() || x.Fix != y.Fix || x.Code != y.Code) {
			t.Errorf("%+v became %+v", x, y)
		}
	}
}

// Frames arrive as they were sent, also a PIN.
func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	c := NewConn(&wire, &wire, MaxRequest)
	if err := c.Send(KindCall, OpFind, 7, &Find{"pkcs11:"}); err != nil {
		t.Fatal(err)
	}
	if err := c.SendPIN([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	h, err := c.Next()
	b, perr := c.Payload(h, nil)
	if err != nil || perr != nil || h.Kind != KindCall || h.Op != OpFind || h.Call != 7 || Decode(b, &Find{}) != nil {
		t.Errorf("%+v %v %v", h, err, perr)
	}
	h, err = c.Next()
	page := make([]byte, 4096)
	b, perr = c.Payload(h, page)
	if err != nil || perr != nil || h.Kind != KindPIN || string(b) != "1234" || &b[0] != &page[0] {
		t.Errorf("%+v %q %v %v", h, b, err, perr)
	}
	if _, err := c.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for _, bad := range [][]byte{nil, make([]byte, MaxPIN+1)} {
		if err := c.SendPIN(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("a PIN of %d bytes: %v", len(bad), err)
		}
	}
}

// FuzzFrames receives whatever comes: no panic, no more memory than came bytes, and what is taken is sent again as it was.
func FuzzFrames(f *testing.F) {
	for _, s := range samples() {
		var wire bytes.Buffer
		if err := NewConn(nil, &wire, 0).Send(KindCall, OpWrap, 1, s.m); err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		c := NewConn(in, io.Discard, MaxAnswer)
		for {
			h, err := c.Next()
			if err != nil {
				return
			}
			payload, err := c.Payload(h, nil)
			if err != nil {
				return
			}
			var again bytes.Buffer
			head := make([]byte, headerSize)
			putHeader(head, h)
			again.Write(head)
			again.Write(payload)
			end := len(b) - in.Len()
			if !bytes.Equal(again.Bytes(), b[end-again.Len():end]) {
				t.Fatalf("%x became %x", b[end-again.Len():end], again.Bytes())
			}
		}
	})
}

// FuzzMessages reads whatever comes as every message, of both sides: what is taken encodes to the same bytes again.
func FuzzMessages(f *testing.F) {
	for i, s := range samples() {
		b, err := Encode(s.m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := samples()
		m := all[int(which)%len(all)].empty
		if err := Decode(b, m); err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x (%v)", b, again, err)
		}
		if failed, ok := m.(*Failure); ok {
			_ = failed.Err().Error()
		}
	})
}
