package metrics

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return w.Body.String()
}

func full() *Metrics {
	m := New("1.2.3", func(context.Context) (Snapshot, error) {
		return Snapshot{
			Destinations: []Destination{
				{Key: "k", Destination: "arn", Ready: true, Expiry: 3600, RotationsLeft: 24, SinceDrill: 60},
				{Key: "new", Destination: "arn2", Expiry: 0, RotationsLeft: math.NaN(), SinceDrill: math.NaN()},
				{Key: "ever", Destination: "arn3", Ready: true, Expiry: math.Inf(1), RotationsLeft: math.NaN(), SinceDrill: math.NaN()},
			},
			Unseen: []Destination{{Key: "late", Destination: "arn4"}},
			Tokens: []Token{{Name: "hsm", Up: true, TriesLow: true, Sessions: 2}}, Jobs: map[string]int{"queued": 1, "running": 0, "waiting": 3},
			NeedPerson: map[string]bool{"k": false, "new": true}, ClockSkew: map[string]time.Duration{"eu-central-1": -time.Second},
			Requests: 2, Audit: Audit{Records: 70, Unsigned: 3, CheckpointAge: 12, Behind: map[string]float64{"stdout": 1}},
		}, nil
	})
	m.Import("imported", "import")
	m.Step("wrap", 3*time.Millisecond)
	m.Call("DescribeKey", "")
	m.Call("GetParametersForImport", "ThrottlingException")
	m.ProcessBegan("hsm")
	m.ProcessEnded("hsm", EndDeadline)
	m.Deleted("jobs", 1)
	m.Planned(time.Millisecond, time.Unix(1800000000, 0))
	m.Watched(time.Unix(1800000001, 0))
	m.Reloaded(false, time.Unix(1800000002, 0))
	return m
}

// What the dashboard and the alerts are written for is what is exported: names, labels, types and helps; and nothing else but what Go and the process say.
func TestAsDocumented(t *testing.T) {
	f, err := os.Open("../../packaging/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	want := map[string]string{}
	line := regexp.MustCompile(`^(hsmbridge_[a-z_]+)(?:\{([a-z_,]*)\})? (\w+) (.*)$`)
	helps := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := line.FindStringSubmatch(s.Text()); m != nil {
			labels := strings.Split(m[2], ",")
			slices.Sort(labels)
			want[m[1]] = strings.Join(labels, ",") + " " + m[3]
			helps[m[1]] = m[4]
		}
	}
	text := scrape(t, full())
	got := map[string]string{}
	types := map[string]string{}
	sample := regexp.MustCompile(`^(hsmbridge_[a-z_]+)(?:\{([^}]*)\})? `)
	name := regexp.MustCompile(`([a-z_]+)="`)
	for l := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(l, "# HELP "); ok {
			name, help, _ := strings.Cut(strings.TrimSpace(rest), " ")
			switch {
			case strings.HasPrefix(name, "go_"), strings.HasPrefix(name, "process_"):
			case helps[name] != help:
				t.Errorf("the help of %s is %q, and packaging/metrics.txt says %q", name, help, helps[name])
			}
			continue
		}
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			if f := strings.Fields(rest); strings.HasPrefix(f[0], "hsmbridge_") {
				types[f[0]] = f[1]
			}
			continue
		}
		m := sample.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		base := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if types[strings.TrimSuffix(base, suffix)] == "histogram" {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		var labels []string
		for _, n := range name.FindAllStringSubmatch(m[2], -1) {
			if n[1] != "le" {
				labels = append(labels, n[1])
			}
		}
		slices.Sort(labels)
		got[base] = strings.Join(labels, ",") + " " + types[base]
	}
	for n, w := range want {
		if got[n] != w {
			t.Errorf("%s is %q, and packaging/metrics.txt says %q", n, got[n], w)
		}
	}
	for n := range got {
		if want[n] == "" {
			t.Errorf("%s is not in packaging/metrics.txt", n)
		}
	}
	if len(want) < 20 {
		t.Errorf("packaging/metrics.txt names %d metrics", len(want))
	}
}

func TestValues(t *testing.T) {
	text := scrape(t, full())
	for _, line := range []string{
		`hsmbridge_build_info{version="1.2.3"} 1`,
		`hsmbridge_material_expiry_seconds{destination="arn",key="k"} 3600`,
		`hsmbridge_material_expiry_seconds{destination="arn2",key="new"} 0`,
		`hsmbridge_material_expiry_seconds{destination="arn3",key="ever"} +Inf`,
		`hsmbridge_destination_ready{destination="arn2",key="new"} 0`,
		`hsmbridge_destination_unseen{destination="arn4",key="late"} 1`,
		`hsmbridge_rotations_left{destination="arn",key="k"} 24`,
		`hsmbridge_last_drill_seconds{destination="arn",key="k"} 60`,
		`hsmbridge_kms_throttles_total{operation="GetParametersForImport"} 1`,
		`hsmbridge_kms_calls_total{code="",operation="DescribeKey"} 1`,
		`hsmbridge_token_up{token="hsm"} 1`,
		`hsmbridge_token_pin_tries_low{token="hsm"} 1`,
		`hsmbridge_token_process_ends_total{reason="deadline",token="hsm"} 1`,
		`hsmbridge_token_process_ends_total{reason="crash",token="hsm"} 0`,
		`hsmbridge_jobs{state="waiting"} 3`,
		`hsmbridge_key_needs_person{key="new"} 1`,
		`hsmbridge_kms_clock_skew_seconds{region="eu-central-1"} -1`,
		`hsmbridge_config_reload_success 0`,
		`hsmbridge_planner_last_pass_timestamp_seconds 1.8e+09`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s is not there", line)
		}
	}
	for _, absent := range []string{`hsmbridge_rotations_left{destination="arn2"`, `hsmbridge_last_drill_seconds{destination="arn3"`} {
		if strings.Contains(text, absent) {
			t.Errorf("%s has a value, though there is none", absent)
		}
	}
}

// When the database is away, what was counted is still told.
func TestReadFails(t *testing.T) {
	m := New("1", func(context.Context) (Snapshot, error) { return Snapshot{}, errors.New("the database is away") })
	m.Import("failed", "import")
	if text := scrape(t, m); !strings.Contains(text, `hsmbridge_imports_total{action="import",result="failed"} 1`) {
		t.Errorf("the counters are lost:\n%s", text)
	}
}
