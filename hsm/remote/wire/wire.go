// Package wire is the language between hsmbridge and the process that a PKCS#11 module lives in: frames over one private socket pair, and
// what is in them. It is narrow on purpose. There is no word for reading an attribute, so a module's process cannot be asked for a secret
// one, and key material in the clear has no place in any answer.
//
// A frame is a header of 14 bytes and a payload:
//
//	length of the payload  4 bytes, big endian
//	kind                   1 byte
//	operation              1 byte, of calls only; else 0
//	number of the call     8 bytes, big endian; the answer has the same
//
// Payloads are fields in a fixed order, each of one form only: what was decoded encodes to the same bytes again. A PIN is a payload of its own,
// the bare bytes, so that neither side copies it on its way.
//
// It is pure but for the socket: no token, no cgo.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Version is that of the language. Both ends are one binary, so another one is a mistake.
const Version = 2

// Argument is the hidden first argument that makes hsmbridge the process of a module; its second is the token's name.
const Argument = "module-process"

// EnvStage is the environment variable that tells the process what it is to be: whether its module may use the network. It is gone before
// the module is loaded.
const (
	EnvStage     = "HSMBRIDGE_MODULE_PROCESS"
	StageNone    = "none"
	StageAllowed = "allowed"
)

// Socket is the file descriptor of the module's process's end.
const Socket = 3

// Kind says what a frame is.
type Kind byte

// The kinds. PIN, NoPIN and LogIn answer WantPIN; Answer and Failed answer Open (number 0) and Call.
const (
	KindHello   Kind = iota + 1 // process: it is there; [Hello]
	KindOpen                    // hsmbridge: load the module and open the token; [Open]
	KindWantPIN                 // process: it found the token and is about to log in; [WantPIN]
	KindPIN                     // hsmbridge: the PIN's bytes
	KindNoPIN                   // hsmbridge: there is none, or it is not given; [Text]
	KindCall                    // hsmbridge: do this
	KindCancel                  // hsmbridge: nobody waits for that call any more
	KindAnswer                  // process
	KindFailed                  // process; [Failure]
	KindLogIn                   // hsmbridge: log in; the PIN is typed at the device
)

// Op is what a call asks for.
type Op byte

// The operations: all there are.
const (
	OpMechanisms      Op = iota + 1 // – → [Mechanisms]
	OpProbe                         // [Specs] → [Capabilities]
	OpKeys                          // – → [Keys]
	OpFind                          // [Find] → [Key]
	OpGenerate                      // [Generate] → [Key]
	OpGenerateSigning               // [Generate] without a spec → [Key]
	OpWrap                          // [Wrap] → [Bytes]
	OpPublicKey                     // [Key] → [Bytes]
	OpMAC                           // [Sign] → [Bytes]
	OpSign                          // [Sign] → [Bytes]
	OpCheckValue                    // [Key] → [Text]
	OpReport                        // [Report] → [Document]
	OpClose                         // – → –, and the process ends
)

// String is the operation's name in messages.
func (o Op) String() string {
	names := [...]string{
		OpMechanisms: "list mechanisms", OpProbe: "probe", OpKeys: "list keys", OpFind: "find", OpGenerate: "generate", OpGenerateSigning: "generate a signing key",
		OpWrap: "wrap", OpPublicKey: "public key", OpMAC: "MAC", OpSign: "sign", OpCheckValue: "check value", OpReport: "report", OpClose: "close",
	}
	if int(o) < len(names) && names[o] != "" {
		return names[o]
	}
	return fmt.Sprintf("operation %d", byte(o))
}

// Limits of a payload in bytes.
const (
	MaxRequest = 64 << 10 // from hsmbridge
	MaxAnswer  = 16 << 20 // from the process: a list of some 50,000 keys
	MaxPIN     = 1024
)

// headerSize is that of a header in bytes.
const headerSize = 14

// Header is that of a frame.
type Header struct {
	Length int
	Kind   Kind
	Op     Op
	Call   uint64
}

// ErrMalformed says that the other side does not speak the language.
var ErrMalformed = errors.New("against the protocol")

