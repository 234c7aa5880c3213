package main

import (
	"bytes"
	"context"
	"crypto/rand"
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
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/ceremony/awsfiles"
	"hsmbridge/hsm/wrapping"
)

const requestAbout = `Make a request of AWS's own import files: the console's ImportParameters.zip (today's layout or the older one), the same unpacked, the JSON of
aws kms get-parameters-for-import, or a file with the public key. The result of the ceremony is EncryptedKeyMaterial.bin, which goes back to
the console, or to aws kms import-key-material together with the import token of the same download.`

// request makes a request of AWS's files.
func (a *app) request(ctx context.Context, args []string) error {
	f := a.flags("request", "KEY [DESTINATION]", requestAbout)
	config := f.String("c", "", "configuration `file`")
	from := f.String("from", "", "AWS's files: a .zip, a folder, a JSON file, or a file with the public key")
	algorithm := f.String("algorithm", "", "wrapping algorithm, where the files do not say it")
	until := f.String("valid-to", "", "until when KMS takes it (2030-01-31T12:00:00Z), where the files do not say it")
	why := f.String("why", "", "what officers read")
	out := f.String("out", ".", "`folder` for the request")
	action := f.String("action", "import", "what the import does: import, reimport or restore")
	names, err := a.parse(f, args, 2)
	if err != nil {
		return err
	}
	c, err := load(ctx, *config)
	if err != nil {
		return err
	}
	k, arn, err := destinationOf(c, names)
	if err != nil {
		return err
	}
	if *from == "" {
		return usageError{errors.New("--from is missing: AWS's import files")}
	}
	if _, err := os.Stat(*from); err != nil {
		return named(*from, fmt.Errorf("--from: %w", err))
	}
	if _, err := os.Stat(*out); err != nil {
		return named(*out, fmt.Errorf("--out: %w", err))
	}
	p, err := reading(ctx, func() (awsfiles.Parameters, error) { return awsfiles.Read(*from) })
	if err != nil {
		return err
	}
	q, err := requestFrom(p, k, arn, *algorithm, *until)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"import", "reimport", "restore"}, *action) {
		return usageError{fmt.Errorf("--action %s is none of import, reimport, restore", *action)}
	}
	q.Why, q.Action, q.Endpoint = approval.OneLine(*why), *action, approval.OneLine(c.KMS.Endpoint)
	life := time.Until(q.ParametersValidTo)
	if rules, needed := c.ApprovalFor(k); needed {
		life = min(life, rules.ValidFor.Duration())
	}
	return a.writeRequest(ctx, q, p, life, *out)
}

func destinationOf(c *configs.Config, names []string) (configs.Key, string, error) {
	k, ok := c.Key(names[0])
	switch {
	case !ok:
		return k, "", usageError{fmt.Errorf("the configuration has no key %q", names[0])}
	case len(names) == 1 && len(k.Destinations) == 1:
		return k, k.Destinations[0].ARN, nil
	}
	for _, d := range k.Destinations {
		if len(names) == 2 && d.ARN == names[1] {
			return k, d.ARN, nil
		}
	}
	return k, "", usageError{fmt.Errorf("name one of the destinations of %s", k.Name)}
}

