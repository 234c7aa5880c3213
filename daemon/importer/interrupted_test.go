package importer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// interruptible is a world in which a request to KMS can be the last before the run is interrupted.
type interruptible struct {
	*world
	at     atomic.Int64 // how many requests go through before that one
	done   bool         // KMS has done it before the run is interrupted
	cancel func()
	last   atomic.Value // the operation of that request
}

func newInterruptible(t *testing.T) *interruptible {
	t.Helper()
	i := &interruptible{world: newWorld(t, kmsemu.Options{Wrappers: oneWrapper()}), cancel: func() {}}
	i.at.Store(forEver)
	i.last.Store("")
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if i.at.Add(-1) != -1 {
			i.emu.ServeHTTP(rw, r)
			return
		}
		_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		i.last.Store(op)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if i.done {
			again := r.Clone(context.WithoutCancel(r.Context()))
			again.Body = io.NopCloser(bytes.NewReader(body))
			i.emu.ServeHTTP(httptest.NewRecorder(), again)
		}
		i.cancel()
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	i.url = srv.URL
	i.kms = i.client("eu-central-1")
	return i
}

// run runs an import whose request number n, from 0, is interrupted.
func (i *interruptible) run(r importer.Request, n int64) (importer.Result, error) {
	ctx, cancel := context.WithCancel(i.t.Context())
	defer cancel()
	i.cancel = cancel
	i.last.Store("")
	i.at.Store(n)
	defer i.at.Store(forEver)
	return i.Run(ctx, r)
}

// check holds what an interrupted run says: in plain words, what was kept, what to do next, and never that KMS did not take what it took.
func (i *interruptible) check(got importer.Result, err error, action importer.Outcome) {
	i.t.Helper()
	text, jerr := json.Marshal(got)
	if jerr != nil {
		i.t.Fatal(jerr)
	}
	for _, bare := range []string{"context canceled", "Canceled"} {
		if strings.Contains(string(text), bare) || strings.Contains(err.Error(), bare) {
			i.t.Errorf("the bare words %q stand in %s, or in %v", bare, text, err)
		}
	}
	if !errors.Is(err, context.Canceled) || !strings.Contains(got.Error, "interrupted") || !strings.Contains(got.Error, "run it again, it ") || got.Error != err.Error() {
		i.t.Errorf("the error is %v, and the result's %q", err, got.Error)
	}
	var unknown *importer.UnknownOutcomeError
	if errors.As(err, &unknown) != (got.Result == importer.Unknown) {
		i.t.Errorf("the result is %s and the error %v", got.Result, err)
	}
	switch there := i.emu.State(got.Destination) == "Enabled"; got.Result {
	case action:
		if !there {
			i.t.Errorf("it says %s and KMS holds nothing", got.Result)
		}
	case importer.Unknown:
		if op := i.last.Load(); op != "ImportKeyMaterial" {
			i.t.Errorf("the outcome is not known although the last request was %s", op)
		}
	case importer.Failed:
		if there || !strings.Contains(got.Error, "nothing was changed in "+got.Destination) {
			i.t.Errorf("KMS holds the material: %t, and it says %q", there, got.Error)
		}
	default:
		i.t.Errorf("the result is %s", got.Result)
	}
}

// TestInterrupted interrupts an import at each of its requests, before and after KMS has done it.
func TestInterrupted(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.SymmetricDefault, wrapping.HMAC256} {
		for _, done := range []bool{false, true} {
			name := string(spec) + ", not done"
			if done {
				name = string(spec) + ", done"
			}
			t.Run(name, func(t *testing.T) {
				i := newInterruptible(t)
				i.done = done
				i.token.add(t, "k", spec)
				results := map[importer.Outcome]int{}
				for n := int64(0); ; n++ {
					r := i.request("k", spec, i.destination(spec, ""))
					got, err := i.run(r, n)
					if i.last.Load() == "" { // that many requests are not made
						if err != nil {
							t.Errorf("not interrupted: %+v, %v", got, err)
						}
						break
					}
					i.check(got, err, importer.Imported)
					results[got.Result]++
					there := i.emu.State(r.Destination) == "Enabled"
					want := map[bool]importer.Outcome{false: importer.Imported, true: importer.Unchanged}[there]
					if again := i.mustRun(r); again.Result != want || again.Proof == importer.Unproved {
						t.Errorf("after %s it is run again: %+v, want %s", i.last.Load(), again, want)
					}
				}
				if results[importer.Unknown] != 1 || results[importer.Failed] < 2 || results[importer.Imported] < 1 {
					t.Errorf("the results are %v", results)
				}
			})
		}
	}
}

