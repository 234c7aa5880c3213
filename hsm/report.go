package hsm

import (
	"context"
	"runtime"
	"strings"

	"hsmbridge/hsm/report"
	"hsmbridge/hsm/wrapping"
)

// Report probes the token and writes down what was found without anything that names the token or its place: no label, serial number or
// slot description, and nothing of private, which is what the configuration says of it. version is that of the program.
func (t *Token) Report(ctx context.Context, version string, private []string) (report.Report, error) {
	list, err := t.MechanismList(ctx)
	if err != nil {
		return report.Report{}, err
	}
	description, manufacturer, err := t.place(ctx)
	if err != nil {
		return report.Report{}, err
	}
	caps, err := t.Probe(ctx, wrapping.KeySpecs()...)
	if err != nil {
		return report.Report{}, err
	}
	private = append([]string{description, t.module.path, t.module.parameters}, private...)
	if !strings.Contains(t.identity.Manufacturer, manufacturer) && !strings.Contains(t.library.Manufacturer, manufacturer) { // a vendor's name is none of the site's
		private = append(private, manufacturer)
	}
	for _, value := range t.module.environment {
		private = append(private, value)
	}
	r := report.Report{
		Hsmbridge: version, OS: runtime.GOOS, Arch: runtime.GOARCH, Module: t.moduleName,
		Library: report.Library{Manufacturer: t.library.Manufacturer, Description: t.library.Description, Version: t.library.Version, Cryptoki: t.library.Cryptoki},
	}
	for _, m := range list {
		x := report.Mechanism{Type: report.Number(m.Type), Min: m.Min, Max: m.Max}
		if m.Known {
			x.Flags = report.Number(m.Flags)
		}
		r.Mechanisms = append(r.Mechanisms, x)
	}
	return report.New(r, caps, t.quirks, private), nil
}
