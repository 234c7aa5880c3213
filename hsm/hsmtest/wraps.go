package hsmtest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"hash"
	"slices"
	"strings"
	"sync"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/token"
)

func testProbe(t *testing.T, tok token.Token, want Expect) wrapping.Capabilities {
	t.Helper()
	h := Open(t, tok)
	before := keyCount(t, h)
	caps, err := h.Probe(t.Context(), wrapping.KeySpecs()...)
	if err != nil {
		t.Fatal(err)
	}
	if caps.Token != h.Identity() {
		t.Errorf("the capabilities are of %+v, the token is %+v", caps.Token, h.Identity())
	}
	for _, spec := range wrapping.KeySpecs() {
		s := wrapping.Select(spec, caps, wrapping.Policy{})
		var got wrapping.Algorithm
		if len(s.Plans) > 0 {
			got = s.Plans[0].Algorithm
			if s.Plans[0].WrappingKeySpec != wrapping.RSA4096 {
				t.Errorf("%s: under %s, want the longest", spec, s.Plans[0].WrappingKeySpec)
			}
		}
		if got != want.Chosen[spec] {
			t.Errorf("%s: chosen %q, want %q: %v", spec, got, want.Chosen[spec], s.Err())
		}
		if reason := want.Reasons[spec]; reason != "" && !strings.Contains(s.Err().Error(), reason) {
			t.Errorf("%s: %v, want the reason %q", spec, s.Err(), reason)
		}
	}
	if after := keyCount(t, h); after != before {
		t.Errorf("the token has %d keys after the probe, %d before", after, before)
	}
	return caps
}

