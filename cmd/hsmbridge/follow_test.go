package main

import (
	"encoding/json"
	"testing"

	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// TestOlderResult reads what was kept before an outcome that is not known had a word of its own.
func TestOlderResult(t *testing.T) {
	older := json.RawMessage(`{"key":"payments","destination":"arn","proof":"unproved","result":"failed","error":"whether KMS imported payments is not known: its answer was lost","error_class":"kms"}`)
	newer := json.RawMessage(`{"key":"payments","destination":"arn2","proof":"unproved","result":"unknown","error":"whether KMS imported payments is not known: its answer was lost","error_class":"kms"}`)
	got, err := lastResults([]store.Import{{Destination: "arn2", Result: "unknown", Details: newer}, {Destination: "arn", Result: "failed", Details: older}})
	if err != nil || len(got) != 2 || got[0].Result != importer.Failed || got[1].Result != importer.Unknown || resultsCode(got) != exitKMS {
		t.Errorf("%+v, %v", got, err)
	}
}
