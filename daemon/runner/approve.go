package runner

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// Codes of approvals.
const (
	CodeApproval      = "ApprovalNeeded"
	codeRejected      = "Rejected"
	codeRequestClosed = "RequestClosed"
	codeChanged       = "ConfigurationChanged"
)

// StepAllowed is recorded immediately before a wrap that officers approved.
const StepAllowed importer.Step = "allowed"

// gated is a token that wraps only what was allowed a moment ago: each permission is for one key, one wrapping public key and one
// mechanism, and for one wrap.
type gated struct {
	importer.Token
	mu      sync.Mutex
	allowed map[string]bool
}

func permission(key wrapping.Key, pub *rsa.PublicKey, algorithm, mechanism string) string {
	n := sha256.Sum256(pub.N.Bytes())
	return strings.Join([]string{key.Label, hex.EncodeToString(key.ID), hex.EncodeToString(n[:]), algorithm, mechanism}, "\x00")
}

func (g *gated) allow(a importer.Act) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.allowed == nil {
		g.allowed = map[string]bool{}
	}
	g.allowed[permission(a.Key, a.Parameters.PublicKey, string(a.Plan.Algorithm), a.Plan.Mechanism)] = true
}

// Wrap wraps what was allowed.
func (g *gated) Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	p := permission(key, pub, string(plan.Algorithm), plan.Mechanism.String())
	g.mu.Lock()
	ok := g.allowed[p]
	delete(g.allowed, p)
	g.mu.Unlock()
	if !ok {
		return nil, &Error{ErrCode: codeRejected, ErrClass: "caller", Message: "a wrap was refused that nothing allowed a moment before; this is a mistake in hsmbridge: report it"}
	}
	return g.Token.Wrap(ctx, key, pub, plan)
}

// current is the configuration of this moment, if it still says about the act what the job began with.
func (t *task) current(a importer.Act) (*configs.Config, configs.Key, error) {
	c := t.Config()
	k, ok := c.Key(t.job.Key)
	if !ok || k.Name != a.Plan.Key {
		return c, k, &Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: t.job.Key + " is no longer in the configuration"}
	}
	if t.differs(c, k) {
		return c, k, &Error{ErrCode: codeChanged, ErrClass: "caller", Message: "the configuration of " + k.Name + " has changed since the job began, so nothing was wrapped; it begins anew by what the configuration says now"}
	}
	return c, k, nil
}

// differs says that a configuration does not say about the key what the attempt began with. Who approves is decided anew each time and may differ.
func (t *task) differs(c *configs.Config, k configs.Key) bool {
	if c == t.config || t.config == nil {
		return false
	}
	was, is := t.key, k
	was.Approval, is.Approval = configs.Approval{}, configs.Approval{}
	before, _ := t.config.Token(t.on)
	now, _ := c.Token(t.on)
	return !reflect.DeepEqual(was, is) || !reflect.DeepEqual(before, now) || !reflect.DeepEqual(t.config.KMS, c.KMS) || !reflect.DeepEqual(t.config.Wrapping, c.Wrapping)
}

// authorize decides whether a wrap may be done, by the configuration and the signatures of this moment. What nobody has approved yet is
// asked for, and the job waits.
func (t *task) authorize(ctx context.Context, g *gated, a importer.Act) error {
	c, k, err := t.current(a)
	if err != nil {
		return err
	}
	if err := t.same(ctx, g, a); err != nil {
		return err
	}
	rules, needed := c.ApprovalFor(k)
	if !needed {
		if a.Now {
			g.allow(a)
		}
		return nil
	}
	policy, err := rules.Policy()
	if err != nil {
		return &Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: "the approval of " + k.Name + " cannot be decided", Err: err}
	}
	want, err := t.wanted(ctx, g, k, a)
	if err != nil {
		return err
	}
	list, err := t.Store.Requests(ctx, store.RequestFilter{Key: k.Name, Destination: a.Plan.Destination})
	if err != nil {
		return unwritten(err)
	}
	var waits *store.Request
	var so approval.Decision
	for _, r := range list {
		asked, covers := covering(r, want, a, rules, t.job.ID)
		switch {
		case !covers:
		case r.State == store.RequestRejected && asked.Purpose == approval.Import:
			return &Error{ErrCode: codeRejected, ErrClass: "caller", Message: fmt.Sprintf("request %s was rejected: %s; hsmbridge retry %s asks again", r.Name, r.Reason, k.Name)}
		case r.Open():
			d, err := t.decide(ctx, policy, r)
			switch {
			case err != nil:
				return err
			case d.Approved:
				return t.approved(ctx, g, a, r, d)
			case waits == nil && asked.Purpose == approval.Import:
				waits, so = &r, d
			}
		}
	}
	if a.Optional() {
		return importer.ErrNotAllowed
	}
	if waits == nil {
		if waits, err = t.askFor(ctx, want, rules); err != nil {
			return err
		}
		if so, err = t.decide(ctx, policy, *waits); err != nil {
			return err
		}
	}
	e := &Error{
		ErrCode: CodeApproval, ErrClass: importer.ClassApproval,
		Message: fmt.Sprintf("%s waits for officers: %s; they run hsmbridge show %s and hsmbridge approve %s; valid until %s",
			k.Name, so.Message, waits.Name, waits.Name, waits.ValidUntil.Format(time.RFC3339)),
	}
	if waits.State == store.RequestOpen {
		e.Waits = waits.Name
	}
	return e
}

