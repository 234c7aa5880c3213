package approval_test

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
)

const certTypes = "ssh-ed25519-cert-v01@openssh.com keys cannot approve: take one of ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, " +
	"ecdsa-sha2-nistp521, ssh-rsa, sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com"

func TestParseKey(t *testing.T) {
	a, b := line(public("a")), line(public("b"))
	const (
		noKey   = `this is not an OpenSSH public key, such as "ssh-ed25519 AAAAC3... name": take the line of the .pub file`
		options = "a public key has no options here: it begins with its type, such as ssh-ed25519"
		spelled = "the key is not written as ssh-keygen writes it: take the line of the .pub file"
		lines   = "there is more than one line: write a key as the one line of its .pub file"
	)
	for _, c := range []struct{ name, text, comment, want string }{
		{"the line", a, "", ""},
		{"a line feed and a comment", a + " alice@work, her laptop\n", "alice@work, her laptop", ""},
		{"tabs", strings.Replace(a, " ", "\t", 1) + "\talice", "alice", ""},
		{"as Windows ends lines", a + " alice\r\n", "alice", ""},
		{"hardware", line(hardwareKey("a")) + " alice", "alice", ""},

		{"nothing", "", "", noKey},
		{"a comment", "# " + a, "", noKey},
		{"a private key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "", noKey},
		{"only the key", strings.Fields(a)[1], "", noKey},
		{"another type than the key's", "ssh-rsa " + strings.Fields(a)[1], "", noKey},
		{"half of it", a[:40], "", noKey},
		{"a fingerprint", ssh.FingerprintSHA256(public("a")), "", noKey},
		{"options", `no-touch-required ` + a, "", options},
		{"a name in front", "alice " + a, "", options},
		{"two keys", a + "\n" + b, "", "there is more than one key: write one in each element of the list"},
		{"a broken key in front of a good one", a[:40] + "\n" + b, "", lines},
		{"a comment in a line of its own", "# alice's\n" + a, "", lines},
		{"bits that say nothing", spelledOtherwise(t), "", spelled},
		{"zeros in front of a number", "ssh-rsa " + base64.StdEncoding.EncodeToString(zerosInFront(rsaKey(t).PublicKey())), "", spelled},
		{"a certificate", line(certificate("a")), "", certTypes},
	} {
		key, err := approval.ParseKey(c.text)
		switch {
		case c.want != "":
			if err == nil || err.Error() != c.want {
				t.Errorf("%s: %v", c.name, err)
			}
		case err != nil || key.Comment != c.comment || !strings.HasPrefix(strings.Replace(c.text, "\t", " ", 1), line(key)) || !key.From.IsZero() || !key.Until.IsZero():
			t.Errorf("%s: %+v, %v", c.name, key, err)
		case key.Hardware() != (c.name == "hardware"):
			t.Errorf("%s: hardware %v", c.name, key.Hardware())
		}
	}
}

// spelledOtherwise is a key with bits set that base64 has no use for: another text for the same key.
func spelledOtherwise(t *testing.T) string {
	t.Helper()
	key := line(hardwareKey("a"))
	if !strings.HasSuffix(key, "o=") { // "ssh:" ends with ':', 0x3a
		t.Fatal(key)
	}
	return strings.TrimSuffix(key, "o=") + "p="
}

// person is an officer as it is compared.
type person struct {
	name, users, keys string
	from, until       time.Time
}

func TestParseAllowedSigners(t *testing.T) {
	a, b, c := line(public("a")), line(public("b")), line(public("c"))
	day := func(d int) time.Time { return time.Date(2030, 1, d, 0, 0, 0, 0, time.UTC) }
	alice := person{name: "alice", keys: a}
	for _, tc := range []struct {
		name, text string
		want       []person
	}{
		{"a line", "alice " + a, []person{alice}},
		{"a comment behind", "alice " + a + " her laptop", []person{alice}},
		{"comments, empty lines, spaces", "# officers\n\n \t\n  alice   " + a + "  \n# end", []person{alice}},
		{"as Windows ends lines", "# officers\r\n\r\nalice " + a + "\r\n", []person{alice}},
		{"tabs", "alice\t" + strings.Replace(a, " ", "\t", 1) + "\tx", []person{alice}},
		{"user names", "alice,al@work,,AL@work,Alice " + a, []person{{name: "alice", users: "al@work", keys: a}}},
		{"two people", "alice " + a + "\nbob " + b, []person{alice, {name: "bob", keys: b}}},
		{"two keys of one person", "alice " + a + "\nbob " + b + "\nALICE,al " + c, []person{{name: "alice", users: "al", keys: a + "\n" + c}, {name: "bob", keys: b}}},
		{"a user name of two people", "alice,team " + a + "\nbob,team " + b, []person{{name: "alice", users: "team", keys: a}, {name: "bob", users: "team", keys: b}}},
		{"our namespace", `alice namespaces="hsmbridge-approval" ` + a, []person{alice}},
		{"our namespace among others", `alice NAMESPACES="git,hsmbridge-approval" ` + a, []person{alice}},
		{"lines for other programs", `alice namespaces="git" ` + b + "\nalice " + a + "\nbob namespaces=\"file,hsmbridge-rejection\" " + c, []person{alice}},
		{"valid after a day", "alice valid-after=20300102Z " + a, []person{{name: "alice", keys: a, from: day(2)}}},
		{"valid before a minute", `alice valid-before="203001031530Z" ` + a, []person{{name: "alice", keys: a, until: day(3).Add(15*time.Hour + 30*time.Minute)}}},
		{
			"valid between seconds", `alice valid-after="20300102000001Z",valid-before="20300103000002Z",namespaces="hsmbridge-approval" ` + a,
			[]person{{name: "alice", keys: a, from: day(2).Add(time.Second), until: day(3).Add(2 * time.Second)}},
		},
		{"an option behind a tab", "alice\tvalid-before=20300103Z " + a, []person{{name: "alice", keys: a, until: day(3)}}},
	} {
		list, err := approval.ParseAllowedSigners([]byte(tc.text))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var got []person
		for _, o := range list {
			p := person{name: o.Name, users: strings.Join(o.Users, ","), from: o.Keys[0].From, until: o.Keys[0].Until}
			var keys []string
			for _, k := range o.Keys {
				keys = append(keys, line(k))
			}
			p.keys = strings.Join(keys, "\n")
			got = append(got, p)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestParseAllowedSignersRefused(t *testing.T) {
	a, b := line(public("a")), line(public("b"))
	const (
		noKey  = "line 1: it has no OpenSSH public key after the name"
		nobody = "no line names a person and a key for the namespace hsmbridge-approval"
		ca     = "line 1: cert-authority: hsmbridge takes plain public keys only"
	)
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", nobody},
		{"comments", "# nobody\n\n", nobody},
		{"only lines for other programs", `alice namespaces="git" ` + a, nobody},
		{"a name", "alice", "line 1: it has a name and no key"},
		{"no name", ", " + a, "line 1: it has no name"},
		{"no name but the type", a, noKey},
		{"a key that is no key", "alice ssh-ed25519 AAAA", noKey},
		{"another type than the key's", "alice ssh-rsa " + strings.Fields(a)[1], noKey},
		{"a quote that is open", `alice namespaces="git ` + a, noKey},
		{"the line that is wrong", "# officers\nalice " + a + "\n\nbob", "line 4: it has a name and no key"},
		{"everybody", "* " + a, `line 1: "*" is a pattern: hsmbridge counts people, so each needs a name of their own`},
		{"everybody at a place", "alice,*@work " + a, `line 1: "alice,*@work" is a pattern: hsmbridge counts people, so each needs a name of their own`},
		{"one letter", "alic? " + a, `line 1: "alic?" is a pattern: hsmbridge counts people, so each needs a name of their own`},
		{"all but one", "!bob,alice " + a, `line 1: "!bob,alice" is a pattern: hsmbridge counts people, so each needs a name of their own`},
		{"quotes", `"alice smith" ` + a, `line 1: "\"alice" is a pattern: hsmbridge counts people, so each needs a name of their own`},
		{"a name that moves the cursor", "al\x1b[2Jice " + a, `line 1: "al\x1b[2Jice" has characters that cannot be shown in one line`},
		{"a name that is not seen", "\u3164 " + a, "line 1: \"\u3164\" has characters that cannot be shown in one line"},
		{"a certificate authority", "alice cert-authority " + a, ca},
		{"a certificate authority in capitals", `alice namespaces="hsmbridge-approval",CERT-AUTHORITY ` + a, ca},
		{"a certificate", "alice " + line(certificate("a")), "line 1: " + certTypes},
		{"an unknown option", "alice no-touch-required " + a, `line 1: the option "no-touch-required" is unknown`},
		{"an option twice", `alice namespaces="git",namespaces="hsmbridge-approval" ` + a, "line 1: the option namespaces stands there twice"},
		{"a pattern of namespaces", `alice namespaces="hsmbridge-*" ` + a, `line 1: namespaces="hsmbridge-*" is a pattern or empty: name each namespace in full`},
		{"all namespaces but ours", `alice namespaces="!hsmbridge-approval,*" ` + a, `line 1: namespaces="!hsmbridge-approval,*" is a pattern or empty: name each namespace in full`},
		{"no namespace", `alice namespaces="" ` + a, `line 1: namespaces="" is a pattern or empty: name each namespace in full`},
		{"local time", "alice valid-after=20300102 " + a, "line 1: 20300102 is local time, which differs between machines: write it in UTC, with a Z behind it"},
		{"no time", "alice valid-before=tomorrow " + a, `line 1: "tomorrow" is not a time such as 20300131Z`},
		{"no such day", "alice valid-before=20300230Z " + a, `line 1: "20300230Z" is not a time such as 20300131Z`},
		{"the zero time, which is no limit", "alice valid-before=00010101Z " + a, `line 1: "00010101Z" is not a time such as 20300131Z`},
		{"no value", "alice valid-before " + a, `line 1: "" is not a time such as 20300131Z`},
		{
			"a person by two names", "alice,al " + a + "\nal,alice " + b,
			"al is a user name of alice and the first name of another line: hsmbridge counts people, so begin each line of one person with the same name",
		},
		{"bits that say nothing", "alice " + spelledOtherwise(t), "line 1: the key is not written as ssh-keygen writes it: take the line of the .pub file"},
	} {
		if list, err := approval.ParseAllowedSigners([]byte(c.text)); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, %+v", c.name, err, list)
		}
	}
}

// The lines that are honoured are those that ssh-keygen -Y verify honours, at the same times.
func TestAllowedSignersAsSSHKeygen(t *testing.T) {
	key := newKey(t, nil, "-t", "ed25519")
	now := time.Now()
	stamp := func(d time.Duration) string { return now.Add(d).UTC().Format("20060102150405Z") }
	r := sample()
	r.AskedAt, r.ValidUntil = now.Add(-time.Hour).Truncate(time.Second), now.Add(time.Hour).Truncate(time.Second)
	text := textOf(t, r)
	armored := key.sign(t, approval.Namespace, text)
	for options, good := range map[string]bool{
		"":                                     true,
		`namespaces="hsmbridge-approval" `:     true,
		`namespaces="git,hsmbridge-approval" `: true,
		`namespaces="git" `:                    false,
		`valid-after="` + stamp(-time.Hour) + `" `:                                                true,
		`valid-after="` + stamp(time.Hour) + `" `:                                                 false,
		`valid-before="` + stamp(time.Hour) + `" `:                                                true,
		`valid-before="` + stamp(-time.Hour) + `" `:                                               false,
		`valid-after="` + stamp(-time.Hour) + `",valid-before="` + stamp(time.Hour) + `" `:        true,
		`Valid-After="` + now.UTC().Add(-48*time.Hour).Format("20060102Z") + `" `:                 true,
		`valid-before="` + now.UTC().Add(-48*time.Hour).Format("200601021504Z") + `" `:            false,
		`valid-before="` + now.UTC().Add(48*time.Hour).Format("20060102Z") + `",cert-authority `:  false,
		`namespaces="hsmbridge-approval",valid-before="` + stamp(time.Hour) + `",no-such-option `: false,
	} {
		file := []byte("alice " + options + line(key) + "\n")
		_, err := run(t, nil, string(text), "ssh-keygen", "-Y", "verify", "-n", approval.Namespace, "-I", "alice",
			"-f", writeFile(t, "allowed_signers", file), "-s", writeFile(t, "sig", armored))
		if (err == nil) != good {
			t.Errorf("%s: ssh-keygen: %v", options, err)
		}
		officers, err := approval.ParseAllowedSigners(file)
		d, wrong := approval.Policy{Officers: officers, Threshold: 1}.Decide(text, [][]byte{armored}, now)
		if wrong != nil || d.Approved != good {
			t.Errorf("%s: %v, %+v", options, err, d)
		}
	}
}
