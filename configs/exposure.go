package configs

import (
	"fmt"
	"regexp"
	"slices"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// Exposures says of each key in a token how it, or another key with its help, could leave the HSM past this configuration. The result has
// one list for each key, empty for most.
//
//   - A key that may both wrap and decrypt takes any extractable key out in the clear: it wraps it, and decrypts what it wrapped.
//   - A key that is not sensitive can be read in the clear.
//   - An extractable key that no managed key names can be wrapped by every program with the token's PIN, and hsmbridge does not look after it.
func (c *Config) Exposures(token string, keys []wrapping.Key) [][]string {
	out := make([][]string, len(keys))
	for i, k := range keys {
		if k.Wrap && k.Decrypt {
			out[i] = append(out[i], "CKA_WRAP and CKA_DECRYPT are both true: whoever has the token's PIN can take other keys out in the clear with it; give it one of the two")
		}
		if !k.Sensitive {
			out[i] = append(out[i], "CKA_SENSITIVE is false: whoever has the token's PIN can read it in the clear; make it sensitive, or put another key in its place")
		}
		if k.Extractable && !c.names(token, k) {
			out[i] = append(out[i], "CKA_EXTRACTABLE is true and no key of the configuration names it: make it not extractable, or configure it; a key of ceremonies belongs into a token that no daemon uses")
		}
	}
	return out
}

// names says whether a managed key, one of its later generations (LABEL.2, LABEL.3 ...) or a backup is this object.
func (c *Config) names(token string, k wrapping.Key) bool {
	class := pkcs11uri.TypeSecretKey
	if k.Class == "CKO_PRIVATE_KEY" {
		class = pkcs11uri.TypePrivate
	}
	later := regexp.MustCompile(`^(.+)\.[1-9]\d*$`).FindStringSubmatch(k.Label)
	is := func(u pkcs11uri.URI) bool {
		if u.MatchesObject(k.Label, k.ID, class) {
			return true
		}
		u.ID = nil // a later generation has its own
		return later != nil && u.Object != "" && u.MatchesObject(later[1], nil, class)
	}
	return slices.ContainsFunc(c.Keys, func(managed Key) bool {
		uri := managed.Backup.URI
		if !uri.HasObjectAttributes() {
			uri = managed.URI
		}
		if r, ok := managed.Replica(token); ok && is(CopyOf(managed.URI, r.URI, managed.URI)) {
			return true
		}
		return managed.Token == token && is(managed.URI) || managed.Backup.Token == token && is(uri)
	})
}

// mostWarnings is how many exposures of a token are told one by one.
const mostWarnings = 10

// ExposureWarnings is [Config.Exposures] as lines for a log: the key's label and what is the matter, at most some, and how many more there are.
func (c *Config) ExposureWarnings(token string, keys []wrapping.Key) []string {
	var out []string
	more := 0
	for i, reasons := range c.Exposures(token, keys) {
		for _, reason := range reasons {
			if len(out) == mostWarnings {
				more++
				continue
			}
			out = append(out, fmt.Sprintf("key %q: %s", keys[i].Label, reason))
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("and %d more: hsmbridge keys list %s shows all", more, token))
	}
	return out
}
