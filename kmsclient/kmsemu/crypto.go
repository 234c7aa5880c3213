package kmsemu

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	k256ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// Blob is a ciphertext blob taken apart; the package comment has the layout.
type Blob struct {
	KeyID      string
	MaterialID string
	IV         []byte // 12 bytes
	Ciphertext []byte // AES-256-GCM, tag at the end
}

const blobHead = 1 + 16 + 32 + 12

// ParseBlob takes a ciphertext blob apart.
func ParseBlob(b []byte) (Blob, error) {
	if len(b) < blobHead+16 || b[0] != 1 {
		return Blob{}, errors.New("not a ciphertext blob of the emulator")
	}
	return Blob{
		KeyID: hex.EncodeToString(b[1:17]), MaterialID: hex.EncodeToString(b[17:49]), IV: b[49:blobHead], Ciphertext: b[blobHead:],
	}, nil
}

func bareID(id string) string { return strings.ReplaceAll(strings.TrimPrefix(id, "mrk-"), "-", "") }

func seal(k *key, m *material, plain []byte, context map[string]string) ([]byte, error) {
	id, err := hex.DecodeString(bareID(k.ID))
	if err != nil {
		return nil, err
	}
	mid, err := hex.DecodeString(m.ID)
	if err != nil {
		return nil, err
	}
	gcm, err := newGCM(m.Bytes)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, 12)
	if _, err := rand.Read(iv); err != nil {
		return nil, err
	}
	head := slices.Concat([]byte{1}, id, mid, iv)
	return gcm.Seal(head, iv, plain, aad(context)), nil
}

