package kmsclient

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var rsa2048 = sync.OnceValue(func() *rsa.PublicKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return &k.PublicKey
})

func spki(t testing.TB, pub any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// parameters is what the server gives to GetParametersForImport.
type parameters struct {
	KeyID, Token string
	DER          []byte
	ValidTo      time.Time
}

func (p parameters) body() map[string]any {
	body := map[string]any{}
	if p.KeyID != "" {
		body["KeyId"] = p.KeyID
	}
	if p.Token != "" {
		body["ImportToken"] = base64.StdEncoding.EncodeToString([]byte(p.Token))
	}
	if p.DER != nil {
		body["PublicKey"] = base64.StdEncoding.EncodeToString(p.DER)
	}
	if !p.ValidTo.IsZero() {
		body["ParametersValidTo"] = float64(p.ValidTo.Unix())
	}
	return body
}

func TestGetParametersForImport(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	good := parameters{KeyID: testARN, Token: "an import token", DER: spki(t, rsa2048()), ValidTo: now.Add(24 * time.Hour)}
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { answerJSON(t, w, 200, good.body()) })
	c := newTestClient(t, s.URL, func(c *Config) { c.Now = func() time.Time { return now } })
	p, err := c.GetParametersForImport(t.Context(), testARN, "RSAES_OAEP_SHA_256", "RSA_2048")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(good.DER)
	if p.KeyARN != testARN || p.Algorithm != "RSAES_OAEP_SHA_256" || p.WrappingKeySpec != "RSA_2048" || !p.PublicKey.Equal(rsa2048()) ||
		!bytes.Equal(p.PublicKeyDER, good.DER) || string(p.ImportToken) != good.Token || !p.ValidTo.Equal(good.ValidTo) || p.ValidTo.Location() != time.UTC ||
		p.RequestID != "request-1" || p.SHA256() != hex.EncodeToString(sum[:]) {
		t.Errorf("got %+v", p)
	}
	want := map[string]any{"KeyId": testARN, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
	if got := s.seen()[0].Body; len(got) != 3 || got["KeyId"] != want["KeyId"] || got["WrappingAlgorithm"] != want["WrappingAlgorithm"] || got["WrappingKeySpec"] != want["WrappingKeySpec"] {
		t.Errorf("sent %v", got)
	}
}

// Every check refuses, with its reason, and nothing of the answer reaches the caller.
func TestUntrustedParameters(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	with := func(n *big.Int, e int) []byte { return spki(t, &rsa.PublicKey{N: n, E: e}) }
	n := rsa2048().N
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 2048), big.NewInt(1942289))
	if !prime.ProbablyPrime(20) {
		t.Fatal("2^2048 - 1942289 should be prime")
	}
	threes := new(big.Int).Mul(big.NewInt(3), new(big.Int).Rsh(prime, 2)) // 2048 bits, and odd below
	threes.Or(threes, big.NewInt(1))
	for new(big.Int).Mod(threes, big.NewInt(3)).Sign() != 0 {
		threes.Add(threes, big.NewInt(2))
	}
	inner := insertInner(t, spki(t, rsa2048()))
	for _, tc := range []struct {
		name   string
		change func(*parameters)
		says   string
	}{
		{"another key", func(p *parameters) { p.KeyID = strings.Replace(testARN, "1234", "4321", 1) }, "not for the key that was asked for"},
		{"another account", func(p *parameters) { p.KeyID = strings.Replace(testARN, "1111", "9999", 1) }, "not for the key that was asked for"},
		{"key ID only", func(p *parameters) { p.KeyID = keyID(testARN) }, "not for the key that was asked for"},
		{"no key named", func(p *parameters) { p.KeyID = "" }, "not for the key that was asked for"},
		{"no token", func(p *parameters) { p.Token = "" }, "there is no import token"},
		{"huge token", func(p *parameters) { p.Token = strings.Repeat("a", 6145) }, "has 6145 bytes and at most 6144"},
		{"no validity", func(p *parameters) { p.ValidTo = time.Time{} }, "until when they are valid"},
		{"past", func(p *parameters) { p.ValidTo = now.Add(-time.Second) }, "they were valid until 2026-11-23T11:59:59Z and it is 2026-11-23T12:00:00Z now"},
		{"now", func(p *parameters) { p.ValidTo = now }, "they were valid until"},
		{"too long", func(p *parameters) { p.ValidTo = now.Add(24*time.Hour + 5*time.Minute + time.Second) }, "more than 24 hours from now"},
		{"no public key", func(p *parameters) { p.DER = nil }, "the public key has 0 bytes"},
		{"huge public key", func(p *parameters) { p.DER = make([]byte, 8193) }, "the public key has 8193 bytes"},
		{"not DER", func(p *parameters) { p.DER = []byte("-----BEGIN PUBLIC KEY-----") }, "not a DER SubjectPublicKeyInfo"},
		{"trailing byte", func(p *parameters) { p.DER = append(slices.Clone(p.DER), 0) }, "not a DER SubjectPublicKeyInfo"},
		{"trailing byte inside", func(p *parameters) { p.DER = inner }, "not in canonical DER"},
		{"PKCS#1", func(p *parameters) { p.DER = x509.MarshalPKCS1PublicKey(rsa2048()) }, "not a DER SubjectPublicKeyInfo"},
		{"not RSA", func(p *parameters) { p.DER = spki(t, &ec.PublicKey) }, "not an RSA key"},
		{"one bit short", func(p *parameters) { p.DER = with(new(big.Int).Or(new(big.Int).Rsh(n, 1), big.NewInt(1)), 65537) }, "has 2047 bits and 2048 were asked for"},
		{"longer than asked for", func(p *parameters) { p.DER = with(new(big.Int).SetBit(n, 3071, 1), 65537) }, "has 3072 bits and 2048 were asked for"},
		{"e = 3", func(p *parameters) { p.DER = with(n, 3) }, "the public exponent is 3 and not 65537"},
		{"even modulus", func(p *parameters) { p.DER = with(new(big.Int).SetBit(n, 0, 0), 65537) }, "the modulus is even"},
		{"small factor", func(p *parameters) { p.DER = with(threes, 65537) }, "has the small factor"},
		{"prime modulus", func(p *parameters) { p.DER = with(prime, 65537) }, "is a prime number"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := parameters{KeyID: testARN, Token: "an import token", DER: spki(t, rsa2048()), ValidTo: now.Add(24 * time.Hour)}
			tc.change(&p)
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { answerJSON(t, w, 200, p.body()) })
			c := newTestClient(t, s.URL, func(c *Config) { c.Now = func() time.Time { return now } })
			got, err := c.GetParametersForImport(t.Context(), testARN, "RSAES_OAEP_SHA_256", "RSA_2048")
			e, ok := errors.AsType[*UntrustedParametersError](err)
			if !ok || !strings.Contains(e.Reason, tc.says) || e.Class() != ClassCaller || e.KeyARN != testARN || e.RequestID != "request-1" {
				t.Fatalf("got %v", err)
			}
			sum := sha256.Sum256(p.DER)
			if e.SHA256 != hex.EncodeToString(sum[:]) || !strings.Contains(err.Error(), "was not used: "+e.Reason) || strings.Contains(err.Error(), "an import token") {
				t.Errorf("text: %v", err)
			}
			if got.PublicKey != nil || got.PublicKeyDER != nil || got.ImportToken != nil || len(s.seen()) != 1 {
				t.Errorf("got %+v after %d requests", got, len(s.seen()))
			}
		})
	}
}

