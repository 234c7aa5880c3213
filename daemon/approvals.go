package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
)

// policy is what counts for a key now.
func (d *Daemon) policy(ctx context.Context, key string) (configs.Approval, approval.Policy, error) {
	k, err := d.revocable(ctx, key) // that of a key which was taken out of the configuration is the default
	if err != nil {
		return configs.Approval{}, approval.Policy{}, err
	}
	rules, needed := d.config.Load().ApprovalFor(k)
	if !needed {
		return rules, approval.Policy{}, fmt.Errorf("%s needs no approval now (approval:), so nothing waits for one: %w", key, control.ErrRefused)
	}
	p, err := rules.Policy()
	return rules, p, err
}

// Requests lists requests for approval, the latest first.
func (d *Daemon) Requests(ctx context.Context, key string, all bool, limit int) ([]control.Request, error) {
	const most = 1000 // each one's signatures are verified
	list, err := d.store.Requests(ctx, store.RequestFilter{Key: key, Open: !all, Limit: min(limit, most)})
	if err != nil {
		return nil, err
	}
	var out []control.Request
	for _, r := range list {
		q, err := d.describe(ctx, r)
		if err != nil {
			return nil, err
		}
		out = append(out, q)
	}
	return out, nil
}

// Request is one request, with what is different from the last one that was used.
func (d *Daemon) Request(ctx context.Context, name string) (control.Request, error) {
	r, err := d.request(ctx, name)
	if err != nil {
		return control.Request{}, err
	}
	q, err := d.describe(ctx, r)
	if err != nil {
		return q, err
	}
	now, err := approval.Parse([]byte(r.Text))
	if err != nil {
		return q, fmt.Errorf("the request %s in the database was changed: %w", name, err)
	}
	before, err := d.store.Requests(ctx, store.RequestFilter{Key: r.Key, Destination: r.Destination})
	if err != nil {
		return q, err
	}
	for _, b := range before {
		if b.ID >= r.ID || b.Purpose != r.Purpose || b.State != store.RequestUsed {
			continue
		}
		if old, err := approval.Parse([]byte(b.Text)); err == nil {
			q.Before, q.BeforeAt, q.Differences = b.Name, b.Ended, approval.Differences(old, now)
			break
		}
	}
	return q, nil
}

func (d *Daemon) request(ctx context.Context, name string) (store.Request, error) {
	list, err := d.store.Requests(ctx, store.RequestFilter{Name: strings.ToUpper(strings.TrimSpace(name))})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("there is no request %s; hsmbridge requests --all lists them: %w", name, control.ErrNotFound)
	}
	if err != nil {
		return store.Request{}, err
	}
	return list[0], nil
}

// describe adds to a request what its signatures are worth now.
func (d *Daemon) describe(ctx context.Context, r store.Request) (control.Request, error) {
	sum := approval.Digest([]byte(r.Text))
	q := control.Request{Request: r, SHA256: hex.EncodeToString(sum), Short: approval.Short(sum)}
	list, err := d.store.Signatures(ctx, r.ID)
	if err != nil {
		return q, err
	}
	var signed [][]byte
	for _, s := range list {
		signed = append(signed, []byte(s.Signature))
		q.Signed = append(q.Signed, s)
	}
	_, policy, err := d.policy(ctx, r.Key)
	switch {
	case errors.Is(err, control.ErrRefused), errors.Is(err, control.ErrNotFound):
		q.Decision.Message = err.Error()
		return q, nil
	case err != nil:
		return q, err
	}
	if q.Decision, err = policy.Decide([]byte(r.Text), signed, d.now()); err != nil {
		return q, fmt.Errorf("the request %s in the database was changed: %w", r.Name, err)
	}
	for _, o := range policy.Officers {
		who := control.Officer{Name: o.Name}
		for _, k := range o.Keys {
			who.Keys = append(who.Keys, k.SHA256())
		}
		q.Officers = append(q.Officers, who)
	}
	return q, nil
}

