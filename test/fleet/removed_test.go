package fleet

import (
	"context"
	"slices"
	"strings"
	"testing"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// The kill switch also reaches what the configuration has no more: a key that was taken out of it, with all its generations, in the role of
// its account; and a destination of a key that is still there. A KMS key that another managed key feeds now is left alone.
func TestRevokeWhatWasRemoved(t *testing.T) {
	t.Parallel()
	const role = "arn:aws:iam::111122223333:role/hsmbridge"
	w := newWorld(t, kmsemu.Options{Roles: map[string]string{role: "the-external-id"}})
	arn := func(spec string) string {
		info, err := w.client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: spec})
		if err != nil {
			t.Fatal(err)
		}
		return info.ARN
	}
	gone, dropped, kept, moved := arn("SYMMETRIC_DEFAULT"), arn("HMAC_256"), arn("HMAC_256"), arn("HMAC_256")
	inRole := func() {
		for i, k := range w.keys {
			for _, a := range []string{gone, dropped, kept, moved} {
				k = strings.ReplaceAll(k, `"`+a+`"`, `{arn: "`+a+`", role_arn: "`+role+`", external_id: the-external-id}`)
			}
			w.keys[i] = k
		}
	}
	w.manage("gone", wrapping.SymmetricDefault, []string{gone})
	w.manage("fewer", wrapping.HMAC256, []string{dropped, kept, moved})
	inRole()
	p := w.start("one", "", "AWS_ENDPOINT_URL_STS="+w.url)
	p.settled()
	p.ask(store.KindRotate, "gone", false)
	p.settled()
	if n := len(w.materials(gone)); n != 2 {
		t.Fatalf("the KMS key has %d key materials", n)
	}

	w.keys = nil
	w.manage("fewer", wrapping.HMAC256, []string{kept})
	w.manage("other", wrapping.HMAC256, []string{moved})
	inRole()
	w.config("one", "")
	if err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Keys(t.Context(), "fewr"); err == nil || !strings.Contains(err.Error(), "did you mean fewer?") {
		t.Errorf("a slip of the finger: %v", err)
	}
	revoke := func(name string) {
		t.Helper()
		if _, err := p.client.Revoke(t.Context(), name, control.ReasonRequest{Reason: "leak", Confirm: name}); err != nil {
			t.Fatal(err)
		}
		until(t, "the revocation of "+name, func() bool {
			jobs, err := p.client.Jobs(context.Background(), store.JobFilter{Key: name})
			return err == nil && slices.ContainsFunc(jobs, func(j store.Job) bool { return j.Kind == store.KindRevoke && j.State == store.Done })
		})
	}
	revoke("gone")
	for _, m := range w.materials(gone) {
		if m.ImportState != "PENDING_IMPORT" {
			t.Errorf("KMS still has %s", asJSON(m))
		}
	}
	revoke("fewer")
	for name, want := range map[string]string{dropped: "PendingImport", kept: "PendingImport", moved: "Enabled"} {
		if got := w.emu.State(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for _, r := range w.emu.Requests() {
		if r.Operation == "DeleteImportedKeyMaterial" && r.Role != role {
			t.Errorf("%+v was not made in the role", r)
		}
	}
	if _, err := p.client.Revoke(t.Context(), "never", control.ReasonRequest{Reason: "leak", Confirm: "never"}); err == nil || !strings.Contains(err.Error(), "has no key") {
		t.Errorf("a key that never was: %v", err)
	}

	// It stays revoked when it comes back into the configuration.
	w.keys = nil
	w.manage("gone", wrapping.SymmetricDefault, []string{gone})
	inRole()
	w.config("one", "")
	if err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Start(t.Context(), control.StartRequest{Keys: []string{"gone"}, Kind: store.KindImport}); err == nil || !strings.Contains(err.Error(), "was revoked by") {
		t.Errorf("an import of what was revoked: %v", err)
	}
}
