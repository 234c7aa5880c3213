// Package metrics is what the daemon tells Prometheus. Counters are counted as things happen; everything else is read from the daemon
// when it is asked for, so that it cannot be out of date.
package metrics

import (
	"context"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Destination is one KMS key at the time of a scrape.
type Destination struct {
	Key, Destination string
	Ready            bool    // KMS holds the material
	Expiry           float64 // seconds until it expires; +Inf: never; 0 or less: it has
	RotationsLeft    float64 // on demand; NaN: the key cannot be rotated, or it is not known
	SinceDrill       float64 // seconds since the token's copy was proved by an import; NaN: never
}

// Token is one token at the time of a scrape.
type Token struct {
	Name                 string
	Up, Parked, TriesLow bool
	Sessions             int
}

// Snapshot is what is read at a scrape.
type Snapshot struct {
	Destinations []Destination // that were looked at
	Unseen       []Destination // that were not; names only
	Tokens       []Token
	Jobs         map[string]int           // by state
	NeedPerson   map[string]bool          // by key; all keys
	ClockSkew    map[string]time.Duration // by Region
	Requests     int                      // for approval, that wait for signatures
	Audit        Audit
}

// Audit is the audit log at the time of a scrape.
type Audit struct {
	Records, Unsigned float64
	CheckpointAge     float64            // seconds; NaN: there is none
	Behind            map[string]float64 // records that a place does not have yet
}

// Metrics are the daemon's metrics.
type Metrics struct {
	registry *prometheus.Registry
	read     func(ctx context.Context) (Snapshot, error)

	imports   *prometheus.CounterVec
	steps     *prometheus.HistogramVec
	calls     *prometheus.CounterVec
	throttles *prometheus.CounterVec
	ends      *prometheus.CounterVec
	deleted   *prometheus.CounterVec
	planTook  prometheus.Gauge

	mu                         sync.Mutex
	planned, watched, reloaded time.Time
	reloadOK                   bool
}

// New makes the metrics. read is called at every scrape.
func New(version string, read func(ctx context.Context) (Snapshot, error)) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), read: read, reloadOK: true}
	m.imports = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmbridge_imports_total", Help: "Imports by how they ended, and by the kind of job that made them."}, []string{"result", "action"})
	m.steps = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "hsmbridge_step_duration_seconds", Help: "How long each step of a job took.", Buckets: []float64{.005, .025, .1, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"step"})
	m.calls = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmbridge_kms_calls_total", Help: "Requests to AWS KMS by operation and error code; the code of a success is empty."}, []string{"operation", "code"})
	m.throttles = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmbridge_kms_throttles_total", Help: "Requests to AWS KMS that were throttled."}, []string{"operation"})
	m.ends = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hsmbridge_token_process_ends_total", Help: "Processes of the token's module that ended: crash, deadline, protocol (it answered what it must not), replaced (its state was broken), closed.",
	}, []string{"token", "reason"})
	m.deleted = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hsmbridge_retention_deleted_total", Help: "Rows of the database that were deleted because they were older than retention says: jobs, imports."}, []string{"what"})
	m.planTook = prometheus.NewGauge(prometheus.GaugeOpts{Name: "hsmbridge_planner_pass_seconds", Help: "How long the planner's last pass took."})
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "hsmbridge_build_info", Help: "Always 1; the label is the version of the daemon."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	m.registry.MustRegister(m.imports, m.steps, m.calls, m.throttles, m.ends, m.deleted, m.planTook, info, m,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Import counts an import.
func (m *Metrics) Import(result, action string) { m.imports.WithLabelValues(result, action).Inc() }

// Step notes how long a step took.
func (m *Metrics) Step(step string, took time.Duration) {
	m.steps.WithLabelValues(step).Observe(took.Seconds())
}

// Call counts a request to KMS.
func (m *Metrics) Call(operation, code string) {
	m.calls.WithLabelValues(operation, code).Inc()
	if strings.Contains(code, "Throttl") || code == "TooManyRequestsException" || code == "SlowDown" || code == "RequestLimitExceeded" {
		m.throttles.WithLabelValues(operation).Inc()
	}
}

// Why the process of a token's module is no more.
const (
	EndCrash    = "crash"    // it ended by itself
	EndDeadline = "deadline" // a call did not come back in time, and it was killed
	EndProtocol = "protocol" // it answered what it must not, and was killed
	EndReplaced = "replaced" // the module's state in it was broken, and it was killed
	EndClosed   = "closed"   // the token was closed, as it was meant to be
)

// ProcessBegan makes the counters of a token's processes, from 0: what is there before the first end can be compared with after.
func (m *Metrics) ProcessBegan(token string) {
	for _, reason := range []string{EndCrash, EndDeadline, EndProtocol, EndReplaced, EndClosed} {
		m.ends.WithLabelValues(token, reason)
	}
}

// ProcessEnded counts the end of a process of a token's module.
func (m *Metrics) ProcessEnded(token, reason string) { m.ends.WithLabelValues(token, reason).Inc() }

// Deleted counts what retention deleted: jobs, imports.
func (m *Metrics) Deleted(what string, n int64) { m.deleted.WithLabelValues(what).Add(float64(n)) }

// Planned notes a pass of the planner.
func (m *Metrics) Planned(took time.Duration, at time.Time) {
	m.planTook.Set(took.Seconds())
	m.set(&m.planned, at)
}

// Watched notes that KMS was looked at.
func (m *Metrics) Watched(at time.Time) { m.set(&m.watched, at) }

// Reloaded notes that the configuration was read, and whether it was taken.
func (m *Metrics) Reloaded(ok bool, at time.Time) {
	m.set(&m.reloaded, at)
	m.mu.Lock()
	m.reloadOK = ok
	m.mu.Unlock()
}

func (m *Metrics) set(t *time.Time, at time.Time) {
	m.mu.Lock()
	*t = at
	m.mu.Unlock()
}

// LastPlan is when the planner ended its last pass.
func (m *Metrics) LastPlan() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.planned
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// gauges are those that are read at a scrape.
func gauges() map[string]*prometheus.Desc {
	out := map[string]*prometheus.Desc{}
	for _, g := range []struct {
		name, help string
		labels     []string
	}{
		{"material_expiry_seconds", "Seconds until AWS KMS deletes the key material; +Inf is never, 0 or less is gone.", []string{"key", "destination"}},
		{"destination_ready", "1 while AWS KMS holds the key material, also when the KMS key is disabled.", []string{"key", "destination"}},
		{"destination_unseen", "1 while nobody has seen what AWS KMS holds; then there is none, and the destination has the others.", []string{"key", "destination"}},
		{"rotations_left", "Rotations on demand that AWS KMS still allows for the key.", []string{"key", "destination"}},
		{"last_drill_seconds", "Seconds since the token's copy of the key was last proved by an import.", []string{"key", "destination"}},
		{"kms_clock_skew_seconds", "Time of AWS KMS minus time of this machine.", []string{"region"}},
		{"token_up", "0 while the token cannot be opened, or is left alone.", []string{"token"}},
		{"token_parked", "1 while the token is left alone until a person says so.", []string{"token"}},
		{"token_pin_tries_low", "1 when the token said, as it was opened, that a wrong PIN was given before.", []string{"token"}},
		{"token_sessions", "Calls to the token that run now, each in a session of its own.", []string{"token"}},
		{"jobs", "Open jobs by state: queued, running, waiting.", []string{"state"}},
		{"key_needs_person", "1 when the daemon cannot go on with the key without somebody.", []string{"key"}},
		{"approval_requests_open", "Requests for approval that wait for the signatures of officers.", nil},
		{"audit_records", "Records in the audit log.", nil},
		{"audit_unsigned_records", "Records of the audit log that no signed checkpoint has yet.", nil},
		{"audit_checkpoint_age_seconds", "Seconds since the latest checkpoint of the audit log was signed.", nil},
		{"audit_export_lag_records", "Records of the audit log that are not yet copied to the place.", []string{"to"}},
		{"config_reload_success", "1 when the configuration was taken the last time that it was read.", nil},
		{"config_last_reload_timestamp_seconds", "When the configuration was last read, taken or not.", nil},
		{"planner_last_pass_timestamp_seconds", "When the planner last ended a pass over all keys.", nil},
		{"watch_last_pass_timestamp_seconds", "When the daemon last looked which KMS keys are due to be looked at.", nil},
	} {
		out[g.name] = prometheus.NewDesc("hsmbridge_"+g.name, g.help, g.labels, nil)
	}
	return out
}

// Describe names the gauges.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range gauges() {
		ch <- d
	}
}

