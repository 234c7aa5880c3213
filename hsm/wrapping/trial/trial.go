// Package trial is the pure half of the known-answer probe: it makes throwaway RSA wrapping keys, opens
// what a token wrapped under them, and says what is wrong with output that AWS KMS would refuse.
//
// A token's mechanism list and a CKR_OK from C_WrapKey prove nothing. The probe therefore loads the public
// half of an [RSAKey] into the token, has the token wrap a throwaway session key, and hands the output to
// [RSAKey.Judge], which decrypts it here and compares.
//
// The decoders are strict where AWS KMS is strict. When one fails it tries every other encoding that tokens
// are known to produce, so that the error names what the token did ("hash mismatch: SHA-256 was asked, the
// token used SHA-1") and not only that something was wrong.
//
// Nothing here is constant time and nothing here needs to be: the RSA keys live for one probe and only
// throwaway session keys are ever wrapped under them. No key of the token's owner reaches this package, and
// it must never be used to decrypt one.
package trial
