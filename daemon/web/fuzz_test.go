package web

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
)

// FuzzPages holds that whatever is asked for or sent as a form, the answer is a whole page or a plain refusal, never a failure; that nothing of what
// was sent becomes markup; and that a form of another site does nothing.
func FuzzPages(f *testing.F) {
	for _, p := range paths() {
		path, query, _ := strings.Cut(p, "?")
		f.Add(false, path, query, []byte(nil), "")
	}
	const sign, reject = "requests/7K3M-9QXA-0B2C-D4EF/sign", "requests/7K3M-9QXA-0B2C-D4EF/reject"
	f.Add(true, sign, "", []byte(url.Values{"signature": {"-----BEGIN SSH SIGNATURE-----\r\nAAAA\r\n-----END SSH SIGNATURE-----"}}.Encode()), "")
	f.Add(true, sign, "", []byte(url.Values{"signature": {hostile}, "reason": {hostile}}.Encode()), "")
	f.Add(true, reject, "", []byte(url.Values{"reason": {hostile}}.Encode()), "cross-site")
	f.Add(true, reject, "reason=x", []byte("reason=%zz&;"), "same-origin")
	f.Add(false, "events", "before=-1&key="+url.QueryEscape(hostile), []byte(nil), "")
	svc := new(service)
	h, err := (&Server{Service: svc, Log: zap.NewNop(), Now: func() time.Time { return noon }}).Handler()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, post bool, path, query string, form []byte, site string) {
		method := http.MethodGet
		if post {
			method = http.MethodPost
		}
		u, err := url.ParseRequestURI("http://localhost" + Root + path)
		if err != nil {
			return
		}
		u.RawQuery = query
		*svc = service{}
		r := &http.Request{Method: method, URL: u, Host: u.Host, Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Sec-Fetch-Site": {site}}, Body: io.NopCloser(bytes.NewReader(form)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= http.StatusInternalServerError {
			t.Errorf("%s %s: %d %s", method, u, w.Code, w.Body)
		}
		if done := svc.signed + svc.rejected; done != "" && (!post || site == "cross-site" || site == "same-site") {
			t.Errorf("%s %s from %q did something: %q", method, u, site, done)
		}
		if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") || w.Code >= http.StatusMultipleChoices && w.Code < http.StatusBadRequest {
			return
		}
		// A page as a strict reader sees it: no element but those of the templates, no handler, no address of another site.
		text := strings.Map(func(r rune) rune { // XML has no control characters, HTML has
			if unicode.IsControl(r) || r >= 0xfffe {
				return ' '
			}
			return r
		}, w.Body.String())
		if !utf8.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: a page that is not UTF-8", method, u)
		}
		d := xml.NewDecoder(strings.NewReader(text))
		d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
		for {
			token, err := d.RawToken()
			if err != nil {
				if !strings.Contains(err.Error(), "EOF") {
					t.Errorf("%s %s: %v", method, u, err)
				}
				return
			}
			e, ok := token.(xml.StartElement)
			if !ok {
				continue
			}
			if e.Name.Local == "script" && len(e.Attr) == 0 {
				t.Errorf("%s %s: a script in the page", method, u)
			}
			for _, a := range e.Attr {
				if strings.HasPrefix(strings.ToLower(a.Name.Local), "on") || strings.Contains(a.Value, "javascript:") && (a.Name.Local == "href" || a.Name.Local == "src" || a.Name.Local == "action") {
					t.Errorf("%s %s: <%s %s=%q>", method, u, e.Name.Local, a.Name.Local, a.Value)
				}
				if e.Name.Local == "script" && a.Name.Local == "src" && !strings.HasPrefix(a.Value, Root+"static/") {
					t.Errorf("%s %s: a script from %q", method, u, a.Value)
				}
			}
		}
	})
}
