package adopt

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// Row is one managed key of a fleet: what the configuration says of it, and what its KMS keys are to be like where they have to be created.
type Row struct {
	Name         string            `yaml:"name"`
	Token        string            `yaml:"token,omitempty"`
	URI          string            `yaml:"uri,omitempty"` // PKCS#11 URI; empty: the key whose label is the name
	KeySpec      string            `yaml:"key_spec"`
	Expires      string            `yaml:"expires,omitempty"` // 90d, or never
	Generate     configs.Generate  `yaml:"generate,omitempty"`
	Replicas     []Copy            `yaml:"replicas,omitempty"` // other tokens that hold the key
	Backup       Copy              `yaml:"backup,omitempty"`   // in the token that has to hold one
	RenewBefore  string            `yaml:"renew_before,omitempty"`
	RotateEvery  string            `yaml:"rotate_every,omitempty"`
	DrillEvery   string            `yaml:"drill_every,omitempty"`
	Destinations []Destination     `yaml:"destinations,omitempty"`
	Regions      []string          `yaml:"regions,omitempty"` // in which a KMS key has to be; those that are not among the destinations are created
	Alias        string            `yaml:"alias,omitempty"`   // alias/payments; {name} stands for the name
	Description  string            `yaml:"description,omitempty"`
	Tags         map[string]string `yaml:"tags,omitempty"`
	MultiRegion  bool              `yaml:"multi_region,omitempty"`

	Line     int             `yaml:"-"` // in the file, from 1; 0: not known
	single   bool            // it says multi_region: false, whatever the defaults are
	bad      bool            // its name is told to be wrong already
	plainURI bool            // the URI was made from the name, as nothing said one
	told     map[string]bool // fields with a mistake that is told already: nobody needs to hear that they are missing
}

// Destination is one KMS key.
type Destination struct {
	ARN        string `yaml:"arn"`
	RoleARN    string `yaml:"role_arn,omitempty"`
	ExternalID string `yaml:"external_id,omitempty"`
}

// alone takes an ARN alone too, as the configuration does.
func (d *Destination) alone(arn string) { *d = Destination{ARN: arn} }

// Copy is the key in another token.
type Copy struct {
	Token string `yaml:"token"`
	URI   string `yaml:"uri,omitempty"` // empty: the same as the key's
}

// alone takes the name of a token alone too.
func (c *Copy) alone(token string) { *c = Copy{Token: token} }

// Fleet is a file of managed keys.
type Fleet struct {
	// Create the KMS keys that are missing.
	CreateKMSKeys bool `yaml:"create-kms-keys,omitempty"`
	// What rows say that leave it out.
	Defaults Row   `yaml:"defaults,omitempty"`
	Keys     []Row `yaml:"keys"`
}

// errNoKeys says where the keys of a fleet that has none would stand.
func errNoKeys(where string) error { return fmt.Errorf("the fleet has no keys: %s", where) }

func (f Fleet) check() (wrong Problems) {
	if f.Defaults.Name != "" || len(f.Defaults.Destinations) > 0 {
		wrong = append(wrong, Problem{Line: f.Defaults.Line, What: "defaults: name and destinations are those of one key: they stand with it"})
	}
	seen := map[string]bool{}
	for i, r := range f.Keys {
		bad := func(format string, args ...any) {
			wrong = append(wrong, Problem{Line: r.Line, What: fmt.Sprintf(format, args...)})
			f.Keys[i].bad = true
		}
		switch {
		case r.Name == "" && r.told["name"]:
			f.Keys[i].bad = true
			continue
		case r.Name == "":
			bad("key %d of the fleet has no name", i+1)
		case clean(r.Name) != r.Name:
			bad("%q cannot be the name of a key: letters, digits, '.', '_' and '-', at most %d", r.Name, longestName)
		case seen[r.Name]:
			bad("the fleet has two keys with the name %s", r.Name)
		}
		seen[r.Name] = true
	}
	return wrong
}

