package adopt

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"hsmbridge/kmsclient"
)

// Creator creates the KMS keys that a fleet is missing. Run again it creates nothing twice: a key is found by its alias, or by [NameTag]
// when the alias is not there yet. What was sent to KMS is waited for, also when the context ends meanwhile: KMS would go on with it, and
// a run right after might not find it yet.
type Creator struct {
	Client func(ctx context.Context, region string) (KMS, error)
	Policy string // key policy, JSON; empty: the account's default
	DryRun bool   // say what would be created, and create nothing
	Did    func(what string)

	regions map[string]*region
}

// region is what there is in one Region.
type region struct {
	kms     KMS
	byAlias map[string]string // ARN
	byTag   map[string]string
	byARN   map[string]Found
}

// look reads what is in a Region, once.
func (c *Creator) look(ctx context.Context, name string) (*region, error) {
	if r := c.regions[name]; r != nil {
		return r, nil
	}
	kms, err := c.Client(ctx, name)
	if err != nil {
		return nil, err
	}
	found, err := Discover(ctx, kms, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	aliases, err := kms.ListAliases(ctx) // of keys of every origin: a name that is taken is taken
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r := &region{kms: kms, byAlias: map[string]string{}, byTag: map[string]string{}, byARN: map[string]Found{}}
	for id, list := range aliases {
		for _, a := range list {
			r.byAlias[a] = id
		}
	}
	for _, f := range found {
		r.byARN[f.ARN] = f
		for _, a := range f.Aliases {
			r.byAlias[a] = f.ARN
		}
		if n := f.Tags[NameTag]; n != "" {
			r.byTag[n] = f.ARN
		}
	}
	if c.regions == nil {
		c.regions = map[string]*region{}
	}
	c.regions[name] = r
	return r, nil
}

// ExistsError says that a KMS key is there that cannot be the one.
type ExistsError struct{ Name, Reason string }

func (e *ExistsError) Error() string { return e.Name + ": " + e.Reason }

// Class is "caller".
func (e *ExistsError) Class() string { return "caller" }

// Ensure gives the row with the KMS keys of all its Regions among its destinations, those that were missing created. created says how many
// were. In a dry run the ARNs of keys that would be created are missing.
func (c *Creator) Ensure(ctx context.Context, r Row) (_ Row, created int, err error) {
	have := map[string]string{}
	for _, d := range r.Destinations {
		a, err := kmsclient.ParseARN(d.ARN)
		if err != nil {
			return r, 0, fmt.Errorf("%s: %w", r.Name, err)
		}
		have[a.Region] = d.ARN
	}
	var primary string
	for i, name := range r.Regions {
		if arn := have[name]; arn != "" {
			if i == 0 {
				primary = arn
			}
			continue
		}
		arn, made, err := c.ensure(ctx, r, name, primary)
		if made {
			created++ // also when only its alias is missing
		}
		if err != nil {
			return r, created, fmt.Errorf("%s in %s: %w", r.Name, name, err)
		}
		if i == 0 {
			primary = arn
		}
		if arn != "" {
			r.Destinations = append(r.Destinations, Destination{ARN: arn})
		}
	}
	return r, created, nil
}

// ensure finds or creates the KMS key of a row in one Region. primary is that of a multi-Region key; empty: this is the primary.
func (c *Creator) ensure(ctx context.Context, r Row, name, primary string) (arn string, made bool, err error) {
	there, err := c.look(ctx, name)
	if err != nil {
		return "", false, err
	}
	byAlias, byTag := "", there.byTag[r.Name]
	if r.Alias != "" {
		byAlias = there.byAlias[r.Alias]
	}
	switch {
	case byAlias != "" && byTag != "" && byAlias != byTag:
		return "", false, &ExistsError{r.Name, fmt.Sprintf("%s is the alias of %s, and %s has the tag %s: one of them is wrong, nothing was changed", r.Alias, byAlias, byTag, NameTag)}
	case byAlias != "":
		return byAlias, false, fits(there.byARN[byAlias], r, byAlias, primary)
	case byTag != "":
		if err := fits(there.byARN[byTag], r, byTag, primary); err != nil {
			return "", false, err
		}
		arn = byTag // an earlier run was interrupted before it gave the alias
	case c.DryRun:
		alias := ", without an alias"
		if r.Alias != "" {
			alias = ", " + r.Alias
		}
		c.did("would create a KMS key for %s in %s%s", r.Name, name, alias)
		return "", true, nil
	default:
		if arn, err = c.create(ctx, r, name, primary, there); err != nil {
			return "", false, err
		}
		made = true
		c.did("created %s for %s", arn, r.Name)
	}
	there.byTag[r.Name] = arn
	if r.Alias == "" || c.DryRun {
		return arn, made, nil
	}
	if err := there.kms.CreateAlias(context.WithoutCancel(ctx), r.Alias, arn); err != nil {
		return arn, made, fmt.Errorf("the KMS key %s is there and has no alias yet; run the same command again: %w", arn, err)
	}
	there.byAlias[r.Alias] = arn
	return arn, made, nil
}

// fits holds that a KMS key that is there is what the row asks for.
func fits(f Found, r Row, arn, primary string) error {
	no := func(format string, args ...any) error {
		return &ExistsError{r.Name, arn + " " + fmt.Sprintf(format, args...) + ": take another alias, or correct the file; nothing was changed"}
	}
	switch {
	case f.ARN == "":
		return no("has the alias %s, and is no KMS key of origin EXTERNAL that is in use", r.Alias)
	case f.KeySpec != r.KeySpec:
		return no("is of key spec %s, and the file says %s", f.KeySpec, r.KeySpec)
	case r.MultiRegion != f.MultiRegion:
		return no("is a multi-Region key or not, and the file says the other")
	case primary != "" && r.MultiRegion && f.PrimaryARN != primary:
		return no("is no replica of %s", primary)
	}
	return nil
}

func (c *Creator) create(ctx context.Context, r Row, name, primary string, there *region) (string, error) {
	tags := maps.Clone(r.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[NameTag] = r.Name
	if err := ctx.Err(); err != nil {
		return "", err //nolint:wrapcheck // nothing was sent
	}
	var info kmsclient.KeyInfo
	var err error
	if r.MultiRegion && primary != "" {
		from := strings.Split(primary, ":")[3]
		at, lerr := c.look(ctx, from)
		if lerr != nil {
			return "", lerr
		}
		info, err = at.kms.ReplicateKey(context.WithoutCancel(ctx), kmsclient.ReplicaRequest{PrimaryARN: primary, Region: name, Description: r.Description, Policy: c.Policy, Tags: tags})
	} else {
		info, err = there.kms.CreateKey(context.WithoutCancel(ctx), kmsclient.CreateKeyRequest{KeySpec: r.KeySpec, Description: r.Description, MultiRegion: r.MultiRegion, Policy: c.Policy, Tags: tags})
	}
	if kmsclient.OutcomeUnknown(err) {
		return "", fmt.Errorf("whether the KMS key was created is not known; run the same command again, it finds it by its tag %s: %w", NameTag, err)
	}
	return info.ARN, err
}

func (c *Creator) did(format string, args ...any) {
	if c.Did != nil {
		c.Did(fmt.Sprintf(format, args...))
	}
}

// RegionsOf are all Regions of a fleet, sorted.
func RegionsOf(list []Row) []string {
	all := map[string]bool{}
	for _, r := range list {
		for _, name := range r.Regions {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
