package main

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

const wrapAbout = `The guided session. It reads the request, holds it against the room's configuration, decides the officers' signatures, shows the HSM and the
key, and wraps after every step was confirmed. Beside the request it writes NAME.wrapped (for hsmbridge ceremony upload),
EncryptedKeyMaterial.bin (for the console and aws kms import-key-material), NAME.log and the report. Run again after an interruption it
goes on. Signatures are the files NAME.request*.sig beside the request, and those that --signature names.`

// session is one wrap command.
type session struct {
	*screens
	app    *app
	room   ceremony.Room
	name   string // of the files, without the kind
	config *configs.Config
	token  *hsm.Token
	user   hsm.PINSource
	so     string
	q      approval.Request
	plan   wrapping.Plan
}

func (a *app) wrap(ctx context.Context, args []string) (err error) {
	f := a.flags("wrap", "REQUEST", wrapAbout)
	config := f.String("c", "", "the room's configuration `file`")
	dry := f.Bool("dry-run", false, "go through all steps and wrap nothing")
	trusted := f.Bool("trusted", false, "the security officer logs in and trusts the wrapping key (for objects with CKA_WRAP_WITH_TRUSTED)")
	so := f.String("so-pin-file", "", "`file` with the PIN of the security officer; otherwise it is asked for")
	var signatures list
	f.Var(&signatures, "signature", "`file` with an officer's signature; may be given again")
	names, err := parse(f, args, 1)
	if err != nil {
		return err
	}
	c, err := load(*config)
	if err != nil {
		return err
	}
	s := &session{screens: a.screens(8), app: a, config: c, so: *so, name: strings.TrimSuffix(names[0], ceremony.RequestExt)}
	s.room = ceremony.Room{Config: c, Now: time.Now, DryRun: *dry}
	if s.room.Text, err = ceremony.Read(names[0]); err != nil {
		return err
	}
	if s.room.Signatures, err = readSignatures(names[0], signatures); err != nil {
		return err
	}
	if *trusted {
		s.room.Trusted = s.wrapTrusted
	}
	return s.run(ctx)
}

func load(file string) (*configs.Config, error) {
	if file == "" {
		return nil, usageError{errors.New("-c is missing: the room's configuration, with the token, the key and its officers")}
	}
	c, err := configs.Load(file)
	if err != nil {
		return nil, configError{err}
	}
	return c, nil
}

// readSignatures reads those beside the request and those that are named, each once.
func readSignatures(request string, more []string) ([][]byte, error) {
	beside, err := filepath.Glob(escape(request) + "*.sig")
	if err != nil {
		return nil, fmt.Errorf("look for signatures: %w", err)
	}
	var out [][]byte
	for _, name := range append(beside, more...) {
		b, err := ceremony.Read(name)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, b) }) {
			out = append(out, b)
		}
	}
	return out, nil
}

// escape keeps the characters of a name from being taken for a pattern.
func escape(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

func (s *session) run(ctx context.Context) (err error) {
	if err := s.opening(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.room.Log.Close()) }()
	if done, err := s.finished(); done || err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{s.people, s.theRequest, s.approvals, s.clock, s.theHSM, s.theKey, s.howItWraps, s.theWrap} {
		if err := step(ctx); err != nil {
			return s.stop(ctx, err)
		}
	}
	return nil
}

// opening reads the request before anything is written.
func (s *session) opening(_ context.Context) (err error) {
	if s.q, err = s.room.Open(); err != nil {
		return err
	}
	who := "unknown"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	s.room.Log, err = ceremony.OpenLog(s.name+ceremony.LogExt, s.q.ID, who, time.Now)
	return err
}

