package configs

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// maxExpiry is the longest that AWS KMS keeps expiring key material. Source: AWS KMS API Reference, ImportKeyMaterial, ValidTo.
const maxExpiry = 365 * day

const (
	namePattern        = `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`
	environmentPattern = `^[A-Za-z_][A-Za-z0-9_]*$`
	systemdNamePattern = `^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$` // systemd.exec(5): a file name
)

// validator checks what one value or several together mean. Only values that were read without a mistake are looked at.
type validator struct {
	*decoder
	c      *Config
	folder string // in which relative paths start
}

func validate(c *Config, folder string, d *decoder) {
	v := validator{d, c, folder}
	v.kms()
	v.wrapping()
	v.unique("tokens", len(c.Tokens), func(i int) string { return c.Tokens[i].Name })
	v.unique("keys", len(c.Keys), func(i int) string { return c.Keys[i].Name })
	if v.ok("tokens") && len(c.Tokens) == 0 {
		v.problem("tokens", "tokens is empty: name at least one token")
	}
	for i := range c.Tokens {
		v.token(fmt.Sprintf("tokens[%d]", i), &c.Tokens[i])
	}
	v.modules()
	for i := range c.Keys {
		v.key(fmt.Sprintf("keys[%d]", i), &c.Keys[i])
	}
	v.destinations()
}

// ok says whether the value at path was given, and read without a mistake.
func (v validator) ok(path string) bool {
	_, ok := v.at[path]
	return ok
}

// problem adds a mistake at a path for which ok holds.
func (v validator) problem(path, format string, args ...any) {
	v.add(v.at[path], path, format, args...)
}

// matches checks a text that was given against a pattern.
func (v validator) matches(path, value, pattern, form string) {
	if v.ok(path) && !regexp.MustCompile(pattern).MatchString(value) {
		v.problem(path, "%q is not %s", value, form)
	}
}

func (v validator) kms() {
	k := v.c.KMS
	if k.Region != "" {
		v.matches("kms.region", k.Region, regionPattern, "an AWS Region such as eu-central-1")
	}
	if !v.ok("kms.endpoint") || k.Endpoint == "" {
		return
	}
	u, err := url.Parse(k.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		v.problem("kms.endpoint", "this is not an endpoint: write https://HOST or https://HOST:PORT")
	case u.User != nil:
		v.problem("kms.endpoint", "credentials never stand in a configuration: use the AWS credential chain or kms.profile")
	case u.RawQuery != "" || u.Fragment != "":
		v.problem("kms.endpoint", "an endpoint has no '?' or '#': leave out what follows")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		v.problem("kms.endpoint", "http is refused except on this machine: TLS is what shows that the wrapping public key comes from KMS; write https")
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (v validator) wrapping() {
	w := v.c.Wrapping
	for i, a := range w.Algorithms {
		path := fmt.Sprintf("wrapping.algorithms[%d]", i)
		switch {
		case !v.ok(path):
		case !slices.Contains(wrapping.Algorithms(), a):
			v.problem(path, "%q is no wrapping algorithm: AWS KMS has %s", a, list(wrapping.Algorithms()))
		case slices.Contains(w.Algorithms[:i], a):
			v.problem(path, "%s is listed twice", a)
		case a == wrapping.PKCS1v15 && !w.AllowPKCS1v15:
			v.problem(path, "%s is listed and not allowed: AWS refuses it since 10 October 2023; leave it out, or set wrapping.allow_pkcs1_v1_5: true for a KMS-compatible server that takes it", a)
		}
	}
}

// unique checks the names of a list.
func (v validator) unique(list string, n int, name func(int) string) {
	first := make(map[string]int)
	for i := range n {
		path := fmt.Sprintf("%s[%d].name", list, i)
		v.matches(path, name(i), namePattern, "a name: letters, digits, '.', '_' and '-', at most 64")
		if !v.ok(path) {
			continue
		}
		if j, twice := first[name(i)]; twice {
			v.problem(path, "the name %q is taken by %s[%d] in line %d", name(i), list, j, v.at[fmt.Sprintf("%s[%d].name", list, j)].line)
			continue
		}
		first[name(i)] = i
	}
}

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
	v.pinSource(path, t)
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
	case len(given) == 0 && v.ok(path):
		v.problem(path, "where does the PIN come from? Give one of %s", choice)
	}
	if t.PINCredential != "" {
		v.matches(path+".pin_credential", t.PINCredential, systemdNamePattern, "the name of a systemd credential")
	}
	if at := path + ".pin_command"; v.ok(at) && len(t.PINCommand) > 0 && (t.PINCommand[0] == "" || t.PINCommand[len(t.PINCommand)-1] == "") {
		v.problem(at, "pin_command is empty: write the command that prints the PIN")
	}
}

