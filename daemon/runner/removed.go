package runner

import (
	"slices"

	"hsmbridge/configs"
	"hsmbridge/daemon/store"
)

// Revocable is a key as it is revoked: with every destination that its material went to, whatever became of it, also those that the configuration has no more, or
// when it has the whole key no more. A KMS key that another managed key feeds now is not touched. Where the configuration does not say how
// a destination is reached, it is reached as the others of its account and Region are. false: nothing is known of the key.
func Revocable(c *configs.Config, name string, known []store.Destination) (configs.Key, bool) {
	k, ok := c.Key(name)
	k.Name = name
	k.Destinations = slices.Clone(k.Destinations)
	for _, d := range known {
		if d.Key != name || d.SettledAt.IsZero() && d.TriedAt.IsZero() && !d.Present || configured(c, d.Destination) {
			continue
		}
		k.Destinations = append(k.Destinations, reached(c, configs.Destination{ARN: d.Destination}))
		ok = true
	}
	return k, ok
}

// configured says that some managed key feeds the KMS key.
func configured(c *configs.Config, arn string) bool {
	return slices.ContainsFunc(c.Keys, func(k configs.Key) bool {
		return slices.ContainsFunc(k.Destinations, func(d configs.Destination) bool { return d.ARN == arn })
	})
}

// reached gives a destination the role and endpoint of another of its account, best of the same Region.
func reached(c *configs.Config, d configs.Destination) configs.Destination {
	best := 0
	for _, k := range c.Keys {
		for _, o := range k.Destinations {
			score := 0
			switch {
			case o.Partition() != d.Partition() || o.Account() != d.Account():
			case o.Region() != d.Region():
				score = 1
			default:
				score = 2
			}
			if score <= best {
				continue
			}
			best, d.RoleARN, d.ExternalID, d.Endpoint = score, o.RoleARN, o.ExternalID, ""
			if score > 1 { // endpoints belong to a Region
				d.Endpoint = o.Endpoint
			}
		}
	}
	return d
}
