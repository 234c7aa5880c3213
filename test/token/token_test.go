package token_test

import (
	"os"
	"strings"
	"testing"

	"hsmbridge/test/token"
)

// A part that is missing is said to be installable, by name.
func TestMissingParts(t *testing.T) {
	const hint = "is not installed: run `make deps`"
	if _, err := token.Module("libnosuchtoken.so"); err == nil || err.Error() != "libnosuchtoken.so "+hint {
		t.Errorf("missing module: %v", err)
	}
	if _, err := token.Run(t.Context(), nil, "no-such-tool"); err == nil || err.Error() != "no-such-tool "+hint {
		t.Errorf("missing program: %v", err)
	}
}

func TestRunReportsOutput(t *testing.T) {
	_, err := token.Run(t.Context(), os.Environ(), "sh", "-c", "echo said; echo complained >&2; exit 3")
	for _, want := range []string{"exit status 3", "said", "complained"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not hold %q", err, want)
		}
	}
}

func TestSetenvEndsWithTheTest(t *testing.T) {
	const name = "HSMBRIDGE_TEST_SETENV"
	tok := token.Token{Environment: map[string]string{name: "set"}}
	t.Run("use", func(t *testing.T) {
		tok.Setenv(t)
		if got := os.Getenv(name); got != "set" {
			t.Errorf("%s is %q within the test", name, got)
		}
	})
	if got, ok := os.LookupEnv(name); ok {
		t.Errorf("%s is %q after the test", name, got)
	}
}

func TestDigits(t *testing.T) {
	one, err := token.Digits(8)
	if err != nil {
		t.Fatal(err)
	}
	if len(one) != 8 || strings.Trim(one, "0123456789") != "" {
		t.Errorf("%q is not 8 digits", one)
	}
	user, so := token.PINs(t, 8)
	if user == so {
		t.Error("user and security officer have one PIN")
	}
}
