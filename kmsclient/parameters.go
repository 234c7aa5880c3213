package kmsclient

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Limits of import parameters. Source: AWS KMS API Reference, GetParametersForImport and ImportKeyMaterial.
const (
	ParametersLifetime = 24 * time.Hour  // import parameters are valid this long
	clockSkew          = 5 * time.Minute // what KMS's clock and this machine's may differ
	maxImportToken     = 6144            // bytes
	maxPublicKey       = 8192            // bytes
	publicExponent     = 65537
)

// ImportParameters is what KMS gives for one import: the wrapping public key and the import token, which
// belong together. They have passed every check of [Client.GetParametersForImport].
type ImportParameters struct {
	KeyARN          string
	Algorithm       string // WrappingAlgorithm, as asked for
	WrappingKeySpec string // as asked for
	PublicKey       *rsa.PublicKey
	PublicKeyDER    []byte // SubjectPublicKeyInfo, RFC 5280
	ImportToken     []byte
	ValidTo         time.Time // ParametersValidTo, UTC
	RequestID       string
	Fetched         time.Time // when, of parameters that were kept since; zero: just now

	sound [sha256.Size]byte // of the PublicKeyDER that PublicKey was read from and that passed; zero: none did, in this process
}

// Again checks parameters once more that were kept since they were fetched, as they were checked then, and fills in PublicKey. What depends on
// the bytes of the public key alone is not computed a second time in one process.
func (p ImportParameters) Again(now time.Time) (ImportParameters, error) {
	if err := p.check(p.KeyARN, now); err != nil {
		return ImportParameters{}, &UntrustedParametersError{KeyARN: p.KeyARN, Reason: err.Error(), SHA256: p.SHA256(), RequestID: p.RequestID}
	}
	return p, nil
}

// SHA256 is the fingerprint of the wrapping public key: hexadecimal SHA-256 over the DER
// SubjectPublicKeyInfo. `openssl pkey -pubin -inform DER -outform DER | sha256sum` gives the same.
func (p ImportParameters) SHA256() string {
	sum := sha256.Sum256(p.PublicKeyDER)
	return hex.EncodeToString(sum[:])
}

// UntrustedParametersError says that what GetParametersForImport answered is not what KMS would answer.
// Nothing was wrapped under that public key. It does not go away by trying again: somebody or something
// between this process and KMS has to be looked at.
type UntrustedParametersError struct {
	KeyARN    string // as asked for
	Reason    string
	SHA256    string // of the public key that was refused, hexadecimal
	RequestID string
}

// Error says why the wrapping public key was refused.
func (e *UntrustedParametersError) Error() string {
	s := fmt.Sprintf("GetParametersForImport on %s: the wrapping public key is refused and was not used: %s; "+
		"check kms.endpoint, the proxy and this machine's clock, and do not wrap under this key (SHA-256 %s)", keyID(e.KeyARN), e.Reason, e.SHA256)
	if e.RequestID != "" {
		s += " (request " + e.RequestID + ")"
	}
	return s
}

// Class is [ClassCaller]: stop and explain.
func (e *UntrustedParametersError) Class() string { return ClassCaller }

// GetParametersForImport fetches a wrapping public key of the wrapping key spec (RSA_2048, RSA_3072,
// RSA_4096) and the import token that belongs to it, for one import into the key.
//
// AWS signs nothing over that key, so it is checked here, as far as it can be: KMS names the key that was
// asked for; the public key is DER without anything trailing, an RSA key of exactly the spec's size, with
// e = 65537 and a modulus as NIST SP 800-89, 5.3.3 wants it; it is valid now and for at most 24 hours; there is an
// import token. Otherwise the error is an [UntrustedParametersError].
func (c *Client) GetParametersForImport(ctx context.Context, arn, algorithm, wrappingKeySpec string) (ImportParameters, error) {
	const op = opGetParametersForImport
	if err := c.checkKey(op, arn); err != nil {
		return ImportParameters{}, err
	}
	if specBits(wrappingKeySpec) == 0 {
		return ImportParameters{}, localError(op, arn, "ValidationException", fmt.Sprintf("wrapping key spec %q is none of RSA_2048, RSA_3072, RSA_4096", wrappingKeySpec))
	}
	out, id, err := call(ctx, c, op, arn, c.api.GetParametersForImport, &kms.GetParametersForImportInput{
		KeyId:             aws.String(arn),
		WrappingAlgorithm: types.AlgorithmSpec(algorithm),
		WrappingKeySpec:   types.WrappingKeySpec(wrappingKeySpec),
	})
	if err != nil {
		return ImportParameters{}, err
	}
	p := ImportParameters{
		KeyARN: arn, Algorithm: algorithm, WrappingKeySpec: wrappingKeySpec,
		PublicKeyDER: out.PublicKey, ImportToken: out.ImportToken, ValidTo: utc(out.ParametersValidTo), RequestID: id,
	}
	if err := p.check(aws.ToString(out.KeyId), c.now()); err != nil {
		return ImportParameters{}, &UntrustedParametersError{KeyARN: arn, Reason: err.Error(), SHA256: p.SHA256(), RequestID: id}
	}
	return p, nil
}

