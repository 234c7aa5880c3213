package fleet

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// A standing approval is for the same material by the same way into the same KMS key, until its date, and ends when it is withdrawn, when the
// configuration allows none any more, and with a revocation.
func TestStanding(t *testing.T) {
	t.Parallel()
	x := watch(t, func(w *world) { w.key("k", wrapping.SymmetricDefault, "prove: true") })
	x.key = "k"
	ctx := t.Context()
	first := x.asked()
	if _, err := x.client.Standing(ctx, "k", control.StandingRequest{For: "60d", Why: "too early"}); err == nil || !strings.Contains(err.Error(), "does not hold material of k") {
		t.Errorf("a standing approval of what was never imported: %v", err)
	}
	x.approve(first)
	until(t, "the import", func() bool { return x.last(ctx).State == store.Done })
	stand := func() control.Request {
		t.Helper()
		list, err := x.client.Standing(ctx, "k", control.StandingRequest{For: "60d", Why: "this quarter"})
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0]
	}
	drill := func() {
		t.Helper()
		if _, err := x.client.Start(ctx, control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport, Drill: true}); err != nil {
			t.Fatal(err)
		}
	}
	// wraps does something and says how often the token was told to wrap, and whether officers are asked now.
	wraps := func(f func()) (n int, asks bool) {
		t.Helper()
		before, latest := x.wraps.count("k"), x.last(ctx).ID
		f()
		until(t, "what comes of it", func() bool {
			j := x.last(ctx)
			asks = false
			for _, r := range x.open(ctx, x.client) {
				asks = asks || r.Job == j.ID
			}
			return j.ID > latest && j.State == store.Done || asks && j.State == store.Waiting
		})
		if asks {
			x.end(ctx)
		}
		return x.wraps.count("k") - before, asks
	}
	want := func(what string, f func(), asks bool) {
		t.Helper()
		n, asked := wraps(f)
		if asked != asks || (n == 0) != asks {
			t.Errorf("%s: %d wraps, officers are asked: %t", what, n, asked)
		}
	}
	want("a drill before there is one", drill, true)
	r := stand()
	want("a drill while it waits for officers", drill, true)
	sig, err := x.sign(0, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.client.Approve(ctx, r.Name, sig); err != nil {
		t.Fatal(err)
	}
	want("a drill with one approval of it", drill, true)
	sig, err = x.sign(1, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.client.Approve(ctx, r.Name, sig); err != nil {
		t.Fatal(err)
	}
	want("a drill", drill, false)
	want("another", drill, false)
	want("other material", func() {
		if _, err := x.client.Start(ctx, control.StartRequest{Keys: []string{"k"}, Kind: store.KindRotate}); err != nil {
			t.Fatal(err)
		}
	}, true)
	configured := readFile(t, x.path)
	for _, c := range []struct{ what, old, now string }{
		{"another expiry", "expires: 90d", "expires: 80d"},
		{"the configuration allows none", "  standing: 90d\n", ""},
		{"the configuration allows a shorter one", "standing: 90d", "standing: 30d"},
		{"three have to approve", "threshold: 2", "threshold: 3"},
		{"other officers", publicLine(x.signers[0].PublicKey()), publicLine(newSigner(t).PublicKey())},
	} {
		x.reconfigure(c.old, c.now)
		want(c.what, drill, true)
		x.configure(configured)
	}
	want("a drill, when all is as it was", drill, false)
	if _, err := x.client.Withdraw(ctx, r.Name, "over"); err != nil {
		t.Fatal(err)
	}
	want("a drill after it was withdrawn", drill, true)

	r = stand()
	x.approve(r)
	want("a drill by the next one", drill, false)
	if _, err := x.client.Revoke(ctx, "k", control.ReasonRequest{Reason: "incident", Confirm: "k"}); err == nil || !strings.Contains(err.Error(), "officers have to approve it, and were asked") {
		t.Errorf("the key was revoked without officers: %v", err)
	}
	for _, q := range x.open(ctx, x.client) {
		if q.Purpose == "revoke" {
			x.approve(q)
		}
	}
	until(t, "the revocation", func() bool { j := x.last(ctx); return j.Kind == store.KindRevoke && j.State == store.Done })
	if q, err := x.client.Request(ctx, r.Name); err != nil || q.State != store.RequestWithdrawn || q.Reason != "the key was revoked" {
		t.Errorf("the standing approval of a revoked key is %s (%s), %v", q.State, q.Reason, err)
	}
	want("the revocation is taken back", func() {
		if err := x.client.Restore(ctx, "k"); err != nil {
			t.Fatal(err)
		}
	}, true)

	drill()
	x.approve(x.asked())
	until(t, "the import", func() bool { return x.last(ctx).State == store.Done })
	r = stand()
	x.approve(r)
	want("a drill by the third", drill, false)
	x.clock.Store(int64(61 * 24 * time.Hour))
	late, err := x.sign(2, r.Text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.client.Approve(ctx, r.Name, late); err == nil || !strings.Contains(err.Error(), "is not open any more: it was valid until") && !strings.Contains(err.Error(), "is expired since") {
		t.Errorf("a signature that comes too late: %v", err)
	}
	want("a drill after its date", drill, true)
}

// Whoever sets AWS_ENDPOINT_URL_KMS for the daemon decides who gives the wrapping public key: officers read where it really calls.
func TestOfficersReadTheEndpoint(t *testing.T) {
	x := watch(t, func(w *world) {
		w.key("k", wrapping.HMAC256)
		t.Setenv("AWS_ENDPOINT_URL_KMS", w.url)
	})
	x.key = "k"
	first := x.asked()
	x.reconfigure("endpoint: \""+x.url+"\"", "region: eu-central-1")
	x.end(t.Context())
	if _, err := x.client.Start(t.Context(), control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport}); err != nil {
		t.Fatal(err)
	}
	var r control.Request
	until(t, "another request", func() bool { r = x.asked(); return r.Name != first.Name })
	if !strings.Contains(r.Text, "\nKMS endpoint:         "+x.url+"\n") {
		t.Errorf("it does not stand in the text:\n%s", r.Text)
	}
}

// The environment names one endpoint when a job makes its KMS client, and another one when it is decided whether the job may wrap. Officers have approved that one: the
// first is asked for no wrapping public key.
func TestEndpointOfTheClientThatIsUsed(t *testing.T) {
	const variable = "AWS_ENDPOINT_URL_KMS"
	x := watch(t, func(w *world) {
		w.key("k", wrapping.HMAC256)
		t.Setenv(variable, w.url)
	})
	x.key = "k"
	x.reconfigure("endpoint: \""+x.url+"\"", "region: eu-central-1")
	first := x.asked()
	x.end(t.Context())
	if _, err := x.client.Start(t.Context(), control.StartRequest{Keys: []string{"k"}, Kind: store.KindImport}); err != nil {
		t.Fatal(err)
	}
	var r control.Request
	until(t, "the request by the environment", func() bool { r = x.asked(); return r.Name != first.Name })
	change := func(url string) {
		t.Setenv(variable, url)
		if err := x.client.Reload(t.Context()); err != nil {
			t.Error(err)
		}
	}
	var looks atomic.Int64
	var asked atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		op := strings.TrimPrefix(q.Header.Get("X-Amz-Target"), "TrentService.")
		if op == "DescribeKey" && looks.Add(1) == 2 { // the job looks what is to be done, and then the import what it is about to change
			change(x.url)
		}
		if op == "GetParametersForImport" {
			asked.Store(true)
		}
		x.serve(rw, q)
	}))
	defer other.Close()
	until(t, "the job to wait", func() bool { return x.last(t.Context()).State == store.Waiting })
	change(other.URL)
	x.approve(r)
	until(t, "the job to look at KMS, and to end or to wait again", func() bool {
		list, err := x.client.Jobs(t.Context(), store.JobFilter{Key: "k"})
		return err == nil && looks.Load() > 1 && list[0].Attempts > 1 && (list[0].State == store.Done || list[0].State == store.Waiting)
	})
	if asked.Load() || x.wraps.count("k") != 0 {
		t.Errorf("KMS at the other endpoint was asked for a wrapping public key: %t; wraps: %d", asked.Load(), x.wraps.count("k"))
	}
}
