package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm"
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

	signatures  []signature // those of the room, with their files
	wrapping    bool        // the HSM was asked
	kept        bool        // the result is in its file
	begun, done int         // wraps that the log had before this session
}

func (a *app) wrap(ctx context.Context, args []string) (err error) {
	f := a.flags("wrap", "REQUEST", wrapAbout)
	config := f.String("c", "", "the room's configuration `file`")
	dry := f.Bool("dry-run", false, "go through all steps and wrap nothing")
	trusted := f.Bool("trusted", false, "the security officer logs in and trusts the wrapping key (for objects with CKA_WRAP_WITH_TRUSTED)")
	so := f.String("so-pin-file", "", "`file` with the PIN of the security officer; otherwise it is asked for")
	var signatures list
	f.Var(&signatures, "signature", "`file` with an officer's signature; may be given again")
	names, err := a.parse(f, args, 1)
	if err != nil {
		return err
	}
	c, err := load(ctx, *config)
	if err != nil {
		return err
	}
	s := &session{screens: a.screens(9), app: a, config: c, so: *so, name: strings.TrimSuffix(names[0], ceremony.RequestExt)}
	s.room = ceremony.Room{Config: c, Now: time.Now, DryRun: *dry}
	s.note = s.left
	if s.room.Text, err = readNamed(ctx, names[0]); err != nil {
		return err
	}
	if s.signatures, err = readSignatures(ctx, names[0], signatures); err != nil {
		return err
	}
	for _, g := range s.signatures {
		s.room.Signatures = append(s.room.Signatures, g.text)
	}
	if s.so != "" {
		if _, err := os.Stat(s.so); err != nil {
			return named(s.so, fmt.Errorf("--so-pin-file: %w", err))
		}
	}
	if *trusted {
		s.room.Trusted = s.wrapTrusted
	}
	return s.run(ctx)
}

// left is what every screen shows: how long KMS takes what is wrapped.
func (s *session) left() string {
	until := s.q.ParametersValidTo
	left := until.Sub(s.room.Now())
	word := "no time"
	if left > 0 {
		word = fmt.Sprintf("%d h %02d min", int(left.Hours()), int(left.Minutes())%60)
	}
	return fmt.Sprintf("%s left, until %s UTC", word, until.UTC().Format("2006-01-02 15:04"))
}

// screen begins a step. What is too late to be carried out of the room and uploaded ends here, and not behind the last step.
func (s *session) screen(title string) error {
	if s.room.DryRun {
		title += " (dry run)"
	}
	s.begin(title)
	return ceremony.InTime(s.q, s.room.Now(), ceremony.RoomMargin)
}

func (s *session) run(ctx context.Context) (err error) {
	if err := s.opening(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if done, err := s.finished(ctx); done || err != nil {
		return s.ended(err)
	}
	if err := s.room.InTime(); err != nil {
		return s.ended(err)
	}
	for _, step := range []func(context.Context) error{s.people, s.theRequest, s.approvals, s.clock, s.theHSM, s.theKey, s.howItWraps, s.theWrap} {
		if err := step(ctx); err != nil {
			s.flush()
			return s.stop(ctx, err)
		}
	}
	return nil
}

// close ends the login and unlocks the log.
func (s *session) close() error {
	var err error
	if s.token != nil {
		err = s.token.Close()
	}
	return errors.Join(err, s.room.Log.Close())
}

// opening reads the request before anything is written.
func (s *session) opening() (err error) {
	if s.q, err = s.room.Open(); err != nil {
		return err
	}
	if err := ceremony.Used(filepath.Dir(s.name), s.q); err != nil {
		return err
	}
	if err := s.twoLogins(); err != nil {
		return err
	}
	who := "unknown"
	if u, err := user.Current(); err == nil {
		who = approval.OneLine(u.Username)
	}
	if s.room.Log, err = ceremony.OpenLog(s.name+ceremony.LogExt, s.q.ID, who, time.Now); err != nil {
		return err
	}
	begun, done := s.room.Log.Wraps()
	s.begun, s.done = len(begun), len(done)
	return nil
}

// twoLogins holds that both PINs of a wrap under a trusted key can be had in the wrap: the user logs in again behind the security officer, when the module
// is loaded and its process starts no other any more.
func (s *session) twoLogins() error {
	k, _ := s.config.Key(s.q.Key)
	t, _ := s.config.Token(k.Token)
	switch {
	case s.room.Trusted == nil:
	case len(t.PINCommand) > 0:
		return configError{fmt.Errorf("token %s has pin_command, which is run once, before the module is loaded, and with --trusted the user logs in again in each wrap: give the token pin_prompt, pin_file or pin_credential in its place; nothing was begun", t.Name)}
	case t.Quirks.NeedsNoPIN() && s.so != "":
		return usageError{fmt.Errorf("--so-pin-file is given, and the PINs of token %s are typed at its device (quirks.protected_authentication_path): leave it out; nothing was begun", t.Name)}
	}
	return nil
}

// stop writes down why a session ended early.
func (s *session) stop(ctx context.Context, err error) error {
	why, what := err.Error(), "the session stopped before the key was wrapped"
	if ctx.Err() != nil {
		why = "interrupted"
	}
	if s.wrapping {
		what = "the session stopped in the wrap, or behind it"
	}
	if lerr := s.room.Record("ceremony-end", what, why); lerr != nil {
		return errors.Join(s.ended(err), lerr)
	}
	return s.ended(err)
}
