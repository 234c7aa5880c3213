package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// signingToken is a token that signs checkpoints. [hsmbridge/hsm.Token] has these methods.
type signingToken interface {
	importer.Token
	GenerateSigning(ctx context.Context, label string, id []byte) (wrapping.Key, error)
	SignVerified(ctx context.Context, key wrapping.Key, public, message []byte) ([]byte, error)
}

// auditor signs checkpoints of the audit log and copies the log to places outside. It adds nothing to the log by itself, but the key
// that signs.
type auditor struct {
	store  *store.Store
	tokens *tokens
	config func() *configs.Config
	log    *zap.Logger
	now    func() time.Time
	stdout func(line []byte) error

	signing   sync.Mutex       // one signature at a time
	signed    audit.Checkpoint // the last one that this process signed, whatever the database says
	exporting sync.Mutex       // one place at a time

	mu      sync.Mutex
	problem string           // why the last checkpoint could not be signed
	failed  map[string]error // exports that fail, by name
	tried   time.Time
}

// auditEvery is how often is looked whether something is to be signed or exported.
const auditEvery = 2 * time.Second

// run signs and exports until ctx ends.
func (a *auditor) run(ctx context.Context) {
	changed, stop := a.store.Watch()
	defer stop()
	timer := time.NewTicker(auditEvery)
	defer timer.Stop()
	for {
		a.tick(ctx)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-changed:
			// A burst of records is copied together.
			select {
			case <-ctx.Done():
				return
			case <-time.After(auditEvery / 10):
			}
		}
	}
}

// tick signs if it is time to, and exports what is new.
func (a *auditor) tick(ctx context.Context) {
	if err := a.signIfDue(ctx); err != nil && ctx.Err() == nil {
		a.log.Error("the audit log could not be signed; it is tried again", zap.Error(err))
	}
	for _, e := range a.config().Audit.Export {
		err := a.export(ctx, e)
		a.mu.Lock()
		if a.failed == nil {
			a.failed = map[string]error{}
		}
		before := a.failed[e.Name()]
		a.failed[e.Name()] = err
		a.mu.Unlock()
		switch {
		case ctx.Err() != nil:
		case err != nil && (before == nil || before.Error() != err.Error()):
			a.log.Error("the audit log could not be copied; it is tried again, and nothing is lost", zap.String("to", e.Name()), zap.Error(err))
		case err == nil && before != nil:
			a.log.Info("the audit log is copied again", zap.String("to", e.Name()))
		}
	}
}

// last signs and exports once more, when the daemon ends.
func (a *auditor) last(ctx context.Context) {
	const quick = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	if a.signs() {
		if _, err := a.sign(ctx); err != nil {
			a.log.Warn("the last checkpoint of the audit log could not be signed; the next start does it", zap.Error(err))
		}
	}
	a.tick(ctx)
}

// retrySigning is how long a token is left alone that did not sign.
const retrySigning = 30 * time.Second

// signs says that this daemon signs: it reaches the token with the key. Where it does not, another one has to.
func (a *auditor) signs() bool {
	c := a.config()
	return c.Audit.Token != "" && c.Reach(c.Audit.Token)
}

func (a *auditor) signIfDue(ctx context.Context) error {
	c := a.config().Audit
	if !a.signs() {
		return nil
	}
	size, err := a.store.LastEvent(ctx)
	if err != nil {
		return err
	}
	last, found, err := a.store.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	now := a.now()
	early := last.At.Add(c.Checkpoint())
	a.mu.Lock()
	wait := a.problem != "" && now.Sub(a.tried).Abs() < retrySigning
	a.mu.Unlock()
	if found && (last.Size >= size || now.Before(early) && !last.At.After(now)) || wait {
		return nil
	}
	_, err = a.sign(ctx)
	a.mu.Lock()
	a.tried, a.problem = now, ""
	if err != nil {
		a.problem = err.Error()
	}
	a.mu.Unlock()
	return err
}

