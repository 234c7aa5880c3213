package kmsclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Permissions is what a caller needs for imports, for [Policy].
type Permissions struct {
	KeyARNs    []string // the keys
	Operations []string // KMS operations on them, "DescribeKey"

	// What the two operations of an import are limited to; empty: not limited.
	WrappingAlgorithms []string  // condition kms:WrappingAlgorithm of GetParametersForImport
	WrappingKeySpecs   []string  // condition kms:WrappingKeySpec of GetParametersForImport
	ExpirationModels   []string  // condition kms:ExpirationModel of ImportKeyMaterial
	LatestValidTo      time.Time // condition kms:ValidTo of ImportKeyMaterial, a fixed time and not a span

	Roles []string // that are assumed; then there need be no keys
}

// Policy is an IAM policy that allows exactly these operations on exactly these keys, indented and in a fixed
// order, to be pasted. Source of the condition keys: AWS KMS Developer Guide, "AWS KMS condition keys".
func Policy(list ...Permissions) ([]byte, error) {
	doc := document{Version: "2012-10-17"}
	sids := map[string]int{}
	for _, p := range list {
		statements, err := p.statements()
		if err != nil {
			return nil, err
		}
		for _, s := range statements {
			sids[s.Sid]++
			if sids[s.Sid] > 1 { // a Sid is unique in its policy
				s.Sid += strconv.Itoa(sids[s.Sid])
			}
			doc.Statement = append(doc.Statement, s)
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return b.Bytes(), nil
}

func (p Permissions) statements() (list []statement, err error) {
	keys := slices.Compact(slices.Sorted(slices.Values(p.KeyARNs)))
	ops := slices.Compact(slices.Sorted(slices.Values(p.Operations)))
	roles := slices.Compact(slices.Sorted(slices.Values(p.Roles)))
	if (len(keys) == 0 || len(ops) == 0) && (len(roles) == 0 || len(keys)+len(ops) > 0) {
		return nil, errors.New("a policy needs at least one key ARN and one operation")
	}
	for _, k := range keys {
		if _, err := ParseARN(k); err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
	}
	var plain []string
	for _, op := range ops {
		conditions := p.conditions(operation(op))
		switch {
		case !onKey(operation(op)):
			return nil, fmt.Errorf("policy: %q is not an operation on a key that hsmbridge uses", op)
		case len(conditions) == 0:
			plain = append(plain, "kms:"+op)
		default:
			list = append(list, statement{"Hsmbridge" + op, "Allow", []string{"kms:" + op}, keys, conditions})
		}
	}
	if len(plain) > 0 {
		list = slices.Insert(list, 0, statement{"Hsmbridge", "Allow", plain, keys, nil})
	}
	if len(roles) > 0 {
		list = append(list, statement{"HsmbridgeAssumeRole", "Allow", []string{"sts:AssumeRole"}, roles, nil})
	}
	return list, nil
}

// conditions are the limits of an operation; none for operations whose condition keys are not about imports.
func (p Permissions) conditions(op operation) conditions {
	c := conditions{}
	limit := func(operator, key string, values []string) {
		if len(values) == 0 {
			return
		}
		if c[operator] == nil {
			c[operator] = map[string][]string{}
		}
		c[operator][key] = slices.Compact(slices.Sorted(slices.Values(values)))
	}
	switch op {
	case opGetParametersForImport:
		limit("StringEquals", "kms:WrappingAlgorithm", p.WrappingAlgorithms)
		limit("StringEquals", "kms:WrappingKeySpec", p.WrappingKeySpecs)
	case opImportKeyMaterial:
		limit("StringEquals", "kms:ExpirationModel", p.ExpirationModels)
		if !p.LatestValidTo.IsZero() {
			// The guide's own example compares seconds since 1970 as a number.
			limit("NumericLessThanEquals", "kms:ValidTo", []string{strconv.FormatInt(p.LatestValidTo.Unix(), 10)})
		}
	default:
	}
	return c
}

// onKey says that the operation is authorized for a key alone, so that its ARN is the whole resource.
func onKey(op operation) bool {
	switch op {
	case opDeleteImported, opDescribeKey, opGenerateMAC, opGetParametersForImport, opGetPublicKey, opImportKeyMaterial, opListKeyRotations, opRotateKeyOnDemand, opSign:
		return true
	default:
		return false
	}
}

// document is an IAM policy. The order of the fields is the order in which one reads them.
type document struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid       string
	Effect    string
	Action    []string
	Resource  []string
	Condition conditions `json:",omitempty"`
}

// conditions are operator, condition key, values.
type conditions map[string]map[string][]string
