package importer_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// wrapped is a key as an HSM room gives it, with a proof.
func (w *world) wrapped(name string, spec wrapping.KeySpec, r importer.Request) importer.Ready {
	w.t.Helper()
	w.token.add(w.t, name, spec)
	plan := wrapping.Plan{Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA3072}
	key, err := w.token.Find(w.t.Context(), r.Object)
	if err != nil {
		w.t.Fatal(err)
	}
	wrap := func() (token, out []byte) {
		params, err := w.kms.GetParametersForImport(w.t.Context(), r.Destination, string(plan.Algorithm), string(plan.WrappingKeySpec))
		if err != nil {
			w.t.Fatal(err)
		}
		if out, err = w.token.Wrap(w.t.Context(), key, params.PublicKey, plan); err != nil {
			w.t.Fatal(err)
		}
		return params.ImportToken, out
	}
	ready := importer.Ready{Algorithm: plan.Algorithm, WrappingKeySpec: plan.WrappingKeySpec}
	ready.Token, ready.Wrapped = wrap()
	if spec == wrapping.SymmetricDefault {
		ready.ProofToken, ready.ProofWrapped = wrap()
		return ready
	}
	ready.Message = []byte("message")
	if ready.MAC, err = w.token.MAC(w.t.Context(), key, ready.Message); err != nil {
		w.t.Fatal(err)
	}
	return ready
}

// TestUploadUnknown: what was wrapped somewhere else is told so too, and can be sent again. Where KMS took it meanwhile it is proved.
func TestUploadUnknown(t *testing.T) {
	for _, x := range []struct {
		spec  wrapping.KeySpec
		proof importer.ProofMethod
		cut   string
		again importer.Outcome
		sent  int
	}{
		{wrapping.HMAC256, importer.ProofMAC, "before", importer.Imported, 1},
		{wrapping.HMAC256, importer.ProofMAC, "after", importer.Unchanged, 0},
		{wrapping.SymmetricDefault, importer.ProofMaterialID, "before", importer.Imported, 2},
		{wrapping.SymmetricDefault, importer.ProofMaterialID, "after", importer.Unchanged, 1},
	} {
		t.Run(string(x.spec)+" "+x.cut, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			r := w.request("k", x.spec, w.destination(x.spec, ""))
			ready := w.wrapped("k", x.spec, r)
			w.emu.SetLag(time.Hour)
			w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: x.cut})
			got, err := w.Upload(t.Context(), r, importer.ActionImport, ready)
			var unknown *importer.UnknownOutcomeError
			if !errors.As(err, &unknown) || got.Result != importer.Unknown {
				t.Errorf("%+v, %v", got, err)
			}
			w.emu.SetLag(0)
			w.emu.Advance(time.Hour)
			before := w.emu.Count("ImportKeyMaterial")
			got, err = w.Upload(t.Context(), r, importer.ActionImport, ready)
			if err != nil || got.Result != x.again || got.Proof != x.proof || got.Expires == "" || got.Took() == (x.again == importer.Unchanged) {
				t.Errorf("again: %+v, %v", got, err)
			}
			if n := w.emu.Count("ImportKeyMaterial") - before; n != x.sent {
				t.Errorf("ImportKeyMaterial was sent %d times, want %d", n, x.sent)
			}
		})
	}
}

// TestUploadUnknownAgain: while KMS lists the material and does not hold it, as far as it shows, the next run waits for it.
func TestUploadUnknownAgain(t *testing.T) {
	for lag, want := range map[time.Duration]importer.Outcome{12 * time.Second: importer.Unchanged, time.Hour: importer.Failed} {
		w := newWorld(t, kmsemu.Options{})
		w.Wait = func(_ context.Context, d time.Duration) error { w.advance(d); return nil }
		r := w.request("k", wrapping.SymmetricDefault, w.destination(wrapping.SymmetricDefault, ""))
		ready := w.wrapped("k", wrapping.SymmetricDefault, r)
		w.emu.SetLag(lag)
		w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: "after"})
		if got, err := w.Upload(t.Context(), r, importer.ActionImport, ready); err == nil || got.Result != importer.Unknown {
			t.Errorf("%s: %+v, %v", lag, got, err)
		}
		got, err := w.Upload(t.Context(), r, importer.ActionImport, ready)
		if got.Result != want || (err == nil) != (want == importer.Unchanged) || err != nil && !strings.Contains(err.Error(), "an upload of a moment ago does not show yet") {
			t.Errorf("%s, again: %+v, %v", lag, got, err)
		}
	}
}

// TestUploadOfAnother: KMS holds the material of somebody else with the life asked for. That is no upload of this key, and nothing replaces it.
func TestUploadOfAnother(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.HMAC256, wrapping.SymmetricDefault} {
		t.Run(string(spec), func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			arn := w.destination(spec, "")
			r := w.request("k", spec, arn)
			ready := w.wrapped("k", spec, r)
			w.token.add(t, "other", spec)
			other := w.mustRun(w.request("other", spec, arn))
			got, err := w.Upload(t.Context(), r, importer.ActionImport, ready)
			if err == nil || !strings.Contains(err.Error(), "KMS holds another key than that of the room") || strings.Contains(err.Error(), "delete-imported") || got.Result != importer.Failed || got.Proof != importer.Unproved {
				t.Errorf("%+v, %v", got, err)
			}
			if list, err := w.kms.ListKeyMaterials(t.Context(), arn); spec == wrapping.SymmetricDefault && (err != nil || len(list) != 1 || list[0].ID != other.KeyMaterialID) {
				t.Errorf("KMS holds %+v, %v", list, err)
			}
			if spec == wrapping.HMAC256 {
				w.emu.AddFault(kmsemu.Fault{Operation: "GenerateMac", Code: "AccessDeniedException"})
				if got, err = w.Upload(t.Context(), r, importer.ActionImport, ready); err == nil || got.Result != importer.Failed || !strings.Contains(err.Error(), "that it is the key of the room cannot be proved") {
					t.Errorf("the proof refused: %+v, %v", got, err)
				}
			}
			ready.MAC, ready.ProofWrapped = nil, nil // and with nothing to prove by, nothing is said
			if got, err = w.Upload(t.Context(), r, importer.ActionImport, ready); err == nil || got.Result != importer.Failed || !strings.Contains(err.Error(), "it was uploaded already") {
				t.Errorf("without a proof: %+v, %v", got, err)
			}
		})
	}
}
