package configs

import (
	"net/url"
	"strings"

	"hsmbridge/daemon/approval"
	"hsmbridge/hsm/pkcs11uri"
)

const (
	officerPattern = `^[\pL\pN][\pL\pN .@_'-]{0,63}$`
	officerForm    = "a person's name: letters, digits, spaces and .@_'- , at most 64"
	maxSigners     = 1 << 20
	maxThreshold   = 20
)

// approval checks what one approval says, and reads its file of officers.
func (v validator) approval(path string, a *Approval) {
	if !v.ok(path) {
		return
	}
	owner := map[string]string{} // of a public key
	for i, o := range a.Officers {
		at := element(path+".officers", i)
		v.matches(at+".name", o.Name, officerPattern, officerForm)
		for j, text := range o.Keys {
			v.officerKey(element(at+".keys", j), text, o.Name, owner)
		}
	}
	seen := map[string]bool{}
	for i, o := range a.Officers {
		at := element(path+".officers", i) + ".name"
		if name := strings.ToLower(o.Name); v.ok(at) && seen[name] {
			v.problem(at, "the officer %q is listed twice: put the keys of one person into one element", o.Name)
		} else {
			seen[name] = true
		}
	}
	v.signers(path, a, seen, owner)
	if at := path + ".valid_for"; v.ok(at) && (a.ValidFor == Never || a.ValidFor.Duration() > maxValidFor) {
		v.problem(at, "%s is too long for a request that people have just read: at most 30d", a.ValidFor)
	}
	if at := path + ".standing"; v.ok(at) && (a.Standing == Never || a.Standing.Duration() > maxExpiry) {
		v.problem(at, "a standing approval ends: at most 365d")
	}
	if at := path + ".threshold"; v.ok(at) && (a.Threshold < 1 || a.Threshold > maxThreshold) {
		v.problem(at, "%d officers cannot be asked for: write a number from 1 to %d", a.Threshold, maxThreshold)
	}
	if at := path + ".exempt"; v.ok(at) && path == "approval" && a.Exempt {
		v.problem(at, "exempt is for single keys: to need no approval at all, leave approval out")
	}
}

func (v validator) officerKey(at, text, name string, owner map[string]string) {
	if !v.ok(at) {
		return
	}
	key, err := approval.ParseKey(text)
	if err != nil {
		v.problem(at, "%v", err)
		return
	}
	id := string(key.Marshal())
	if other := owner[id]; other != "" {
		v.problem(at, "this key is %s's already: one key belongs to one person", other)
	}
	owner[id] = name
}

// signers reads the file of allowed signers.
func (v validator) signers(path string, a *Approval, seen map[string]bool, owner map[string]string) {
	at := path + ".allowed_signers"
	if !v.ok(at) || a.AllowedSigners == "" {
		return
	}
	v.path(at, a.AllowedSigners, "the file of officers")
	file := resolve(v.folder, a.AllowedSigners)
	text, err := readTrusted(file)
	if err != nil {
		v.problem(at, "the file of officers cannot be read: %v", err)
		return
	}
	if len(text) > maxSigners {
		v.problem(at, "the file of officers has %d bytes: that is not a list of people", len(text))
		return
	}
	v.read = append(v.read, text...)
	a.AllowedSigners = file
	if a.signers, err = approval.ParseAllowedSigners(text); err != nil {
		v.problem(at, "%s: %v", file, err)
		return
	}
	for _, o := range a.signers {
		if seen[strings.ToLower(o.Name)] {
			v.problem(at, "%s stands in officers and in %s: put the keys of one person into one place", o.Name, file)
		}
		for _, k := range o.Keys {
			if other := owner[string(k.Marshal())]; other != "" && other != o.Name {
				v.problem(at, "%s: a key of %s is %s's already: one key belongs to one person", file, o.Name, other)
			}
			owner[string(k.Marshal())] = o.Name
		}
	}
}

// approvals checks that each key's approval can be given.
func (v validator) approvals() {
	v.approval("approval", &v.c.Approval)
	if v.ok("approval") {
		v.enough("approval", v.c.Approval)
	}
	for i := range v.c.Keys {
		path := element("keys", i) + ".approval"
		k := &v.c.Keys[i]
		v.approval(path, &k.Approval)
		if a, needed := v.c.ApprovalFor(*k); v.ok(path) && needed {
			v.enough(path, a)
		}
	}
}

