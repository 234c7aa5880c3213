package daemon

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// keeper keeps import parameters from when they were fetched until they are used, once: a job that is tried again need not fetch others,
// which is what a bulk of imports waits for.
//
// The wrapping public key decides who can read the wrapped key. So what is in this process's memory counts, and what is in the database only
// with the signature of the key in the HSM that signs the audit log: who can write the database cannot make one, and nobody else is asked
// for it. Without such a key (audit.token, audit.uri) nothing is kept in the database, and the end of the process costs what was fetched.
type keeper struct {
	store  *store.Store
	key    func(ctx context.Context) (signingToken, wrapping.Key, []byte, error) // that signs
	config func() *configs.Config
	log    *zap.Logger
	now    func() time.Time

	mu     sync.Mutex
	mine   map[string]kept // by what they are for
	failed time.Time       // when nothing could be signed
}

// kept are parameters in memory.
type kept struct {
	kmsclient.ImportParameters
	row  store.Parameters // its key in the database
	safe bool             // it is in the database too
}

const (
	signTime = 10 * time.Second // to sign or to verify
	// lastMoment is how long parameters have to be valid yet when they are taken: a wrap and an import follow.
	lastMoment = 15 * time.Minute
)

func lot(arn, algorithm, spec, endpoint string) string {
	return strings.Join([]string{arn, algorithm, spec, endpoint}, "\n")
}

// take gives parameters that were fetched earlier and not used.
func (k *keeper) take(ctx context.Context, arn, algorithm, spec, endpoint string) (kmsclient.ImportParameters, bool) {
	name := lot(arn, algorithm, spec, endpoint)
	k.mu.Lock()
	p, found := k.mine[name]
	k.mu.Unlock()
	if found && p.safe && k.gone(ctx, p) {
		found = false
	}
	if !found {
		if p, found = k.load(ctx, arn, algorithm, spec, endpoint); !found {
			return kmsclient.ImportParameters{}, false
		}
		k.mu.Lock()
		k.mine[name] = p
		k.mu.Unlock()
	}
	checked, err := p.Again(k.now())
	if err != nil || checked.ValidTo.Before(k.now().Add(lastMoment)) {
		k.mu.Lock()
		delete(k.mine, name)
		k.mu.Unlock()
		return kmsclient.ImportParameters{}, false
	}
	return checked, true
}

// gone says that parameters which are in the database too are there no more: another daemon has taken a job over, and used them, or fetched others.
func (k *keeper) gone(ctx context.Context, p kept) bool {
	row, found, err := k.store.KeptParameters(ctx, p.row.Destination, p.row.Algorithm, p.row.WrappingKeySpec, p.row.Endpoint)
	if err != nil || found && bytes.Equal(row.ImportToken, p.ImportToken) {
		return err != nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mine, lot(p.row.Destination, p.row.Algorithm, p.row.WrappingKeySpec, p.row.Endpoint))
	return true
}

// load reads parameters that an earlier process, or another daemon, fetched and did not use. What does not verify is taken away.
func (k *keeper) load(ctx context.Context, arn, algorithm, spec, endpoint string) (kept, bool) {
	if c := k.config(); c.Audit.Token == "" || !c.Reach(c.Audit.Token) {
		return kept{}, false
	}
	row, found, err := k.store.KeptParameters(ctx, arn, algorithm, spec, endpoint)
	if err != nil || !found {
		return kept{}, false
	}
	if row.Destination != arn || row.Algorithm != algorithm || row.WrappingKeySpec != spec || row.Endpoint != endpoint {
		k.log.Error("the database gave import parameters of another destination: they are not used, others are fetched; see who can write the database", zap.String("destination", arn), zap.String("got", row.Destination))
		return kept{}, false
	}
	vctx, cancel := context.WithTimeout(ctx, signTime)
	defer cancel()
	_, _, public, err := k.key(vctx)
	if err != nil {
		k.log.Warn("import parameters that were kept are not used, because the key that signed them cannot be asked for; others are fetched", zap.String("destination", arn), zap.Error(err))
		return kept{}, false
	}
	if err := verify(public, statement(row), row.Signature); err != nil {
		k.log.Error("import parameters in the database do not have the signature of the key that signs the audit log: they are not used, others are fetched; see who can write the database",
			zap.String("destination", arn), zap.Error(err))
		if err := k.store.UseParameters(ctx, row); err != nil {
			k.log.Warn("database", zap.Error(err))
		}
		return kept{}, false
	}
	return kept{safe: true, row: row, ImportParameters: kmsclient.ImportParameters{
		KeyARN: row.Destination, Algorithm: row.Algorithm, WrappingKeySpec: row.WrappingKeySpec, PublicKeyDER: row.PublicKey, ImportToken: row.ImportToken,
		ValidTo: row.ValidTo, RequestID: row.RequestID, Fetched: row.Fetched,
	}}, true
}

