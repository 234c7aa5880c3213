package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm"
	"hsmbridge/hsm/wrapping"
)

func (s *session) people(ctx context.Context) error {
	if err := s.screen("who is here"); err != nil {
		return err
	}
	if sessions := s.room.Log.All("ceremony-open"); len(sessions) > 0 {
		last := sessions[len(sessions)-1]
		s.say("This ceremony was begun at %s.", begunBy(sessions[0]))
		if n := len(sessions); n > 1 {
			s.say("Its last session, of %d, began at %s.", n, begunBy(last))
		}
		s.say("It goes on; what was compared is compared again.")
		same, err := s.yes(ctx, "Are the same people here? Type yes, or no to name others:")
		if err != nil {
			return err
		}
		if same {
			s.room.People = person(last)
			return s.room.Record("ceremony-open", "the session goes on", "hsmceremony "+version)
		}
	}
	s.say("Two people carry out a ceremony: one operates, one watches and compares. Their names go into the log and the report.")
	operates, err := s.nameOf(ctx, "Name of the person who operates:", "")
	if err != nil {
		return err
	}
	watches, err := s.nameOf(ctx, "Name of the person who watches:", operates)
	if err != nil {
		return err
	}
	s.room.People = operates + ", " + watches
	message := "the session began"
	if s.room.DryRun {
		message = "a dry run began"
	}
	return s.room.Record("ceremony-open", message, "hsmceremony "+version)
}

// person is who a step of the log says was there.
func person(r audit.Record) string {
	if step, ok := r.Data.(*audit.Step); ok {
		return step.Person
	}
	return ""
}

// begunBy is when a session began, and with whom.
func begunBy(r audit.Record) string {
	return r.Time.UTC().Format(time.RFC3339) + " by " + person(r)
}

// nameOf lets somebody type the name of a person, who is another one than the first.
func (s *session) nameOf(ctx context.Context, question, first string) (string, error) {
	for try := 1; ; try++ {
		got, err := s.ask(ctx, question)
		if err != nil {
			return "", err
		}
		name := approval.OneLine(strings.Join(strings.Fields(strings.ReplaceAll(got, ",", " ")), " "))
		switch {
		case strings.EqualFold(name, "stop"):
			return "", &stoppedError{printable(got), "a name"}
		case name != "" && !strings.EqualFold(name, first):
			return name, nil
		case try == tries:
			return "", &ceremony.MismatchError{Reason: "two different people have to be here"}
		case name == "":
			s.say("A name is missing. Look again; type stop to end here.")
		default:
			s.say("%s is the person who operates, and two different people have to be here. Look again; type stop to end here.", name)
		}
	}
}

func (s *session) theRequest(ctx context.Context) error {
	if err := s.screen("the request"); err != nil {
		return err
	}
	for _, f := range s.q.Fields() {
		s.line(f.Name, f.Value)
	}
	short := approval.Short(approval.Digest(s.room.Text))
	s.gap()
	for i, der := range s.q.WrappingKeys {
		sum, err := hex.DecodeString(approval.Fingerprint(der))
		if err != nil {
			return fmt.Errorf("fingerprint: %w", err)
		}
		s.line(fmt.Sprintf("wrapping key %d, short", i+1), approval.Short(sum))
	}
	s.gap()
	s.say("Read every line. Whoever fetched the request reads the short SHA-256 of its text aloud, from the paper that was printed there. It is not on this screen: what is typed is compared, all of it.")
	if err := s.heard(ctx, "Type the four groups that you hear:", short); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the request was read, and its SHA-256 compared", short)
}

// heard lets somebody type a short SHA-256 that is read aloud, whole: of a part of it somebody who changes a request finds a text that has the
// same in no time. What is expected is not shown, so that nobody types it from the screen.
func (s *session) heard(ctx context.Context, question, want string) error {
	same := strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1") // as in Crockford's base 32
	for try := 1; ; try++ {
		got, err := s.ask(ctx, question)
		switch {
		case err != nil:
			return err
		case same.Replace(strings.ToUpper(got)) == same.Replace(want):
			return nil
		case strings.EqualFold(got, "stop"):
			return &stoppedError{printable(got), "the short SHA-256 of the request"}
		case try == tries || strings.EqualFold(got, "no"):
			return &ceremony.MismatchError{Reason: fmt.Sprintf("%q is not the short SHA-256 of this request: it is another one, or it was changed on its way here", printable(got))}
		}
		s.say("%q is not the short SHA-256 of this request. Have it read again; type stop to end here.", got)
	}
}

