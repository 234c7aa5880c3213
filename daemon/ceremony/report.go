package ceremony

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"strings"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
)

// Report is the record of a ceremony for people: who, what, when, which HSM, how, who approved, and where each step is in the log.
type Report struct {
	Request   string           `json:"request"`
	SHA256    string           `json:"request_sha256"`
	Short     string           `json:"request_short"` // as it is read aloud
	Made      time.Time        `json:"made"`
	Result    string           `json:"result"`
	People    string           `json:"people"`
	Fields    []approval.Field `json:"fields"` // of the request
	HSM       []approval.Field `json:"hsm"`
	Outputs   []Output         `json:"outputs"`
	Approvals []Approval       `json:"approvals"`
	Steps     []StepOf         `json:"steps"`
	Log       string           `json:"log"`
	LogPlace  string           `json:"log_place"`
	Upload    *Upload          `json:"upload,omitempty"` // after ImportKeyMaterial
}

// Output is what one wrap gave.
type Output struct {
	WrappingKey string `json:"wrapping_key_sha256"`
	SHA256      string `json:"output_sha256"`
	Bytes       int    `json:"bytes"`
}

// Approval is one officer's.
type Approval struct {
	Officer  string `json:"officer"`
	Key      string `json:"key"`
	Hardware bool   `json:"hardware"`
	Verified bool   `json:"user_verification"`
}

