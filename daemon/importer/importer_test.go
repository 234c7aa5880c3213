package importer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// world is a token, an emulated KMS behind a real socket, and a journal of what was recorded.
type world struct {
	*importer.Importer
	t     *testing.T
	token *softToken
	emu   *kmsemu.Server
	url   string
	kms   *kmsclient.Client
	steps []importer.Step
	skew  time.Duration
}

func newWorld(t *testing.T, o kmsemu.Options) *world {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	emu, err := kmsemu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(emu)
	t.Cleanup(srv.Close)
	w := &world{t: t, token: newToken(), emu: emu, url: srv.URL}
	w.kms = w.client("eu-central-1")
	w.Importer = &importer.Importer{
		Token: w.token, KMS: w.clientFor, Now: w.now,
		Authorize: func(context.Context, importer.Act) error { return nil },
		Wait:      func(context.Context, time.Duration) error { return nil },
		Record:    func(_ context.Context, e importer.Event) error { w.steps = append(w.steps, e.Step); return nil },
	}
	return w
}

func (w *world) client(region string) *kmsclient.Client {
	w.t.Helper()
	c, err := kmsclient.New(w.t.Context(), kmsclient.Config{Region: region, Endpoint: w.url, Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) clientFor(_ context.Context, destination string) (importer.KMS, error) {
	arn, err := kmsclient.ParseARN(destination)
	if err != nil || arn.Region == w.kms.Region() {
		return w.kms, nil //nolint:nilerr // the client refuses what is no ARN
	}
	return w.client(arn.Region), nil //nolint:contextcheck // a client is made with the test's
}

// replicate makes a replica of a multi-Region key. The importer never makes one, so the request is sent as the AWS CLI sends it.
func (w *world) replicate(arn, region string) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url, strings.NewReader(fmt.Sprintf(`{"KeyId":%q,"ReplicaRegion":%q}`, arn, region)))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "TrentService.ReplicateKey")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/kms/aws4_request")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("ReplicateKey: HTTP %d", resp.StatusCode)
	}
	return strings.Replace(arn, w.kms.Region(), region, 1)
}

func (w *world) now() time.Time { return time.Now().Add(w.skew) }

// advance moves every clock.
func (w *world) advance(d time.Duration) {
	w.skew += d
	w.emu.Advance(d)
}

// destination makes a KMS key of origin EXTERNAL.
func (w *world) destination(spec wrapping.KeySpec, usage string) string {
	w.t.Helper()
	info, err := w.kms.CreateKey(w.t.Context(), kmsclient.CreateKeyRequest{KeySpec: string(spec), KeyUsage: usage})
	if err != nil {
		w.t.Fatal(err)
	}
	return info.ARN
}

func (w *world) request(label string, spec wrapping.KeySpec, arn string) importer.Request {
	return importer.Request{
		Name: label, Object: pkcs11uri.URI{Object: label}, KeySpec: spec, Destination: arn, Expires: 90 * 24 * time.Hour, Prove: true,
	}
}