// TestInterruptedProof interrupts what only proves: KMS holds the material as before.
func TestInterruptedProof(t *testing.T) {
	i := newInterruptible(t)
	i.token.add(t, "k", wrapping.HMAC256)
	r := i.request("k", wrapping.HMAC256, i.destination(wrapping.HMAC256, ""))
	i.mustRun(r)
	for n := int64(0); ; n++ {
		got, err := i.run(r, n)
		switch i.last.Load() {
		case "GenerateMac":
			if got.Result != importer.Unchanged || !errors.Is(err, context.Canceled) || !strings.Contains(got.Error, "KMS holds the key material as before") {
				t.Errorf("%+v, %v", got, err)
			}
			return
		case "":
			t.Fatal("GenerateMac is not asked for")
		}
	}
}

// What was wrapped in an HSM room is uploaded once: there is nothing to run again.
func TestInterruptedUpload(t *testing.T) {
	err := &importer.InterruptedError{Key: "k", Destination: "arn", Result: importer.Imported, Upload: true, Err: context.Canceled}
	if got := err.Error(); strings.Contains(got, "run it again") || !strings.Contains(got, "hsmbridge ceremony fetch --renew") {
		t.Error(got)
	}
}

// TestInterruptedAfterGenerate says that the key which was made stays.
func TestInterruptedAfterGenerate(t *testing.T) {
	i := newInterruptible(t)
	r := i.request("k", wrapping.HMAC256, i.destination(wrapping.HMAC256, ""))
	r.Generate = true
	for n := int64(0); ; n++ {
		got, err := i.run(r, n)
		switch i.last.Load() {
		case "GetParametersForImport":
			i.check(got, err, importer.Imported)
			if !strings.Contains(got.Error, "the key that was generated stays in the token") {
				t.Errorf("%+v", got)
			}
			return
		case "":
			t.Fatal("GetParametersForImport is not asked for")
		}
	}
}

// TestInterruptedKey interrupts a key with several destinations in the first of them: nothing is begun with the others.
func TestInterruptedKey(t *testing.T) {
	i := newInterruptible(t)
	i.token.add(t, "k", wrapping.HMAC256)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all []importer.Request
	for range 3 {
		all = append(all, i.request("k", wrapping.HMAC256, i.destination(wrapping.HMAC256, "")))
	}
	i.cancel = cancel
	i.at.Store(0)
	results := i.RunKey(ctx, all)
	for n, got := range results {
		if got.Result != importer.Failed || strings.Contains(got.Error, "context canceled") || !strings.Contains(got.Error, "nothing was changed in "+all[n].Destination) {
			t.Errorf("%+v", got)
		}
	}
	if len(results) != len(all) {
		t.Errorf("%d results of %d destinations", len(results), len(all))
	}
}

