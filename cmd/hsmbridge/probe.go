package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/hsm/wrapping"
)

func (a *app) probeCommand() *cobra.Command {
	var file string
	c := a.loginFlag(a.jsonFlag(&cobra.Command{
		Use:   "probe [TOKEN...]",
		Short: "Prove by trial which AWS wrapping algorithms a token can do",
		Long: `Prove by trial which AWS wrapping algorithms a token can do.

A token's list of mechanisms says little: each mechanism is tried with throwaway session keys, which are wrapped
under throwaway RSA keys, decrypted outside the token and compared. No key that is stored in the token is touched
and nothing is left behind.

--report writes what was found on one token to a new file that can be attached to an issue: what manufacturer, model, firmware and library
say of themselves, the list of mechanisms and the trials. It holds no label, serial number, slot description, path or name.`,
		Example: "  hsmbridge probe\n  hsmbridge probe demo --report demo.json",
		RunE: func(c *cobra.Command, args []string) error {
			if file != "" {
				return a.writeReport(c.Context(), file, args)
			}
			return a.probe(c.Context(), args)
		},
	}, "print one JSON object per token, each on a line"))
	c.Flags().StringVar(&file, "report", "", "write a report without labels and serial numbers to the new `file`; - prints it")
	return c
}

// probeReport is what a probe found; its JSON is the machine's twin of the printed tables.
type probeReport struct {
	Token       string                                  `json:"token"`
	Identity    wrapping.TokenIdentity                  `json:"identity"`
	Algorithms  []algorithmRow                          `json:"algorithms"`
	Chosen      map[wrapping.KeySpec]wrapping.Algorithm `json:"chosen"`
	NotPossible map[wrapping.KeySpec][]wrapping.Refusal `json:"not_possible"`
	Mechanisms  []mechanismRow                          `json:"mechanisms"`
	Trials      []trialRow                              `json:"trials"`
	plans       map[wrapping.KeySpec]wrapping.Plan
}

// algorithmRow says whether an algorithm is usable under a wrapping key spec for at least one kind of key that AWS
// offers it for; the reason says for which it is not, and why.
type algorithmRow struct {
	Name            wrapping.Algorithm       `json:"name"`
	WrappingKeySpec wrapping.WrappingKeySpec `json:"wrapping_key_spec"`
	Usable          bool                     `json:"usable"`
	UsableFor       []wrapping.KeySpec       `json:"usable_for"`
	Reason          string                   `json:"reason"`

	notFor []notFor
}

type mechanismRow struct {
	wrapping.MechanismInfo
	Trial string `json:"trial"`

	summary, reason string // of Trial
}

// trialRow is one known-answer trial.
type trialRow struct {
	KeySpec         wrapping.KeySpec         `json:"key_spec"`
	Algorithm       wrapping.Algorithm       `json:"wrapping_algorithm"`
	WrappingKeySpec wrapping.WrappingKeySpec `json:"wrapping_key_spec"`
	Mechanism       string                   `json:"mechanism"`
	Outcome         wrapping.Outcome         `json:"outcome"`
	Reason          string                   `json:"reason"`
}

