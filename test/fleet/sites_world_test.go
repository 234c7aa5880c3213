package fleet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/postgres"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
)

// sites is a world of two HSMs, hsm and other, in front of which a shim stands, and of one PostgreSQL database.
type sites struct {
	*world
	database   string
	hsm, other shim.Module
	proxies    map[string]*proxy // to the database, by daemon
}

func newSites(t *testing.T, tokenLines ...string) *sites {
	t.Helper()
	w := newWorld(t, kmsemu.Options{})
	s := &sites{world: w, database: postgres.Shared(t), hsm: shim.New(t, w.token.Token), other: shim.New(t, softhsm.New(t, "other").Token), proxies: map[string]*proxy{}}
	w.token.Token = s.hsm.Token
	w.module = tokenLines
	w.tokens = fmt.Sprintf("  - name: other\n    module: %q\n    uri: %q\n    pin_file: %q\n    environment: %s\n", s.other.Module, s.other.URI(), s.other.PINFile(t), environment(s.other.Environment))
	for _, l := range tokenLines {
		w.tokens += "    " + l + "\n"
	}
	return s
}

// daemon starts a daemon that reaches these tokens, and the database through a wire that can be cut.
func (s *sites) daemon(name string, reaches []string, env ...string) *process {
	s.t.Helper()
	p := s.proxies[name]
	if p == nil {
		p = newProxy(s.t, s.database)
		s.proxies[name] = p
	}
	extra := s.extra
	s.extra += "reaches: [" + strings.Join(reaches, ", ") + "]\n"
	path := s.config(name, p.url)
	s.extra = extra
	return s.launch(name, path, append([]string{envLease + "=5s"}, env...)...)
}

// material is a key that two HSMs are to hold: 32 random bytes, or a private key in DER.
func material(tb testing.TB, spec wrapping.KeySpec) []byte {
	tb.Helper()
	if spec.Kind() == wrapping.KindEC {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			tb.Fatal(err)
		}
		return der
	}
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		tb.Fatal(err)
	}
	return b
}

// hold puts a key into a token, as the HSM's own tool would that copies it.
func hold(tb testing.TB, m shim.Module, label string, spec wrapping.KeySpec, key []byte) {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "key")
	write := func(data []byte, args ...string) {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			tb.Fatal(err)
		}
		m.Tool(tb, append([]string{"--write-object", file, "--label", label}, args...)...)
		if err := os.Remove(file); err != nil {
			tb.Fatal(err)
		}
	}
	if spec.Kind() != wrapping.KindEC {
		write(key, "--type", "secrkey", "--key-type", "AES:32", "--sensitive", "--extractable", "--usage-decrypt")
		return
	}
	private, err := x509.ParseECPrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	id := hex.EncodeToString([]byte(label))
	write(key, "--type", "privkey", "--id", id, "--sensitive", "--extractable", "--usage-sign")
	write(public, "--type", "pubkey", "--id", id, "--usage-sign")
}

// replicated makes a key that both HSMs hold, and that the configuration says so of.
func (s *sites) replicated(name string, spec wrapping.KeySpec) (arn string) {
	s.t.Helper()
	key := material(s.t, spec)
	hold(s.t, s.hsm, name, spec, key)
	hold(s.t, s.other, name, spec, key)
	return s.key(name, spec, "replicas: [{token: other}]")
}

// proxy is the wire to the database.
type proxy struct {
	url    string
	target string
	l      net.Listener
	mu     sync.Mutex
	open   map[net.Conn]bool
	silent chan struct{} // closed when it speaks again; nil: it speaks
	down   bool          // nobody gets through, and what was through is cut
}

func newProxy(tb testing.TB, database string) *proxy {
	tb.Helper()
	u, err := url.Parse(database)
	if err != nil {
		tb.Fatal(err)
	}
	q := u.Query()
	p := &proxy{target: filepath.Join(q.Get("host"), ".s.PGSQL."+q.Get("port")), open: map[net.Conn]bool{}}
	if p.l, err = (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	u.Host, u.RawQuery = p.l.Addr().String(), "sslmode=disable"
	p.url = u.String()
	tb.Cleanup(func() { _ = p.l.Close(); p.cut() })
	go func() {
		for {
			c, err := p.l.Accept()
			if err != nil {
				return
			}
			go p.pass(c)
		}
	}()
	return p
}

// pass connects one connection.
func (p *proxy) pass(c net.Conn) {
	p.mu.Lock()
	down := p.down
	p.mu.Unlock()
	if down {
		_ = c.Close()
		return
	}
	var there net.Conn
	err := errors.New("not tried")
	for i := 0; err != nil && i < 100; i++ { // the server may have no room for more in this moment
		if there, err = net.Dial("unix", p.target); err != nil { //nolint:noctx // the proxy ends it
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err != nil {
		_ = c.Close()
		return
	}
	p.mu.Lock()
	down = p.down // meanwhile
	p.open[c], p.open[there] = true, true
	p.mu.Unlock()
	if down {
		p.end(c, there)
		return
	}
	go p.copy(there, c)
	p.copy(c, there)
	p.end(c, there)
}

func (p *proxy) end(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(p.open, c)
	}
}

func (p *proxy) copy(to io.WriteCloser, from io.Reader) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		silent := p.silent
		p.mu.Unlock()
		if silent != nil {
			<-silent
		}
		if n > 0 {
			if _, werr := io.Copy(to, bytes.NewReader(b[:n])); werr != nil {
				err = werr
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// silence lets nothing through, and says so to nobody.
func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent == nil {
		p.silent = make(chan struct{})
	}
}

// cut ends all connections and takes no new ones.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.open {
		_ = c.Close()
	}
	if p.silent != nil {
		close(p.silent)
		p.silent = nil
	}
}

// heal ends what silence and cut began.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
	if p.silent != nil {
		close(p.silent)
		p.silent = nil
	}
}
