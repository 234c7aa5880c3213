package adopt

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"hsmbridge/configs"
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

	Line     int  `yaml:"-"` // in the file, from 1; 0: not known
	bad      bool // its name is told to be wrong already
	plainURI bool // the URI was made from the name, as nothing said one
}

// Destination is one KMS key.
type Destination struct {
	ARN        string `yaml:"arn"`
	RoleARN    string `yaml:"role_arn,omitempty"`
	ExternalID string `yaml:"external_id,omitempty"`
}

// UnmarshalYAML takes an ARN alone too, as the configuration does.
func (d *Destination) UnmarshalYAML(unmarshal func(any) error) error {
	var arn string
	if err := unmarshal(&arn); err == nil {
		*d = Destination{ARN: arn}
		return nil
	}
	type whole Destination // without methods
	return unmarshal((*whole)(d))
}

// Copy is the key in another token.
type Copy struct {
	Token string `yaml:"token"`
	URI   string `yaml:"uri,omitempty"` // empty: the same as the key's
}

// UnmarshalYAML takes the name of a token alone too.
func (c *Copy) UnmarshalYAML(unmarshal func(any) error) error {
	var token string
	if err := unmarshal(&token); err == nil {
		*c = Copy{Token: token}
		return nil
	}
	type whole Copy // without methods
	return unmarshal((*whole)(c))
}

// Fleet is a file of managed keys.
type Fleet struct {
	// Create the KMS keys that are missing.
	CreateKMSKeys bool `yaml:"create-kms-keys,omitempty"`
	// What rows say that leave it out.
	Defaults Row   `yaml:"defaults,omitempty"`
	Keys     []Row `yaml:"keys"`
}

// ParseYAML reads a fleet, strictly. With [Problems] the fleet is there nevertheless, to look for what else is wrong with it.
func ParseYAML(text []byte) (f Fleet, err error) {
	defer func() { // the decoder panics on some texts that are not what is decoded, such as a list without elements
		if p := recover(); p != nil {
			f, err = Fleet{}, fmt.Errorf("read the fleet: this YAML is no list of keys (%v)", p)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := d.Decode(&f); err != nil {
		return f, errors.New("read the fleet: " + goWords.ReplaceAllString(err.Error(), "a $1 stands where a $2 is expected"))
	}
	if err := d.Decode(new(Fleet)); !errors.Is(err, io.EOF) {
		return f, errors.New("read the fleet: the file has more than one document")
	}
	for i, line := range linesOf(text) {
		if i < len(f.Keys) {
			f.Keys[i].Line = line
		}
	}
	return f, f.check().err()
}

// goWords is how the decoder names what does not fit.
var goWords = regexp.MustCompile(`cannot unmarshal (\w+) into Go (?:struct field \S+|value) of type (?:\w+\.)*(\w+)`)

// linesOf are the lines in which the keys of a fleet begin, as far as they can be told.
func linesOf(text []byte) (lines []int) {
	path, err := yaml.PathString("$.keys")
	if err != nil {
		return nil
	}
	node, err := path.ReadNode(bytes.NewReader(text))
	if err != nil {
		return nil
	}
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		return nil
	}
	for _, v := range list.Values {
		line := v.GetToken().Position.Line
		if m, ok := v.(*ast.MappingNode); ok && len(m.Values) > 0 {
			line = m.Values[0].Key.GetToken().Position.Line
		}
		lines = append(lines, line)
	}
	return lines
}

// columns are those that a CSV file may have, with what they set. Lists are separated by spaces, tags are k=v.
func columns() map[string]func(r *Row, value string) error {
	return map[string]func(r *Row, value string) error{
		"name":        func(r *Row, v string) error { r.Name = v; return nil },
		"token":       func(r *Row, v string) error { r.Token = v; return nil },
		"uri":         func(r *Row, v string) error { r.URI = v; return nil },
		"key_spec":    func(r *Row, v string) error { r.KeySpec = v; return nil },
		"expires":     func(r *Row, v string) error { r.Expires = v; return nil },
		"alias":       func(r *Row, v string) error { r.Alias = v; return nil },
		"description": func(r *Row, v string) error { r.Description = v; return nil },
		"regions":     func(r *Row, v string) error { r.Regions = strings.Fields(v); return nil },
		"replicas": func(r *Row, v string) error {
			for _, token := range strings.Fields(v) {
				r.Replicas = append(r.Replicas, Copy{Token: token})
			}
			return nil
		},
		"backup":       func(r *Row, v string) error { r.Backup.Token = v; return nil },
		"renew_before": func(r *Row, v string) error { r.RenewBefore = v; return nil },
		"rotate_every": func(r *Row, v string) error { r.RotateEvery = v; return nil },
		"drill_every":  func(r *Row, v string) error { r.DrillEvery = v; return nil },
		"generate":     func(r *Row, v string) error { r.Generate = configs.Generate(v); return nil },
		"multi_region": func(r *Row, v string) (err error) {
			if r.MultiRegion, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("%q is neither true nor false", v)
			}
			return nil
		},
		"destinations": func(r *Row, v string) error {
			for _, arn := range strings.Fields(v) {
				r.Destinations = append(r.Destinations, Destination{ARN: arn})
			}
			return nil
		},
		"tags": func(r *Row, v string) error {
			r.Tags = map[string]string{}
			for _, pair := range strings.Fields(v) {
				k, value, ok := strings.Cut(pair, "=")
				if !ok {
					return fmt.Errorf("the tag %q is not name=value", pair)
				}
				if _, twice := r.Tags[k]; twice {
					return fmt.Errorf("the tag %s is there twice", k)
				}
				r.Tags[k] = value
			}
			return nil
		},
	}
}