// StepOf is a record of the room's log.
type StepOf struct {
	N    int64     `json:"n"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	What string    `json:"what"`
	By   string    `json:"by"`
	Leaf string    `json:"leaf_hash"`
}

// Upload is what KMS did.
type Upload struct {
	At            time.Time `json:"at"`
	By            string    `json:"by"`
	RequestIDs    []string  `json:"request_ids"` // of AWS, to find the CloudTrail entries
	KeyMaterialID string    `json:"key_material_id,omitempty"`
	Expires       string    `json:"expires"`
	Proof         string    `json:"proof"`
	Reason        string    `json:"proof_reason,omitempty"`
}

// NewReport makes the report of a request, as far as the ceremony has come. w may be nil: nothing was wrapped.
func NewReport(q approval.Request, text []byte, d approval.Decision, w *Wrapped, records []audit.Record, now time.Time) (Report, error) {
	sum := approval.Digest(text)
	r := Report{
		Request: q.ID, SHA256: Digest(text), Short: approval.Short(sum), Made: now.UTC().Truncate(time.Second), Result: "nothing was wrapped", Fields: q.Fields(),
		Outputs: []Output{}, Approvals: []Approval{}, Steps: []StepOf{}, Log: Origin(q.ID),
	}
	for _, v := range d.Verdicts {
		if v.Counts {
			r.Approvals = append(r.Approvals, Approval{v.Officer, v.Key, v.Hardware, v.Verified})
		}
	}
	for _, a := range records {
		raw, err := a.Encode()
		if err != nil {
			return r, err
		}
		r.Steps = append(r.Steps, StepOf{a.N, a.Time.UTC().Truncate(time.Second), string(a.Kind), a.Message, a.Actor, audit.LeafHash(raw).String()})
		if s, ok := a.Data.(*audit.Step); ok && s.Person != "" {
			r.People = s.Person
		}
	}
	if w == nil {
		return r, nil
	}
	r.Result = "the key was wrapped at " + moment(w.At)
	for _, f := range w.fields() {
		switch f.name {
		case "HSM", "HSM serial", "HSM firmware", "material", "wrapping algorithm", "mechanism":
			if f.value != "" {
				r.HSM = append(r.HSM, approval.Field{Name: f.name, Value: f.value})
			}
		}
	}
	for i, k := range w.Keys {
		r.Outputs = append(r.Outputs, Output{k.WrappingKey, w.fields()[len(w.fields())-2*len(names)+2*i+1].value, len(k.Bytes)})
	}
	r.LogPlace = w.Records
	return r, nil
}

// JSON is the report for machines.
func (r Report) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return append(b, '\n'), nil
}

// Text is the report for a terminal and a file.
func (r Report) Text() []byte {
	var b bytes.Buffer
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-*s%s\n", column, name, value)
		}
	}
	fmt.Fprintf(&b, "CEREMONY REPORT, request %s\n\n", r.Request)
	line("result", r.Result)
	line("who was there", r.People)
	line("request SHA-256", r.Short)
	line("", r.SHA256)
	line("report made", moment(r.Made))
	fmt.Fprintf(&b, "\nWhat was asked for\n")
	for _, f := range r.Fields {
		line(f.Name, f.Value)
	}
	fmt.Fprintf(&b, "\nApproved by\n")
	for _, a := range r.Approvals {
		how := "key in a file"
		switch {
		case a.Verified:
			how = "hardware key, with PIN or fingerprint"
		case a.Hardware:
			how = "hardware key, touched"
		}
		line(a.Officer, a.Key+", "+how)
	}
	if len(r.Approvals) == 0 {
		line("nobody", "the key needs no approval, or has none")
	}
	if len(r.HSM) > 0 {
		fmt.Fprintf(&b, "\nThe HSM\n")
	}
	for _, f := range r.HSM {
		line(f.Name, f.Value)
	}
	for i, o := range r.Outputs {
		fmt.Fprintf(&b, "\nWrapped key %d of %d\n", i+1, len(r.Outputs))
		line("under the public key", o.WrappingKey)
		line("output SHA-256", o.SHA256)
		line("length", fmt.Sprintf("%d bytes", o.Bytes))
	}
	if u := r.Upload; u != nil {
		fmt.Fprintf(&b, "\nAWS KMS\n")
		line("imported", moment(u.At)+" by "+u.By)
		for _, id := range u.RequestIDs {
			line("AWS request ID", id)
		}
		line("key material ID", u.KeyMaterialID)
		line("expires", u.Expires)
		line("proof", u.Proof)
		line("not proved because", u.Reason)
	}
	fmt.Fprintf(&b, "\nThe log %s\n", r.Log)
	line("records", r.LogPlace)
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "  %3d  %s  %-16s %s\n       %s\n", s.N, s.Time.Format("2006-01-02 15:04:05"), s.Kind, s.What, s.Leaf)
	}
	fmt.Fprintf(&b, "\nSignatures\n\n")
	for _, who := range r.signers() {
		fmt.Fprintf(&b, "  %-24s ______________________________  date ______________\n\n", who)
	}
	return b.Bytes()
}

// signers are those who sign the report by hand.
func (r Report) signers() []string {
	var out []string
	for _, p := range strings.Split(r.People, ", ") {
		if p != "" {
			out = append(out, p)
		}
	}
	for len(out) < 2 {
		out = append(out, "")
	}
	return out
}

// HTML is the report for a printer.
func (r Report) HTML() ([]byte, error) {
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		Report
		Signers []string
	}{r, r.signers()})
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return b.Bytes(), nil
}

//nolint:gochecknoglobals // parsed once
var page = template.Must(template.New("report").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Ceremony report {{.Request}}</title>
<style>
body{font:10pt/1.4 sans-serif;max-width:190mm;margin:12mm auto;color:#000}
h1{font-size:15pt}h2{font-size:11pt;margin:6mm 0 1mm;border-bottom:1px solid #000}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.5mm 3mm .5mm 0}
td:first-child,th:first-child{width:45mm}code{font:9pt monospace;overflow-wrap:anywhere}
.sign td{height:14mm;vertical-align:bottom;border-bottom:1px solid #000}
@page{margin:15mm}tr,h2{break-inside:avoid}
</style></head><body>
<h1>Ceremony report</h1>
<table>
<tr><td>request</td><td><code>{{.Request}}</code></td></tr>
<tr><td>result</td><td>{{.Result}}</td></tr>
<tr><td>who was there</td><td>{{.People}}</td></tr>
<tr><td>request SHA-256</td><td><code>{{.Short}}</code><br><code>{{.SHA256}}</code></td></tr>
<tr><td>report made</td><td>{{.Made.Format "2006-01-02T15:04:05Z07:00"}}</td></tr>
</table>
<h2>What was asked for</h2><table>{{range .Fields}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>{{end}}</table>
<h2>Approved by</h2><table>{{range .Approvals}}<tr><td>{{.Officer}}</td><td><code>{{.Key}}</code>{{if .Hardware}}, hardware key{{end}}{{if .Verified}}, PIN or fingerprint{{end}}</td></tr>{{else}}<tr><td>nobody</td><td>the key needs no approval, or has none</td></tr>{{end}}</table>
{{if .HSM}}<h2>The HSM</h2><table>{{range .HSM}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>{{end}}</table>{{end}}
{{range .Outputs}}<h2>Wrapped key</h2><table><tr><td>under the public key</td><td><code>{{.WrappingKey}}</code></td></tr><tr><td>output SHA-256</td><td><code>{{.SHA256}}</code></td></tr><tr><td>length</td><td>{{.Bytes}} bytes</td></tr></table>{{end}}
{{with .Upload}}<h2>AWS KMS</h2><table><tr><td>imported</td><td>{{.At.Format "2006-01-02T15:04:05Z07:00"}} by {{.By}}</td></tr>{{range .RequestIDs}}<tr><td>AWS request ID</td><td><code>{{.}}</code></td></tr>{{end}}<tr><td>key material ID</td><td><code>{{.KeyMaterialID}}</code></td></tr><tr><td>expires</td><td>{{.Expires}}</td></tr><tr><td>proof</td><td>{{.Proof}} {{.Reason}}</td></tr></table>{{end}}
<h2>The log</h2><p><code>{{.Log}}</code>: {{.LogPlace}}</p>
<table><tr><th>record</th><th>at (UTC)</th><th>what</th><th>leaf hash</th></tr>{{range .Steps}}<tr><td>{{.N}} {{.Kind}}</td><td>{{.Time.Format "15:04:05"}}</td><td>{{.What}}</td><td><code>{{.Leaf}}</code></td></tr>{{end}}</table>
<h2>Signatures</h2><table class="sign">{{range .Signers}}<tr><td>{{.}}</td><td></td><td>date</td></tr>{{end}}</table>
</body></html>
`))

// WriteReport writes the three forms beside each other: NAME.txt, NAME.json and NAME.html.
func WriteReport(name string, r Report) error {
	js, err := r.JSON()
	if err != nil {
		return err
	}
	html, err := r.HTML()
	if err != nil {
		return err
	}
	for ext, b := range map[string][]byte{".txt": r.Text(), ".json": js, ".html": html} {
		if err := WriteNew(name+ext, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
