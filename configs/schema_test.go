package configs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	reflector "github.com/invopop/jsonschema"
	validator2020 "github.com/santhosh-tekuri/jsonschema/v6"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// generateSchema makes the JSON Schema from the Go types and their comments.
func generateSchema(t *testing.T) []byte {
	t.Helper()
	r := reflector.Reflector{FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, Anonymous: true, Mapper: scalarSchema}
	if err := r.AddGoComments("hsmbridge/configs", "./", reflector.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	if err := r.AddGoComments("hsmbridge/configs", "../hsm/quirks", reflector.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	s := r.Reflect(Config{})
	allowText(s.Definitions["Destination"])
	s.Version = reflector.Version
	s.Title = "Configuration of hsmbridge"
	for path, set := range refinements() {
		name, property, _ := strings.Cut(path, ".")
		target := s.Definitions[name]
		if property != "" {
			var ok bool
			if target, ok = target.Properties.Get(property); !ok {
				t.Fatalf("the schema has no %s", path)
			}
		}
		set(target)
	}
	for _, definition := range s.Definitions {
		definition.Description = strings.ReplaceAll(definition.Description, "\n", " ")
		properties := definition.Properties
		for _, form := range definition.OneOf {
			if form.Type == "object" {
				properties = form.Properties
			}
		}
		for pair := properties.Oldest(); pair != nil; pair = pair.Next() {
			pair.Value.Description = strings.ReplaceAll(pair.Value.Description, "\n", " ")
		}
	}
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// allowText makes the schema of a destination: its ARN, or a mapping.
func allowText(s *reflector.Schema) {
	whole := *s
	whole.Description = ""
	set := func(property, pattern string) {
		if p, ok := whole.Properties.Get(property); ok {
			p.Pattern = pattern
		}
	}
	set("arn", destinationPattern)
	set("role_arn", "^$|"+rolePattern)
	set("external_id", "^$|"+externalIDPattern)
	set("endpoint", endpointPattern)
	if p, ok := whole.Properties.Get("external_id"); ok {
		p.MaxLength = ptr(maxExternalID)
	}
	whole.DependentRequired = map[string][]string{"external_id": {"role_arn"}}
	*s = reflector.Schema{Description: s.Description, OneOf: []*reflector.Schema{{Type: "string", Pattern: destinationPattern}, &whole}}
}

// databasePattern is a path or a PostgreSQL URL without a password.
const databasePattern = `^$|^postgres(ql)?://([^:@/]*@)?[^@]*$|^[^~:]+$`

// endpointPattern is what a schema can say of an endpoint.
const endpointPattern = "^$|^https?://."

// scalarSchema is the schema of the types that are written as one scalar.
func scalarSchema(t reflect.Type) *reflector.Schema {
	switch t {
	case reflect.TypeFor[pkcs11uri.URI]():
		return &reflector.Schema{Type: "string", Pattern: "^[Pp][Kk][Cc][Ss]11:"}
	case reflect.TypeFor[Duration]():
		return &reflector.Schema{Type: "string", Pattern: `^(never|([0-9]{1,5}d)?([0-9]{1,5}h)?([0-9]{1,5}m)?)$`, MinLength: ptr(2), Examples: []any{"90d", "12h", "never"}}
	case reflect.TypeFor[Rate]():
		return &reflector.Schema{Type: "string", Pattern: ratePattern, Examples: []any{"1/s", "0.25/s", "30/m"}}
	case reflect.TypeFor[Command]():
		word := &reflector.Schema{Type: "string", MinLength: ptr(1)}
		return &reflector.Schema{OneOf: []*reflector.Schema{word, {Type: "array", Items: word, MinItems: ptr(1)}}}
	case reflect.TypeFor[quirks.Mechanism]():
		return &reflector.Schema{Type: "string", Pattern: quirks.MechanismPattern}
	case reflect.TypeFor[quirks.Attribute]():
		return &reflector.Schema{Type: "string", Pattern: quirks.AttributePattern}
	case reflect.TypeFor[quirks.PINFormat]():
		return &reflector.Schema{Type: "string", Enum: enum(quirks.PINFormats())}
	case reflect.TypeFor[wrapping.KeySpec]():
		return &reflector.Schema{Type: "string", Enum: enum(wrapping.KeySpecs())}
	case reflect.TypeFor[wrapping.Algorithm]():
		return &reflector.Schema{Type: "string", Enum: enum(wrapping.Algorithms())}
	case reflect.TypeFor[Network]():
		return &reflector.Schema{Type: "string", Enum: []any{NetworkNone, NetworkAllowed}, Default: NetworkNone}
	case reflect.TypeFor[Timeout]():
		return &reflector.Schema{Type: "string", Pattern: timeoutPattern, Examples: []any{"30s", "2m"}}
	case reflect.TypeFor[Generate]():
		return &reflector.Schema{Type: "string", Enum: []any{GenerateNever, GenerateIfMissing}, Default: GenerateNever}
	}
	return nil
}

// refinements is what the Go types do not say: the patterns and rules of [validate] that a schema can express.
func refinements() map[string]func(*reflector.Schema) {
	name := func(s *reflector.Schema) { s.Pattern = namePattern }
	file := func(s *reflector.Schema) { s.Pattern = "^[^~]" }
	file0 := func(s *reflector.Schema) { s.Pattern = "^$|^[^~]" }
	given := func(field string, value *reflector.Schema) *reflector.Schema {
		properties := reflector.NewProperties()
		properties.Set(field, value)
		return &reflector.Schema{Properties: properties, Required: []string{field}}
	}
	return map[string]func(*reflector.Schema){
		"Config.name":          func(s *reflector.Schema) { s.Pattern = "^$|" + namePattern },
		"Config.database":      func(s *reflector.Schema) { s.Pattern = databasePattern },
		"Quota.operation":      func(s *reflector.Schema) { s.Enum = enum(operations()) },
		"Quota.account":        func(s *reflector.Schema) { s.Pattern = "^$|" + accountPattern },
		"Quota.region":         func(s *reflector.Schema) { s.Pattern = "^$|" + regionPattern },
		"Control.socket":       func(s *reflector.Schema) { s.Pattern = "^$|^[^~]" },
		"Control.operators":    func(s *reflector.Schema) { s.Items.Pattern = operatorPattern },
		"Metrics.listen":       func(s *reflector.Schema) { s.Pattern = `^$|^none$|^[^:].*:[0-9]{1,5}$` },
		"Log.level":            func(s *reflector.Schema) { s.Enum = enum(append(logLevels(), "")) },
		"Log.format":           func(s *reflector.Schema) { s.Enum = enum(append(logFormats(), "")) },
		"Schedule.cron":        func(s *reflector.Schema) { s.Pattern = `^\s*[^\s@=]+(\s+[^\s@=]+){4}\s*$` },
		"Window.days":          func(s *reflector.Schema) { s.Items.Enum = enum(weekdays()) },
		"Window.from":          func(s *reflector.Schema) { s.Pattern = clockPattern },
		"Window.to":            func(s *reflector.Schema) { s.Pattern = clockPattern },
		"KMS.region":           func(s *reflector.Schema) { s.Pattern = "^$|" + regionPattern },
		"KMS.endpoint":         func(s *reflector.Schema) { s.Pattern = endpointPattern },
		"Token.name":           name,
		"Token.module":         file,
		"Token.pin_credential": func(s *reflector.Schema) { s.Pattern = "^$|" + systemdNamePattern },
		"Token.environment":    func(s *reflector.Schema) { s.PropertyNames = &reflector.Schema{Pattern: environmentPattern} },
		"Token": func(s *reflector.Schema) {
			s.OneOf = []*reflector.Schema{
				given("pin_file", &reflector.Schema{MinLength: ptr(1)}),
				given("pin_command", &reflector.Schema{}),
				given("pin_prompt", &reflector.Schema{Const: true}),
				given("pin_credential", &reflector.Schema{MinLength: ptr(1)}),
				given("quirks", given("protected_authentication_path", &reflector.Schema{Const: true})),
			}
		},
		"Override.family": func(s *reflector.Schema) { s.Enum = enum(quirks.FamilyNames()) },
		"Override.max_sessions": func(s *reflector.Schema) {
			s.Minimum, s.Maximum = json.Number(strconv.Itoa(quirks.LeastSessions)), json.Number(strconv.Itoa(quirks.MostSessions))
		},
		"Approval.allowed_signers": file0,
		"Audit.uri":                func(s *reflector.Schema) { s.Pattern = "^$|" + s.Pattern },
		"Export.file":              file0,
		"Export.syslog":            func(s *reflector.Schema) { s.Pattern = `^$|^local$|^unix:///.|^(udp|tcp)://[^/]+:[0-9]{1,5}$` },
		"Export": func(s *reflector.Schema) {
			s.OneOf = []*reflector.Schema{
				given("file", &reflector.Schema{MinLength: ptr(1)}),
				given("syslog", &reflector.Schema{MinLength: ptr(1)}),
				given("stdout", &reflector.Schema{Const: true}),
			}
		},
		"Replica.required": func(s *reflector.Schema) { s.Default = true },
		"Key.name":         name,
		"Key.prove":        func(s *reflector.Schema) { s.Default = true },
	}
}

func ptr(n uint64) *uint64 { return &n }

func enum[S ~string](values []S) []any {
	out := make([]any, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

func TestSchemaIsCurrent(t *testing.T) {
	golden(t, "schema.json", generateSchema(t))
	if !*update && !bytes.Equal(Schema(), generateSchema(t)) {
		t.Error("Schema is not schema.json")
	}
}

// compileSchema reads the schema as an editor would: draft 2020-12, checked against its meta-schema.
func compileSchema(t *testing.T) *validator2020.Schema {
	t.Helper()
	document, err := validator2020.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	if version := document.(map[string]any)["$schema"]; version != "https://json-schema.org/draft/2020-12/schema" { //nolint:errcheck,forcetypeassert // a panic fails the test too
		t.Fatalf("$schema is %v", version)
	}
	c := validator2020.NewCompiler()
	if err := c.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validateYAML checks a YAML document against the schema.
func validateYAML(s *validator2020.Schema, data []byte) error {
	text, err := yaml.YAMLToJSON(data)
	if err != nil {
		return err
	}
	instance, err := validator2020.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return s.Validate(instance)
}

func TestSchemaTakesWhatLoads(t *testing.T) {
	s := compileSchema(t)
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := validateYAML(s, data); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestSchemaOfExports holds that the schema takes exactly the places for the audit log that the program takes.
func TestSchemaOfExports(t *testing.T) {
	s := compileSchema(t)
	for export, good := range map[string]bool{
		"{file: /var/log/hsmbridge/audit.jsonl, required: true}": true,
		"{file: audit.jsonl}":                                true,
		"{file: ~/audit.jsonl}":                              false,
		"{stdout: true}":                                     true,
		"{stdout: false}":                                    false,
		"{syslog: local}":                                    true,
		"{syslog: local, required: true}":                    true,
		"{syslog: remote}":                                   false,
		`{syslog: "unix:///dev/log"}`:                        true,
		`{syslog: "unix://dev/log"}`:                         false,
		`{syslog: "unix://"}`:                                false,
		`{syslog: "tcp://logs.example.com:601"}`:             true,
		`{syslog: "tcp://logs.example.com"}`:                 false,
		`{syslog: "tcp://logs.example.com/path:601"}`:        false,
		`{syslog: "udp://10.0.0.1:514"}`:                     true,
		`{syslog: "udp://[2001:db8::1]:514"}`:                true,
		`{syslog: "tls://logs.example.com:6514"}`:            false,
		`{syslog: "tcp://logs.example.com:601", file: x}`:    false,
		`{file: x, stdout: true}`:                            false,
		`{syslog: "tcp://logs.example.com:601", stdout: no}`: false,
		"{}": false,
	} {
		data := []byte(`tokens: [{name: demo, module: /lib/p11.so, uri: "pkcs11:token=demo", pin_prompt: true}]` + "\naudit: {export: [" + export + "]}\n")
		_, err := Parse("test.yaml", data)
		if (err == nil) != good {
			t.Errorf("%s: the program says: %v", export, err)
		}
		if err := validateYAML(s, data); (err == nil) != good {
			t.Errorf("%s: the schema says: %v", export, err)
		}
	}
}

// TestSchemaRefuses holds that the schema refuses every broken configuration, except those that say at their top
// that a schema cannot: they are valid by it.
func TestSchemaRefuses(t *testing.T) {
	s := compileSchema(t)
	for _, file := range brokenFiles(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		err = validateYAML(s, data)
		if cannot := bytes.HasPrefix(data, []byte("# schema cannot say this")); cannot != (err == nil) {
			t.Errorf("%s: the schema says: %v", file, err)
		}
	}
}
