package ceremony

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	Audit     string           `json:"audit_log,omitempty"` // origin of the daemon's audit log
	Online    []StepOf         `json:"online"`              // records of the daemon's audit log, of what was done where there is a network
	Upload    *Upload          `json:"upload,omitempty"`    // after ImportKeyMaterial
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
	How      string `json:"how"` // with what kind of key
	Hardware bool   `json:"hardware"`
	Verified bool   `json:"user_verification"`
	Record   int64  `json:"record,omitempty"` // of the room's log; 0: the room decided without one
}

// StepOf is a record of the room's log.
type StepOf struct {
	N    int64     `json:"n"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	What string    `json:"what"`
	By   string    `json:"by"`
	Leaf string    `json:"leaf_hash"`
	At   int64     `json:"audit_record,omitempty"` // its number in the daemon's audit log, once it was taken over
}

// Upload is what KMS did.
type Upload struct {
	At            time.Time `json:"at"`
	By            string    `json:"by"`
	Held          bool      `json:"held_before,omitempty"` // KMS held it already: it was only proved then
	RequestIDs    []string  `json:"request_ids"`           // of AWS, to find the CloudTrail entries
	KeyMaterialID string    `json:"key_material_id,omitempty"`
	Expires       string    `json:"expires"`
	Proof         string    `json:"proof"`
	Reason        string    `json:"proof_reason,omitempty"`
	Fetched       []string  `json:"fetch_request_ids"` // of AWS, of GetParametersForImport
}

// Rows are what a report shows of it, one under the other.
func (u Upload) Rows() []approval.Field {
	done := moment(u.At) + " by " + u.By
	rows, call := []approval.Field{{Name: "imported", Value: done}}, "ImportKeyMaterial"
	if u.Held {
		rows = []approval.Field{{Name: "imported", Value: "before; when, and by whom, is in CloudTrail"}, {Name: "proved", Value: done}}
		call += ", for the proof"
	}
	for _, id := range u.Fetched {
		rows = append(rows, approval.Field{Name: "AWS request ID", Value: id + " (GetParametersForImport)"})
	}
	for _, id := range u.RequestIDs {
		rows = append(rows, approval.Field{Name: "AWS request ID", Value: id + " (" + call + ")"})
	}
	rows = append(rows, approval.Field{Name: "key material ID", Value: u.KeyMaterialID}, approval.Field{Name: "expires", Value: u.Expires},
		approval.Field{Name: "proof", Value: u.Proof}, approval.Field{Name: "not proved because", Value: u.Reason})
	return slices.DeleteFunc(rows, func(f approval.Field) bool { return f.Value == "" })
}

// How says with what kind of key an officer signed.
func How(v approval.Verdict) string {
	switch {
	case v.Verified:
		return "hardware key, with PIN or fingerprint"
	case v.Hardware:
		return "hardware key, touched"
	}
	return "key in a file"
}

// NewReport makes the report of a request, as far as the ceremony has come. w may be nil: nothing was wrapped.
func NewReport(q approval.Request, text []byte, d approval.Decision, w *Wrapped, records []audit.Record, now time.Time) (Report, error) {
	sum := approval.Digest(text)
	r := Report{
		Request: q.ID, SHA256: Digest(text), Short: approval.Short(sum), Made: now.UTC().Truncate(time.Second), Result: "nothing was wrapped", Fields: q.Fields(),
		Outputs: []Output{}, Approvals: []Approval{}, Steps: []StepOf{}, Online: []StepOf{}, Log: Origin(q.ID),
	}
	for _, v := range d.Verdicts {
		if v.Counts {
			r.Approvals = append(r.Approvals, Approval{v.Officer, v.Key, How(v), v.Hardware, v.Verified, recordOf(records, v.Key)})
		}
	}
	for _, a := range records {
		step, err := NewStep(a)
		if err != nil {
			return r, err
		}
		r.Steps = append(r.Steps, step)
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
	if r.LogPlace = w.Records + " when the key was wrapped; the room's log is not here"; len(records) == 0 {
		return r, nil
	}
	var err error
	r.LogPlace, err = placeOf(records)
	return r, err
}

// NewStep is a record as a report shows it.
func NewStep(a audit.Record) (StepOf, error) {
	raw, err := a.Encode()
	if err != nil {
		return StepOf{}, err
	}
	return StepOf{N: a.N, Time: a.Time.UTC().Truncate(time.Second), Kind: string(a.Kind), What: a.Message, By: a.Actor, Leaf: audit.LeafHash(raw).String()}, nil
}

// recordOf is the number of the last record of an officer's signature.
func recordOf(records []audit.Record, key string) (n int64) {
	for _, a := range records {
		if s, ok := a.Data.(*audit.Step); ok && a.Kind == "ceremony-check" && s.FileSHA != "" && s.Detail == key {
			n = a.N
		}
	}
	return n
}

// Place writes down what the daemon's audit log has of this ceremony: where the room's records are in it, and what was done beside it.
func (r *Report) Place(origin string, records []audit.Record) error {
	r.Audit = origin
	for _, a := range records {
		switch data := a.Data.(type) {
		case *audit.Ceremony:
			for i := range r.Steps {
				if s := &r.Steps[i]; data.Request == r.Request && data.Hash == s.Leaf {
					s.At = a.N
				}
			}
		case *audit.Step:
			if data.Request != r.Request {
				continue
			}
			step, err := NewStep(a)
			if err != nil {
				return err
			}
			step.At = a.N
			r.Online = append(r.Online, step)
		}
	}
	return nil
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
		line(a.Officer, a.Key+", "+a.How+a.inLog())
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
		for _, f := range u.Rows() {
			line(f.Name, f.Value)
		}
	}
	fmt.Fprintf(&b, "\nThe log %s\n", r.Log)
	line("records", r.LogPlace)
	for _, s := range r.Steps {
		s.text(&b)
	}
	if len(r.Online) > 0 {
		fmt.Fprintf(&b, "\nThe audit log %s\n", r.Audit)
	}
	for _, s := range r.Online {
		s.text(&b)
	}
	fmt.Fprintf(&b, "\nSignatures\n\n")
	for _, who := range r.signers() {
		fmt.Fprintf(&b, "  %-24s ______________________________  date ______________\n\n", who)
	}
	return b.Bytes()
}

func (s StepOf) text(b *bytes.Buffer) {
	fmt.Fprintf(b, "  %3d  %s  %-16s %s\n       %s", s.N, s.Time.Format("2006-01-02 15:04:05"), s.Kind, s.What, s.Leaf)
	if s.At > 0 && s.At != s.N {
		fmt.Fprintf(b, ", record %d of the audit log", s.At)
	}
	b.WriteByte('\n')
}

func (a Approval) inLog() string {
	if a.Record == 0 {
		return ""
	}
	return fmt.Sprintf(", record %d of the log", a.Record)
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

// WriteReport writes the three forms beside each other: NAME.txt, NAME.json and NAME.html. One that is there stays as it is.
func WriteReport(name string, r Report) error {
	js, err := r.JSON()
	if err != nil {
		return err
	}
	html, err := r.HTML()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		ext  string
		text []byte
	}{{".txt", r.Text()}, {".json", js}, {".html", html}} {
		var exists *ExistsError
		if err := WriteNew(name+f.ext, f.text, 0o644); err != nil && !errors.As(err, &exists) {
			return err
		}
	}
	return nil
}
