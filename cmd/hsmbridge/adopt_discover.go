package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/daemon/adopt"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

func (a *app) discover(ctx context.Context, o adoptOptions) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	if err := a.knownRegions(o.regions); err != nil {
		return err
	}
	if o.token, err = theToken(c, o.token); err != nil {
		return err
	}
	if err := life(&o.expires, "90d"); err != nil {
		return err
	}
	if only := c.KMS.Region; only != "" {
		if others := slices.DeleteFunc(unique(o.regions), func(r string) bool { return r == only }); len(others) > 0 {
			fmt.Fprintf(a.err, "hsmbridge: warning: kms.region of the configuration is %s, and it takes no KMS keys in %s: correct kms.region, or leave it out for keys in several Regions, before you add what is proposed\n", only, strings.Join(others, ", "))
		}
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
	if err := a.writable(o); err != nil {
		return err
	}
	list, known := adopt.Propose(all, c, adopt.Rules{Token: o.token, Expires: o.expires, Generate: configs.Generate(o.generate), RoleARN: o.roleARN, External: o.externalID})
	named := 0
	for _, f := range all {
		if known[f.ARN] != "" {
			named++
		}
	}
	a.note(ctx, c, list)
	fmt.Fprintf(a.err, "%s of origin EXTERNAL; the configuration names %d of them; %s proposed for the others\n",
		counted(len(all), "KMS key"), named, counted(len(list), "managed key"))
	if !o.appendTo {
		o.dryRun = o.dryRun && o.out != "" // to print changes nothing
		return a.result(list, o)
	}
	var absent []string
	list = slices.DeleteFunc(list, func(p adopt.Proposal) bool {
		out := p.Absent && p.Generate != configs.GenerateIfMissing
		if out {
			absent = append(absent, p.Name)
		}
		return out
	})
	if err := a.check(c, "", list, true); err != nil {
		return err
	}
	if err := a.result(list, o); err != nil {
		return err
	}
	if n := len(absent); n > 0 {
		return &exitError{exitPartly, &advised{
			fmt.Sprintf("%s left out, as the token %s has no key with the label and key spec: %s", counted(n, "key"), o.token, few(absent)),
			"write them with --out FILE in place of --append, correct each uri, then: hsmbridge adopt FILE --append",
		}}
	}
	return nil
}

// knownRegions refuses what is no name of a Region, and warns of one that AWS was not known to have: with an endpoint of its own a KMS answers for any, and
// tells that it has no keys. AWS adds Regions, so it is asked all the same.
func (a *app) knownRegions(regions []string) error {
	known := kmsclient.Regions()
	for _, r := range regions {
		meant := ""
		if m := configs.Meant(r, known); m != "" {
			meant = ": did you mean " + m + "?"
		}
		if !configs.IsRegion(r) {
			return usageError(fmt.Errorf("--region: %q is no AWS Region%s", r, cmp.Or(meant, ", such as eu-central-1")))
		}
		if !slices.Contains(known, r) {
			fmt.Fprintf(a.err, "hsmbridge: warning: --region %s: this version knows no such AWS Region%s\n", r, cmp.Or(meant, "; it is asked all the same"))
		}
	}
	return nil
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
			next := "correct the uri"
			if p.Generate == configs.GenerateIfMissing {
				next = "it would be generated"
			}
			p.Absent = true
			p.Notes = append(p.Notes, fmt.Sprintf("the token %s has no %s key with the label %s: %s", p.Token, p.KeySpec, p.Name, next))
			continue
		}
		p.Notes = append(p.Notes, keys[at].Blockers...)
	}
}