// sign signs a checkpoint of the log as it is now. Of several daemons one does it.
func (a *auditor) sign(ctx context.Context) (store.Checkpoint, error) {
	a.signing.Lock()
	defer a.signing.Unlock()
	none := store.Checkpoint{}
	l, err := a.store.Lock(ctx, "audit")
	switch {
	case errors.Is(err, store.ErrLocked): // another daemon does
		last, _, err := a.store.LastCheckpoint(ctx)
		return last, err
	case err != nil:
		return none, err
	}
	defer l.Release(context.WithoutCancel(ctx)) //nolint:errcheck // it ends by itself
	const most = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	token, key, public, err := a.key(ctx)
	if err != nil {
		return none, err
	}
	earlier, err := a.earlier(ctx)
	if err != nil {
		return none, err
	}
	c, err := a.store.TreeSince(ctx, earlier)
	if err != nil {
		return none, fmt.Errorf("nothing is signed: %w; keep the database as it is, compare it with a copy by hsmbridge audit verify, and go on with a backup", err)
	}
	if a.signed.Size > 0 && (a.signed.Size != earlier.Size || a.signed.Root != earlier.Root) { // also when somebody took the checkpoints since out of the database
		if _, err := a.store.TreeSince(ctx, a.signed); err != nil {
			return none, fmt.Errorf("nothing is signed, because the log is not the one that was signed at %s: %w; keep the database as it is, and compare it with a copy by hsmbridge audit verify", a.signed.Time.UTC().Format(time.RFC3339), err)
		}
	}
	changed, err := a.known(ctx, public)
	if err != nil {
		return none, err
	}
	if changed {
		if c, err = a.store.Tree(ctx); err != nil {
			return none, err
		}
	}
	note, err := c.Sign(public, func(message []byte) ([]byte, error) { return token.SignVerified(ctx, key, public, message) })
	if err != nil {
		return none, err
	}
	out := store.Checkpoint{Size: c.Size, At: c.Time, Note: note}
	if err := a.store.AddCheckpoint(ctx, out); err != nil {
		return none, err
	}
	a.signed = c
	a.log.Info("a checkpoint of the audit log was signed", zap.Int64("records", c.Size))
	return out, nil
}

// key finds the key that signs, or makes it where the configuration allows it.
func (a *auditor) key(ctx context.Context) (signingToken, wrapping.Key, []byte, error) {
	c := a.config().Audit
	if c.Token == "" {
		return nil, wrapping.Key{}, nil, fmt.Errorf("the configuration names no key that signs the audit log (audit.token, audit.uri): %w", control.ErrRefused)
	}
	t, err := a.tokens.Get(ctx, c.Token)
	if err != nil {
		return nil, wrapping.Key{}, nil, err
	}
	token, ok := t.(signingToken)
	if !ok {
		return nil, wrapping.Key{}, nil, errors.New("the token does not sign")
	}
	key, err := token.Find(ctx, c.URI)
	if errors.Is(err, wrapping.ErrKeyNotFound) && c.Generate == configs.GenerateIfMissing {
		key, err = token.GenerateSigning(ctx, c.URI.Object, c.URI.ID)
	}
	if err != nil {
		return nil, key, nil, fmt.Errorf("the key that signs the audit log: %w", err)
	}
	if key.Extractable {
		return nil, key, nil, errors.New("the key that signs the audit log may leave the token (CKA_EXTRACTABLE): whoever has it can forge the log; use another one")
	}
	public, err := token.PublicKey(ctx, key)
	if err != nil {
		return nil, key, nil, fmt.Errorf("the public half of the key that signs the audit log: %w", err)
	}
	return token, key, public, nil
}

// known writes down which key signs, when it is another one than before.
func (a *auditor) known(ctx context.Context, public []byte) (changed bool, err error) {
	old, err := a.store.AuditKey(ctx)
	if err != nil || bytes.Equal(old, public) {
		return false, err
	}
	origin, err := a.store.Origin(ctx)
	if err != nil {
		return false, err
	}
	key, err := audit.NewKey(origin, public)
	if err != nil {
		return false, err
	}
	sum := key.SHA256()
	message := "checkpoints of the audit log are signed by this key from now on"
	if len(old) > 0 {
		message += "; another one signed them before"
	}
	return true, a.store.SetAuditKey(ctx, public, store.Event{
		Kind: "audit-key", Message: message, Fields: map[string]string{
			"sha256": hex.EncodeToString(sum[:]), "verifier": fmt.Sprintf("%s+%08x", origin, key.KeyHash()), "public_key": base64.StdEncoding.EncodeToString(public),
		},
	})
}

// earlier is the last checkpoint, which a key has signed that the log names. The zero one: none was signed yet.
func (a *auditor) earlier(ctx context.Context) (audit.Checkpoint, error) {
	last, found, err := a.store.LastCheckpoint(ctx)
	if err != nil || !found {
		return audit.Checkpoint{}, err
	}
	origin, err := a.store.Origin(ctx)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	der, err := a.store.AuditKey(ctx)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	try := func(der []byte) (audit.Checkpoint, error) {
		key, err := audit.NewKey(origin, der)
		if err != nil {
			return audit.Checkpoint{}, err
		}
		return key.Open(last.Note)
	}
	c, err := try(der)
	if err == nil {
		return c, nil
	}
	keys, kerr := a.store.AuditKeys(ctx) // the key was replaced, and nothing signed since
	for _, der := range keys {
		if c, err := try(der); err == nil {
			return c, nil
		}
	}
	return c, errors.Join(fmt.Errorf("nothing is signed, because the last checkpoint in the database is not good: %w; keep the database as it is, and compare it with a copy by hsmbridge audit verify", err), kerr)
}