func (s *session) approvals(ctx context.Context) error {
	if err := s.screen("the officers"); err != nil {
		return err
	}
	d, needed, err := s.room.Approved()
	var policy approval.Policy
	if k, ok := s.config.Key(s.q.Key); ok && needed {
		rules, _ := s.config.ApprovalFor(k)
		var perr error
		if policy, perr = rules.Policy(); perr != nil {
			return perr
		}
	}
	for i, v := range d.Verdicts { // one for each signature, in their order
		who, why := signer(policy, v, s.signatures[i])
		if v.Counts {
			s.line(who, "counts; "+ceremony.How(v)+", "+v.Key)
		} else {
			s.line(who, "DOES NOT COUNT: "+why)
		}
	}
	switch {
	case !needed:
		s.say("The room's configuration asks for no approval of this key (approval:).")
		if err := s.confirm(ctx, "Type none to go on without one:", "none"); err != nil {
			return err
		}
		return s.room.Record("ceremony-check", "the key needs no approval", "")
	case err != nil:
		return err
	}
	s.gap()
	s.say("Approved by %s: %d of %d.", strings.Join(d.People(), ", "), d.Have, d.Need)
	if err := s.confirm(ctx, "Type approved to go on:", "approved"); err != nil {
		return err
	}
	for i, v := range d.Verdicts {
		if v.Counts {
			if err := s.room.Approval(v, s.room.Signatures[i]); err != nil {
				return err
			}
		}
	}
	return s.room.Record("ceremony-check", "officers approved the request", strings.Join(d.People(), ", "))
}

// signer says whose signature it is, and why it does not count: the officer whose key made it, or the key's fingerprint, or the file of what is no signature.
func signer(policy approval.Policy, v approval.Verdict, g signature) (who, why string) {
	switch {
	case v.Officer != "":
		return v.Officer, v.Message
	case v.Key == "":
		return g.file, v.Message
	case v.Reason != approval.NotAnOfficer:
		for _, o := range policy.Officers {
			if slices.ContainsFunc(o.Keys, func(k approval.Key) bool { return k.SHA256() == v.Key }) {
				return o.Name, v.Message
			}
		}
	}
	why = v.Message
	if s, err := approval.ParseSignature(g.text); err == nil && v.Reason == approval.NotAnOfficer && s.Namespace != approval.Namespace {
		why += fmt.Sprintf("; and the signature is for the namespace %q and not for %q", approval.OneLine(s.Namespace), approval.Namespace)
	}
	return v.Key, why
}

func (s *session) clock(ctx context.Context) error {
	if err := s.screen("the clock"); err != nil {
		return err
	}
	now := s.room.Now().UTC()
	s.line("this machine's time", now.Format("2006-01-02 15:04:05 UTC"))
	s.line("parameters until", s.q.ParametersValidTo.Format("2006-01-02 15:04:05 UTC"))
	s.line("request valid until", s.q.ValidUntil.Format("2006-01-02 15:04:05 UTC"))
	s.gap()
	s.say("Compare the time, in UTC, with a clock in the room. A wrong one lets an expired request pass, or stops a good one.")
	if err := s.confirm(ctx, "Type right if the time is right:", "right"); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the clock was compared", now.Format(time.RFC3339))
}

func (s *session) theHSM(ctx context.Context) error {
	if err := s.screen("the HSM"); err != nil {
		return err
	}
	s.say("The HSM is opened, and its user is logged in.")
	s.gap()
	s.flush()
	if err := s.open(ctx); err != nil {
		return err
	}
	id, err := s.room.CheckToken()
	if err != nil {
		return err
	}
	s.line("manufacturer, model", id.Manufacturer+" "+id.Model)
	s.line("token", id.Label)
	s.line("serial", id.Serial)
	s.line("hardware", id.Hardware)
	s.line("firmware", id.Firmware)
	for _, w := range s.token.Warnings() {
		s.line("WARNING", w)
	}
	s.gap()
	s.say("Compare the serial with the plate on the HSM, or with the HSM's own display.")
	const last = 4
	want := id.Serial[max(0, len(id.Serial)-last):]
	question := fmt.Sprintf("Type the last %d characters of the serial:", len(want))
	compared := s.confirm // a plate may have it in capital letters
	if want == "" {
		question, want, compared = "This HSM tells no serial. Type the label of the token:", id.Label, s.exactly
	}
	if err := compared(ctx, question, want); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the HSM was compared", id.Serial)
}

