package runner

import (
	"testing"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/store"
)

// A revocation reaches a KMS key that left the configuration also where nobody knows whether it took the material that went there.
func TestRevocable(t *testing.T) {
	const tried, never, seen, others = "arn:aws:kms:eu-central-1:111122223333:key/1", "arn:aws:kms:eu-central-1:111122223333:key/2", "arn:aws:kms:eu-west-1:111122223333:key/3", "arn:aws:kms:eu-west-1:111122223333:key/4"
	c := &configs.Config{Keys: []configs.Key{{Name: "other", Destinations: []configs.Destination{{ARN: others, RoleARN: "arn:aws:iam::111122223333:role/r"}}}}}
	k, ok := Revocable(c, "gone", []store.Destination{
		{Key: "gone", Destination: tried, TriedAt: time.Unix(1, 0)},
		{Key: "gone", Destination: never},
		{Key: "gone", Destination: seen, Present: true},
		{Key: "gone", Destination: others, TriedAt: time.Unix(1, 0)},
		{Key: "other", Destination: never, TriedAt: time.Unix(1, 0)},
	})
	if !ok || k.Name != "gone" || len(k.Destinations) != 2 || k.Destinations[0].ARN != tried || k.Destinations[1].ARN != seen || k.Destinations[0].RoleARN == "" {
		t.Errorf("%+v, %v", k, ok)
	}
	if _, ok := Revocable(c, "gone", []store.Destination{{Key: "gone", Destination: never}}); ok {
		t.Error("a key of which nothing was ever sent is known")
	}
}
