package kmsclient

import (
	"strings"
	"testing"
)

func TestParseARN(t *testing.T) {
	for in, want := range map[string]ARN{
		testARN: {"aws", "eu-central-1", "111122223333", "1234abcd-12ab-34cd-56ef-1234567890ab"},
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef": {"aws-us-gov", "us-gov-west-1", "111122223333", "mrk-0123456789abcdef0123456789abcdef"},
		"arn:aws-cn:kms:cn-north-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab":        {"aws-cn", "cn-north-1", "111122223333", "1234abcd-12ab-34cd-56ef-1234567890ab"},
	} {
		got, err := ParseARN(in)
		if err != nil || got != want || got.String() != in || got.MultiRegion() != strings.Contains(in, "mrk-") {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	for in, says := range map[string]string{
		"":               "empty key ARN",
		"alias/payments": "is an alias name, which GetParametersForImport does not accept",
		"arn:aws:kms:eu-central-1:111122223333:alias/payments":     "is an alias ARN, which GetParametersForImport does not accept",
		"1234abcd-12ab-34cd-56ef-1234567890ab":                     "is a key ID without Region and account",
		"payments key":                                             "is not a key ARN",
		"arn:aws:kms:eu-central-1:111122223333":                    "has 5 parts between colons",
		"arn::kms:eu-central-1:111122223333:key/a":                 "is not an AWS partition",
		"arn:azure:kms:eu-central-1:111122223333:key/a":            "is not an AWS partition",
		"arn:aws:s3:eu-central-1:111122223333:key/a":               `of service "s3"`,
		"arn:aws:kms::111122223333:key/a":                          `"" is not an AWS Region`,
		"arn:aws:kms:EU-CENTRAL-1:111122223333:key/a":              "is not an AWS Region",
		"arn:aws:kms:eu-central-1.example.com/:111122223333:key/a": "is not an AWS Region",
		"arn:aws:kms:eu-central-1:11112222333:key/a":               "account ID of 12 digits",
		"arn:aws:kms:eu-central-1:11112222333x:key/a":              "account ID of 12 digits",
		"arn:aws:kms:eu-central-1:111122223333:key/":               `"" is not a key ID`,
		"arn:aws:kms:eu-central-1:111122223333:key":                `"" is not a key ID`,
		"arn:aws:kms:eu-central-1:111122223333:grant/a":            "is not a key;",
		testARN + "\n": "is not a key ID",
		" " + testARN:  "is not a key ARN",
		testARN + "/x": "is not a key ID",
		testARN + ":x": "is not a key ID",
	} {
		if got, err := ParseARN(in); err == nil || !strings.Contains(err.Error(), says) || got != (ARN{}) {
			t.Errorf("%q: got %+v, %v", in, got, err)
		}
	}
}

func FuzzParseARN(f *testing.F) {
	for _, s := range []string{testARN, "alias/a", "arn:aws:kms:eu-central-1:111122223333:alias/payments", "arn:::::", "1234abcd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseARN(s)
		if err != nil {
			if err.Error() == "" || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("text of the error for %q: %q", s, err)
			}
			return
		}
		if a.String() != s {
			t.Errorf("%q became %q", s, a)
		}
		if again, err := ParseARN(a.String()); err != nil || again != a {
			t.Errorf("%q: %+v, %v", s, again, err)
		}
	})
}