func newGCM(k []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// aad is the encryption context as JSON with sorted names; nothing for none.
func aad(context map[string]string) []byte {
	if len(context) == 0 {
		return nil
	}
	b, _ := json.Marshal(context) //nolint:errchkjson // a map of strings
	return b
}

func encrypt(s *Server, c call) (any, error) {
	var in struct {
		KeyID, EncryptionAlgorithm string
		Plaintext                  []byte
		EncryptionContext          map[string]string
	}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	k, m, err := s.usable(c, in.KeyID, "ENCRYPT_DECRYPT")
	switch {
	case err != nil:
		return nil, err
	case len(in.Plaintext) == 0 || len(in.Plaintext) > 4096:
		return nil, fail("ValidationException", "Plaintext must have 1 to 4096 bytes")
	case !k.symmetric():
		p, err := parsePrivate(k.Spec, m.Bytes)
		if err != nil {
			return nil, err
		}
		out, err := rsa.EncryptOAEP(oaepHash(in.EncryptionAlgorithm), rand.Reader, &p.rsa.PublicKey, in.Plaintext, nil)
		if err != nil {
			return nil, fail("ValidationException", "%v", err)
		}
		return map[string]any{"KeyId": k.ARN, "CiphertextBlob": out, "EncryptionAlgorithm": in.EncryptionAlgorithm}, nil
	}
	blob, err := seal(k, m, in.Plaintext, in.EncryptionContext)
	return map[string]any{"KeyId": k.ARN, "CiphertextBlob": blob, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, err
}

func oaepHash(algorithm string) hash.Hash {
	if algorithm == "RSAES_OAEP_SHA_1" {
		return crypto.SHA1.New()
	}
	return sha256.New()
}

func decrypt(s *Server, c call) (any, error) {
	var in struct {
		KeyID, EncryptionAlgorithm string
		CiphertextBlob             []byte
		EncryptionContext          map[string]string
	}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if strings.HasPrefix(in.EncryptionAlgorithm, "RSAES") {
		return s.decryptRSA(c, in.KeyID, in.EncryptionAlgorithm, in.CiphertextBlob)
	}
	blob, err := ParseBlob(in.CiphertextBlob)
	if err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	for _, k := range s.keys {
		if k.Region != c.region || bareID(k.ID) != blob.KeyID {
			continue
		}
		if in.KeyID != "" {
			if asked, err := s.lookup(c, in.KeyID); err != nil || asked != k {
				return nil, fail("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
			}
		}
		if _, _, err := s.usable(c, k.ARN, "ENCRYPT_DECRYPT"); err != nil {
			return nil, err
		}
		for _, m := range k.Materials {
			if m.ID != blob.MaterialID || m.Bytes == nil {
				continue
			}
			gcm, err := newGCM(m.Bytes)
			if err != nil {
				return nil, err
			}
			plain, err := gcm.Open(nil, blob.IV, blob.Ciphertext, aad(in.EncryptionContext))
			if err != nil {
				return nil, fail("InvalidCiphertextException", "")
			}
			return map[string]any{"KeyId": k.ARN, "Plaintext": plain, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "KeyMaterialId": m.ID}, nil
		}
	}
	return nil, fail("InvalidCiphertextException", "")
}

func (s *Server) decryptRSA(c call, id, algorithm string, blob []byte) (any, error) {
	k, m, err := s.usable(c, id, "ENCRYPT_DECRYPT")
	if err != nil {
		return nil, err
	}
	p, err := parsePrivate(k.Spec, m.Bytes)
	if err != nil || p.rsa == nil {
		return nil, fail("InvalidKeyUsageException", "%s is not an RSA key", k.ARN)
	}
	plain, err := rsa.DecryptOAEP(oaepHash(algorithm), nil, p.rsa, blob, nil)
	if err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	return map[string]any{"KeyId": k.ARN, "Plaintext": plain, "EncryptionAlgorithm": algorithm}, nil
}

// generateDataKey is GenerateDataKey and GenerateDataKeyWithoutPlaintext.
func generateDataKey(plaintext bool) func(*Server, call) (any, error) {
	return func(s *Server, c call) (any, error) {
		var in struct {
			KeyID, KeySpec    string
			NumberOfBytes     int
			EncryptionContext map[string]string
		}
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		n := in.NumberOfBytes
		if n == 0 {
			n = map[string]int{"AES_256": 32, "AES_128": 16}[in.KeySpec]
		}
		k, m, err := s.usable(c, in.KeyID, "ENCRYPT_DECRYPT")
		switch {
		case err != nil:
			return nil, err
		case n < 1 || n > 1024:
			return nil, fail("ValidationException", "Please specify either number of bytes or key spec.")
		case !k.symmetric():
			return nil, fail("InvalidKeyUsageException", "%s", k.ARN)
		}
		data := make([]byte, n)
		if _, err := rand.Read(data); err != nil {
			return nil, err
		}
		blob, err := seal(k, m, data, in.EncryptionContext)
		out := map[string]any{"KeyId": k.ARN, "CiphertextBlob": blob, "KeyMaterialId": m.ID}
		if plaintext {
			out["Plaintext"] = data
		}
		return out, err
	}
}

func macOf(k *key, m *material, message []byte) []byte {
	h := hmac.New(map[string]func() hash.Hash{"HMAC_224": sha256.New224, "HMAC_256": sha256.New, "HMAC_384": sha512.New384, "HMAC_512": sha512.New}[k.Spec], m.Bytes)
	h.Write(message)
	return h.Sum(nil)
}

// mac is GenerateMac and VerifyMac.
func mac(verify bool) func(*Server, call) (any, error) {
	return func(s *Server, c call) (any, error) {
		var in struct {
			KeyID, MacAlgorithm string
			Message, Mac        []byte
		}
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		k, m, err := s.usable(c, in.KeyID, "GENERATE_VERIFY_MAC")
		switch {
		case err != nil:
			return nil, err
		case in.MacAlgorithm != "HMAC_SHA_"+k.Spec[5:]:
			return nil, fail("InvalidKeyUsageException", "Algorithm %s is incompatible with key spec %s.", in.MacAlgorithm, k.Spec)
		case len(in.Message) == 0 || len(in.Message) > 4096:
			return nil, fail("ValidationException", "Message must have 1 to 4096 bytes")
		}
		sum := macOf(k, m, in.Message)
		if !verify {
			return map[string]any{"KeyId": k.ARN, "Mac": sum, "MacAlgorithm": in.MacAlgorithm}, nil
		}
		if !hmac.Equal(sum, in.Mac) {
			return nil, fail("KMSInvalidMacException", "")
		}
		return map[string]any{"KeyId": k.ARN, "MacValid": true, "MacAlgorithm": in.MacAlgorithm}, nil
	}
}

func signingAlgorithms(spec string) []string {
	switch spec {
	case "ECC_NIST_P256", "ECC_SECG_P256K1":
		return []string{"ECDSA_SHA_256"}
	case "ECC_NIST_P384":
		return []string{"ECDSA_SHA_384"}
	case "ECC_NIST_P521":
		return []string{"ECDSA_SHA_512"}
	case "ECC_NIST_EDWARDS25519":
		return []string{"ED25519_SHA_512", "ED25519_PH_SHA_512"}
	}
	return []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
}

func getPublicKey(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	k, m, err := s.usable(c, in.KeyID, "SIGN_VERIFY", "ENCRYPT_DECRYPT", "KEY_AGREEMENT")
	switch {
	case err != nil:
		return nil, err
	case k.symmetric():
		return nil, fail("UnsupportedOperationException", "%s is a symmetric key.", k.ARN)
	}
	p, err := parsePrivate(k.Spec, m.Bytes)
	if err != nil {
		return nil, err
	}
	der, err := p.public()
	out := map[string]any{"KeyId": k.ARN, "PublicKey": der, "KeySpec": k.Spec, "CustomerMasterKeySpec": k.Spec, "KeyUsage": k.Usage}
	for name, list := range algorithms(k) {
		out[name] = list
	}
	return out, err
}

// signature is Sign and Verify.
func signature(verify bool) func(*Server, call) (any, error) {
	return func(s *Server, c call) (any, error) {
		var in struct {
			KeyID, MessageType, SigningAlgorithm string
			Message, Signature                   []byte
		}
		if err := c.decode(&in); err != nil {
			return nil, err
		}
		k, m, err := s.usable(c, in.KeyID, "SIGN_VERIFY")
		switch {
		case err != nil:
			return nil, err
		case !slices.Contains(signingAlgorithms(k.Spec), in.SigningAlgorithm):
			return nil, fail("InvalidKeyUsageException", "Algorithm %s is incompatible with key spec %s.", in.SigningAlgorithm, k.Spec)
		}
		p, err := parsePrivate(k.Spec, m.Bytes)
		if err != nil {
			return nil, err
		}
		digest, h, err := digestOf(in.SigningAlgorithm, in.MessageType, in.Message)
		if err != nil {
			return nil, err
		}
		if !verify {
			sig, err := p.sign(in.SigningAlgorithm, h, digest)
			return map[string]any{"KeyId": k.ARN, "Signature": sig, "SigningAlgorithm": in.SigningAlgorithm}, err
		}
		if !p.verify(in.SigningAlgorithm, h, digest, in.Signature) {
			return nil, fail("KMSInvalidSignatureException", "")
		}
		return map[string]any{"KeyId": k.ARN, "SignatureValid": true, "SigningAlgorithm": in.SigningAlgorithm}, nil
	}
}

// digestOf is what is signed: the digest, or the message itself for Ed25519.
func digestOf(algorithm, messageType string, message []byte) ([]byte, crypto.Hash, error) {
	if algorithm == "ED25519_SHA_512" {
		return message, crypto.Hash(0), nil
	}
	h := crypto.SHA256
	switch {
	case strings.HasSuffix(algorithm, "_384"):
		h = crypto.SHA384
	case strings.HasSuffix(algorithm, "_512"):
		h = crypto.SHA512
	}
	if messageType == "DIGEST" {
		if len(message) != h.Size() {
			return nil, h, fail("ValidationException", "Digest is invalid length for algorithm %s.", algorithm)
		}
		return message, h, nil
	}
	w := h.New()
	w.Write(message)
	return w.Sum(nil), h, nil
}

func (p private) sign(algorithm string, h crypto.Hash, digest []byte) ([]byte, error) {
	switch {
	case p.rsa != nil && strings.Contains(algorithm, "PSS"):
		return rsa.SignPSS(rand.Reader, p.rsa, h, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case p.rsa != nil:
		return rsa.SignPKCS1v15(nil, p.rsa, h, digest)
	case p.ec != nil:
		return ecdsa.SignASN1(rand.Reader, p.ec, digest)
	case p.ed != nil:
		return p.ed.Sign(nil, digest, &ed25519.Options{Hash: h})
	case p.k256 != nil:
		return k256ecdsa.Sign(p.k256, digest).Serialize(), nil
	}
	return nil, fmt.Errorf("no key")
}

func (p private) verify(algorithm string, h crypto.Hash, digest, sig []byte) bool {
	switch {
	case p.rsa != nil && strings.Contains(algorithm, "PSS"):
		return rsa.VerifyPSS(&p.rsa.PublicKey, h, digest, sig, nil) == nil
	case p.rsa != nil:
		return rsa.VerifyPKCS1v15(&p.rsa.PublicKey, h, digest, sig) == nil
	case p.ec != nil:
		return ecdsa.VerifyASN1(&p.ec.PublicKey, digest, sig)
	case p.ed != nil:
		pub, ok := p.ed.Public().(ed25519.PublicKey)
		return ok && ed25519.VerifyWithOptions(pub, digest, sig, &ed25519.Options{Hash: h}) == nil
	case p.k256 != nil:
		parsed, err := k256ecdsa.ParseDERSignature(sig)
		return err == nil && parsed.Verify(digest, p.k256.PubKey())
	}
	return false
}
