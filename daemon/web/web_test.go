package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// hostile is what somebody might call things.
const hostile = `<script>alert(1)</script>"'&`

var noon = time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)

// service is a daemon with one key, one request and one token, whose names are hostile where they may be.
type service struct {
	signed   string
	by       string
	rejected string
}

func (*service) Status(context.Context) (control.Status, error) {
	return control.Status{
		Daemon: "here", Version: "1", Ready: true, Jobs: map[string]int{"running": 1}, Requests: 1, Counts: control.Counts{Expiring: 31, Removed: 2},
		Tokens: []control.Token{{Name: "demo", State: "open", Model: hostile, Serial: "1234", Warnings: []string{hostile, "key sessions: may be copied"}}, {Name: "far", State: "parked", Reason: "the PIN was refused", PINTriesLow: true}},
		Next:   []control.Expiry{{Key: "payments", Destination: "arn:aws:kms:eu-central-1:111122223333:key/1", ValidTo: noon.AddDate(0, 1, 0), Renewal: noon.AddDate(0, 0, 20)}},
		People: []control.NeedsPerson{
			{Key: "payments", Message: "waits for officers", Approval: true, Retry: "hsmbridge requests"},
			{Key: "signing", Message: hostile, Retry: "hsmbridge retry signing"},
		},
	}, nil
}

func (*service) names() []string {
	var out []string
	for i := range 120 {
		out = append(out, fmt.Sprintf("key-%03d", i))
	}
	return out
}

func (s *service) KeyPage(_ context.Context, after, search string, limit int) (page []control.ManagedKey, more bool, err error) {
	for _, n := range s.names() {
		switch {
		case n <= after || !strings.Contains(n, search):
		case len(page) == limit:
			return page, true, nil
		default:
			page = append(page, control.ManagedKey{Name: n, Token: "demo", KeySpec: "HMAC_256", Destinations: []store.Destination{{Key: n, Destination: "arn:" + n, Present: true}}})
		}
	}
	return page, false, nil
}

func (s *service) Keys(_ context.Context, name string) ([]control.ManagedKey, error) {
	if name == "gone" {
		return []control.ManagedKey{{
			Name: name, Removed: true, State: store.Key{RevokedAt: noon, RevokedBy: "carol", RevokedReason: "leak"}, Deletion: &store.Job{ID: 9, State: store.Waiting, NotBefore: noon},
			Destinations: []store.Destination{{Destination: "arn:gone", Present: true, State: "Enabled", SeenAt: noon}}, Renewals: make([]time.Time, 1),
		}}, nil
	}
	if name != "payments" {
		return nil, fmt.Errorf("there is no key %q: %w", name, control.ErrNotFound)
	}
	return []control.ManagedKey{{
		Name: name, Token: "demo", Tokens: []string{"demo", "far", "spare"}, KeySpec: "SYMMETRIC_DEFAULT", Expires: "90d", Renewals: []time.Time{noon, {}}, Replicas: copies(),
		State: store.Key{WaivedBy: "ann", WaivedReason: hostile, PausedAt: noon, PausedBy: "bob", RevokedAt: noon, RevokedBy: "carol", RevokedReason: "leak " + hostile},
		Destinations: []store.Destination{
			{Destination: "arn:aws:kms:eu-central-1:111122223333:key/1", Present: true, ValidTo: noon.AddDate(0, 1, 0), State: "Enabled", Error: hostile, ErrorCode: "X", ImportedAt: noon.AddDate(0, -2, 0), DrilledAt: noon.AddDate(0, 0, -3)},
			{Destination: "arn:aws:kms:eu-west-1:111122223333:key/2", Present: true, State: "Enabled", FirstSeenAt: noon.AddDate(0, -1, 0)},
		},
		Materials: []store.Material{{Generation: 1, Object: "pkcs11:object=payments", CheckValue: "1a2b3c", Created: noon}},
	}}, nil
}

