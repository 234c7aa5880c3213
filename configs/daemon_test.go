package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/pkcs11uri"
)

// complete has every field of the daemon.
const complete = `
name: hsm-1
database: state/hsm.db
kms: {watch_every: 1d, fips: true}
tokens:
  - {name: demo, module: /lib/a.so, uri: "pkcs11:token=demo", pin_file: pin}
  - {name: spare, module: /lib/b.so, uri: "pkcs11:token=spare", pin_file: pin}
keys:
  - name: k
    token: demo
    uri: "pkcs11:object=k"
    key_spec: SYMMETRIC_DEFAULT
    expires: 90d
    renew_before: 20d
    schedule: {cron: "0 3 1 * *", time_zone: Europe/Berlin}
    window: {days: [sat, sun], from: "22:00", to: "04:00", time_zone: Europe/Berlin}
    rotate_every: 365d
    drill_every: 30d
    backup: {token: spare, uri: "pkcs11:object=copy"}
    destinations:
      - arn: arn:aws:kms:eu-central-1:111122223333:key/mrk-1234
        role_arn: arn:aws:iam::111122223333:role/path/hsmbridge
        external_id: a-b:c
        endpoint: https://kms.example.com
      - arn:aws:kms:us-east-1:111122223333:key/mrk-1234
quotas:
  - {operation: Sign, account: "111122223333", rate: 1/m}
  - {operation: Sign, rate: 0.25/s}
control: {socket: run/control.sock, operators: [alice, "@hsm"]}
metrics: {listen: "[::1]:9464"}
log: {level: debug, format: console}
`

func TestComplete(t *testing.T) {
	c, err := Parse("x.yaml", []byte(complete))
	if err != nil {
		t.Fatal(err)
	}
	k := c.Keys[0]
	const d = Duration(24 * time.Hour)
	k.Name, k.Token, k.URI, k.KeySpec, k.Expires, k.Generate = "", "", pkcs11uri.URI{}, "", 0, ""
	want := Key{
		Prove: true, RenewBefore: 20 * d, RotateEvery: 365 * d, DrillEvery: 30 * d,
		Schedule: Schedule{Cron: "0 3 1 * *", TimeZone: "Europe/Berlin"},
		Window:   Window{Days: []string{"sat", "sun"}, From: "22:00", To: "04:00", TimeZone: "Europe/Berlin"},
		Backup:   Backup{Token: "spare", URI: pkcs11uri.URI{Object: "copy"}},
		Destinations: []Destination{{
			ARN: "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234", RoleARN: "arn:aws:iam::111122223333:role/path/hsmbridge",
			ExternalID: "a-b:c", Endpoint: "https://kms.example.com",
		}, {ARN: "arn:aws:kms:us-east-1:111122223333:key/mrk-1234"}},
	}
	if diff := cmp.Diff(want, k, internals()); diff != "" {
		t.Errorf("key (-want +got):\n%s", diff)
	}
	if got := c.Quotas; len(got) != 2 || got[0].Rate.PerSecond() != 1.0/60 || got[1].Rate != 0.25 {
		t.Errorf("quotas: %+v", got)
	}
	if got := c.KMS.Watch(); got != 24*time.Hour {
		t.Errorf("Watch = %s", got)
	}
	if err := validateYAML(compileSchema(t), []byte(complete)); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(complete), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = Load(file); err != nil {
		t.Fatal(err)
	}
	if _, database := c.DatabaseLocation(); !filepath.IsAbs(database) || !filepath.IsAbs(c.ControlSocket()) {
		t.Errorf("after Load: %s, %s", database, c.ControlSocket())
	}
}

func TestDefaults(t *testing.T) {
	var c Config
	kind, location := c.DatabaseLocation()
	got := []string{kind, location, c.ControlSocket(), c.MetricsListen(), c.LogLevel(), c.LogFormat(), c.KMS.Watch().String()}
	want := []string{"sqlite", "/var/lib/hsmbridge/hsmbridge.db", "/run/hsmbridge/control.sock", "127.0.0.1:9464", "info", "json", "15m0s"}
	if diff := cmp.Diff(want, got, internals()); diff != "" {
		t.Error(diff)
	}
	if host, err := os.Hostname(); err != nil || c.DaemonName() != nameOf(host) {
		t.Errorf("DaemonName = %s, %v", c.DaemonName(), err)
	}
	c = Config{Name: "a", Database: "postgresql://me@db/hsm", Metrics: Metrics{Listen: "none"}, Control: Control{Socket: "/s"}}
	kind, location = c.DatabaseLocation()
	got = []string{c.DaemonName(), kind, location, c.MetricsListen(), c.ControlSocket()}
	if diff := cmp.Diff([]string{"a", "postgres", "postgresql://me@db/hsm", "", "/s"}, got); diff != "" {
		t.Error(diff)
	}
	for host, want := range map[string]string{
		"web-1.example.com": "web-1.example.com", "büro pc": "b-ro-pc", "-.": "hsmbridge", "": "hsmbridge", strings.Repeat("a", 70): strings.Repeat("a", 64),
	} {
		if got := nameOf(host); got != want {
			t.Errorf("nameOf(%q) = %q", host, got)
		}
	}
}

func TestRenewal(t *testing.T) {
	const d = Duration(24 * time.Hour)
	for _, tt := range []struct {
		key  Key
		want time.Duration
	}{
		{Key{Expires: 90 * d}, 30 * 24 * time.Hour},
		{Key{Expires: 90 * d, RenewBefore: d}, 24 * time.Hour},
		{Key{Expires: Never}, 0},
	} {
		if got := tt.key.Renewal(); got != tt.want {
			t.Errorf("%+v: %s", tt.key, got)
		}
	}
}

func TestRate(t *testing.T) {
	for in, tt := range map[string]struct {
		want      float64
		canonical string
	}{
		"1/s": {1, "1/s"}, "0.25/s": {0.25, "0.25/s"}, "30/m": {0.5, "0.5/s"}, "1/m": {1.0 / 60, "1/m"}, "100/h": {100.0 / 3600, "100/h"},
		"7/m": {7.0 / 60, "7/m"}, "0.000001/h": {0.000001 / 3600, "0.000001/h"}, "999999.999999/s": {999999.999999, "999999.999999/s"},
	} {
		var r, again Rate
		if err := r.UnmarshalText([]byte(in)); err != nil || r.PerSecond() != tt.want || r.String() != tt.canonical {
			t.Errorf("%s: %v (%s), %v", in, float64(r), r, err)
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%s is written %s, which is %v, %v", in, r, again, err)
		}
	}
	for _, in := range []string{"", "1", "0/s", "0.0/m", "-1/s", "1/d", "1 /s", "1e3/s", ".5/s", "1./s", "1/s\n", "1000000/s"} {
		var r Rate
		if err := r.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q gives %s", in, r)
		}
	}
}