// decide says what the signatures of a request are worth now.
func (r *Runner) decide(ctx context.Context, policy approval.Policy, q store.Request) (approval.Decision, error) {
	list, err := r.Store.Signatures(ctx, q.ID)
	if err != nil {
		return approval.Decision{}, unwritten(err)
	}
	signed := make([][]byte, len(list))
	for i, s := range list {
		signed[i] = []byte(s.Signature)
	}
	return policy.Decide([]byte(q.Text), signed, r.Now())
}

// approved lets the wrap be done. Immediately before it that is written down.
func (t *task) approved(ctx context.Context, g *gated, a importer.Act, r store.Request, d approval.Decision) error {
	if !a.Now {
		return nil
	}
	officers := strings.Join(d.People(), ", ")
	e := store.Event{
		Kind: string(StepAllowed), Time: t.Now(), Destination: a.Plan.Destination, Message: "approved by " + officers,
		Fields: map[string]string{"request": r.Name, "purpose": r.Purpose, "officers": officers, "sha256": hex.EncodeToString(approval.Digest([]byte(r.Text)))},
	}
	switch err := t.Store.Allow(ctx, t.lease, t.job, r.ID, e); {
	case errors.Is(err, store.ErrRequestClosed):
		return &Error{ErrCode: codeRequestClosed, ErrClass: "caller", Message: "request " + r.Name + " was closed in this moment", Err: err}
	case err != nil:
		return unwritten(err)
	}
	if t.AfterStep != nil {
		t.AfterStep(t.job, string(StepAllowed))
	}
	g.allow(a)
	return nil
}

// askFor makes the request of the job for officers.
func (t *task) askFor(ctx context.Context, want approval.Request, rules configs.Approval) (*store.Request, error) {
	want.Purpose, want.AskedBy, want.Why = approval.Import, approval.OneLine(t.job.RequestedBy), t.why()
	q, err := t.newRequest(want, rules.ValidFor.Duration(), t.job.ID)
	if err != nil {
		return nil, err
	}
	message := fmt.Sprintf("officers are asked to approve: %s %s for %s", want.Action, want.Key, want.Destination)
	if err := t.Store.AddRequest(ctx, t.lease, q, message); err != nil {
		return nil, unwritten(err)
	}
	list, err := t.Store.Requests(ctx, store.RequestFilter{Name: q.Name})
	if err != nil || len(list) == 0 {
		return nil, unwritten(errors.Join(err, errors.New("the request that was just written is not there")))
	}
	return &list[0], nil
}

// newRequest names a request and writes its text.
func (r *Runner) newRequest(want approval.Request, validFor time.Duration, job int64) (store.Request, error) {
	var err error
	if want.ID, err = approval.NewID(rand.Reader); err != nil {
		return store.Request{}, err
	}
	want.AskedAt = r.Now().UTC().Truncate(time.Second)
	want.ValidUntil = want.AskedAt.Add(validFor).Truncate(time.Second)
	text, err := want.Text()
	if err != nil {
		return store.Request{}, &Error{ErrCode: "NotARequest", ErrClass: "caller", Message: "the request for approval cannot be written", Err: err}
	}
	return store.Request{
		Name: want.ID, Purpose: string(want.Purpose), Key: want.Key, Destination: want.Destination, Plan: want.Plan, Job: job, Text: string(text),
		State: store.RequestOpen, AskedBy: want.AskedBy, Created: want.AskedAt, ValidUntil: want.ValidUntil,
	}, nil
}

// why says to officers why the job is there.
func (t *task) why() string {
	if t.job.Options.Why != "" {
		return approval.OneLine(t.job.Options.Why)
	}
	switch schedule.Reason(t.job.Reason) {
	case schedule.First:
		return "the first import"
	case schedule.Renew:
		return "the material in KMS expires soon"
	case schedule.Drill:
		return "drill: shows that the HSM's copy still works"
	case schedule.Schedule:
		return "the schedule of the key"
	case schedule.Rotate:
		return "rotation is due"
	default:
		return approval.OneLine(t.job.Reason)
	}
}

