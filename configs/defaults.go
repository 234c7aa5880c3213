package configs

import (
	"cmp"
	"os"
	"regexp"
	"strings"
	"time"
)

// What the daemon does where the configuration does not say.
const (
	defaultDatabase      = "/var/lib/hsmbridge/hsmbridge.db"
	defaultSocket        = "/run/hsmbridge/control.sock"
	defaultMetrics       = "127.0.0.1:9464"
	defaultName          = "hsmbridge"
	defaultWatch         = 15 * time.Minute
	noMetrics            = "none"
	defaultRetention     = 400 * day // longer than the 365d for which AWS KMS keeps expiring material, so that the last import is there in any case
	renewalPart          = 3         // a third of expires
	maxName              = 64
	databaseSQLite       = "sqlite"
	databasePostgres     = "postgres"
	defaultLogLevel      = "info"
	defaultLogFormat     = "json"
	forbiddenNamePattern = `[^A-Za-z0-9._-]+`
)

// Watch is how often the daemon looks at each KMS key: [KMS.WatchEvery], or 15 minutes.
func (k KMS) Watch() time.Duration { return cmp.Or(k.WatchEvery.Duration(), defaultWatch) }

// Renewal is how long before its expiry the daemon imports the material again: [Key.RenewBefore], or a third of
// [Key.Expires]; 0 for material that does not expire.
func (k Key) Renewal() time.Duration {
	if k.Expires == Never {
		return 0
	}
	return cmp.Or(k.RenewBefore.Duration(), k.Expires.Duration()/renewalPart)
}

// JobRetention is how long jobs that have ended are kept: [Retention.Jobs], or 400 days; 0: for ever.
func (c *Config) JobRetention() time.Duration {
	if c.Retention.Jobs == nil {
		return defaultRetention
	}
	return c.Retention.Jobs.Duration()
}

// DaemonName is [Config.Name], or the name of the machine with '-' for what a name cannot hold.
func (c *Config) DaemonName() string {
	if c.Name != "" {
		return c.Name
	}
	host, err := os.Hostname()
	if err != nil {
		return defaultName
	}
	return nameOf(host)
}

// nameOf makes a name that fits namePattern.
func nameOf(host string) string {
	name := strings.TrimLeft(regexp.MustCompile(forbiddenNamePattern).ReplaceAllString(host, "-"), "._-")
	return cmp.Or(name[:min(len(name), maxName)], defaultName)
}

// ControlSocket is the socket of the daemon's local API: [Control.Socket], or /run/hsmbridge/control.sock.
func (c *Config) ControlSocket() string { return cmp.Or(c.Control.Socket, defaultSocket) }

// MetricsListen is where metrics are served: [Metrics.Listen], or 127.0.0.1:9464; "" when nowhere.
func (c *Config) MetricsListen() string {
	if c.Metrics.Listen == noMetrics {
		return ""
	}
	return cmp.Or(c.Metrics.Listen, defaultMetrics)
}

// WebListen is where the officers' pages are served beside the control socket; "" when nowhere.
func (c *Config) WebListen() string {
	if c.Web.Listen == noMetrics {
		return ""
	}
	return c.Web.Listen
}

// DatabaseLocation is the kind of the daemon's database and where it is: "sqlite" and a path, or "postgres" and a URL.
// The default is SQLite in /var/lib/hsmbridge/hsmbridge.db.
func (c *Config) DatabaseLocation() (kind, location string) {
	if isPostgres(c.Database) {
		return databasePostgres, c.Database
	}
	return databaseSQLite, cmp.Or(c.Database, defaultDatabase)
}

func isPostgres(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

// LogLevel is [Log.Level], or info.
func (c *Config) LogLevel() string { return cmp.Or(c.Log.Level, defaultLogLevel) }

// LogFormat is [Log.Format], or json.
func (c *Config) LogFormat() string { return cmp.Or(c.Log.Format, defaultLogFormat) }
