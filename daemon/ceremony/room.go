package ceremony

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// Token is what the room needs of the HSM. [hsmbridge/hsm.Token] has these methods.
type Token interface {
	Identity() wrapping.TokenIdentity
	Find(ctx context.Context, object pkcs11uri.URI) (wrapping.Key, error)
	Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error)
	Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error)
	PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error)
	MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error)
	CheckValue(ctx context.Context, key wrapping.Key) (string, error)
}

// Trusted wraps a key that may be wrapped only under one that the security officer trusts.
type Trusted func(ctx context.Context, object pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error)

// Room is one ceremony beside the HSM. Its steps are called in the order of its methods; [Room.Wrap] checks again what those before it checked.
type Room struct {
	Config     *configs.Config
	Text       []byte // the request
	Signatures [][]byte
	Token      Token
	Trusted    Trusted // nil: the key is wrapped as any other
	Log        *Log
	Now        func() time.Time
	People     string // who is there
	DryRun     bool   // nothing is wrapped
	Again      bool   // people have seen that the log has wraps whose result is not here, and want another one

	request  approval.Request
	key      configs.Key
	object   wrapping.Key
	plan     wrapping.Plan
	material string
	decision approval.Decision
}

// Open reads the request and holds that it is one for this room: of a key in its configuration, with wrapping keys that are what it says.
func (r *Room) Open() (approval.Request, error) {
	var err error
	if r.request, err = approval.Parse(r.Text); err != nil {
		return r.request, err
	}
	q := r.request
	k, ok := r.Config.Key(q.Key)
	switch {
	case q.Purpose != approval.Import:
		return q, &MismatchError{fmt.Sprintf("the request is one to %s: in the room only imports are prepared", q.Purpose)}
	case !ok:
		return q, &MismatchError{fmt.Sprintf("the room's configuration has no key %q", q.Key)}
	case string(k.KeySpec) != q.KeySpec:
		return q, &MismatchError{fmt.Sprintf("the request is for a key of spec %s, and the room's configuration says %s", q.KeySpec, k.KeySpec)}
	case !destined(k, q.Destination):
		return q, &MismatchError{fmt.Sprintf("the destination of the request, %s, is none of %s in the room's configuration: it was changed", q.Destination, q.Key)}
	case q.Object != "" && q.Object != k.URI.String():
		return q, &MismatchError{fmt.Sprintf("the request names the object %s, and the room's configuration %s", q.Object, k.URI)}
	}
	r.key = k
	if err := checkKeys(q); err != nil {
		return q, err
	}
	return q, nil
}

// InTime holds that the wrapping keys can still be used, with time to carry the result out and upload it.
func (r *Room) InTime() error { return InTime(r.request, r.Now(), RoomMargin) }

func destined(k configs.Key, arn string) bool {
	for _, d := range k.Destinations {
		if d.ARN == arn {
			return true
		}
	}
	return false
}

// Approved decides whether officers approved the request. needed is false for a key that needs no approval.
func (r *Room) Approved() (d approval.Decision, needed bool, err error) {
	rules, needed := r.Config.ApprovalFor(r.key)
	if !needed {
		return d, false, nil
	}
	policy, err := rules.Policy()
	if err != nil {
		return d, true, err
	}
	if life := r.request.ValidUntil.Sub(r.request.AskedAt); life > rules.ValidFor.Duration() {
		return d, true, &MismatchError{fmt.Sprintf("the request can be used for %s, and the room's configuration allows %s (approval.valid_for)", life, rules.ValidFor)}
	}
	if r.decision, err = policy.Decide(r.Text, r.Signatures, r.Now()); err != nil {
		return d, true, err
	}
	return r.decision, true, r.decision.Err()
}

// CheckToken holds that the HSM is the one that the request names.
func (r *Room) CheckToken() (wrapping.TokenIdentity, error) {
	id, q := r.Token.Identity(), r.request
	if q.Serial != "" && q.Serial != id.Serial {
		return id, &MismatchError{fmt.Sprintf("the request is for the HSM with serial %s, and this one has %s", q.Serial, id.Serial)}
	}
	return id, nil
}

// FindKey finds the key object and holds that it is the one that the request names.
func (r *Room) FindKey(ctx context.Context) (wrapping.Key, string, error) {
	var err error
	if r.object, err = r.Token.Find(ctx, r.key.URI); err != nil {
		return r.object, "", err
	}
	if r.object.KeySpec != r.key.KeySpec {
		return r.object, "", &MismatchError{fmt.Sprintf("the object %q is a %s of %d bits, and the request is for %s", r.object.Label, r.object.KeyType, r.object.Bits, r.key.KeySpec)}
	}
	if r.material, err = Identify(ctx, r.Token, r.object); err != nil {
		return r.object, "", err
	}
	if q := r.request; q.Material != "" && q.Material != r.material {
		return r.object, r.material, &MismatchError{fmt.Sprintf("the request is for the key with %s, and the object in this token has %s: it is another key", q.Material, r.material)}
	}
	return r.object, r.material, nil
}