// The clocks of KMS and of this machine may differ a little.
func TestParametersClockSkew(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, d := range []time.Duration{time.Second, 24 * time.Hour, 24*time.Hour + 5*time.Minute} {
		p := ImportParameters{KeyARN: testARN, WrappingKeySpec: "RSA_2048", PublicKeyDER: spki(t, rsa2048()), ImportToken: []byte{1}, ValidTo: now.Add(d)}
		if err := p.check(testARN, now); err != nil || p.PublicKey == nil {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// insertInner puts a byte behind the RSAPublicKey, inside the BIT STRING, with all lengths right.
func insertInner(t *testing.T, der []byte) []byte {
	t.Helper()
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		t.Fatal(err)
	}
	info.Key.Bytes = append(info.Key.Bytes, 0)
	info.Key.BitLength += 8
	out, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParsePKIXPublicKey(out); err != nil {
		t.Logf("the parser refuses it itself now: %v", err)
	}
	return out
}

// Whatever bytes come: no panic, and an accepted key is exactly what the bytes say.
func FuzzParseWrappingKey(f *testing.F) {
	der := spki(f, rsa2048())
	f.Add(der, uint8(0))
	f.Add(append(slices.Clone(der), 0), uint8(0))
	f.Add(x509.MarshalPKCS1PublicKey(rsa2048()), uint8(1))
	f.Add([]byte{0x30, 0x80}, uint8(2))
	f.Fuzz(func(t *testing.T, der []byte, which uint8) {
		spec := []string{"RSA_2048", "RSA_3072", "RSA_4096"}[which%3]
		p := ImportParameters{KeyARN: testARN, WrappingKeySpec: spec, PublicKeyDER: der, ImportToken: []byte{1}, ValidTo: time.Now().Add(time.Hour)}
		if p.check(testARN, time.Now()) != nil {
			if p.PublicKey != nil {
				t.Error("a refused key is handed out")
			}
			return
		}
		again := spki(t, p.PublicKey)
		if !bytes.Equal(again, der) || p.PublicKey.N.BitLen() != specBits(spec) || p.PublicKey.E != 65537 || p.PublicKey.N.Bit(0) != 1 {
			t.Errorf("accepted %x", der)
		}
	})
}

// TestModulus holds the check against the plain reading of NIST SP 800-89, 5.3.3.
func TestModulus(t *testing.T) {
	n := rsa2048().N
	times := func(f int64) *big.Int { return new(big.Int).Mul(n, big.NewInt(f)) }
	prime, ok := new(big.Int).SetString("170141183460469231731687303715884105727", 10) // 2^127 - 1
	if !ok {
		t.Fatal("no number")
	}
	for f := int64(3); f < 752; f += 2 {
		if err := checkModulus(times(f)); err == nil || !strings.Contains(err.Error(), "small factor") {
			t.Fatalf("a multiple of %d: %v", f, err)
		}
	}
	for _, tt := range []struct {
		name string
		n    *big.Int
		want string
	}{
		{"an RSA modulus", n, ""},
		{"even", times(2), "even"},
		{"a factor that is not small", times(757), ""},
		{"prime", prime, "prime"},
		{"a strong pseudoprime to base 2 is composite", big.NewInt(1_194_649), ""}, // 1093 squared, a Wieferich prime
		{"a square", new(big.Int).Mul(prime, prime), ""},
	} {
		if err := checkModulus(tt.n); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestAgainOnce shows that other bytes are checked in any case, and the same bytes once in one process.
func TestAgainOnce(t *testing.T) {
	now := time.Now()
	p := ImportParameters{KeyARN: testARN, WrappingKeySpec: "RSA_2048", PublicKeyDER: spki(t, rsa2048()), ImportToken: []byte{1}, ValidTo: now.Add(time.Hour)}
	p, err := p.Again(now)
	if err != nil {
		t.Fatal(err)
	}
	once := p.PublicKey
	if p, err = p.Again(now); err != nil || p.PublicKey != once {
		t.Errorf("the same bytes were read twice: %v", err)
	}
	if _, err := p.Again(now.Add(2 * time.Hour)); err == nil {
		t.Error("parameters that are no longer valid passed")
	}
	for name, spoil := range map[string]func(p *ImportParameters){
		"other bytes":    func(p *ImportParameters) { p.PublicKeyDER = append(slices.Clone(p.PublicKeyDER), 0) },
		"no bytes":       func(p *ImportParameters) { p.PublicKeyDER = nil },
		"another spec":   func(p *ImportParameters) { p.WrappingKeySpec = "RSA_4096" },
		"another number": func(p *ImportParameters) { p.PublicKeyDER = slices.Clone(p.PublicKeyDER); p.PublicKeyDER[100] ^= 1 },
	} {
		bad := p
		spoil(&bad)
		if got, err := bad.Again(now); err == nil && got.PublicKey == once {
			t.Errorf("%s: what passed before was taken for it", name)
		}
	}
}

// BenchmarkParseWrappingKey reads a wrapping public key and checks it ("check"), beside the way of checking that makes the product of the small primes
// by testing each number below 752 for being prime ("plain"), in turns.
func BenchmarkParseWrappingKey(b *testing.B) {
	for _, bits := range []int{2048, 4096} {
		b.Run(fmt.Sprintf("RSA_%d", bits), func(b *testing.B) {
			key, err := rsa.GenerateKey(rand.Reader, bits)
			if err != nil {
				b.Fatal(err)
			}
			der := spki(b, &key.PublicKey)
			var check, plain time.Duration
			n := 0
			for ; b.Loop(); n++ {
				begin := time.Now()
				if _, err := parseWrappingKey(der, bits); err != nil {
					b.Fatal(err)
				}
				check += time.Since(begin)
				begin = time.Now()
				if !plainCheck(key.N) {
					b.Fatal("refused")
				}
				plain += time.Since(begin)
			}
			b.ReportMetric(float64(check.Microseconds())/float64(n), "check-µs")
			b.ReportMetric(float64(plain.Microseconds())/float64(n), "plain-µs")
			b.ReportMetric(0, "ns/op") // an op is both
		})
	}
}

func plainCheck(n *big.Int) bool {
	product := big.NewInt(1)
	for p := int64(3); p < 752; p += 2 {
		if candidate := big.NewInt(p); candidate.ProbablyPrime(0) {
			product.Mul(product, candidate)
		}
	}
	return new(big.Int).GCD(nil, nil, n, product).Cmp(big.NewInt(1)) == 0 && !n.ProbablyPrime(0)
}