// finished says what a session that is over has left.
func (s *session) finished() (bool, error) {
	text, err := os.ReadFile(s.name + ceremony.WrappedExt)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	w, err := ceremony.ParseWrapped(text)
	if err != nil {
		return true, fmt.Errorf("%s is there already and is not whole: %w; move it away to wrap again", s.name+ceremony.WrappedExt, err)
	}
	if err := w.Belongs(s.q, s.room.Text); err != nil {
		return true, fmt.Errorf("%s is there already and is of another ceremony: %w; move it away", s.name+ceremony.WrappedExt, err)
	}
	fmt.Fprintf(s.out, "This request was wrapped already, at %s: %s is what to carry out.\n", w.At.Format(time.RFC3339), s.name+ceremony.WrappedExt)
	d, _, err := s.room.Approved()
	var not *approval.NotApprovedError
	if err != nil && !errors.As(err, &not) {
		return true, err
	}
	return true, s.leave(w, d)
}

// stop writes down why a session ended early.
func (s *session) stop(ctx context.Context, err error) error {
	why := err.Error()
	if ctx.Err() != nil {
		why = "interrupted"
	}
	if lerr := s.room.Record("ceremony-end", "the session stopped before the key was wrapped", why); lerr != nil {
		return errors.Join(err, lerr)
	}
	return err
}

func (s *session) people(ctx context.Context) error {
	s.begin("who is here")
	if last := s.room.Log.Last("ceremony-open"); last != nil {
		step, _ := last.Data.(*audit.Step)
		s.say("This ceremony was begun at %s by %s.", last.Time.UTC().Format(time.RFC3339), step.Person)
		if got, err := s.ask(ctx, "Are the same people here? Type yes to go on with them, or no to name others:"); err != nil {
			return err
		} else if strings.EqualFold(got, "yes") {
			s.room.People = step.Person
			return s.room.Record("ceremony-open", "the session goes on", "")
		}
	}
	s.say("Two people carry out a ceremony: one operates, one watches and compares. Their names go into the log and the report.")
	var names []string
	for _, role := range []string{"operates", "watches"} {
		name, err := s.ask(ctx, "Name of the person who "+role+":")
		if err != nil {
			return err
		}
		name = approval.OneLine(strings.ReplaceAll(name, ",", " "))
		if name == "" || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) }) {
			return &ceremony.MismatchError{Reason: "two different people have to be here; nothing was done"}
		}
		names = append(names, name)
	}
	s.room.People = strings.Join(names, ", ")
	message := "the session began"
	if s.room.DryRun {
		message = "a dry run began"
	}
	return s.room.Record("ceremony-open", message, "hsmceremony "+version)
}

func (s *session) theRequest(ctx context.Context) error {
	s.begin("the request")
	for _, f := range s.q.Fields() {
		s.line(f.Name, f.Value)
	}
	short := approval.Short(approval.Digest(s.room.Text))
	fmt.Fprintln(s.out)
	s.line("SHA-256 of the text", short)
	s.line("", ceremony.Digest(s.room.Text))
	for i, der := range s.q.WrappingKeys {
		sum, _ := hex.DecodeString(approval.Fingerprint(der))
		s.line(fmt.Sprintf("wrapping key %d", i+1), approval.Short(sum))
	}
	fmt.Fprintln(s.out)
	s.say("Read every line. Then have the person who fetched the request read the SHA-256 aloud, from their own screen or paper, and compare.")
	first, _, _ := strings.Cut(short, "-")
	if err := s.confirm(ctx, "Type the first four characters that you hear:", first); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the request was read, and its SHA-256 compared", short)
}

func (s *session) approvals(ctx context.Context) error {
	s.begin("the officers")
	d, needed, err := s.room.Approved()
	for _, v := range d.Verdicts {
		what := "counts"
		if !v.Counts {
			what = "DOES NOT COUNT: " + v.Message
		}
		who := v.Officer
		if who == "" {
			who = "somebody"
		}
		s.line(who, what)
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
	s.say("Approved by %s: %d of %d.", strings.Join(d.People(), ", "), d.Have, d.Need)
	if err := s.confirm(ctx, "Type approved to go on:", "approved"); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "officers approved the request", strings.Join(d.People(), ", "))
}