// copies are what three tokens hold of a key: the key, another one, and nobody knows.
func copies() []control.Replica {
	return []control.Replica{
		{Replica: store.Replica{Key: "payments", Generation: 1, Token: "demo", Identity: "check value 1a2b3c", Serial: "1234", Daemon: "here", Seen: noon}, Object: "pkcs11:object=payments;type=secret-key", TokenState: "open", Required: true, Agrees: true},
		{Replica: store.Replica{Key: "payments", Generation: 1, Token: "far", Identity: "check value ffffff", Problem: "another key: it has to be check value 1a2b3c", Serial: hostile, Daemon: hostile, Seen: noon.Add(-time.Hour)}, Object: "pkcs11:object=" + hostile, TokenState: "parked", Required: true},
		{Replica: store.Replica{Key: "payments", Generation: 1, Token: "spare", Problem: "not looked at yet"}, Object: "pkcs11:object=payments.copy;type=secret-key", TokenState: "unreached"},
	}
}

func (*service) Copies(_ context.Context, token string, _ int) ([]control.Replica, int, error) {
	for _, c := range copies() {
		if c.Token == token {
			return []control.Replica{c}, 3, nil
		}
	}
	return nil, 0, nil
}

func (*service) Expiries(context.Context) (at []time.Time, never int, err error) {
	return []time.Time{noon.AddDate(0, 1, 0), noon.AddDate(0, 1, 1), noon.AddDate(2, 0, 0), noon.AddDate(0, 0, -1)}, 3, nil
}

func (*service) Jobs(context.Context, store.JobFilter) ([]store.Job, error) {
	return []store.Job{
		{ID: 7, Key: "payments", Reason: hostile, State: store.Waiting, NotBefore: noon.Add(time.Minute)},
		{ID: 6, Key: "payments", State: store.Running, Started: noon.Add(2 * time.Minute)},
		{ID: 5, Key: "payments", State: store.Queued, Created: noon.Add(3 * time.Minute)},
		{ID: 4, Key: "payments", State: store.Done, Finished: noon.Add(4 * time.Minute)},
	}, nil
}

func (*service) Events(_ context.Context, f store.EventFilter) ([]store.Event, error) {
	var out []store.Event
	last := int64(250)
	if f.Before > 0 {
		last = f.Before - 1
	}
	for id := max(1, last-int64(f.Last)+1); id <= last; id++ {
		out = append(out, store.Event{ID: id, Time: noon, Kind: "wrap", Actor: "here", Message: hostile})
	}
	return out, nil
}

func (s *service) Requests(ctx context.Context, _ string, _ bool, _ int) ([]control.Request, error) {
	q, err := s.Request(ctx, "7K3M-9QXA-0B2C-D4EF")
	return []control.Request{q}, err
}

func (s *service) Request(_ context.Context, name string) (control.Request, error) {
	q := approval.Request{
		ID: "7K3M-9QXA-0B2C-D4EF", Purpose: approval.Import, AskedBy: "planner", AskedAt: noon, ValidUntil: noon.Add(48 * time.Hour), Why: hostile,
		Key: "payments", Algorithm: "RSAES_OAEP_SHA_256", Destination: "arn:aws:kms:eu-central-1:111122223333:key/1",
	}
	if name != q.ID {
		return control.Request{}, fmt.Errorf("there is no request %s: %w", name, control.ErrNotFound)
	}
	text, err := q.Text()
	r := control.Request{
		Request: store.Request{ID: 1, Name: q.ID, Purpose: "import", Key: "payments", Text: string(text), State: store.RequestOpen, ValidUntil: q.ValidUntil, AskedBy: "planner"},
		Short:   approval.Short(approval.Digest(text)), Before: "0000-0000-0000-0000", BeforeAt: noon,
		Differences: []approval.Difference{{Name: "wrapping algorithm", Before: "RSAES_OAEP_SHA_1", Now: "RSAES_OAEP_SHA_256"}},
	}
	r.Decision.Need, r.Decision.Remaining = 2, []string{"alice", "bob"}
	if s.rejected != "" {
		r.State = store.RequestRejected
	}
	return r, err
}

func (s *service) Approve(ctx context.Context, actor, name, signature string) (control.Request, error) {
	if !strings.HasPrefix(signature, "-----BEGIN SSH SIGNATURE-----\n") {
		return control.Request{}, fmt.Errorf("this is no signature: %w", control.ErrRefused)
	}
	s.signed, s.by = signature, actor
	return s.Request(ctx, name)
}

