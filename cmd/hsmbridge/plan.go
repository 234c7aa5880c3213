package main

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

func (a *app) planCommand() *cobra.Command {
	var all, renew, noProve, replicas bool
	var expires string
	c := &cobra.Command{
		Use:   "plan NAME...",
		Short: "Show what an import would do; nothing is changed",
		Long: `Show what an import would do, from the token's and KMS's real answers; nothing is changed in either.

A key whose object in the token is another one than the daemon has recorded, or than KMS shows to hold, is refused, as its import would be.

The plan has the wrapping algorithm with why each better one was refused, the expiry, how the import will be proved,
the IAM policy that the run needs, and a digest over what will be done.`,
		RunE: func(c *cobra.Command, args []string) error {
			o, err := optionsOf(expires, renew, noProve)
			if err != nil {
				return err
			}
			return a.plan(c.Context(), args, all, replicas, o)
		},
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "plan every managed key")
	f.StringVar(&expires, "expires", "", "life of the material in KMS in place of the configuration's: 90d, 12h or never")
	f.BoolVar(&renew, "renew", false, "plan what import --renew would do")
	f.BoolVar(&noProve, "no-prove", false, "plan what import --no-prove would do")
	f.BoolVar(&replicas, "replicas", false, "log in to the other tokens of the keys too, and compare what they hold")
	return a.loginFlag(a.jsonFlag(c, "print one JSON object per destination, each on a line"))
}

// optionsOf reads the flags of plan and import.
func optionsOf(expires string, renew, noProve bool) (importOptions, error) {
	o := importOptions{renew: renew, noProve: noProve}
	if expires != "" {
		var d configs.Duration
		if err := d.UnmarshalText([]byte(expires)); err != nil {
			return o, usageError(fmt.Errorf("--expires: %w", err))
		}
		if d.Duration() > importer.MaxExpires {
			return o, usageError(fmt.Errorf("--expires %s: AWS KMS keeps imported material at most 365 days", expires))
		}
		o.expires = &d
	}
	return o, nil
}

func (a *app) plan(ctx context.Context, names []string, all, replicas bool, o importOptions) error {
	conn, keys, err := a.connectKeys(names, all)
	if err != nil {
		return err
	}
	defer conn.close() //nolint:errcheck // nothing was changed
	var failed []error
	var plans []importer.Plan
	for _, k := range keys {
		im, err := conn.importer(ctx, k.Token)
		if err != nil {
			if err := conn.parked(k.Token, keys, err); err != nil {
				failed = append(failed, err)
			}
			continue
		}
		var copies []replicaRow
		if replicas {
			if copies, err = conn.copies(ctx, k); err != nil {
				failed = append(failed, err)
			}
		}
		if err := conn.sameAsBefore(ctx, k); err != nil {
			failed = append(failed, err)
			continue
		}
		for _, d := range k.Destinations {
			r := request(conn.config, k, d, o)
			p, err := im.Plan(ctx, r)
			if err == nil {
				err = sameAsInKMS(ctx, im, p, r)
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if err := a.showPlan(p, copies); err != nil {
				return err
			}
			plans = append(plans, p)
		}
	}
	if !a.json {
		if err := a.printPolicies(plans); err != nil {
			return err
		}
	}
	if len(failed) > 0 && len(plans) > 0 {
		return &exitError{exitPartly, several(failed)}
	}
	return several(failed)
}

// showPlan prints one plan with what the tokens of the key hold where there are several, as JSON with the policy of its own.
func (a *app) showPlan(p importer.Plan, copies []replicaRow) error {
	if !a.json {
		a.printPlan(p, copies)
		return nil
	}
	policy, err := kmsclient.Policy(permissionsOf(p))
	if err != nil {
		return err
	}
	return writeJSON(a.out, planOutput{p, copies, policy})
}

// planOutput is a plan with the IAM policy that its run needs.
type planOutput struct {
	importer.Plan
	Replicas []replicaRow `json:"replicas,omitempty"` // what each token of the key holds, the key's own first
	Policy   jsonText     `json:"iam_policy"`
}

// jsonText is JSON that is already written.
type jsonText []byte

func (j jsonText) MarshalJSON() ([]byte, error) { return j, nil }

func permissionsOf(p importer.Plan) kmsclient.Permissions {
	need := kmsclient.Permissions{
		KeyARNs: []string{p.Destination}, Operations: p.Operations,
		WrappingAlgorithms: []string{string(p.Algorithm)}, WrappingKeySpecs: []string{string(p.WrappingKeySpec)},
		ExpirationModels: []string{"KEY_MATERIAL_EXPIRES"},
	}
	if p.Expires == "never" {
		need.ExpirationModels = []string{"KEY_MATERIAL_DOES_NOT_EXPIRE"}
	}
	return need
}

// printPolicies prints one IAM policy for all destinations that need the same.
func (a *app) printPolicies(plans []importer.Plan) error {
	var needs []kmsclient.Permissions
	var names [][]string
	for _, p := range plans {
		need := permissionsOf(p)
		arns := need.KeyARNs
		need.KeyARNs = nil
		i := slices.IndexFunc(needs, func(n kmsclient.Permissions) bool { n.KeyARNs = nil; return reflect.DeepEqual(n, need) })
		if i < 0 {
			i, needs, names = len(needs), append(needs, need), append(names, nil)
		}
		needs[i].KeyARNs, names[i] = append(needs[i].KeyARNs, arns...), append(names[i], p.Key)
	}
	for i, need := range needs {
		policy, err := kmsclient.Policy(need)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "IAM policy that this run needs for %s (the daemon needs more: hsmbridge config policy):\n%s\n", strings.Join(unique(names[i]), ", "), strings.TrimSpace(string(policy)))
		if i < len(needs)-1 {
			fmt.Fprintln(a.out)
		}
	}
	return nil
}

