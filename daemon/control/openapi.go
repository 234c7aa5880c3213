package control

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

// OpenAPI is the OpenAPI 3.1 document of the API, made from the table of routes and the Go types.
func OpenAPI() (map[string]any, error) {
	schemas := map[string]any{}
	paths := map[string]map[string]any{}
	for _, rt := range routes() {
		op := map[string]any{
			"summary": rt.summary, "operationId": operationID(rt), "x-permission": string(rt.permission),
			"responses": map[string]any{
				"200":     map[string]any{"description": "done", "content": content(schemas, rt.out)},
				"default": map[string]any{"description": "it failed, or was refused", "content": content(schemas, Problem{})},
			},
		}
		if params := parameters(rt); len(params) > 0 {
			op["parameters"] = params
		}
		if rt.in != nil {
			op["requestBody"] = map[string]any{"required": true, "content": content(schemas, rt.in)}
		}
		if paths[rt.path] == nil {
			paths[rt.path] = map[string]any{}
		}
		paths[rt.path][strings.ToLower(rt.method)] = op
	}
	doc := map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "hsmbridge control", "version": "1",
			"description": "The local API of the hsmbridge daemon, on a Unix socket. The caller is known by its peer credentials; x-permission says who may: look is whoever can open the socket, operate is root, the daemon's user and control.operators.",
			"license":     map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":    []any{map[string]any{"url": "http://hsmbridge", "description": "any host name: the socket decides"}},
		"paths":      paths,
		"components": map[string]any{"schemas": schemas},
	}
	// Through JSON, so that it is the same whoever makes it.
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("OpenAPI: %w", err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("OpenAPI: %w", err)
	}
	return out, nil
}

func operationID(rt route) string {
	id := strings.ToLower(rt.method)
	for part := range strings.SplitSeq(strings.TrimPrefix(rt.path, "/v1/"), "/") {
		part = strings.NewReplacer("{", "", "}", "", ".", "-").Replace(part)
		id += "-" + part
	}
	return id
}

func parameters(rt route) []any {
	var out []any
	for part := range strings.SplitSeq(rt.path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			out = append(out, map[string]any{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
		}
	}
	for _, name := range sorted(rt.query) {
		out = append(out, map[string]any{"name": name, "in": "query", "description": rt.query[name], "schema": map[string]any{"type": "string"}})
	}
	return out
}

// content is a JSON body of v's type, whose schema goes among the others.
func content(schemas map[string]any, v any) map[string]any {
	t := reflect.TypeOf(v)
	if t.Kind() != reflect.Struct {
		return map[string]any{"application/json": map[string]any{"schema": map[string]any{"type": "object"}}}
	}
	r := &jsonschema.Reflector{Anonymous: true, DoNotReference: false}
	s := r.ReflectFromType(t)
	for name, d := range s.Definitions {
		schemas[name] = rewritten(d)
	}
	return map[string]any{"application/json": map[string]any{"schema": map[string]any{"$ref": "#/components/schemas/" + t.Name()}}}
}

// rewritten points references at where OpenAPI keeps schemas.
func rewritten(s *jsonschema.Schema) any {
	b, err := json.Marshal(s)
	if err != nil {
		panic("control: a schema is always representable: " + err.Error())
	}
	return json.RawMessage(strings.ReplaceAll(string(b), `"#/$defs/`, `"#/components/schemas/`))
}
