package importer_test

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// generation is the request for one material of a key with several.
func (w *world) generation(label, arn string) importer.Request {
	r := w.request(label, wrapping.SymmetricDefault, arn)
	r.Description = "hsmbridge " + label
	return r
}

func (w *world) materials(arn string) []kmsclient.KeyMaterial {
	w.t.Helper()
	list, err := w.kms.ListKeyMaterials(w.t.Context(), arn)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// rotated makes a key with materials a, b and c, of which c is the current one, and gives the requests for them.
func (w *world) rotated(arn string) []importer.Request {
	w.t.Helper()
	var all []importer.Request
	for i, label := range []string{"a", "b", "c"} {
		w.token.add(w.t, label, wrapping.SymmetricDefault)
		r := w.generation(label, arn)
		r.New = i > 0
		r.KeyMaterialID = w.mustRun(r).KeyMaterialID
		if i > 0 {
			if err := w.Rotate(w.t.Context(), r); err != nil {
				w.t.Fatal(err)
			}
		}
		r.New = false
		all = append(all, r)
	}
	return all
}

func TestRotate(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.SymmetricDefault, "")
	all := w.rotated(arn)
	list := w.materials(arn)
	if len(list) != 3 || list[2].State != "CURRENT" || list[2].ID != all[2].KeyMaterialID || list[1].State != "NON_CURRENT" {
		t.Fatalf("the materials are %+v", list)
	}
	if list[1].Description != "hsmbridge b" {
		t.Errorf("the description of the second is %q", list[1].Description)
	}
	if err := w.Rotate(t.Context(), all[2]); err != nil || w.emu.Count("RotateKeyOnDemand") != 2 {
		t.Errorf("rotating to the current material: %v, %d rotations", err, w.emu.Count("RotateKeyOnDemand"))
	}
	o, err := w.Observe(t.Context(), all[0])
	if err != nil || !o.Present || o.Rotations != 2 || len(o.Materials) != 3 {
		t.Errorf("observed %+v, %v", o, err)
	}
}

// Whatever of an attempt got lost, the next one adds no second material.
func TestNewMaterialIsAddedOnce(t *testing.T) {
	for _, cut := range []string{"before", "after"} {
		t.Run("connection cut "+cut, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
			arn := w.destination(wrapping.SymmetricDefault, "")
			w.rotated(arn)
			w.token.add(t, "d", wrapping.SymmetricDefault)
			r := w.generation("d", arn)
			r.New = true
			w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: cut})
			if _, err := w.Run(t.Context(), r); (err == nil) != (cut == "after") {
				t.Errorf("the first attempt: %v", err)
			}
			result := w.mustRun(r) // knows nothing of the first
			if list := w.materials(arn); len(list) != 4 || list[3].ID != result.KeyMaterialID || list[3].State != "PENDING_ROTATION" {
				t.Errorf("the materials are %+v", list)
			}
			if result.Proof != importer.ProofMaterialID {
				t.Errorf("proof %s: %s", result.Proof, result.ProofReason)
			}
		})
	}
	t.Run("somebody else's waits", func(t *testing.T) {
		w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
		arn := w.destination(wrapping.SymmetricDefault, "")
		w.rotated(arn)
		w.token.add(t, "d", wrapping.SymmetricDefault)
		w.token.add(t, "e", wrapping.SymmetricDefault)
		d, e := w.generation("d", arn), w.generation("e", arn)
		d.New, e.New = true, true
		w.mustRun(d)
		_, err := w.Run(t.Context(), e)
		var refused *importer.RefusedError
		if !errors.As(err, &refused) || len(w.materials(arn)) != 4 {
			t.Errorf("a second new material: %v", err)
		}
	})
	t.Run("the answer of the rotation is lost", func(t *testing.T) {
		w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
		arn := w.destination(wrapping.SymmetricDefault, "")
		w.rotated(arn)
		w.token.add(t, "d", wrapping.SymmetricDefault)
		r := w.generation("d", arn)
		r.New = true
		r.KeyMaterialID = w.mustRun(r).KeyMaterialID
		w.emu.AddFault(kmsemu.Fault{Operation: "RotateKeyOnDemand", Cut: "after"})
		if err := w.Rotate(t.Context(), r); err != nil || w.emu.Count("RotateKeyOnDemand") != 3 {
			t.Errorf("%v, %d requests", err, w.emu.Count("RotateKeyOnDemand"))
		}
	})
}

