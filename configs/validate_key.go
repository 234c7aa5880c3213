package configs

import (
	"fmt"
	"slices"
	"strings"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

func (v validator) key(path string, k *Key) {
	if at := path + ".token"; v.ok(at) {
		if !v.tokens[k.Token] {
			v.problem(at, "no token is named %q%s", k.Token, v.tokenHint(k.Token))
		}
	}
	v.keySpec(path, k)
	if at := path + ".generate"; v.ok(at) && k.Generate != GenerateNever && k.Generate != GenerateIfMissing {
		v.problem(at, "%q is neither %s nor %s", k.Generate, GenerateNever, GenerateIfMissing)
	}
	v.keyURI(path+".uri", k.URI, path, k, k.Generate == GenerateIfMissing)
	if at := path + ".expires"; v.ok(at) && k.Expires.Duration() > maxExpiry {
		v.problem(at, "%s is more than the 365d that AWS KMS allows: import again before they end, or write never", k.Expires)
	}
	v.renewal(path, k)
	v.schedule(path+".schedule", k.Schedule)
	v.window(path+".window", k.Window)
	v.backup(path, k)
	v.replicas(path, k)
	if at := path + ".destinations"; v.ok(at) && len(k.Destinations) == 0 {
		v.problem(at, "destinations is empty%s", whyRequired("destinations"))
	}
}

func (v validator) tokenHint(name string) string {
	var names []string
	for _, t := range v.c.Tokens {
		if t.Name == "" {
			continue
		}
		if near(name, t.Name) {
			return fmt.Sprintf(": did you mean %s?", t.Name)
		}
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": there is " + strings.Join(names, ", ")
}

// keySpec checks that KMS takes material of this spec, and that wrapping.algorithms leaves an algorithm for it.
func (v validator) keySpec(path string, k *Key) {
	at := path + ".key_spec"
	if !v.ok(at) {
		return
	}
	if k.KeySpec.WhyNot() != "" {
		switch k.KeySpec {
		case wrapping.MLDSA44, wrapping.MLDSA65, wrapping.MLDSA87, wrapping.SM2:
			v.problem(at, "%s cannot be imported: %s", k.KeySpec, k.KeySpec.WhyNot())
		default:
			v.problem(at, "%q is no key spec%s", k.KeySpec, keySpecHint(k.KeySpec))
		}
		return
	}
	if w := v.c.Wrapping; v.ok("wrapping.algorithms") && len(w.Algorithms) > 0 &&
		!slices.ContainsFunc(k.KeySpec.Order(), func(a wrapping.Algorithm) bool { return slices.Contains(w.Algorithms, a) }) {
		v.problem(at, "wrapping.algorithms leaves nothing for %s: AWS offers %s for it", k.KeySpec, list(k.KeySpec.Order()))
	}
}

func keySpecHint(spec wrapping.KeySpec) string {
	for _, known := range wrapping.KeySpecs() {
		if near(string(spec), string(known)) {
			return fmt.Sprintf(": did you mean %s?", known)
		}
	}
	return " that takes imported key material: there is " + list(wrapping.KeySpecs())
}

// keyURI checks the uri of a key or of its backup.
func (v validator) keyURI(at string, u pkcs11uri.URI, path string, k *Key, generated bool) {
	if !v.ok(at) {
		return
	}
	class := pkcs11uri.TypePrivate
	if kind := k.KeySpec.Kind(); kind == wrapping.KindSymmetric || kind == wrapping.KindHMAC {
		class = pkcs11uri.TypeSecretKey
	}
	switch {
	case u.HasTokenAttributes() || u.HasModuleAttributes():
		v.problem(at, "the token is named by token: leave only object, id and type")
	case u.Object == "" && len(u.ID) == 0:
		v.problem(at, `names no key: write "pkcs11:object=LABEL;type=%s"`, class)
	case u.Object == "" && generated:
		v.problem(at, "a generated key needs a label: add object=LABEL")
	case v.ok(path+".key_spec") && k.KeySpec.WhyNot() == "" && u.Type != "" && u.Type != class:
		v.problem(at, "%s keys are of type=%s, not type=%s", k.KeySpec, class, u.Type)
	}
}