func (s *service) Reject(ctx context.Context, _, name, reason, _ string) (control.Request, error) {
	s.rejected = reason
	return s.Request(ctx, name)
}

func (*service) Capabilities(_ context.Context, token string) (map[wrapping.KeySpec]wrapping.Capabilities, error) {
	if token != "demo" {
		return nil, nil
	}
	trial := func(a wrapping.Algorithm, o wrapping.Outcome, reason string) wrapping.Trial {
		return wrapping.Trial{
			KeySpec: "SYMMETRIC_DEFAULT", Algorithm: a, WrappingKeySpec: wrapping.RSA4096, Outcome: o, Reason: reason, Length: 32,
			Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Form: wrapping.FormOAEP},
		}
	}
	return map[wrapping.KeySpec]wrapping.Capabilities{"SYMMETRIC_DEFAULT": {Trials: []wrapping.Trial{
		trial(wrapping.OAEPSHA256, wrapping.Failed, "CKR_ARGUMENTS_BAD (0x7)"), trial(wrapping.OAEPSHA1, wrapping.Exact, ""),
	}}}, nil
}

func start(t *testing.T) (*service, *httptest.Server) {
	t.Helper()
	svc := &service{}
	s := &Server{Service: svc, Log: zap.NewNop(), Now: func() time.Time { return noon }}
	h, err := s.Handler()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return svc, srv
}

func ask(t *testing.T, method, address string, form url.Values, header map[string]string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for k, v := range header {
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

// paths are all pages that can be looked at.
func paths() []string {
	return []string{"", "keys", "keys?after=key-049&search=key", "keys/payments", "requests", "requests/7K3M-9QXA-0B2C-D4EF", "tokens/demo", "tokens/far", "events", "events?before=100&key=payments"}
}

func TestPages(t *testing.T) {
	_, srv := start(t)
	for _, path := range paths() {
		status, body, header := ask(t, http.MethodGet, srv.URL+Root+path, nil, nil)
		if status != http.StatusOK || !strings.Contains(body, "</html>") {
			t.Errorf("%q: %d\n%s", path, status, body)
		}
		if strings.Contains(body, "<script>") || strings.Contains(body, " style=") || regexp.MustCompile(`\son[a-z]+="`).MatchString(body) {
			t.Errorf("%q has what a strict policy would have to allow, or a name that is markup:\n%s", path, body)
		}
		if at := regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(body, -1); !slices.ContainsFunc(at, func(m []string) bool { return m[1] == "/ui/static/style.css" }) {
			t.Errorf("%q has no style sheet", path)
		} else {
			for _, m := range at {
				if !strings.HasPrefix(m[1], Root) && m[1] != "#main" {
					t.Errorf("%q asks for %s", path, m[1])
				}
			}
		}
		policy := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; style-src 'self';") || strings.Contains(policy, "unsafe") {
			t.Errorf("%q: policy %q", path, policy)
		}
		if header.Get("Cache-Control") != "no-store" || header.Get("X-Frame-Options") != "DENY" || header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%q: headers %v", path, header)
		}
	}
}

