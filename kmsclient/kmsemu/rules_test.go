package kmsemu_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what it is
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/tink-crypto/tink-go/v2/kwp/subtle"

	"hsmbridge/kmsclient/kmsemu"
)

// cloud is an emulator and the unmodified SDK against it.
type cloud struct {
	t   *testing.T
	emu *kmsemu.Server
	url string
	*kms.Client
}

func newCloud(t *testing.T, o kmsemu.Options) *cloud {
	t.Helper()
	emu, err := kmsemu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(emu)
	t.Cleanup(srv.Close)
	c := &cloud{t: t, emu: emu, url: srv.URL}
	c.Client = c.in("eu-central-1")
	return c
}

// in is the SDK's client in a Region; it tries once.
func (c *cloud) in(region string) *kms.Client {
	return kms.New(kms.Options{
		Region: region, BaseEndpoint: &c.url, RetryMaxAttempts: 1, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	})
}

func (c *cloud) create(spec types.KeySpec, usage types.KeyUsageType, multi bool) string {
	c.t.Helper()
	out, err := c.CreateKey(c.t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Origin: types.OriginTypeExternal, MultiRegion: &multi})
	if err != nil {
		c.t.Fatal(err)
	}
	return *out.KeyMetadata.Arn
}

// wrap encrypts material under fresh parameters and gives the import that would follow.
func wrap(t *testing.T, c *kms.Client, arn string, alg types.AlgorithmSpec, spec types.WrappingKeySpec, material []byte) *kms.ImportKeyMaterialInput {
	t.Helper()
	p, err := c.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{KeyId: &arn, WrappingAlgorithm: alg, WrappingKeySpec: spec})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKIXPublicKey(p.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pub, ok := parsed.(*rsa.PublicKey)
	if !ok {
		t.Fatalf("a %T", parsed)
	}
	h := sha256.New()
	if alg == types.AlgorithmSpecRsaesOaepSha1 || alg == types.AlgorithmSpecRsaAesKeyWrapSha1 {
		h = sha1.New() //nolint:gosec // see the import
	}
	return &kms.ImportKeyMaterialInput{
		KeyId: &arn, ImportToken: p.ImportToken, EncryptedKeyMaterial: encrypt(t, h, pub, alg, material),
		ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}
}

func encrypt(t *testing.T, h hash.Hash, pub *rsa.PublicKey, alg types.AlgorithmSpec, material []byte) []byte {
	t.Helper()
	var out []byte
	var err error
	switch alg {
	case types.AlgorithmSpecRsaesPkcs1V15:
		out, err = rsa.EncryptPKCS1v15(rand.Reader, pub, material) //nolint:staticcheck // what the service took until 2023
	case types.AlgorithmSpecRsaesOaepSha1, types.AlgorithmSpecRsaesOaepSha256:
		out, err = rsa.EncryptOAEP(h, rand.Reader, pub, material, nil)
	default:
		kek := random(t, 32)
		if out, err = rsa.EncryptOAEP(h, rand.Reader, pub, kek, nil); err != nil {
			t.Fatal(err)
		}
		kwp, kerr := subtle.NewKWP(kek)
		if kerr != nil {
			t.Fatal(kerr)
		}
		tail, kerr := kwp.Wrap(material)
		if kerr != nil {
			t.Fatal(kerr)
		}
		out = append(out, tail...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// code is the AWS error code.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func wantCode(t *testing.T, err error, want string) {
	t.Helper()
	if code(err) != want {
		t.Errorf("error %q, want %q", code(err), want)
	}
}

const (
	sha256OAEP = types.AlgorithmSpecRsaesOaepSha256
	rsa2048    = types.WrappingKeySpecRsa2048
)

// TestEveryWrapping imports material of every length under everything that AWS offers for it.
func TestEveryWrapping(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	oaep := []types.AlgorithmSpec{types.AlgorithmSpecRsaesOaepSha256, types.AlgorithmSpecRsaesOaepSha1}
	all := append([]types.AlgorithmSpec{types.AlgorithmSpecRsaAesKeyWrapSha256, types.AlgorithmSpecRsaAesKeyWrapSha1}, oaep...)
	for _, tt := range []struct {
		spec       types.KeySpec
		usage      types.KeyUsageType
		algorithms []types.AlgorithmSpec
		material   []byte
	}{
		{types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, oaep, random(t, 32)},
		{types.KeySpecHmac224, types.KeyUsageTypeGenerateVerifyMac, oaep, random(t, 28)},
		{types.KeySpecHmac512, types.KeyUsageTypeGenerateVerifyMac, oaep, random(t, 64)},
		{types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, all, pkcs8},
	} {
		for _, alg := range tt.algorithms {
			for _, w := range []types.WrappingKeySpec{types.WrappingKeySpecRsa2048, types.WrappingKeySpecRsa3072, types.WrappingKeySpecRsa4096} {
				arn := c.create(tt.spec, tt.usage, false)
				if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, alg, w, tt.material)); err != nil {
					t.Errorf("%s by %s under %s: %v", tt.spec, alg, w, err)
				}
				out, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn})
				if err != nil || out.KeyMetadata.KeyState != types.KeyStateEnabled {
					t.Errorf("%s: %+v, %v", tt.spec, out, err)
				}
			}
		}
	}
}