func (w *world) mustRun(r importer.Request) importer.Result {
	w.t.Helper()
	result, err := w.Run(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

func TestImportAndProve(t *testing.T) {
	for _, tt := range []struct {
		spec  wrapping.KeySpec
		usage string
		alg   wrapping.Algorithm
		proof importer.ProofMethod
	}{
		{wrapping.SymmetricDefault, "", wrapping.OAEPSHA256, importer.ProofMaterialID},
		{wrapping.HMAC224, "", wrapping.OAEPSHA256, importer.ProofMAC},
		{wrapping.HMAC512, "", wrapping.OAEPSHA256, importer.ProofMAC},
		{wrapping.KeyRSA2048, "SIGN_VERIFY", wrapping.RSAAESSHA256, importer.ProofPublicKey},
		{wrapping.KeyRSA2048, "ENCRYPT_DECRYPT", wrapping.RSAAESSHA256, importer.ProofPublicKey},
		{wrapping.ECCNISTP256, "SIGN_VERIFY", wrapping.RSAAESSHA256, importer.ProofPublicKey},
	} {
		t.Run(string(tt.spec)+" "+tt.usage, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			w.token.add(t, "k", tt.spec)
			r := w.request("k", tt.spec, w.destination(tt.spec, tt.usage))
			first := w.mustRun(r)
			if first.Result != importer.Imported || first.Proof != tt.proof || first.Algorithm != tt.alg || first.WrappingKeySpec != wrapping.RSA4096 || len(first.WrappingKeySHA256) != 64 {
				t.Errorf("first import: %+v", first)
			}
			if symmetric := tt.spec == wrapping.SymmetricDefault; symmetric != (first.KeyMaterialID != "") || symmetric != (first.CheckValue != "") {
				t.Errorf("key material ID %q, check value %q", first.KeyMaterialID, first.CheckValue)
			}
			imports := w.emu.Count("ImportKeyMaterial")
			again := w.mustRun(r)
			if again.Result != importer.Unchanged || again.Proof != tt.proof || again.Expires != first.Expires || again.KeyMaterialID != first.KeyMaterialID {
				t.Errorf("second run: %+v\nfirst: %+v", again, first)
			}
			if extra := w.emu.Count("ImportKeyMaterial") - imports; tt.spec != wrapping.SymmetricDefault && extra != 0 {
				t.Errorf("the second run imported %d times", extra)
			}
			info, err := w.kms.DescribeKey(t.Context(), r.Destination)
			if err != nil || info.State != "Enabled" || info.ValidTo.UTC().Format(time.RFC3339) != first.Expires {
				t.Errorf("KMS has %+v, %v", info, err)
			}
		})
	}
}

func TestStepsInOrder(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	w.mustRun(w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, "")))
	want := []importer.Step{
		importer.StepPreflight, importer.StepIntent, importer.StepParameters, importer.StepWrap, importer.StepImport, importer.StepProof, importer.StepOutcome,
	}
	if diff := cmp.Diff(want, w.steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// TestNoRecordNoAction holds that a step is not begun unless the one before it is recorded.
func TestNoRecordNoAction(t *testing.T) {
	for step, forbidden := range map[importer.Step]string{
		importer.StepPreflight: "GetParametersForImport", importer.StepIntent: "GetParametersForImport",
		importer.StepParameters: "ImportKeyMaterial", importer.StepWrap: "ImportKeyMaterial", importer.StepImport: "GenerateMac",
	} {
		t.Run(string(step), func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			w.token.add(t, "k", wrapping.HMAC256)
			full := errors.New("the disk is full")
			w.Record = func(_ context.Context, e importer.Event) error {
				if e.Step == step {
					return full
				}
				return nil
			}
			_, err := w.Run(t.Context(), w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, "")))
			if !errors.Is(err, full) || !strings.Contains(err.Error(), "stopped there") {
				t.Errorf("Run: %v", err)
			}
			if n := w.emu.Count(forbidden); n != 0 {
				t.Errorf("%s was called %d times", forbidden, n)
			}
		})
	}
}

func TestExpiryAndRestore(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.SymmetricDefault, wrapping.HMAC256} {
		t.Run(string(spec), func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			w.token.add(t, "k", spec)
			r := w.request("k", spec, w.destination(spec, ""))
			first := w.mustRun(r)

			w.advance(30 * 24 * time.Hour) // a third of its life is gone
			if got := w.mustRun(r); got.Result != importer.Reimported || got.Expires <= first.Expires || got.KeyMaterialID != first.KeyMaterialID {
				t.Errorf("after 30 days: %+v", got)
			}
			w.advance(100 * 24 * time.Hour) // expired
			got := w.mustRun(r)
			want := importer.Imported // KMS does not tell that an HMAC key held material before
			if spec == wrapping.SymmetricDefault {
				want = importer.Restored
			}
			if got.Result != want || got.Proof == importer.Unproved || got.KeyMaterialID != first.KeyMaterialID {
				t.Errorf("after expiry: %+v", got)
			}
			r.Expires = 0
			if got := w.mustRun(r); got.Result != importer.Reimported || got.Expires != "never" {
				t.Errorf("never: %+v", got)
			}
			if got := w.mustRun(r); got.Result != importer.Unchanged || got.Expires != "never" {
				t.Errorf("never, again: %+v", got)
			}
			r.Renew = true
			if got := w.mustRun(r); got.Result != importer.Reimported {
				t.Errorf("renew: %+v", got)
			}
		})
	}
}