func (a *app) probe(ctx context.Context, names []string) error {
	conn, names, err := a.connectTokens(names)
	if err != nil {
		return err
	}
	defer conn.close() //nolint:errcheck // the probe's result stands
	var failed []error
	for i, name := range names {
		r, err := a.probeToken(ctx, conn, name)
		if err != nil {
			failed = append(failed, fmt.Errorf("token %s: %w", name, err))
			continue
		}
		if a.json {
			if err := writeJSON(a.out, r); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		r.print(a)
	}
	if err := a.replicas(ctx, conn); err != nil {
		failed = append(failed, err)
	}
	return several(failed)
}

func (a *app) probeToken(ctx context.Context, conn *connections, name string) (probeReport, error) {
	t, err := conn.token(ctx, name)
	if err != nil {
		return probeReport{}, err
	}
	listed, err := t.Mechanisms(ctx)
	if err != nil {
		return probeReport{}, err
	}
	caps, err := t.Probe(ctx, wrapping.KeySpecs()...)
	if err != nil {
		return probeReport{}, err
	}
	return report(name, listed, caps, conn.config.Wrapping.Policy("")), nil
}

// report judges the trials: what is usable at all, and what the configuration's policy chooses.
func report(name string, listed []wrapping.MechanismInfo, caps wrapping.Capabilities, policy wrapping.Policy) probeReport {
	r := probeReport{
		Token: name, Identity: caps.Token, Chosen: map[wrapping.KeySpec]wrapping.Algorithm{},
		NotPossible: map[wrapping.KeySpec][]wrapping.Refusal{}, plans: map[wrapping.KeySpec]wrapping.Plan{},
	}
	for _, alg := range wrapping.Algorithms() {
		for _, w := range wrapping.WrappingKeySpecs() {
			r.Algorithms = append(r.Algorithms, judgeAlgorithm(alg, w, caps))
		}
	}
	for _, spec := range wrapping.KeySpecs() {
		s := wrapping.Select(spec, caps, policy)
		if len(s.Plans) == 0 {
			r.NotPossible[spec] = s.Refused
			continue
		}
		r.Chosen[spec], r.plans[spec] = s.Plans[0].Algorithm, s.Plans[0]
	}
	for _, m := range listed {
		r.Mechanisms = append(r.Mechanisms, mechanismOf(m, caps))
	}
	for _, t := range caps.Trials {
		r.Trials = append(r.Trials, trialRow{t.KeySpec, t.Algorithm, t.WrappingKeySpec, t.Mechanism.String(), t.Outcome, t.Reason})
	}
	return r
}

// judgeAlgorithm asks the selection for this algorithm alone, whatever the configuration prefers.
func judgeAlgorithm(alg wrapping.Algorithm, w wrapping.WrappingKeySpec, caps wrapping.Capabilities) algorithmRow {
	row := algorithmRow{Name: alg, WrappingKeySpec: w, UsableFor: []wrapping.KeySpec{}}
	for _, spec := range wrapping.KeySpecs() {
		if !slices.Contains(spec.Order(), alg) {
			continue
		}
		s := wrapping.Select(spec, caps, wrapping.Policy{Algorithms: []wrapping.Algorithm{alg}, AllowPKCS1v15: true})
		if slices.ContainsFunc(s.Plans, func(p wrapping.Plan) bool { return p.WrappingKeySpec == w }) {
			row.UsableFor = append(row.UsableFor, spec)
			continue
		}
		var refused []wrapping.Refusal
		for _, x := range s.Refused {
			if x.Algorithm == alg && (x.WrappingKeySpec == "" || x.WrappingKeySpec == w) {
				refused = append(refused, x)
			}
		}
		row.refuse(spec, reasons(refused))
	}
	row.Usable = len(row.UsableFor) > 0
	var text []string
	for _, n := range row.notFor {
		text = append(text, n.text(row.Usable || len(row.notFor) > 1))
	}
	row.Reason = strings.Join(text, " | ")
	return row
}

// notFor is a group of key specs for which an algorithm is not usable for the same reasons.
type notFor struct {
	specs   []wrapping.KeySpec
	reasons []string
}

func (n notFor) text(name bool) string {
	why := strings.Join(n.reasons, "; ")
	if !name {
		return why
	}
	return "not for " + join(n.specs) + ": " + why
}

func (r *algorithmRow) refuse(spec wrapping.KeySpec, reasons []string) {
	for i := range r.notFor {
		if slices.Equal(r.notFor[i].reasons, reasons) {
			r.notFor[i].specs = append(r.notFor[i].specs, spec)
			return
		}
	}
	r.notFor = append(r.notFor, notFor{[]wrapping.KeySpec{spec}, reasons})
}

func join[T ~string](v []T) string {
	var out []string
	for _, s := range v {
		out = append(out, string(s))
	}
	return strings.Join(out, ", ")
}

// reasons says each reason once, with all mechanisms that it holds for.
func reasons(refused []wrapping.Refusal) []string {
	var order []string
	mechanisms := map[string][]string{}
	for _, r := range refused {
		if _, ok := mechanisms[r.Reason]; !ok {
			order = append(order, r.Reason)
		}
		if r.Mechanism != "" {
			mechanisms[r.Reason] = append(mechanisms[r.Reason], strings.TrimSuffix(r.Mechanism, " + CKM_RSA_PKCS_OAEP"))
		}
	}
	var out []string
	for _, reason := range order {
		if m := mechanisms[reason]; len(m) > 0 {
			reason = strings.Join(m, ", ") + ": " + reason
		}
		out = append(out, reason)
	}
	return out
}

// mechanismOf sets the trials of a mechanism beside what the token's list says of it.
func mechanismOf(m wrapping.MechanismInfo, caps wrapping.Capabilities) mechanismRow {
	row := mechanismRow{MechanismInfo: m}
	row.summary, row.reason = trialsOf(m.Type, caps)
	row.Trial = row.summary
	if row.reason != "" {
		row.Trial += ": " + row.reason
	}
	return row
}

const neverWorked = "never worked"

// trialsOf sums up what the trials of one mechanism gave. A reason is given if none of them worked: the first that is
// about this mechanism and not about another that it is used with.
func trialsOf(mechanism uint, caps wrapping.Capabilities) (summary, reason string) {
	count := map[wrapping.Outcome]int{}
	for _, t := range caps.Trials {
		if t.Mechanism.Type != mechanism {
			continue
		}
		count[t.Outcome]++
		if reason == "" || strings.HasPrefix(reason, "CKM_") && !strings.HasPrefix(t.Reason, "CKM_") {
			reason = t.Reason
		}
	}
	switch {
	case len(count) == 0:
		return "not tried", ""
	case count[wrapping.Failed] == total(count):
		return neverWorked, reason
	case count[wrapping.Exact] == total(count):
		return "always exact", ""
	}
	return fmt.Sprintf("%d exact, %d padded, %d failed", count[wrapping.Exact], count[wrapping.Padded], count[wrapping.Failed]), ""
}

func total(count map[wrapping.Outcome]int) int {
	n := 0
	for _, c := range count {
		n += c
	}
	return n
}

func (r probeReport) print(a *app) {
	id := r.Identity
	fmt.Fprintf(a.out, "Token %s: %q, %s %s, serial %s, firmware %s\n\n",
		r.Token, id.Label, printable(id.Manufacturer), printable(id.Model), printable(id.Serial), printable(id.Firmware))
	r.printAlgorithms(a)
	fmt.Fprintln(a.out)
	r.printMechanisms(a)
	fmt.Fprintln(a.out)
	var rows [][]string
	for _, spec := range wrapping.KeySpecs() {
		p, ok := r.plans[spec]
		if !ok {
			rows = append(rows, []string{string(spec), "none", "(the reasons are above)"})
			continue
		}
		rows = append(rows, []string{string(spec), string(p.Algorithm) + " under " + string(p.WrappingKeySpec), p.Mechanism.String()})
	}
	table(a.out, []string{"KEY SPEC", "WILL BE WRAPPED WITH", "BY"}, rows)
	r.printPolicy(a)
}

// printMechanisms sets the token's list beside the trials, then says why mechanisms never worked.
func (r probeReport) printMechanisms(a *app) {
	var rows [][]string
	for _, m := range r.Mechanisms {
		said := "not listed"
		if m.Listed {
			said = "listed, not for wrapping"
		}
		if m.Wrap {
			said = "listed for wrapping"
		}
		found := m.summary
		if m.Wrap && found == neverWorked {
			found = "the list says yes, the trials say no"
		}
		rows = append(rows, []string{m.Name, said, found})
	}
	table(a.out, []string{"MECHANISM", "THE TOKEN'S LIST", "THE TRIALS"}, rows)
	for _, m := range r.Mechanisms {
		if m.reason != "" {
			wrapped(a.out, "  "+m.Name+": ", "    ", m.reason)
		}
	}
}

// printAlgorithms prints one row for all wrapping key specs under which an algorithm serves the same keys.
func (r probeReport) printAlgorithms(a *app) {
	for i := 0; i < len(r.Algorithms); {
		row := r.Algorithms[i]
		sizes := []string{string(row.WrappingKeySpec)}
		for i++; i < len(r.Algorithms) && r.Algorithms[i].Name == row.Name && slices.Equal(row.UsableFor, r.Algorithms[i].UsableFor); i++ {
			sizes = append(sizes, string(r.Algorithms[i].WrappingKeySpec))
		}
		verdict := "NOT USABLE"
		if row.Usable {
			verdict = "usable"
		}
		fmt.Fprintf(a.out, "%-26s %-10s under %s\n", row.Name, verdict, strings.Join(sizes, ", "))
		if row.Usable {
			wrapped(a.out, "    for ", "        ", join(row.UsableFor))
		}
		for _, n := range row.notFor {
			if row.Usable || len(row.notFor) > 1 {
				wrapped(a.out, "    not for ", "        ", join(n.specs)+", because")
			}
			for _, reason := range n.reasons {
				wrapped(a.out, "        ", "          ", reason)
			}
		}
	}
}

// printPolicy says which key specs have no way left only because the configuration leaves usable algorithms out.
func (r probeReport) printPolicy(a *app) {
	byReason := map[string][]wrapping.KeySpec{}
	var order []string
	for _, spec := range wrapping.KeySpecs() {
		for _, x := range r.NotPossible[spec] {
			if x.Rule != wrapping.RulePKCS1 && x.Rule != wrapping.RuleConfigured || !r.usable(x.Algorithm, spec) {
				continue
			}
			reason := string(x.Algorithm) + ": " + x.Reason
			if byReason[reason] == nil {
				order = append(order, reason)
			}
			byReason[reason] = append(byReason[reason], spec)
		}
	}
	for _, reason := range order {
		fmt.Fprintln(a.out)
		wrapped(a.out, "none for ", "  ", join(byReason[reason])+", because "+reason)
	}
}

// usable says whether the token can do an algorithm for a key spec, whatever the configuration allows.
func (r probeReport) usable(alg wrapping.Algorithm, spec wrapping.KeySpec) bool {
	return slices.ContainsFunc(r.Algorithms, func(row algorithmRow) bool { return row.Name == alg && slices.Contains(row.UsableFor, spec) })
}

func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-3]) + "..."
}