// state is what there is to say of the log at a glance.
func (a *auditor) state(ctx context.Context) (control.Audit, error) {
	c := a.config().Audit
	size, err := a.store.LastEvent(ctx)
	if err != nil {
		return control.Audit{}, err
	}
	last, _, err := a.store.LastCheckpoint(ctx)
	s := control.Audit{Records: size, Signs: c.Token != "", Signed: last.Size, SignedAt: last.At}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Problem = a.problem
	for _, e := range c.Export {
		x := control.AuditExport{To: e.Name()}
		next, _, nerr := a.store.Exported(ctx, e.Name())
		err = errors.Join(err, nerr)
		x.Behind = size - (next - 1)
		if f := a.failed[e.Name()]; f != nil {
			x.Problem = f.Error()
		}
		s.Exports = append(s.Exports, x)
	}
	return s, err
}

// AuditPage gives records of the audit log from number first on, with the checkpoints that belong to them.
func (d *Daemon) AuditPage(ctx context.Context, first int64, limit int) (control.AuditPage, error) {
	const most = 1000
	if limit <= 0 || limit > most {
		limit = most
	}
	first = max(first, 1)
	var p control.AuditPage
	var err error
	if p.Origin, err = d.store.Origin(ctx); err != nil {
		return p, err
	}
	if p.Size, err = d.store.LastEvent(ctx); err != nil {
		return p, err
	}
	if p.Records, err = d.store.Log(ctx, first, limit); err != nil || len(p.Records) == 0 {
		return p, err
	}
	last := p.Records[len(p.Records)-1].N
	list, err := d.store.Checkpoints(ctx, first-1, limit)
	for _, c := range list {
		if c.Size <= last {
			p.Checkpoints = append(p.Checkpoints, c)
		}
	}
	return p, err
}

// AuditKey gives the public key of the audit log.
func (d *Daemon) AuditKey(ctx context.Context) (control.AuditKey, error) {
	der, err := d.store.AuditKey(ctx)
	if err != nil {
		return control.AuditKey{}, err
	}
	if len(der) == 0 {
		return control.AuditKey{}, fmt.Errorf("no checkpoint of the audit log was signed yet, so its key is not known; audit.token and audit.uri name it: %w", control.ErrRefused)
	}
	origin, err := d.store.Origin(ctx)
	if err != nil {
		return control.AuditKey{}, err
	}
	key, err := audit.NewKey(origin, der)
	if err != nil {
		return control.AuditKey{}, err
	}
	sum := key.SHA256()
	return control.AuditKey{Origin: origin, PEM: string(key.PEM()), SHA256: hex.EncodeToString(sum[:])}, nil
}

// AuditCheckpoint gives the latest signed checkpoint, or signs one now.
func (d *Daemon) AuditCheckpoint(ctx context.Context, now bool) (store.Checkpoint, error) {
	if now {
		return d.auditor.sign(ctx)
	}
	c, found, err := d.store.LastCheckpoint(ctx)
	if err == nil && !found {
		err = fmt.Errorf("no checkpoint of the audit log was signed yet: %w", control.ErrRefused)
	}
	return c, err
}

// AuditProof proves that a record is in the log of the latest signed checkpoint.
func (d *Daemon) AuditProof(ctx context.Context, n int64) (string, error) {
	p, err := d.store.Prove(ctx, n)
	switch {
	case errors.Is(err, store.ErrNoRecord):
		return "", fmt.Errorf("%w; hsmbridge audit list --last 1 shows the last one: %w", err, control.ErrRefused)
	case errors.Is(err, store.ErrNoCheckpoint):
		return "", fmt.Errorf("%w; hsmbridge audit checkpoint --now signs one: %w", err, control.ErrRefused)
	case err != nil:
		return "", err
	}
	text, err := p.Text()
	return string(text), err
}

// configuration is what the log tells of the configuration that counts from here on.
func configuration(c *configs.Config, version string) map[string]string {
	return map[string]string{
		"sha256": c.SHA256(), "policies_sha256": c.Policies(), "keys": strconv.Itoa(len(c.Keys)), "tokens": strconv.Itoa(len(c.Tokens)), "version": version,
	}
}