// TestKMSRefusesPlans is a server that does not know the longest key or the best algorithm.
func TestKMSRefusesPlans(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.SymmetricDefault)
	w.emu.Refuse("RSA_4096", "ValidationException")
	w.emu.Refuse("RSAES_OAEP_SHA_256", "UnsupportedOperationException")
	got := w.mustRun(w.request("k", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, "")))
	if got.Algorithm != wrapping.OAEPSHA1 || got.WrappingKeySpec != wrapping.RSA3072 || got.Proof != importer.ProofMaterialID {
		t.Errorf("%+v", got)
	}
	var kms []string
	for _, r := range got.PassedOver {
		if r.Rule == wrapping.RuleKMS {
			kms = append(kms, string(r.Algorithm)+" "+string(r.WrappingKeySpec)+" "+r.Reason)
		}
	}
	if len(kms) != 4 || !strings.Contains(kms[0], "ValidationException") || !strings.Contains(strings.Join(kms, "\n"), "RSAES_OAEP_SHA_256 RSA_3072 KMS refused it: UnsupportedOperationException") {
		t.Errorf("passed over by KMS: %q", kms)
	}
	t.Run("all of them", func(t *testing.T) {
		w.emu.Refuse("RSAES_OAEP_SHA_1", "ValidationException")
		_, err := w.Run(t.Context(), w.request("k", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, "")))
		if err == nil || !strings.Contains(err.Error(), "KMS refused every plan") {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestOlderServer is a KMS-compatible server without key material IDs and their operations.
func TestOlderServer(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.emu.Without("ListKeyRotations", "KeyMaterialId")
	w.token.add(t, "k", wrapping.SymmetricDefault)
	r := w.request("k", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, ""))
	got := w.mustRun(r)
	if got.Result != importer.Imported || got.Proof != importer.Unproved || !strings.Contains(got.ProofReason, "no key material ID") || len(got.Notes) == 0 {
		t.Errorf("%+v", got)
	}
	r.Renew = true
	if got := w.mustRun(r); got.Result != importer.Reimported {
		t.Errorf("renew: %+v", got)
	}
}

// TestEventualConsistency is a KMS whose readers see an import only seconds later: the proof waits for it.
func TestEventualConsistency(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.SymmetricDefault, wrapping.HMAC256, wrapping.ECCNISTP256} {
		w := newWorld(t, kmsemu.Options{})
		waited := time.Duration(0)
		w.Wait = func(_ context.Context, d time.Duration) error {
			waited += d
			w.advance(d)
			return nil
		}
		w.token.add(t, "k", spec)
		usage := map[wrapping.KeySpec]string{wrapping.ECCNISTP256: "SIGN_VERIFY"}[spec]
		r := w.request("k", spec, w.destination(spec, usage))
		w.emu.SetLag(3 * time.Second)
		if got := w.mustRun(r); got.Result != importer.Imported || got.Proof == importer.Unproved {
			t.Errorf("%s: %+v", spec, got)
		}
		if spec != wrapping.SymmetricDefault && waited < 2*time.Second {
			t.Errorf("%s: waited %s", spec, waited)
		}
	}
}

func TestPKCS1(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.SymmetricDefault)
	const bad = "CKR_MECHANISM_INVALID (0x70)"
	w.token.no = map[wrapping.Algorithm]string{wrapping.OAEPSHA256: bad, wrapping.OAEPSHA1: bad}
	_, err := w.Run(t.Context(), w.request("k", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, "")))
	var none *wrapping.NoPlanError
	if !errors.As(err, &none) || !strings.Contains(err.Error(), "wrapping.allow_pkcs1_v1_5: true") {
		t.Errorf("Run: %v", err)
	}
}