// ParseCSV reads a fleet whose first line names the columns. With [Problems] the fleet is there nevertheless, to look for what else is wrong with it.
func ParseCSV(text []byte) (Fleet, error) {
	var f Fleet
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
	r.TrimLeadingSpace = true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return f, errors.New("the file is empty: its first line names the columns")
	}
	if err != nil {
		return f, fmt.Errorf("read the first line, which names the columns: %w", err)
	}
	set := columns()
	for i, h := range header {
		header[i] = strings.ToLower(strings.TrimSpace(h))
		if set[header[i]] == nil {
			known := slices.Sorted(maps.Keys(set))
			meant := ""
			if m := configs.Meant(header[i], known); m != "" {
				meant = ", did you mean " + m + "?"
			}
			return f, fmt.Errorf("line 1: there is no column %q%s; there are %s", h, meant, strings.Join(known, ", "))
		}
		if slices.Contains(header[:i], header[i]) {
			return f, fmt.Errorf("line 1: the column %q is there twice", h)
		}
	}
	var wrong Problems
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return f, append(wrong, f.check()...).err()
		}
		if errors.Is(err, csv.ErrFieldCount) {
			line, _ := r.FieldPos(0)
			wrong = append(wrong, Problem{Line: line, What: fmt.Sprintf("it has %d fields, and the first line %d; a value with a comma stands in quotes", len(record), len(header))})
			continue
		}
		if err != nil {
			wrong = append(wrong, Problem{What: fmt.Sprintf("read the fleet: %v", err)})
			return f, append(wrong, f.check()...).err()
		}
		var row Row
		row.Line, _ = r.FieldPos(0)
		for i, v := range record {
			if v = strings.TrimSpace(v); v == "" {
				continue
			}
			if err := set[header[i]](&row, v); err != nil {
				line, column := r.FieldPos(i)
				wrong = append(wrong, Problem{Line: line, What: fmt.Sprintf("column %d: %s: %v", column, header[i], err)})
			}
		}
		f.Keys = append(f.Keys, row)
	}
}

func (f Fleet) check() (wrong Problems) {
	seen := map[string]bool{}
	for i, r := range f.Keys {
		bad := func(format string, args ...any) {
			wrong = append(wrong, Problem{Line: r.Line, What: fmt.Sprintf(format, args...)})
			f.Keys[i].bad = true
		}
		switch {
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
	for _, r := range f.Keys {
		for _, d := range []Row{f.Defaults, others} {
			r = r.or(d)
		}
		spec := wrapping.KeySpec(r.KeySpec)
		lacks := r.lacks(spec)
		for _, what := range lacks {
			wrong = append(wrong, Problem{r.Name, r.Line, what})
		}
		if r.bad || len(lacks) > 0 {
			continue
		}
		r.plainURI = r.URI == ""
		r.URI = cmp.Or(r.URI, objectURI(r.Name, spec))
		r.Alias = strings.ReplaceAll(r.Alias, "{name}", r.Name)
		r.Description = strings.ReplaceAll(r.Description, "{name}", r.Name)
		if r.Alias != "" && !strings.HasPrefix(r.Alias, "alias/") {
			r.Alias = "alias/" + r.Alias
		}
		out.Keys = append(out.Keys, r)
	}
	return out, wrong.err()
}

// lacks says what a row of a complete fleet has to have and has not.
func (r Row) lacks(spec wrapping.KeySpec) (out []string) {
	switch {
	case r.KeySpec == "":
		out = append(out, "key_spec is missing")
	case len(spec.Order()) == 0:
		out = append(out, noSpec(r.KeySpec))
	}
	if r.Token == "" {
		out = append(out, "token is missing")
	}
	var life configs.Duration
	if err := life.UnmarshalText([]byte(r.Expires)); r.Expires == "" {
		out = append(out, "expires is missing (90d, or never)")
	} else if err != nil {
		out = append(out, fmt.Sprintf("expires: %v", err))
	}
	for _, x := range r.times() {
		if err := life.UnmarshalText([]byte(x.value)); x.value != "" && err != nil {
			out = append(out, fmt.Sprintf("%s: %v", x.name, err))
		}
	}
	if len(r.Destinations) == 0 && len(r.Regions) == 0 {
		out = append(out, "neither destinations nor regions are given")
	}
	return out
}

// noSpec says that nothing can be imported for a key spec.
func noSpec(spec string) string {
	var known []string
	for _, k := range wrapping.KeySpecs() {
		known = append(known, string(k))
	}
	if m := configs.Meant(strings.ToUpper(spec), known); m != "" {
		return fmt.Sprintf("key material of spec %s cannot be imported; did you mean %s?", spec, m)
	}
	return fmt.Sprintf("key material of spec %s cannot be imported; that of %s can", spec, strings.Join(known, ", "))
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
	r.MultiRegion = r.MultiRegion || d.MultiRegion
	tags := maps.Clone(d.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	maps.Copy(tags, r.Tags)
	r.Tags = tags
	return r
}
