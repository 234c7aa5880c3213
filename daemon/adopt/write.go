package adopt

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"hsmbridge/configs"
)

// YAML is the managed keys as they stand in the configuration below "keys:". A note is a comment in front of its key.
func YAML(list []Proposal) []byte {
	var b bytes.Buffer
	for _, p := range list {
		for _, n := range p.Notes {
			fmt.Fprintf(&b, "  # %s\n", oneLine(n))
		}
		fmt.Fprintf(&b, "  - name: %s\n    token: %s\n    uri: %s\n    key_spec: %s\n    expires: %s\n", quoted(p.Name), quoted(p.Token), quoted(p.URI), p.KeySpec, p.Expires)
		if p.Generate != "" && p.Generate != configs.GenerateNever {
			fmt.Fprintf(&b, "    generate: %s\n", quoted(string(p.Generate)))
		}
		for _, x := range p.times() {
			if x.value != "" {
				fmt.Fprintf(&b, "    %s: %s\n", x.name, x.value)
			}
		}
		if len(p.Replicas) > 0 {
			b.WriteString("    replicas:\n")
		}
		for _, c := range p.Replicas {
			fmt.Fprintf(&b, "      - %s\n", c.yaml())
		}
		if p.Backup.Token != "" {
			fmt.Fprintf(&b, "    backup: %s\n", p.Backup.yaml())
		}
		fmt.Fprintf(&b, "    destinations:\n")
		for _, d := range p.Destinations {
			if d.RoleARN == "" {
				fmt.Fprintf(&b, "      - %s\n", quoted(d.ARN))
				continue
			}
			fmt.Fprintf(&b, "      - arn: %s\n        role_arn: %s\n", quoted(d.ARN), quoted(d.RoleARN))
			if d.ExternalID != "" {
				fmt.Fprintf(&b, "        external_id: %s\n", quoted(d.ExternalID))
			}
		}
	}
	return b.Bytes()
}

func (c Copy) yaml() string {
	if c.URI == "" {
		return "{token: " + quoted(c.Token) + "}"
	}
	return "{token: " + quoted(c.Token) + ", uri: " + quoted(c.URI) + "}"
}

// FleetYAML is the same as a file that [ParseYAML] reads. head is a comment at its beginning.
func FleetYAML(list []Proposal, head string) []byte {
	var b bytes.Buffer
	for l := range strings.Lines(head) {
		fmt.Fprintf(&b, "# %s\n", oneLine(strings.TrimSuffix(l, "\n")))
	}
	if len(list) == 0 {
		b.WriteString("keys: []\n")
		return b.Bytes()
	}
	b.WriteString("keys:\n")
	b.Write(YAML(list))
	return b.Bytes()
}

// quoted is a text as YAML takes it whatever is in it.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// oneLine keeps a comment a comment, whatever somebody called an alias.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
}

// CSV is the same as a table, which [ParseCSV] reads again. Roles of destinations and URIs of copies have no place in it.
func CSV(list []Proposal) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{"name", "token", "uri", "key_spec", "expires", "generate", "destinations", "regions", "alias", "description", "multi_region", "tags", "replicas", "backup", "renew_before", "rotate_every", "drill_every"}}
	for _, p := range list {
		var arns, tags, replicas []string
		for _, d := range p.Destinations {
			arns = append(arns, d.ARN)
		}
		for _, k := range slices.Sorted(maps.Keys(p.Tags)) {
			tags = append(tags, k+"="+p.Tags[k])
		}
		for _, c := range p.Replicas {
			replicas = append(replicas, c.Token)
		}
		multi := ""
		if p.MultiRegion {
			multi = "true"
		}
		rows = append(rows, []string{
			p.Name, p.Token, p.URI, p.KeySpec, p.Expires, string(p.Generate), strings.Join(arns, " "), strings.Join(p.Regions, " "), p.Alias, p.Description, multi, strings.Join(tags, " "),
			strings.Join(replicas, " "), p.Backup.Token, p.RenewBefore, p.RotateEvery, p.DrillEvery,
		})
	}
	err := errors.Join(w.WriteAll(rows), w.Error())
	return b.Bytes(), err
}

// Append puts keys at the end of the list "keys:" of a configuration's text. The text is otherwise left as it is, byte for byte. The caller
// loads the result before it replaces the file.
func Append(config, keys []byte) ([]byte, error) {
	if len(keys) == 0 {
		return config, nil
	}
	lines := strings.SplitAfter(string(config), "\n")
	at := -1
	for i, l := range lines {
		name, rest, ok := strings.Cut(l, ":")
		if !ok || name != "keys" {
			continue
		}
		rest, _, _ = strings.Cut(rest, "#")
		switch rest = strings.TrimSpace(rest); rest {
		case "":
			at = i
		case "[]":
			lines[i], at = "keys:\n", i
		default:
			return nil, errors.New("the keys of the configuration stand in one line: write each on a line of its own, beginning with '- '")
		}
	}
	if at < 0 {
		head := strings.TrimRight(string(config), "\n")
		if head != "" {
			head += "\n"
		}
		return append([]byte(head+"keys:\n"), keys...), nil
	}
	end := at + 1 // behind the last line of the list
	for i := at + 1; i < len(lines); i++ {
		l := strings.TrimRight(lines[i], "\r\n")
		switch {
		case strings.TrimSpace(l) == "" || strings.HasPrefix(strings.TrimSpace(l), "#"):
			continue // it may belong to what follows
		case l[0] != ' ' && l[0] != '-':
			i = len(lines)
		default:
			end = i + 1
		}
	}
	indent := "  "
	for _, l := range lines[at+1 : end] {
		if t := strings.TrimLeft(l, " "); strings.HasPrefix(t, "-") {
			indent = l[:len(l)-len(t)]
			break
		}
	}
	head := strings.Join(lines[:end], "")
	if !strings.HasSuffix(head, "\n") {
		head += "\n"
	}
	var b strings.Builder
	b.WriteString(head)
	for l := range strings.Lines(string(keys)) {
		b.WriteString(indent + strings.TrimPrefix(l, "  "))
	}
	b.WriteString(strings.Join(lines[end:], ""))
	return []byte(b.String()), nil
}