func TestWhatPagesSay(t *testing.T) {
	_, srv := start(t)
	for path, want := range map[string][]string{
		"":                             {"7K3M-9QXA-0B2C-D4EF", "Expired already: 1.", "Later than a year from now: 1.", "Never: 3.", "revoked keys that are no longer in the configuration 2.", "June 2026: 2", "These are the next 1 of 31", "hsmbridge retry signing", "few PIN tries are left", `<b class="bad">2 warnings</b>`},
		"requests/7K3M-9QXA-0B2C-D4EF": {"different:</b> last time <code>RSAES_OAEP_SHA_1", "ssh-keygen -Y sign -n hsmbridge-approval", "Whoever signs this text lets hsmbridge", "May still sign: alice, bob."},
		"tokens/demo":                  {"SYMMETRIC_DEFAULT: RSAES_OAEP_SHA_1 with CKM_RSA_PKCS_OAEP", "failed: CKR_ARGUMENTS_BAD (0x7)", `<dt>attention</dt><dd class="bad">key sessions: may be copied</dd>`},
		"tokens/far":                   {"hsmbridge resume --token far", "hsmbridge probe far", "check value ffffff", "These are 1 of 3, what is not the same first."},
		"keys?search=key-11":           {"key-110", "key-119"},
		"keys":                         {"key-049", "after=key-049"},
		"events?before=100":            {`<td>99</td>`},
		"events":                       {`before=151`},
		"keys/gone":                    {`<dd class="bad">it is no longer in the configuration</dd>`, `by carol at 2026-05-20 12:00: leak</dd>`, "job 9 is waiting, again at 2026-05-20 12:00", "arn:gone", "Enabled, material there"},
		"keys/payments": {
			`<dt>revoked</dt><dd class="bad">by carol at 2026-05-20 12:00: leak &lt;`, "<dt>last drill</dt><dd>2026-05-17 12:00</dd>", "<td>waiting</td><td>again at 2026-05-20 12:01</td>", "<td>running</td><td>since 2026-05-20 12:02</td>", "<td>queued</td><td>made 2026-05-20 12:03</td>", "<td>done</td><td>ended 2026-05-20 12:04</td>",
			"<dt>imported</dt><dd>2026-03-20 12:00</dd>", "<dt>first seen</dt><dd>2026-04-20 12:00, KMS held it already; the journal has no import that KMS confirmed</dd>",
			`<dt>tokens</dt><dd><a href="/ui/tokens/demo">demo</a>, <a href="/ui/tokens/far">far</a>, <a href="/ui/tokens/spare">spare</a></dd>`,
			"<code>check value 1a2b3c</code></td><td><span class=\"good\">yes</span></td>", `, serial 1234<br><code>pkcs11:object=payments;type=secret-key</code></td><td class="token-open">open</td>`, `<td class="token-parked">parked</td>`, "<b class=\"bad\">no</b>: another key: it has to be check value 1a2b3c",
			`2026-05-20 11:00</time> <span class="dim">by &lt;script`, `(not required)</span><br><code>pkcs11:object=payments.copy;type=secret-key</code></td><td class="token-unreached">unreached</td><td>–</td><td>not looked at yet</td><td>–</td>`,
		},
	} {
		_, body, _ := ask(t, http.MethodGet, srv.URL+Root+path, nil, nil)
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%q does not say %q:\n%s", path, w, body)
			}
		}
	}
}

// The text on the page is what officers sign: taken from the page, it is the same to the byte.
func TestTextOfPage(t *testing.T) {
	svc, srv := start(t)
	_, body, _ := ask(t, http.MethodGet, srv.URL+Root+"requests/7K3M-9QXA-0B2C-D4EF", nil, nil)
	m := regexp.MustCompile(`(?s)<pre class="text"[^>]*>(.*?)</pre>`).FindStringSubmatch(body)
	if m == nil {
		t.Fatal("no text on the page")
	}
	got := strings.NewReplacer("&lt;", "<", "&gt;", ">", "&#34;", `"`, "&#39;", "'", "&amp;", "&").Replace(m[1])
	q, err := svc.Request(t.Context(), "7K3M-9QXA-0B2C-D4EF")
	if err != nil {
		t.Fatal(err)
	}
	if got != q.Text {
		t.Errorf("got %q\nwant %q", got, q.Text)
	}
}

func TestSignature(t *testing.T) {
	svc, srv := start(t)
	page := srv.URL + Root + "requests/7K3M-9QXA-0B2C-D4EF"
	form := url.Values{"signature": {"-----BEGIN SSH SIGNATURE-----\r\nAAAA\r\n-----END SSH SIGNATURE-----\r\n"}}
	if status, body, _ := ask(t, http.MethodPost, page+"/sign", form, nil); status != http.StatusOK || !strings.Contains(body, "The signature counts.") {
		t.Errorf("%d\n%s", status, body)
	}
	if want := "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"; svc.signed != want || svc.by != "web" {
		t.Errorf("handed in %q by %q, want %q by web", svc.signed, svc.by, want)
	}
	form.Set("signature", hostile)
	if status, body, _ := ask(t, http.MethodPost, page+"/sign", form, nil); status != http.StatusOK || !strings.Contains(body, `role="alert">this is no signature</p>`) || strings.Contains(body, "<script>alert") {
		t.Errorf("%d\n%s", status, body)
	}
	form.Set("reason", "not now")
	if status, body, _ := ask(t, http.MethodPost, page+"/reject", form, nil); status != http.StatusOK || svc.rejected != "not now" || strings.Contains(body, "<textarea") {
		t.Errorf("%d, rejected %q\n%s", status, svc.rejected, body)
	}
}

