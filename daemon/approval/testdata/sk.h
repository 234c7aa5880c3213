// The interface between OpenSSH and a FIDO middleware library, version 10: what ssh-keygen and ssh-sk-helper look for in the
// library that SSH_SK_PROVIDER names. Described in OpenSSH's PROTOCOL.u2f.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { SK_VERSION = 0x000a0000 };
enum { SK_ECDSA_P256 = 0, SK_ED25519 = 1 };
enum { SK_PRESENT = 0x01, SK_VERIFIED = 0x04 };            // asked for, and in what was signed
enum { SK_FAILED = -1, SK_UNSUPPORTED = -2, SK_PIN_NEEDED = -3 };

struct sk_bytes {
	uint8_t *at;
	size_t len;
};

struct sk_option; // not used here

// What OpenSSH gets is freed by OpenSSH, each part with free().
struct sk_enroll_response {
	uint8_t flags;
	struct sk_bytes public_key, key_handle, signature, certificate, authenticator_data;
};

struct sk_sign_response {
	uint8_t flags;
	uint32_t counter;
	struct sk_bytes r, s; // Ed25519: all of the signature is in r
};

struct sk_resident_key; // not used here

uint32_t sk_api_version(void);
int sk_enroll(uint32_t algorithm, const uint8_t *challenge, size_t challenge_len, const char *application, uint8_t flags,
	const char *pin, struct sk_option **options, struct sk_enroll_response **out);
int sk_sign(uint32_t algorithm, const uint8_t *data, size_t data_len, const char *application, const uint8_t *handle,
	size_t handle_len, uint8_t flags, const char *pin, struct sk_option **options, struct sk_sign_response **out);
int sk_load_resident_keys(const char *pin, struct sk_option **options, struct sk_resident_key ***keys, size_t *n);
