package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// Every row is the first for something, and its times make sense.
func TestRulesAreReached(t *testing.T) {
	table := rules()
	for i, r := range table {
		codes := strings.Fields(r.codes)
		if len(codes) == 0 {
			codes = []string{"SomethingNew"}
		}
		for _, code := range codes {
			reached := false
			for _, class := range []string{r.class, "caller", "session", "token", "library", "kms", "database", ""} {
				reached = reached || (r.class == "" || r.class == class) && find(code, class) == r
			}
			if !reached {
				t.Errorf("row %d, code %s is never found", i, code)
			}
		}
		switch {
		case r.do == again || r.do == rest || r.do == replace:
			if r.first <= 0 || r.most < r.first || r.most > 6*time.Hour {
				t.Errorf("row %d waits from %s to %s", i, r.first, r.most)
			}
		case r.first != 0:
			t.Errorf("row %d is not tried again and waits %s", i, r.first)
		}
	}
}

// A PIN is never tried twice, a refusal never repeated, what passes by itself is tried for ever.
func TestPolicy(t *testing.T) {
	for _, tc := range []struct {
		codes, class string
		want         action
	}{
		{"CKR_PIN_INCORRECT CKR_PIN_LOCKED CKR_PIN_EXPIRED CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_USER_PIN_NOT_INITIALIZED PINRefused ModuleDies UnsafeOutput", "token", park},
		{"HSMCallTimeout HSMProcessDied HSMProtocol", "session", again},
		{"CKR_DEVICE_REMOVED CKR_TOKEN_NOT_PRESENT CKR_DEVICE_ERROR CKR_SLOT_ID_INVALID PINUnavailable", "token", rest},
		{"CKR_SESSION_HANDLE_INVALID CKR_SESSION_CLOSED", "session", again},
		{"CKR_GENERAL_ERROR CKR_FUNCTION_FAILED CKR_SESSION_COUNT", "token", again},
		{"CKR_CRYPTOKI_NOT_INITIALIZED", "library", replace},
		{"IncorrectKeyMaterialException InvalidCiphertextException ValidationException UnsupportedOperationException LimitExceededException", "caller", stop},
		{"NotTheSameKey", "kms", stop},
		{"", "caller", stop},
		{"ThrottlingException HeldBack KMSInternalException DependencyTimeoutException ServiceUnavailable Timeout ConnectionCut ConnectionRefused DNSFailure Unreachable", "kms", again},
		{"ExpiredImportTokenException InvalidImportTokenException AccessDeniedException NotFoundException KMSInvalidStateException NoCredentials ExpiredTokenException RequestTimeTooSkewed", "caller", again},
		{"NoBackup", "caller", again},
		{"ClockSkew RotationPending", "kms", again},
		{"Database", "database", again},
		{"", "", again},
	} {
		codes := strings.Fields(tc.codes)
		if len(codes) == 0 {
			codes = []string{""}
		}
		for _, code := range codes {
			if r := find(code, tc.class); r.do != tc.want {
				t.Errorf("%s of class %q: %d, want %d", code, tc.class, r.do, tc.want)
			}
		}
	}
}

func TestDelay(t *testing.T) {
	r := rule{first: 10 * time.Second, most: time.Minute}
	for attempts, want := range map[int64]time.Duration{0: 10 * time.Second, 1: 10 * time.Second, 2: 20 * time.Second, 3: 40 * time.Second, 4: time.Minute, 1000000: time.Minute} {
		if got := r.delay(attempts); got != want {
			t.Errorf("after %d attempts %s, want %s", attempts, got, want)
		}
	}
}

type coded struct{ code, class string }

func (c coded) Error() string { return c.code }
func (c coded) CKR() string   { return c.code }
func (c coded) Class() string { return c.class }

func TestJudge(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	r := &Runner{Now: func() time.Time { return now }}
	for _, tc := range []struct {
		name   string
		job    store.Job
		err    error
		state  store.State
		person bool
		do     action
	}{
		{"wrong PIN", store.Job{Attempts: 1}, coded{"CKR_PIN_INCORRECT", "token"}, store.Waiting, true, park},
		{"removed", store.Job{Attempts: 1}, coded{"CKR_DEVICE_REMOVED", "token"}, store.Waiting, false, rest},
		{"refused", store.Job{Attempts: 1}, &importer.RefusedError{Key: "k"}, store.Failed, true, stop},
		{"not the same key", store.Job{Attempts: 1}, &importer.MismatchError{Key: "k"}, store.Failed, true, stop},
		{"throttled", store.Job{Attempts: 50}, &kmsclient.Error{Code: "ThrottlingException"}, store.Waiting, false, again},
		{"refused token of KMS", store.Job{Attempts: 2}, &kmsclient.Error{Code: "InvalidImportTokenException"}, store.Waiting, false, again},
		{"refused token of KMS, again and again", store.Job{Attempts: 5}, &kmsclient.Error{Code: "InvalidImportTokenException"}, store.Failed, true, stop},
		{"revoked meanwhile", store.Job{}, fmt.Errorf("step: %w", store.ErrRevoked), store.Cancelled, false, stop},
		{"cancelled", store.Job{}, store.ErrCancelled, store.Cancelled, false, stop},
		{"a revocation that is refused", store.Job{Kind: store.KindRevoke, Attempts: 3}, &kmsclient.Error{Code: "ValidationException"}, store.Waiting, true, again},
		{"stopping", store.Job{}, fmt.Errorf("step: %w", errStopping), store.Queued, false, again},
		{"rotation pending", store.Job{Attempts: 1}, &importer.RotationPendingError{}, store.Waiting, false, again},
		{"something new", store.Job{Attempts: 1}, errors.New("what is this"), store.Waiting, true, again},
	} {
		v := r.judge(context.Background(), tc.job, tc.err)
		if v.outcome.State != tc.state || v.outcome.NeedsPerson != tc.person || v.do != tc.do {
			t.Errorf("%s: state %s, person %t, action %d", tc.name, v.outcome.State, v.outcome.NeedsPerson, v.do)
		}
		if waits := v.outcome.State == store.Waiting; waits != v.outcome.NotBefore.After(now) {
			t.Errorf("%s: %s until %s", tc.name, v.outcome.State, v.outcome.NotBefore)
		}
	}
}

// What failed together is not tried together.
func TestJitter(t *testing.T) {
	r := &Runner{Now: time.Now}
	seen := map[time.Duration]bool{}
	now := time.Now()
	r.Now = func() time.Time { return now }
	for id := range int64(10) {
		v := r.judge(context.Background(), store.Job{ID: id, Attempts: 5}, &kmsclient.Error{Code: "ThrottlingException"})
		seen[v.outcome.NotBefore.Sub(now)] = true
	}
	if len(seen) != 10 {
		t.Errorf("ten jobs are tried again at %d times", len(seen))
	}
}