// wanted is what officers would have to approve for the act, without who asked, when and why.
func (t *task) wanted(ctx context.Context, token importer.Token, k configs.Key, a importer.Act) (approval.Request, error) {
	material, err := wrapping.Identify(ctx, token, a.Key, k.KeySpec)
	if err != nil {
		return approval.Request{}, fmt.Errorf("tell officers which key %s is: %w", k.Name, err)
	}
	endpoint, err := t.endpoint(ctx, k, a)
	if err != nil {
		return approval.Request{}, err
	}
	p := a.Plan
	r := approval.Request{
		Key: k.Name, KeySpec: string(p.Object.KeySpec), HSM: approval.OneLine(p.Token.Manufacturer + " " + p.Token.Model), Serial: approval.OneLine(p.Token.Serial),
		Token: approval.OneLine(p.Token.Label), Firmware: approval.OneLine(p.Token.Firmware),
		Object: (pkcs11uri.URI{Object: a.Key.Label, ID: a.Key.ID}).String(), Material: material,
		Destination: p.Destination, Endpoint: approval.OneLine(endpoint), Action: string(p.Action),
		Algorithm: string(p.Algorithm), WrappingSpec: string(p.WrappingKeySpec), Mechanism: p.Mechanism,
		ImportType: p.ImportType, KeyMaterialID: p.KeyMaterialID, Expires: expiry(p.Expires), Proof: proofText(p), Plan: p.Digest,
	}
	return r, nil
}

func expiry(s string) string {
	if s == "never" {
		return s
	}
	return s + " after the import"
}

func proofText(p importer.Plan) string {
	if p.ProofMethod == importer.ProofMaterialID {
		return string(p.ProofMethod) + ": the key is wrapped a second time, for the same destination"
	}
	return string(p.ProofMethod)
}

// endpoint is where the client of a destination really calls, also when the environment or a profile of the AWS files chose that (AWS_ENDPOINT_URL,
// endpoint_url); empty: AWS's own. Whoever answers there gives the wrapping public key. It is that of the client which the act uses: a reload makes others, which
// may call elsewhere.
func (t *task) endpoint(ctx context.Context, k configs.Key, a importer.Act) (string, error) {
	if a.KMS != nil {
		return a.KMS.Endpoint(), nil
	}
	for _, d := range k.Destinations {
		if d.ARN != a.Plan.Destination {
			continue
		}
		client, err := t.KMS(ctx, d)
		if err != nil {
			return "", err
		}
		return client.Endpoint(), nil
	}
	return "", &Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: a.Plan.Destination + " is no destination of " + k.Name}
}

// sameMaterial are the actions that a standing approval is for.
const sameMaterial = string(importer.ActionReimport) + ", " + string(importer.ActionRestore)

// covering says whether a stored request is one for the act: its text is what would be written for the act now, byte for byte, but for who
// asked, when and why.
func covering(r store.Request, want approval.Request, a importer.Act, rules configs.Approval, job int64) (approval.Request, bool) {
	asked, err := approval.Parse([]byte(r.Text))
	if err != nil || asked.ID != r.Name {
		return asked, false
	}
	want.ID, want.Purpose, want.AskedBy, want.AskedAt, want.ValidUntil, want.Why = asked.ID, asked.Purpose, asked.AskedBy, asked.AskedAt, asked.ValidUntil, asked.Why
	most := rules.ValidFor
	switch asked.Purpose {
	case approval.Import:
		if r.Job != job {
			return asked, false
		}
		if a.Optional() && (asked.KeyMaterialID == "" || asked.KeyMaterialID == a.Plan.HeldID()) {
			// An earlier attempt of the job did the import, and its proof is left.
			want.Action, want.ImportType, want.KeyMaterialID, want.Plan = asked.Action, asked.ImportType, asked.KeyMaterialID, asked.Plan
		}
	case approval.Standing:
		most = rules.Standing
		if !standing(&want, a) {
			return asked, false
		}
	case approval.Revoke, approval.Waive:
		return asked, false
	}
	if asked.ValidUntil.Sub(asked.AskedAt) > most.Duration() {
		return asked, false // longer than the configuration allows now
	}
	text, err := want.Text()
	return asked, err == nil && string(text) == r.Text
}

// standing makes of what one act needs what a standing approval says: the same material into the same KMS key, by the same way.
func standing(want *approval.Request, a importer.Act) bool {
	if a.Plan.Action == importer.ActionImport {
		return false // KMS has none of it: this is no renewal
	}
	want.Action, want.Plan = sameMaterial, ""
	if want.Material == "" {
		return false
	}
	if a.Plan.Object.KeySpec.Kind() != wrapping.KindSymmetric {
		return true
	}
	if a.Plan.Action == importer.ActionKeep {
		want.ImportType, want.KeyMaterialID = "EXISTING_KEY_MATERIAL", a.Plan.HeldID()
	}
	return want.ImportType == "EXISTING_KEY_MATERIAL" && want.KeyMaterialID != ""
}