// TestMaterialIsReadStrictly holds that what is not exactly a key of the spec is refused.
func TestMaterialIsReadStrictly(t *testing.T) {
	key := func(c elliptic.Curve) []byte {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	p256 := key(elliptic.P256())
	padded := append(append([]byte(nil), p256...), 0, 0, 0)
	for _, tt := range []struct {
		name     string
		lenient  bool
		spec     types.KeySpec
		usage    types.KeyUsageType
		material []byte
		want     string
	}{
		{"31 bytes for AES", false, types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, random(t, 31), "InvalidCiphertextException"},
		{"32 bytes for HMAC_384", false, types.KeySpecHmac384, types.KeyUsageTypeGenerateVerifyMac, random(t, 32), "InvalidCiphertextException"},
		{"zero bytes after the PKCS#8", false, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, padded, "InvalidCiphertextException"},
		{"the same, lenient", true, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, padded, ""},
		{"another curve", false, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, key(elliptic.P384()), "InvalidCiphertextException"},
		{"no PKCS#8", false, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify, random(t, 100), "InvalidCiphertextException"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCloud(t, kmsemu.Options{LenientDER: tt.lenient})
			arn := c.create(tt.spec, tt.usage, false)
			_, err := c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, sha256OAEP, types.WrappingKeySpecRsa4096, tt.material))
			wantCode(t, err, tt.want)
		})
	}
}

// TestParametersAreTied holds what belongs together: key, token, algorithm, 24 hours.
func TestParametersAreTied(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	a, b := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false), c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false)
	material := random(t, 32)

	in := wrap(t, c.Client, a, sha256OAEP, rsa2048, material)
	in.KeyId = &b
	_, err := c.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "InvalidImportTokenException")

	in = wrap(t, c.Client, a, sha256OAEP, rsa2048, material)
	in.ImportToken = random(t, 512)
	_, err = c.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "InvalidImportTokenException")

	in = wrap(t, c.Client, a, sha256OAEP, rsa2048, material)
	in.EncryptedKeyMaterial = wrap(t, c.Client, a, types.AlgorithmSpecRsaesOaepSha1, rsa2048, material).EncryptedKeyMaterial
	_, err = c.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "InvalidCiphertextException")

	in = wrap(t, c.Client, a, sha256OAEP, rsa2048, material)
	c.emu.Advance(24*time.Hour + time.Second)
	_, err = c.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "ExpiredImportTokenException")
}