// Approve takes an officer's signature. Whoever hands it in need not be the officer: the signature says who approves.
func (d *Daemon) Approve(ctx context.Context, actor, name, signature string) (control.Request, error) {
	r, err := d.request(ctx, name)
	if err != nil {
		return control.Request{}, err
	}
	if !r.Open() {
		return control.Request{}, closed(r)
	}
	_, policy, err := d.policy(ctx, r.Key)
	if err != nil {
		return control.Request{}, err
	}
	have, err := d.store.Signatures(ctx, r.ID)
	if err != nil {
		return control.Request{}, err
	}
	one, err := policy.Decide([]byte(r.Text), append(texts(have), []byte(signature)), d.now())
	if err != nil {
		return control.Request{}, fmt.Errorf("the request %s in the database was changed: %w", r.Name, err)
	}
	v := one.Verdicts[len(one.Verdicts)-1]
	if one.Reason == approval.RequestExpired {
		v.Counts, v.Message = false, "request "+r.Name+" is not open any more: "+one.Message
	}
	if !v.Counts {
		return control.Request{}, d.refuseSignature(ctx, actor, r, v, signature)
	}
	e := signedEvent("approval", actor, r, v, signature, v.Officer+" approved it")
	judge := func(all []store.Signature) (store.Judged, error) {
		got, err := policy.Decide([]byte(r.Text), texts(all), d.now())
		return store.Judged{Approved: got.Approved, Officers: strings.Join(got.People(), ", ")}, err
	}
	r, err = d.store.Sign(ctx, r.Name, store.Signature{Officer: v.Officer, Key: v.Key, Signature: signature, HandedBy: actor}, e, judge, d.queue.Enqueue)
	switch {
	case errors.Is(err, store.ErrRequestClosed):
		return control.Request{}, closed(r)
	case err != nil:
		return control.Request{}, err
	}
	d.log.Info("an officer approved a request", zap.String("request", r.Name), zap.String("officer", v.Officer), zap.String("key", r.Key), zap.String("state", string(r.State)))
	if err := d.carryOut(ctx); err != nil {
		return control.Request{}, err
	}
	d.nudge()
	return d.Request(ctx, r.Name)
}

func texts(list []store.Signature) [][]byte {
	var out [][]byte
	for _, s := range list {
		out = append(out, []byte(s.Signature))
	}
	return out
}

func closed(r store.Request) error {
	reason := ""
	if r.Reason != "" {
		reason = " (" + r.Reason + ")"
	}
	return fmt.Errorf("request %s is %s since %s%s: nothing was changed: %w", r.Name, r.State, r.Ended.Format(time.RFC3339), reason, control.ErrRefused)
}