// TestLostAnswer cuts the connection after ImportKeyMaterial took effect: the outcome is read back, and nothing
// is imported again.
func TestLostAnswer(t *testing.T) {
	for _, cut := range []string{"after", "before"} {
		t.Run(cut, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			w.token.add(t, "k", wrapping.HMAC256)
			r := w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, ""))
			w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: cut})
			got, err := w.Run(t.Context(), r)
			if cut == "after" {
				if err != nil || got.Result != importer.Imported || got.Proof != importer.ProofMAC || w.emu.Count("ImportKeyMaterial") != 1 {
					t.Errorf("Run: %+v, %v, %d imports", got, err, w.emu.Count("ImportKeyMaterial"))
				}
				return
			}
			var unknown *importer.UnknownOutcomeError
			if !errors.As(err, &unknown) || got.Result != importer.Unknown || !strings.Contains(err.Error(), "run it again, it looks at KMS before it imports") {
				t.Errorf("Run: %+v, %v", got, err)
			}
			if got := w.mustRun(r); got.Result != importer.Imported {
				t.Errorf("again: %+v", got)
			}
		})
	}
}

func TestExpiredParameters(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	r := w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, ""))
	w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Code: "ExpiredImportTokenException", Message: "expired"})
	got := w.mustRun(r)
	if got.Result != importer.Imported || !slices.ContainsFunc(got.Notes, func(n string) bool { return strings.Contains(n, "fetched anew") }) || w.emu.Count("GetParametersForImport") != 2 {
		t.Errorf("%+v", got)
	}
	w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Times: 2, Code: "ExpiredImportTokenException", Message: "expired"})
	r.Renew = true
	if _, err := w.Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "ExpiredImportTokenException") {
		t.Errorf("expired twice: %v", err)
	}
}

// TestOtherKey is a token that wraps another key than it shows: the proof finds it.
func TestOtherKey(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	w.token.swap = make([]byte, 32)
	w.token.swap[0] = 1
	got, err := w.Run(t.Context(), w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, "")))
	if !errors.Is(err, importer.ErrNotSameKey) || got.Result != importer.Failed || got.Proof != importer.Unproved || importer.Class(err) != "kms" {
		t.Errorf("Run: %+v, %v", got, err)
	}
}

// TestOtherMaterialThere is a KMS key that was fed from another HSM key: nothing is changed.
func TestOtherMaterialThere(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.SymmetricDefault, wrapping.HMAC256} {
		w := newWorld(t, kmsemu.Options{})
		w.token.add(t, "one", spec)
		w.token.add(t, "two", spec)
		arn := w.destination(spec, "")
		first := w.mustRun(w.request("one", spec, arn))
		got, err := w.Run(t.Context(), w.request("two", spec, arn))
		if !errors.Is(err, importer.ErrNotSameKey) {
			t.Errorf("%s: %v", spec, err)
		}
		if got.Result == importer.Imported || got.Result == importer.Reimported {
			t.Errorf("%s: %+v", spec, got)
		}
		if again := w.mustRun(w.request("one", spec, arn)); again.Result != importer.Unchanged || again.KeyMaterialID != first.KeyMaterialID {
			t.Errorf("%s: the first key is no longer there: %+v", spec, again)
		}
		r := w.request("two", spec, arn)
		r.Renew = true
		if _, err := w.Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), "IncorrectKeyMaterialException") {
			t.Errorf("%s: renew: %v", spec, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "aes", wrapping.SymmetricDefault)
	w.token.add(t, "stay", wrapping.SymmetricDefault).blockers = []string{"CKA_EXTRACTABLE is false: it can never leave this token"}
	external := w.destination(wrapping.SymmetricDefault, "")
	hmac := w.destination(wrapping.HMAC256, "")
	for _, tt := range []struct {
		name string
		req  importer.Request
		want []string
	}{
		{"no such object", w.request("none", wrapping.SymmetricDefault, external), []string{"no such key object"}},
		{"not extractable", w.request("stay", wrapping.SymmetricDefault, external), []string{"CKA_EXTRACTABLE is false"}},
		{"object of another kind", w.request("aes", wrapping.HMAC256, hmac), []string{"the configuration says HMAC_256"}},
		{"KMS key of another spec", w.request("aes", wrapping.SymmetricDefault, hmac), []string{"the KMS key has key spec HMAC_256"}},
		{"no such KMS key", w.request("aes", wrapping.SymmetricDefault, strings.Replace(external, "key/", "key/0", 1)), []string{"NotFoundException"}},
		{"other account", w.request("aes", wrapping.SymmetricDefault, strings.Replace(external, "111122223333", "999999999999", 1)), []string{"AccessDeniedException", "account"}},
		{"alias", w.request("aes", wrapping.SymmetricDefault, "alias/payments"), []string{"alias"}},
		{"no material of the kind", w.request("aes", wrapping.MLDSA65, external), []string{"ML_DSA_65"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := w.Run(t.Context(), tt.req)
			if err == nil || got.Result != importer.Failed || importer.Class(err) != "caller" && tt.name != "no such object" {
				t.Fatalf("Run: %+v, %v, class %q", got, err, importer.Class(err))
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %q", err, part)
				}
			}
		})
	}
	if n := w.emu.Count("ImportKeyMaterial") + w.token.wraps; n != 0 {
		t.Errorf("%d wraps and imports for refused requests", n)
	}
}

