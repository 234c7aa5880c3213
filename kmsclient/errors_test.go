package kmsclient

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Every row that is about an answer of KMS, over the wire: each of its codes, for its operation.
func TestErrorTableOverTheWire(t *testing.T) {
	ours := []string{ // codes that this package makes
		codeUnavailable, codeNoCredentials, codeRefused, codeDNS, codeUnreachable, codeTLS, codeTimeout, codeCut, codeNotKMS, codeCanceled,
		"WrongRegion", "NoRegion", "InvalidRegion", "ProfileNotFound", "InsecureEndpoint", "InvalidConfiguration",
	}
	for i, r := range errorTable() {
		codes := strings.Fields(r.codes)
		if len(codes) == 0 && r.status > 0 {
			codes = []string{"SomethingNewException"}
		}
		status := http.StatusBadRequest
		if r.class == ClassKMS && r.retryable && !strings.HasPrefix(r.codes, "Throttling") {
			status = http.StatusInternalServerError
		}
		op := r.op
		if op == "" {
			op = opSign // an operation that has no rows of its own
		}
		for _, code := range codes {
			if slices.Contains(ours, code) {
				continue
			}
			t.Run(string(op)+"/"+code, func(t *testing.T) {
				s := newServer(t, fails(t, status, "com.amazonaws.kms#"+code+":http://internal.example/", "what KMS said"))
				c := newTestClient(t, s.URL, func(c *Config) { c.MaxAttempts = 1 })
				err := operations(c)[op](t)
				e, ok := errors.AsType[*Error](err)
				if !ok {
					t.Fatalf("got %T %v", err, err)
				}
				unknown := op.changes() && status >= 500
				switch {
				case e.Code != code, e.Class() != r.class, e.Status != status, e.RequestID != "request-1", e.Message != "what KMS said", e.Err != nil:
					t.Errorf("got %#v", e)
				case e.Retryable != (r.retryable && !unknown), e.OutcomeUnknown != unknown:
					t.Errorf("Retryable %t, OutcomeUnknown %t", e.Retryable, e.OutcomeUnknown)
				}
				if i != slices.IndexFunc(errorTable(), func(other row) bool { return other == r }) {
					t.Errorf("row %d stands twice", i)
				}
				text := err.Error()
				prefix := string(op)
				if op != opCreateKey {
					prefix += " on 1234abcd-12ab-34cd-56ef-1234567890ab"
				}
				if !strings.HasPrefix(text, prefix+": "+code+": "+e.Cause+" (what KMS said); "+e.Fix) || !strings.HasSuffix(text, " (request request-1)") {
					t.Errorf("text: %s", text)
				}
				if strings.ContainsAny(e.Cause+e.Fix, "{}") || e.Cause == "" || e.Fix == "" {
					t.Errorf("cause %q, fix %q", e.Cause, e.Fix)
				}
			})
		}
	}
}

// A row that an earlier one hides is never read by anybody.
func TestErrorTableRowsAreReached(t *testing.T) {
	ops := []operation{"configuration"}
	for op := range operations(nil) {
		ops = append(ops, op)
	}
	for i, r := range errorTable() {
		codes := strings.Fields(r.codes)
		if len(codes) == 0 {
			codes = []string{"SomethingNewException"}
		}
		for _, code := range codes {
			reached := slices.ContainsFunc(ops, func(op operation) bool { return lookUp(op, diagnosis{code: code, status: r.status}) == r })
			if !reached {
				t.Errorf("row %d, code %s, operation %q is never found", i, code, r.op)
			}
		}
		if r.class != ClassCaller && r.class != ClassKMS {
			t.Errorf("row %d has class %q", i, r.class)
		}
		for _, text := range []string{r.cause, r.fix} {
			if text == "" || strings.HasSuffix(text, ".") {
				t.Errorf("row %d: text %q", i, text)
			}
		}
		if r.op != "" && !slices.Contains(ops, r.op) {
			t.Errorf("row %d: operation %q is never called", i, r.op)
		}
	}
}

func TestIsUnsupportedOperation(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"no error", nil, false},
		{"another error", errors.New("other"), false},
		{"unsupported", &Error{Op: "Sign", Code: "UnsupportedOperationException", Status: 400}, true},
		{"unknown operation", &Error{Op: "Sign", Code: "UnknownOperationException", Status: 400}, true},
		{"wrapped", errors.Join(errors.New("list"), &Error{Code: "UnknownOperationException"}), true},
		{"the parameter is unknown", &Error{Op: "ListKeyRotations", Code: "ValidationException", Status: 400}, true},
		{"a value is wrong", &Error{Op: "ImportKeyMaterial", Code: "ValidationException", Status: 400}, false},
		{"501", &Error{Op: "ListKeyRotations", Code: "InternalFailure", Status: 501}, true},
		{"404 of a web server", &Error{Op: "ListKeyRotations", Code: codeNotKMS, Status: 404}, true},
		{"404 of KMS", &Error{Op: "ListKeyRotations", Code: "NotFoundException", Status: 404}, false},
		{"denied", &Error{Op: "ListKeyRotations", Code: "AccessDeniedException", Status: 400}, false},
	} {
		if got := IsUnsupportedOperation(tc.err); got != tc.want {
			t.Errorf("%s: got %t", tc.name, got)
		}
	}
}

// What a service echoes of a request goes nowhere.
func TestMessagesHoldNoSecrets(t *testing.T) {
	token := strings.Repeat("QUJDREVG", 100)
	for _, tc := range []struct{ name, message, want string }{
		{"plain", "User: arn:aws:iam::111122223333:user/a is not authorized", "User: arn:aws:iam::111122223333:user/a is not authorized"},
		{"a material ID stays", "material " + strings.Repeat("ab", 32) + " is not known", "material " + strings.Repeat("ab", 32) + " is not known"},
		{"first line only", "the signature does not match\n\nx-amz-date:1\nx: " + token, "the signature does not match"},
		{"canonical string", "The Canonical String should have been 'POST / x-amz-security-token:" + sessionToken + "'", ""},
		{"authorization header", "'AKIDTEST' not a valid key=value pair in Authorization header: 'AWS4-HMAC-SHA256 Credential=AKIDTEST'", ""},
		{"value in a validation error", "Value '" + token + "' at 'importToken' failed", "Value '[800 characters]' at 'importToken' failed"},
		{"control characters", "a\x1b[31mb\x00", "a[31mb"},
		{"too long", strings.Repeat("word ", 200), strings.Repeat("word ", 80) + "..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, fails(t, http.StatusBadRequest, "SomeException", tc.message))
			c := newTestClient(t, s.URL)
			_, err := c.DescribeKey(t.Context(), testARN)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Message != tc.want {
				t.Errorf("got %q, want %q", e.Message, tc.want)
			}
		})
	}
}

func TestCodeIsStripped(t *testing.T) {
	for in, want := range map[string]string{
		"NotFoundException":                                       "NotFoundException",
		"com.amazonaws.kms#NotFoundException":                     "NotFoundException",
		"NotFoundException:http://internal.amazon.com/coral/kms/": "NotFoundException",
		"aws.kms#NotFoundException:http://x/#y":                   "NotFoundException",
		"Bad\nCode<script>":                                       "BadCodescript",
		strings.Repeat("a", 500):                                  strings.Repeat("a", 100),
		"":                                                        "",
	} {
		if got := cleanCode(in); got != want {
			t.Errorf("cleanCode(%q) = %q, want %q", in, got, want)
		}
	}
}
