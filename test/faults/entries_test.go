package faults

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what it is
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

// world is a token with a key of each kind, behind the shim.
type world struct {
	t      *testing.T
	module shim.Module
	kms    *trial.RSAKey // in the place of KMS
	kcv    string        // of the AES key
	length int           // of the PKCS#8 of the EC key
	mac    []byte        // of a message, under the HMAC key
	public []byte        // of the signing key
	truth  []wrapping.Trial
	made   int
	tok    *hsm.Token      // the open one, nil when there is none
	files  map[string]bool // of the token, before anything was made
	stored bool            // wrapping public keys are token objects
}

// newWorld makes the keys, and learns what is right.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, module: shim.New(t, softhsm.New(t, "faulty").Token)}
	var err error
	if w.kms, err = trial.NewRSAKey(wrapping.RSA2048); err != nil {
		t.Fatal(err)
	}
	tok := w.open()
	for label, spec := range map[string]wrapping.KeySpec{"aes": wrapping.SymmetricDefault, "mac": wrapping.HMAC256, "ec": wrapping.ECCNISTP384} {
		if _, err := tok.Generate(t.Context(), spec, label, nil); err != nil {
			t.Fatal(err)
		}
	}
	signing, err := tok.GenerateSigning(t.Context(), "signing", nil)
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.GenerateAES(t, w.module.Token, "trusted", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	if w.public, err = tok.PublicKey(t.Context(), signing); err != nil {
		t.Fatal(err)
	}
	if w.kcv, err = tok.CheckValue(t.Context(), w.find(tok, "aes")); err != nil || w.kcv == "" {
		t.Fatal(w.kcv, err)
	}
	if w.mac, err = tok.MAC(t.Context(), w.find(tok, "mac"), []byte("message")); err != nil {
		t.Fatal(err)
	}
	c, err := tok.Probe(t.Context(), wrapping.SymmetricDefault)
	if err != nil {
		t.Fatal(err)
	}
	w.truth = c.Trials
	w.shut(tok)
	w.files = map[string]bool{}
	for _, f := range token.Files(t, w.module.Dir) {
		w.files[f] = true
	}
	return w
}

// token gives the open token, or opens it.
func (w *world) token() *hsm.Token {
	w.t.Helper()
	if w.tok == nil {
		w.tok = w.open()
	}
	return w.tok
}

// use has the token opened as the operation wants it.
func (w *world) use(e entry) {
	w.t.Helper()
	if w.stored != e.stored {
		w.fresh()
		w.stored = e.stored
	}
}

// stays is what an error has to say of an object that could not be destroyed.
const stays = "still be in the token"