// When one of several materials is gone the key is unusable until that one is back, and each is imported under its ID.
func TestRestoreOfSeveralMaterials(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.SymmetricDefault, "")
	all := w.rotated(arn)
	deleted, err := w.Revoke(t.Context(), all[0])
	if err != nil || deleted != 3 {
		t.Fatalf("revoked %d, %v", deleted, err)
	}
	if again, err := w.Revoke(t.Context(), all[0]); err != nil || again != 0 {
		t.Errorf("revoked %d again, %v", again, err)
	}
	for i, r := range all {
		if o, err := w.Observe(t.Context(), r); err != nil || o.Present {
			t.Errorf("before material %d the key is %s, %v", i, o.Info.State, err)
		}
		if result := w.mustRun(r); result.Result != importer.Restored || result.KeyMaterialID != r.KeyMaterialID || result.Proof != importer.ProofMaterialID {
			t.Errorf("material %d: %+v", i, result)
		}
	}
	if o, err := w.Observe(t.Context(), all[0]); err != nil || !o.Present {
		t.Errorf("at the end the key is %s, %v", o.Info.State, err)
	}
	// An object under a label that held another key before is refused by KMS, which computes the ID anew.
	swapped := all[1]
	swapped.Object = all[0].Object
	swapped.Renew = true
	if _, err := w.Run(t.Context(), swapped); kmsclient.Code(err) != "IncorrectKeyMaterialException" {
		t.Errorf("the wrong object under an ID: %v", err)
	}
}

func TestRevokeOtherKinds(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.HMAC256, "")
	w.token.add(t, "mac", wrapping.HMAC256)
	r := w.request("mac", wrapping.HMAC256, arn)
	w.mustRun(r)
	w.emu.AddFault(kmsemu.Fault{Operation: "DeleteImportedKeyMaterial", Cut: "after"})
	if n, err := w.Revoke(t.Context(), r); err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if info, err := w.kms.DescribeKey(t.Context(), arn); err != nil || info.State != "PendingImport" {
		t.Errorf("after the revocation the key is %s, %v", info.State, err)
	}
}

func TestReplicas(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	key, err := w.kms.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "SYMMETRIC_DEFAULT", MultiRegion: true})
	if err != nil {
		t.Fatal(err)
	}
	replica := w.replicate(key.ARN, "us-east-1")
	both := []string{key.ARN, replica}
	var id string
	for i, label := range []string{"a", "b"} {
		w.token.add(t, label, wrapping.SymmetricDefault)
		for _, arn := range both {
			r := w.generation(label, arn)
			r.KeyMaterialID = id
			if i > 0 {
				r.New, r.Pending = arn == key.ARN, arn != key.ARN
			}
			result := w.mustRun(r)
			if id == "" {
				id = result.KeyMaterialID
			}
			if result.KeyMaterialID != id {
				t.Errorf("%s in %s has the ID %s, and %s in the primary", label, arn, result.KeyMaterialID, id)
			}
		}
		if i > 0 {
			r := w.generation(label, key.ARN)
			r.KeyMaterialID = id
			if err := w.Rotate(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		id = ""
	}
	for _, arn := range both {
		r := w.generation("b", arn)
		if o, err := w.Observe(t.Context(), r); err != nil || !o.Present || len(o.Materials) != 2 || o.Materials[1].State != "CURRENT" {
			t.Errorf("%s holds %+v, %v", arn, o.Materials, err)
		}
	}
}

// A job that is tried again asks for the expiry that its first attempt chose, and finds it.
func TestRepeatedAttempt(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.SymmetricDefault, "")
	w.token.add(t, "a", wrapping.SymmetricDefault)
	r := w.request("a", wrapping.SymmetricDefault, arn)
	r.Expires = 30 * 24 * time.Hour
	first := w.mustRun(r)
	w.advance(10 * 24 * time.Hour)
	r.Renew, r.KeyMaterialID, r.CheckValue = true, first.KeyMaterialID, first.CheckValue
	second := w.mustRun(r)
	if second.Result != importer.Reimported || !second.ExpiresAt().After(first.ExpiresAt()) {
		t.Fatalf("renewed: %+v", second)
	}
	w.advance(time.Hour)
	r.ValidTo = second.ExpiresAt()
	sent := w.emu.Count("ImportKeyMaterial")
	if third := w.mustRun(r); third.Result != importer.Unchanged || !third.ExpiresAt().Equal(second.ExpiresAt()) {
		t.Errorf("tried again: %+v", third)
	}
	if n := w.emu.Count("ImportKeyMaterial") - sent; n != 1 {
		t.Errorf("%d imports where only the proof is one", n)
	}
}

func TestOtherCheckValue(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.SymmetricDefault, "")
	w.token.add(t, "a", wrapping.SymmetricDefault)
	r := w.request("a", wrapping.SymmetricDefault, arn)
	r.CheckValue = "000000"
	_, err := w.Run(t.Context(), r)
	if importer.Class(err) != "caller" || !strings.Contains(err.Error(), "it is another key") || !strings.HasSuffix(err.Error(), importer.PutBack) || w.emu.Count("GetParametersForImport") != 0 {
		t.Errorf("another check value: %v", err)
	}
	if slices.ContainsFunc(w.emu.Requests(), func(r kmsemu.Request) bool { return r.Operation == "ImportKeyMaterial" }) {
		t.Error("something was imported")
	}
}

// oneWrapper is one wrapping key for all these tests, which make many imports and do not look at it.
var oneWrapper = sync.OnceValue(func() map[int]*rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		panic(err)
	}
	return map[int]*rsa.PrivateKey{4096: key}
})
