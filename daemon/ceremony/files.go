package ceremony

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"hsmbridge/daemon/approval"
)

// Names of the kinds of files, by what stands behind the ceremony's name.
const (
	RequestExt  = ".request"
	TokensExt   = ".importtoken"
	WrappedExt  = ".wrapped"
	LogExt      = ".log"
	ReportExt   = ".report"
	ResultExt   = ".result"
	MaterialBin = "EncryptedKeyMaterial.bin" // as the console and the AWS CLI take it
)

// Tokens are the import tokens of a request. They stay on the machine that fetched them.
type Tokens struct {
	Request  string // name
	SHA256   string // of the request's text, hexadecimal
	Endpoint string // of KMS, when it is not AWS's own
	ValidTo  time.Time
	IDs      string   // AWS request IDs of the fetches, separated by blanks
	Tokens   [][]byte // one for each wrapping key of the request, in its order
}

const (
	tokensTitle = "hsmbridge import token, version 1"
	tokensWhat  = "file with import tokens"
	tokenBlock  = "KMS IMPORT TOKEN" //nolint:gosec // the name of a block
)

func (t *Tokens) fields() []field {
	return []field{{"request", t.Request}, {"request SHA-256", t.SHA256}, {"KMS endpoint", t.Endpoint}, {"parameters until", moment(t.ValidTo)}, {"AWS request IDs", t.IDs}}
}

// Text is the file.
func (t Tokens) Text() ([]byte, error) {
	var blocks []block
	for _, b := range t.Tokens {
		blocks = append(blocks, block{tokenBlock, b})
	}
	return sheet(tokensTitle, t.fields(), blocks)
}

// ParseTokens reads the file, strictly.
func ParseTokens(text []byte) (Tokens, error) {
	var t Tokens
	got, blocks, err := parseSheet(text, tokensTitle, tokensWhat, namesOf(t.fields()))
	if err != nil {
		return t, err
	}
	t = Tokens{Request: got["request"], SHA256: got["request SHA-256"], Endpoint: got["KMS endpoint"], IDs: got["AWS request IDs"]}
	if t.ValidTo, err = parseMoment(got["parameters until"]); err != nil {
		return Tokens{}, &FileError{tokensWhat, err.Error()}
	}
	for _, b := range blocks {
		if b.kind != tokenBlock {
			return Tokens{}, &FileError{tokensWhat, "it has a block of another kind: " + b.kind}
		}
		t.Tokens = append(t.Tokens, b.bytes)
	}
	again, err := t.Text()
	if err := same(text, again, err, tokensWhat); err != nil {
		return Tokens{}, err
	}
	return t, nil
}

// Wrapped is what comes out of the room.
type Wrapped struct {
	Request   string // name
	SHA256    string // of the request's text, hexadecimal
	Key       string
	At        time.Time
	HSM       string
	Serial    string
	Firmware  string
	Material  string // which key it is
	Algorithm string
	Mechanism string
	Log       string // origin of the room's log
	Records   string // its size when this was written, and its root
	MAC       string // of an HMAC key over the SHA-256 of the request's text, hexadecimal: the proof
	Public    []byte // DER SubjectPublicKeyInfo of a private key: the proof
	Keys      []WrappedKey
}

// WrappedKey is the key under one of the request's wrapping keys.
type WrappedKey struct {
	WrappingKey string // SHA-256 of its DER SubjectPublicKeyInfo, hexadecimal
	Bytes       []byte // EncryptedKeyMaterial
}

const (
	wrappedTitle = "hsmbridge wrapped key, version 1"
	wrappedWhat  = "file with a wrapped key"
	wrappedBlock = "ENCRYPTED KEY MATERIAL"
	publicBlock  = "PUBLIC KEY"
)