// Complete fills in what the rows leave out, from the file's defaults and then from others. With [Problems] come the rows that have none, also none that [ParseCSV] told of.
func (f Fleet) Complete(others Row) (Fleet, error) {
	out := f
	out.Keys = nil
	var wrong Problems
	for _, what := range f.Defaults.values() { // once, and not for each row
		wrong = append(wrong, Problem{Line: f.Defaults.Line, What: "defaults: " + what})
	}
	f.Defaults.assume()         // the rows are looked at without them
	objects := map[string]Row{} // the first row of each, by token, class and URI
	for _, r := range f.Keys {
		for _, d := range []Row{f.Defaults, others} {
			r = r.or(d)
		}
		for _, what := range append(r.lacks(), r.values()...) {
			wrong = append(wrong, Problem{r.Name, r.Line, what})
		}
		r.assume()
		if r.bad || r.unreadable() {
			continue
		}
		spec := wrapping.KeySpec(r.KeySpec)
		const most = 200 // several times as many as AWS has
		if len(r.Regions) > most {
			wrong = append(wrong, Problem{r.Name, r.Line, fmt.Sprintf("%d regions, and AWS has fewer than %d", len(r.Regions), most)})
			r.Regions = r.Regions[:1]
		}
		r.plainURI = r.URI == ""
		r.URI = cmp.Or(r.URI, objectURI(r.Name, spec))
		object := r.object(spec)
		if first, twice := objects[object]; twice && object != "" {
			where := ""
			if first.Line > 0 {
				where = fmt.Sprintf(" in line %d", first.Line)
			}
			wrong = append(wrong, Problem{r.Name, r.Line, fmt.Sprintf("uri: %s of token %s is the key of %s%s too: a key that goes to several KMS keys is one row with several destinations or regions", r.URI, r.Token, first.Name, where)})
		} else {
			objects[object] = r
		}
		r.Alias = strings.ReplaceAll(r.Alias, "{name}", r.Name)
		r.Description = strings.ReplaceAll(r.Description, "{name}", r.Name)
		if r.Alias != "" && !strings.HasPrefix(r.Alias, "alias/") {
			r.Alias = "alias/" + r.Alias
		}
		out.Keys = append(out.Keys, r)
	}
	return out, wrong.err()
}

// Taken says which rows are objects of a token that the configuration has as keys of other names.
func Taken(rows []Row, c *configs.Config, file string) (wrong Problems) {
	objects := map[string]string{}
	for _, k := range c.Keys {
		r := Row{Token: k.Token, URI: k.URI.String()}
		if object := r.object(k.KeySpec); object != "" {
			objects[object] = k.Name
		}
	}
	for _, r := range rows {
		if other := objects[r.object(wrapping.KeySpec(r.KeySpec))]; other != "" && other != r.Name {
			wrong = append(wrong, Problem{r.Name, r.Line, fmt.Sprintf("uri: %s of token %s is the key %s of the configuration already: add the destination to that key in %s", r.URI, r.Token, other, file)})
		}
	}
	return wrong
}

// AssumeToken gives a row a token that there is, in place of one of which it is told that there is none, to see what else is wrong with it.
func (r *Row) AssumeToken(name string) {
	r.tell("token")
	r.Token = name
}

// object names the key of a row among those of all tokens; empty if that is not known. The class is that of the spec: a URI may leave it out.
func (r Row) object(spec wrapping.KeySpec) string {
	u, err := pkcs11uri.Parse(r.URI)
	if err != nil || r.told["token"] || r.told["uri"] {
		return ""
	}
	u.Type = ""
	return r.Token + " " + u.String() + " " + objectURI("", spec)
}

// lacks says what a row of a complete fleet has to have and has not.
func (r Row) lacks() (out []string) {
	missing := func(field, value, what string) {
		if value == "" && !r.told[field] {
			out = append(out, what)
		}
	}
	missing("key_spec", r.KeySpec, "key_spec is missing")
	missing("token", r.Token, "token is missing")
	missing("expires", r.Expires, "expires is missing (90d, or never)")
	if len(r.Destinations) == 0 && len(r.Regions) == 0 && !r.told["destinations"] && !r.told["regions"] {
		out = append(out, "neither destinations nor regions are given")
	}
	return out
}

