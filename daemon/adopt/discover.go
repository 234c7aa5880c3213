// Package adopt starts from what exists: it lists the KMS keys of origin EXTERNAL that an account has, proposes managed keys for them, reads
// fleets from CSV and YAML, and creates the KMS keys that a fleet is missing. It changes no configuration and imports nothing.
package adopt

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"hsmbridge/configs"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// KMS is what adoption needs of AWS KMS in one account and Region. [kmsclient.Client] has these methods.
type KMS interface {
	ListKeys(ctx context.Context) ([]string, error)
	ListAliases(ctx context.Context) (map[string][]string, error)
	ListTags(ctx context.Context, arn string) (map[string]string, error)
	DescribeKey(ctx context.Context, arn string) (kmsclient.KeyInfo, error)
	CreateKey(ctx context.Context, r kmsclient.CreateKeyRequest) (kmsclient.KeyInfo, error)
	CreateAlias(ctx context.Context, alias, arn string) error
	ReplicateKey(ctx context.Context, r kmsclient.ReplicaRequest) (kmsclient.KeyInfo, error)
}

// NameTag is the tag by which a KMS key says for which managed key it was created, so that an interrupted creation finds it again.
const NameTag = "hsmbridge:name"

// Found is a KMS key of origin EXTERNAL.
type Found struct {
	kmsclient.KeyInfo
	Region  string
	Aliases []string
	Tags    map[string]string
}

// askers is how many keys of one Region are asked about at once.
const askers = 8

// Discover lists the KMS keys of origin EXTERNAL in one account and Region that are not about to be deleted, by ARN. each is told of every
// key that was looked at; may be nil.
func Discover(ctx context.Context, kms KMS, each func(done, of int)) ([]Found, error) {
	arns, err := kms.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	aliases, err := kms.ListAliases(ctx)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		out  []Found
		done int
	)
	todo := make(chan string)
	for range askers {
		wg.Go(func() {
			for arn := range todo {
				f, ok, err := look(ctx, kms, arn, aliases)
				if err != nil {
					stop(err)
					return
				}
				mu.Lock()
				if ok {
					out = append(out, f)
				}
				done++
				if each != nil {
					each(done, len(arns))
				}
				mu.Unlock()
			}
		})
	}
	for _, arn := range arns {
		select {
		case todo <- arn:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("list the KMS keys: %w", err)
	}
	slices.SortFunc(out, func(a, b Found) int { return cmp.Compare(a.ARN, b.ARN) })
	return out, nil
}

func look(ctx context.Context, kms KMS, arn string, aliases map[string][]string) (f Found, ok bool, err error) {
	info, err := kms.DescribeKey(ctx, arn)
	if err != nil {
		return f, false, err
	}
	if info.Origin != "EXTERNAL" || info.KeyManager != "CUSTOMER" || strings.HasPrefix(info.State, "PendingDeletion") || info.State == "PendingReplicaDeletion" {
		return f, false, nil
	}
	parsed, err := kmsclient.ParseARN(info.ARN)
	if err != nil {
		return f, false, err
	}
	tags, err := kms.ListTags(ctx, info.ARN)
	return Found{KeyInfo: info, Region: parsed.Region, Aliases: aliases[info.KeyID], Tags: tags}, true, err
}

// Rules say what proposals look like.
type Rules struct {
	Token    string // name of the token in the configuration
	Expires  string // of keys whose material expires, or that have none yet: 90d
	Generate configs.Generate
	RoleARN  string // of every destination
	External string // external ID of the role
}

// Proposal is a managed key for KMS keys that exist.
type Proposal struct {
	Row
	Notes  []string // what a person should know of it
	Absent bool     // the token was looked at, and has no such key
}

