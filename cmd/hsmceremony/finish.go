package main

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// finished goes on where the key was wrapped and its file written: nothing is wrapped once more, what is missing beside it is written.
func (s *session) finished(ctx context.Context) (bool, error) {
	name := s.name + ceremony.WrappedExt
	text, err := readFile(ctx, name)
	if errors.Is(err, os.ErrNotExist) {
		return false, s.nothingInTheWay()
	}
	if err != nil {
		return true, err
	}
	w, err := ceremony.ParseWrapped(text)
	if err != nil {
		return true, fmt.Errorf("%s is there already and is not whole: %w; move it away to wrap again", name, err)
	}
	if err := w.Belongs(s.q, s.room.Text); err != nil {
		return true, fmt.Errorf("%s is there already and is of another ceremony: %w; move it away", name, err)
	}
	s.kept = true
	if err := s.foreign(w.Keys[0].Bytes); err != nil {
		return true, err
	}
	d, _, err := s.room.Approved()
	var not *approval.NotApprovedError
	if err != nil && !errors.As(err, &not) {
		return true, err
	}
	if last := s.room.Log.Last("ceremony-open"); last != nil {
		s.room.People = person(*last)
	}
	s.step = s.of - 1
	s.begin("what to carry out")
	s.say("This request was wrapped already, at %s. Nothing is wrapped again.", w.At.Format(time.RFC3339))
	s.gap()
	return true, s.end(ctx, w, d)
}

// foreign holds that an EncryptedKeyMaterial.bin that is there is the one of this ceremony: somebody would carry the wrong one to AWS.
func (s *session) foreign(mine []byte) error {
	bin := filepath.Join(filepath.Dir(s.name), ceremony.MaterialBin)
	info, err := os.Lstat(bin)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for earlier results: %w", err)
	case !info.Mode().IsRegular(): // a link, or a pipe: nobody here made it
		return &ceremony.ExistsError{Name: bin}
	}
	got, err := ceremony.Read(bin)
	if err != nil || bytes.Equal(got, mine) {
		return err
	}
	return &ceremony.ExistsError{Name: bin}
}

func (s *session) theWrap(ctx context.Context) error {
	if err := s.screen("the wrap"); err != nil {
		return err
	}
	if err := s.nothingInTheWay(); err != nil { // it may have come since the session began
		return err
	}
	if err := s.before(ctx); err != nil {
		return err
	}
	if s.room.DryRun {
		s.say("This is a dry run: everything that comes before the wrap is as it has to be. Nothing was wrapped.")
		s.flush()
		return s.room.Record("ceremony-end", "the dry run ended well; nothing was wrapped", "")
	}
	s.line("key", s.q.Key)
	s.line("destination", s.q.Destination)
	s.line("wrapping algorithm", s.q.Algorithm)
	s.line("people", s.room.People)
	s.gap()
	s.say("The HSM wraps the key now, %s.", times(len(s.q.WrappingKeys)))
	if err := s.exactly(ctx, "Type the name of the key to have it wrapped:", s.q.Key); err != nil {
		return err
	}
	if err := s.nothingInTheWay(); err != nil {
		return err
	}
	s.wrapping = true
	w, err := s.room.Wrap(ctx)
	if err != nil {
		return err
	}
	text, err := w.Text()
	if err != nil {
		return err
	}
	if err := ceremony.WriteNew(s.name+ceremony.WrappedExt, text, 0o644); err != nil {
		return fmt.Errorf("the HSM wrapped the key, and the result could not be kept: %w; make room, and run the same command", err)
	}
	s.kept = true
	d, _, err := s.room.Approved()
	if err != nil {
		return err
	}
	s.begin("what to carry out")
	return s.end(ctx, w, d)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return "twice: the second one is the proof that KMS holds the same key"
}

