package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
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
  Nothing is created when the configuration could not be loaded with the keys; the exit code is 3 then.

What is printed belongs under keys: in the configuration. --out writes a fleet, to be corrected and given to adopt again: YAML, or a table when
the file ends in .csv. Keys that need a person, such as those that the configuration has otherwise, are named, and the exit code is 7. The columns of a CSV file are name,
token, uri, key_spec, expires, generate, destinations, regions, alias, description, multi_region, tags (k=v), replicas and backup (names of tokens), renew_before,
rotate_every and drill_every; lists are separated by spaces. What rows leave out is taken from the flags.`,
		Example: `  hsmbridge adopt --discover --region eu-central-1 --region us-east-1 --token luna --out proposed.yaml
  hsmbridge adopt fleet.csv --token luna --expires 90d --region eu-central-1 --alias 'alias/hsm/{name}' --create-kms-keys --append`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.discover == (len(args) == 1):
				return usageError(errors.New("give either --discover or a file"))
			case o.discover && len(o.regions) == 0:
				return usageError(errors.New("--discover needs at least one --region"))
			case o.discover && (o.create || o.alias != "" || len(o.tags) > 0 || o.policy != "" || o.multiRegion):
				return usageError(errors.New("--discover creates no KMS keys: leave --create-kms-keys, --alias, --tag, --policy and --multi-region out, or give a file of keys"))
			case o.appendTo && o.out != "":
				return usageError(errors.New("--append and --out exclude each other"))
			}
			if o.discover {
				err := a.discover(cmd.Context(), o)
				if err != nil && cmd.Context().Err() != nil {
					fmt.Fprintln(a.err, "hsmbridge: interrupted; nothing was changed")
					return shownInterrupt()
				}
				return err
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
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be created and written, and do neither")
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