// Conn sends and receives frames. Many goroutines may send, one receives.
type Conn struct {
	in   io.Reader
	out  io.Writer
	most int

	sending sync.Mutex
}

// NewConn makes a connection; most is the longest payload that it takes from in: [MaxRequest] or [MaxAnswer].
func NewConn(in io.Reader, out io.Writer, most int) *Conn { return &Conn{in: in, out: out, most: most} }

// Send sends a message; m may be nil.
func (c *Conn) Send(kind Kind, op Op, call uint64, m Message) error {
	b := make([]byte, headerSize, 1024)
	if m != nil {
		var err error
		if b, err = encode(b, m); err != nil {
			return err
		}
	}
	putHeader(b, Header{Length: len(b) - headerSize, Kind: kind, Op: op, Call: call})
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := c.out.Write(b)
	return err //nolint:wrapcheck // the caller knows what was sent
}

// SendPIN sends a PIN straight from its bytes.
func (c *Conn) SendPIN(pin []byte) error {
	if len(pin) == 0 || len(pin) > MaxPIN {
		return fmt.Errorf("%w: a PIN of %d bytes", ErrMalformed, len(pin))
	}
	var h [headerSize]byte
	putHeader(h[:], Header{Length: len(pin), Kind: KindPIN})
	c.sending.Lock()
	defer c.sending.Unlock()
	if _, err := c.out.Write(h[:]); err != nil {
		return err //nolint:wrapcheck // the caller knows what was sent
	}
	_, err := c.out.Write(pin)
	return err //nolint:wrapcheck // the caller knows what was sent
}

func putHeader(b []byte, h Header) {
	binary.BigEndian.PutUint32(b, uint32(h.Length)) //nolint:gosec // bounded by what encode gives
	b[4], b[5] = byte(h.Kind), byte(h.Op)
	binary.BigEndian.PutUint64(b[6:], h.Call)
}

// Next receives a header. Its payload has to be received before the next one.
func (c *Conn) Next() (Header, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return Header{}, err //nolint:wrapcheck // io.EOF is looked for
	}
	length := binary.BigEndian.Uint32(b[:])
	h := Header{Kind: Kind(b[4]), Op: Op(b[5]), Call: binary.BigEndian.Uint64(b[6:])}
	switch most := c.most; {
	case h.Kind == 0 || h.Kind > KindLogIn:
		return h, fmt.Errorf("%w: a frame of kind %d", ErrMalformed, h.Kind)
	case h.Kind == KindCall && (h.Op == 0 || h.Op > OpClose):
		return h, fmt.Errorf("%w: %s", ErrMalformed, h.Op)
	case h.Kind != KindCall && h.Op != 0:
		return h, fmt.Errorf("%w: a frame of kind %d with an operation", ErrMalformed, h.Kind)
	case h.Kind == KindPIN && length > MaxPIN, uint64(length) > uint64(most): //nolint:gosec // most is positive
		return h, fmt.Errorf("%w: a payload of %d bytes", ErrMalformed, length)
	}
	h.Length = int(length)
	return h, nil
}

// Payload receives a frame's payload into buf, which has the header's length, or into a new buffer if buf is nil.
func (c *Conn) Payload(h Header, buf []byte) ([]byte, error) {
	if buf == nil {
		return c.long(h)
	}
	_, err := io.ReadFull(c.in, buf[:h.Length])
	return buf[:h.Length], err //nolint:wrapcheck // io.EOF is looked for
}

// long receives a payload piece by piece: a length that is only claimed costs no memory.
func (c *Conn) long(h Header) ([]byte, error) {
	const piece = 64 << 10
	out := make([]byte, min(h.Length, piece))
	for from := 0; from < h.Length; from = len(out) {
		if from > 0 {
			out = append(out, make([]byte, min(h.Length-from, piece))...)
		}
		if _, err := io.ReadFull(c.in, out[from:]); err != nil {
			return nil, err //nolint:wrapcheck // io.EOF is looked for
		}
	}
	return out, nil
}
