package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
)

// approvalCommands are those of officers.
func (a *app) approvalCommands() []*cobra.Command {
	return []*cobra.Command{a.requestsCommand(), a.showCommand(), a.approveCommand(), a.rejectCommand(), a.standingCommand(), a.withdrawCommand()}
}

func (a *app) requestsCommand() *cobra.Command {
	var all bool
	var key string
	var limit int
	c := &cobra.Command{
		Use: "requests", Short: "What waits for the approval of officers",
		Long: `List what waits for the approval of officers. hsmbridge show NAME shows one, and what is different from last time; hsmbridge approve NAME
signs it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			list, err := c.Requests(cmd.Context(), key, all, limit)
			if err != nil {
				return err
			}
			if a.json {
				for _, r := range list {
					if err := writeJSON(a.out, r); err != nil {
						return err
					}
				}
				return nil
			}
			if len(list) == 0 {
				return a.none(cmd.Context(), c, key, "nothing waits for an approval")
			}
			rows := make([][]string, 0, len(list))
			for _, r := range list {
				when := r.ValidUntil
				if !r.Ended.IsZero() {
					when = r.Ended
				}
				rows = append(rows, []string{r.Name, r.Purpose, r.Key, string(r.State), signedBy(r), when.UTC().Format("2006-01-02 15:04"), r.AskedBy, dash(r.Destination)})
			}
			table(a.out, []string{"REQUEST", "PURPOSE", "KEY", "STATE", "APPROVALS", "UNTIL (UTC)", "ASKED BY", "DESTINATION"}, rows)
			if isTerminal(a.err) && slices.ContainsFunc(list, control.Request.Open) {
				fmt.Fprintf(a.err, "\nhsmbridge show NAME says what would be done and what is different from last time; hsmbridge approve NAME signs it\n")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that are closed")
	c.Flags().StringVar(&key, "key", "", "only those of this key")
	c.Flags().IntVar(&limit, "limit", 50, "at most so many")
	return a.jsonFlag(c, "print one JSON object per request, each on a line")
}

// signedBy tells how many approvals there are, and whose.
func signedBy(r control.Request) string {
	if !r.Open() {
		var who []string
		for _, s := range r.Signed {
			who = append(who, s.Officer)
		}
		return dash(strings.Join(who, ", "))
	}
	s := fmt.Sprintf("%d of %d", r.Decision.Have, r.Decision.Need)
	if who := r.Decision.People(); len(who) > 0 {
		s += " (" + strings.Join(who, ", ") + ")"
	}
	return s
}

func (a *app) showCommand() *cobra.Command {
	var text bool
	c := &cobra.Command{
		Use: "show REQUEST", Short: "Show a request for approval: what would be done, and what is different from last time",
		Long: `Show a request for approval: the text that officers sign, what is different from the last one of its kind that was carried out, and who has
signed. --text prints the text alone, byte for byte, to be signed anywhere:

  hsmbridge show 7K3M-9QXA-0B2C-D4EF --text > request.txt
  ssh-keygen -Y sign -n hsmbridge-approval -f ~/.ssh/id_ed25519_sk request.txt
  hsmbridge approve 7K3M-9QXA-0B2C-D4EF --signature request.txt.sig`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			r, err := c.Request(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			switch {
			case text:
				_, err = io.WriteString(a.out, r.Text)
				return err
			case a.json:
				return writeJSON(a.out, r)
			}
			if err := a.showRequest(r, time.Now(), a.showDifferences); err != nil {
				return err
			}
			if r.Open() && !r.Decision.Approved {
				fmt.Fprintf(a.out, "\nTo sign it:      hsmbridge approve %[1]s\nTo say no:       hsmbridge reject %[1]s --reason '...'\nTo sign it on another machine: hsmbridge help show\n", r.Name)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&text, "text", false, "print the text to sign, and nothing else")
	return a.jsonFlag(c, "print JSON")
}

// showRequest prints a request for a person who sees one twice a year. What it is compared with, before says.
func (a *app) showRequest(r control.Request, now time.Time, before func(control.Request)) error {
	q, err := approval.Parse([]byte(r.Text))
	if err != nil {
		return err
	}
	sum := approval.Digest([]byte(r.Text))
	changed := map[string]approval.Difference{}
	for _, d := range r.Differences {
		changed[d.Name] = d
	}
	fmt.Fprintf(a.out, "Request %s, %s", q.ID, r.State)
	if r.Open() {
		fmt.Fprintf(a.out, ", can be signed for another %s", span(q.ValidUntil.Sub(now)))
	}
	fmt.Fprintf(a.out, "\n\n")
	wrapped(a.out, "  ", "  ", whatItSays(r.Text))
	fmt.Fprintln(a.out)
	const indent = "                         "
	for _, f := range q.Fields() {
		mark := "  "
		if _, ok := changed[f.Name]; ok {
			mark = "* "
		}
		wrapped(a.out, fmt.Sprintf("%s%-22s ", mark, f.Name), indent, f.Value)
	}
	fmt.Fprintln(a.out)
	before(r)
	wrapped(a.out, "SHA-256 of the text: ", "  ", fmt.Sprintf("%s (%x)", approval.Short(sum), sum))
	a.showSignatures(r)
	return nil
}

// whatItSays is the sentence of the text.
func whatItSays(text string) string {
	parts := strings.SplitN(text, "\n\n", 3)
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

func (a *app) showDifferences(r control.Request) {
	switch {
	case r.Before == "":
		wrapped(a.out, "", "", "Nothing like it was carried out for this key and destination before: there is nothing to compare it with. Read every line.")
	case len(r.Differences) == 0:
		wrapped(a.out, "", "", fmt.Sprintf("It is the same as the last one (%s, %s), but for names, times and the plan's digest.", r.Before, r.BeforeAt.UTC().Format(time.DateOnly)))
	default:
		fmt.Fprintf(a.out, "DIFFERENT from the last one (%s, %s):\n", r.Before, r.BeforeAt.UTC().Format(time.DateOnly))
		for _, d := range r.Differences {
			wrapped(a.out, fmt.Sprintf("* %-22s ", d.Name), "                         ", "was "+nothing(d.Before))
			wrapped(a.out, "                         ", "                         ", "now "+nothing(d.Now))
		}
	}
	fmt.Fprintln(a.out)
}

// showAway is in place of the differences where only the file is at hand.
func (a *app) showAway(control.Request) {
	wrapped(a.out, "", "", "This is what the file says, and nothing here can tell whether it is what was asked for. Compare the SHA-256 with whoever made the request, "+
		"by voice or on paper; what is different from last time, hsmbridge show says where the daemon is.")
	fmt.Fprintln(a.out)
}

func nothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func (a *app) showSignatures(r control.Request) {
	for i, v := range r.Decision.Verdicts {
		line := v.Officer
		if line == "" {
			line = v.Key
		}
		if i < len(r.Signed) {
			line += ", " + r.Signed[i].At.UTC().Format(time.RFC3339)
		}
		if v.Hardware {
			line += ", hardware key"
		}
		if v.Verified {
			line += " with PIN or fingerprint"
		}
		if !v.Counts {
			line += ": DOES NOT COUNT: " + v.Message
		}
		wrapped(a.out, "signed by ", "  ", line)
	}
	if !r.Open() {
		if r.Reason != "" {
			wrapped(a.out, string(r.State)+": ", "  ", r.Reason)
		}
		return
	}
	if r.Decision.Approved {
		fmt.Fprintf(a.out, "approved: %d of %d\n", r.Decision.Have, r.Decision.Need)
	} else if r.Decision.Message != "" {
		wrapped(a.out, "not approved: ", "  ", r.Decision.Message)
	}
}

func (a *app) rejectCommand() *cobra.Command {
	var key, signature, reason string
	c := &cobra.Command{
		Use: "reject REQUEST", Short: "Say no to a request for approval, signed with your SSH key",
		Long: `Say no to a request for approval, signed with your SSH key in the namespace hsmbridge-rejection. What it asked for fails and waits for a
person: hsmbridge retry asks officers anew.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usageError(errors.New("--reason is missing: it goes into the record"))
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			r, err := c.Request(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			text, err := approval.RejectionText([]byte(r.Text), reason)
			if err != nil {
				return err
			}
			var signed []byte
			if signature != "" {
				signed, err = readSmall(signature)
			} else {
				s := signer{keyFile: key}
				for _, o := range r.Officers {
					s.known = append(s.known, o.Keys...)
				}
				signed, err = s.sign(cmd.Context(), approval.RejectionNamespace, text)
			}
			if err != nil {
				return err
			}
			if r, err = c.Reject(cmd.Context(), r.Name, reason, bytes.TrimSpace(signed)); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: %s %s\n", r.Name, r.State, r.Reason)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "sign with ssh-keygen and this key `file`; a public key file if the private key is in ssh-agent")
	f.StringVar(&signature, "signature", "", "hand in the signature in this `file`")
	f.StringVar(&reason, "reason", "", "why, for the record")
	return c
}

func (a *app) standingCommand() *cobra.Command {
	var length, why string
	c := &cobra.Command{
		Use: "standing NAME", Short: "Ask officers to approve renewals of the same key material in advance",
		Long: `Ask officers to approve, once and until a date, that the key material which KMS holds now is imported again whenever it is due: renewals, drills,
and restores of the same material. Everything else, and any other material, way or destination, needs an approval of its own. The configuration
says how long it may be (approval.standing).`,
		Example: "  hsmbridge standing payments --for 90d --why 'monthly renewals'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if length == "" || why == "" {
				return usageError(errors.New("--for and --why are needed: officers read both"))
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			list, err := c.Standing(cmd.Context(), args[0], control.StandingRequest{For: length, Why: why})
			if err != nil {
				return err
			}
			for _, r := range list {
				if a.json {
					if err := writeJSON(a.out, r); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(a.out, "%s: officers were asked about %s until %s; hsmbridge show %s\n", r.Name, r.Destination, r.ValidUntil.UTC().Format(time.DateOnly), r.Name)
			}
			return &exitError{exitApproval, errShown}
		},
	}
	c.Flags().StringVar(&length, "for", "", "how long, such as 90d")
	c.Flags().StringVar(&why, "why", "", "what the officers read")
	return a.jsonFlag(c, "print one JSON object per request, each on a line")
}

func (a *app) withdrawCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "withdraw REQUEST...", Short: "Take requests for approval back that no job waits for",
		Long: "Take requests for approval back: of revocations, waivers, and standing approvals, which end with that. What a job waits for ends with the job (hsmbridge jobs cancel).",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usageError(errors.New("--reason is missing: it goes into the record"))
			}
			return a.each(args, "withdrawn", func(c *control.Client, n string) error {
				_, err := c.Withdraw(cmd.Context(), n, reason)
				return err
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}
