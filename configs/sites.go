package configs

import (
	"slices"
	"strings"

	"hsmbridge/hsm/pkcs11uri"
)

// Replica is another token that holds the same key: a copy that the HSM's own tools made.
type Replica struct {
	// Name of the token.
	Token string `yaml:"token" jsonschema:"required"`
	// PKCS #11 URI of the copy. Empty: the same as the key's.
	URI pkcs11uri.URI `yaml:"uri,omitempty"`
	// Whether new key material waits until this token shows that it holds it too. Default true.
	Required bool `yaml:"required"`
}

func (r *Replica) setDefaults() { r.Required = true }

// Reach says whether this daemon reaches a token of the configuration: all of them where [Config.Reaches] is empty.
func (c *Config) Reach(token string) bool {
	if len(c.Reaches) > 0 && !slices.Contains(c.Reaches, token) {
		return false
	}
	_, ok := c.Token(token)
	return ok
}

// Reached are the names of the tokens that this daemon reaches.
func (c *Config) Reached() []string {
	var out []string
	for _, t := range c.Tokens {
		if c.Reach(t.Name) {
			out = append(out, t.Name)
		}
	}
	return out
}

// Tokens are the names of the tokens that hold the key: [Key.Token], in which new keys are made, then the replicas.
func (k Key) Tokens() []string {
	out := []string{k.Token}
	for _, r := range k.Replicas {
		out = append(out, r.Token)
	}
	return out
}

// TokenSet is one text for the tokens that hold the key, in no order: keys with the same one are done by the same daemons. For a key in one
// token it is the token's name.
func (k Key) TokenSet() string {
	all := k.Tokens()
	slices.Sort(all)
	return strings.Join(all, ",") // no name of a token has a comma
}

// TokensIn are the names of the tokens of a [Key.TokenSet].
func TokensIn(set string) []string {
	if set == "" {
		return nil
	}
	return strings.Split(set, ",")
}

// Replica gives the replica in a token.
func (k Key) Replica(token string) (Replica, bool) {
	for _, r := range k.Replicas {
		if r.Token == token {
			return r, true
		}
	}
	return Replica{}, false
}

// ObjectIn is the URI by which a token has the object that is called u in the key's own token: the key or one of its later generations.
func (k Key) ObjectIn(token string, u pkcs11uri.URI) pkcs11uri.URI {
	r, ok := k.Replica(token)
	if !ok {
		return u
	}
	return CopyOf(k.URI, r.URI, u)
}

// CopyOf is the URI of the copy of u, a generation of key, where the copy of key has the URI there; empty: the same.
func CopyOf(key, there, u pkcs11uri.URI) pkcs11uri.URI {
	if there.Object == "" && len(there.ID) == 0 {
		return u
	}
	if suffix, ok := strings.CutPrefix(u.Object, key.Object); ok && there.Object != "" {
		there.Object += suffix // of a later generation
		if suffix != "" {
			there.ID = nil // which has its own
		}
	}
	return there
}

// reaches checks which tokens the daemon reaches.
func (v validator) reaches() {
	for i, name := range v.c.Reaches {
		at := element("reaches", i)
		switch {
		case !v.ok(at):
		case !v.tokens[name]:
			v.problem(at, "no token is named %q%s", name, v.tokenHint(name))
		case slices.Contains(v.c.Reaches[:i], name):
			v.problem(at, "%s is listed twice", name)
		}
	}
	if kind, _ := v.c.DatabaseLocation(); len(v.c.Reaches) > 0 && kind != databasePostgres && v.ok("reaches") && len(v.c.Reached()) < len(v.c.Tokens) {
		v.problem("reaches", "nobody else can reach the other tokens: several daemons share a PostgreSQL database (database: postgres://...); with SQLite leave reaches out")
	}
}

// replicas checks the other tokens of a key.
func (v validator) replicas(path string, k *Key) {
	for i, r := range k.Replicas {
		at := element(path+".replicas", i)
		if at := at + ".token"; v.ok(at) {
			switch {
			case !v.tokens[r.Token]:
				v.problem(at, "no token is named %q%s", r.Token, v.tokenHint(r.Token))
			case r.Token == k.Token:
				v.problem(at, "this is the token of the key itself: a replica is in another token")
			case slices.ContainsFunc(k.Replicas[:i], func(other Replica) bool { return other.Token == r.Token }):
				v.problem(at, "%s is listed twice: a token holds the key once", r.Token)
			case r.Token == k.Backup.Token:
				v.problem(at, "%s is the backup of this key already: a replica is a copy that is used, and asked for before the first import as well; leave backup out", r.Token)
			}
		}
		v.keyURI(at+".uri", r.URI, path, k, k.RotateEvery > 0)
	}
}
