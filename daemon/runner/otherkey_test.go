package runner

import (
	"strings"
	"testing"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// The way out of another object of the same name is the same everywhere; a replica needs a copy.
func TestOtherKeyFix(t *testing.T) {
	k := configs.Key{Name: "payments", Token: "a"}
	for token, want := range map[string]string{"a": importer.PutBack, "b": "put a copy of the right one there"} {
		if got := otherKey(k, store.Replica{Token: token, Generation: 1, Identity: "MAC 2"}, "MAC 1"); !strings.HasSuffix(got, "it has to be MAC 1; it is not used: "+want) {
			t.Errorf("in token %s: %s", token, got)
		}
	}
}
