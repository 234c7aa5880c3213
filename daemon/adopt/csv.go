package adopt

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/configs"
)

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
			r.single = !r.MultiRegion
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
	var wrong Problems
	var told []string // columns that are there, and cannot be read
	known := slices.Sorted(maps.Keys(set))
	first, _ := r.FieldPos(0)
	for i, h := range header {
		header[i] = strings.ToLower(strings.TrimSpace(h))
		switch {
		case set[header[i]] == nil:
			meant := ""
			if m := configs.Meant(header[i], known); m != "" {
				meant = ", did you mean " + m + "?"
				told = append(told, m)
			}
			wrong = append(wrong, Problem{Line: first, What: fmt.Sprintf("there is no column %q%s; there are %s", h, meant, strings.Join(known, ", "))})
			header[i] = "" // its values are not looked at
		case slices.Contains(header[:i], header[i]):
			wrong = append(wrong, Problem{Line: first, What: fmt.Sprintf("the column %q is there twice", h)})
			header[i] = ""
		}
	}
	if len(wrong) > 0 && !slices.ContainsFunc(header, func(h string) bool { return h != "" }) {
		return f, wrong // a file without a line that names columns
	}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) && len(f.Keys) == 0 && len(wrong) == 0 {
			return f, errNoKeys("a key is a line below the one that names the columns")
		}
		if errors.Is(err, io.EOF) {
			return f, append(wrong, f.check()...).err()
		}
		if errors.Is(err, csv.ErrFieldCount) {
			line, _ := r.FieldPos(0)
			wrong = append(wrong, Problem{Line: line, What: fmt.Sprintf("it has %d fields, and the first line %d; a value with a comma stands in quotes", len(record), len(header))})
			continue
		}
		var in *csv.ParseError
		if errors.As(err, &in) {
			wrong = append(wrong, Problem{Line: in.Line, What: fmt.Sprintf("column %d: %v; the rows after it were not read", in.Column, in.Err)})
			return f, append(wrong, f.check()...).err()
		}
		if err != nil {
			return f, fmt.Errorf("read the fleet: %w", err)
		}
		var row Row
		row.Line, _ = r.FieldPos(0)
		row.tell(told...)
		for i, v := range record {
			if v = strings.TrimSpace(v); v == "" || header[i] == "" {
				continue
			}
			if err := set[header[i]](&row, v); err != nil {
				line, column := r.FieldPos(i)
				wrong = append(wrong, Problem{Line: line, What: fmt.Sprintf("column %d: %s: %v", column, header[i], err)})
				row.tell(header[i])
			}
		}
		f.Keys = append(f.Keys, row)
	}
}