func signedEvent(kind, actor string, r store.Request, v approval.Verdict, signature, message string) store.Event {
	return store.Event{
		Kind: kind, Actor: actor, Message: message,
		Fields: map[string]string{
			"request": r.Name, "sha256": hex.EncodeToString(approval.Digest([]byte(r.Text))), "officer": v.Officer, "key": v.Key, "hardware": yes(v.Hardware),
			"user_presence": yes(v.Present), "user_verification": yes(v.Verified), "signature": signature,
		},
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// Reject takes an officer's signed no.
func (d *Daemon) Reject(ctx context.Context, actor, name, reason, signature string) (control.Request, error) {
	r, err := d.request(ctx, name)
	if err != nil {
		return control.Request{}, err
	}
	if !r.Open() {
		return control.Request{}, closed(r)
	}
	_, policy, err := d.policy(ctx, r.Key)
	if err != nil {
		return control.Request{}, err
	}
	reason = approval.OneLine(reason)
	v, err := policy.Rejected([]byte(r.Text), reason, []byte(signature))
	if err != nil {
		return control.Request{}, fmt.Errorf("the request %s in the database was changed: %w", r.Name, err)
	}
	if !v.Counts {
		return control.Request{}, d.refuseSignature(ctx, actor, r, v, signature)
	}
	e := signedEvent("rejection", actor, r, v, signature, v.Officer+" rejected it: "+reason)
	e.Fields["reason"] = reason
	return d.end(ctx, r, store.RequestRejected, actor, "by "+v.Officer+": "+reason, &e)
}

// Withdraw takes a request back that no job waits for.
func (d *Daemon) Withdraw(ctx context.Context, actor, name, reason string) (control.Request, error) {
	r, err := d.request(ctx, name)
	if err != nil {
		return control.Request{}, err
	}
	switch {
	case !r.Open():
		return control.Request{}, closed(r)
	case r.Job != 0:
		return control.Request{}, fmt.Errorf("job %d waits for request %s and would ask again: end the job (hsmbridge jobs cancel %d): %w", r.Job, r.Name, r.Job, control.ErrRefused)
	}
	return d.end(ctx, r, store.RequestWithdrawn, actor, approval.OneLine("by "+actor+": "+reason), nil)
}

func (d *Daemon) end(ctx context.Context, r store.Request, state store.RequestState, actor, reason string, e *store.Event) (control.Request, error) {
	r, err := d.store.EndRequest(ctx, r.Name, state, actor, reason, e, d.queue.Enqueue)
	switch {
	case errors.Is(err, store.ErrRequestClosed):
		return control.Request{}, closed(r)
	case err != nil:
		return control.Request{}, err
	}
	d.log.Info("a request was closed", zap.String("request", r.Name), zap.String("state", string(state)), zap.String("reason", reason))
	d.nudge()
	return d.Request(ctx, r.Name)
}

// Standing asks officers to approve renewals of the same material in advance: one request for each destination and key material.
func (d *Daemon) Standing(ctx context.Context, actor, key string, in control.StandingRequest) ([]control.Request, error) {
	rules, _, err := d.policy(ctx, key)
	if err != nil {
		return nil, err
	}
	var length configs.Duration
	if err := length.UnmarshalText([]byte(in.For)); err != nil || length == configs.Never || length <= 0 {
		return nil, fmt.Errorf("for: %q is not a duration such as 90d: %w", in.For, control.ErrRefused)
	}
	switch {
	case rules.Standing == 0:
		return nil, fmt.Errorf("the configuration does not allow standing approvals for %s (approval.standing): %w", key, control.ErrRefused)
	case length > rules.Standing:
		return nil, fmt.Errorf("%s is longer than the configuration allows (approval.standing: %s): %w", length, rules.Standing, control.ErrRefused)
	case strings.TrimSpace(in.Why) == "":
		return nil, fmt.Errorf("a standing approval needs a reason (why): %w", control.ErrRefused)
	}
	if err := short("why", in.Why); err != nil {
		return nil, err
	}
	list, err := d.runner.AskStanding(ctx, actor, key, length.Duration(), in.Why)
	if errors.Is(err, store.ErrRevoked) {
		return nil, fmt.Errorf("%w; no officer is asked: %w", err, control.ErrRefused)
	}
	if err != nil {
		return nil, err
	}
	return d.named(ctx, list)
}

func (d *Daemon) named(ctx context.Context, list []store.Request) ([]control.Request, error) {
	var out []control.Request
	for _, r := range list {
		q, err := d.Request(ctx, r.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, q)
	}
	return out, nil
}

// ask asks officers about something that is done by a person's command and not by a job. One that is open already is the one.
func (d *Daemon) ask(ctx context.Context, purpose approval.Purpose, actor, key, reason string) error {
	rules, _, err := d.policy(ctx, key)
	if err != nil {
		return err
	}
	list, err := d.store.Requests(ctx, store.RequestFilter{Key: key, Open: true})
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Purpose == string(purpose) {
			return &control.WaitsError{Request: r.Name, Message: fmt.Sprintf("officers are asked about it already (request %s, by %s); nothing is done before they approve: hsmbridge show %s", r.Name, r.AskedBy, r.Name)}
		}
	}
	k, err := d.revocable(ctx, key)
	if err != nil {
		return err
	}
	r, err := d.runner.Ask(ctx, purpose, actor, k, rules.ValidFor.Duration(), reason)
	if err != nil {
		return err
	}
	return &control.WaitsError{Request: r.Name, Message: fmt.Sprintf("officers have to approve it, and were asked (request %s, valid until %s); nothing is done before that: hsmbridge show %s", r.Name, r.ValidUntil.Format(time.RFC3339), r.Name)}
}

// carryOut does what officers approved and no job waits for: revocations and waivers.
func (d *Daemon) carryOut(ctx context.Context) error {
	list, err := d.store.Requests(ctx, store.RequestFilter{Open: true})
	if err != nil {
		return err
	}
	for _, r := range list {
		purpose := approval.Purpose(r.Purpose)
		if r.State != store.RequestApproved || purpose != approval.Revoke && purpose != approval.Waive {
			continue
		}
		q, err := d.describe(ctx, r) // decided anew
		if err != nil {
			return err
		}
		asked, err := approval.Parse([]byte(r.Text))
		if err != nil || !q.Decision.Approved || asked.Key != r.Key || asked.Purpose != purpose {
			continue
		}
		k, err := d.revocable(ctx, r.Key)
		if err != nil {
			return err
		}
		if !runner.StillAbout(asked, k) {
			const changed = "the configuration of the key has changed since it was asked (its destinations, key spec or object): ask again; nothing was done"
			if _, err := d.end(ctx, r, store.RequestWithdrawn, d.store.Daemon(), changed, nil); err != nil && !errors.Is(err, control.ErrRefused) {
				return err
			}
			continue
		}
		reason := fmt.Sprintf("%s (approved by %s, request %s)", asked.Why, strings.Join(q.Decision.People(), ", "), r.Name)
		if purpose == approval.Revoke {
			_, err = d.store.Revoke(ctx, r.Key, r.AskedBy, reason, r.Name, d.queue.Enqueue)
		} else if err = d.store.Waive(ctx, r.Key, r.AskedBy, reason, r.Name); err == nil {
			_, err = d.retry(ctx, r.AskedBy, r.Key)
		}
		if err != nil && !errors.Is(err, store.ErrRequestClosed) {
			return err
		}
	}
	return nil
}

// unwanted lets jobs that wait for officers look at once at a configuration that has their destination no more: they end, and with them the
// requests, so that nobody is asked to sign them.
func (d *Daemon) unwanted(ctx context.Context, c *configs.Config, actor string) error {
	list, err := d.store.Requests(ctx, store.RequestFilter{Open: true})
	if err != nil {
		return err
	}
	for _, r := range list {
		k, ok := c.Key(r.Key)
		if r.Job == 0 || r.Destination == "" || ok && slices.ContainsFunc(k.Destinations, func(d configs.Destination) bool { return d.ARN == r.Destination }) {
			continue
		}
		if _, err := d.store.Hurry(ctx, r.Job, actor, d.queue.Enqueue); err != nil {
			return err
		}
	}
	return nil
}