// Identify is [wrapping.Identify]; it is empty also where the key, or the token, makes no HMAC: it can be wrapped all the same.
func Identify(ctx context.Context, t wrapping.Identifying, key wrapping.Key) (string, error) {
	which, err := wrapping.Identify(ctx, t, key, key.KeySpec)
	var classed interface{ Class() string }
	if key.KeySpec.Kind() == wrapping.KindHMAC && errors.As(err, &classed) && classed.Class() == "caller" {
		return "", nil
	}
	return which, err
}

// CannotError says that the token cannot wrap by the algorithm of the request, and what to fetch instead.
type CannotError struct {
	Key, Destination, Asked string
	Can                     []wrapping.Plan
	Why                     string
}

func (e *CannotError) Error() string {
	s := fmt.Sprintf("this token cannot wrap %s by %s: %s; ", e.Key, e.Asked, e.Why)
	if len(e.Can) == 0 {
		return s + "it can wrap it by no algorithm that KMS takes: hsmbridge probe says why"
	}
	p := e.Can[0]
	return s + fmt.Sprintf("fetch the parameters again with hsmbridge ceremony fetch %s --algorithm %s --wrapping-key-spec %s (in the console: the wrapping algorithm %s and the wrapping key spec %s)",
		e.Key, p.Algorithm, p.WrappingKeySpec, p.Algorithm, p.WrappingKeySpec)
}

// Class is "caller".
func (e *CannotError) Class() string { return "caller" }

// Choose probes the token and finds how it wraps by the algorithm that the request allows.
func (r *Room) Choose(ctx context.Context) (wrapping.Plan, error) {
	d := configs.Destination{ARN: r.request.Destination}
	list, err := Can(ctx, r.Token, r.key.KeySpec, r.Config.Wrapping.Policy(d.Partition()))
	if err != nil {
		return wrapping.Plan{}, err
	}
	q := r.request
	for _, p := range list {
		if string(p.Algorithm) == q.Algorithm && string(p.WrappingKeySpec) == q.WrappingSpec {
			r.plan = p
			return p, nil
		}
	}
	return wrapping.Plan{}, &CannotError{
		Key: q.Key, Destination: q.Destination, Asked: q.Algorithm + " under " + q.WrappingSpec, Can: list, Why: "its own trial shows no way that gives what KMS opens",
	}
}

// Can lists how a token can wrap keys of a spec, best first.
func Can(ctx context.Context, t Token, spec wrapping.KeySpec, policy wrapping.Policy) ([]wrapping.Plan, error) {
	caps, err := t.Probe(ctx, spec.Representative())
	if err != nil {
		return nil, err
	}
	return wrapping.Select(spec, caps, policy).Plans, nil
}

const wrapKind audit.Kind = "ceremony-wrap"

// Wrap has the HSM wrap the key under each wrapping key of the request. What was wrapped before is never wrapped once more unawares: see Again. Immediately before each wrap it checks again: the request, its
// times, the approvals, the token, the object. Without a record of it in the log nothing is wrapped.
func (r *Room) Wrap(ctx context.Context) (Wrapped, error) {
	w := Wrapped{
		Request: r.request.ID, SHA256: Digest(r.Text), Key: r.request.Key, Algorithm: r.request.Algorithm, Mechanism: r.plan.Mechanism.String(), Log: Origin(r.request.ID),
	}
	if r.plan.Algorithm == "" || r.object.Label == "" && len(r.object.ID) == 0 {
		return w, &MismatchError{"the steps before were not done"}
	}
	if begun, _ := r.Log.Wraps(); len(begun) > 0 && !r.Again {
		return w, &MismatchError{fmt.Sprintf("the log says that the HSM was asked for this wrap before, at %s, and its result is not here: nothing more was wrapped", moment(begun[0].Time))}
	}
	for i, der := range r.request.WrappingKeys {
		if err := r.again(ctx); err != nil {
			return w, err
		}
		pub, err := publicKey(der)
		if err != nil {
			return w, err
		}
		fingerprint := approval.Fingerprint(der)
		if err := r.record(wrapKind, fmt.Sprintf("the key is wrapped next (%d of %d)", i+1, len(r.request.WrappingKeys)), func(s *audit.Step) {
			s.Key, s.Mechanism = fingerprint, r.plan.Mechanism.String()
		}); err != nil {
			return w, err
		}
		out, err := r.wrap(ctx, pub)
		if err != nil {
			return w, err
		}
		sum := sha256.Sum256(out)
		if err := r.record(wrapKind, fmt.Sprintf("the HSM wrapped the key, %d bytes", len(out)), func(s *audit.Step) {
			s.Key, s.FileSHA = fingerprint, hex.EncodeToString(sum[:])
		}); err != nil {
			return w, err
		}
		w.Keys = append(w.Keys, WrappedKey{fingerprint, out})
	}
	id := r.Token.Identity()
	w.At, w.HSM, w.Serial, w.Firmware, w.Material = r.Now().UTC().Truncate(time.Second), hsmName(id), approval.OneLine(id.Serial), approval.OneLine(id.Firmware), r.material
	if err := r.proof(ctx, &w); err != nil {
		return w, err
	}
	var err error
	w.Records, err = r.Log.Place()
	return w, err
}

