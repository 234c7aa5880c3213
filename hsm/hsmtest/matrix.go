package hsmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/token"
)

// Part is a token's part of docs/matrix.md, which a run of the contract compares with what it found, or writes.
type Part struct {
	Name     string   // its heading; empty: the token has no part
	How      string   // how the token is reached, one sentence; empty: the module is loaded
	Packages []string // Debian packages that it comes from
	Update   bool     // write it
}

// wrapped counts the wraps of a run that were opened and compared, by what they prove.
type wrapped map[proof]bool

type proof struct {
	spec      wrapping.KeySpec
	algorithm wrapping.Algorithm
	under     wrapping.WrappingKeySpec
}

const matrixFile = "docs/matrix.md"

// preface is what stands before the parts.
const preface = `# What each token wraps

Written by the contract suite on the tokens themselves: ` + "`make matrix`" + ` writes it, and every run of a token's tests compares the table with what it
finds. A **yes** was wrapped inside the token in that run, by the mechanism named, under a throwaway key of every wrapping key spec that is not
excepted, opened outside with hsmbridge's own decoders, and compared with the key: by its public half, by its check value, by an HMAC, or, where
the token computes none with it, with what came out of the other wraps. A **no** has its reason below the table: what the probe was answered,
with the names of PKCS#11; for RSA keys of every size by a key of RSA_2048. **–**: AWS KMS does not offer the algorithm for this kind of key.

` + "`RSAES_PKCS1_V1_5`" + ` is what the token can do; AWS KMS has refused it since 10 October 2023, and hsmbridge uses it only where the configuration allows it.

openCryptoki 3.27 and SoftHSM 2.7 were not run: Debian 12 does not have them.
`

// testMatrix compares the token's part with what the run found, or writes it.
func testMatrix(t *testing.T, tok token.Token, part Part, caps wrapping.Capabilities, done wrapped) {
	t.Helper()
	if part.Name == "" {
		return
	}
	table := matrixTable(t, caps, done)
	file := filepath.Join(root(t), matrixFile)
	if part.Update {
		updatePart(t, file, part.Name, describePart(t, tok, part, caps)+"\n"+table)
		return
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, written, _ := strings.Cut(splitParts(string(text))[part.Name], "\n\n|") // versions of packages may be newer than when it was written
	if diff := cmp.Diff(strings.TrimSpace("|"+written), strings.TrimSpace(table)); diff != "" {
		t.Errorf("%s, part %q, is not what this run found (-written +found); if that is right, run `make matrix`:\n%s", matrixFile, part.Name, diff)
	}
}

// matrixTable is the table and its notes.
func matrixTable(t *testing.T, caps wrapping.Capabilities, done wrapped) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| key |")
	for _, a := range wrapping.Algorithms() {
		fmt.Fprintf(&b, " %s |", a)
	}
	b.WriteString("\n|" + strings.Repeat("---|", 1+len(wrapping.Algorithms())) + "\n")
	var notes []string
	for _, spec := range wrapping.KeySpecs() {
		s := wrapping.Select(spec, caps, wrapping.Policy{AllowPKCS1v15: true})
		fmt.Fprintf(&b, "| %s |", spec)
		for _, a := range wrapping.Algorithms() {
			fmt.Fprintf(&b, " %s |", matrixCell(t, s, a, done, &notes))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for i, n := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, n)
	}
	return b.String()
}

// matrixCell is one cell; a reason that is new goes to the notes.
func matrixCell(t *testing.T, s wrapping.Selection, a wrapping.Algorithm, done wrapped, notes *[]string) string {
	t.Helper()
	if !slices.Contains(s.KeySpec.Order(), a) {
		return "–"
	}
	var by []string
	left := wrapping.WrappingKeySpecs()
	for _, p := range s.Plans {
		if p.Algorithm != a {
			continue
		}
		if !done[proof{s.KeySpec, a, p.WrappingKeySpec}] {
			t.Errorf("%s by %s under %s was proved by the probe, and no key was wrapped so", s.KeySpec, a, p.WrappingKeySpec)
		}
		left = slices.DeleteFunc(left, func(w wrapping.WrappingKeySpec) bool { return w == p.WrappingKeySpec })
		if !slices.Contains(by, p.Mechanism.Name) {
			by = append(by, p.Mechanism.Name)
		}
	}
	reason := matrixReason(s, a)
	note := func() int {
		if i := slices.Index(*notes, reason); i >= 0 {
			return i + 1
		}
		*notes = append(*notes, reason)
		return len(*notes)
	}
	switch {
	case len(by) == 0:
		return fmt.Sprintf("no (%d)", note())
	case len(left) == 0:
		return "yes, " + strings.Join(by, ", ")
	}
	under := make([]string, len(left))
	for i, w := range left {
		under[i] = string(w)
	}
	return fmt.Sprintf("yes, %s, not under %s (%d)", strings.Join(by, ", "), strings.Join(under, ", "), note())
}

