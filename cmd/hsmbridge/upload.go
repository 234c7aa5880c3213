package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
)

// Steps of a ceremony that are taken on the machine with a network.
const (
	fetchStep  = "ceremony-fetch"
	uploadStep = "ceremony-upload"
)

// ceremonyStep is a step of a ceremony that the daemon is told of.
type ceremonyStep struct {
	kind, message, file string
	ended               bool // otherwise it is about to begin, and the daemon may refuse it
	imported            bool // KMS took the key material
}

// beside is the daemon that is told of the steps of a ceremony, and refuses them for a key that was revoked or paused. Nil: none serves here, or --direct goes on
// without the one that does not answer. undone says what was not done where there has to be one.
func (a *app) beside(ctx context.Context, undone string, direct bool) (*control.Client, error) {
	c, err := a.served(ctx, undone)
	if err != nil && direct {
		c, err = nil, nil
	}
	if err == nil && c == nil {
		fmt.Fprintf(a.err, "hsmbridge: no daemon serves here, so its audit log does not have this step\n")
	}
	return c, err
}

// tell writes a step of the ceremony into the daemon's audit log, where there is one. The room's log and the report have it in any case.
func tell(ctx context.Context, c *control.Client, q approval.Request, text []byte, t ceremonyStep) error {
	if c == nil {
		return nil
	}
	err := c.CeremonyStep(ctx, control.CeremonyStep{
		Kind: t.kind, Key: q.Key, Destination: q.Destination, Message: t.message, Request: q.ID, SHA256: ceremony.Digest(text), File: approval.OneLine(filepath.Base(t.file)),
		Ended: t.ended, Imported: t.imported,
	})
	var refused *control.Error
	switch {
	case errors.As(err, &refused) && refused.Status == http.StatusConflict:
		return err // says by itself what was refused
	case err != nil:
		return fmt.Errorf("the daemon's audit log does not have this step: %w", err)
	}
	return nil
}

