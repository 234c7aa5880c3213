package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/token"
)

// Expect is what a token is known to do from end to end.
type Expect struct {
	Chosen   map[wrapping.KeySpec]wrapping.Algorithm
	Unproved []wrapping.KeySpec // the token computes no HMAC for these
	GCM      bool               // the token opens AES-GCM, for the round trip of symmetric keys
}

// Matrix imports a key of every kind that the token can wrap, under every wrapping key spec, with the real
// binaries, twice each, and then uses each key on both sides.
func Matrix(t *testing.T, fresh func(tb testing.TB, label string) token.Token, want Expect) {
	t.Helper()
	for i, w := range wrapping.WrappingKeySpecs() {
		t.Run(string(w), func(t *testing.T) {
			tok := fresh(t, "matrix")
			emu := StartEmulator(t)
			c := emu.Client()
			for _, longer := range wrapping.WrappingKeySpecs()[:i] {
				emu.Control("refuse", map[string]string{"What": string(longer), "Code": "ValidationException"})
			}
			var keys []Key
			for _, spec := range wrapping.KeySpecs() {
				if want.Chosen[spec] != "" {
					keys = append(keys, Key{Name: "k-" + strings.ToLower(strings.ReplaceAll(string(spec), "_", "-")), Spec: spec, Generate: true, Destinations: []string{emu.CreateKey(c, spec)}})
				}
			}
			config := Config(t, emu.Endpoint, tok, keys, "")
			for _, outcome := range []string{"imported", "unchanged"} {
				out := Run(t, config, "import", "--all", "--json")
				if out.Code != 0 {
					t.Fatalf("exit code %d\n%s\n%s", out.Code, out.Stdout, out.Stderr)
				}
				results := Lines[Result](t, out.Stdout)
				if len(results) != len(keys) {
					t.Fatalf("%d results for %d keys", len(results), len(keys))
				}
				for j, r := range results {
					checkResult(t, r, keys[j], w, want, outcome)
				}
			}
			roundTrips(t, tok, emu, keys, want)
		})
	}
}

func checkResult(t *testing.T, r Result, k Key, w wrapping.WrappingKeySpec, want Expect, outcome string) {
	t.Helper()
	proof := "public-key-match"
	switch k.Spec.Kind() {
	case wrapping.KindSymmetric:
		proof = "material-id-match"
	case wrapping.KindHMAC:
		proof = "mac-match"
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519, wrapping.KindRefused:
	}
	if slices.Contains(want.Unproved, k.Spec) {
		proof = "unproved"
	}
	spec := string(w)
	if outcome == "unchanged" && r.WrappingKeySHA256 == "" {
		spec = r.WrappingKeySpec // nothing was wrapped, KMS was not asked for parameters
	}
	if r.Key != k.Name || r.Destination != k.Destinations[0] || r.Result != outcome || r.Proof != proof || r.WrappingKeySpec != spec ||
		r.Algorithm != string(want.Chosen[k.Spec]) || r.Expires == "" || (r.KeyMaterialID != "") != (k.Spec == wrapping.SymmetricDefault) {
		t.Errorf("%s under %s: %+v, want %s with proof %s and algorithm %s", k.Spec, w, r, outcome, proof, want.Chosen[k.Spec])
	}
	if outcome == "imported" && len(r.WrappingKeySHA256) != 64 {
		t.Errorf("%s: fingerprint %q", k.Spec, r.WrappingKeySHA256)
	}
}

// roundTrips uses the keys: what KMS encrypts opens in the HSM, what KMS MACs has the same MAC there.
func roundTrips(t *testing.T, tok token.Token, emu *Emulator, keys []Key, want Expect) {
	t.Helper()
	h := hsmtest.Open(t, tok)
	c := emu.Client()
	for _, k := range keys {
		key, err := h.Find(t.Context(), pkcs11uri.URI{Object: k.Name, Type: map[bool]string{true: "secret-key", false: "private"}[k.Spec.MaterialBytes() > 0]})
		if err != nil {
			t.Fatal(err)
		}
		switch k.Spec.Kind() {
		case wrapping.KindSymmetric:
			if want.GCM {
				decryptInHSM(t, h, tok, emu, k)
			}
		case wrapping.KindHMAC:
			if slices.Contains(want.Unproved, k.Spec) {
				continue
			}
			message := []byte("the same message on both sides")
			theirs, err := c.GenerateMAC(t.Context(), k.Destinations[0], "HMAC_SHA_"+string(k.Spec)[5:], message)
			if err != nil {
				t.Fatal(err)
			}
			if ours, err := h.MAC(t.Context(), key, message); err != nil || !bytes.Equal(ours, theirs) {
				t.Errorf("%s: MACs %x and %x, %v", k.Spec, ours, theirs, err)
			}
		case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519, wrapping.KindRefused:
			theirs, err := c.GetPublicKey(t.Context(), k.Destinations[0])
			if err != nil {
				t.Fatal(err)
			}
			if ours, err := h.PublicKey(t.Context(), key); err != nil || !bytes.Equal(ours, theirs) {
				t.Errorf("%s: the public keys differ (%v)", k.Spec, err)
			}
		}
	}
}

// decryptInHSM has the AWS CLI encrypt with the KMS key, and the HSM decrypt with its own.
func decryptInHSM(t *testing.T, h *hsm.Token, tok token.Token, emu *Emulator, k Key) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plaintext")
	if err := os.WriteFile(file, []byte("encrypted in KMS"), 0o600); err != nil {
		t.Fatal(err)
	}
	var answer struct{ CiphertextBlob []byte }
	if err := json.Unmarshal([]byte(emu.AWS("encrypt", "--key-id", k.Destinations[0], "--plaintext", "fileb://"+file, "--output", "json")), &answer); err != nil {
		t.Fatal(err)
	}
	blob, err := kmsemu.ParseBlob(answer.CiphertextBlob)
	if err != nil {
		t.Fatal(err)
	}
	if h.Identity().Label != tok.Label { // the login of h serves the session below
		t.Fatal("another token is open")
	}
	plain, err := hsmtest.DecryptGCM(t, tok, k.Name, blob.IV, blob.Ciphertext)
	if err != nil || string(plain) != "encrypted in KMS" {
		t.Errorf("decrypted in the HSM: %q, %v", plain, err)
	}
}
