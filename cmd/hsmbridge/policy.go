package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

func (a *app) policyCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "policy [NAME...]", Short: "Print the IAM policies that the daemon needs for keys, one for each role",
		Long: `Print the IAM policies that the daemon needs for all keys, or for those that are named: one for its own identity, and one for each
role_arn. They cover whatever the daemon does with the keys' destinations: import, prove, renew, drill, restore, rotate and revoke. Nobody is asked,
neither a token nor KMS.`,
		Example: "  hsmbridge config policy\n  hsmbridge config policy payments --json",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			keys, err := keysNamed(c, args, len(args) == 0)
			if err != nil {
				return err
			}
			return a.printIdentities(identities(keys))
		},
	}, "print one JSON object per identity, each on a line")
}

// identity is somebody who calls KMS: the daemon itself, or a role that it assumes.
type identity struct {
	Role        string   `json:"role_arn,omitempty"` // empty: the daemon's own credentials
	ExternalIDs []string `json:"external_ids,omitempty"`
	Policy      jsonText `json:"iam_policy"`

	needs []kmsclient.Permissions
}

// identities says what each identity needs, the daemon's own first. Keys that need the same share a statement.
func identities(keys []configs.Key) []identity {
	all := []identity{{}}
	of := func(role string) *identity {
		i := slices.IndexFunc(all, func(x identity) bool { return x.Role == role })
		if i < 0 {
			i, all = len(all), append(all, identity{Role: role})
		}
		return &all[i]
	}
	var roles []string
	for _, k := range keys {
		need := kmsclient.Permissions{Operations: daemonOperations(k.KeySpec), ExpirationModels: []string{"KEY_MATERIAL_EXPIRES"}}
		if k.Expires == configs.Never {
			need.ExpirationModels = []string{"KEY_MATERIAL_DOES_NOT_EXPIRE"}
		}
		for _, d := range k.Destinations {
			who := of(d.RoleARN)
			if d.RoleARN != "" {
				roles = append(roles, d.RoleARN)
			}
			if d.ExternalID != "" && !slices.Contains(who.ExternalIDs, d.ExternalID) {
				who.ExternalIDs = append(who.ExternalIDs, d.ExternalID)
			}
			i := slices.IndexFunc(who.needs, func(n kmsclient.Permissions) bool {
				return slices.Equal(n.Operations, need.Operations) && slices.Equal(n.ExpirationModels, need.ExpirationModels)
			})
			if i < 0 {
				i, who.needs = len(who.needs), append(who.needs, need)
			}
			who.needs[i].KeyARNs = append(who.needs[i].KeyARNs, d.ARN)
		}
	}
	if len(roles) > 0 {
		all[0].needs = append(all[0].needs, kmsclient.Permissions{Roles: roles})
	}
	slices.SortStableFunc(all, func(x, y identity) int { return cmp.Compare(x.Role, y.Role) })
	return slices.DeleteFunc(all, func(x identity) bool { return len(x.needs) == 0 })
}

// daemonOperations are the KMS operations that the daemon uses for a key spec, whatever it does.
func daemonOperations(spec wrapping.KeySpec) []string {
	ops := []string{"DescribeKey", "GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial"}
	switch spec.Kind() {
	case wrapping.KindSymmetric:
		ops = append(ops, "ListKeyRotations", "RotateKeyOnDemand")
	case wrapping.KindHMAC:
		ops = append(ops, "GenerateMac")
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		ops = append(ops, "GetPublicKey", "Sign")
	case wrapping.KindRefused:
	}
	return ops
}

func (a *app) printIdentities(all []identity) error {
	for i, x := range all {
		var err error
		if x.Policy, err = kmsclient.Policy(x.needs...); err != nil {
			return err
		}
		if a.json {
			if err := writeJSON(a.out, x); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		switch {
		case x.Role == "":
			fmt.Fprintln(a.out, "IAM policy of the daemon's own identity:")
		case len(x.ExternalIDs) > 0:
			fmt.Fprintf(a.out, "IAM policy of %s, which trusts the daemon's identity with the external ID %s:\n", x.Role, strings.Join(x.ExternalIDs, " or "))
		default:
			fmt.Fprintf(a.out, "IAM policy of %s, which trusts the daemon's identity:\n", x.Role)
		}
		fmt.Fprintln(a.out, strings.TrimSpace(string(x.Policy)))
	}
	return nil
}
