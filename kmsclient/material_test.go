package kmsclient

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

const materialID = "f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a5968778695a4b3c2d1e0f"

func TestImportKeyMaterialSends(t *testing.T) {
	until := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name string
		in   ImportRequest
		want map[string]any
	}{
		{"does not expire", ImportRequest{}, map[string]any{"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}},
		{"expires", ImportRequest{ValidTo: until}, map[string]any{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": float64(until.Unix())}},
		{
			"existing material",
			ImportRequest{ImportType: "EXISTING_KEY_MATERIAL", KeyMaterialID: materialID, Description: "from the HSM"},
			map[string]any{
				"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "ImportType": "EXISTING_KEY_MATERIAL",
				"KeyMaterialId": materialID, "KeyMaterialDescription": "from the HSM",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
				answerJSON(t, w, 200, map[string]string{"KeyId": testARN, "KeyMaterialId": materialID})
			})
			c := newTestClient(t, s.URL)
			tc.in.KeyARN, tc.in.ImportToken, tc.in.EncryptedKeyMaterial = testARN, []byte("token"), []byte("material")
			got, err := c.ImportKeyMaterial(t.Context(), tc.in)
			if err != nil || got != (ImportResult{KeyARN: testARN, KeyMaterialID: materialID, RequestID: "request-1"}) {
				t.Errorf("got %+v, %v", got, err)
			}
			tc.want["KeyId"], tc.want["ImportToken"], tc.want["EncryptedKeyMaterial"] = testARN, "dG9rZW4=", "bWF0ZXJpYWw="
			if sent := s.seen()[0].Body; !reflect.DeepEqual(sent, tc.want) {
				t.Errorf("sent %v, want %v", sent, tc.want)
			}
		})
	}
}

// The answer was empty before key material IDs existed, and with some servers it still is.
func TestImportKeyMaterialEmptyAnswer(t *testing.T) {
	for _, body := range []string{"{}", ""} {
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = w.Write([]byte(body)) })
		c := newTestClient(t, s.URL)
		got, err := c.ImportKeyMaterial(t.Context(), ImportRequest{KeyARN: testARN, ImportToken: []byte("t"), EncryptedKeyMaterial: []byte("m")})
		if err != nil || got != (ImportResult{KeyARN: testARN, RequestID: "request-1"}) {
			t.Errorf("%q: got %+v, %v", body, got, err)
		}
	}
}

func TestDeleteImportedKeyMaterial(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		answerJSON(t, w, 200, map[string]string{"KeyId": testARN})
	})
	c := newTestClient(t, s.URL)
	for _, id := range []string{"", materialID} {
		if err := c.DeleteImportedKeyMaterial(t.Context(), testARN, id); err != nil {
			t.Fatal(err)
		}
	}
	want := []map[string]any{{"KeyId": testARN}, {"KeyId": testARN, "KeyMaterialId": materialID}}
	if sent := s.seen(); !reflect.DeepEqual([]map[string]any{sent[0].Body, sent[1].Body}, want) {
		t.Errorf("sent %v", sent)
	}
}

func TestListKeyMaterials(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			answerJSON(t, w, 200, map[string]any{"Truncated": true, "NextMarker": "next", "Rotations": []map[string]any{{
				"KeyId": keyID(testARN), "KeyMaterialId": materialID, "KeyMaterialState": "CURRENT", "ImportState": "IMPORTED",
				"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": 1800000000, "KeyMaterialDescription": "first",
			}}})
			return
		}
		answerJSON(t, w, 200, map[string]any{"Truncated": false, "Rotations": []map[string]any{{
			"KeyId": testARN, "KeyMaterialId": "other", "KeyMaterialState": "NON_CURRENT", "ImportState": "PENDING_IMPORT",
			"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "RotationDate": 1700000000,
		}}})
	})
	c := newTestClient(t, s.URL)
	got, err := c.ListKeyMaterials(t.Context(), testARN)
	want := []KeyMaterial{
		{ID: materialID, State: "CURRENT", ImportState: "IMPORTED", ExpirationModel: "KEY_MATERIAL_EXPIRES", ValidTo: time.Unix(1800000000, 0).UTC(), Description: "first"},
		{ID: "other", State: "NON_CURRENT", ImportState: "PENDING_IMPORT", ExpirationModel: "KEY_MATERIAL_DOES_NOT_EXPIRE", RotationDate: time.Unix(1700000000, 0).UTC()},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	sent := s.seen()
	if len(sent) != 2 || sent[0].Body["IncludeKeyMaterial"] != "ALL_KEY_MATERIAL" || sent[0].Body["Marker"] != nil ||
		sent[1].Body["IncludeKeyMaterial"] != "ALL_KEY_MATERIAL" || sent[1].Body["Marker"] != "next" {
		t.Errorf("sent %v", sent)
	}
}

func TestListKeyMaterialsRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(n int) map[string]any
		says   string
		sent   int
	}{
		{"endless", func(n int) map[string]any { return map[string]any{"Truncated": true, "NextMarker": strconv.Itoa(n)} }, "does not end after 100 pages", 100},
		{"no marker", func(int) map[string]any { return map[string]any{"Truncated": true} }, "has no marker of its next page", 1},
		{"another key", func(int) map[string]any {
			return map[string]any{"Rotations": []map[string]any{{"KeyId": "4321", "KeyMaterialId": materialID}}}
		}, `the answer is about "4321"`, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request, n int) { answerJSON(t, w, 200, tc.answer(n)) })
			c := newTestClient(t, s.URL)
			got, err := c.ListKeyMaterials(t.Context(), testARN)
			if Code(err) != codeNotKMS || !strings.Contains(err.Error(), tc.says) || got != nil || len(s.seen()) != tc.sent || IsUnsupportedOperation(err) {
				t.Errorf("%d requests, got %v, %v", len(s.seen()), got, err)
			}
		})
	}
}

func TestListKeyMaterialsUnsupported(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request, int){
		"unknown operation":   fails(t, 400, "UnknownOperationException", ""),
		"not for this key":    fails(t, 400, "UnsupportedOperationException", ""),
		"unknown parameter":   fails(t, 400, "ValidationException", ""),
		"not implemented":     fails(t, 501, "InternalFailure", "not implemented"),
		"nothing there":       func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotFound) },
		"web page, 404":       func(w http.ResponseWriter, r *http.Request, _ int) { http.NotFound(w, r) },
		"nothing implemented": func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotImplemented) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, answer)
			c := newTestClient(t, s.URL, func(c *Config) { c.MaxAttempts = 1 })
			if _, err := c.ListKeyMaterials(t.Context(), testARN); !IsUnsupportedOperation(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}
