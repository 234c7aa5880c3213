package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"hsmbridge/daemon/store"
)

// The document is that of docs/, names every route, and every answer is as it says.
func TestOpenAPI(t *testing.T) {
	doc, err := OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	const golden = "../../docs/openapi.json"
	if *update {
		if err := os.WriteFile(golden, text, 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(want, text) {
		t.Errorf("docs/openapi.json is out of date (%v): run go test ./daemon/control -update", err)
	}
	paths, ok := doc["paths"].(map[string]any)
	if !ok {
		t.Fatal("no paths")
	}
	operations := 0
	for _, methods := range paths {
		if m, ok := methods.(map[string]any); ok {
			operations += len(m)
		}
	}
	if operations != len(routes()) {
		t.Errorf("the document has %d operations and there are %d routes", operations, len(routes()))
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("mem:openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	socket := serve(t, &service{list: []store.Event{{ID: 1, Fields: map[string]string{"a": "b"}}}})
	client := NewClient(socket)
	for _, rt := range routes() {
		methods, ok := paths[rt.path].(map[string]any)
		if !ok || methods[strings.ToLower(rt.method)] == nil {
			t.Errorf("%s %s is not in the document", rt.method, rt.path)
			continue
		}
		typ := reflect.TypeOf(rt.out)
		if typ.Kind() != reflect.Struct {
			continue
		}
		schema, err := compiler.Compile("mem:openapi.json#/components/schemas/" + typ.Name())
		if err != nil {
			t.Fatal(err)
		}
		var in any
		switch rt.in.(type) {
		case StartRequest:
			in = StartRequest{Keys: []string{"k"}, Kind: store.KindImport}
		case ReasonRequest:
			in = ReasonRequest{Reason: "why", Confirm: "k"}
		case BackupRequest:
			in = BackupRequest{"/x"}
		}
		resp, err := client.send(t.Context(), rt.method, path(rt), nil, in)
		var refused *Error
		if errors.As(err, &refused) {
			continue // the service refuses some
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s %s answers %s: %v", rt.method, rt.path, body, err)
		}
	}
}