// TestSeenAndNotRecorded is an import whose answer was lost, whose effect was seen, and whose record failed: KMS took it all the same.
func TestSeenAndNotRecorded(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.SymmetricDefault, wrapping.HMAC256} {
		w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
		w.token.add(t, "k", spec)
		full := errors.New("the disk is full")
		w.Record = func(_ context.Context, e importer.Event) error {
			if e.Step == importer.StepImport {
				return full
			}
			return nil
		}
		w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: "after"})
		r := w.request("k", spec, w.destination(spec, ""))
		if got, err := w.Run(t.Context(), r); !errors.Is(err, full) || got.Result != importer.Imported || got.Expires == "" {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// TestUnknownIsRecorded: the journal has the outcome that the result has.
func TestUnknownIsRecorded(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	var last importer.Event
	w.Record = func(_ context.Context, e importer.Event) error { last = e; return nil }
	w.emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: "before"})
	got, err := w.Run(t.Context(), w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, "")))
	if err == nil || got.Result != "unknown" || got.ErrorClass != "kms" {
		t.Errorf("%+v, %v", got, err)
	}
	if last.Step != importer.StepOutcome || last.Fields[0] != (importer.Field{Name: "result", Value: "unknown"}) || last.Message != got.Error {
		t.Errorf("the last record is %+v", last)
	}
}

// TestRevokeUnknown: what is not known of a deletion is told as that.
func TestRevokeUnknown(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	w.token.add(t, "k", wrapping.HMAC256)
	r := w.request("k", wrapping.HMAC256, w.destination(wrapping.HMAC256, ""))
	w.mustRun(r)
	w.emu.AddFault(kmsemu.Fault{Operation: "DeleteImportedKeyMaterial", Cut: "before", Times: forEver})
	n, err := w.Revoke(t.Context(), r)
	if err == nil || n != 0 || importer.Class(err) != "kms" || !kmsclient.OutcomeUnknown(err) || !strings.Contains(err.Error(), "whether KMS deleted all key material of k is not known") {
		t.Errorf("%d deleted, %v", n, err)
	}
	w.emu.ClearFaults()
	if n, err := w.Revoke(t.Context(), r); n != 1 || err != nil {
		t.Errorf("again: %d deleted, %v", n, err)
	}
}

// TestRotationInterrupted: KMS was asked, and the next try looks.
func TestRotationInterrupted(t *testing.T) {
	w := newWorld(t, kmsemu.Options{Wrappers: oneWrapper()})
	arn := w.destination(wrapping.SymmetricDefault, "")
	w.rotated(arn)
	w.token.add(t, "d", wrapping.SymmetricDefault)
	r := w.generation("d", arn)
	r.New = true
	r.KeyMaterialID = w.mustRun(r).KeyMaterialID
	ctx, cancel := context.WithCancel(t.Context())
	w.Record = func(_ context.Context, e importer.Event) error {
		if e.Step == importer.StepRotate {
			w.emu.AddFault(kmsemu.Fault{Operation: "ListKeyRotations", Code: "AccessDeniedException", Times: forEver})
		}
		return nil
	}
	var pending *importer.RotationPendingError
	if err := w.Rotate(t.Context(), r); err == nil || !strings.Contains(err.Error(), "KMS was asked to rotate "+arn) || kmsclient.Code(err) != "AccessDeniedException" {
		t.Errorf("nobody can look: %v", err)
	}
	w.emu.ClearFaults()
	w.token.add(t, "e", wrapping.SymmetricDefault)
	r = w.generation("e", arn)
	r.New = true
	r.KeyMaterialID = w.mustRun(r).KeyMaterialID
	w.Record = func(context.Context, importer.Event) error { return nil }
	w.KMS = func(context.Context, string) (importer.KMS, error) { return rotating{w.kms, cancel}, nil }
	if err := w.Rotate(ctx, r); !errors.As(err, &pending) {
		t.Errorf("interrupted: %v", err)
	}
	w.KMS = w.clientFor
	if err := w.Rotate(t.Context(), r); err != nil {
		t.Errorf("again: %v", err)
	}
}

// rotating is interrupted when KMS was asked to rotate.
type rotating struct {
	importer.KMS
	cancel func()
}

func (r rotating) RotateKeyOnDemand(ctx context.Context, arn string) error {
	err := r.KMS.RotateKeyOnDemand(ctx, arn)
	r.cancel()
	return err
}
