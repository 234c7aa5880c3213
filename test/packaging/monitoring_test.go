package packaging_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// metrics reads packaging/metrics.txt: the labels of each metric, which is a gauge, a counter or a histogram and has a help.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	line := regexp.MustCompile(`^(hsmbridge_[a-z_]+)(?:\{([a-z,]+)\})? (gauge|counter|histogram) [A-Z+0-9].*\.$`)
	out := map[string][]string{}
	for l := range strings.Lines(read(t, "packaging/metrics.txt")) {
		if strings.HasPrefix(l, "#") {
			continue
		}
		m := line.FindStringSubmatch(strings.TrimSpace(l))
		if m == nil {
			t.Fatalf("metrics.txt: not a metric: %s", l)
		}
		if _, twice := out[m[1]]; twice {
			t.Errorf("metrics.txt has %s twice", m[1])
		}
		if (m[3] == "counter") != strings.HasSuffix(m[1], "_total") {
			t.Errorf("%s is a %s", m[1], m[3])
		}
		out[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
		if m[3] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				out[m[1]+suffix] = append([]string{"le"}, out[m[1]]...)
			}
			delete(out, m[1]) // it has no series of this name
		}
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// uses finds the metrics in an expression, and reports each that the daemon does not export.
func uses(t *testing.T, where, expr string, known map[string][]string) []string {
	t.Helper()
	found := regexp.MustCompile(`\bhsmbridge_[a-z_]+`).FindAllString(expr, -1)
	for _, name := range found {
		if _, ok := known[name]; !ok {
			t.Errorf("%s: metrics.txt has no %s: %s", where, name, expr)
		}
	}
	return found
}

// knownLabels is an error for each label that no metric of the expression has.
func knownLabels(t *testing.T, where string, labels, names []string, known map[string][]string) {
	t.Helper()
	all := []string{"instance", "job"}
	for _, name := range names {
		all = append(all, known[name]...)
	}
	for _, label := range labels {
		if !slices.Contains(all, label) {
			t.Errorf("%s: no metric there has the label %s", where, label)
		}
	}
}

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// TestAlerts holds that Prometheus takes the rules, that each fires when it should and not before, and that each says what is
// wrong, how bad it is and what to do.
func TestAlerts(t *testing.T) {
	const rules, tests = "packaging/prometheus/hsmbridge.rules.yaml", "packaging/prometheus/hsmbridge.rules.test.yaml"
	run(t, nil, ".bin/promtool", "check", "rules", rules)
	run(t, nil, ".bin/promtool", "test", "rules", tests)

	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(read(t, rules)), &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	known, tested := metrics(t), read(t, tests)
	var names []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names = append(names, r.Alert)
			used := uses(t, r.Alert, r.Expr, known)
			if !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
				t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what is wrong", r.Alert)
			}
			if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
				t.Errorf("%s: runbook %s, want %s", r.Alert, r.Annotations["runbook"], want)
			}
			var labels []string
			for _, text := range r.Annotations {
				for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
					labels = append(labels, m[1])
				}
			}
			knownLabels(t, r.Alert, labels, used, known)
			if !strings.Contains(tested, `alertname="`+r.Alert+`"`) {
				t.Errorf("%s has no test", r.Alert)
			}
		}
	}
	slices.Sort(names)
	want := []string{
		"HsmbridgeApprovalWaits", "HsmbridgeAuditExportLag", "HsmbridgeAuditUnsigned", "HsmbridgeClockSkew", "HsmbridgeDestinationUnseen", "HsmbridgeDown", "HsmbridgeDrillOverdue", "HsmbridgeImportsFailing", "HsmbridgeKeyNeedsPerson",
		"HsmbridgeMaterialExpiresSoon", "HsmbridgeMaterialMissing", "HsmbridgeModuleDies", "HsmbridgePinTriesLow", "HsmbridgePlannerStuck", "HsmbridgeReloadFailed",
		"HsmbridgeRotationsLow", "HsmbridgeThrottled", "HsmbridgeTokenDown", "HsmbridgeTokenParked",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct {
		X, Y, W, H int
	} `json:"gridPos"`
	Targets []struct {
		Expr   string `json:"expr"`
		Legend string `json:"legendFormat"`
	} `json:"targets"`
}

// TestDashboard holds that every panel asks for what the daemon exports, in expressions that Prometheus reads, that everything which
// is exported is shown, and that no panel lies on another.
func TestDashboard(t *testing.T) {
	var board struct {
		Panels     []panel `json:"panels"`
		Templating struct {
			List []struct {
				Definition string `json:"definition"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal([]byte(read(t, "packaging/grafana/hsmbridge.json")), &board); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	shown, ids, cells := map[string]bool{}, map[int]bool{}, map[[2]int]string{}
	var recorded []map[string]string
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %s shows nothing", p.Title)
		}
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %s is wider than the page", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %s lies on %s", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			used := uses(t, p.Title, target.Expr, known)
			for _, name := range used {
				shown[name] = true
			}
			var labels []string
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(target.Legend, -1) {
				labels = append(labels, m[1])
			}
			knownLabels(t, p.Title, labels, used, known)
			recorded = append(recorded, map[string]string{
				"record": fmt.Sprintf("panel:%d", len(recorded)), "expr": strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"),
			})
		}
	}
	for _, v := range board.Templating.List {
		uses(t, "a variable", v.Definition, known)
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if !shown[name] && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") {
			t.Errorf("no panel shows %s", name)
		}
	}
	// Recording rules, so that promtool reads them as Prometheus would.
	rules, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": recorded}}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dashboard.json")
	if err := os.WriteFile(path, rules, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, ".bin/promtool", "check", "rules", path)
}
