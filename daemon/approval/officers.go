package approval

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Key is a public key of an officer.
type Key struct {
	ssh.PublicKey
	Comment string
	From    time.Time // it counts from then on; zero: always
	Until   time.Time // it counts until then; zero: for ever
}

// Officer is a person who approves.
type Officer struct {
	Name  string
	Users []string // user names by which the officer asks for something, beside Name
	Keys  []Key
}

// is says whether a user name is the officer's.
func (o Officer) is(user string) bool {
	return strings.EqualFold(o.Name, user) || slices.ContainsFunc(o.Users, func(u string) bool { return strings.EqualFold(u, user) })
}

// ParseKey reads an OpenSSH public key: the one line of a .pub file. RSA keys have 2048 bits at least; certificates and DSA are refused.
func ParseKey(text string) (Key, error) {
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	switch {
	case err != nil:
		return Key{}, errors.New(`this is not an OpenSSH public key, such as "ssh-ed25519 AAAAC3... name": take the line of the .pub file`)
	case len(options) > 0:
		return Key{}, errors.New("a public key has no options here: it begins with its type, such as ssh-ed25519")
	case len(bytes.TrimSpace(rest)) > 0:
		return Key{}, errors.New("there is more than one key: write one in each element of the list")
	case strings.Contains(strings.TrimSpace(text), "\n"):
		return Key{}, errors.New("there is more than one line: write a key as the one line of its .pub file")
	}
	return checked(text, key, comment)
}

// checked says whether a key can approve. The text is the one that it was read from.
func checked(text string, key ssh.PublicKey, comment string) (Key, error) {
	known := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256}
	if !slices.Contains(known, key.Type()) {
		return Key{}, fmt.Errorf("%s keys cannot approve: take one of %s", key.Type(), strings.Join(known, ", "))
	}
	const least = 2048
	if c, ok := key.(ssh.CryptoPublicKey); ok {
		if k, ok := c.CryptoPublicKey().(interface{ Size() int }); ok && key.Type() == ssh.KeyAlgoRSA && k.Size()*8 < least {
			return Key{}, fmt.Errorf("an RSA key needs %d bits to approve, and this one has %d", least, k.Size()*8)
		}
	}
	if !slices.Contains(strings.Fields(text), base64.StdEncoding.EncodeToString(key.Marshal())) {
		return Key{}, errors.New("the key is not written as ssh-keygen writes it: take the line of the .pub file")
	}
	return Key{PublicKey: key, Comment: comment}, nil
}

// counts says whether the key counts now.
func (k Key) counts(now time.Time) bool {
	return !now.Before(k.From) && (k.Until.IsZero() || now.Before(k.Until))
}

// SHA256 is the fingerprint of the key as ssh-keygen -l shows it.
func (k Key) SHA256() string { return ssh.FingerprintSHA256(k) }

// Hardware says that the key is in a FIDO authenticator (sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com).
func (k Key) Hardware() bool { return hardware(k) }

// ParseAllowedSigners reads the file format of ssh-keygen -Y: lines of principals, options, key type and key. An officer's name is the
// first principal; the others are user names. Lines of one name are one person, and no name is another person's user name. Source: ssh-keygen(1), ALLOWED SIGNERS.
func ParseAllowedSigners(text []byte) ([]Officer, error) {
	var list []Officer
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		names, key, counts, err := parseSigner(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if !counts {
			continue // for other programs
		}
		i := slices.IndexFunc(list, func(o Officer) bool { return strings.EqualFold(o.Name, names[0]) })
		if i < 0 {
			list = append(list, Officer{Name: names[0]})
			i = len(list) - 1
		}
		list[i].Keys = append(list[i].Keys, key)
		for _, u := range names[1:] {
			if !list[i].is(u) {
				list[i].Users = append(list[i].Users, u)
			}
		}
	}
	for _, o := range list {
		for _, u := range o.Users {
			if slices.ContainsFunc(list, func(other Officer) bool { return strings.EqualFold(other.Name, u) }) {
				return nil, fmt.Errorf("%s is a user name of %s and the first name of another line: hsmbridge counts people, so begin each line of one person with the same name", u, o.Name)
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("no line names a person and a key for the namespace " + Namespace)
	}
	return list, nil
}

// parseSigner reads a line; counts is false for one whose namespaces leave ours out.
func parseSigner(line string) (names []string, key Key, counts bool, err error) {
	end := strings.IndexAny(line, " \t")
	if end < 0 {
		return nil, key, false, errors.New("it has a name and no key")
	}
	principals, rest := line[:end], strings.TrimSpace(line[end:])
	if err := oneLine(principals); err != nil {
		return nil, key, false, err
	}
	if strings.ContainsAny(principals, `*?!"`) {
		return nil, key, false, fmt.Errorf("%q is a pattern: hsmbridge counts people, so each needs a name of their own", principals)
	}
	names = slices.DeleteFunc(strings.Split(principals, ","), func(s string) bool { return s == "" })
	if len(names) == 0 {
		return nil, key, false, errors.New("it has no name")
	}
	public, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(rest))
	if err != nil {
		return nil, key, false, errors.New("it has no OpenSSH public key after the name")
	}
	if key, err = checked(rest, public, comment); err != nil {
		return nil, key, false, err
	}
	counts = true
	seen := map[string]bool{}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		name, value = strings.ToLower(name), strings.Trim(value, `"`)
		if seen[name] {
			return nil, key, false, fmt.Errorf("the option %s stands there twice", name)
		}
		seen[name] = true
		switch name {
		case "namespaces":
			counts = slices.Contains(strings.Split(value, ","), Namespace)
			if strings.ContainsAny(value, "*?!") || value == "" {
				err = fmt.Errorf("namespaces=%q is a pattern or empty: name each namespace in full", value)
			}
		case "valid-after":
			key.From, err = signerTime(value)
		case "valid-before":
			key.Until, err = signerTime(value)
		case "cert-authority":
			err = errors.New("cert-authority: hsmbridge takes plain public keys only")
		default:
			err = fmt.Errorf("the option %q is unknown", name)
		}
		if err != nil {
			return nil, key, false, err
		}
	}
	return names, key, counts, nil
}

// signerTime reads YYYYMMDD[HHMM[SS]] with Z for UTC. Without Z ssh-keygen takes local time, which differs between machines.
func signerTime(s string) (time.Time, error) {
	digits, utc := strings.CutSuffix(s, "Z")
	for _, form := range []string{"20060102", "200601021504", "20060102150405"} {
		if t, err := time.Parse(form, digits); err == nil && len(form) == len(digits) && t.Unix() > 0 {
			if !utc {
				return t, fmt.Errorf("%s is local time, which differs between machines: write it in UTC, with a Z behind it", s)
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time such as 20300131Z", s)
}
