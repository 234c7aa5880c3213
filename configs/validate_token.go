package configs

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"hsmbridge/hsm/quirks"
)

func (v validator) token(path string, t *Token) {
	v.path(path+".module", t.Module, "the vendor's PKCS #11 library")
	if t.PINFile != "" {
		v.path(path+".pin_file", t.PINFile, "the file that holds the PIN")
	}
	if uri := path + ".uri"; v.ok(uri) {
		switch {
		case t.URI.HasObjectAttributes():
			v.problem(uri, "object, type and id name a key: leave them out here, and write them in the uri of a key")
		case t.URI.HasModuleAttributes():
			v.problem(uri, "the module is named by module: leave module-name and module-path out")
		case !t.URI.HasTokenAttributes():
			v.problem(uri, `names no token: any would do, also a wrong one; write "pkcs11:token=LABEL"`)
		}
	}
	v.quirks(path+".quirks", t)
	v.pinSource(path, t)
	v.module(path, t)
	for _, name := range slices.Sorted(maps.Keys(t.Environment)) {
		at := path + ".environment." + name
		v.matches(at, name, environmentPattern, "the name of an environment variable")
		if v.ok(at) && steersProcess(name) {
			v.problem(at, "%s steers the whole process, not the module: it could put another server in the place of AWS KMS; set it for hsmbridge itself, where it is meant", name)
		}
		if v.ok(at) && strings.ContainsRune(t.Environment[name], 0) {
			v.problem(at, "%s holds a zero byte, which no environment variable can", name)
		}
	}
	if at := path + ".module_parameters"; v.ok(at) && strings.ContainsRune(t.ModuleParameters, 0) {
		v.problem(at, "module_parameters holds a zero byte, at which the module would stop reading")
	}
}

// steersProcess tells environment variables that decide whom hsmbridge talks to and what it loads.
func steersProcess(name string) bool {
	upper := strings.ToUpper(name)
	for _, prefix := range []string{"AWS_", "LD_", "SSL_CERT_"} {
		if strings.HasPrefix(upper, prefix) {
			return true
		}
	}
	return strings.HasSuffix(upper, "_PROXY") || slices.Contains([]string{"GODEBUG", "CREDENTIALS_DIRECTORY", "HOME", "PATH"}, upper)
}

// path checks a file name.
func (v validator) path(path, value, what string) {
	switch {
	case !v.ok(path):
	case value == "":
		v.problem(path, "the path is empty: write that of %s", what)
	case strings.HasPrefix(value, "~"):
		v.problem(path, "'~' is not expanded: write the whole path")
	case strings.ContainsAny(value, "\x00\n"):
		v.problem(path, "%q is not the path of a file", value)
	}
}

// pinSource checks that exactly one source of the PIN is given.
func (v validator) pinSource(path string, t *Token) {
	var given []string
	for _, source := range []struct {
		name  string
		given bool
	}{
		{"pin_file", t.PINFile != ""},
		{"pin_command", len(t.PINCommand) > 0},
		{"pin_prompt", t.PINPrompt},
		{"pin_credential", t.PINCredential != ""},
	} {
		if source.given {
			given = append(given, source.name)
		}
	}
	const choice = "pin_file, pin_command, pin_prompt: true or pin_credential"
	switch {
	case len(given) > 1:
		v.problem(path+"."+given[1], "%s are both given: exactly one of %s says where the PIN comes from", strings.Join(given[:2], " and "), choice)
	case len(given) > 0 && t.Quirks.NeedsNoPIN():
		v.problem(path+"."+given[0], "%s is given, and quirks.protected_authentication_path says that the PIN is typed at the device: leave one of them out", given[0])
	case len(given) == 0 && v.ok(path) && !t.Quirks.NeedsNoPIN():
		v.problem(path, "where does the PIN come from? Give one of %s", choice)
	}
	if t.PINCredential != "" {
		v.matches(path+".pin_credential", t.PINCredential, systemdNamePattern, "the name of a systemd credential")
	}
	if at := path + ".pin_command"; v.ok(at) && len(t.PINCommand) > 0 && (t.PINCommand[0] == "" || t.PINCommand[len(t.PINCommand)-1] == "") {
		v.problem(at, "pin_command is empty: write the command that prints the PIN")
	}
}

// quirks checks what the configuration says in place of the table of HSM families.
func (v validator) quirks(path string, t *Token) {
	q := t.Quirks
	if at := path + ".family"; v.ok(at) && !slices.Contains(quirks.FamilyNames(), q.Family) {
		v.problem(at, "%q is no family of HSMs that hsmbridge knows: there are %s", q.Family, strings.Join(quirks.FamilyNames(), ", "))
	}
	if at := path + ".pin_format"; v.ok(at) && !slices.Contains(quirks.PINFormats(), q.PINFormat) {
		v.problem(at, "%q is no form of a PIN: there are %s", q.PINFormat, list(quirks.PINFormats()))
	}
	if at := path + ".max_sessions"; v.ok(at) && (q.MaxSessions < quirks.LeastSessions || q.MaxSessions > quirks.MostSessions) {
		v.problem(at, "max_sessions is from %d to %d: one session keeps the login, the others work", quirks.LeastSessions, quirks.MostSessions)
	}
	for i, m := range q.AESKeyWrap {
		at := element(path+".aes_key_wrap", i)
		if v.ok(at) && slices.ContainsFunc(q.AESKeyWrap[:i], func(other quirks.Mechanism) bool { return other.Type == m.Type }) {
			v.problem(at, "the mechanism 0x%08X is listed twice", m.Type)
		}
	}
	for i, a := range q.PublicKeyAttributes {
		at := element(path+".public_key_attributes", i)
		if v.ok(at) && slices.ContainsFunc(q.PublicKeyAttributes[:i], func(other quirks.Attribute) bool { return other.Name == a.Name }) {
			v.problem(at, "%s is listed twice", a.Name)
		}
	}
}

// modules checks tokens against each other: the same module with the same settings and uri is the same token.
func (v validator) modules() {
	first := make(map[string]*Token)
	for i := range v.c.Tokens {
		t, path := &v.c.Tokens[i], element("tokens", i)
		if !v.ok(path) {
			continue
		}
		key := []string{resolve(v.folder, filepath.Clean(t.Module)), t.ModuleParameters, t.URI.String()}
		for _, name := range slices.Sorted(maps.Keys(t.Environment)) {
			key = append(key, name, t.Environment[name])
		}
		same := strings.Join(key, "\x00")
		if other := first[same]; other != nil {
			v.problem(path+".uri", "token %s has the same module and uri: one token is configured once", other.Name)
			continue
		}
		first[same] = t
	}
}