func TestGenerateIfMissing(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	one, two := w.destination(wrapping.SymmetricDefault, ""), w.destination(wrapping.SymmetricDefault, "")
	r1, r2 := w.request("new", wrapping.SymmetricDefault, one), w.request("new", wrapping.SymmetricDefault, two)
	r1.Generate, r2.Generate = true, true

	plan, err := w.Plan(t.Context(), r1)
	if err != nil || !plan.Object.Missing || len(w.token.keys) != 0 || plan.Digest == "" {
		t.Errorf("Plan: %+v, %v, %d keys", plan, err, len(w.token.keys))
	}
	for _, got := range w.RunKey(t.Context(), []importer.Request{r1, r2}) {
		if got.Error != "" || got.Result != importer.Imported {
			t.Errorf("%+v", got)
		}
	}
	if len(w.token.keys) != 1 {
		t.Errorf("%d keys were generated", len(w.token.keys))
	}
	// The key is lost in the HSM: KMS has the only copy, and a new one must not be made.
	delete(w.token.keys, "new")
	three := w.request("new", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, ""))
	three.Generate = true
	for _, got := range w.RunKey(t.Context(), []importer.Request{three, r1}) {
		if got.Result != importer.Failed || !strings.Contains(got.Error, "restore the key object") {
			t.Errorf("%+v", got)
		}
	}
	if len(w.token.keys) != 0 {
		t.Error("a key was generated although a destination holds material")
	}
}

// TestPlanDigest holds that the digest is over what will be done and over nothing else.
func TestPlanDigest(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	r := w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, ""))
	digest := func(r importer.Request) string {
		t.Helper()
		p, err := w.Plan(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return p.Digest
	}
	one := digest(r)
	w.advance(time.Hour)
	if digest(r) != one {
		t.Error("the digest changed with the time of day")
	}
	changed := r
	changed.Expires = 80 * 24 * time.Hour
	other := r
	other.Destination = w.destination(wrapping.HMAC256, "")
	restricted := r
	restricted.Policy.Algorithms = []wrapping.Algorithm{wrapping.OAEPSHA1}
	for name, r := range map[string]importer.Request{"expiry": changed, "destination": other, "algorithm": restricted} {
		if digest(r) == one {
			t.Errorf("the digest does not depend on the %s", name)
		}
	}
	if n := w.emu.Count("GetParametersForImport"); n != 0 {
		t.Errorf("planning fetched import parameters %d times", n)
	}
}
