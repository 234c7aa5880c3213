package approval_test

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
)

// What is a request is written again as it was read, and no other text has the same fields.
func FuzzParse(f *testing.F) {
	text := textOf(f, sample())
	f.Add(text)
	f.Add(text[:bytes.Index(text, []byte("\n\n-----BEGIN"))+1])
	least := approval.Request{ID: "x", Purpose: approval.Revoke, AskedBy: "operator", AskedAt: askedAt, ValidUntil: askedAt, Key: "k"}
	f.Add(textOf(f, least))
	for _, p := range []approval.Purpose{approval.Standing, approval.Waive} {
		least.Purpose = p
		f.Add(textOf(f, least))
	}
	f.Add(append(text, '\n'))
	f.Add(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")))
	f.Add([]byte("hsmbridge request for approval, version 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := approval.Parse(text)
		if err != nil {
			return
		}
		again, err := r.Text()
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("written again: %v\n%s", err, again)
		}
		if d := approval.Differences(r, r); d != nil {
			t.Errorf("it differs from itself: %q", d)
		}
		for _, field := range r.Fields() {
			if field.Value != approval.OneLine(field.Value) {
				t.Errorf("%s: %q cannot be shown", field.Name, field.Value)
			}
		}
		if said, err := approval.RejectionText(text, "no"); err != nil || bytes.Count(said, []byte("\n")) != 5 {
			t.Errorf("its rejection: %v\n%s", err, said)
		}
	})
}

// What is a signature has one encoding, and nothing that was not signed with alice's key counts as hers.
func FuzzParseSignature(f *testing.F) {
	text := textOf(f, sample())
	good := signFile(fileKey("alice"), approval.Namespace, text)
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")))
	f.Add(signHardware("alice", 5, approval.Namespace, text))
	f.Add(signFile(fileKey("bob"), "git", text))
	raw := unarmor(f, good)
	f.Add(rearmor(append(raw, 0)))
	f.Add(rearmor(withBlob(f, raw, func(b *blob) { b.Reserved = "x" })))
	f.Add(rearmor(withBlob(f, raw, func(b *blob) { b.Hash = "sha256" })))
	f.Add(rearmor(withBlob(f, raw, func(b *blob) { b.PublicKey = string(certificate("alice").Marshal()) })))
	f.Add(rearmor(withSignature(f, raw, func(s *ssh.Signature) { s.Format = ssh.KeyAlgoRSASHA512 })))
	f.Add(rearmor(withSignature(f, raw, func(s *ssh.Signature) { s.Rest = []byte{1} })))
	f.Add([]byte(sigBegin + sigEnd))
	rsa := rsaKey(f)
	f.Add(signFile(rsa, approval.Namespace, text))
	f.Add(signSHA1(f, rsa, approval.Namespace, text))
	f.Add(rearmor(withBlob(f, raw, func(b *blob) { b.PublicKey = string(zerosInFront(rsa.PublicKey())) })))
	p := approval.Policy{Officers: []approval.Officer{officer("alice", public("alice"), hardwareKey("alice"))}, Threshold: 1}
	f.Add(raw) // what is no text is put into armor, so that what is in it is tried as well
	f.Add(unarmor(f, signHardware("alice", 5, approval.Namespace, text)))
	f.Fuzz(func(t *testing.T, armored []byte) {
		if bytes.HasPrefix(armored, []byte(magic)) {
			armored = rearmor(armored)
		}
		s, err := approval.ParseSignature(armored)
		if err != nil {
			return
		}
		body := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(string(armored)), strings.TrimSpace(sigBegin)), strings.TrimSpace(sigEnd))
		encoded := strings.NewReplacer("\r", "", "\n", "").Replace(body)
		if again := base64.StdEncoding.EncodeToString(s.Blob()); again != encoded {
			t.Errorf("encoded again: %s\nwas %s", again, encoded)
		}
		if again, err := approval.ParseSignature(rearmor(s.Blob())); err != nil || !bytes.Equal(again.Blob(), s.Blob()) {
			t.Errorf("read again: %v", err)
		}
		d, err := p.Decide(text, [][]byte{armored}, askedAt)
		if err != nil {
			t.Fatal(err)
		}
		v := d.Verdicts[0]
		if v.Counts && !bytes.Equal(s.Key.Marshal(), public("alice").Marshal()) && !bytes.Equal(s.Key.Marshal(), hardwareKey("alice").Marshal()) {
			t.Errorf("a stranger counts: %+v", v)
		}
		// Only what alice signed counts: the very blob.
		if v.Counts && !bytes.Equal(s.Blob(), raw) && !v.Present {
			t.Errorf("alice did not sign this: %+v", v)
		}
	})
}

