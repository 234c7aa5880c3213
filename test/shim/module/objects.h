// The functions of proxy.c that make and use objects, and those whose output the script can spoil.

static CK_RV made(enum function f, const struct verdict *v, CK_RV rv, CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR h, CK_ATTRIBUTE_PTR t, CK_ULONG n) {
	if (rv == CKR_OK && h != NULL) {
		object_made(s, *h, t, n);
		*h = v->lost == CKR_OK ? object_out(*h) : CK_INVALID_HANDLE;
	}
	return leave(f, v, rv);
}

static CK_RV C_CreateObject_(S, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	struct verdict v;
	CK_RV rv;
	return enter(ID_C_CreateObject, s, &v, &rv) ? made(ID_C_CreateObject, &v, real->C_CreateObject(s, t, n, h), s, h, t, n) : rv;
}

static CK_RV C_CopyObject_(S, CK_OBJECT_HANDLE from, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_CopyObject, s, &v, &rv))
		return rv;
	return object_in(&from) ? made(ID_C_CopyObject, &v, real->C_CopyObject(s, from, t, n, h), s, h, t, n) : CKR_OBJECT_HANDLE_INVALID;
}

static CK_RV C_DestroyObject_(S, CK_OBJECT_HANDLE h) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_DestroyObject, s, &v, &rv))
		return rv;
	if (!object_in(&h))
		return CKR_OBJECT_HANDLE_INVALID;
	if ((rv = real->C_DestroyObject(s, h)) == CKR_OK)
		object_destroyed(h);
	return leave(ID_C_DestroyObject, &v, rv);
}

static CK_RV C_FindObjects_(S, CK_OBJECT_HANDLE_PTR list, CK_ULONG most, CK_ULONG_PTR n) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_FindObjects, s, &v, &rv))
		return rv;
	if ((rv = real->C_FindObjects(s, list, most, n)) == CKR_OK)
		for (CK_ULONG i = 0; i < *n; i++)
			list[i] = object_out(list[i]);
	return leave(ID_C_FindObjects, &v, rv);
}

static CK_RV C_GenerateKey_(S, MECHANISM, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	struct verdict v;
	CK_RV rv;
	return enter(ID_C_GenerateKey, s, &v, &rv) ? made(ID_C_GenerateKey, &v, real->C_GenerateKey(s, m, t, n, h), s, h, t, n) : rv;
}

static CK_RV C_GenerateKeyPair_(S, MECHANISM, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_ATTRIBUTE_PTR pt, CK_ULONG pn, CK_OBJECT_HANDLE_PTR pub, CK_OBJECT_HANDLE_PTR priv) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_GenerateKeyPair, s, &v, &rv))
		return rv;
	rv = real->C_GenerateKeyPair(s, m, t, n, pt, pn, pub, priv);
	made(ID_C_GenerateKeyPair, &v, rv, s, pub, t, n);
	return made(ID_C_GenerateKeyPair, &v, rv, s, priv, pt, pn);
}

static CK_RV C_UnwrapKey_(S, MECHANISM, CK_OBJECT_HANDLE k, IN(in), CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_UnwrapKey, s, &v, &rv))
		return rv;
	return object_in(&k) ? made(ID_C_UnwrapKey, &v, real->C_UnwrapKey(s, m, k, in, n_in, t, n, h), s, h, t, n) : CKR_UNWRAPPING_KEY_HANDLE_INVALID;
}

static CK_RV C_DeriveKey_(S, MECHANISM, CK_OBJECT_HANDLE k, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR h) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_DeriveKey, s, &v, &rv))
		return rv;
	return object_in(&k) ? made(ID_C_DeriveKey, &v, real->C_DeriveKey(s, m, k, t, n, h), s, h, t, n) : CKR_KEY_HANDLE_INVALID;
}

// Outputs.

