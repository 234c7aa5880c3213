package fleet

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/postgres"
	"hsmbridge/test/softhsm"
)

// waits gives the open job of a key when it waits.
func (p *process) waits(t *testing.T, key string) store.Job {
	t.Helper()
	return waits(t, p.client, key)
}

func waits(t *testing.T, c *control.Client, key string) (j store.Job) {
	t.Helper()
	until(t, "a job that waits", func() bool {
		list, err := c.Jobs(t.Context(), store.JobFilter{Key: key, Open: true})
		if err != nil || len(list) == 0 || list[0].State != store.Waiting {
			return false
		}
		j = list[0]
		return true
	})
	return j
}

// destination is what a daemon knows of a key's first destination.
func (p *process) destination(key string) store.Destination {
	p.t.Helper()
	list, err := p.client.Keys(p.t.Context(), key)
	if err != nil {
		p.t.Fatal(err)
	}
	return list[0].Destinations[0]
}

// The database is lost, of a key that was rotated. A daemon with an empty one finds out by itself what KMS and the token hold, and then
// restores what is deleted behind its back.
func TestDatabaseLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault)
	mac := w.key("mac", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	p.ask(store.KindRotate, "k", false)
	p.settled()
	before, err := p.client.Keys(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if d := before[0].Destinations[0]; d.ImportedAt.IsZero() || !d.FirstSeenAt.IsZero() {
		t.Errorf("what was imported is %s", asJSON(d))
	}
	p.kill()
	w.loseDatabase()
	p = w.start("one", "")
	for _, j := range p.settled() {
		if j.State != store.Done {
			t.Errorf("a job ended as %s", asJSON(j))
		}
	}
	for _, name := range []string{"k", "mac"} { // proved anew, for k by a second wrap that KMS took
		if d := p.destination(name); !d.ImportedAt.IsZero() || d.FirstSeenAt.IsZero() || d.Proof == "unproved" {
			t.Errorf("what the lost database knew to have been imported is %s", asJSON(d))
		}
	}
	p.ask(store.KindReconcile, "k", false)
	p.settled()
	after, err := p.client.Keys(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range before[0].Materials {
		if len(after[0].Materials) != 2 || after[0].Materials[i].Object != m.Object || after[0].Materials[i].CheckValue != m.CheckValue || after[0].Materials[i].IDs[arn] != m.IDs[arn] {
			t.Fatalf("known before: %s, after: %s", asJSON(before[0].Materials), asJSON(after[0].Materials))
		}
	}
	for _, m := range w.materials(arn) {
		if err := w.client.DeleteImportedKeyMaterial(t.Context(), arn, m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.client.DeleteImportedKeyMaterial(t.Context(), mac, ""); err != nil {
		t.Fatal(err)
	}
	p.ask(store.KindReconcile, "k", false) // looks, and the planner then sees what is gone
	p.ask(store.KindReconcile, "mac", false)
	until(t, "the restoration", func() bool { return w.emu.State(arn) == "Enabled" && w.emu.State(mac) == "Enabled" })
	p.settled()
	for _, name := range []string{"k", "mac"} {
		if d := p.destination(name); d.ImportedAt.IsZero() || !d.FirstSeenAt.IsZero() {
			t.Errorf("what was restored is %s", asJSON(d))
		}
	}
	p.kill()
	if got := w.objects(); got["k"] != 1 || got["k.2"] != 1 || got["mac"] != 1 || len(got) != 3 {
		t.Errorf("the token holds %v", got)
	}
}

// A key whose material KMS had, and whose object is gone from the token, is not made anew: a person is asked.
func TestLostObjectIsNotGenerated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("mac", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	w.token.Tool(t, "--login", "--pin", w.token.PIN, "--delete-object", "--type", "secrkey", "--label", "mac")
	if err := w.client.DeleteImportedKeyMaterial(t.Context(), arn, ""); err != nil {
		t.Fatal(err)
	}
	p.ask(store.KindImport, "mac", false)
	jobs := p.settled()
	if last := jobs[len(jobs)-1]; last.State != store.Failed || !strings.Contains(last.Error, "find mac in the token") && !strings.Contains(last.Error, "is not in the token") {
		t.Errorf("the job is %s", asJSON(last))
	}
	s, err := p.client.Status(t.Context())
	if err != nil || len(s.People) != 1 || s.People[0].Retry != "hsmbridge retry mac" {
		t.Errorf("who is asked: %s, %v", asJSON(s.People), err)
	}
	p.kill()
	if got := w.objects(); len(got) != 0 {
		t.Errorf("the token holds %v", got)
	}
}

// secret is a key that this test knows.
const secret = "0123456789abcdef0123456789abcdef"

// known puts it into a token.
func known(t *testing.T, tok softhsm.Token, label string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	tok.Tool(t, "--login", "--pin", tok.PIN, "--write-object", file, "--type", "secrkey", "--key-type", "AES:32", "--label", label, "--id", "01", "--sensitive", "--extractable", "--usage-decrypt")
}

// What was revoked goes again, whoever brought it back.
func TestRevokedComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault)
	known(t, w.token, "k")
	p := w.start("one", "")
	p.settled()
	if _, err := p.client.Revoke(t.Context(), "k", control.ReasonRequest{Reason: "test", Confirm: "k"}); err != nil {
		t.Fatal(err)
	}
	p.settled()
	if state := w.emu.State(arn); state != "PendingImport" {
		t.Fatalf("after the revocation the key is %s", state)
	}
	if _, err := p.client.Start(t.Context(), control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport}); err == nil || !strings.Contains(err.Error(), "hsmbridge restore k") {
		t.Errorf("an import of a revoked key: %v", err)
	}
	params, err := w.client.GetParametersForImport(t.Context(), arn, "RSAES_OAEP_SHA_256", "RSA_4096")
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, params.PublicKey, []byte(secret), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.ImportKeyMaterial(t.Context(), kmsclient.ImportRequest{KeyARN: arn, ImportToken: params.ImportToken, EncryptedKeyMaterial: wrapped}); err != nil {
		t.Fatal(err)
	}
	p.ask(store.KindReconcile, "k", false) // looks at KMS, as the daemon does by itself from time to time
	until(t, "the second deletion", func() bool { return w.emu.State(arn) == "PendingImport" })
	p.settled()
	if err := p.client.Restore(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	until(t, "the restoration", func() bool { return w.emu.State(arn) == "Enabled" })
}

// A paused key's waiting job waits until the key is resumed.
func TestPausedWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.HMAC256)
	for range 3 {
		w.emu.AddFault(kmsemu.Fault{Operation: "GetParametersForImport", Code: "KMSInternalException", Status: 500, Times: 5})
	}
	p := w.start("one", "")
	j := p.waits(t, "k")
	for i := range 2 {
		if changed, err := p.client.Pause(t.Context(), "k", false); err != nil || changed != (i == 0) {
			t.Fatalf("pause %d: %t, %v", i+1, changed, err)
		}
	}
	if err := p.client.Job(t.Context(), "retry", j.ID); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if again := p.waits(t, "k"); again.Attempts != j.Attempts || w.emu.State(arn) != "PendingImport" {
		t.Errorf("a paused key's job: %s", asJSON(again))
	}
	for i := range 2 {
		if changed, err := p.client.Pause(t.Context(), "k", true); err != nil || changed != (i == 0) {
			t.Fatalf("resume %d: %t, %v", i+1, changed, err)
		}
	}
	until(t, "an attempt", func() bool {
		list, err := p.client.Jobs(t.Context(), store.JobFilter{ID: j.ID})
		return err == nil && len(list) == 1 && list[0].Attempts > j.Attempts
	})
}

