package main

import (
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
		Use: "ceremony", Short: "Imports through an HSM room without a network: fetch, upload and merge",
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
	renew, direct                          bool
}

func (a *app) fetchCommand() *cobra.Command {
	var o fetchOptions
	c := &cobra.Command{
		Use: "fetch NAME", Short: "Fetch import parameters from KMS and make the request for officers and the HSM room",
		Long: `Fetch import parameters from KMS and write two files: NAME-ID.request, the text that officers sign and that goes into the HSM room with the
wrapping public key in it, and NAME-ID.importtoken, which stays here for the upload. KMS takes the result for 24 hours.

A key that was revoked or paused is refused by the daemon, where one serves.

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
	directFlag(c, &o.direct)
	return c
}

// directFlag is the flag of steps that go on without the daemon that looks after the keys.
func directFlag(c *cobra.Command, direct *bool) {
	c.Flags().BoolVar(direct, "direct", false, "although the daemon whose database is there does not answer: what it knows of revocations and pauses is not asked, and its audit log does not have the step")
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
		return usageError(fmt.Errorf("%s is no wrapping algorithm for keys of spec %s: take one of %v", o.algorithm, k.KeySpec, k.KeySpec.Order()))
	}
	beside, err := a.beside(ctx, "nothing was fetched", o.direct)
	if err != nil {
		return err
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
	tokens.IDs = approval.OneLine(strings.Join(conn.ids, " "))
	q.Endpoint = approval.OneLine(kms.Endpoint()) // also when the environment or the AWS files chose it
	tokens.Endpoint = q.Endpoint
	rules, needed := c.ApprovalFor(k)
	life := time.Until(q.ParametersValidTo)
	if needed {
		life = min(life, rules.ValidFor.Duration())
	}
	if err := a.named(&q, life); err != nil {
		return err
	}
	return a.writeRequest(ctx, beside, q, tokens, o.out, needed)
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

func (a *app) writeRequest(ctx context.Context, beside *control.Client, q approval.Request, t ceremony.Tokens, folder string, needed bool) error {
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
	if err := tell(ctx, beside, q, text, ceremonyStep{kind: fetchStep, message: "import parameters were fetched for a ceremony", file: name + ceremony.RequestExt}); err != nil {
		return errors.Join(fmt.Errorf("%w; the files were removed", err), os.Remove(name+ceremony.TokensExt), os.Remove(name+ceremony.RequestExt))
	}
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
