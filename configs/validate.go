package configs

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/hsm/wrapping"
)

// maxExpiry is the longest that AWS KMS keeps expiring key material. Source: AWS KMS API Reference, ImportKeyMaterial, ValidTo.
const maxExpiry = 365 * day

const (
	namePattern        = `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`
	nameForm           = "a name: letters, digits, '.', '_' and '-', at most 64"
	environmentPattern = `^[A-Za-z_][A-Za-z0-9_]*$`
	systemdNamePattern = `^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$` // systemd.exec(5): a file name
)

// validator checks what one value or several together mean. Only values that were read without a mistake are looked at.
type validator struct {
	*decoder
	c      *Config
	folder string                    // in which relative paths start
	tokens map[string]bool           // the names of the tokens
	forms  map[string]*regexp.Regexp // the patterns, compiled
	times  map[string]error          // what is wrong with time zones and schedules that were seen
}

func validate(c *Config, folder string, d *decoder) {
	v := validator{d, c, folder, make(map[string]bool), make(map[string]*regexp.Regexp), make(map[string]error)}
	for _, t := range c.Tokens {
		v.tokens[t.Name] = true
	}
	v.daemon()
	v.kms()
	v.wrapping()
	v.unique("tokens", len(c.Tokens), func(i int) string { return c.Tokens[i].Name })
	v.unique("keys", len(c.Keys), func(i int) string { return c.Keys[i].Name })
	if v.ok("tokens") && len(c.Tokens) == 0 {
		v.problem("tokens", "tokens is empty: name at least one token")
	}
	for i := range c.Tokens {
		v.token(element("tokens", i), &c.Tokens[i])
	}
	v.modules()
	for i := range c.Keys {
		if len(d.problems) > maxProblems {
			return
		}
		v.key(element("keys", i), &c.Keys[i])
	}
	v.destinations()
	v.approvals()
	v.audit()
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
	if !v.ok(path) {
		return
	}
	if v.forms[pattern] == nil {
		v.forms[pattern] = regexp.MustCompile(pattern)
	}
	if !v.forms[pattern].MatchString(value) {
		v.problem(path, "%q is not %s", value, form)
	}
}

func (v validator) wrapping() {
	w := v.c.Wrapping
	for i, a := range w.Algorithms {
		path := element("wrapping.algorithms", i)
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
		path := element(list, i) + ".name"
		v.matches(path, name(i), namePattern, nameForm)
		if !v.ok(path) {
			continue
		}
		if j, twice := first[name(i)]; twice {
			v.problem(path, "the name %q is taken by %s[%d] in line %d", name(i), list, j, v.at[element(list, j)+".name"].line)
			continue
		}
		first[name(i)] = i
	}
}

// element is the path of an element of a list.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func list[S ~string](values []S) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = string(value)
	}
	return strings.Join(texts, ", ")
}