func (w *Wrapped) fields() []field {
	list := []field{
		{"request", w.Request},
		{"request SHA-256", w.SHA256},
		{"key", w.Key},
		{"wrapped at", moment(w.At)},
		{"HSM", w.HSM},
		{"HSM serial", w.Serial},
		{"HSM firmware", w.Firmware},
		{"material", w.Material},
		{"wrapping algorithm", w.Algorithm},
		{"mechanism", w.Mechanism},
		{"log", w.Log},
		{"log records", w.Records},
		{"MAC of the request", w.MAC},
	}
	for i := range 2 {
		key, sum := "", ""
		if i < len(w.Keys) {
			out := sha256.Sum256(w.Keys[i].Bytes)
			key, sum = w.Keys[i].WrappingKey, hex.EncodeToString(out[:])
		}
		list = append(list, field{names[i][0], key}, field{names[i][1], sum})
	}
	return list
}

var names = [2][2]string{{"wrapping key SHA-256", "output SHA-256"}, {"proof key SHA-256", "proof output SHA-256"}} //nolint:gochecknoglobals // a table

// Text is the file.
func (w Wrapped) Text() ([]byte, error) {
	if len(w.Keys) == 0 || len(w.Keys) > len(names) {
		return nil, fmt.Errorf("a request has one or two wrapping keys, not %d", len(w.Keys))
	}
	var blocks []block
	if len(w.Public) > 0 {
		blocks = append(blocks, block{publicBlock, w.Public})
	}
	for _, k := range w.Keys {
		blocks = append(blocks, block{wrappedBlock, k.Bytes})
	}
	return sheet(wrappedTitle, w.fields(), blocks)
}

// ParseWrapped reads the file, strictly.
func ParseWrapped(text []byte) (Wrapped, error) {
	var w Wrapped
	got, blocks, err := parseSheet(text, wrappedTitle, wrappedWhat, namesOf(w.fields()))
	if err != nil {
		return w, err
	}
	w = Wrapped{
		Request: got["request"], SHA256: got["request SHA-256"], Key: got["key"], HSM: got["HSM"], Serial: got["HSM serial"], Firmware: got["HSM firmware"],
		Material: got["material"], Algorithm: got["wrapping algorithm"], Mechanism: got["mechanism"], Log: got["log"], Records: got["log records"], MAC: got["MAC of the request"],
	}
	if w.At, err = parseMoment(got["wrapped at"]); err != nil {
		return Wrapped{}, &FileError{wrappedWhat, err.Error()}
	}
	for i, b := range blocks {
		switch {
		case b.kind == publicBlock && i == 0:
			w.Public = b.bytes
		case b.kind == wrappedBlock && len(w.Keys) < len(names):
			w.Keys = append(w.Keys, WrappedKey{got[names[len(w.Keys)][0]], b.bytes})
		default:
			return Wrapped{}, &FileError{wrappedWhat, "it has a block too many, or of another kind: " + b.kind}
		}
	}
	again, err := w.Text()
	if err := same(text, again, err, wrappedWhat); err != nil {
		return Wrapped{}, err
	}
	return w, nil
}

func namesOf(fields []field) []string {
	var out []string
	for _, f := range fields {
		out = append(out, f.name)
	}
	return out
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func parseMoment(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is not a time such as 2030-01-31T12:00:00Z", s)
	}
	return t.UTC(), nil
}

// Digest is the SHA-256 of a request's text, as files name it.
func Digest(request []byte) string { return hex.EncodeToString(approval.Digest(request)) }

// MismatchError says that two files do not belong together.
type MismatchError struct{ Reason string }

func (e *MismatchError) Error() string { return e.Reason }

// Class is "caller".
func (e *MismatchError) Class() string { return "caller" }

// Belongs holds that the tokens are those of the request.
func (t Tokens) Belongs(q approval.Request, text []byte) error {
	switch {
	case t.Request != q.ID:
		return &MismatchError{fmt.Sprintf("the import tokens are those of request %s, and this is request %s: two ceremonies were mixed up", t.Request, q.ID)}
	case t.SHA256 != Digest(text):
		return &MismatchError{fmt.Sprintf("the import tokens are those of another text of request %s: the request was changed", q.ID)}
	case len(t.Tokens) != len(q.WrappingKeys):
		return &MismatchError{fmt.Sprintf("there are %d import tokens for %d wrapping keys", len(t.Tokens), len(q.WrappingKeys))}
	case !t.ValidTo.Equal(q.ParametersValidTo):
		return &MismatchError{"the import tokens and the request do not expire at the same time"}
	}
	return nil
}