// open opens the HSM of the key and logs its user in.
func (s *session) open(ctx context.Context) error {
	k, _ := s.config.Key(s.q.Key)
	t, _ := s.config.Token(k.Token)
	var err error
	if s.token, s.user, err = openToken(ctx, t, s.out); err != nil {
		return err
	}
	s.room.Token = s.token
	return nil
}

// openToken opens an HSM and logs its user in. Where a PIN is typed at the device, out says when.
func openToken(ctx context.Context, t configs.Token, out io.Writer) (*hsm.Token, hsm.PINSource, error) {
	source, err := pin.Prepare(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	user := hsm.PINSource(source)
	token, err := hsm.Open(ctx, hsm.Config{Name: t.Name, Module: t.Module, Parameters: t.ModuleParameters, Environment: t.Environment, URI: t.URI, Quirks: t.Quirks, AtDevice: atDevice(out)}, user)
	return token, user, err
}

// atDevice tells people that a PIN is typed at the HSM's own device now, and whose.
func atDevice(out io.Writer) hsm.AtDevice {
	return func(_ context.Context, token wrapping.TokenIdentity, who string) error {
		fmt.Fprintf(out, "\nThe HSM (serial %s) asks for the PIN of its %s at its own device now: type it there, or put the key in. It asks once.\n", printable(token.Serial), strings.ToUpper(who))
		return nil
	}
}

func (s *session) theKey(ctx context.Context) error {
	if err := s.screen("the key"); err != nil {
		return err
	}
	key, material, err := s.room.FindKey(ctx)
	if err != nil {
		return err
	}
	s.line("label", key.Label)
	s.line("CKA_ID", hex.EncodeToString(key.ID))
	s.line("type", key.KeyType)
	s.line("key spec", string(key.KeySpec))
	if material == "" {
		s.line("size", fmt.Sprintf("%d bits", key.Bits))
	}
	s.line("which key", material)
	for _, b := range key.Blockers {
		if key.WrapWithTrusted && s.room.Trusted != nil && strings.Contains(b, "CKA_WRAP_WITH_TRUSTED") {
			s.line("note", "it may be wrapped only under a key that the security officer trusts, which is done in the wrap")
			continue
		}
		return &ceremony.MismatchError{Reason: fmt.Sprintf("the object %q cannot be wrapped: %s", key.Label, b)}
	}
	s.gap()
	switch {
	case material == "":
		s.say("The HSM tells nothing of the key itself by which it could be compared: its label, CKA_ID and size have to be those of the record of the key's making.")
	case s.q.Material == "":
		s.say("The request does not say which key it has to be. Compare with the record of the key's making.")
	}
	question, want, compared := "Type the label of the key:", key.Label, s.exactly
	if want == "" {
		question, want, compared = "The key has no label. Type its CKA_ID:", hex.EncodeToString(key.ID), s.confirm
	}
	if err := compared(ctx, question, want); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the key object was compared", key.Label+" "+material)
}

func (s *session) howItWraps(ctx context.Context) error {
	if err := s.screen("how it is wrapped"); err != nil {
		return err
	}
	s.say("The HSM tries with throwaway keys what it can do. This takes some seconds.")
	s.gap()
	s.flush()
	plan, err := s.room.Choose(ctx)
	if err != nil {
		return err
	}
	s.plan = plan
	s.line("wrapping algorithm", string(plan.Algorithm))
	s.line("wrapping key spec", string(plan.WrappingKeySpec))
	s.line("mechanism", plan.Mechanism.String())
	s.line("destination", s.q.Destination)
	if err := s.next(ctx); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the HSM's trial gave what KMS opens", plan.Mechanism.String())
}