// matrixReason says why the algorithm was refused, each reason once with the mechanisms that it holds for.
func matrixReason(s wrapping.Selection, a wrapping.Algorithm) string {
	var reasons []string
	mechanisms := map[string][]string{}
	for _, r := range s.Refused {
		if r.Algorithm != a {
			continue
		}
		reason := shortReason(r.Reason, s.KeySpec)
		name, _, _ := strings.Cut(r.Mechanism, " + ")
		if !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
		if name != "" && !slices.Contains(mechanisms[reason], name) {
			mechanisms[reason] = append(mechanisms[reason], name)
		}
	}
	for i, reason := range reasons {
		if len(reasons) > 1 && len(mechanisms[reason]) > 0 {
			reasons[i] = strings.Join(mechanisms[reason], ", ") + ": " + reason
		}
	}
	return strings.Join(reasons, "; ")
}

// shortReason leaves out what differs from run to run and what the code's name says already.
func shortReason(reason string, spec wrapping.KeySpec) string {
	if strings.Contains(reason, "zero bytes that are not part of it follow the key") {
		return "zero bytes that do not belong to it follow the key, unless its PKCS#8 has a multiple of 8 bytes"
	}
	reason, none := strings.CutPrefix(reason, "no throwaway "+string(spec.Representative())+" key could be generated: ")
	if code := regexp.MustCompile(`^(.*CKR_\w+ \(0x[0-9A-F]+\)): [^:]*$`).FindStringSubmatch(reason); code != nil {
		reason = code[1]
	}
	if part, ok := strings.CutPrefix(reason, "CKM_RSA_PKCS_OAEP: "); ok {
		reason = "the RSA part, by CKM_RSA_PKCS_OAEP, answers " + part
	}
	if none {
		reason = "the token makes no such key: " + reason
	}
	return reason
}

// describePart says what the token is and where it comes from.
func describePart(t *testing.T, tok token.Token, part Part, caps wrapping.Capabilities) string {
	t.Helper()
	var b strings.Builder
	if part.How != "" {
		b.WriteString(part.How + "\n")
	}
	rawModule(t, tok, func(c *pkcs11.Ctx) {
		info, err := c.GetInfo()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "The module says %q, version %d.%d; the token %q, %q, hardware %s, firmware %s.\n", strings.TrimRight(info.LibraryDescription, " \x00"),
			info.LibraryVersion.Major, info.LibraryVersion.Minor, caps.Token.Manufacturer, caps.Token.Model, caps.Token.Hardware, caps.Token.Firmware)
	})
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`PRETTY_NAME="([^"]*)"`).FindSubmatch(release)
	var packages []string
	for _, p := range part.Packages {
		version, err := token.Run(context.Background(), os.Environ(), "dpkg-query", "--show", "--showformat", "${Package} ${Version}", p)
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, version)
	}
	if len(name) == 2 {
		fmt.Fprintf(&b, "Packages of %s: %s.\n", name[1], strings.Join(packages, ", "))
	}
	return b.String()
}

// splitParts gives the parts by their headings.
func splitParts(text string) map[string]string {
	parts := map[string]string{}
	sections := strings.Split("\n"+text, "\n## ")
	for _, s := range sections[1:] {
		name, rest, _ := strings.Cut(s, "\n")
		parts[name] = strings.Trim(rest, "\n") + "\n"
	}
	return parts
}

// updatePart writes one part, beside the tests of other packages that do the same.
func updatePart(t *testing.T, file, name, text string) {
	t.Helper()
	lock, err := os.Open(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() //nolint:errcheck // it was only locked
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	parts := splitParts(string(old))
	parts[name] = text
	names := make([]string, 0, len(parts))
	for n := range parts {
		names = append(names, n)
	}
	slices.Sort(names)
	out := preface
	for _, n := range names {
		out += "\n## " + n + "\n\n" + strings.Trim(parts[n], "\n") + "\n"
	}
	if err := os.WriteFile(file, []byte(out), 0o644); err != nil { //nolint:gosec // a document
		t.Fatal(err)
	}
}

// root is the directory of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}