// TestWhatIsOffered holds the algorithms and wrapping key specs per key spec, era and name.
func TestWhatIsOffered(t *testing.T) {
	for _, tt := range []struct {
		era   string
		spec  types.KeySpec
		usage types.KeyUsageType
		alg   types.AlgorithmSpec
		w     types.WrappingKeySpec
		want  string
	}{
		{"", types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, types.AlgorithmSpecRsaesPkcs1V15, rsa2048, "ValidationException"},
		{"2018", types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, types.AlgorithmSpecRsaesPkcs1V15, rsa2048, ""},
		{"", types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, types.AlgorithmSpecRsaAesKeyWrapSha256, rsa2048, "ValidationException"},
		{"", types.KeySpecRsa2048, types.KeyUsageTypeSignVerify, sha256OAEP, rsa2048, "ValidationException"},
		{"", types.KeySpecRsa2048, types.KeyUsageTypeSignVerify, types.AlgorithmSpecRsaAesKeyWrapSha256, rsa2048, ""},
		{"", types.KeySpecEccNistP521, types.KeyUsageTypeSignVerify, sha256OAEP, rsa2048, "ValidationException"},
		{"", types.KeySpecEccNistP521, types.KeyUsageTypeSignVerify, sha256OAEP, types.WrappingKeySpecRsa3072, ""},
		{"", types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, sha256OAEP, "RSA_1024", "ValidationException"},
	} {
		t.Run(fmt.Sprintf("%s %s %s %s", tt.era, tt.spec, tt.alg, tt.w), func(t *testing.T) {
			c := newCloud(t, kmsemu.Options{Era: tt.era})
			arn := c.create(tt.spec, tt.usage, false)
			_, err := c.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{KeyId: &arn, WrappingAlgorithm: tt.alg, WrappingKeySpec: tt.w})
			wantCode(t, err, tt.want)
		})
	}
}

// TestMaterialRules holds ImportType, KeyMaterialId, rotation and what expiry does to the whole key.
func TestMaterialRules(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	arn := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false)
	one, two := random(t, 32), random(t, 32)
	do := func(material []byte, change func(*kms.ImportKeyMaterialInput)) (string, error) {
		t.Helper()
		in := wrap(t, c.Client, arn, sha256OAEP, rsa2048, material)
		if change != nil {
			change(in)
		}
		out, err := c.ImportKeyMaterial(t.Context(), in)
		if err != nil {
			return "", err
		}
		return aws.ToString(out.KeyMaterialId), nil
	}
	existing := func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeExistingKeyMaterial }
	fresh := func(in *kms.ImportKeyMaterialInput) { in.ImportType = types.ImportTypeNewKeyMaterial }

	_, err := do(one, existing)
	wantCode(t, err, "IncorrectKeyMaterialException")
	id1, err := do(one, nil)
	if err != nil || len(id1) != 64 {
		t.Fatalf("first import: %q, %v", id1, err)
	}
	_, err = do(two, nil)
	wantCode(t, err, "IncorrectKeyMaterialException")
	_, err = do(one, fresh)
	wantCode(t, err, "IncorrectKeyMaterialException")
	_, err = do(one, func(in *kms.ImportKeyMaterialInput) { existing(in); in.KeyMaterialId = aws.String("00") })
	wantCode(t, err, "IncorrectKeyMaterialException")
	_, err = c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn})
	wantCode(t, err, "KMSInvalidStateException")
	id2, err := do(two, fresh)
	if err != nil || id2 == id1 {
		t.Fatalf("new material: %q, %v", id2, err)
	}
	_, err = do(random(t, 32), fresh)
	wantCode(t, err, "KMSInvalidStateException")
	blob, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("old")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	states := map[string]types.KeyMaterialState{}
	list, err := c.ListKeyRotations(t.Context(), &kms.ListKeyRotationsInput{KeyId: &arn, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Rotations {
		states[*r.KeyMaterialId] = r.KeyMaterialState
	}
	if states[id1] != types.KeyMaterialStateNonCurrent || states[id2] != types.KeyMaterialStateCurrent {
		t.Errorf("after the rotation: %v", states)
	}
	if out, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob.CiphertextBlob}); err != nil || string(out.Plaintext) != "old" {
		t.Errorf("decrypt with the older material: %v", err)
	}
	// The older material expires: the whole key waits for it.
	until := time.Now().Add(time.Hour)
	if _, err := do(one, func(in *kms.ImportKeyMaterialInput) {
		existing(in)
		in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, &until
	}); err != nil {
		t.Fatal(err)
	}
	c.emu.Advance(2 * time.Hour)
	_, err = c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x")})
	wantCode(t, err, "KMSInvalidStateException")
	_, err = do(two, func(in *kms.ImportKeyMaterialInput) {
		day := time.Now().Add(366 * 24 * time.Hour)
		in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, &day
	})
	wantCode(t, err, "ValidationException")
}

