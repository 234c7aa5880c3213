package trial

import (
	"errors"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// rsaAESKey is the length in bytes of the AES key inside RSA_AES_KEY_WRAP_*: AWS KMS takes AES-256 only.
// Source: AWS KMS Developer Guide, "Encrypt key material with RSA_AES_KEY_WRAP".
const rsaAESKey = 32

// OpenRSAAES opens the output of RSA_AES_KEY_WRAP_* (PKCS#11 2.40, CKM_RSA_AES_KEY_WRAP): the AES key under
// OAEP, modulus length bytes, then the material under that AES key by RFC 5649. It returns the AES key and
// the material; kek is returned also when only the AES part fails. The errors are those of [RSAKey.OpenOAEP]
// and [OpenKWP].
func (k *RSAKey) OpenRSAAES(alg wrapping.Algorithm, ct []byte) (kek, material []byte, err error) {
	size := k.spec.Bytes()
	if len(ct) < size+2*semiblock {
		return nil, nil, fmt.Errorf("the output has %d bytes, %s under %s gives at least %d", len(ct), alg, k.spec, size+2*semiblock)
	}
	rsaPart, aesPart := ct[:size], ct[size:]
	kek, err = k.OpenOAEP(alg, rsaPart)
	if err != nil {
		if _, swapped := k.OpenOAEP(alg, ct[len(ct)-size:]); swapped == nil {
			return nil, nil, errors.New("the token put the AES part before the RSA part")
		}
		return nil, nil, fmt.Errorf("RSA part: %w", err)
	}
	if len(kek) != rsaAESKey {
		return nil, nil, fmt.Errorf("RSA part: it holds %d bytes, AWS KMS wants an AES-256 key (32 bytes)", len(kek))
	}
	material, err = OpenKWP(kek, aesPart)
	if err != nil {
		return kek, nil, fmt.Errorf("AES part: %w", err)
	}
	return kek, material, nil
}

// Open decrypts ct by whatever alg says and returns the key material. The errors are those of
// [RSAKey.OpenOAEP], [RSAKey.OpenRSAAES] and [RSAKey.OpenPKCS1].
func (k *RSAKey) Open(alg wrapping.Algorithm, ct []byte) ([]byte, error) {
	switch alg {
	case wrapping.OAEPSHA256, wrapping.OAEPSHA1:
		return k.OpenOAEP(alg, ct)
	case wrapping.RSAAESSHA256, wrapping.RSAAESSHA1:
		_, material, err := k.OpenRSAAES(alg, ct)
		return material, err
	case wrapping.PKCS1v15:
		return k.OpenPKCS1(ct)
	}
	return nil, fmt.Errorf("unknown wrapping algorithm %q", alg)
}
