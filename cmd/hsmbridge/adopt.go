package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/adopt"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// adoptOptions are the flags of adopt.
type adoptOptions struct {
	discover, create, dryRun, appendTo, multiRegion bool
	regions, tags                                   []string
	token, expires, generate, alias, policy, out    string
	roleARN, externalID                             string
}

func (a *app) adoptCommand() *cobra.Command {
	var o adoptOptions
	c := &cobra.Command{
		Use: "adopt [FLEET.csv | FLEET.yaml]", Short: "Start from KMS keys that exist, or from a list of keys",
		Long: `Start from what exists. Nothing is imported, and no configuration is changed without --append.

  --discover lists the KMS keys of origin EXTERNAL in --region, and proposes managed keys for those that the configuration does not name.

  FLEET.csv or FLEET.yaml lists managed keys. With --create-kms-keys (create-kms-keys: true in the YAML) the KMS keys that they are missing in
  their regions are created, with alias, tags, policy and multi-Region flag. Run again after an interruption it creates nothing twice.

The result is what belongs under keys: in the configuration; a file that ends in .csv gets a table instead. The columns of a CSV file are name,
token, uri, key_spec, expires, generate, destinations, regions, alias, description, multi_region and tags (k=v); lists are separated by spaces. What rows leave
out is taken from the flags.`,
		Example: `  hsmbridge adopt --discover --region eu-central-1 --region us-east-1 --token luna --out proposed.yaml
  hsmbridge adopt fleet.csv --token luna --expires 90d --region eu-central-1 --alias 'alias/hsm/{name}' --create-kms-keys --append`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.discover == (len(args) == 1):
				return usageError(errors.New("give either --discover or a file"))
			case o.discover && len(o.regions) == 0:
				return usageError(errors.New("--discover needs at least one --region"))
			case o.appendTo && o.out != "":
				return usageError(errors.New("--append and --out exclude each other"))
			}
			if o.discover {
				return a.discover(cmd.Context(), o)
			}
			return a.adopt(cmd.Context(), args[0], o)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.discover, "discover", false, "list the KMS keys of origin EXTERNAL and propose managed keys for them")
	f.StringArrayVar(&o.regions, "region", nil, "AWS `Region`; may be given again")
	f.StringVar(&o.token, "token", "", "`name` of the token that has the keys")
	f.StringVar(&o.expires, "expires", "", "life of the material in KMS, such as 90d, or never")
	f.StringVar(&o.generate, "generate", "", "never or if-missing: make keys in the token that are not there")
	f.StringVar(&o.roleARN, "role-arn", "", "role that is assumed for the destinations")
	f.StringVar(&o.externalID, "external-id", "", "external ID of the role")
	f.BoolVar(&o.create, "create-kms-keys", false, "create the KMS keys that are missing")
	f.StringVar(&o.alias, "alias", "", "alias of created KMS keys; {name} stands for the name")
	f.StringArrayVar(&o.tags, "tag", nil, "`name=value` of created KMS keys; may be given again")
	f.StringVar(&o.policy, "policy", "", "`file` with the key policy of created KMS keys")
	f.BoolVar(&o.multiRegion, "multi-region", false, "create multi-Region keys: the first Region has the primary")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be created, and create nothing")
	f.StringVar(&o.out, "out", "", "write the result to this `file`, which must not exist; .csv makes a table")
	f.BoolVar(&o.appendTo, "append", false, "put the result at the end of the configuration's keys, if it can be loaded then")
	return c
}

// place is the KMS client of a Region for adopt, which keeps AWS's request quotas by itself: no daemon need serve.
func (a *app) place(ctx context.Context, c *configs.Config, region string, o adoptOptions) (*kmsclient.Client, error) {
	return kmsclient.New(ctx, kmsclient.Config{
		Region: region, Endpoint: c.KMS.Endpoint, Profile: c.KMS.Profile, FIPS: c.KMS.FIPS, RoleARN: o.roleARN, ExternalID: o.externalID,
		Limit: (&pace{}).wait,
	})
}

// pace spaces requests out as AWS's default quotas have it.
type pace struct {
	mu   sync.Mutex
	next map[string]time.Time
}

