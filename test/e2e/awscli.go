package e2e

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/token"
)

// AWSCLI does the KMS half with the AWS CLI in place of our client: get-parameters-for-import, the wrap in the
// token, import-key-material, for one key of each of the specs.
func AWSCLI(t *testing.T, tok token.Token, specs ...wrapping.KeySpec) {
	t.Helper()
	emu := StartEmulator(t)
	c := emu.Client()
	h := hsmtest.Open(t, tok)
	caps, err := h.Probe(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range specs {
		t.Run(string(spec), func(t *testing.T) {
			arn := emu.CreateKey(c, spec)
			key, err := h.Generate(t.Context(), spec, "cli-"+string(spec), nil)
			if err != nil {
				t.Fatal(err)
			}
			s := wrapping.Select(spec, caps, wrapping.Policy{})
			if err := s.Err(); err != nil {
				t.Fatal(err)
			}
			plan := s.Plans[0]
			var params struct{ PublicKey, ImportToken []byte }
			answer := emu.AWS("get-parameters-for-import", "--key-id", arn, "--wrapping-algorithm", string(plan.Algorithm),
				"--wrapping-key-spec", string(plan.WrappingKeySpec), "--output", "json")
			if err := json.Unmarshal([]byte(answer), &params); err != nil {
				t.Fatal(err)
			}
			parsed, err := x509.ParsePKIXPublicKey(params.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			pub, ok := parsed.(*rsa.PublicKey)
			if !ok {
				t.Fatalf("the wrapping public key is a %T", parsed)
			}
			out, err := h.Wrap(t.Context(), key, pub, plan)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			write := func(name string, b []byte) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return "fileb://" + path
			}
			emu.AWS("import-key-material", "--key-id", arn, "--encrypted-key-material", write("EncryptedKeyMaterial.bin", out),
				"--import-token", write("ImportToken.bin", params.ImportToken), "--expiration-model", "KEY_MATERIAL_DOES_NOT_EXPIRE")
			if state := emu.AWS("describe-key", "--key-id", arn, "--query", "KeyMetadata.KeyState", "--output", "text"); state != "Enabled" {
				t.Errorf("the KMS key is %s", state)
			}
		})
	}
}
