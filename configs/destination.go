package configs

import (
	"fmt"
	"regexp"
	"strings"
)

// Destination is one KMS key into which a managed key is imported. In YAML it is the key's ARN, or a mapping when another role or
// endpoint is needed for it.
type Destination struct {
	// arn:PARTITION:kms:REGION:ACCOUNT:key/ID
	ARN string `yaml:"arn" jsonschema:"required"`
	// IAM role that is assumed for this KMS key (sts:AssumeRole), for keys in other accounts.
	RoleARN string `yaml:"role_arn,omitempty"`
	// External ID that the role's trust policy asks for.
	ExternalID string `yaml:"external_id,omitempty"`
	// Endpoint in place of kms.endpoint.
	Endpoint string `yaml:"endpoint,omitempty"`
}

const (
	regionPattern      = `^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$`
	destinationPattern = `^arn:aws(-[a-z]+)*:kms:[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}:[0-9]{12}:key/[0-9A-Za-z-]{1,128}$`
	destinationParts   = "arn:PARTITION:kms:REGION:ACCOUNT:key/ID"
)

var destinationForm = regexp.MustCompile(destinationPattern)

// IsRegion says that a name has the form of an AWS Region's. Whether AWS has it is another matter.
func IsRegion(name string) bool {
	const region = 3
	return regexp.MustCompile(arnRules()[region].pattern).MatchString(name)
}

// Partition is the ARN's AWS partition: aws, aws-cn, aws-us-gov ...
func (d Destination) Partition() string { return d.part(1) }

// Region is the ARN's AWS Region.
func (d Destination) Region() string { return d.part(3) }

// Account is the ARN's AWS account, 12 digits.
func (d Destination) Account() string { return d.part(4) }

// KeyID is the ARN's key ID: a UUID, or mrk- and 32 hexadecimal digits for a multi-Region key.
func (d Destination) KeyID() string { return strings.TrimPrefix(d.part(5), "key/") }

// String is the ARN.
func (d Destination) String() string { return d.ARN }

func (d Destination) part(i int) string {
	if parts := strings.SplitN(d.ARN, ":", 6); len(parts) == 6 {
		return parts[i]
	}
	return ""
}

// MarshalYAML is the ARN, or a mapping if there is more.
func (d Destination) MarshalYAML() (any, error) {
	if d == (Destination{ARN: d.ARN}) {
		return d.ARN, nil
	}
	type whole Destination // without methods
	return whole(d), nil
}

// MarshalText is the ARN.
func (d Destination) MarshalText() ([]byte, error) { return []byte(d.ARN), nil }

// UnmarshalText checks that the text is the ARN of one KMS key. The error is a [*textError].
func (d *Destination) UnmarshalText(text []byte) error {
	s := string(text)
	if strings.HasPrefix(s, "alias/") || strings.Contains(s, ":alias/") {
		return &textError{max(strings.Index(s, "alias/"), 0), "an alias can be pointed at another key: GetParametersForImport does not accept one and neither does hsmbridge; write the key's ARN, " + destinationParts}
	}
	if destinationForm.MatchString(s) {
		d.ARN = s
		return nil
	}
	parts := strings.SplitN(s, ":", 6)
	if len(parts) != 6 {
		return &textError{0, fmt.Sprintf("%q is not the ARN of a KMS key: write %s", s, destinationParts)}
	}
	offset := 0
	for i, part := range parts {
		rule := arnRules()[i]
		if !regexp.MustCompile(rule.pattern).MatchString(part) {
			return &textError{offset, fmt.Sprintf("%q is not %s: write %s", part, rule.name, destinationParts)}
		}
		offset += len(part) + 1
	}
	return &textError{0, fmt.Sprintf("%q is not the ARN of a KMS key: write %s", s, destinationParts)}
}

// arnRules says what each part of a KMS key's ARN looks like. Source: AWS Service Authorization Reference, AWS KMS, resource types.
func arnRules() [6]struct{ name, pattern string } {
	return [6]struct{ name, pattern string }{
		{"the beginning of an ARN", `^arn$`},
		{"an AWS partition", `^aws(-[a-z]+)*$`},
		{"the service kms", `^kms$`},
		{"an AWS Region", regionPattern},
		{"an AWS account of 12 digits", `^[0-9]{12}$`},
		{"a KMS key", `^key/[0-9A-Za-z-]{1,128}$`},
	}
}

// textError is a mistake inside a text, at a byte offset.
type textError struct {
	offset int
	reason string
}

func (e *textError) Error() string { return e.reason }