// fresh closes the token, and takes away what was made in it: a token with hundreds of keys is slow.
func (w *world) fresh() {
	w.t.Helper()
	if w.tok != nil {
		if err := w.tok.Close(); err != nil && (!w.stored || !strings.Contains(err.Error(), stays)) {
			w.t.Error(err)
		}
		w.tok = nil
	}
	for _, f := range token.Files(w.t, w.module.Dir) {
		if !w.files[f] && strings.Contains(f, "/tokens/") {
			if err := os.Remove(f); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// open opens the token. An earlier refusal of the login is forgotten, as when a person has looked.
func (w *world) open() *hsm.Token {
	w.t.Helper()
	c := hsmtest.Config(w.t, w.module.Token)
	c.LoginAgain = true
	if w.stored {
		c.Quirks = quirks.Override{TokenPublicKey: &w.stored, PublicKeyAttributes: []quirks.Attribute{{Name: "CKA_PRIVATE", Type: pkcs11.CKA_PRIVATE, Value: true}}}
	}
	tok, err := hsm.Open(w.t.Context(), c, hsmtest.PIN(w.module.PIN))
	if err != nil {
		w.t.Fatal(err)
	}
	return tok
}

func (w *world) shut(tok *hsm.Token) {
	w.t.Helper()
	if err := tok.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) find(tok *hsm.Token, label string) wrapping.Key {
	w.t.Helper()
	key, err := tok.Find(w.t.Context(), pkcs11uri.URI{Object: label})
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

// errWrong says that an operation ended well with a wrong result.
var errWrong = errors.New("a wrong result")

// entry is an operation of hsm.Token.
type entry struct {
	name string
	// prepare finds what the operation is about, before the fault; it may be nil.
	prepare []string
	// run does it and gives errWrong when the result is not right.
	run func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error
	// caught is where a wrong result is found.
	caught string
	// stores is how many objects it leaves in the token when it ends well.
	stores int
	// slow says that it meets one fault of each class only, and that something else shows that the token is usable again.
	slow bool
	// stored says that the token takes a wrapping public key only as a token object, a private one.
	stored bool
}

func plan(spec wrapping.KeySpec, a wrapping.Algorithm, m wrapping.Mechanism, length int) wrapping.Plan {
	return wrapping.Plan{KeySpec: spec, Algorithm: a, WrappingKeySpec: wrapping.RSA2048, Mechanism: m, Length: length}
}

var (
	oaep     = wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: pkcs11.CKM_RSA_PKCS_OAEP, Form: wrapping.FormOAEP}
	composed = wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP_PAD", Type: pkcs11.CKM_AES_KEY_WRAP_PAD, Form: wrapping.FormKWP}
)

// entries are all operations that the rest of hsmbridge uses.
func entries() []entry {
	wrapOAEP := plan(wrapping.SymmetricDefault, wrapping.OAEPSHA1, oaep, 32)
	return []entry{
		{name: "Find", run: func(ctx context.Context, _ *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			key, err := tok.Find(ctx, pkcs11uri.URI{Object: "aes"})
			return result(err, key.KeySpec == wrapping.SymmetricDefault && key.Label == "aes" && len(key.Blockers) == 0)
		}, caught: "it cannot be imported: its attributes forbid it"},
		{name: "Keys", run: func(ctx context.Context, _ *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			keys, err := tok.Keys(ctx)
			good := 0
			for _, k := range keys {
				if k.KeySpec != "" {
					good++
				}
			}
			return result(err, good >= 5)
		}, caught: "shown to a person"},
		{name: "Mechanisms", run: func(ctx context.Context, _ *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			list, err := tok.Mechanisms(ctx)
			return result(err, len(list) > 0)
		}},
		{name: "Generate", stores: 1, run: func(ctx context.Context, w *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			w.made++
			_, err := tok.Generate(ctx, wrapping.SymmetricDefault, fmt.Sprintf("made-%d", w.made), nil)
			return err
		}},
		{name: "GenerateSigning", stores: 2, run: func(ctx context.Context, w *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			w.made++
			_, err := tok.GenerateSigning(ctx, fmt.Sprintf("made-%d", w.made), nil)
			return err
		}},
		{name: "Probe", slow: true, run: func(ctx context.Context, w *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			c, err := tok.Probe(ctx, wrapping.SymmetricDefault)
			return result(err, cmp.Equal(w.truth, c.Trials))
		}, caught: "the trial says why it failed"},
		{name: "Wrap, OAEP", prepare: []string{"aes"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			out, err := tok.Wrap(ctx, keys["aes"], w.kms.Public(), wrapOAEP)
			return result(err, err == nil && w.isAES(out))
		}, caught: "KMS refuses it"},
		{name: "Wrap, stored public key", stored: true, prepare: []string{"aes"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			out, err := tok.Wrap(ctx, keys["aes"], w.kms.Public(), wrapOAEP)
			return result(err, err == nil && w.isAES(out))
		}, caught: "KMS refuses it"},
		{name: "Wrap, RSA_AES", prepare: []string{"ec"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			out, err := tok.Wrap(ctx, keys["ec"], w.kms.Public(), plan(wrapping.ECCNISTP384, wrapping.RSAAESSHA1, composed, w.length))
			if err != nil {
				return err
			}
			_, material, err := w.kms.OpenRSAAES(wrapping.RSAAESSHA1, out)
			if w.length == 0 {
				w.length = len(material)
			}
			return result(nil, err == nil && len(material) == w.length)
		}, caught: "KMS refuses it"},
		{name: "WrappingKey", prepare: []string{"aes"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			wk, err := tok.LoadWrappingKey(ctx, w.kms.Public())
			if err != nil {
				return err
			}
			out, err := wk.Wrap(ctx, keys["aes"], wrapOAEP)
			return result(errors.Join(err, wk.Close()), err == nil && w.isAES(out))
		}, caught: "KMS refuses it"},
		{name: "WrapTrusted", run: func(ctx context.Context, w *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			out, err := tok.WrapTrusted(ctx, hsmtest.PIN(w.module.SOPIN), hsmtest.PIN(w.module.PIN), pkcs11uri.URI{Object: "trusted"}, &trustedKey().PublicKey, wrapOAEP)
			if err != nil {
				return err
			}
			material, err := rsa.DecryptOAEP(sha1.New(), nil, trustedKey(), out, nil) //nolint:gosec // see the import
			return result(nil, err == nil && len(material) == 32)
		}, caught: "KMS refuses it"},
		{name: "PublicKey", prepare: []string{"signing"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			der, err := tok.PublicKey(ctx, keys["signing"])
			return result(err, bytes.Equal(der, w.public))
		}, caught: "the proof fails: KMS has another public key"},
		{name: "MAC", prepare: []string{"mac"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			mac, err := tok.MAC(ctx, keys["mac"], []byte("message"))
			return result(err, hmac.Equal(mac, w.mac))
		}, caught: "the proof fails: KMS computes another MAC"},
		{name: "CheckValue", prepare: []string{"aes"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			kcv, err := tok.CheckValue(ctx, keys["aes"])
			return result(err, kcv == w.kcv)
		}, caught: "it differs from the one that was recorded at the first import"},
		{name: "SignVerified", prepare: []string{"signing"}, run: func(ctx context.Context, w *world, tok *hsm.Token, keys map[string]wrapping.Key) error {
			_, err := tok.SignVerified(ctx, keys["signing"], w.public, []byte("checkpoint"))
			return err
		}},
		{name: "SessionObjects", run: func(ctx context.Context, _ *world, tok *hsm.Token, _ map[string]wrapping.Key) error {
			n, err := tok.SessionObjects(ctx)
			return result(err, n == 0)
		}, caught: "a test or a person looks"},
	}
}

func result(err error, right bool) error {
	if err == nil && !right {
		return errWrong
	}
	return err
}

// isAES says that out opens to the AES key.
func (w *world) isAES(out []byte) bool {
	material, err := w.kms.OpenOAEP(wrapping.OAEPSHA1, out)
	if err != nil || len(material) != 32 {
		return false
	}
	block, err := aes.NewCipher(material)
	if err != nil {
		return false
	}
	check := make([]byte, aes.BlockSize)
	block.Encrypt(check, check)
	return hex.EncodeToString(check[:3]) == w.kcv
}

// trustedKey is the wrapping key of trusted wraps. Go's RSA opens what comes out.
var trustedKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
