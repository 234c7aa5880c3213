package ceremony

import (
	"bytes"
	"fmt"
	"html/template"
	"time"
)

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
var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"utc": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Ceremony report {{.Request}}</title>
<style>
body{font:9.5pt/1.35 sans-serif;max-width:180mm;margin:10mm auto;color:#000;background:#fff}
h1{font-size:15pt;margin:0 0 3mm}h2{font-size:10.5pt;margin:5mm 0 1mm;border-bottom:.3mm solid #000}
table{border-collapse:collapse;width:100%;table-layout:fixed}td,th{text-align:left;vertical-align:top;padding:.4mm 2mm .4mm 0;overflow-wrap:anywhere}
td:first-child{width:42mm}code{font:8.5pt/1.35 monospace;overflow-wrap:anywhere}
.log td,.log th{border-bottom:.1mm solid #999}.log td:first-child,.log th:first-child{width:9mm}.log .at{width:20mm}.log .kind{width:31mm}.log .place{width:17mm}
.sign{margin-top:4mm}.sign td{height:16mm;vertical-align:bottom;border-bottom:.3mm solid #000}.sign td:first-child{width:55mm}.sign td:last-child{width:45mm}
@page{size:A4;margin:15mm}@media print{body{margin:0;max-width:none}}
thead{display:table-header-group}tr,h2,.sign{break-inside:avoid}h2{break-after:avoid}
</style></head><body>
<h1>Ceremony report</h1>
<table>
<tr><td>request</td><td><code>{{.Request}}</code></td></tr>
<tr><td>result</td><td>{{.Result}}</td></tr>
<tr><td>who was there</td><td>{{.People}}</td></tr>
<tr><td>request SHA-256</td><td><code>{{.Short}}</code><br><code>{{.SHA256}}</code></td></tr>
<tr><td>report made</td><td>{{utc .Made}}</td></tr>
</table>
<h2>What was asked for</h2><table>{{range .Fields}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>
{{end}}</table>
<h2>Approved by</h2><table>{{range .Approvals}}<tr><td>{{.Officer}}</td><td><code>{{.Key}}</code><br>{{.How}}{{if .Record}}; record {{.Record}} of the log{{end}}</td></tr>
{{else}}<tr><td>nobody</td><td>the key needs no approval, or has none</td></tr>
{{end}}</table>
{{if .HSM}}<h2>The HSM</h2><table>{{range .HSM}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>
{{end}}</table>{{end}}
{{range $i, $o := .Outputs}}<h2>Wrapped key{{if $i}}, the second one: the proof{{end}}</h2><table><tr><td>under the public key</td><td><code>{{$o.WrappingKey}}</code></td></tr>
<tr><td>output SHA-256</td><td><code>{{$o.SHA256}}</code></td></tr>
<tr><td>length</td><td>{{$o.Bytes}} bytes</td></tr></table>
{{end}}{{with .Upload}}<h2>AWS KMS</h2><table>{{range .Rows}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>
{{end}}</table>
{{end}}<h2>The log</h2><p><code>{{.Log}}</code>: {{.LogPlace}}</p>
{{template "steps" .Steps}}
{{if .Online}}<h2>The audit log</h2><p><code>{{.Audit}}</code></p>
{{template "steps" .Online}}
{{end}}<h2>Signatures</h2><table class="sign">{{range .Signers}}<tr><td>{{.}}</td><td></td><td>date</td></tr>
{{end}}</table>
</body></html>
{{define "steps"}}<table class="log"><thead><tr><th></th><th class="at">UTC</th><th class="kind">step</th><th>what, and its leaf hash</th><th class="place">in the audit log</th></tr></thead><tbody>
{{range .}}<tr><td>{{.N}}</td><td class="at">{{.Time.Format "2006-01-02 15:04:05"}}</td><td class="kind">{{.Kind}}</td><td>{{.What}}<br><code>{{.Leaf}}</code></td><td class="place">{{if .At}}{{.At}}{{end}}</td></tr>
{{end}}</tbody></table>{{end}}`))