// A key that is only in one token is not imported when the configuration asks for a second, until there is a copy or an officer says so.
func TestBackupGate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	second := w.token.Add(t, "backup")
	w.tokens = fmt.Sprintf("  - name: backup\n    module: %q\n    uri: \"pkcs11:token=backup\"\n    pin_file: %q\n    environment: {SOFTHSM2_CONF: %q}\n",
		second.Module, second.PINFile(t), second.Environment["SOFTHSM2_CONF"])
	copied := w.key("copied", wrapping.SymmetricDefault, "backup: {token: backup}")
	waived := w.key("waived", wrapping.HMAC256, "backup: {token: backup}")
	write := func(tok softhsm.Token) { known(t, tok, "copied") }
	write(w.token)
	p := w.start("one", "")
	for _, key := range []string{"copied", "waived"} {
		if j := p.waits(t, key); j.ErrorCode != "NoBackup" || !strings.Contains(j.Error, "token backup does not show a copy") {
			t.Errorf("the job is %s", asJSON(j))
		}
	}
	if n := w.emu.Count("ImportKeyMaterial"); n != 0 {
		t.Errorf("%d imports without a backup", n)
	}
	p.kill()
	write(second)
	p = w.start("one", "")
	if _, err := p.client.Retry(t.Context(), "copied"); err != nil {
		until(t, "the start", func() bool { _, err := p.client.Retry(t.Context(), "copied"); return err == nil })
	}
	until(t, "the import of the copied key", func() bool { return w.emu.State(copied) == "Enabled" })
	if err := p.client.Waive(t.Context(), "copied", ""); err == nil {
		t.Error("a waiver without a reason was taken")
	}
	if err := p.client.Waive(t.Context(), "waived", "the second HSM comes in May"); err != nil {
		t.Fatal(err)
	}
	until(t, "the import of the waived key", func() bool { return w.emu.State(waived) == "Enabled" })
	if !slices.ContainsFunc(p.events("waived"), func(e store.Event) bool {
		return e.Kind == "waiver" && e.Actor == "root" && strings.Contains(e.Message, "the second HSM comes in May")
	}) {
		t.Error("the waiver is not in the record")
	}
}