func (p *pace) wait(ctx context.Context, operation, _ string) error {
	rate := 0.0
	for _, q := range kmsclient.Quotas() {
		if q.Operation == operation {
			rate = q.PerSecond
		}
	}
	if rate == 0 {
		return nil
	}
	p.mu.Lock()
	if p.next == nil {
		p.next = map[string]time.Time{}
	}
	at := p.next[operation]
	if now := time.Now(); at.Before(now) {
		at = now
	}
	p.next[operation] = at.Add(time.Duration(float64(time.Second) / rate))
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (a *app) discover(ctx context.Context, o adoptOptions) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	if o.token, err = theToken(c, o.token); err != nil {
		return err
	}
	if err := life(&o.expires, "90d"); err != nil {
		return err
	}
	var all []adopt.Found
	for _, region := range unique(o.regions) {
		kms, err := a.place(ctx, c, region, o)
		if err != nil {
			return err
		}
		found, err := adopt.Discover(ctx, kms, a.meter("looking at the KMS keys in "+region))
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	list, known := adopt.Propose(all, c, adopt.Rules{Token: o.token, Expires: o.expires, Generate: configs.Generate(o.generate), RoleARN: o.roleARN, External: o.externalID})
	named := 0
	for _, f := range all {
		if known[f.ARN] != "" {
			named++
		}
	}
	a.note(ctx, c, list)
	fmt.Fprintf(a.err, "%d KMS keys of origin EXTERNAL; the configuration names %d of them; %d managed keys are proposed for the others\n", len(all), named, len(list))
	return a.result(list, o)
}

// note adds to each proposal whether the token has the key. A token that cannot be opened is no reason to propose nothing.
func (a *app) note(ctx context.Context, c *configs.Config, list []adopt.Proposal) {
	if len(list) == 0 {
		return
	}
	conn := a.connect(c, []string{list[0].Token})
	defer conn.close() //nolint:errcheck // nothing was changed
	token, err := conn.token(ctx, list[0].Token)
	if err != nil {
		a.complain(fmt.Errorf("whether the token has the keys was not looked at: %w", err))
		return
	}
	keys, err := token.Keys(ctx)
	if err != nil {
		a.complain(fmt.Errorf("whether the token has the keys was not looked at: %w", err))
		return
	}
	for i := range list {
		p := &list[i]
		at := slices.IndexFunc(keys, func(k wrapping.Key) bool { return k.Label == p.Name && string(k.KeySpec) == p.KeySpec })
		if at < 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("the token %s has no %s key with the label %s: correct the uri", p.Token, p.KeySpec, p.Name))
			continue
		}
		p.Notes = append(p.Notes, keys[at].Blockers...)
	}
}

func (a *app) adopt(ctx context.Context, file string, o adoptOptions) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	rows, err := a.fleet(c, file, &o)
	if err != nil {
		return err
	}
	creator := &adopt.Creator{DryRun: o.dryRun, Did: func(what string) { fmt.Fprintln(a.err, what) }}
	creator.Client = func(ctx context.Context, region string) (adopt.KMS, error) { return a.place(ctx, c, region, o) }
	if o.policy != "" {
		policy, err := readSmall(o.policy)
		if err != nil {
			return err
		}
		creator.Policy = string(policy)
	}
	var list []adopt.Proposal
	var failed []error
	created := 0
	told := a.meter("adopting keys")
	for i, r := range rows {
		if _, there := c.Key(r.Name); there {
			continue // an earlier run put it into the configuration
		}
		n := 0
		if o.create {
			if r, n, err = creator.Ensure(ctx, r); err != nil {
				if ctx.Err() != nil {
					return errors.Join(ctx.Err(), fmt.Errorf("%d KMS keys were created; run the same command again, it goes on there", created))
				}
				failed = append(failed, err)
				continue
			}
		}
		created += n
		if len(r.Destinations) == 0 {
			if !o.dryRun {
				failed = append(failed, fmt.Errorf("%s has no destination: name KMS keys, or create them with --create-kms-keys", r.Name))
			}
			continue
		}
		for j := range r.Destinations {
			if r.Destinations[j].RoleARN == "" {
				r.Destinations[j].RoleARN, r.Destinations[j].ExternalID = o.roleARN, o.externalID
			}
		}
		list = append(list, adopt.Proposal{Row: r})
		told(i+1, len(rows))
	}
	fmt.Fprintf(a.err, "%d keys, %d new for the configuration, %d KMS keys %s\n", len(rows), len(list), created, map[bool]string{true: "would be created", false: "created"}[o.dryRun])
	if o.dryRun {
		return errors.Join(failed...)
	}
	if err := a.result(list, o); err != nil {
		return err
	}
	if len(failed) > 0 {
		for _, err := range failed {
			a.complain(err)
		}
		return &exitError{exitPartly, fmt.Errorf("%d keys need a person: see above; the others are done", len(failed))}
	}
	return nil
}