func (a *app) uploadCommand() *cobra.Command {
	var signatures []string
	var direct bool
	c := &cobra.Command{
		Use: "upload FILE.wrapped", Short: "Import into KMS what was wrapped in the HSM room, and prove it",
		Long: `Import into KMS what was wrapped in the HSM room, and prove it. The request, the import tokens, the signatures (FILE.request*.sig) and the room's
log are expected beside FILE.wrapped. Everything is checked again before anything is sent: that the files belong together, the officers'
signatures, the times, and what KMS shows. A key that was revoked or paused is refused by the daemon, where one serves.

Afterwards the room's log is merged into the audit log of the daemon, where one serves, and FILE.result is written as text, JSON and HTML.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.upload(cmd.Context(), args[0], signatures, direct)
		},
	}
	directFlag(c, &direct)
	c.Flags().StringArrayVar(&signatures, "signature", nil, "`file` with an officer's signature; may be given again")
	return c
}

// uploaded is everything that an upload needs.
type uploaded struct {
	name     string
	text     []byte
	q        approval.Request
	tokens   ceremony.Tokens
	wrapped  ceremony.Wrapped
	key      configs.Key
	dest     configs.Destination
	decision approval.Decision
}

func (a *app) upload(ctx context.Context, file string, signatures []string, direct bool) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	u, err := gather(c, file, signatures)
	if err != nil {
		return err
	}
	for _, ext := range []string{".txt", ".json", ".html"} {
		if _, err := os.Lstat(u.name + ceremony.ResultExt + ext); err == nil {
			return &exitError{exitRefused, fmt.Errorf("%s is there: this was uploaded already; nothing was sent", u.name+ceremony.ResultExt+ext)}
		}
	}
	d, err := a.beside(ctx, "nothing was sent", direct)
	if err != nil {
		return err
	}
	conn := a.connect(c, nil)
	kms, err := conn.destination(ctx, u.dest.ARN)
	if err != nil {
		return err
	}
	if got := approval.OneLine(kms.Endpoint()); got != u.q.Endpoint {
		return &exitError{exitRefused, fmt.Errorf("the request is for the KMS endpoint %q, and this machine would call %q: make a new request; nothing was sent", u.q.Endpoint, got)}
	}
	im := &importer.Importer{KMS: conn.destination, Record: a.record}
	r := request(c, u.key, u.dest, importOptions{renew: u.q.Action == string(importer.ActionReimport)})
	if err := tell(ctx, d, u.q, u.text, ceremonyStep{kind: uploadStep, message: "what was wrapped in the HSM room is uploaded next", file: file}); err != nil {
		return fmt.Errorf("%w; nothing was sent", err)
	}
	result, err := im.Upload(ctx, r, importer.Action(u.q.Action), ready(u))
	ended := ceremonyStep{kind: uploadStep, message: "the upload ended: " + firstLine(message(result, err)), file: file, ended: true, imported: result.Took()}
	if terr := tell(context.WithoutCancel(ctx), d, u.q, u.text, ended); terr != nil {
		a.complain(terr)
	}
	if err != nil && result.Result == importer.Failed {
		return err
	}
	if result.Result != importer.Unknown { // of that there is no report, so that the same command can be given again
		if werr := a.writeResult(ctx, u, result); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	if serr := a.show(result); serr != nil {
		err = errors.Join(err, serr)
	}
	return err
}

// show prints the result of an upload.
func (a *app) show(r importer.Result) error {
	if a.json {
		return writeJSON(a.out, r)
	}
	a.printResults([]importer.Result{r})
	return nil
}

func message(r importer.Result, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s, %s", r.Result, r.Proof)
}

// ready is what the importer takes.
func ready(u uploaded) importer.Ready {
	w := u.wrapped
	out := importer.Ready{
		Token: u.tokens.Tokens[0], Wrapped: w.Keys[0].Bytes, Public: w.Public, Mechanism: w.Mechanism, WrappingKeySHA256: w.Keys[0].WrappingKey,
		Algorithm: wrapping.Algorithm(w.Algorithm), WrappingKeySpec: wrapping.WrappingKeySpec(u.q.WrappingSpec), Message: approval.Digest(u.text),
	}
	if mac, err := hex.DecodeString(w.MAC); err == nil {
		out.MAC = mac
	}
	if len(w.Keys) > 1 {
		out.ProofToken, out.ProofWrapped = u.tokens.Tokens[1], w.Keys[1].Bytes
	}
	return out
}

// gather reads the files of a ceremony and holds that they belong together, were approved, and are in time.
func gather(c *configs.Config, file string, signatures []string) (uploaded, error) {
	u := uploaded{name: strings.TrimSuffix(file, ceremony.WrappedExt)}
	wrapped, err := ceremony.Read(file)
	if err != nil {
		return u, usageError(err)
	}
	if u.wrapped, err = ceremony.ParseWrapped(wrapped); err != nil {
		return u, err
	}
	if u.text, err = ceremony.Read(u.name + ceremony.RequestExt); err != nil {
		return u, usageError(err)
	}
	if u.q, err = approval.Parse(u.text); err != nil {
		return u, &exitError{exitRefused, err}
	}
	tokens, err := ceremony.Read(u.name + ceremony.TokensExt)
	if err != nil {
		return u, usageError(fmt.Errorf("%w; it was written by hsmbridge ceremony fetch and stays on the machine with a network", err))
	}
	if u.tokens, err = ceremony.ParseTokens(tokens); err != nil {
		return u, err
	}
	if u.key, u.dest, err = pick(c, u.q.Key, u.q.Destination); err != nil {
		return u, err
	}
	err = u.check(c, signatures)
	return u, err
}

// check is what has to hold before anything is sent.
func (u *uploaded) check(c *configs.Config, signatures []string) error {
	now := time.Now()
	for _, err := range []error{
		u.wrapped.Belongs(u.q, u.text), u.tokens.Belongs(u.q, u.text), ceremony.InTime(u.q, now, ceremony.UploadMargin),
	} {
		if err != nil {
			return err
		}
	}
	spec := wrapping.WrappingKeySpec(u.q.WrappingSpec)
	for i, k := range u.wrapped.Keys {
		if n := spec.Bytes(); len(k.Bytes) < n || !wrapping.Algorithm(u.q.Algorithm).TwoPart() && len(k.Bytes) != n {
			return &exitError{exitRefused, fmt.Errorf("the wrapped key %d has %d bytes, and %s under %s gives %d: the file was damaged, or the HSM did something else; nothing was sent", i+1, len(k.Bytes), u.q.Algorithm, spec, n)}
		}
	}
	if u.q.Expires != lifeText(u.key) || u.q.KeySpec != string(u.key.KeySpec) {
		return &exitError{exitRefused, fmt.Errorf("the configuration of %s has changed since the request was made (expiry or key spec): make a new request; nothing was sent", u.key.Name)}
	}
	rules, needed := c.ApprovalFor(u.key)
	if !needed {
		return nil
	}
	policy, err := rules.Policy()
	if err != nil {
		return err
	}
	if u.q.ValidUntil.Sub(u.q.AskedAt) > rules.ValidFor.Duration() {
		return &exitError{exitRefused, errors.New("the request can be used for longer than the configuration allows (approval.valid_for); nothing was sent")}
	}
	signed, err := signaturesOf(u.name+ceremony.RequestExt, signatures)
	if err != nil {
		return err
	}
	if u.decision, err = policy.Decide(u.text, signed, now); err != nil {
		return err
	}
	return u.decision.Err()
}

// signaturesOf reads the signatures beside a request, and those that are named.
func signaturesOf(request string, more []string) ([][]byte, error) {
	folder, err := os.ReadDir(filepath.Dir(request))
	if err != nil {
		return nil, usageError(err)
	}
	for _, e := range folder {
		if strings.HasPrefix(e.Name(), filepath.Base(request)) && strings.HasSuffix(e.Name(), ".sig") {
			more = append(more, filepath.Join(filepath.Dir(request), e.Name()))
		}
	}
	var out [][]byte
	for _, name := range more {
		b, err := ceremony.Read(name)
		if err != nil {
			return nil, usageError(err)
		}
		if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, b) }) {
			out = append(out, b)
		}
	}
	return out, nil
}

// writeResult writes the report with what KMS did, and merges the room's log.
func (a *app) writeResult(ctx context.Context, u uploaded, r importer.Result) error {
	logFile := u.name + ceremony.LogExt
	var records []audit.Record
	text, err := ceremony.Read(logFile)
	if err != nil {
		fmt.Fprintf(a.err, "hsmbridge: the room's log is not here (%s): when it is, hsmbridge ceremony merge %s takes it over\n", err, logFile)
	} else {
		if records, err = ceremony.Records(text); err != nil {
			return err
		}
		if err := a.merge(ctx, logFile); err != nil {
			a.complain(err)
		}
	}
	report, err := ceremony.NewReport(u.q, u.text, u.decision, &u.wrapped, records, time.Now())
	if err != nil {
		return err
	}
	if err := a.places(ctx, &report, u.q); err != nil {
		a.complain(fmt.Errorf("the report does not say where the steps are in the audit log: %w", err))
	}
	report.Result = fmt.Sprintf("%s in AWS KMS, %s", r.Result, r.Proof)
	if r.Result == importer.Unchanged {
		report.Result = fmt.Sprintf("AWS KMS held the key already when this was uploaded, %s", r.Proof)
	}
	if report.People == "" {
		report.People = "unknown"
	}
	by := "unknown"
	if me, err := user.Current(); err == nil {
		by = me.Username
	}
	report.Upload = &ceremony.Upload{
		At: time.Now().UTC().Truncate(time.Second), By: by, Held: r.Result == importer.Unchanged, RequestIDs: r.RequestIDs, KeyMaterialID: r.KeyMaterialID, Expires: r.Expires, Proof: string(r.Proof), Reason: r.ProofReason,
		Fetched: strings.Fields(u.tokens.IDs),
	}
	if err := ceremony.WriteReport(u.name+ceremony.ResultExt, report); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "hsmbridge: the report is in %s (.txt and .json too)\n", u.name+ceremony.ResultExt+".html")
	return nil
}

// places writes into the report where its steps are in the daemon's audit log. It reads the log backwards, to the time at which the request was made.
func (a *app) places(ctx context.Context, report *ceremony.Report, q approval.Request) error {
	c, err := a.daemon()
	if err != nil || !c.Serves(ctx) {
		return err
	}
	const page, margin = 500, time.Hour
	p, err := c.AuditPage(ctx, 1, 1)
	if err != nil {
		return err
	}
	var records []audit.Record
	for first := p.Size; first > 0; {
		n := min(first, page)
		first -= n
		if p, err = c.AuditPage(ctx, first+1, int(n)); err != nil {
			return err
		}
		var got []audit.Record
		for _, l := range p.Records {
			r, err := audit.Decode(l.Record)
			var unknown *audit.UnknownKindError
			if err != nil && !errors.As(err, &unknown) {
				return err
			}
			got = append(got, r)
		}
		records = append(got, records...)
		if len(got) == 0 || got[0].Time.Before(q.AskedAt.Add(-margin)) {
			break
		}
	}
	return report.Place(p.Origin, records)
}

func (a *app) mergeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "merge FILE.log", Short: "Take the room's log over into the daemon's audit log",
		Long: "Take the room's log over into the daemon's audit log: each record as it is, with its number and hash. ceremony upload does it by itself; a log that is there already is not added twice.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.merge(cmd.Context(), args[0]) },
	}
}

func (a *app) merge(ctx context.Context, file string) error {
	text, err := ceremony.Read(file)
	if err != nil {
		return usageError(err)
	}
	if _, err := ceremony.Records(text); err != nil {
		return err
	}
	c, err := a.daemon()
	if err != nil {
		return err
	}
	if !c.Serves(ctx) {
		return &exitError{exitUnexpected, fmt.Errorf("no daemon serves here, so the room's log was not taken over; when one does, run hsmbridge ceremony merge %s", file)}
	}
	n, err := c.MergeCeremony(ctx, string(text))
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "hsmbridge: taken over into the audit log: %s of the room's log\n", counted(n, "record"))
	return nil
}
