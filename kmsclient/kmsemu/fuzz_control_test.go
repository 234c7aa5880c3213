package kmsemu

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParseBlob holds that a ciphertext blob is taken apart without loss, and that nothing opens which was not sealed.
func FuzzParseBlob(f *testing.F) {
	gcm, err := newGCM(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	head := append([]byte{1}, bytes.Repeat([]byte{0x5a}, blobHead-1)...) // the same in every process that fuzzes
	sealed := gcm.Seal(bytes.Clone(head), head[49:], []byte("text"), aad(map[string]string{"a": "b"}))
	f.Add(sealed)
	f.Add(sealed[:blobHead+15])
	f.Add(append([]byte{2}, sealed[1:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseBlob(b)
		if err != nil {
			return
		}
		id, err1 := hex.DecodeString(p.KeyID)
		mid, err2 := hex.DecodeString(p.MaterialID)
		if whole := bytes.Join([][]byte{{1}, id, mid, p.IV, p.Ciphertext}, nil); err1 != nil || err2 != nil || !bytes.Equal(whole, b) {
			t.Errorf("%x is taken apart as %+v", b, p)
		}
		if text, err := gcm.Open(nil, p.IV, p.Ciphertext, aad(map[string]string{"a": "b"})); err == nil && (!bytes.Equal(p.IV, head[49:]) || !bytes.Equal(p.Ciphertext, sealed[blobHead:])) {
			t.Errorf("%x opens as %q", b, text)
		}
	})
}

// FuzzControl holds that whatever a test sends to the emulator's own interface, the emulator answers, and then answers KMS requests.
func FuzzControl(f *testing.F) {
	f.Add("clock", []byte(`{"Advance":"24h"}`))
	f.Add("clock", []byte(`{"Advance":"-2562047h47m16s"}`))
	f.Add("lag", []byte(`{"Lag":"1s"}`))
	f.Add("faults", []byte(`{"Operation":"DescribeKey","Code":"ThrottlingException","Times":1}`))
	f.Add("hostile", []byte(`{"Bits":2048,"Exponent":3,"Life":1}`))
	f.Add("requests", []byte(nil))
	f.Fuzz(func(t *testing.T, what string, body []byte) {
		s, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, method := range []string{http.MethodPost, http.MethodDelete, http.MethodGet} {
			r := httptest.NewRequestWithContext(t.Context(), method, "/_emulator/", bytes.NewReader(body))
			r.URL.Path += what
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != http.StatusOK && w.Code != http.StatusNoContent && w.Code != http.StatusBadRequest && w.Code != http.StatusNotFound {
				t.Errorf("%s %q %q: %d %s", method, what, body, w.Code, w.Body)
			}
		}
	})
}

// FuzzState holds that no state file makes the emulator panic.
func FuzzState(f *testing.F) {
	name := filepath.Join(f.TempDir(), "state.json")
	s, err := New(Options{StateFile: name})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.save(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"keys":{"a":null},"parameters":{"x":null,"y":{}},"aliases":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{StateFile: name})
		if err != nil {
			return
		}
		for _, operation := range []string{"ListKeys", "ListAliases"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(`{}`))
			r.Header.Set("X-Amz-Target", "TrentService."+operation)
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=a/20260101/eu-central-1/kms/aws4_request")
			s.ServeHTTP(httptest.NewRecorder(), r)
		}
	})
}