// Propose proposes a managed key for every KMS key that the configuration does not name yet; keys of one multi-Region key go together.
// known tells the names of the managed keys that are configured already, by the ARNs of their destinations.
func Propose(found []Found, c *configs.Config, rules Rules) (list []Proposal, known map[string]string) {
	known, taken := map[string]string{}, map[string]bool{}
	for _, k := range c.Keys {
		taken[k.Name] = true
		for _, d := range k.Destinations {
			known[d.ARN] = k.Name
		}
	}
	var order []string
	groups := map[string][]Found{}
	for _, f := range found {
		if known[f.ARN] != "" {
			continue
		}
		id := f.ARN
		if f.MultiRegion {
			id = f.AccountID + " " + f.KeyID
		}
		if groups[id] == nil {
			order = append(order, id)
		}
		groups[id] = append(groups[id], f)
	}
	for _, id := range order {
		group := groups[id]
		// The primary comes first: its Region is where material of a multi-Region key is imported first.
		slices.SortStableFunc(group, func(a, b Found) int { return flag(b.Primary) - flag(a.Primary) })
		p := propose(group, rules, known)
		p.Name = unique(p.Name, taken)
		list = append(list, p)
	}
	return list, known
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func propose(group []Found, rules Rules, known map[string]string) Proposal {
	first := group[0]
	spec := wrapping.KeySpec(first.KeySpec)
	p := Proposal{Row: Row{Name: name(first), Token: rules.Token, KeySpec: first.KeySpec, Expires: rules.Expires, Generate: rules.Generate, MultiRegion: first.MultiRegion}}
	if first.ExpirationModel == "KEY_MATERIAL_DOES_NOT_EXPIRE" {
		p.Expires = configs.Never.String()
	}
	p.URI = objectURI(p.Name, spec)
	for _, f := range group {
		p.Destinations = append(p.Destinations, Destination{ARN: f.ARN, RoleARN: rules.RoleARN, ExternalID: rules.External})
		p.Notes = append(p.Notes, describe(f))
	}
	if first.MultiRegion {
		for _, arn := range append([]string{first.PrimaryARN}, first.ReplicaARNs...) {
			listed := slices.ContainsFunc(group, func(f Found) bool { return f.ARN == arn })
			switch {
			case listed || arn == "":
			case known[arn] != "":
				p.Notes = append(p.Notes, fmt.Sprintf("%s belongs to it and is a destination of %s: put this one there too", arn, known[arn]))
			default:
				p.Notes = append(p.Notes, arn+" belongs to it and was not looked at: its Region is not among those asked for")
			}
		}
	}
	if spec.Kind() == wrapping.KindRefused {
		p.Notes = append(p.Notes, "key material of this spec cannot be imported")
	}
	if first.State == "Enabled" && (spec.Kind() == wrapping.KindRSA || spec.Kind() == wrapping.KindEC || spec.Kind() == wrapping.KindHMAC) {
		p.Notes = append(p.Notes, "it holds material for ever: the HSM has to have that very key")
	}
	return p
}

func describe(f Found) string {
	s := f.Region + ": " + f.State
	if !f.ValidTo.IsZero() {
		s += ", material until " + f.ValidTo.UTC().Format("2006-01-02")
	}
	if len(f.Aliases) > 0 {
		s += ", " + strings.Join(f.Aliases, ", ")
	}
	return s
}

// objectURI is the key object of a managed key, by its label.
func objectURI(label string, spec wrapping.KeySpec) string {
	kind := "secret-key"
	switch spec.Kind() {
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		kind = "private"
	case wrapping.KindSymmetric, wrapping.KindHMAC, wrapping.KindRefused:
	}
	return "pkcs11:object=" + label + ";type=" + kind
}

// name is what a KMS key is called: by its tag, by its shortest alias, or by its ID.
func name(f Found) string {
	if n := clean(f.Tags[NameTag]); n != "" {
		return n
	}
	best := ""
	for _, a := range f.Aliases {
		if a = strings.TrimPrefix(a, "alias/"); best == "" || len(a) < len(best) {
			best = a
		}
	}
	return cmp.Or(clean(best), clean(f.KeyID))
}

const longestName = 64

// clean makes of a text what a managed key can be called.
func clean(s string) string {
	s = regexp.MustCompile(`[^A-Za-z0-9._-]+`).ReplaceAllString(s, "-")
	s = strings.Trim(s, "._-")
	return s[:min(len(s), longestName)]
}

// unique gives a name that no other key has.
func unique(name string, taken map[string]bool) string {
	out := name
	for i := 2; taken[out]; i++ {
		suffix := fmt.Sprintf("-%d", i)
		out = name[:min(len(name), longestName-len(suffix))] + suffix
	}
	taken[out] = true
	return out
}