func (r *Room) wrap(ctx context.Context, pub *rsa.PublicKey) ([]byte, error) {
	if r.Trusted == nil {
		return r.Token.Wrap(ctx, r.object, pub, r.plan)
	}
	out, err := r.Trusted(ctx, r.key.URI, pub, r.plan)
	if err != nil {
		return nil, err
	}
	// The object was found anew behind two logins, which take people minutes.
	if err := r.sameKey(ctx); err != nil {
		clear(out)
		return nil, fmt.Errorf("what was wrapped was thrown away: %w", err)
	}
	return out, nil
}

// sameKey finds the object anew and holds that it is still the one that people compared.
func (r *Room) sameKey(ctx context.Context) error {
	before := r.material
	if _, now, err := r.FindKey(ctx); err != nil {
		return err
	} else if now != before {
		r.material = before
		return &MismatchError{fmt.Sprintf("the object in the token is another one than was compared: it has %s now, and had %s", now, before)}
	}
	return nil
}

// again is everything that must hold at the moment of a wrap.
func (r *Room) again(ctx context.Context) error {
	if r.DryRun {
		return &MismatchError{"this is a dry run: nothing is wrapped"}
	}
	if _, err := r.Open(); err != nil {
		return err
	}
	if err := r.InTime(); err != nil {
		return err
	}
	if _, _, err := r.Approved(); err != nil {
		return err
	}
	if _, err := r.CheckToken(); err != nil {
		return err
	}
	return r.sameKey(ctx) // also a handle that is in date: a wrap under a trusted key logs out and in again
}

// proof adds what shows later that KMS holds the same key, where a second wrap does not.
func (r *Room) proof(ctx context.Context, w *Wrapped) error {
	if r.Trusted != nil { // the handle is out of date
		var err error
		if r.object, err = r.Token.Find(ctx, r.key.URI); err != nil {
			return err
		}
	}
	switch r.key.KeySpec.Kind() {
	case wrapping.KindHMAC:
		mac, err := r.Token.MAC(ctx, r.object, approval.Digest(r.Text))
		if err != nil {
			return nil //nolint:nilerr // the import is unproved then, which the upload says
		}
		w.MAC = hex.EncodeToString(mac)
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		public, err := r.Token.PublicKey(ctx, r.object)
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		w.Public = public
	case wrapping.KindSymmetric, wrapping.KindRefused:
	}
	return nil
}

// record adds a step to the room's log, with what is the same in all.
func (r *Room) record(kind audit.Kind, message string, more func(*audit.Step)) error {
	s := audit.Step{Request: r.request.ID, SHA256: Digest(r.Text), Person: r.People}
	if r.Token != nil {
		id := r.Token.Identity()
		s.HSM, s.Serial, s.Firmware = hsmName(id), approval.OneLine(id.Serial), approval.OneLine(id.Firmware)
	}
	if more != nil {
		more(&s)
	}
	return r.Log.Add(kind, r.request.Key, r.request.Destination, message, s)
}

// Approval adds an officer's signature, so that the log shows which ones counted.
func (r *Room) Approval(v approval.Verdict, signature []byte) error {
	sum := sha256.Sum256(signature)
	return r.record("ceremony-check", "an officer's signature counts: "+v.Officer, func(s *audit.Step) {
		s.Detail, s.FileSHA = v.Key, hex.EncodeToString(sum[:])
	})
}

// Record adds a step that the screens took.
func (r *Room) Record(kind audit.Kind, message, detail string) error {
	return r.record(kind, message, func(s *audit.Step) { s.Detail = approval.OneLine(detail) })
}

func hsmName(id wrapping.TokenIdentity) string {
	return approval.OneLine(id.Manufacturer + " " + id.Model)
}

// publicKey reads a wrapping public key.
func publicKey(der []byte) (*rsa.PublicKey, error) {
	const what, exponent = "wrapping public key", 65537
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, &FileError{what, err.Error()}
	}
	pub, ok := k.(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, &FileError{what, "it is not an RSA key"}
	case pub.E != exponent:
		return nil, &FileError{what, fmt.Sprintf("its exponent is %d, and KMS's is %d", pub.E, exponent)}
	}
	return pub, nil
}
