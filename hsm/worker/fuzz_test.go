package worker

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// requests are one of each request with what it carries.
func requests() map[wire.Op]wire.Message {
	key := wire.Key{Key: wrapping.Key{Label: "k", Class: "CKO_SECRET_KEY", KeySpec: wrapping.SymmetricDefault}}
	modulus := bytes.Repeat([]byte{0xd5}, 256)
	return map[wire.Op]wire.Message{
		wire.OpMechanisms: nil, wire.OpKeys: nil, wire.OpClose: nil,
		wire.OpProbe: &wire.Specs{Specs: []wrapping.KeySpec{wrapping.HMAC256}}, wire.OpFind: &wire.Find{URI: "pkcs11:object=k;type=secret-key"},
		wire.OpGenerate: &wire.Generate{Spec: wrapping.HMAC256, Label: "k"}, wire.OpGenerateSigning: &wire.Generate{Label: "k", ID: []byte{1}},
		wire.OpWrap:      &wire.Wrap{Key: key, Modulus: modulus, Exponent: 65537, Plan: wrapping.Plan{Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA2048}},
		wire.OpPublicKey: &key, wire.OpCheckValue: &key, wire.OpMAC: &wire.Sign{Key: key, Message: []byte("m")}, wire.OpSign: &wire.Sign{Key: key, Message: []byte("m"), Public: []byte{0x30}},
		wire.OpReport: &wire.Report{Version: "1"},
	}
}

// FuzzPrepare holds that a request is carried out only if it is one: every other is called malformed, and no wrapping public key is taken whose
// size or exponent no RSA key of KMS has.
func FuzzPrepare(f *testing.F) {
	for op, m := range requests() {
		var b bytes.Buffer
		if err := wire.NewConn(nil, &b, 0).Send(wire.KindCall, op, 1, m); err != nil {
			f.Fatal(err)
		}
		c := wire.NewConn(&b, nil, wire.MaxRequest)
		h, err := c.Next()
		if err != nil {
			f.Fatal(err)
		}
		payload, err := c.Payload(h, nil)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := prepare(op, payload, new(hsm.Token)); err != nil {
			f.Fatalf("%s: %v", op, err)
		}
		f.Add(uint8(op), payload)
	}
	f.Fuzz(func(t *testing.T, op uint8, payload []byte) {
		do, err := prepare(wire.Op(op), payload, new(hsm.Token))
		if err != nil && !errors.Is(err, wire.ErrMalformed) || err == nil && do == nil {
			t.Errorf("operation %d, %x: %v", op, payload, err)
		}
		var w wire.Wrap
		if wire.Op(op) != wire.OpWrap || err != nil || wire.Decode(payload, &w) != nil {
			return
		}
		if pub, err := publicKey(w); err != nil || pub.N.Sign() <= 0 || pub.Size() > 1024 || pub.E < 3 || uint64(pub.E) != w.Exponent {
			t.Errorf("the wrapping public key %x, %d is taken", w.Modulus, w.Exponent)
		}
	})
}

// FuzzServe is a parent that sends anything, in pieces of any size, to a process that is open already. The process ends, does not take a PIN that it did
// not ask for, and leaves nothing of what it read in the buffer through which PINs come.
func FuzzServe(f *testing.F) {
	var all bytes.Buffer
	send := wire.NewConn(nil, &all, 0)
	for _, m := range []struct {
		kind wire.Kind
		m    wire.Message
	}{{wire.KindCancel, nil}, {wire.KindOpen, &wire.Open{Name: "t", URI: "pkcs11:token=t", Quirks: "{}"}}, {wire.KindNoPIN, &wire.Text{Text: "none"}}, {wire.KindCall, nil}} {
		if err := send.Send(m.kind, wire.OpKeys, 1, m.m); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(all.Bytes()), uint8(3))
		f.Add(append(slices.Repeat(all.Bytes(), 3), 0, 0), uint8(200))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, byte(wire.KindPIN), 0, 0, 0, 0, 0, 0, 0, 0, 1}, uint8(1))
	f.Add([]byte{0, 0, 0, 4, byte(wire.KindPIN), 0, 0, 0, 0, 0, 0, 0, 0, 1, 'o', 'n', 'e', '!'}, uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		in := &inbox{f: &pieces{bytes.NewReader(b), int(piece) + 1}, buf: make([]byte, 512)}
		p := &process{conn: wire.NewConn(in, io.Discard, wire.MaxRequest), page: make([]byte, wire.MaxPIN), pins: make(chan []byte, 1), ended: make(chan int, 1), opening: true}
		p.serve()
		if code := <-p.ended; code != exitBad && code != exitGone {
			t.Errorf("it ends with %d", code)
		}
		if len(p.pins) > 0 {
			t.Error("it took a PIN")
		}
		if !bytes.Equal(in.buf[:in.from], make([]byte, in.from)) {
			t.Errorf("what was read is still there: %x", in.buf[:in.from])
		}
		if !bytes.Equal(p.page, make([]byte, len(p.page))) {
			t.Errorf("a PIN that nobody asked for is still there: %x", p.page)
		}
	})
}

// pieces gives at most n bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