func (a *app) printPlan(p importer.Plan, copies []replicaRow) {
	object := fmt.Sprintf("%q, id %s, %s", p.Object.Label, p.Object.ID, p.Object.KeyType)
	if p.Object.Missing {
		object = fmt.Sprintf("%q is not there and will be generated (%s)", p.Object.Label, p.Object.KeySpec)
	}
	until := ""
	if p.HeldUntil != nil {
		until = ", holds material until " + p.HeldUntil.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(a.out, "Plan for %s; nothing was changed\n", p.Key)
	for _, line := range [][2]string{
		{"destination", p.Destination},
		{"KMS key", p.State + until},
		{"token", fmt.Sprintf("%q, serial %s, firmware %s", p.Token.Label, p.Token.Serial, p.Token.Firmware)},
		{"object", object},
		{"action", describeAction(p)},
		{"algorithm", fmt.Sprintf("%s under %s, by %s", p.Algorithm, p.WrappingKeySpec, p.Mechanism)},
		{"expires", expiresText(p)},
		{"proof", string(p.ProofMethod) + ": " + p.ProofHow},
		{"plan digest", p.Digest},
	} {
		wrapped(a.out, fmt.Sprintf("  %-12s ", line[0]), strings.Repeat(" ", 15), line[1])
		if line[0] == "algorithm" {
			a.printPassedOver(p.PassedOver, "               ")
		}
	}
	differ := false
	for i, r := range copies {
		label := ""
		if i == 0 {
			label = "held by"
		}
		what := r.Identity
		if r.Problem != "" {
			what, differ = r.Problem, true
		} else if i > 0 && copies[0].Problem == "" {
			what += ", the same"
		}
		wrapped(a.out, fmt.Sprintf("  %-12s ", label), strings.Repeat(" ", 15), fmt.Sprintf("token %s: %s", r.Token, what))
	}
	if differ {
		wrapped(a.out, "  note         ", strings.Repeat(" ", 15), "the daemon imports new material only when all required tokens of the key hold the same")
	}
	for _, n := range p.Notes {
		wrapped(a.out, "  note         ", strings.Repeat(" ", 15), n)
	}
	fmt.Fprintln(a.out)
}

// printPassedOver says why each better candidate was refused.
func (a *app) printPassedOver(refused []wrapping.Refusal, indent string) {
	type candidate struct {
		algorithm wrapping.Algorithm
		spec      wrapping.WrappingKeySpec
	}
	var order []candidate
	by := map[candidate][]wrapping.Refusal{}
	for _, r := range refused {
		c := candidate{r.Algorithm, r.WrappingKeySpec}
		if by[c] == nil {
			order = append(order, c)
		}
		by[c] = append(by[c], r)
	}
	for _, c := range order {
		name := string(c.algorithm)
		if c.spec != "" {
			name += " under " + string(c.spec)
		}
		fmt.Fprintf(a.out, "%snot %s, because\n", indent, name)
		for _, reason := range reasons(by[c]) {
			wrapped(a.out, indent+"  ", indent+"    ", reason)
		}
	}
}

func expiresText(p importer.Plan) string {
	switch {
	case p.Action == importer.ActionKeep && p.HeldUntil != nil:
		return p.HeldUntil.UTC().Format(time.RFC3339) + ", as it is in KMS"
	case p.Expires == "never":
		return p.Expires
	}
	return p.Expires + " after the import"
}

func describeAction(p importer.Plan) string {
	text := map[importer.Action]string{
		importer.ActionImport:   "import: KMS has never held material for this key",
		importer.ActionRestore:  "restore: the material in KMS has expired or was deleted; the same goes in again",
		importer.ActionReimport: "reimport: the same material goes in again with a new expiry",
		importer.ActionKeep:     "keep: KMS holds the material with the life asked for; it will be proved again",
	}[p.Action]
	if p.KeyMaterialID != "" {
		text += " (key material ID " + p.KeyMaterialID + " is asserted)"
	}
	return text
}

// importer is the use case with an open token.
func (c *connections) importer(ctx context.Context, token string) (*importer.Importer, error) {
	if im := c.importers[token]; im != nil {
		return im, nil
	}
	t, err := c.token(ctx, token)
	if err != nil {
		return nil, err
	}
	im := &importer.Importer{
		Token: t, Authorize: c.authorize,
		KMS: c.destination,
	}
	c.importers[token] = im
	return im, nil
}
