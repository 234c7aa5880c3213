package kmsclient

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const wantPolicy = `{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "Hsmbridge",
      "Effect": "Allow",
      "Action": [
        "kms:DescribeKey",
        "kms:ListKeyRotations"
      ],
      "Resource": [
        "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:us-east-1:111122223333:key/a"
      ]
    },
    {
      "Sid": "HsmbridgeGetParametersForImport",
      "Effect": "Allow",
      "Action": [
        "kms:GetParametersForImport"
      ],
      "Resource": [
        "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:us-east-1:111122223333:key/a"
      ],
      "Condition": {
        "StringEquals": {
          "kms:WrappingAlgorithm": [
            "RSAES_OAEP_SHA_1",
            "RSAES_OAEP_SHA_256"
          ],
          "kms:WrappingKeySpec": [
            "RSA_4096"
          ]
        }
      }
    },
    {
      "Sid": "HsmbridgeImportKeyMaterial",
      "Effect": "Allow",
      "Action": [
        "kms:ImportKeyMaterial"
      ],
      "Resource": [
        "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:kms:us-east-1:111122223333:key/a"
      ],
      "Condition": {
        "NumericLessThanEquals": {
          "kms:ValidTo": [
            "1798761600"
          ]
        },
        "StringEquals": {
          "kms:ExpirationModel": [
            "KEY_MATERIAL_EXPIRES"
          ]
        }
      }
    }
  ]
}
`

func TestPolicy(t *testing.T) {
	p := Permissions{
		KeyARNs:            []string{"arn:aws:kms:us-east-1:111122223333:key/a", testARN, testARN},
		Operations:         []string{"ListKeyRotations", "ImportKeyMaterial", "DescribeKey", "GetParametersForImport", "DescribeKey"},
		WrappingAlgorithms: []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"},
		WrappingKeySpecs:   []string{"RSA_4096"},
		ExpirationModels:   []string{"KEY_MATERIAL_EXPIRES"},
		LatestValidTo:      time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for range 2 {
		got, err := Policy(p)
		if err != nil || string(got) != wantPolicy {
			t.Errorf("%v, got:\n%s", err, got)
		}
		slices.Reverse(p.KeyARNs)
		slices.Reverse(p.Operations)
		slices.Reverse(p.WrappingAlgorithms)
	}
}

func TestPolicyWithoutConditionsIsOneStatement(t *testing.T) {
	got, err := Policy(Permissions{KeyARNs: []string{testARN}, Operations: []string{"ImportKeyMaterial", "GetParametersForImport"}})
	if err != nil || strings.Count(string(got), `"Sid"`) != 1 || strings.Contains(string(got), "Condition") {
		t.Errorf("%v, got:\n%s", err, got)
	}
}

func TestPolicyRefuses(t *testing.T) {
	for says, p := range map[string]Permissions{
		"at least one":            {Operations: []string{"DescribeKey"}},
		"at least one key ARN":    {KeyARNs: []string{testARN}},
		"alias":                   {KeyARNs: []string{"alias/a"}, Operations: []string{"DescribeKey"}},
		`"CreateKey" is not`:      {KeyARNs: []string{testARN}, Operations: []string{"CreateKey"}},
		`"*" is not an operation`: {KeyARNs: []string{testARN}, Operations: []string{"*"}},
	} {
		if got, err := Policy(p); err == nil || !strings.Contains(err.Error(), says) || got != nil {
			t.Errorf("%s: got %s, %v", says, got, err)
		}
	}
}