// TestMultiRegion holds that new material goes into the primary first and is rotated when every replica has it.
func TestMultiRegion(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	arn := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, true)
	one, two := random(t, 32), random(t, 32)
	if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, sha256OAEP, rsa2048, one)); err != nil {
		t.Fatal(err)
	}
	out, err := c.ReplicateKey(t.Context(), &kms.ReplicateKeyInput{KeyId: &arn, ReplicaRegion: aws.String("us-east-1")})
	if err != nil || out.ReplicaKeyMetadata.KeyState != types.KeyStatePendingImport {
		t.Fatalf("replica: %+v, %v", out, err)
	}
	replica, there := *out.ReplicaKeyMetadata.Arn, c.in("us-east-1")
	in := wrap(t, there, replica, sha256OAEP, rsa2048, two)
	in.ImportType = types.ImportTypeNewKeyMaterial
	_, err = there.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "UnsupportedOperationException")
	if _, err := there.ImportKeyMaterial(t.Context(), wrap(t, there, replica, sha256OAEP, rsa2048, one)); err != nil {
		t.Fatal(err)
	}
	in = wrap(t, c.Client, arn, sha256OAEP, rsa2048, two)
	in.ImportType = types.ImportTypeNewKeyMaterial
	if _, err := c.ImportKeyMaterial(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	_, err = c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn})
	wantCode(t, err, "KMSInvalidStateException")
	in = wrap(t, there, replica, sha256OAEP, rsa2048, two)
	in.ImportType = types.ImportTypeExistingKeyMaterial
	if _, err := there.ImportKeyMaterial(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	blob, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("everywhere")})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := there.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob.CiphertextBlob}); err != nil || string(got.Plaintext) != "everywhere" {
		t.Errorf("decrypt in the other Region: %v", err)
	}
}

func TestOtherKindsTakeOneMaterial(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	arn := c.create(types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac, false)
	one := random(t, 32)
	in := wrap(t, c.Client, arn, sha256OAEP, rsa2048, one)
	in.ImportType = types.ImportTypeNewKeyMaterial
	_, err := c.ImportKeyMaterial(t.Context(), in)
	wantCode(t, err, "ValidationException")
	if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, sha256OAEP, rsa2048, one)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteImportedKeyMaterial(t.Context(), &kms.DeleteImportedKeyMaterialInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	_, err = c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, sha256OAEP, rsa2048, random(t, 32)))
	wantCode(t, err, "IncorrectKeyMaterialException")
	if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c.Client, arn, sha256OAEP, rsa2048, one)); err != nil {
		t.Error(err)
	}
}

func TestStatesNamesAndQuotas(t *testing.T) {
	c := newCloud(t, kmsemu.Options{Quotas: true})
	arn := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false)
	if _, err := c.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: aws.String("alias/payments"), TargetKeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	if out, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("alias/payments")}); err != nil || *out.KeyMetadata.Arn != arn {
		t.Errorf("by alias: %v", err)
	}
	params := func(id string) error {
		_, err := c.GetParametersForImport(t.Context(), &kms.GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: sha256OAEP, WrappingKeySpec: rsa2048})
		return err
	}
	wantCode(t, params("alias/payments"), "InvalidArnException")
	wantCode(t, params(arn), "ThrottlingException") // one a second
	c.emu.Advance(time.Second)
	wantCode(t, params(arn), "")
	own, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	c.emu.Advance(time.Second)
	wantCode(t, params(*own.KeyMetadata.Arn), "UnsupportedOperationException")
	if _, err := c.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	c.emu.Advance(time.Second)
	wantCode(t, params(arn), "KMSInvalidStateException")
	c.emu.Advance(31 * 24 * time.Hour)
	_, err = c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn})
	wantCode(t, err, "NotFoundException")
}

// TestStateFile holds that an emulator goes on where it ended, outstanding import parameters included.
func TestStateFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	c := newCloud(t, kmsemu.Options{StateFile: file})
	arn := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false)
	in := wrap(t, c.Client, arn, sha256OAEP, rsa2048, random(t, 32))
	c = newCloud(t, kmsemu.Options{StateFile: file})
	if _, err := c.ImportKeyMaterial(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	blob, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("kept")})
	if err != nil {
		t.Fatal(err)
	}
	c = newCloud(t, kmsemu.Options{StateFile: file})
	if out, err := c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob.CiphertextBlob}); err != nil || string(out.Plaintext) != "kept" {
		t.Errorf("after a restart: %v", err)
	}
}
