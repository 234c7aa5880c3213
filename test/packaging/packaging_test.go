// Package packaging_test checks the packages: what is in them, that they are reproducible, that they install, upgrade and go
// without a trace; the units; and what Prometheus and Grafana get.
package packaging_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	root           = "../.."
	version        = "v1.2.3-4-gabcdef0" // as git describe says it
	packageVersion = "1.2.3+4.gabcdef0"  // as dpkg and rpm compare it
)

// programs are built once for all tests, as the Makefile builds them.
var programs = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "hsmbridge-packaging-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	contents := map[string][]byte{}
	for name, tags := range map[string]string{"hsmbridge": "", "hsmceremony": "netgo,osusergo"} {
		path := filepath.Join(dir, name)
		out, err := exec.Command("go", "build", "-tags", tags, "-ldflags", "-X main.version="+version, "-o", path, "hsmbridge/cmd/"+name).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", name, err, out)
		}
		if contents[name], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return contents, nil
})

// run runs a program of this machine or of .bin, from the top of the repository.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), append([]string{"LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0"}, env...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s (installed? run `make deps`): %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build makes both packages in dir.
func build(t *testing.T, dir string) (deb, rpm string) {
	t.Helper()
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range built {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	for _, path := range strings.Fields(run(t, []string{"VERSION=" + version, "HSMBRIDGE_CONFIG=/of/the/developer"}, "scripts/package", dir)) {
		switch filepath.Ext(path) {
		case ".deb":
			deb = path
		case ".rpm":
			rpm = path
		}
	}
	if filepath.Dir(deb) != dir || filepath.Dir(rpm) != dir {
		t.Fatalf("built %q and %q", deb, rpm)
	}
	return deb, rpm
}

// shared are the packages of [packages].
var shared struct {
	sync.Once
	dir, deb, rpm string
}

// TestMain removes the shared packages at the end.
func TestMain(m *testing.M) {
	code := m.Run()
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// packages are built once for a test binary.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	shared.Do(func() {
		dir, err := os.MkdirTemp("", "hsmbridge-packages-") //nolint:usetesting // longer than a test
		if err != nil {
			t.Fatal(err)
		}
		shared.dir = dir
		shared.deb, shared.rpm = build(t, dir)
	})
	if shared.rpm == "" {
		t.Fatal("the packages were not built: see the first test")
	}
	return shared.deb, shared.rpm
}

// TestContents holds the mode and owner of every file, in both packages.
func TestContents(t *testing.T) {
	deb, rpm := packages(t)
	line := regexp.MustCompile(`(?m)^(\S+) +(\S+)/(\S+) +\S+ +\S+ +\S+ \./(\S*)$`)
	inDeb := map[string]string{}
	for _, m := range line.FindAllStringSubmatch(run(t, nil, "dpkg-deb", "--contents", deb), -1) {
		inDeb["/"+strings.TrimSuffix(m[4], "/")] = m[1] + " " + m[2] + ":" + m[3]
	}
	inRPM := map[string]string{}
	for l := range strings.Lines(run(t, nil, "rpm", "--query", "--package", "--queryformat", `[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME}\n]`, rpm)) {
		path, mode, _ := strings.Cut(strings.TrimSpace(l), " ")
		inRPM[path] = mode
	}

	special := map[string]string{
		"/etc/hsmbridge":                "drwxr-x--- root:hsmbridge",
		"/etc/hsmbridge/hsmbridge.yaml": "-rw-r----- root:hsmbridge",
		"/usr/bin/hsmbridge":            "-rwxr-xr-x root:root",
		"/usr/bin/hsmceremony":          "-rwxr-xr-x root:root",
	}
	ordinary := []string{
		"/usr/lib/systemd/system/hsmbridge.service", "/usr/lib/systemd/system/hsmbridge.socket", "/usr/lib/sysusers.d/hsmbridge.conf",
		"/usr/share/bash-completion/completions/hsmbridge", "/usr/share/fish/vendor_completions.d/hsmbridge.fish",
		"/usr/share/bash-completion/completions/hsmceremony", "/usr/share/fish/vendor_completions.d/hsmceremony.fish",
		"/usr/share/man/man1/hsmbridge.1.gz", "/usr/share/man/man1/hsmbridge-import.1.gz", "/usr/share/man/man1/hsmceremony.1.gz",
		"/usr/share/doc/hsmbridge/README.md", "/usr/share/doc/hsmbridge/docs/systemd.md", "/usr/share/doc/hsmbridge/docs/openapi.json", "/usr/share/doc/hsmbridge/examples/pin-credential.conf",
		"/usr/share/doc/hsmbridge/examples/grafana/hsmbridge.json", "/usr/share/doc/hsmbridge/examples/prometheus/hsmbridge.rules.yaml",
		"/usr/share/doc/hsmbridge/examples/prometheus/metrics.txt",
	}
	for name, p := range map[string]struct {
		files map[string]string
		own   []string
	}{
		"deb": {inDeb, []string{"/usr/share/doc/hsmbridge/copyright", "/usr/share/zsh/vendor-completions/_hsmbridge", "/usr/share/zsh/vendor-completions/_hsmceremony"}},
		"rpm": {inRPM, []string{"/usr/share/licenses/hsmbridge/LICENSE", "/usr/share/zsh/site-functions/_hsmbridge", "/usr/share/zsh/site-functions/_hsmceremony"}},
	} {
		for path := range special {
			if p.files[path] == "" {
				t.Errorf("%s has no %s", name, path)
			}
		}
		for _, path := range append(slices.Clone(ordinary), p.own...) {
			if p.files[path] == "" {
				t.Errorf("%s has no %s", name, path)
			}
		}
		for path, got := range p.files {
			want := special[path]
			if want == "" {
				want = "-rw-r--r-- root:root"
				switch got[0] {
				case 'd':
					want = "drwxr-xr-x root:root"
				case 'l':
					want = got[:len("lrwxrwxrwx")] + " root:root" // its mode says nothing
				}
			}
			if got != want {
				t.Errorf("%s: %s is %s, want %s", name, path, got, want)
			}
		}
	}

	fields := run(t, nil, "dpkg-deb", "--field", deb, "Version", "Depends")
	if !strings.Contains(fields, "Version: "+packageVersion+"-1\n") || !regexp.MustCompile(`libc6 \(>= 2\.\d+\)`).MatchString(fields) {
		t.Error(fields)
	}
	if got := run(t, nil, "rpm", "--query", "--package", "--queryformat", "%{VERSION}-%{RELEASE} %{BUILDHOST}", rpm); got != packageVersion+"-1 reproducible" {
		t.Error(got)
	}
	if got := run(t, nil, "dpkg-deb", "--ctrl-tarfile", deb); !strings.Contains(got, "/etc/hsmbridge/hsmbridge.yaml\n") {
		t.Error("the configuration is no conffile of the .deb")
	}
	if got := run(t, nil, "rpm", "--query", "--package", "--queryformat", `[%{FILENAMES} %{FILEFLAGS:fflags}\n]`, rpm); !strings.Contains(got, "/etc/hsmbridge/hsmbridge.yaml cn\n") {
		t.Errorf("the configuration is not config(noreplace) in the .rpm:\n%s", got)
	}
}

