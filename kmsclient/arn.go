package kmsclient

import (
	"errors"
	"fmt"
	"strings"
)

// ARN is the parts of a KMS key ARN. Source: AWS Service Authorization Reference, "AWS Key Management
// Service", resource types.
type ARN struct {
	Partition string // "aws", "aws-cn", "aws-us-gov" ...
	Region    string
	Account   string // twelve digits
	KeyID     string // a UUID, or mrk- and 32 hexadecimal digits for a multi-Region key
}

// MultiRegion says that the key is a multi-Region key, primary or replica.
func (a ARN) MultiRegion() bool { return strings.HasPrefix(a.KeyID, "mrk-") }

// String is the ARN itself: ParseARN(s).String() is s.
func (a ARN) String() string {
	return "arn:" + a.Partition + ":kms:" + a.Region + ":" + a.Account + ":key/" + a.KeyID
}

// ParseARN reads a key ARN, strictly. Aliases and bare key IDs are refused with what to write instead.
func ParseARN(s string) (ARN, error) {
	const key = "use the key ARN, arn:aws:kms:REGION:ACCOUNT:key/KEY-ID (aws kms describe-key shows it)"
	switch {
	case s == "":
		return ARN{}, errors.New("empty key ARN; " + key)
	case strings.HasPrefix(s, "alias/"):
		return ARN{}, fmt.Errorf("%q is an alias name, which GetParametersForImport does not accept and which can be pointed at another key; %s", s, key)
	case !strings.HasPrefix(s, "arn:"):
		if isKeyID(s) {
			return ARN{}, fmt.Errorf("%q is a key ID without Region and account; %s", s, key)
		}
		return ARN{}, fmt.Errorf("%q is not a key ARN; %s", s, key)
	}
	f := strings.SplitN(s, ":", 6)
	if len(f) != 6 {
		return ARN{}, fmt.Errorf("%q has %d parts between colons where an ARN has 6; %s", s, len(f), key)
	}
	kind, id, _ := strings.Cut(f[5], "/")
	a := ARN{Partition: f[1], Region: f[3], Account: f[4], KeyID: id}
	switch {
	case !isPartition(a.Partition):
		return ARN{}, fmt.Errorf("%q: %q is not an AWS partition (aws, aws-cn, aws-us-gov ...)", s, a.Partition)
	case f[2] != "kms":
		return ARN{}, fmt.Errorf("%q is an ARN of service %q, not of kms", s, f[2])
	case !isRegion(a.Region):
		return ARN{}, fmt.Errorf("%q: %q is not an AWS Region", s, a.Region)
	case len(a.Account) != 12 || !all(a.Account, isDigit):
		return ARN{}, fmt.Errorf("%q: %q is not an AWS account ID of 12 digits", s, a.Account)
	case kind == "alias":
		return ARN{}, fmt.Errorf("%q is an alias ARN, which GetParametersForImport does not accept and which can be pointed at another key; %s", s, key)
	case kind != "key":
		return ARN{}, fmt.Errorf("%q: %q is not a key; %s", s, f[5], key)
	case !isKeyID(a.KeyID):
		return ARN{}, fmt.Errorf("%q: %q is not a key ID", s, a.KeyID)
	}
	return a, nil
}

// isKeyID accepts more than AWS makes, since KMS-compatible servers have key IDs of their own.
func isKeyID(s string) bool {
	return s != "" && len(s) <= 256 && all(s, func(c byte) bool { return isLower(c) || isUpper(c) || isDigit(c) || c == '-' || c == '_' })
}

func isPartition(s string) bool {
	return (s == "aws" || strings.HasPrefix(s, "aws-")) && isLabels(s)
}

// isRegion accepts what looks like eu-central-1, us-gov-west-1 or us-iso-east-1. A Region becomes part of a
// host name, so nothing else may stand in it.
func isRegion(s string) bool {
	i := strings.LastIndexByte(s, '-')
	return i > 0 && isLabels(s) && strings.Contains(s[:i], "-") && all(s[i+1:], isDigit)
}

// isLabels says that s is lower-case letters and digits joined by single hyphens.
func isLabels(s string) bool {
	return len(s) <= 63 && !strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-") && !strings.Contains(s, "--") &&
		s != "" && all(s, func(c byte) bool { return isLower(c) || isDigit(c) || c == '-' })
}

func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
