// A FIDO authenticator in software, for tests only: its key handle is the private key itself.
//
// It behaves as a device with the PIN 2468 and a user who touches it whenever it asks. SK_FLAGS, a number, makes it sign other
// flags than it should: 0 nobody touched it, 1 touched, 4 the user verified, 5 both.
#include "sk.h"

#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

static const char the_pin[] = "2468";

uint32_t sk_api_version(void) { return SK_VERSION; }

static int grab(struct sk_bytes *b, size_t len)
{
	b->at = calloc(1, len);
	b->len = len;
	return b->at != NULL;
}

// pin_ok says whether what was asked for can be done with this PIN.
static int pin_ok(uint8_t flags, const char *pin)
{
	return !(flags & SK_VERIFIED) || (pin != NULL && strcmp(pin, the_pin) == 0);
}

static int export_key(uint32_t algorithm, EVP_PKEY *key, struct sk_enroll_response *r)
{
	if (algorithm == SK_ED25519) {
		return grab(&r->public_key, 32) && grab(&r->key_handle, 32)
			&& EVP_PKEY_get_raw_public_key(key, r->public_key.at, &r->public_key.len) == 1
			&& EVP_PKEY_get_raw_private_key(key, r->key_handle.at, &r->key_handle.len) == 1;
	}
	int len = i2d_PrivateKey(key, NULL);
	if (len <= 0 || !grab(&r->key_handle, (size_t)len) || !grab(&r->public_key, 65)) { // 04, x, y
		return 0;
	}
	uint8_t *end = r->key_handle.at;
	return i2d_PrivateKey(key, &end) == len
		&& EVP_PKEY_get_octet_string_param(key, OSSL_PKEY_PARAM_PUB_KEY, r->public_key.at, r->public_key.len, &r->public_key.len) == 1;
}

int sk_enroll(uint32_t algorithm, const uint8_t *challenge, size_t challenge_len, const char *application, uint8_t flags,
	const char *pin, struct sk_option **options, struct sk_enroll_response **out)
{
	(void)challenge, (void)challenge_len, (void)application, (void)options;
	if (algorithm != SK_ED25519 && algorithm != SK_ECDSA_P256) {
		return SK_UNSUPPORTED;
	}
	if (!pin_ok(flags, pin)) {
		return SK_PIN_NEEDED;
	}
	EVP_PKEY *key = algorithm == SK_ED25519 ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519") : EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
	struct sk_enroll_response *r = calloc(1, sizeof *r);
	if (key == NULL || r == NULL || !export_key(algorithm, key, r)) {
		return SK_FAILED; // the process ends with it: nothing is freed
	}
	r->flags = flags;
	EVP_PKEY_free(key);
	*out = r;
	return 0;
}

static int sign_ed25519(const struct sk_bytes *seed, const uint8_t *text, size_t len, struct sk_sign_response *r)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed->at, seed->len);
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	int ok = key != NULL && md != NULL && grab(&r->r, 64) && EVP_DigestSignInit(md, NULL, NULL, NULL, key) == 1
		&& EVP_DigestSign(md, r->r.at, &r->r.len, text, len) == 1;
	EVP_MD_CTX_free(md);
	EVP_PKEY_free(key);
	return ok;
}

static int take(const BIGNUM *n, struct sk_bytes *b) { return grab(b, (size_t)BN_num_bytes(n)) && BN_bn2bin(n, b->at) == (int)b->len; }

static int sign_ecdsa(const struct sk_bytes *handle, const uint8_t *text, size_t len, struct sk_sign_response *r)
{
	const uint8_t *at = handle->at;
	EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &at, (long)handle->len);
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	uint8_t der[128];
	size_t n = sizeof der;
	int ok = key != NULL && md != NULL && EVP_DigestSignInit(md, NULL, EVP_sha256(), NULL, key) == 1
		&& EVP_DigestSign(md, der, &n, text, len) == 1;
	at = der;
	ECDSA_SIG *sig = ok ? d2i_ECDSA_SIG(NULL, &at, (long)n) : NULL;
	ok = sig != NULL && take(ECDSA_SIG_get0_r(sig), &r->r) && take(ECDSA_SIG_get0_s(sig), &r->s);
	ECDSA_SIG_free(sig);
	EVP_MD_CTX_free(md);
	EVP_PKEY_free(key);
	return ok;
}

// What is signed: SHA-256 of the application, flags, counter, SHA-256 of the data.
int sk_sign(uint32_t algorithm, const uint8_t *data, size_t data_len, const char *application, const uint8_t *handle,
	size_t handle_len, uint8_t flags, const char *pin, struct sk_option **options, struct sk_sign_response **out)
{
	(void)options;
	if (!pin_ok(flags, pin)) {
		return SK_PIN_NEEDED;
	}
	struct sk_sign_response *r = calloc(1, sizeof *r);
	if (r == NULL) {
		return SK_FAILED;
	}
	r->flags = flags & (SK_PRESENT | SK_VERIFIED);
	const char *forced = getenv("SK_FLAGS");
	if (forced != NULL) {
		r->flags = (uint8_t)strtoul(forced, NULL, 0);
	}
	r->counter = 0x01020304;
	const uint8_t counter[] = {1, 2, 3, 4};
	uint8_t text[32 + 1 + 4 + 32];
	SHA256((const uint8_t *)application, strlen(application), text);
	text[32] = r->flags;
	memcpy(text + 33, counter, sizeof counter);
	SHA256(data, data_len, text + 37);
	const struct sk_bytes key = {(uint8_t *)handle, handle_len};
	int ok = algorithm == SK_ED25519 ? sign_ed25519(&key, text, sizeof text, r) : sign_ecdsa(&key, text, sizeof text, r);
	if (!ok) {
		return SK_FAILED;
	}
	*out = r;
	return 0;
}

int sk_load_resident_keys(const char *pin, struct sk_option **options, struct sk_resident_key ***keys, size_t *n)
{
	(void)pin, (void)options, (void)keys, (void)n;
	return SK_UNSUPPORTED;
}