// values says which values of a row are none.
func (r Row) values() (out []string) {
	if r.KeySpec != "" && len(wrapping.KeySpec(r.KeySpec).Order()) == 0 {
		out = append(out, noSpec(r.KeySpec))
	}
	for _, x := range append([]setting{{"expires", r.Expires}}, r.times()...) {
		if err := new(configs.Duration).UnmarshalText([]byte(x.value)); x.value != "" && err != nil {
			out = append(out, fmt.Sprintf("%s: %v", x.name, err))
		}
	}
	return out
}

// assume puts what was probably meant, or what fits, in the place of values that are told to be none, to see what else is wrong with a row.
func (r *Row) assume() {
	if len(wrapping.KeySpec(r.KeySpec).Order()) == 0 && r.KeySpec != "" {
		r.KeySpec = meantSpec(r.KeySpec)
		r.tell("key_spec")
	}
	for name, value := range map[string]*string{"expires": &r.Expires, "renew_before": &r.RenewBefore, "rotate_every": &r.RotateEvery, "drill_every": &r.DrillEvery} {
		if *value == "" || new(configs.Duration).UnmarshalText([]byte(*value)) == nil {
			continue
		}
		r.tell(name)
		if *value = ""; name == "expires" {
			*value = "never"
		}
	}
}

// tell notes that mistakes in fields are told already.
func (r *Row) tell(fields ...string) {
	if r.told == nil {
		r.told = map[string]bool{}
	}
	for _, f := range fields {
		r.told[f] = true
	}
}

// unreadable says that a row without what it lacks cannot be looked at further: what it has to have was not read.
func (r Row) unreadable() bool { return r.KeySpec == "" || r.Token == "" || r.Expires == "" }

// noSpec says that nothing can be imported for a key spec.
func noSpec(spec string) string {
	if m := meantSpec(spec); m != "" {
		return fmt.Sprintf("key material of spec %s cannot be imported; did you mean %s?", spec, m)
	}
	return fmt.Sprintf("key material of spec %s cannot be imported; that of %s can", spec, strings.Join(knownSpecs(), ", "))
}

func meantSpec(spec string) string { return configs.Meant(strings.ToUpper(spec), knownSpecs()) }

func knownSpecs() (out []string) {
	for _, k := range wrapping.KeySpecs() {
		out = append(out, string(k))
	}
	return out
}

// setting is a length of time that the configuration has of a key.
type setting struct{ name, value string }

// times are those that a row may say.
func (r Row) times() []setting {
	return []setting{{"renew_before", r.RenewBefore}, {"rotate_every", r.RotateEvery}, {"drill_every", r.DrillEvery}}
}

// or is the row with what it leaves out taken from another. Tags of both count.
func (r Row) or(d Row) Row {
	r.Token, r.URI, r.KeySpec = cmp.Or(r.Token, d.Token), cmp.Or(r.URI, d.URI), cmp.Or(r.KeySpec, d.KeySpec)
	r.Alias, r.Description, r.Generate = cmp.Or(r.Alias, d.Alias), cmp.Or(r.Description, d.Description), cmp.Or(r.Generate, d.Generate)
	r.Expires, r.RenewBefore = cmp.Or(r.Expires, d.Expires), cmp.Or(r.RenewBefore, d.RenewBefore)
	r.RotateEvery, r.DrillEvery, r.Backup = cmp.Or(r.RotateEvery, d.RotateEvery), cmp.Or(r.DrillEvery, d.DrillEvery), cmp.Or(r.Backup, d.Backup)
	if len(r.Replicas) == 0 {
		r.Replicas = d.Replicas
	}
	if len(r.Regions) == 0 {
		r.Regions = d.Regions
	}
	r.single = r.single || d.single && !r.MultiRegion
	r.MultiRegion = !r.single && (r.MultiRegion || d.MultiRegion)
	if len(d.told) > 0 {
		r.told = maps.Clone(r.told)
		r.tell(slices.Collect(maps.Keys(d.told))...)
	}
	tags := maps.Clone(d.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	maps.Copy(tags, r.Tags)
	r.Tags = tags
	return r
}