func keyCount(t *testing.T, h *hsm.Token) int {
	t.Helper()
	keys, err := h.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

// testGenerateAndWrap generates every key that the token can, wraps it by every plan and opens it outside. caps is what the probe found; empty: it
// is made here.
func testGenerateAndWrap(t *testing.T, tok token.Token, caps wrapping.Capabilities, keys throwaways, want Expect) {
	t.Helper()
	h := Open(t, tok)
	if len(caps.Trials) == 0 {
		var err error
		if caps, err = h.Probe(t.Context(), wrapping.KeySpecs()...); err != nil {
			t.Fatal(err)
		}
	}
	opened := wrapped{}
	seen := 0
	for _, spec := range wrapping.KeySpecs() {
		t.Run(string(spec), func(t *testing.T) {
			seen++
			label := "gen-" + string(spec)
			key, err := h.Generate(t.Context(), spec, label, nil)
			if can := slices.Contains(want.Generates, spec); can != (err == nil) {
				t.Fatalf("Generate: %v, want success %v", err, can)
			}
			if err != nil {
				return
			}
			if key.KeySpec != spec || !key.Sensitive || !key.Extractable || len(key.ID) != 16 || len(key.Blockers) != 0 {
				t.Errorf("generated %+v", key)
			}
			if _, err := h.Generate(t.Context(), spec, label, nil); !isErr(err, hsm.ErrExists) {
				t.Errorf("generated again: %v, want ErrExists", err)
			}
			var first []byte
			for _, plan := range wrapping.Select(spec, caps, wrapping.Policy{AllowPKCS1v15: true}).Plans {
				material := wrapAndOpen(t, h, key, plan, keys[plan.WrappingKeySpec], want)
				if first == nil {
					first = material
				}
				if spec.MaterialBytes() > 0 && !bytes.Equal(material, first) {
					t.Errorf("%s under %s: another secret came out than before", plan.Algorithm, plan.WrappingKeySpec)
				}
				opened[proof{spec, plan.Algorithm, plan.WrappingKeySpec}] = !t.Failed()
			}
		})
	}
	if len(opened) == 0 && len(want.Chosen) > 0 {
		t.Error("no key was wrapped")
	}
	if seen == len(wrapping.KeySpecs()) { // -run may have left some out
		testMatrix(t, tok, want.Matrix, caps, opened)
	}
}

// wrapAndOpen wraps key by the plan, checks outside the token that it is that key, and gives what came out.
func wrapAndOpen(t *testing.T, h *hsm.Token, key wrapping.Key, plan wrapping.Plan, rsa *trial.RSAKey, want Expect) []byte {
	t.Helper()
	out, err := h.Wrap(t.Context(), key, rsa.Public(), plan)
	if err != nil {
		t.Fatalf("%s under %s: %v", plan.Algorithm, plan.WrappingKeySpec, err)
	}
	material, err := rsa.Open(plan.Algorithm, out)
	if err != nil {
		t.Fatalf("%s under %s: %v", plan.Algorithm, plan.WrappingKeySpec, err)
	}
	if plan.Length != 0 && len(material) != plan.Length {
		t.Errorf("%d bytes came out, the plan says %d", len(material), plan.Length)
	}
	switch key.KeySpec.Kind() {
	case wrapping.KindSymmetric:
		checkAES(t, h, key, material, want)
	case wrapping.KindHMAC:
		checkHMAC(t, h, key, material, want)
	default:
		checkPair(t, h, key, material)
	}
	return material
}

func checkAES(t *testing.T, h *hsm.Token, key wrapping.Key, material []byte, want Expect) {
	t.Helper()
	block, err := aes.NewCipher(material)
	if err != nil {
		t.Fatal(err)
	}
	kcv := make([]byte, 16)
	block.Encrypt(kcv, kcv)
	got, err := h.CheckValue(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if want.NoCheckValue != (got == "") || got != "" && got != hex.EncodeToString(kcv[:3]) {
		t.Errorf("check value %q, want %x", got, kcv[:3])
	}
}

func checkHMAC(t *testing.T, h *hsm.Token, key wrapping.Key, material []byte, want Expect) {
	t.Helper()
	message := []byte("the same message on both sides")
	theirs, err := h.MAC(t.Context(), key, message)
	if slices.Contains(want.NoMAC, key.KeySpec) {
		class(t, err, hsm.ClassCaller, "C_SignInit")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m := hmac.New(map[wrapping.KeySpec]func() hash.Hash{
		wrapping.HMAC224: sha256.New224, wrapping.HMAC256: sha256.New, wrapping.HMAC384: sha512.New384, wrapping.HMAC512: sha512.New,
	}[key.KeySpec], material)
	m.Write(message)
	if !bytes.Equal(m.Sum(nil), theirs) {
		t.Error("the HMACs differ")
	}
}

// checkPair compares the private key that came out with the token's public half, strictly: nothing may follow
// the PKCS#8.
func checkPair(t *testing.T, h *hsm.Token, key wrapping.Key, material []byte) {
	t.Helper()
	pub, trailing, err := trial.ParsePrivate(material, key.KeySpec)
	if err != nil || trailing != 0 {
		t.Fatalf("PKCS#8: %v, %d trailing bytes", err, trailing)
	}
	der, err := h.PublicKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	point := pub.Point
	if key.KeySpec.Kind() == wrapping.KindRSA {
		point = pub.Modulus
	}
	if !bytes.Contains(der, point) {
		t.Error("the token's public key is not that of the private key that came out")
	}
	if key.KeySpec != wrapping.ECCSECGP256K1 { // crypto/x509 does not know the curve
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			t.Error(err)
		}
	}
}

// testConcurrent wraps with as many goroutines as are common in production.
func testConcurrent(t *testing.T, tok token.Token, keys throwaways, want Expect) {
	t.Helper()
	if want.Chosen[wrapping.SymmetricDefault] == "" {
		t.Fatal("the contract needs a token that wraps AES keys")
	}
	h := Open(t, tok)
	caps, err := h.Probe(t.Context(), wrapping.SymmetricDefault)
	if err != nil {
		t.Fatal(err)
	}
	plan := wrapping.Select(wrapping.SymmetricDefault, caps, wrapping.Policy{}).Plans[0]
	key, err := h.Generate(t.Context(), wrapping.SymmetricDefault, "concurrent", nil)
	if err != nil {
		t.Fatal(err)
	}
	rsa := keys[plan.WrappingKeySpec]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for range 25 {
				if _, err := h.Wrap(ctx, key, rsa.Public(), plan); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