// A multi-Region key: the primary and its replica get the same material, and are rotated together.
func TestReplicasRotate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	key, err := w.client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "SYMMETRIC_DEFAULT", MultiRegion: true})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url, strings.NewReader(fmt.Sprintf(`{"KeyId":%q,"ReplicaRegion":"us-east-1"}`, key.ARN)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "TrentService.ReplicateKey")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/kms/aws4_request")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	replica := strings.Replace(key.ARN, "eu-central-1", "us-east-1", 1)
	w.manage("k", wrapping.SymmetricDefault, []string{replica, key.ARN}) // the replica stands first
	p := w.start("one", "")
	until(t, "the imports", func() bool { return w.emu.State(key.ARN) == "Enabled" && w.emu.State(replica) == "Enabled" })
	p.settled()
	p.ask(store.KindRotate, "k", false)
	jobs := p.settled()
	if last := jobs[len(jobs)-1]; last.State != store.Done {
		t.Fatalf("the job is %s", asJSON(last))
	}
	keys, err := p.client.Keys(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	m := keys[0].Materials
	if len(m) != 2 || m[1].IDs[key.ARN] == "" || m[1].IDs[key.ARN] != m[1].IDs[replica] || m[1].Current.IsZero() {
		t.Errorf("the materials are %s", asJSON(m))
	}
	for _, d := range keys[0].Destinations {
		if d.MaterialID != m[1].IDs[key.ARN] || d.Rotations != 1 || !d.Present {
			t.Errorf("the destination is %s", asJSON(d))
		}
	}
}

// Destinations in other accounts are reached through their roles.
func TestRoles(t *testing.T) {
	t.Parallel()
	const role = "arn:aws:iam::111122223333:role/hsmbridge"
	w := newWorld(t, kmsemu.Options{Roles: map[string]string{role: "the-external-id"}})
	info, err := w.client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
	if err != nil {
		t.Fatal(err)
	}
	w.manage("k", wrapping.HMAC256, []string{info.ARN})
	w.keys[0] = strings.Replace(w.keys[0], `["`+info.ARN+`"]`, fmt.Sprintf("[{arn: %q, role_arn: %q, external_id: the-external-id}]", info.ARN, role), 1)
	p := w.start("one", "", "AWS_ENDPOINT_URL_STS="+w.url)
	if jobs := p.settled(); jobs[0].State != store.Done {
		t.Fatalf("the job is %s", asJSON(jobs[0]))
	}
	for _, r := range w.emu.Requests() {
		if r.KeyID == info.ARN && r.Role != role {
			t.Errorf("the request %+v was not made in the role", r)
		}
	}
}