// scrapeTime bounds the reading of a snapshot.
const scrapeTime = 10 * time.Second

// Collect reads the gauges.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	desc := gauges()
	set := func(name string, v float64, labels ...string) {
		if !math.IsNaN(v) {
			ch <- prometheus.MustNewConstMetric(desc[name], prometheus.GaugeValue, v, labels...)
		}
	}
	m.mu.Lock()
	set("config_reload_success", truth(m.reloadOK))
	set("config_last_reload_timestamp_seconds", seconds(m.reloaded))
	set("planner_last_pass_timestamp_seconds", seconds(m.planned))
	set("watch_last_pass_timestamp_seconds", seconds(m.watched))
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	s, err := m.read(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(desc["jobs"], err)
		return
	}
	for _, d := range s.Destinations {
		set("material_expiry_seconds", d.Expiry, d.Key, d.Destination)
		set("destination_ready", truth(d.Ready), d.Key, d.Destination)
		set("rotations_left", d.RotationsLeft, d.Key, d.Destination)
		set("last_drill_seconds", d.SinceDrill, d.Key, d.Destination)
	}
	for _, d := range s.Unseen {
		set("destination_unseen", 1, d.Key, d.Destination)
	}
	for _, t := range s.Tokens {
		set("token_up", truth(t.Up), t.Name)
		set("token_parked", truth(t.Parked), t.Name)
		set("token_pin_tries_low", truth(t.TriesLow), t.Name)
		set("token_sessions", float64(t.Sessions), t.Name)
	}
	for state, n := range s.Jobs {
		set("jobs", float64(n), state)
	}
	for key, needs := range s.NeedPerson {
		set("key_needs_person", truth(needs), key)
	}
	set("approval_requests_open", float64(s.Requests))
	set("audit_records", s.Audit.Records)
	set("audit_unsigned_records", s.Audit.Unsigned)
	set("audit_checkpoint_age_seconds", s.Audit.CheckpointAge)
	for place, n := range s.Audit.Behind {
		set("audit_export_lag_records", n, place)
	}
	for region, ahead := range s.ClockSkew {
		set("kms_clock_skew_seconds", ahead.Seconds(), region)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return math.NaN()
	}
	return float64(t.UnixMilli()) / 1000
}