// requestFrom says what is asked for with AWS's files.
func requestFrom(p awsfiles.Parameters, k configs.Key, arn, algorithm, until string) (approval.Request, error) {
	refuse := func(format string, args ...any) (approval.Request, error) {
		return approval.Request{}, &ceremony.MismatchError{Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case p.KeyID != "" && p.KeyID != arn && !strings.HasSuffix(arn, "/"+p.KeyID):
		return refuse("the files are for the KMS key %s, and the destination is %s: download them for that one", p.KeyID, arn)
	case p.Algorithm != "" && algorithm != "" && p.Algorithm != algorithm:
		return refuse("the files were made for %s, and --algorithm says %s: KMS would refuse the key", p.Algorithm, algorithm)
	}
	if p.Algorithm != "" {
		algorithm = p.Algorithm
	}
	if algorithm == "" {
		return refuse("the files do not say for which wrapping algorithm they were made: give --algorithm")
	}
	if !slices.Contains(k.KeySpec.Order(), wrapping.Algorithm(algorithm)) {
		return refuse("the files were made for %s, by which a %s key cannot go to KMS: download them for one of %v", algorithm, k.KeySpec, k.KeySpec.Order())
	}
	valid := p.Until()
	if until != "" {
		var err error
		if valid, err = time.Parse(time.RFC3339, until); err != nil {
			return approval.Request{}, usageError{fmt.Errorf("--valid-to: %w", err)}
		}
		if told := p.ValidTo; !told.IsZero() && valid.After(told) {
			return refuse("the files are valid until %s, and --valid-to says later", told.Format(time.RFC3339))
		}
	}
	const skew = 5 * time.Minute
	if most := time.Now().Add(awsfiles.Life); valid.After(most.Add(skew)) {
		if until != "" || !p.ValidTo.IsZero() {
			return refuse("they would be valid until %s, and AWS gives 24 hours: the time, or the clock of this machine, is wrong", valid.Format(time.RFC3339))
		}
		valid = most // the files' own times are in the future: another time zone, or a clock that is wrong
	}
	if valid.IsZero() {
		return refuse("the files do not say until when KMS takes what is wrapped with them: give --valid-to (24 hours after the download)")
	}
	expires := "never"
	if k.Expires != configs.Never {
		expires = k.Expires.String() + " after the import"
	}
	q := approval.Request{
		Purpose: approval.Import, Key: k.Name, KeySpec: string(k.KeySpec), Object: k.URI.String(), Destination: arn, Algorithm: algorithm, WrappingSpec: p.Spec,
		Expires: expires, ParametersValidTo: valid.UTC().Truncate(time.Second), WrappingKeys: [][]byte{p.PublicKey},
	}
	var err error
	q.ID, err = approval.NewID(rand.Reader)
	return q, err
}

// asked holds that no request in the folder was made of the same files.
func asked(ctx context.Context, folder string, public []byte) error {
	names, err := filepath.Glob(filepath.Join(escape(folder), "*"+ceremony.RequestExt))
	if err != nil {
		return fmt.Errorf("look for earlier requests: %w", err)
	}
	for _, name := range names {
		text, err := readFile(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			continue
		}
		q, err := approval.Parse(text)
		if err == nil && slices.ContainsFunc(q.WrappingKeys, func(der []byte) bool { return bytes.Equal(der, public) }) {
			return &ceremony.MismatchError{Reason: fmt.Sprintf("a request was made of these files already: %s; use that one, or download new files", name)}
		}
	}
	return nil
}

func (a *app) writeRequest(ctx context.Context, q approval.Request, p awsfiles.Parameters, life time.Duration, folder string) error {
	q.AskedBy = "unknown"
	if u, err := user.Current(); err == nil {
		q.AskedBy = approval.OneLine(u.Username)
	}
	q.AskedAt = time.Now().UTC().Truncate(time.Second)
	q.ValidUntil = q.AskedAt.Add(life).Truncate(time.Second)
	if err := ceremony.InTime(q, time.Now(), ceremony.RoomMargin); err != nil {
		return err
	}
	if err := ceremony.Used(folder, q); err != nil {
		return err
	}
	if err := asked(ctx, folder, p.PublicKey); err != nil {
		return err
	}
	text, err := q.Text()
	if err != nil {
		return err
	}
	name := filepath.Join(folder, q.Key+"-"+q.ID)
	if err := ceremony.WriteNew(name+ceremony.RequestExt, text, 0o644); err != nil {
		return err
	}
	s := a.screens(0)
	defer s.flush()
	s.say("%s", name+ceremony.RequestExt)
	s.line("read", strings.Join(p.Files, ", "))
	s.line("wrapping algorithm", q.Algorithm)
	s.line("wrapping key spec", q.WrappingSpec)
	s.line("KMS takes it until", q.ParametersValidTo.Format(time.RFC3339))
	s.line("SHA-256 of the text", approval.Short(approval.Digest(text)))
	if len(p.ImportToken) == 0 {
		return nil
	}
	t := ceremony.Tokens{Request: q.ID, SHA256: ceremony.Digest(text), Endpoint: q.Endpoint, ValidTo: q.ParametersValidTo, Tokens: [][]byte{p.ImportToken}}
	tokens, err := t.Text()
	if err != nil {
		return err
	}
	if err := ceremony.WriteNew(name+ceremony.TokensExt, tokens, 0o600); err != nil {
		return err
	}
	s.line(name+ceremony.TokensExt, "for hsmbridge ceremony upload; it does not go into the room")
	return nil
}
