package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
)

func (a *app) ceremonyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ceremony", Short: "Imports through an HSM room without a network: fetch and upload",
		Long: `An import in three steps on three machines: hsmbridge ceremony fetch here, hsmceremony wrap in the HSM room, hsmbridge ceremony upload here
again. Officers sign the request file in between. Only the request goes into the room, and only the wrapped key comes out; the import token
stays here. docs/ceremony.md is the script to follow.`,
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	for _, sub := range []*cobra.Command{a.fetchCommand(), a.uploadCommand(), a.mergeCommand()} {
		sub.Flags().StringVar(&a.socket, "socket", "", "the daemon's control `socket`, in place of the configuration's")
		c.AddCommand(sub)
	}
	return c
}

// fetchOptions are the flags of fetch.
type fetchOptions struct {
	destination, algorithm, spec, why, out string
	renew                                  bool
}

func (a *app) fetchCommand() *cobra.Command {
	var o fetchOptions
	c := &cobra.Command{
		Use: "fetch NAME", Short: "Fetch import parameters from KMS and make the request for officers and the HSM room",
		Long: `Fetch import parameters from KMS and write two files: NAME-ID.request, the text that officers sign and that goes into the HSM room with the
wrapping public key in it, and NAME-ID.importtoken, which stays here for the upload. KMS takes the result for 24 hours.

Which algorithm the HSM can do, hsmceremony can tells in the room. Without --algorithm it is AWS's first choice for the kind of key.`,
		Example: "  hsmbridge ceremony fetch payments --why 'first import' --algorithm RSAES_OAEP_SHA_1",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.fetch(cmd.Context(), args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.destination, "destination", "", "key `ARN`, where the key has several destinations")
	f.StringVar(&o.algorithm, "algorithm", "", "wrapping algorithm")
	f.StringVar(&o.spec, "wrapping-key-spec", "RSA_4096", "wrapping key spec")
	f.StringVar(&o.why, "why", "", "what officers read")
	f.StringVar(&o.out, "out", ".", "`folder` for the files")
	f.BoolVar(&o.renew, "renew", false, "also when KMS holds the material with the life asked for")
	return c
}

// pick finds the key and its destination.
func pick(c *configs.Config, name, arn string) (configs.Key, configs.Destination, error) {
	keys, err := keysNamed(c, []string{name}, false)
	if err != nil {
		return configs.Key{}, configs.Destination{}, err
	}
	k := keys[0]
	if arn == "" && len(k.Destinations) == 1 {
		return k, k.Destinations[0], nil
	}
	var all []string
	for _, d := range k.Destinations {
		if d.ARN == arn {
			return k, d, nil
		}
		all = append(all, d.ARN)
	}
	return k, configs.Destination{}, usageError(fmt.Errorf("name one of the destinations of %s by --destination: %s", name, strings.Join(all, ", ")))
}

func (a *app) fetch(ctx context.Context, name string, o fetchOptions) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	k, d, err := pick(c, name, o.destination)
	if err != nil {
		return err
	}
	if o.algorithm == "" {
		o.algorithm = string(k.KeySpec.Order()[0])
	}
	if !slices.Contains(k.KeySpec.Order(), wrapping.Algorithm(o.algorithm)) {
		return usageError(fmt.Errorf("%s is no wrapping algorithm for a %s key: take one of %v", o.algorithm, k.KeySpec, k.KeySpec.Order()))
	}
	conn := a.connect(c, nil)
	im := &importer.Importer{KMS: conn.destination}
	r := request(c, k, d, importOptions{renew: o.renew})
	remote, err := im.Remote(ctx, r)
	if err != nil {
		return err
	}
	if remote.Action == importer.ActionKeep {
		return &exitError{exitRefused, fmt.Errorf("KMS holds the material of %s with the life asked for, until %s: nothing was fetched; --renew fetches all the same", name, moment(remote.Info.ValidTo, true))}
	}
	kms, err := conn.destination(ctx, d.ARN)
	if err != nil {
		return err
	}
	n := 1
	if k.KeySpec.Kind() == wrapping.KindSymmetric && k.Prove && remote.KeyMaterialID == "" {
		n = 2 // the second wrap is the proof
	}
	q, tokens, err := fetched(ctx, kms, remote, k, d, o, n)
	if err != nil {
		return err
	}
	q.Endpoint = approval.OneLine(firstOf(d.Endpoint, c.KMS.Endpoint))
	tokens.Endpoint = q.Endpoint
	rules, needed := c.ApprovalFor(k)
	life := time.Until(q.ParametersValidTo)
	if needed {
		life = min(life, rules.ValidFor.Duration())
	}
	if err := a.named(&q, life); err != nil {
		return err
	}
	return a.writeRequest(ctx, q, tokens, o.out, needed)
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// fetched fetches n sets of import parameters and says what is asked for with them.
func fetched(ctx context.Context, kms importer.KMS, remote importer.Remote, k configs.Key, d configs.Destination, o fetchOptions, n int) (approval.Request, ceremony.Tokens, error) {
	q := approval.Request{
		Purpose: approval.Import, Why: approval.OneLine(o.why), Key: k.Name, KeySpec: string(k.KeySpec), Object: k.URI.String(), Destination: d.ARN, Action: string(remote.Action),
		Algorithm: o.algorithm, WrappingSpec: o.spec, ImportType: remote.ImportType, KeyMaterialID: remote.KeyMaterialID, Expires: lifeText(k), Proof: string(remote.Proof),
	}
	var t ceremony.Tokens
	for range n {
		p, err := kms.GetParametersForImport(ctx, d.ARN, o.algorithm, o.spec)
		if err != nil {
			return q, t, fmt.Errorf("get import parameters for %s: %w", k.Name, err)
		}
		q.WrappingKeys = append(q.WrappingKeys, p.PublicKeyDER)
		t.Tokens = append(t.Tokens, p.ImportToken)
		if until := p.ValidTo.UTC().Truncate(time.Second); q.ParametersValidTo.IsZero() || until.Before(q.ParametersValidTo) {
			q.ParametersValidTo = until
		}
	}
	return q, t, nil
}

func lifeText(k configs.Key) string {
	if k.Expires == configs.Never {
		return "never"
	}
	return k.Expires.String() + " after the import"
}

// named gives a request its name, who asks and until when.
func (a *app) named(q *approval.Request, life time.Duration) error {
	var err error
	if q.ID, err = approval.NewID(rand.Reader); err != nil {
		return err
	}
	q.AskedBy = "unknown"
	if u, err := user.Current(); err == nil {
		q.AskedBy = approval.OneLine(u.Username)
	}
	q.AskedAt = time.Now().UTC().Truncate(time.Second)
	q.ValidUntil = q.AskedAt.Add(life).Truncate(time.Second)
	return nil
}

func (a *app) writeRequest(ctx context.Context, q approval.Request, t ceremony.Tokens, folder string, needed bool) error {
	text, err := q.Text()
	if err != nil {
		return err
	}
	t.Request, t.SHA256, t.ValidTo = q.ID, ceremony.Digest(text), q.ParametersValidTo
	tokens, err := t.Text()
	if err != nil {
		return err
	}
	name := filepath.Join(folder, q.Key+"-"+q.ID)
	if err := ceremony.WriteNew(name+ceremony.TokensExt, tokens, 0o600); err != nil {
		return err
	}
	if err := ceremony.WriteNew(name+ceremony.RequestExt, text, 0o644); err != nil {
		return errors.Join(err, os.Remove(name+ceremony.TokensExt))
	}
	a.tell(ctx, "ceremony-fetch", q, text, "import parameters were fetched for a ceremony", name+ceremony.RequestExt)
	fmt.Fprintf(a.out, "%s\n  the request: officers sign it, and it goes into the HSM room\n%s\n  the import tokens: they stay here\n\n", name+ceremony.RequestExt, name+ceremony.TokensExt)
	fmt.Fprintf(a.out, "SHA-256 of the request, to be read aloud in the room: %s\n", approval.Short(approval.Digest(text)))
	for i, der := range q.WrappingKeys {
		sum, err := hex.DecodeString(approval.Fingerprint(der))
		if err != nil {
			return fmt.Errorf("fingerprint: %w", err)
		}
		fmt.Fprintf(a.out, "wrapping key %d: %s\n", i+1, approval.Short(sum))
	}
	fmt.Fprintf(a.out, "KMS takes the wrapped key until %s\n", q.ParametersValidTo.Format(time.RFC3339))
	if needed {
		fmt.Fprintf(a.out, "\nOfficers sign: hsmbridge approve --file %s\n          or:  ssh-keygen -Y sign -n %s -f KEY %s\n", name+ceremony.RequestExt, approval.Namespace, name+ceremony.RequestExt)
	}
	return nil
}

// tell writes a step of the ceremony into the daemon's audit log, where one serves. The room's log and the report have it in any case.
func (a *app) tell(ctx context.Context, kind string, q approval.Request, text []byte, message, file string) {
	c, err := a.daemon()
	if err != nil || !c.Serves(ctx) {
		fmt.Fprintf(a.err, "hsmbridge: no daemon serves here, so its audit log does not have this step\n")
		return
	}
	err = c.CeremonyStep(ctx, control.CeremonyStep{
		Kind: kind, Key: q.Key, Destination: q.Destination, Message: message, Request: q.ID, SHA256: ceremony.Digest(text), File: approval.OneLine(filepath.Base(file)),
	})
	if err != nil {
		a.complain(fmt.Errorf("the daemon's audit log does not have this step: %w", err))
	}
}

func (a *app) uploadCommand() *cobra.Command {
	var signatures []string
	c := &cobra.Command{
		Use: "upload FILE.wrapped", Short: "Import into KMS what was wrapped in the HSM room, and prove it",
		Long: `Import into KMS what was wrapped in the HSM room, and prove it. The request, the import tokens, the signatures (FILE.request*.sig) and the room's
log are expected beside FILE.wrapped. Everything is checked again before anything is sent: that the files belong together, the officers'
signatures, the times, and what KMS shows.

Afterwards the room's log is merged into the audit log of the daemon, where one serves, and FILE.result is written as text, JSON and HTML.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.upload(cmd.Context(), args[0], signatures) },
	}
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

func (a *app) upload(ctx context.Context, file string, signatures []string) error {
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
	conn := a.connect(c, nil)
	im := &importer.Importer{KMS: conn.destination, Record: a.record}
	r := request(c, u.key, u.dest, importOptions{renew: u.q.Action == string(importer.ActionReimport)})
	a.tell(ctx, "ceremony-upload", u.q, u.text, "what was wrapped in the HSM room is uploaded next", file)
	result, err := im.Upload(ctx, r, importer.Action(u.q.Action), ready(u))
	a.tell(ctx, "ceremony-upload", u.q, u.text, "the upload ended: "+firstLine(message(result, err)), file)
	if err != nil && result.Result == importer.Failed {
		return err
	}
	if werr := a.writeResult(ctx, u, result); werr != nil {
		err = errors.Join(err, werr)
	}
	if a.json {
		err = errors.Join(err, writeJSON(a.out, result))
	} else {
		a.printResults([]importer.Result{result})
	}
	return err
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
	if u.q.Expires != lifeText(u.key) || u.q.KeySpec != string(u.key.KeySpec) || u.q.Endpoint != approval.OneLine(firstOf(u.dest.Endpoint, c.KMS.Endpoint)) {
		return &exitError{exitRefused, fmt.Errorf("the configuration of %s has changed since the request was made (expiry, key spec or KMS endpoint): make a new request; nothing was sent", u.key.Name)}
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
	text, err := ceremony.Read(logFile)
	var report ceremony.Report
	if err != nil {
		fmt.Fprintf(a.err, "hsmbridge: the room's log is not here (%s): when it is, hsmbridge ceremony merge %s takes it over\n", err, logFile)
		report, err = ceremony.NewReport(u.q, u.text, u.decision, &u.wrapped, nil, time.Now())
	} else {
		records, perr := ceremony.Records(text)
		if perr != nil {
			return perr
		}
		if merr := a.merge(ctx, logFile); merr != nil {
			a.complain(merr)
		}
		report, err = ceremony.NewReport(u.q, u.text, u.decision, &u.wrapped, records, time.Now())
	}
	if err != nil {
		return err
	}
	report.Result = fmt.Sprintf("%s in AWS KMS, %s", r.Result, r.Proof)
	if report.People == "" {
		report.People = "unknown"
	}
	by := "unknown"
	if me, err := user.Current(); err == nil {
		by = me.Username
	}
	report.Upload = &ceremony.Upload{
		At: time.Now().UTC().Truncate(time.Second), By: by, RequestIDs: r.RequestIDs, KeyMaterialID: r.KeyMaterialID, Expires: r.Expires, Proof: string(r.Proof), Reason: r.ProofReason,
	}
	if err := ceremony.WriteReport(u.name+ceremony.ResultExt, report); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "hsmbridge: the report is in %s (.txt and .json too)\n", u.name+ceremony.ResultExt+".html")
	return nil
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
	fmt.Fprintf(a.err, "hsmbridge: %d records of the room's log were taken over into the audit log\n", n)
	return nil
}