// before shows what earlier sessions began, so that nobody wraps a key once more unawares.
func (s *session) before(ctx context.Context) error {
	begun, done := s.room.Log.Wraps()
	if len(begun) == 0 {
		return nil
	}
	s.say("ATTENTION. The HSM was asked to wrap this key before, and the result is not here:")
	s.gap()
	for _, r := range begun {
		step, _ := r.Data.(*audit.Step)
		s.line(fmt.Sprintf("record %d", r.N), fmt.Sprintf("%s, %s: begun", r.Time.UTC().Format("2006-01-02 15:04:05 UTC"), step.Person))
	}
	for _, r := range done {
		step, _ := r.Data.(*audit.Step)
		s.line(fmt.Sprintf("record %d", r.N), "done; output SHA-256 "+step.FileSHA)
	}
	s.gap()
	s.say("A session that was ended in the wrap leaves this. Somebody who moved the result away leaves it too: find out which. What was wrapped opens only with AWS's private key, and KMS takes it for this destination alone.")
	if err := s.confirm(ctx, "Type again to go on to another wrap:", "again"); err != nil {
		return err
	}
	s.room.Again = true
	return s.room.Record("ceremony-check", fmt.Sprintf("wraps were begun before (%d), and their result is not here; people decided to go on", len(begun)), "")
}

// wrapTrusted wraps with the security officer.
func (s *session) wrapTrusted(ctx context.Context, object pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	fmt.Fprintln(s.out, "\nThe SECURITY OFFICER of the HSM logs in, to trust the wrapping key; then its user logs in again.")
	so := hsm.PINSource(pin.SecurityOfficer(s.so))
	return s.token.WrapTrusted(ctx, so, s.user, object, pub, plan)
}

// end brings the log to its end, signs it, and writes the rest beside the wrapped key. Every part of it may have been done before.
func (s *session) end(ctx context.Context, w ceremony.Wrapped, d approval.Decision) error {
	const message = "the key was wrapped"
	if last := s.room.Log.Last("ceremony-end"); last == nil || last.Message != message {
		if err := s.room.Record("ceremony-write", "the wrapped key was written", filepath.Base(s.name)+ceremony.WrappedExt); err != nil {
			return err
		}
		if err := s.room.Record("ceremony-end", message, ""); err != nil {
			return err
		}
	}
	if err := s.signLog(ctx); err != nil {
		s.say("The log is not signed: %v", err)
		s.gap()
	}
	return s.leave(w, d)
}

// signLog signs the log with the key that the configuration names, where it names one in this HSM.
func (s *session) signLog(ctx context.Context) error {
	k, _ := s.config.Key(s.q.Key)
	if s.config.Audit.Token != k.Token || s.room.Log.Signed() {
		return nil
	}
	if s.token == nil { // the session was ended between the wrap and here
		if err := s.open(ctx); err != nil {
			return err
		}
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
	err := ceremony.WriteNew(bin, w.Keys[0].Bytes, 0o644)
	if errors.As(err, &exists) {
		err = s.foreign(w.Keys[0].Bytes) // it may have come since the session began
	}
	if err != nil {
		return err
	}
	r, err := ceremony.NewReport(s.q, s.room.Text, d, &w, s.room.Log.Records(), s.room.Now())
	if err != nil {
		return err
	}
	if r.LogPlace, err = s.room.Log.Place(); err != nil {
		return err
	}
	if err := ceremony.WriteReport(s.name+ceremony.ReportExt, r); err != nil {
		return err
	}
	base := filepath.Base(s.name)
	folder, err := filepath.Abs(filepath.Dir(s.name))
	if err != nil {
		folder = filepath.Dir(s.name)
	}
	s.say("Done. Carry out of the room, from %s:", folder)
	s.gap()
	s.line(base+ceremony.WrappedExt, "for hsmbridge ceremony upload")
	s.line(base+ceremony.LogExt, "the log")
	s.line(base+ceremony.ReportExt+".html", "the report, to print and sign (.txt and .json too)")
	s.line(ceremony.MaterialBin, "for the console or aws kms import-key-material, in place of the upload")
	s.gap()
	s.line("write on paper", "the log: "+r.LogPlace)
	s.gap()
	s.say("Then, where there is a network, before the time that is left ends: hsmbridge ceremony upload %s", base+ceremony.WrappedExt)
	s.flush()
	return nil
}
