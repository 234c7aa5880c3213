package configs

import (
	"regexp"
	"strings"
)

const (
	rolePattern       = `^arn:(aws(?:-[a-z]+)*):iam::([0-9]{12}):role/[\w+=,.@/-]{1,576}$`
	externalIDPattern = `^[\w+=,.@:/-]{2,}$` // AWS STS API Reference, AssumeRole, ExternalId
	maxExternalID     = 1224
)

var roleForm = regexp.MustCompile(rolePattern)

// backup checks the second token of a key.
func (v validator) backup(path string, k *Key) {
	if at := path + ".backup.token"; v.ok(at) {
		switch {
		case !v.tokens[k.Backup.Token]:
			v.problem(at, "no token is named %q%s", k.Backup.Token, v.tokenHint(k.Backup.Token))
		case k.Backup.Token == k.Token:
			v.problem(at, "this is the token of the key itself: a backup is in another token")
		}
	}
	v.keyURI(path+".backup.uri", k.Backup.URI, path, k, false)
}

// destinations checks that each KMS key is fed by one managed key, and lies in the configured Region.
func (v validator) destinations() {
	first, multiRegion := make(map[string]feeder), make(map[string]feeder)
	for i := range v.c.Keys {
		for j, dest := range v.c.Keys[i].Destinations {
			if len(v.problems) > maxProblems {
				return
			}
			path := element(element("keys", i)+".destinations", j)
			v.destination(path, dest)
			if _, isMapping := v.at[path+".arn"]; isMapping {
				path += ".arn"
			}
			if !v.ok(path) {
				continue
			}
			if region := v.c.KMS.Region; region != "" && dest.Region() != region {
				v.problem(path, "this KMS key is in %s and kms.region is %s: correct one of them, or leave kms.region out for keys in several Regions", dest.Region(), region)
			}
			if other, twice := first[dest.ARN]; twice {
				v.problem(path, "this KMS key is already a destination of %s, in line %d: a KMS key is fed by one managed key", v.c.Keys[other.key].Name, v.at[other.path].line)
				continue
			}
			first[dest.ARN] = feeder{i, path}
			if id := dest.KeyID(); strings.HasPrefix(id, "mrk-") {
				related := dest.Partition() + ":" + dest.Account() + ":" + id
				switch other, found := multiRegion[related]; {
				case !found:
					multiRegion[related] = feeder{i, path}
				case other.key != i:
					v.problem(path, "this KMS key and the one in line %d are one multi-Region key, which has one key material: both are destinations of one managed key", v.at[other.path].line)
				}
			}
		}
	}
}

// feeder is the managed key that feeds a multi-Region key, and where its first destination stands.
type feeder struct {
	key  int
	path string
}

// destination checks what a destination that is a mapping says beside its ARN.
func (v validator) destination(path string, d Destination) {
	v.endpoint(path+".endpoint", d.Endpoint)
	if v.c.KMS.FIPS && v.ok("kms.fips") && d.Partition() == "aws-cn" && d.Endpoint == "" && !strings.HasPrefix(v.c.KMS.Region, "cn-") {
		at := path
		if v.ok(path + ".arn") {
			at += ".arn"
		}
		if v.ok(at) {
			v.problem(at, "AWS has no FIPS endpoints in China: give this destination an endpoint, or leave kms.fips out")
		}
	}
	if at := path + ".role_arn"; v.ok(at) && d.RoleARN != "" {
		const form = "arn:PARTITION:iam::ACCOUNT:role/NAME"
		role := roleForm.FindStringSubmatch(d.RoleARN)
		switch {
		case role == nil:
			v.problem(at, "%q is not the ARN of an IAM role: write %s", d.RoleARN, form)
		case !v.ok(path + ".arn"):
		case role[1] != d.Partition():
			v.problem(at, "the role is in partition %s and the KMS key in %s: no role reaches into another partition", role[1], d.Partition())
		case role[2] != d.Account():
			v.problem(at, "the role is in account %s and the KMS key in %s: AWS KMS imports only into keys of the caller's own account, write a role of that account", role[2], d.Account())
		}
	}
	if at := path + ".external_id"; v.ok(at) && d.ExternalID != "" {
		v.matches(at, d.ExternalID, externalIDPattern, "an external ID: at least two letters, digits and characters of _+=,.@:/-")
		if n := len(d.ExternalID); n > maxExternalID {
			v.problem(at, "an external ID has at most %d characters, and this one %d", maxExternalID, n)
		}
		if d.RoleARN == "" {
			v.problem(at, "an external ID goes with a role: add role_arn, or leave external_id out")
		}
	}
}
