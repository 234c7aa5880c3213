package main

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/failure"
	"hsmbridge/kmsclient"
)

// TestComplain: what happened, and on a line of its own what to do next, for each error of a run.
func TestComplain(t *testing.T) {
	pin := &failure.Error{Op: "C_Login", Name: "CKR_PIN_INCORRECT (0xA0)", ErrClass: failure.ClassToken, Cause: "the PIN is wrong", Fix: "correct the PIN"}
	lost := &kmsclient.Error{Op: "ImportKeyMaterial", Code: "timeout", Cause: "no answer came", Fix: "run it again", OutcomeUnknown: true, RequestID: "r1"}
	refused := &importer.RefusedError{Key: "payments", Reason: "the KMS key has origin AWS_KMS", Fix: "create a KMS key with origin EXTERNAL"}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"plain", errors.New("x; y"), "hsmbridge: x; y\n"},
		{"token", pin, "hsmbridge: C_Login: CKR_PIN_INCORRECT (0xA0): the PIN is wrong\nnext: correct the PIN\n"},
		{"with what it was about", fmt.Errorf("token demo: %w", pin), "hsmbridge: token demo: C_Login: CKR_PIN_INCORRECT (0xA0): the PIN is wrong\nnext: correct the PIN\n"},
		{"nothing to do", &failure.Error{Op: "C_WrapKey", Cause: "the token refused"}, "hsmbridge: C_WrapKey: the token refused\n"},
		{
			"what to do stands in the middle", lost,
			"hsmbridge: ImportKeyMaterial: timeout: no answer came; whether KMS did it all the same is not known: look at the key (DescribeKey) before asking again (request r1)\nnext: run it again\n",
		},
		{"refused", refused, "hsmbridge: payments was not imported: the KMS key has origin AWS_KMS\nnext: create a KMS key with origin EXTERNAL\n"},
		{"what to do was said otherwise", &exitError{exitToken, &silent{pin}}, "hsmbridge: silent\n"},
		{
			"several", &exitError{exitPartly, several([]error{pin, refused, errors.New("z")})},
			"hsmbridge: C_Login: CKR_PIN_INCORRECT (0xA0): the PIN is wrong\nnext: correct the PIN\n" +
				"hsmbridge: payments was not imported: the KMS key has origin AWS_KMS\nnext: create a KMS key with origin EXTERNAL\n" +
				"hsmbridge: z\n",
		},
		{"no escape sequences", &failure.Error{Op: "x\x1b[2J", Fix: "y\x1b[2J"}, `hsmbridge: x\u001b[2J` + "\n" + `next: y\u001b[2J` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said bytes.Buffer
			(&app{err: &said}).complain(tt.err)
			if said.String() != tt.want {
				t.Errorf("said\n%swant\n%s", said.String(), tt.want)
			}
		})
	}
}

// silent is an error whose text has nothing of its cause.
type silent struct{ cause error }

func (s *silent) Error() string { return "silent" }
func (s *silent) Unwrap() error { return s.cause }

func TestSeveral(t *testing.T) {
	one, two := errors.New("one"), classed("token")
	if err := several(nil); err != nil {
		t.Errorf("none of them is %v", err)
	}
	if err := several([]error{one}); !errors.Is(err, one) || err.Error() != "one" {
		t.Errorf("one is %v", err)
	}
	err := several([]error{one, two})
	if !errors.Is(err, one) || err.Error() != "one\nclass token" || codeOf(err) != exitToken {
		t.Errorf("two are %q with exit code %d", err, codeOf(err))
	}
}

func TestSharing(t *testing.T) {
	failed := func(key, err string) importer.Result { return importer.Result{Key: key, Error: err} }
	results := []importer.Result{
		failed("a", "open token"),
		{Key: "b"},
		failed("c", "open token"),
		failed("d", "other"),
		{Key: "e", Mechanism: "CKM_RSA_PKCS_OAEP", Error: "open token"}, // it came as far as a plan, which is shown with it
		{Key: "f"},
		failed("g", "open token"),
	}
	want := [][]string{{"a", "c", "g"}, {"b"}, nil, {"d"}, {"e"}, {"f"}, nil}
	for i := range results {
		var got []string
		for _, r := range sharing(results, i) {
			got = append(got, r.Key)
		}
		if fmt.Sprint(got) != fmt.Sprint(want[i]) {
			t.Errorf("result %d is shown with %v, want %v", i, got, want[i])
		}
	}
}

// TestCountBad: what is not known is counted apart from what failed.
func TestCountBad(t *testing.T) {
	done, failed := importer.Result{Result: importer.Imported}, importer.Result{Result: importer.Failed, Error: "x"}
	unproved, unknown := importer.Result{Result: importer.Imported, Error: "the proof"}, importer.Result{Result: importer.Unknown, Error: "x"}
	for _, tt := range []struct {
		results []importer.Result
		want    string
	}{
		{[]importer.Result{done, failed, unproved}, "2 of 3 destinations failed"},
		{[]importer.Result{done, unknown}, "for 1 of 2 destinations it is not known whether KMS took the key"},
		{[]importer.Result{unknown, failed, unknown}, "1 of 3 destinations failed, for 2 of 3 destinations it is not known whether KMS took the key"},
	} {
		if got := countBad(tt.results); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