// spoil applies what the script says about an output that the module gave, or about the answer to a length query.
// What it takes for plaintext is 32 bytes that say so, padded with zeros, in place of a key.
static void spoil(const struct verdict *v, CK_BYTE_PTR out, CK_ULONG_PTR n) {
	static const char clear[] = "this stands for a key in clear..";
	if (out == NULL) {
		*n = (CK_ULONG)((long)*n + v->query);
		return;
	}
	switch (v->output) {
	case GARBAGE:
		for (CK_ULONG i = 0; i < *n; i++)
			out[i] = (CK_BYTE)(script_random() >> 24);
		break;
	case TRUNCATED:
		*n /= 2;
		break;
	case PLAINTEXT:
		memset(out, 0, *n);
		memcpy(out, clear, *n < 32 ? *n : 32);
		break;
	case ZERO:
		memset(out, 0, *n);
		break;
	}
	*n = (CK_ULONG)((long)*n + v->length);
}

static CK_RV spoilt(enum function f, const struct verdict *v, CK_RV rv, CK_BYTE_PTR out, CK_ULONG_PTR n) {
	if (rv == CKR_OK)
		spoil(v, out, n);
	return leave(f, v, rv);
}

static CK_RV C_Encrypt_(S, IN(in), OUT(out)) {
	struct verdict v;
	CK_RV rv;
	return enter(ID_C_Encrypt, s, &v, &rv) ? spoilt(ID_C_Encrypt, &v, real->C_Encrypt(s, in, n_in, out, n_out), out, n_out) : rv;
}

static CK_RV C_Sign_(S, IN(in), OUT(out)) {
	struct verdict v;
	CK_RV rv;
	return enter(ID_C_Sign, s, &v, &rv) ? spoilt(ID_C_Sign, &v, real->C_Sign(s, in, n_in, out, n_out), out, n_out) : rv;
}

static CK_RV C_GetAttributeValue_(S, CK_OBJECT_HANDLE h, CK_ATTRIBUTE_PTR t, CK_ULONG n) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_GetAttributeValue, s, &v, &rv))
		return rv;
	if (!object_in(&h))
		return CKR_OBJECT_HANDLE_INVALID;
	if ((rv = real->C_GetAttributeValue(s, h, t, n)) == CKR_OK)
		for (CK_ULONG i = 0; i < n; i++)
			spoil(&v, t[i].pValue, &t[i].ulValueLen);
	return leave(ID_C_GetAttributeValue, &v, rv);
}

// with_sha1 is the OAEP parameters p with SHA-1 in place of the hash that was asked for.
static CK_RSA_PKCS_OAEP_PARAMS with_sha1(const CK_RSA_PKCS_OAEP_PARAMS *p) {
	CK_RSA_PKCS_OAEP_PARAMS other = *p;
	other.hashAlg = CKM_SHA_1;
	other.mgf = CKG_MGF1_SHA1;
	return other;
}

struct rsa_aes_parameters { CK_ULONG bits; CK_RSA_PKCS_OAEP_PARAMS *oaep; }; // CK_RSA_AES_KEY_WRAP_PARAMS

static CK_RV wrap(const struct verdict *v, S, MECHANISM, CK_OBJECT_HANDLE w, CK_OBJECT_HANDLE k, OUT(out)) {
	CK_MECHANISM other = *m;
	CK_RSA_PKCS_OAEP_PARAMS oaep;
	struct rsa_aes_parameters both;
	if (v->oaep_sha1 && m->mechanism == CKM_RSA_PKCS_OAEP && m->ulParameterLen == sizeof oaep) {
		oaep = with_sha1(m->pParameter);
		other.pParameter = &oaep;
	}
	if (v->oaep_sha1 && m->mechanism == CKM_RSA_AES_KEY_WRAP && m->ulParameterLen == sizeof both) {
		both = *(struct rsa_aes_parameters *)m->pParameter;
		oaep = with_sha1(both.oaep);
		both.oaep = &oaep;
		other.pParameter = &both;
	}
	return real->C_WrapKey(s, &other, w, k, out, n_out);
}

static CK_RV C_WrapKey_(S, MECHANISM, CK_OBJECT_HANDLE w, CK_OBJECT_HANDLE k, OUT(out)) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_WrapKey, s, &v, &rv))
		return rv;
	if (!object_in(&w))
		return CKR_WRAPPING_KEY_HANDLE_INVALID;
	if (!object_in(&k))
		return CKR_KEY_HANDLE_INVALID;
	return spoilt(ID_C_WrapKey, &v, wrap(&v, s, m, w, k, out, n_out), out, n_out);
}
