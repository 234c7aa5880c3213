package bench

import (
	"fmt"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

// BenchmarkWrap reports, for each wrapping key spec on SoftHSM2, how fast hsm wraps and the ratio to the C loop
// ("ratio", 1 is as fast as C). The two take turns in short slices, so that what else the machine does meets both.
func BenchmarkWrap(b *testing.B) {
	tok := softhsm.New(b, "bench").Token
	h := hsmtest.Open(b, tok)
	key, err := h.Generate(b.Context(), wrapping.SymmetricDefault, "bench", nil)
	if err != nil {
		b.Fatal(err)
	}
	caps, err := h.Probe(b.Context(), wrapping.SymmetricDefault)
	if err != nil {
		b.Fatal(err)
	}
	for _, plan := range wrapping.Select(wrapping.SymmetricDefault, caps, wrapping.Policy{}).Plans {
		b.Run(fmt.Sprintf("%s/%s", plan.Algorithm, plan.WrappingKeySpec), func(b *testing.B) { benchWrap(b, h, tok, key, plan) })
	}
}

func benchWrap(b *testing.B, h *hsm.Token, tok token.Token, key wrapping.Key, plan wrapping.Plan) {
	b.Helper()
	b.ReportAllocs()
	rsa, err := trial.NewRSAKey(plan.WrappingKeySpec)
	if err != nil {
		b.Fatal(err)
	}
	wk, err := h.LoadWrappingKey(b.Context(), rsa.Public())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := wk.Close(); err != nil {
			b.Error(err)
		}
	}()
	c := pkcs11.New(tok.Module)
	defer c.Destroy()
	session, loaded := loadForC(b, c, tok, rsa)
	j := job{module: tok.Module, session: uint(session), hash: pkcs11.CKM_SHA_1, mgf: pkcs11.CKG_MGF1_SHA1, wrappingKey: uint(loaded), target: key.Handle}

	// As the WrappingKey's documentation advises whoever wraps many keys.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const slice = 200
	var inC, inGo time.Duration
	wraps := 0
	for b.Loop() {
		start := time.Now()
		for range slice {
			if _, err := wk.Wrap(b.Context(), key, plan); err != nil {
				b.Fatal(err)
			}
		}
		inGo += time.Since(start)
		b.StopTimer()
		start = time.Now()
		if err := j.run(slice); err != nil {
			b.Fatal(err)
		}
		inC += time.Since(start)
		b.StartTimer()
		wraps += slice
	}
	b.ReportMetric(float64(wraps)/inGo.Seconds(), "wraps/s")
	b.ReportMetric(float64(wraps)/inC.Seconds(), "C-wraps/s")
	b.ReportMetric(float64(inC)/float64(inGo), "ratio")
	b.ReportMetric(0, "ns/op") // an op is a slice of both
	if err := c.CloseSession(session); err != nil {
		b.Error(err)
	}
}

// loadForC loads the same public key on a session of the C loop's own.
func loadForC(b *testing.B, c *pkcs11.Ctx, tok token.Token, key *trial.RSAKey) (pkcs11.SessionHandle, pkcs11.ObjectHandle) {
	b.Helper()
	slots, err := c.GetSlotList(true)
	if err != nil {
		b.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := c.GetTokenInfo(slot); err != nil || strings.TrimRight(info.Label, " \x00") != tok.Label {
			continue
		}
		s, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		o, err := c.CreateObject(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, key.Public().N.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(key.Public().E)).Bytes()),
		})
		if err != nil {
			b.Fatal(err)
		}
		return s, o
	}
	b.Fatalf("no token %q", tok.Label)
	return 0, 0
}