func TestRefused(t *testing.T) {
	svc, srv := start(t)
	sign := Root + "requests/7K3M-9QXA-0B2C-D4EF/sign"
	form := url.Values{"signature": {"-----BEGIN SSH SIGNATURE-----\nAAAA"}}
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		status       int
	}{
		"another site's form":  {http.MethodPost, sign, map[string]string{"Sec-Fetch-Site": "cross-site"}, http.StatusForbidden},
		"another origin":       {http.MethodPost, sign, map[string]string{"Origin": "https://example.com"}, http.StatusForbidden},
		"another port":         {http.MethodPost, sign, map[string]string{"Sec-Fetch-Site": "same-site"}, http.StatusForbidden},
		"a rebound name":       {http.MethodGet, Root, map[string]string{"Host": "attacker.example.com:9465"}, http.StatusMisdirectedRequest},
		"an address elsewhere": {http.MethodGet, Root, map[string]string{"Host": "203.0.113.7"}, http.StatusMisdirectedRequest},
		"no such page":         {http.MethodGet, Root + "nothing", nil, http.StatusNotFound},
		"no such key":          {http.MethodGet, Root + "keys/nothing", nil, http.StatusNotFound},
		"no such request":      {http.MethodGet, Root + "requests/nothing", nil, http.StatusNotFound},
		"no such token":        {http.MethodGet, Root + "tokens/nothing", nil, http.StatusNotFound},
		"no number":            {http.MethodGet, Root + "events?before=x", nil, http.StatusBadRequest},
		"signing by GET":       {http.MethodGet, sign, nil, http.StatusNotFound},
		"changing a key":       {http.MethodPost, Root + "keys/payments", nil, http.StatusNotFound},
		"a folder":             {http.MethodGet, Root + "static/../templates/frame.html", nil, http.StatusNotFound},
	} {
		var f url.Values
		if c.method == http.MethodPost {
			f = form
		}
		status, body, _ := ask(t, c.method, srv.URL+c.path, f, c.header)
		if status != c.status {
			t.Errorf("%s: %d, want %d\n%s", name, status, c.status, body)
		}
	}
	if svc.signed != "" {
		t.Errorf("a signature was handed in: %q", svc.signed)
	}
	long := url.Values{"signature": {strings.Repeat("x", maxForm)}}
	if status, body, _ := ask(t, http.MethodPost, srv.URL+sign, long, nil); status != http.StatusBadRequest {
		t.Errorf("a long form: %d\n%s", status, body)
	}
	for host, want := range map[string]bool{"localhost": true, "LOCALHOST:80": true, "127.0.0.1:9465": true, "[::1]:9465": true, "[::1]": true, "127.0.0.1.example.com": false, "": false, "localhost.example.com": false} {
		if local(host) != want {
			t.Errorf("local(%q) is %v", host, !want)
		}
	}
}

func TestTimeline(t *testing.T) {
	tl := newTimeline(noon, []time.Time{noon, noon.Add(-time.Second), time.Date(2027, 5, 31, 23, 0, 0, 0, time.UTC), time.Date(2027, 6, 1, 0, 0, 0, 0, time.UTC)}, 2)
	if len(tl.Months) != months || tl.Past != 1 || tl.Later != 1 || tl.Never != 2 || tl.Months[0].Count != 1 || tl.Months[12].Count != 1 {
		t.Errorf("%+v", tl)
	}
	if tl.Summary != "May 2026: 1, May 2027: 1" {
		t.Errorf("summary %q", tl.Summary)
	}
	for d, want := range map[time.Duration]string{0: "in 0 seconds", 90 * time.Second: "in 90 seconds", -3 * time.Hour: "3 hours ago", 30 * 24 * time.Hour: "in 30 days"} {
		if got := span(noon, noon.Add(d)); got != want {
			t.Errorf("span of %s is %q, want %q", d, got, want)
		}
	}
}