func (s *session) clock(ctx context.Context) error {
	s.begin("the clock")
	now := time.Now().UTC()
	s.line("this machine's time", now.Format(time.RFC3339))
	s.line("parameters until", s.q.ParametersValidTo.Format(time.RFC3339))
	s.line("left", s.q.ParametersValidTo.Sub(now).Round(time.Minute).String())
	s.line("request valid until", s.q.ValidUntil.Format(time.RFC3339))
	fmt.Fprintln(s.out)
	s.say("Compare the time with a clock in the room. A wrong one lets an expired request pass, or stops a good one.")
	if err := s.confirm(ctx, "Type right if the time is right:", "right"); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the clock was compared", now.Format(time.RFC3339))
}

func (s *session) theHSM(ctx context.Context) error {
	s.begin("the HSM")
	k, _ := s.config.Key(s.q.Key)
	t, _ := s.config.Token(k.Token)
	s.say("The HSM is opened, and its user is logged in.")
	if err := s.open(ctx, t); err != nil {
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
	s.say("")
	s.say("Compare the serial with the plate on the HSM, or with the HSM's own display.")
	const last = 4
	want := id.Serial[max(0, len(id.Serial)-last):]
	if err := s.confirm(ctx, fmt.Sprintf("Type the last %d characters of the serial:", len(want)), want); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the HSM was compared", id.Serial)
}

func (s *session) open(ctx context.Context, t configs.Token) error {
	source, err := pin.Prepare(ctx, t)
	if err != nil {
		return err
	}
	s.user = hsm.PINSource(source)
	s.token, err = hsm.Open(ctx, hsm.Config{Name: t.Name, Module: t.Module, Parameters: t.ModuleParameters, Environment: t.Environment, URI: t.URI, Quirks: t.Quirks}, s.user)
	if err != nil {
		return err
	}
	s.room.Token = s.token
	return nil
}

func (s *session) theKey(ctx context.Context) error {
	s.begin("the key")
	key, material, err := s.room.FindKey(ctx)
	if err != nil {
		return err
	}
	s.line("label", key.Label)
	s.line("CKA_ID", hex.EncodeToString(key.ID))
	s.line("type", key.KeyType)
	s.line("key spec", string(key.KeySpec))
	s.line("which key", material)
	for _, b := range key.Blockers {
		if key.WrapWithTrusted && s.room.Trusted != nil && strings.Contains(b, "CKA_WRAP_WITH_TRUSTED") {
			s.line("note", "it may be wrapped only under a key that the security officer trusts, which is done in the last step")
			continue
		}
		return &ceremony.MismatchError{Reason: fmt.Sprintf("the object %q cannot be wrapped: %s", key.Label, b)}
	}
	fmt.Fprintln(s.out)
	if s.q.Material == "" && material != "" {
		s.say("The request does not say which key it has to be. Compare with the record of the key's making.")
	}
	if err := s.confirm(ctx, "Type the label of the key:", key.Label); err != nil {
		return err
	}
	return s.room.Record("ceremony-check", "the key object was compared", key.Label+" "+material)
}

func (s *session) howItWraps(ctx context.Context) error {
	s.begin("how it is wrapped")
	s.say("The HSM tries with throwaway keys what it can do. This takes some seconds.")
	plan, err := s.room.Choose(ctx)
	if err != nil {
		return err
	}
	s.plan = plan
	s.line("wrapping algorithm", string(plan.Algorithm))
	s.line("wrapping key spec", string(plan.WrappingKeySpec))
	s.line("mechanism", plan.Mechanism.String())
	s.line("destination", s.q.Destination)
	return s.room.Record("ceremony-check", "the HSM's trial gave what KMS opens", plan.Mechanism.String())
}

func (s *session) theWrap(ctx context.Context) error {
	s.begin("the wrap")
	if s.room.DryRun {
		s.say("This is a dry run: everything that comes before the wrap is as it has to be. Nothing was wrapped.")
		return s.room.Record("ceremony-end", "the dry run ended well; nothing was wrapped", "")
	}
	for _, ext := range []string{ceremony.WrappedExt, ceremony.ReportExt + ".txt", ceremony.ReportExt + ".json", ceremony.ReportExt + ".html"} {
		if _, err := os.Lstat(s.name + ext); err == nil {
			return &ceremony.ExistsError{Name: s.name + ext}
		}
	}
	s.say("The HSM wraps %s for %s now.", s.q.Key, s.q.Destination)
	if err := s.confirm(ctx, "Type the name of the key to have it wrapped:", s.q.Key); err != nil {
		return err
	}
	w, err := s.room.Wrap(ctx)
	if err != nil {
		return err
	}
	text, err := w.Text()
	if err != nil {
		return err
	}
	if err := ceremony.WriteNew(s.name+ceremony.WrappedExt, text, 0o644); err != nil {
		return err
	}
	d, _, err := s.room.Approved()
	if err != nil {
		return err
	}
	if err := s.room.Record("ceremony-write", "the wrapped key was written", s.name+ceremony.WrappedExt); err != nil {
		return err
	}
	if err := s.room.Record("ceremony-end", "the key was wrapped", ""); err != nil {
		return err
	}
	if err := s.signLog(ctx); err != nil {
		fmt.Fprintln(s.app.err, "hsmceremony: the log is not signed:", err)
	}
	if err := s.leave(w, d); err != nil {
		return err
	}
	return s.token.Close()
}

// wrapTrusted wraps with the security officer.
func (s *session) wrapTrusted(ctx context.Context, object pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	fmt.Fprintln(s.out, "\nThe SECURITY OFFICER of the HSM logs in, to trust the wrapping key; then its user logs in again.")
	so := hsm.PINSource(pin.SecurityOfficer(s.so))
	return s.token.WrapTrusted(ctx, so, s.user, object, pub, plan)
}

// signLog signs the log with the key that the configuration names, where it names one in this HSM.
func (s *session) signLog(ctx context.Context) error {
	k, _ := s.config.Key(s.q.Key)
	if s.config.Audit.Token != k.Token {
		return nil
	}
	key, err := s.token.Find(ctx, s.config.Audit.URI)
	if err != nil {
		return err
	}
	public, err := s.token.PublicKey(ctx, key)
	if err != nil {
		return err
	}
	return s.room.Log.Sign(public, func(message []byte) ([]byte, error) { return s.token.SignVerified(ctx, key, public, message) })
}

// leave writes what is carried out beside the wrapped key, and tells what to do with it. What is there already stays.
func (s *session) leave(w ceremony.Wrapped, d approval.Decision) error {
	bin := filepath.Join(filepath.Dir(s.name), ceremony.MaterialBin)
	var exists *ceremony.ExistsError
	if err := ceremony.WriteNew(bin, w.Keys[0].Bytes, 0o644); err != nil && !errors.As(err, &exists) {
		return err
	} else if err != nil {
		fmt.Fprintln(s.out, bin, "was there already and was not overwritten.")
	}
	r, err := ceremony.NewReport(s.q, s.room.Text, d, &w, s.room.Log.Records(), time.Now())
	if err != nil {
		return err
	}
	if place, err := s.room.Log.Place(); err == nil {
		r.LogPlace = place
	}
	if err := ceremony.WriteReport(s.name+ceremony.ReportExt, r); err != nil && !errors.As(err, &exists) {
		return err
	}
	fmt.Fprintf(s.out, "\nDone. Carry out of the room:\n\n")
	s.line(s.name+ceremony.WrappedExt, "for hsmbridge ceremony upload")
	s.line(s.name+ceremony.LogExt, "the log: "+r.LogPlace+"; write its root down on paper")
	s.line(s.name+ceremony.ReportExt+".html", "the report, to print and sign (.txt and .json too)")
	s.line(bin, "for the console or aws kms import-key-material, in place of the upload")
	fmt.Fprintln(s.out)
	s.say("KMS takes it until %s. Then run, where there is a network: hsmbridge ceremony upload %s", s.q.ParametersValidTo.Format(time.RFC3339), filepath.Base(s.name)+ceremony.WrappedExt)
	return nil
}
