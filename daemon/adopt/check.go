package adopt

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/kmsclient"
)

// Problem is a reason why no configuration with the keys can be loaded.
type Problem struct {
	Name string // of the key; empty: it is not about one of them
	Line int    // of the key in the fleet's file; 0: not known
	What string
}

// String names file, line and key, as far as they are known.
func (p Problem) String(file string) string {
	var parts []string
	if file != "" {
		parts = append(parts, file)
	}
	if p.Line > 0 {
		parts = append(parts, fmt.Sprintf("line %d", p.Line))
	}
	if p.Name != "" {
		parts = append(parts, shown(p.Name))
	}
	return strings.Join(append(parts, p.What), ": ")
}

// Problems are all that is wrong with a fleet: whoever mends it wants to know them at once.
type Problems []Problem

// Lines tell them in the order of the file, each by itself, of very many some; what many rows share is told once. file may be empty.
func (p Problems) Lines(file string) []string {
	const most, few = 20, 3
	sorted := slices.SortedStableFunc(slices.Values(p), func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	alike := map[string]Problems{}
	for _, one := range sorted {
		alike[one.What] = append(alike[one.What], one)
	}
	var out []string
	more := 0
	for _, one := range sorted {
		same, told := alike[one.What], 1
		switch {
		case len(same) > few:
			told = len(same)
			alike[one.What] = Problems{} // the others are told with it
		case len(same) == 0:
			continue
		}
		if len(out) == most {
			more += told
			continue
		}
		text := one.String(file)
		if told > 1 {
			text += same[1:].places(few)
		}
		out = append(out, text)
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}

// places says for how many others the same holds, and where some of them are.
func (p Problems) places(some int) string {
	what, names, lines := "keys", make([]string, 0, some), make([]string, 0, some)
	for _, one := range p[:some] {
		names = append(names, shown(one.Name))
		if one.Line > 0 {
			lines = append(lines, strconv.Itoa(one.Line))
		}
	}
	if len(lines) == some {
		what, names = "lines", lines
	}
	end := ""
	if len(p) > some {
		end = ", …"
	}
	return fmt.Sprintf("; the same in %d more %s: %s%s", len(p), what, strings.Join(names, ", "), end)
}

// Error is the lines together.
func (p Problems) Error() string {
	lines := p.Lines("")
	if len(p) == 1 {
		return lines[0]
	}
	return strings.Join(append([]string{fmt.Sprintf("%d mistakes:", len(p))}, lines...), "\n  ")
}

// err is nil if there are none.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

var inLine = regexp.MustCompile(`, in line (\d+)`)

var destinationPath = regexp.MustCompile(`^destinations\[(\d+)\]`)

var keyPath = regexp.MustCompile(`^keys\[(\d+)\](?:\.(.*))?$`)

// Check says what is wrong with the configuration that would result from putting keys at its end. file is its name, text what is in it and
// had how many keys there are in it. An error means that the keys cannot be put there.
func Check(file string, text []byte, had int, list []Proposal) ([]Problem, error) {
	result, err := Append(text, YAML(list))
	if err != nil {
		return nil, err
	}
	var bad *configs.Error
	if _, err = configs.Parse(file, result); !errors.As(err, &bad) {
		return nil, err
	}
	same := 0 // lines at the beginning that are as they were
	for was, is := strings.SplitAfter(string(text), "\n"), strings.SplitAfter(string(result), "\n"); same < min(len(was), len(is)) && was[same] == is[same]; {
		same++
	}
	var out []Problem
	for _, p := range bad.Problems {
		p.Message = inLine.ReplaceAllStringFunc(p.Message, func(where string) string {
			if n, _ := strconv.Atoi(inLine.FindStringSubmatch(where)[1]); n > same {
				return "" // of what is not in the file yet
			}
			return where + " of " + file
		})
		found := keyPath.FindStringSubmatch(p.Path)
		i := -1
		if found != nil {
			n, _ := strconv.Atoi(found[1])
			i = n - had
		}
		if i < 0 || i >= len(list) {
			out = append(out, Problem{What: fmt.Sprintf("with these keys %s has a mistake in line %d: %s", file, p.Line, p.Message)})
			continue
		}
		what, row := p.Message, list[i].Row //nolint:gosec // i is held to be one of them above
		if region := row.placeholderAt(found[2]); region != "" {
			what = "regions: " + region + ": " + strings.Replace(what, "this KMS key is in", "a KMS key would be in", 1)
		} else if found[2] != "" {
			what = found[2] + ": " + what
		}
		out = append(out, Problem{Name: row.Name, Line: row.Line, What: what})
	}
	return out, nil
}

var aliasForm = regexp.MustCompile(`^alias/[A-Za-z0-9/_-]{1,250}$`)

// CheckCreation says what KMS would refuse about the KMS keys of rows, as far as it can be told without asking it.
func CheckCreation(rows []Row) []Problem {
	var out []Problem
	aliases := map[string]string{} // the name of the row, by Region and alias
	for _, r := range rows {
		bad := func(format string, args ...any) {
			out = append(out, Problem{r.Name, r.Line, fmt.Sprintf(format, args...)})
		}
		if r.Alias != "" && (!aliasForm.MatchString(r.Alias) || strings.HasPrefix(r.Alias, "alias/aws/")) {
			bad("alias: %q is no alias that KMS takes: letters, digits and /_- behind alias/, and not alias/aws/", r.Alias)
		}
		for name, value := range r.Tags {
			if strings.HasPrefix(strings.ToLower(name), "aws:") || name == "" || len(name) > 128 || len(value) > 256 {
				bad("tags: %q is no tag that KMS takes: a name of 1 to 128 characters, not beginning with aws:, and a value of at most 256", name+"="+value)
			}
		}
		for i, region := range r.Regions {
			if slices.Contains(r.Regions[:i], region) {
				bad("regions: %s is there twice", region)
				continue
			}
			if new(configs.Destination).UnmarshalText([]byte(placeholder(r, region, "", 0))) != nil {
				bad("regions: %q is no AWS Region", region)
			} else if m := meantRegion(region); m != "" {
				bad("regions: %q is probably no AWS Region: did you mean %s? If AWS has it nevertheless, create the KMS key in it yourself and name it under destinations", region, m)
			}
			if r.Alias == "" {
				continue
			}
			at := region + " " + r.Alias
			if other := aliases[at]; other != "" && other != r.Name {
				bad("alias: %s is that of %s too, in %s: put {name} into it", r.Alias, other, region)
			}
			aliases[at] = r.Name
		}
	}
	return out
}

// meantRegion is the Region that was probably meant by one whose direction (eu-centrall-1) is a slip of the finger away from one that AWS uses; empty
// for all others. It looks at nothing else, since AWS adds Regions: a new one has another number, place or partition, or a direction like these.
func meantRegion(region string) string {
	words := strings.Split(region, "-")
	if len(words) < 3 {
		return ""
	}
	directions := []string{"east", "west", "north", "south", "central", "northeast", "northwest", "southeast", "southwest"}
	at := len(words) - 2
	m := configs.Meant(words[at], directions)
	if m == "" || m == words[at] {
		return ""
	}
	words[at] = m
	return strings.Join(words, "-")
}

// placeholderAt is the Region of a destination that is no more than a placeholder, by its path in the configuration; empty for others.
func (r Row) placeholderAt(path string) string {
	found := destinationPath.FindStringSubmatch(path)
	if found == nil {
		return ""
	}
	i, _ := strconv.Atoi(found[1])
	if i >= len(r.Destinations) || !strings.Contains(r.Destinations[i].ARN, noKey) && !strings.Contains(r.Destinations[i].ARN, noKeys) {
		return ""
	}
	return regionOf(r.Destinations[i].ARN)
}

// Sound is a row without the Regions of which [CheckCreation] says that there are none, to see what else is wrong with it. A Region that is there twice
// counts once. One is left in any case: otherwise.
func Sound(r Row, otherwise string) Row {
	var regions []string
	for _, region := range r.Regions {
		if !slices.Contains(regions, region) && meantRegion(region) == "" && new(configs.Destination).UnmarshalText([]byte(placeholder(r, region, "", 0))) == nil {
			regions = append(regions, region)
		}
	}
	if len(regions) == 0 && len(r.Destinations) == 0 {
		regions = []string{otherwise}
	}
	r.Regions = regions
	return r
}

// Missing are the Regions in which a row has no destination yet.
func Missing(r Row) []string {
	var out []string
	for _, region := range r.Regions {
		if !slices.ContainsFunc(r.Destinations, func(d Destination) bool { return regionOf(d.ARN) == region }) {
			out = append(out, region)
		}
	}
	return out
}

// Whole is the row with placeholders for the KMS keys that it is missing, those of row number n. They have the form of ARNs, and name no key.
func Whole(r Row, n int, roleARN string) Row {
	r.Destinations = slices.Clone(r.Destinations)
	for _, region := range Missing(r) {
		r.Destinations = append(r.Destinations, Destination{ARN: placeholder(r, region, roleARN, n)})
	}
	return r
}

// How the IDs of placeholders begin, for keys of one Region and of several.
const (
	noKey  = "/00000000-0000-0000-0000-"
	noKeys = "/mrk-000000000000000000000000"
)

func placeholder(r Row, region, roleARN string, n int) string {
	arn := kmsclient.ARN{Partition: "aws", Region: region, Account: "000000000000", KeyID: fmt.Sprintf("%s%012d", noKey[1:], n)}
	switch {
	case strings.HasPrefix(region, "cn-"):
		arn.Partition = "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		arn.Partition = "aws-us-gov"
	}
	if parts := strings.Split(roleARN, ":"); len(parts) > 5 { // a KMS key is in the account of the role that creates it
		arn.Partition, arn.Account = parts[1], parts[4]
	}
	if r.MultiRegion {
		arn.KeyID = fmt.Sprintf("%s%08d", noKeys[1:], n)
	}
	return arn.String()
}

func regionOf(arn string) string {
	a, err := kmsclient.ParseARN(arn)
	if err != nil {
		return ""
	}
	return a.Region
}

// names lists the keys of a map.
func names(of map[string]string) string {
	return strings.Join(slices.Sorted(maps.Keys(of)), ", ")
}

// uriOf is the URI of a copy of a key: its own, or the key's.
func uriOf(own pkcs11uri.URI, k configs.Key) string {
	if own.Equal(pkcs11uri.URI{}) {
		return k.URI.String()
	}
	return own.String()
}

// canonical is a PKCS#11 URI as the configuration writes it, if it is one.
func canonical(uri string) string {
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		return uri
	}
	return u.String()
}

// Differ says in what a row of a file differs from the key of its name in the configuration. What the row leaves out differs in nothing.
func Differ(r Row, k configs.Key, file string) []string {
	var out []string
	differ := func(field, there, here string) {
		if here != "" && here != there {
			out = append(out, fmt.Sprintf("%s %s there, %s in %s", field, cmp.Or(there, "not set"), here, file))
		}
	}
	differ("token", k.Token, r.Token)
	differ("key_spec", string(k.KeySpec), r.KeySpec)
	if !r.plainURI {
		differ("uri", k.URI.String(), canonical(r.URI))
	}
	var life configs.Duration
	if err := life.UnmarshalText([]byte(r.Expires)); err == nil && life != k.Expires {
		differ("expires", k.Expires.String(), life.String())
	}
	differ("generate", string(k.Generate), string(r.Generate))
	for i, there := range []configs.Duration{k.RenewBefore, k.RotateEvery, k.DrillEvery} {
		x := r.times()[i]
		if err := life.UnmarshalText([]byte(x.value)); x.value != "" && err == nil && life != there {
			text := there.String()
			if there == configs.Never {
				text = ""
			}
			differ(x.name, text, life.String())
		}
	}
	there := map[string]string{} // the URIs of copies, by token
	for _, c := range k.Replicas {
		there[c.Token] = uriOf(c.URI, k)
	}
	here := map[string]string{}
	for _, c := range r.Replicas {
		here[c.Token] = c.URI
	}
	differ("replicas", names(there), names(here))
	differ("backup", k.Backup.Token, r.Backup.Token)
	if r.Backup.Token == k.Backup.Token {
		there[k.Backup.Token], here[k.Backup.Token] = uriOf(k.Backup.URI, k), r.Backup.URI
	}
	for _, token := range slices.Sorted(maps.Keys(here)) {
		if uri, both := there[token]; both {
			differ("uri in "+token, uri, canonical(here[token]))
		}
	}
	for _, d := range r.Destinations {
		at := slices.IndexFunc(k.Destinations, func(have configs.Destination) bool { return have.ARN == d.ARN })
		if at < 0 {
			out = append(out, fmt.Sprintf("the destination %s is in %s only", d.ARN, file))
			continue
		}
		differ("role_arn of "+d.ARN, k.Destinations[at].RoleARN, d.RoleARN)
		differ("external_id of "+d.ARN, k.Destinations[at].ExternalID, d.ExternalID)
	}
	for _, region := range Missing(r) {
		if !slices.ContainsFunc(k.Destinations, func(d configs.Destination) bool { return d.Region() == region }) {
			out = append(out, fmt.Sprintf("no destination in %s there, and %s has the Region", region, file))
		}
	}
	for _, have := range k.Destinations {
		listed := slices.ContainsFunc(r.Destinations, func(d Destination) bool { return d.ARN == have.ARN })
		if !listed && !slices.Contains(Missing(r), have.Region()) {
			out = append(out, fmt.Sprintf("the destination %s is not in %s", have.ARN, file))
		}
	}
	return out
}