// fleet reads the file and fills in what the flags say.
func (a *app) fleet(c *configs.Config, file string, o *adoptOptions) ([]adopt.Row, error) {
	const most = 64 << 20
	f, err := os.Open(file)
	if err != nil {
		return nil, usageError(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(text) > most {
		err = errors.New("the file is longer than 64 MiB")
	}
	if err != nil {
		return nil, usageError(err)
	}
	var fleet adopt.Fleet
	switch ext := strings.ToLower(filepath.Ext(file)); ext {
	case ".csv":
		fleet, err = adopt.ParseCSV(text)
	case ".yaml", ".yml":
		fleet, err = adopt.ParseYAML(text)
	default:
		err = fmt.Errorf("a fleet is a .csv or a .yaml file, not %q", ext)
	}
	if err != nil {
		return nil, usageError(fmt.Errorf("%s: %w", file, err))
	}
	o.create = o.create || fleet.CreateKMSKeys
	if o.token == "" && len(c.Tokens) == 1 {
		o.token = c.Tokens[0].Name
	}
	flags := adopt.Row{Token: o.token, Expires: o.expires, Generate: configs.Generate(o.generate), Regions: o.regions, Alias: o.alias, MultiRegion: o.multiRegion, Tags: map[string]string{}}
	for _, t := range o.tags {
		k, v, ok := strings.Cut(t, "=")
		if !ok {
			return nil, usageError(fmt.Errorf("--tag %q is not name=value", t))
		}
		flags.Tags[k] = v
	}
	fleet, err = fleet.Complete(flags)
	if err != nil {
		return nil, usageError(fmt.Errorf("%s: %w", file, err))
	}
	for _, r := range fleet.Keys {
		if err := knownTokens(c, []string{r.Token}); err != nil {
			return nil, err
		}
	}
	return fleet.Keys, nil
}

func theToken(c *configs.Config, name string) (string, error) {
	if name == "" && len(c.Tokens) == 1 {
		return c.Tokens[0].Name, nil
	}
	if name == "" {
		return "", usageError(fmt.Errorf("--token is missing: the configuration has %s", strings.Join(tokenNames(c), ", ")))
	}
	return name, knownTokens(c, []string{name})
}

func life(value *string, otherwise string) error {
	if *value == "" {
		*value = otherwise
	}
	var d configs.Duration
	if err := d.UnmarshalText([]byte(*value)); err != nil {
		return usageError(fmt.Errorf("--expires: %w", err))
	}
	return nil
}

// result prints the keys, writes them to a file, or puts them into the configuration.
func (a *app) result(list []adopt.Proposal, o adoptOptions) error {
	text := adopt.YAML(list)
	switch {
	case o.appendTo:
		return a.appendKeys(text, len(list))
	case strings.EqualFold(filepath.Ext(o.out), ".csv"):
		var err error
		if text, err = adopt.CSV(list); err != nil {
			return err
		}
	}
	if o.out == "" {
		_, err := a.out.Write(text)
		return err
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // no secret is in it
	if err != nil {
		return usageError(err)
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// appendKeys puts keys at the end of the configuration's list, if the result can be loaded. The old file stays whole until then.
func (a *app) appendKeys(keys []byte, n int) error {
	if n == 0 {
		return nil
	}
	old, err := os.ReadFile(a.configFile)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	info, err := os.Stat(a.configFile)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	text, err := adopt.Append(old, keys)
	if err != nil {
		return &exitError{exitConfig, fmt.Errorf("%s: %w; nothing was changed", a.configFile, err)}
	}
	tmp, err := os.CreateTemp(filepath.Dir(a.configFile), ".adopt-*.yaml")
	if err != nil {
		return &exitError{exitConfig, err}
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed, or of no use
	if _, err = tmp.Write(text); err == nil {
		err = errors.Join(tmp.Chmod(info.Mode().Perm()), tmp.Sync())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return &exitError{exitConfig, err}
	}
	if _, err := configs.Load(tmp.Name()); err != nil {
		fmt.Fprintf(a.err, "%s was not changed: with these keys it could not be loaded; correct what follows and run the same command again\n", a.configFile)
		return err
	}
	if err := os.Rename(tmp.Name(), a.configFile); err != nil {
		return &exitError{exitConfig, err}
	}
	fmt.Fprintf(a.err, "%d keys were put into %s; hsmbridge reload tells the daemon\n", n, a.configFile)
	return nil
}

// meter tells on a terminal how far something is, how fast, and how long it still takes.
func (a *app) meter(what string) func(done, of int) {
	if !isTerminal(a.err) {
		return func(int, int) {}
	}
	began, last := time.Now(), time.Time{}
	return func(done, of int) {
		now := time.Now()
		if now.Sub(last) < 200*time.Millisecond && done < of {
			return
		}
		last = now
		rate := float64(done) / max(now.Sub(began).Seconds(), 0.001)
		left := time.Duration(float64(of-done)/max(rate, 0.001)) * time.Second
		fmt.Fprintf(a.err, "\r\x1b[K%s: %d of %d, %.1f a second, %s left", what, done, of, rate, left)
		if done == of {
			fmt.Fprintf(a.err, "\r\x1b[K")
		}
	}
}
