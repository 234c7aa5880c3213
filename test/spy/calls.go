package spy

import "slices"

// Calls are the calls of a log, in order.
type Calls []Call

// Count is how often a function was called, whatever it answered.
func (cs Calls) Count(name string) int { return len(cs.Named(name)) }

// Named are the calls of one function.
func (cs Calls) Named(name string) Calls {
	var named Calls
	for _, c := range cs {
		if c.Name == name {
			named = append(named, c)
		}
	}
	return named
}

// Secret are the attributes whose value is key material. Source: PKCS#11 v3.1, sections 4.9 and 4.10 and the key
// types of section 6.
func Secret() []string {
	return []string{
		"CKA_VALUE",            // secret keys; EC, EC Edwards, DH and DSA private keys
		"CKA_PRIVATE_EXPONENT", // RSA
		"CKA_PRIME_1",          // RSA
		"CKA_PRIME_2",          // RSA
		"CKA_EXPONENT_1",       // RSA
		"CKA_EXPONENT_2",       // RSA
		"CKA_COEFFICIENT",      // RSA
		"CKA_SEED",             // ML-DSA, ML-KEM
	}
}

// Use is an attribute in a call.
type Use struct {
	Call      Call
	Attribute string
}

// SecretAttributesAsked are the secret attributes that C_GetAttributeValue was called for, whatever it answered.
func (cs Calls) SecretAttributesAsked() []Use {
	return cs.Named("C_GetAttributeValue").uses(Secret())
}

// SecretAttributesGiven are the secret attributes in the templates that objects were made or changed with: key material that came from
// outside the token. A probe imports its own throwaway keys so; an import gives none.
func (cs Calls) SecretAttributesGiven() []Use {
	var uses []Use
	for _, name := range []string{"C_CreateObject", "C_CopyObject", "C_SetAttributeValue", "C_UnwrapKey", "C_DeriveKey"} {
		uses = append(uses, cs.Named(name).uses(Secret())...)
	}
	return uses
}

// uses are the attributes, out of names, in the templates that the calls were given.
func (cs Calls) uses(names []string) []Use {
	var uses []Use
	for _, c := range cs {
		for _, a := range c.Attributes {
			if !a.Out && slices.Contains(names, a.Name) {
				uses = append(uses, Use{c, a.Name})
			}
		}
	}
	return uses
}

// Object is an object that a call made.
type Object struct {
	Made      Call
	Handle    uint64
	Class     string // CKO_PUBLIC_KEY ..., as its template says; empty if it does not
	Token     bool   // CKA_TOKEN was true in its template: the object outlives its session
	Destroyed bool   // C_DestroyObject answered CKR_OK for it
}

// maker is a function that makes an object: which handle it answers with, and which template describes the object.
type maker struct{ call, handle, template string }

func makers() []maker {
	return []maker{
		{"C_CreateObject", "phObject", "pTemplate"},
		{"C_CopyObject", "phNewObject", "pTemplate"},
		{"C_GenerateKey", "hKey", "pTemplate"},
		{"C_GenerateKeyPair", "hPublicKey", "pPublicKeyTemplate"},
		{"C_GenerateKeyPair", "hPrivateKey", "pPrivateKeyTemplate"},
		{"C_UnwrapKey", "hKey", "pTemplate"},
		{"C_DeriveKey", "hKey", "pTemplate"},
	}
}

// Objects are all objects that were made, and whether they were destroyed. A handle that is used again after its object was destroyed
// names another object.
func (cs Calls) Objects() []Object {
	var objects []Object
	for _, c := range cs {
		if c.Result != "CKR_OK" {
			continue
		}
		for _, m := range makers() {
			if handle, ok := c.handle(m.handle, true); ok && c.Name == m.call {
				objects = append(objects, Object{
					Made: c, Handle: handle, Class: c.given(m.template, "CKA_CLASS"), Token: c.given(m.template, "CKA_TOKEN") == "True",
				})
			}
		}
		if handle, ok := c.handle("hObject", false); ok && c.Name == "C_DestroyObject" {
			for i := range objects {
				if o := &objects[i]; o.Made.Process == c.Process && o.Handle == handle && !o.Destroyed {
					o.Destroyed = true
				}
			}
		}
	}
	return objects
}

// Leftovers are the objects that were made and not destroyed.
func (cs Calls) Leftovers() []Object {
	return slices.DeleteFunc(cs.Objects(), func(o Object) bool { return o.Destroyed })
}

func (c Call) handle(name string, out bool) (uint64, bool) {
	for _, h := range c.Handles {
		if h.Name == name && h.Out == out {
			return h.Value, true
		}
	}
	return 0, false
}

func (c Call) given(template, name string) string {
	for _, a := range c.Attributes {
		if a.Template == template && a.Name == name && !a.Out {
			return a.Value
		}
	}
	return ""
}
