package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tags are those of the Makefile: without them os/user and net would link the C library's resolver.
const tags = "netgo,osusergo"

// TestLinksNoNetwork holds what goes into the HSM room: no package that speaks to a network.
//
// net itself is linked and cannot be avoided: crypto/x509, which reads the wrapping public keys, imports it for the addresses in
// certificates, and golang.org/x/crypto/ssh, which reads the officers' signatures, for clients that nobody makes here. So nothing else may
// import it, and [TestHasNoSockets] looks into the binary for what the linker left of it.
func TestLinksNoNetwork(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", tags, "-f", `{{.ImportPath}}: {{join .Imports " "}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(`^(net/(http|rpc|smtp|mail|textproto)|crypto/tls|log/syslog|expvar|database/sql|plugin)(/|$)|` +
		`^(github\.com/(aws|riverqueue|prometheus|coreos|jackc|spf13)|go\.uber\.org|modernc\.org|golang\.org/x/net|golang\.org/x/crypto/ssh/agent)(/|$)|` +
		`^hsmbridge/(kmsclient|daemon/(control|store|jobs|importer|runner|schedule|metrics)|daemon$|cmd/hsmbridge|test)`)
	mayImportNet := []string{"crypto/x509", "golang.org/x/crypto/ssh"}
	var importers []string
	for line := range strings.Lines(string(out)) {
		path, imports, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if forbidden.MatchString(path) {
			t.Errorf("%s is linked into hsmceremony", path)
		}
		if slices.Contains(strings.Fields(imports), "net") {
			importers = append(importers, path)
		}
	}
	slices.Sort(importers)
	if !slices.Equal(importers, mayImportNet) {
		t.Errorf("net is imported by %v; want %v", importers, mayImportNet)
	}
}

// TestHasNoSockets holds that no code that opens a connection is left in the binary.
func TestHasNoSockets(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "hsmceremony")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", tags, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "go", "tool", "nm", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), " main.main") {
		t.Fatal("the binary has no symbols to look at")
	}
	sockets := regexp.MustCompile(`(?m) (syscall\.(socket|Socket|connect|Connect|bind|Bind|listen|Listen)|net\.(Dial|Listen|Lookup|socket|sysSocket|newFD|\(\*(Dialer|Resolver|netFD|sysDialer|ListenConfig)\)).*|.*\bssh\.(Dial|NewClient|NewServerConn|NewClientConn)|_?(getaddrinfo|socket|connect|bind|listen)(@.*)?)$`)
	if found := sockets.FindAllString(string(out), -1); len(found) > 0 {
		t.Errorf("the binary has code for connections:\n%s", strings.Join(found, "\n"))
	}
	// The Makefile and the tests build it with the same tags.
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil || !strings.Contains(string(makefile), "-tags "+tags+" -o bin/ ./cmd/hsmceremony") {
		t.Errorf("the Makefile builds it otherwise: %v", err)
	}
}
