package configs

import _ "embed" // the sample and the schema are part of the program

//go:embed hsmbridge.yaml
var sample []byte

//go:embed schema.json
var schema []byte

// Sample is a commented configuration to start from, which loads as it stands.
func Sample() []byte { return append([]byte(nil), sample...) }

// Schema is the JSON Schema (draft 2020-12) of the configuration, for editors. It is generated from the Go types by
// this package's tests, which also keep it current: go test ./configs -update. It says what a schema can;
// [Parse] checks more.
func Schema() []byte { return append([]byte(nil), schema...) }