// Two daemons share one queue of requests: AWS's default quotas, which the emulator enforces, are never hit.
func TestQuotasAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{Quotas: true})
	w.quotas = true
	for i := range 8 {
		time.Sleep(210 * time.Millisecond) // CreateKey has a quota too
		w.key("k"+itoa(i), wrapping.HMAC256)
	}
	db := postgres.Shared(t)
	one, two := w.start("one", db), w.start("two", db)
	for _, p := range []*process{one, two} {
		for _, j := range p.settled() {
			if j.State != store.Done || j.Attempts != 1 {
				t.Errorf("a job ended as %s", asJSON(j))
			}
		}
	}
	for _, r := range w.emu.Requests() {
		if strings.Contains(r.Code, "Throttl") {
			t.Errorf("KMS throttled %+v", r)
		}
	}
}

// With a wrong clock nothing is decided: jobs wait, and go on when the clock is right. What was written down under a wrong clock does
// not stop anything for ever.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{-400 * day, -time.Hour, time.Hour, 400 * day} {
		t.Run(jump.String(), func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			arn := w.key("k", wrapping.SymmetricDefault)
			c, err := configs.Load(w.config("one", ""))
			if err != nil {
				t.Fatal(err)
			}
			var off atomic.Int64
			d, err := daemon.New(t.Context(), daemon.Options{
				Config: c, OpenToken: openToken(), Log: zap.NewNop(), Version: "test", Poll: 2 * time.Millisecond, Manual: true, NoSync: true,
				Now:  func() time.Time { return time.Now().Add(time.Duration(off.Load())) },
				Wait: func(context.Context, time.Duration) error { return nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			begin(t, d)
			tick := func() {
				t.Helper()
				if err := d.Tick(t.Context()); err != nil {
					t.Fatal(err)
				}
				drain(t, d)
			}
			tick()
			info, err := w.client.DescribeKey(t.Context(), arn)
			if err != nil || info.State != "Enabled" {
				t.Fatalf("%+v, %v", info, err)
			}
			sent := w.emu.Count("ImportKeyMaterial")
			off.Store(int64(jump))
			if _, err := d.Queue(t.Context(), "root", control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport, Renew: true}); err != nil {
				t.Fatal(err)
			}
			tick()
			if n := w.emu.Count("ImportKeyMaterial"); n != sent {
				t.Errorf("%d imports under a wrong clock", n-sent)
			}
			open, err := d.Jobs(t.Context(), store.JobFilter{Open: true})
			if err != nil || len(open) != 1 || open[0].ErrorCode != "ClockSkew" {
				t.Fatalf("the open jobs are %s, %v", asJSON(open), err)
			}
			off.Store(0)
			if jump < 0 || jump > 8*time.Hour {
				tick() // its time has come, or is absurdly far away
			} else {
				off.Store(int64(2 * time.Minute)) // the real time until its next try
				if err := d.RetryJob(t.Context(), "root", open[0].ID); err != nil {
					t.Fatal(err)
				}
				tick()
			}
			after, err := w.client.DescribeKey(t.Context(), arn)
			if err != nil || !after.ValidTo.After(info.ValidTo.Add(-time.Second)) || w.emu.Count("ImportKeyMaterial") <= sent {
				t.Errorf("with the right clock: %+v, %v, %d imports", after, err, w.emu.Count("ImportKeyMaterial")-sent)
			}
			if list := w.materials(arn); len(list) != 1 {
				t.Errorf("KMS has %s", asJSON(list))
			}
		})
	}
}