// Belongs holds that the wrapped key is that of the request, under the request's own keys.
func (w Wrapped) Belongs(q approval.Request, text []byte) error {
	switch {
	case w.Request != q.ID:
		return &MismatchError{fmt.Sprintf("the wrapped key is that of request %s, and this is request %s: two ceremonies were mixed up", w.Request, q.ID)}
	case w.SHA256 != Digest(text):
		return &MismatchError{fmt.Sprintf("the key was wrapped for another text of request %s: the request was changed after it went into the room, or before", q.ID)}
	case w.Key != q.Key, w.Algorithm != q.Algorithm:
		return &MismatchError{fmt.Sprintf("the room wrapped %s by %s, and the request says %s by %s", w.Key, w.Algorithm, q.Key, q.Algorithm)}
	case q.Serial != "" && w.Serial != q.Serial:
		return &MismatchError{fmt.Sprintf("the key was wrapped in the HSM %s, and the request says %s", w.Serial, q.Serial)}
	case len(w.Keys) != len(q.WrappingKeys):
		return &MismatchError{fmt.Sprintf("the room wrapped the key %d times, and the request has %d wrapping keys", len(w.Keys), len(q.WrappingKeys))}
	}
	for i, k := range w.Keys {
		if want := approval.Fingerprint(q.WrappingKeys[i]); k.WrappingKey != want {
			return &MismatchError{fmt.Sprintf("the key was wrapped under the public key %s, and the request has %s: it was swapped", k.WrappingKey, want)}
		}
	}
	return nil
}

// Times of a request that has wrapping keys.
const (
	RoomMargin   = 15 * time.Minute // so much must be left when the key is wrapped, to carry it out and upload it
	UploadMargin = time.Minute
)

// InTime holds that the wrapping keys can still be used, with something to spare.
func InTime(q approval.Request, now time.Time, margin time.Duration) error {
	left := q.ParametersValidTo.Sub(now)
	switch {
	case q.ParametersValidTo.IsZero():
		return &MismatchError{"the request does not say until when KMS takes what is wrapped under its keys"}
	case left <= 0:
		return &MismatchError{fmt.Sprintf("the import parameters expired at %s, and it is %s now: KMS would refuse the key; fetch new ones (hsmbridge ceremony fetch), and have that request signed", moment(q.ParametersValidTo), moment(now))}
	case left < margin:
		return &MismatchError{fmt.Sprintf("the import parameters expire in %s, at %s, and at least %s must be left: fetch new ones (hsmbridge ceremony fetch), and have that request signed", left.Round(time.Second), moment(q.ParametersValidTo), margin)}
	case !now.Before(q.ValidUntil):
		return &MismatchError{fmt.Sprintf("the request was valid until %s, and it is %s now: ask again", moment(q.ValidUntil), moment(now))}
	}
	return nil
}

// checkKeys holds that the request's wrapping keys are what its text says of them.
func checkKeys(q approval.Request) error {
	if len(q.WrappingKeys) == 0 {
		return &MismatchError{"the request has no wrapping public key: it was not made for a ceremony (hsmbridge ceremony fetch)"}
	}
	seen := map[string]bool{}
	for _, der := range q.WrappingKeys {
		key, err := publicKey(der)
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("RSA_%d", key.N.BitLen()); q.WrappingSpec != want {
			return &MismatchError{fmt.Sprintf("the request says %s, and its wrapping key is %s", q.WrappingSpec, want)}
		}
		if seen[string(der)] {
			return &MismatchError{"the two wrapping keys of the request are the same one"}
		}
		seen[string(der)] = true
	}
	return nil
}