// check finds out whether KMS would answer this, and fills in PublicKey.
func (p *ImportParameters) check(keyARN string, now time.Time) (err error) {
	switch {
	case keyARN != p.KeyARN:
		return fmt.Errorf("they are for %q and not for the key that was asked for", oneLine(keyARN))
	case len(p.ImportToken) == 0:
		return errors.New("there is no import token")
	case len(p.ImportToken) > maxImportToken:
		return fmt.Errorf("the import token has %d bytes and at most %d are possible", len(p.ImportToken), maxImportToken)
	case p.ValidTo.IsZero():
		return errors.New("they do not say until when they are valid")
	case !p.ValidTo.After(now):
		return fmt.Errorf("they were valid until %s and it is %s now", stamp(p.ValidTo), stamp(now))
	case p.ValidTo.After(now.Add(ParametersLifetime + clockSkew)):
		return fmt.Errorf("they are valid until %s, which is more than 24 hours from now (%s)", stamp(p.ValidTo), stamp(now))
	}
	sum := sha256.Sum256(p.PublicKeyDER)
	if p.PublicKey != nil && p.sound == sum && p.PublicKey.N.BitLen() == specBits(p.WrappingKeySpec) {
		return nil // the same bytes, in the same process: they would pass again
	}
	p.PublicKey, err = parseWrappingKey(p.PublicKeyDER, specBits(p.WrappingKeySpec))
	p.sound = sum
	return err
}

// specBits is the modulus length of a wrapping key spec, 0 for one that is unknown or not RSA.
func specBits(wrappingKeySpec string) int {
	switch types.WrappingKeySpec(wrappingKeySpec) {
	case types.WrappingKeySpecRsa2048:
		return 2048
	case types.WrappingKeySpecRsa3072:
		return 3072
	case types.WrappingKeySpecRsa4096:
		return 4096
	default:
		return 0
	}
}

// parseWrappingKey reads a DER SubjectPublicKeyInfo and accepts only an RSA key as KMS makes them.
func parseWrappingKey(der []byte, bits int) (*rsa.PublicKey, error) {
	if len(der) == 0 || len(der) > maxPublicKey {
		return nil, fmt.Errorf("the public key has %d bytes", len(der))
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("the public key is not a DER SubjectPublicKeyInfo: %w", err)
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the public key is a %T and not an RSA key", parsed)
	}
	// The parser overlooks some trailing bytes, and no other encoding of the same key may have another fingerprint.
	again, err := x509.MarshalPKIXPublicKey(key)
	switch {
	case err != nil || !bytes.Equal(again, der):
		return nil, errors.New("the public key is not in canonical DER: bytes that do not belong to it")
	case key.N.BitLen() != bits:
		return nil, fmt.Errorf("the public key has %d bits and %d were asked for", key.N.BitLen(), bits)
	case key.E != publicExponent:
		return nil, fmt.Errorf("the public exponent is %d and not %d", key.E, publicExponent)
	}
	if err := checkModulus(key.N); err != nil {
		return nil, err
	}
	return key, nil
}

// checkModulus does the partial validation of NIST SP 800-89, 5.3.3: odd, no factor below 752, not prime.
//
// What each part is for: a small factor, or a modulus that is prime, would let anybody open what is wrapped under the key, and says that
// the key was made by nobody who can make RSA keys. Neither keeps out who chooses the modulus: against that there is TLS alone.
//
// That a number is composite costs one exponentiation to show (the Miller-Rabin round to base 2; a modulus that passes it goes on to the
// Lucas test), and nothing shows it with less.
func checkModulus(n *big.Int) error {
	if n.Bit(0) == 0 {
		return errors.New("the modulus is even")
	}
	if f := new(big.Int).GCD(nil, nil, n, smallPrimes()); f.Cmp(big.NewInt(1)) != 0 {
		return fmt.Errorf("the modulus has the small factor %s", f)
	}
	if n.ProbablyPrime(0) {
		return errors.New("the modulus is a prime number")
	}
	return nil
}

// smallPrimes is the product of the odd primes below 752 (sieve of Eratosthenes).
func smallPrimes() *big.Int {
	const below = 752
	var composite [below]bool
	product, word := big.NewInt(1), uint64(1)
	for p := uint64(3); p < below; p += 2 {
		if composite[p] {
			continue
		}
		for m := p * p; m < below; m += 2 * p {
			composite[m] = true
		}
		if word *= p; word >= 1<<54 { // another prime would not fit
			product.Mul(product, new(big.Int).SetUint64(word))
			word = 1
		}
	}
	return product.Mul(product, new(big.Int).SetUint64(word))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// utc is the time in UTC; zero for none.
func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