// modules checks tokens against each other: a module is loaded once for the process, and the environment is the process's.
// Each token is compared with the first that has the same module, the same module and uri, or the same variable.
func (v validator) modules() {
	byModule, byURI, byVariable := make(map[string]*Token), make(map[string]*Token), make(map[string]*Token)
	first := func(m map[string]*Token, key string, t *Token) *Token {
		if m[key] == nil {
			m[key] = t
		}
		return m[key]
	}
	for i := range v.c.Tokens {
		t, path := &v.c.Tokens[i], fmt.Sprintf("tokens[%d]", i)
		if !v.ok(path) {
			continue
		}
		module := resolve(v.folder, filepath.Clean(t.Module))
		const once = "a module is loaded once for the whole process; give both the same, or run a second hsmbridge"
		sameModule := first(byModule, module, t)
		sameURI := first(byURI, module+"\x00"+t.URI.String(), t)
		switch {
		case !maps.Equal(t.Environment, sameModule.Environment):
			v.problem(path+".module", "token %s uses this module with another environment: %s", sameModule.Name, once)
		case t.ModuleParameters != sameModule.ModuleParameters:
			v.problem(path+".module", "token %s uses this module with other module_parameters: %s", sameModule.Name, once)
		case t != sameURI:
			v.problem(path+".uri", "token %s has the same module and uri: one token is configured once", sameURI.Name)
		}
		for _, name := range slices.Sorted(maps.Keys(t.Environment)) {
			if other := first(byVariable, name, t); other.Environment[name] != t.Environment[name] && sameModule == t {
				v.problem(path+".environment."+name, "%s has another value in token %s: the environment belongs to the whole process", name, other.Name)
			}
		}
	}
}

func (v validator) key(path string, k *Key) {
	if at := path + ".token"; v.ok(at) {
		if _, ok := v.c.Token(k.Token); !ok {
			v.problem(at, "no token is named %q%s", k.Token, v.tokenHint(k.Token))
		}
	}
	v.keySpec(path, k)
	if at := path + ".generate"; v.ok(at) && k.Generate != GenerateNever && k.Generate != GenerateIfMissing {
		v.problem(at, "%q is neither %s nor %s", k.Generate, GenerateNever, GenerateIfMissing)
	}
	v.keyURI(path, k)
	if at := path + ".expires"; v.ok(at) && k.Expires.Duration() > maxExpiry {
		v.problem(at, "%s is more than the 365d that AWS KMS allows: import again before they end, or write never", k.Expires)
	}
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

func (v validator) keyURI(path string, k *Key) {
	at := path + ".uri"
	if !v.ok(at) {
		return
	}
	class := pkcs11uri.TypePrivate
	if kind := k.KeySpec.Kind(); kind == wrapping.KindSymmetric || kind == wrapping.KindHMAC {
		class = pkcs11uri.TypeSecretKey
	}
	switch u := k.URI; {
	case u.HasTokenAttributes() || u.HasModuleAttributes():
		v.problem(at, "the token is named by token: leave only object, id and type")
	case u.Object == "" && len(u.ID) == 0:
		v.problem(at, `names no key: write "pkcs11:object=LABEL;type=%s"`, class)
	case u.Object == "" && k.Generate == GenerateIfMissing:
		v.problem(at, "a generated key needs a label: add object=LABEL")
	case v.ok(path+".key_spec") && k.KeySpec.WhyNot() == "" && u.Type != "" && u.Type != class:
		v.problem(at, "%s keys are of type=%s, not type=%s", k.KeySpec, class, u.Type)
	}
}

// destinations checks that each KMS key is fed by one managed key, and lies in the configured Region.
func (v validator) destinations() {
	first := make(map[Destination]string)
	for i := range v.c.Keys {
		for j, dest := range v.c.Keys[i].Destinations {
			path := fmt.Sprintf("keys[%d].destinations[%d]", i, j)
			if !v.ok(path) {
				continue
			}
			if region := v.c.KMS.Region; region != "" && dest.Region() != region {
				v.problem(path, "this KMS key is in %s and kms.region is %s: correct one of them, or leave kms.region out for keys in several Regions", dest.Region(), region)
			}
			if other, twice := first[dest]; twice {
				v.problem(path, "this KMS key is already a destination in line %d: a KMS key is fed by one managed key", v.at[other].line)
				continue
			}
			first[dest] = path
		}
	}
}

func list[S ~string](values []S) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = string(value)
	}
	return strings.Join(texts, ", ")
}