// TestPackagedLinks holds that the documents in both packages link only to what the package has.
func TestPackagedLinks(t *testing.T) {
	deb, rpm := packages(t)
	for name, unpack := range map[string]string{"deb": `dpkg-deb --extract "$1" "$2"`, "rpm": `rpm2archive - <"$1" | tar -xz -C "$2"`} {
		path := map[string]string{"deb": deb, "rpm": rpm}[name]
		top := t.TempDir()
		run(t, nil, "sh", "-c", unpack, "unpack", path, top)
		folder := filepath.Join(top, "usr/share/doc/hsmbridge")
		documents, err := filepath.Glob(filepath.Join(folder, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		more, err := filepath.Glob(filepath.Join(folder, "docs/*.md"))
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, document := range append(documents, more...) {
			content, err := os.ReadFile(document)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`\]\(([^)\s#]+)(?:#[^)\s]*)?\)`).FindAllStringSubmatch(string(content), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				seen++
				if _, err := os.Stat(filepath.Join(filepath.Dir(document), m[1])); err != nil { //nolint:gosec // a link in our own documents
					t.Errorf("%s: %s links to %s, which is not there", name, filepath.Base(document), m[1])
				}
			}
		}
		const least = 50
		if seen < least {
			t.Errorf("%s: %d links were found: those are not the documents", name, seen)
		}
	}
}

// TestCeremonyPages holds that the man page and the completions of hsmceremony, which are written by hand, have every command and flag.
func TestCeremonyPages(t *testing.T) {
	built, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "hsmceremony")
	if err := os.WriteFile(path, built["hsmceremony"], 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	words := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^ {2}hsmceremony ([a-z]+)`).FindAllStringSubmatch(run(t, nil, path, "help"), -1) {
		words[m[1]] = true
		if m[1] == "version" {
			continue
		}
		for _, flag := range regexp.MustCompile(`(?m)^ {2}-([a-z-]+)`).FindAllStringSubmatch(run(t, nil, path, m[1], "--help"), -1) {
			words["-"+flag[1]] = true
		}
	}
	if len(words) < 15 {
		t.Fatalf("hsmceremony help lists %v", words)
	}
	for _, name := range []string{"hsmceremony.1", "hsmceremony.bash", "_hsmceremony", "hsmceremony.fish"} {
		content, err := os.ReadFile(filepath.Join(root, "packaging/hsmceremony", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(content), `\-`, "-")
		if name == "hsmceremony.fish" {
			text = strings.ReplaceAll(text, " -o ", " -")
		}
		for word := range words {
			if !regexp.MustCompile(`(^|[^a-z-])` + regexp.QuoteMeta(word) + `($|[^a-z-])`).MatchString(text) {
				t.Errorf("%s does not have %s", name, word)
			}
		}
	}
}

// TestReproducible holds that the same commit gives the same bytes, at another time and in another directory.
func TestReproducible(t *testing.T) {
	sum := func(path string) string {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", sha256.Sum256(content))
	}
	deb, rpm := packages(t)
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1100 * time.Millisecond))) // the clock of tar and cpio ticks in seconds
	deb2, rpm2 := build(t, t.TempDir())
	if sum(deb) != sum(deb2) {
		t.Error("two .deb differ")
	}
	if sum(rpm) != sum(rpm2) {
		t.Error("two .rpm differ")
	}
}

// TestVersions holds that what git describe says sorts for dpkg as it came about.
func TestVersions(t *testing.T) {
	ascending := []string{"acebd68", "v1.2.3-rc1", "v1.2.3-rc1-2-gabcdef0", "v1.2.3", "v1.2.3-4-gabcdef0", "v1.2.3-10-gabcdef0", "v1.2.3-10-gabcdef0-dirty", "v1.2.4", "v1.10.0"}
	var last string
	for _, v := range ascending {
		got := strings.TrimSpace(run(t, nil, "scripts/package", "version", v))
		if !regexp.MustCompile(`^\d[0-9A-Za-z.+~]*$`).MatchString(got) {
			t.Errorf("%s became %s", v, got)
		}
		if last != "" {
			run(t, nil, "dpkg", "--compare-versions", last, "lt", got)
		}
		last = got
	}
	if got := strings.TrimSpace(run(t, nil, "scripts/package", "version", "unknown")); got != "0~unknown" {
		t.Error(got)
	}
}

// TestInstall installs, upgrades, removes and purges both packages in a copy of this machine's file system: see
// testdata/install.sh. It also checks there what needs the files in their places: units, man pages, completions.
func TestInstall(t *testing.T) {
	deb, rpm := packages(t)
	args := []string{"--mount", "--pid", "--fork", "--kill-child"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-root-user", "--map-auto")
	}
	script, err := filepath.Abs("testdata/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	got := run(t, nil, "unshare", append(args, "--", "/bin/sh", script, deb, rpm, version, t.TempDir())...)
	if diff := cmp.Diff("deb: good\nrpm: good\n", got); diff != "" {
		t.Error(diff)
	}
}

// TestSampleIsWritable holds that the paths which the sample configuration and the documents name for the daemon's own files lie in directories that the
// unit makes: it may write nowhere else.
func TestSampleIsWritable(t *testing.T) {
	unit := read(t, "packaging/hsmbridge.service")
	var own []string
	for name, top := range map[string]string{"StateDirectory": "/var/lib/", "LogsDirectory": "/var/log/", "RuntimeDirectory": "/run/"} {
		m := regexp.MustCompile(`(?m)^` + name + `=(\S+)$`).FindStringSubmatch(unit)
		if m == nil {
			t.Fatalf("the unit has no %s=", name)
		}
		own = append(own, top+m[1]+"/")
	}
	written := regexp.MustCompile(`\b(?:database|socket|file):\s*"?(/[^\s",}]+)`)
	for _, path := range []string{"configs/hsmbridge.yaml", "docs/audit.md", "docs/systemd.md"} {
		for _, m := range written.FindAllStringSubmatch(read(t, path), -1) {
			if !slices.ContainsFunc(own, func(folder string) bool { return strings.HasPrefix(m[1], folder) }) {
				t.Errorf("%s: the unit cannot write %s, only %v", path, m[1], own)
			}
		}
	}
}

// bound is the exposure that systemd-analyze may find at most: 0 is nothing, 10 everything.
const bound = 1.5

// TestExposure holds the hardening of the service: what systemd-analyze makes of it, and that the documentation says so.
func TestExposure(t *testing.T) {
	out := run(t, nil, "systemd-analyze", "security", "--offline=true", "--no-pager", "packaging/hsmbridge.service")
	m := regexp.MustCompile(`Overall exposure level for hsmbridge.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatal(out)
	}
	exposure, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	if exposure > bound {
		t.Errorf("the exposure is %v, more than %v:\n%s", exposure, bound, out)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs/systemd.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`exposure of \*\*([0-9.]+)\*\* with systemd (\d+)`).FindStringSubmatch(string(doc))
	if said == nil {
		t.Fatal("docs/systemd.md does not say the exposure")
	}
	if strings.HasPrefix(run(t, nil, "systemd-analyze", "--version"), "systemd "+said[2]+" ") && said[1] != m[1] {
		t.Errorf("docs/systemd.md says %s, systemd-analyze says %s", said[1], m[1])
	}
}