// keep keeps parameters that KMS has just given.
func (k *keeper) keep(ctx context.Context, p kmsclient.ImportParameters, endpoint string) {
	now := k.now()
	one := kept{ImportParameters: p, row: store.Parameters{
		Destination: p.KeyARN, Algorithm: p.Algorithm, WrappingKeySpec: p.WrappingKeySpec, Endpoint: endpoint, PublicKey: p.PublicKeyDER, ImportToken: p.ImportToken,
		RequestID: p.RequestID, Fetched: now.UTC().Truncate(time.Microsecond), ValidTo: p.ValidTo.UTC().Truncate(time.Microsecond),
	}}
	one.Fetched = one.row.Fetched
	one.safe = k.sign(ctx, &one.row)
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, old := range k.mine {
		if !old.ValidTo.After(now) {
			delete(k.mine, name)
		}
	}
	k.mine[lot(p.KeyARN, p.Algorithm, p.WrappingKeySpec, endpoint)] = one
}

// sign signs parameters and writes them into the database, where that is configured. A failure costs nothing but that.
func (k *keeper) sign(ctx context.Context, row *store.Parameters) bool {
	k.mu.Lock()
	resting := k.now().Sub(k.failed).Abs() < retrySigning
	k.mu.Unlock()
	if c := k.config(); c.Audit.Token == "" || !c.Reach(c.Audit.Token) || resting {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, signTime)
	defer cancel()
	token, key, public, err := k.key(ctx)
	if err == nil {
		row.Signature, err = token.SignVerified(ctx, key, public, statement(*row))
	}
	if err == nil {
		err = k.store.KeepParameters(ctx, *row)
	}
	if err != nil {
		k.mu.Lock()
		k.failed = k.now()
		k.mu.Unlock()
		k.log.Warn("import parameters are kept in memory only: if this process ends before they are used, others have to be fetched", zap.Error(err))
	}
	return err == nil
}

// use says that parameters are about to be sent to KMS: nobody gets them a second time, whatever comes of it.
func (k *keeper) use(ctx context.Context, importToken []byte) error {
	k.mu.Lock()
	var used kept
	for name, p := range k.mine {
		if bytes.Equal(p.ImportToken, importToken) {
			used = p
			delete(k.mine, name)
		}
	}
	k.mu.Unlock()
	if !used.safe {
		return nil
	}
	if err := k.store.UseParameters(ctx, used.row); err != nil {
		return &runner.Error{ErrCode: "Database", ErrClass: "database", Message: "that the import parameters are used could not be written down, so nothing was imported with them", Err: err}
	}
	return nil
}

// statement is what is signed of parameters: all of them that decides under which key is wrapped, for whom and until when. Its first two
// lines are those of no checkpoint of the audit log, whose second line is a number: a signature of one is none of the other.
func statement(p store.Parameters) []byte {
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	return fmt.Appendf(nil, "hsmbridge import parameters v1\ndestination %q\nendpoint %q\nwrapping_algorithm %q\nwrapping_key_spec %q\nwrapping_key_sha256 %s\nimport_token_sha256 %s\nrequest_id %q\nfetched %d\nvalid_to %d\n",
		p.Destination, p.Endpoint, p.Algorithm, p.WrappingKeySpec, sum(p.PublicKey), sum(p.ImportToken), p.RequestID, p.Fetched.UnixMicro(), p.ValidTo.UnixMicro())
}

var errSignature = errors.New("the signature does not verify")

// verify holds a signature against a public key, DER SubjectPublicKeyInfo: ECDSA or RSASSA-PKCS1-v1_5 over SHA-256.
func verify(public, message, signature []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return fmt.Errorf("the public half of the key that signs the audit log cannot be read: %w", err)
	}
	sum := sha256.Sum256(message)
	switch p := parsed.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, sum[:], signature) {
			return nil
		}
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], signature) == nil {
			return nil
		}
	}
	return errSignature
}

// GetParametersForImport gives parameters that were fetched and not used, or fetches others.
func (k *kms) GetParametersForImport(ctx context.Context, arn, algorithm, wrappingKeySpec string) (kmsclient.ImportParameters, error) {
	if p, ok := k.keeper.take(ctx, arn, algorithm, wrappingKeySpec, k.Endpoint()); ok {
		return p, nil
	}
	p, err := k.Client.GetParametersForImport(ctx, arn, algorithm, wrappingKeySpec)
	if err == nil {
		k.keeper.keep(ctx, p, k.Endpoint())
	}
	return p, err
}

// ImportKeyMaterial uses import parameters, which are kept no longer.
func (k *kms) ImportKeyMaterial(ctx context.Context, r kmsclient.ImportRequest) (kmsclient.ImportResult, error) {
	if err := k.keeper.use(ctx, r.ImportToken); err != nil {
		return kmsclient.ImportResult{}, err
	}
	return k.Client.ImportKeyMaterial(ctx, r)
}