func (v validator) enough(path string, a Approval) {
	people, err := a.people()
	if err != nil || len(v.problems) > 0 {
		return // told where the key stands
	}
	n := len(officerNames(people))
	switch {
	case n == 0:
		v.problem(path, "nobody can approve: name officers, or a file of them as allowed_signers")
	case a.Threshold == 0:
		v.problem(path, "threshold is missing: say how many officers have to sign, for example threshold: 2")
	case n < a.Threshold:
		v.problem(path, "%d officers have to sign and there are %d", a.Threshold, n)
	}
	if a.RequireHardware || a.RequireUserVerification {
		able := 0
		for _, o := range people {
			for _, k := range o.Keys {
				if k.Hardware() {
					able++
					break
				}
			}
		}
		if n >= a.Threshold && able < a.Threshold {
			v.problem(path, "keys in hardware are required, %d officers have to sign, and %d have such a key (sk-ssh-ed25519, sk-ecdsa-sha2-nistp256)", a.Threshold, able)
		}
	}
}

// audit checks where the audit log is signed and copied to.
func (v validator) audit() {
	a := &v.c.Audit
	if !v.ok("audit") {
		return
	}
	switch {
	case v.ok("audit.token") && !v.tokens[a.Token]:
		v.problem("audit.token", "no token is named %q%s", a.Token, v.tokenHint(a.Token))
	case v.ok("audit.token") && !v.ok("audit.uri"):
		v.problem("audit.token", `uri is missing: name the key that signs, such as "pkcs11:object=hsmbridge-audit;type=private"`)
	case v.ok("audit.uri") && !v.ok("audit.token"):
		v.problem("audit.uri", "token is missing: say which token holds the key")
	}
	if at := "audit.uri"; v.ok(at) {
		switch u := a.URI; {
		case u.HasTokenAttributes() || u.HasModuleAttributes():
			v.problem(at, "the token is named by token: leave only object, id and type")
		case u.Object == "" && (len(u.ID) == 0 || a.Generate == GenerateIfMissing):
			v.problem(at, `names no label: write "pkcs11:object=hsmbridge-audit;type=private"`)
		case u.Type != "" && u.Type != pkcs11uri.TypePrivate:
			v.problem(at, "the log is signed with a private key: type=private")
		}
	}
	if at := "audit.generate"; v.ok(at) && a.Generate != GenerateNever && a.Generate != GenerateIfMissing {
		v.problem(at, "%q is neither %s nor %s", a.Generate, GenerateNever, GenerateIfMissing)
	}
	if at := "audit.every"; v.ok(at) && (a.Every == Never || a.Every.Duration() > day) {
		v.problem(at, "%s is too seldom: at most 1d, so that a lost record is noticed", a.Every)
	}
	names := map[string]bool{}
	for i := range a.Export {
		v.export(element("audit.export", i), &a.Export[i], names)
	}
}

func (v validator) export(path string, e *Export, names map[string]bool) {
	if !v.ok(path) {
		return
	}
	n := 0
	for _, given := range []bool{e.File != "", e.Syslog != "", e.Stdout} {
		if given {
			n++
		}
	}
	if n != 1 {
		v.problem(path, "give exactly one of file, syslog and stdout")
		return
	}
	if at := path + ".file"; v.ok(at) {
		v.path(at, e.File, "the file")
		e.File = resolve(v.folder, e.File)
	}
	if at := path + ".syslog"; v.ok(at) && e.Syslog != "local" {
		u, err := url.Parse(e.Syslog)
		ok := err == nil
		switch {
		case ok && u.Scheme == "unix":
			ok = u.Host == "" && strings.HasPrefix(u.Path, "/")
		case ok:
			_, _, ok = hostPort(u.Host)
			ok = ok && (u.Scheme == "udp" || u.Scheme == "tcp") && u.Path == ""
		}
		if !ok {
			v.problem(at, "%q is neither local nor unix:///PATH nor udp://HOST:PORT nor tcp://HOST:PORT", e.Syslog)
		}
	}
	if at := path + ".required"; v.ok(at) && e.Required && strings.HasPrefix(e.Syslog, "udp:") {
		v.problem(at, "a datagram to another machine may be lost without a word: require a file, or tcp://")
	}
	if names[e.Name()] {
		v.problem(path, "the log is copied there already")
	}
	names[e.Name()] = true
}
