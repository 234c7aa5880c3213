package tpm2_test

import (
	"strings"
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
)

// TestCommands holds that a person learns, from each command, that the token cannot wrap and why, and that nothing was made or sent.
func TestCommands(t *testing.T) {
	tok := freshToken(t, "commands")
	tok.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "made-elsewhere", "--id", "01")
	emu := e2e.StartEmulator(t)
	keys := []e2e.Key{{Name: "k", Spec: wrapping.SymmetricDefault, Generate: true, Destinations: []string{emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)}}}
	config := e2e.Config(t, emu.Endpoint, tok, keys, "")
	const warning = "the token cannot wrap keys: it lists no mechanism that wraps, and C_WrapKey answers CKR_FUNCTION_NOT_SUPPORTED (0x54)"
	for _, tt := range []struct {
		args string
		code int
		want []string
	}{
		{"probe", 0, []string{"CKM_RSA_PKCS_OAEP     listed, not for wrapping  never worked", "SYMMETRIC_DEFAULT      none "}},
		{"keys list", 0, []string{"made-elsewhere  EC P-256  256   01  ECC_NIST_P256  no", "made-elsewhere: the token cannot wrap keys"}},
		{"keys generate k", 4, []string{"keys for AWS KMS have to be made in an HSM that wraps; nothing was done"}},
		{"plan k", 4, []string{"RSAES_OAEP_SHA_256 by CKM_RSA_PKCS_OAEP: " + warning}},
		{"import k", 4, []string{"1 of 1 destinations failed"}},
	} {
		out := e2e.Run(t, config, strings.Fields(tt.args)...)
		if out.Code != tt.code {
			t.Errorf("%s: exit code %d, want %d", tt.args, out.Code, tt.code)
		}
		for _, want := range append(tt.want, warning+"; no key can go from it to AWS KMS") {
			if !strings.Contains(out.Stdout+out.Stderr, want) {
				t.Errorf("%s does not say %q:\n%s\n%s", tt.args, want, out.Stdout, out.Stderr)
			}
		}
	}
	if n := emu.Count("ImportKeyMaterial"); n != "0" {
		t.Errorf("%s imports were sent", n)
	}
	if list := tok.Tool(t, "--list-objects", "--type", "secrkey"); strings.Contains(list, "Secret Key") {
		t.Errorf("a key was made:\n%s", list)
	}
}