// What is a file of officers is one for the same people when it is written from what was read.
func FuzzParseAllowedSigners(f *testing.F) {
	a, b := line(public("a")), line(hardwareKey("b"))
	for _, text := range []string{
		"alice " + a,
		"# officers\n\nalice,al " + a + " laptop\r\nbob\t" + b + "\n",
		`alice namespaces="git,hsmbridge-approval",valid-after="20300102Z",valid-before="203001031530Z" ` + a,
		`alice namespaces="git" ` + a + "\nbob " + b,
		"alice cert-authority " + a,
		"alice,al " + a + "\nal,alice " + b,
		"* " + a,
		"alice " + line(certificate("a")),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := approval.ParseAllowedSigners(text)
		if err != nil {
			return
		}
		if len(list) == 0 {
			t.Error("nobody, and no error")
		}
		first := write(t, list)
		again, err := approval.ParseAllowedSigners([]byte(first))
		if err != nil {
			t.Fatalf("%v\n%s", err, first)
		}
		if second := write(t, again); second != first {
			t.Errorf("got\n%s\nwant\n%s", second, first)
		}
		for _, o := range list {
			for _, k := range o.Keys {
				if !bytes.Contains(text, []byte(strings.Fields(line(k))[1])) {
					t.Errorf("the key %s is not in the file", line(k))
				}
			}
		}
	})
}

// write is a file of these officers.
func write(t *testing.T, list []approval.Officer) string {
	t.Helper()
	var b strings.Builder
	for _, o := range list {
		if strings.ContainsAny(o.Name, " \t*?!,\"\n\r") || o.Name != approval.OneLine(o.Name) {
			t.Errorf("%q is no name", o.Name)
		}
		for _, k := range o.Keys {
			b.WriteString(strings.Join(append([]string{o.Name}, o.Users...), ","))
			const form = "20060102150405Z"
			var options []string
			if !k.From.IsZero() {
				options = append(options, "valid-after="+k.From.Format(form))
			}
			if !k.Until.IsZero() {
				options = append(options, "valid-before="+k.Until.Format(form))
			}
			b.WriteString(" " + strings.Join(options, ",") + " " + line(k) + "\n")
		}
	}
	return b.String()
}

// What is a key is written again as it was read, but for spaces and the comment.
func FuzzParseKey(f *testing.F) {
	rsa := rsaKey(f).PublicKey()
	f.Add("ssh-rsa " + base64.StdEncoding.EncodeToString(zerosInFront(rsa)))
	for _, k := range []ssh.PublicKey{public("a"), hardwareKey("a"), certificate("a"), rsa} {
		f.Add(line(k))
		f.Add(line(k) + " a comment\n")
	}
	f.Add("restrict " + line(public("a")))
	f.Add(line(public("a")) + "\n" + line(public("b")))
	f.Add("#\n" + line(public("a")))
	f.Fuzz(func(t *testing.T, text string) {
		key, err := approval.ParseKey(text)
		if err != nil {
			return
		}
		words := strings.FieldsFunc(strings.TrimSpace(text), func(r rune) bool { return r == ' ' || r == '\t' })
		if !slices.Equal(words[:2], strings.Fields(line(key))) {
			t.Errorf("written again: %s", line(key))
		}
		if again, err := approval.ParseKey(line(key)); err != nil || !bytes.Equal(again.Marshal(), key.Marshal()) {
			t.Errorf("read again: %v", err)
		}
	})
}
