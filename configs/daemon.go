package configs

import "hsmbridge/hsm/pkcs11uri"

// Schedule imports a key again at fixed times.
type Schedule struct {
	// When, as five fields of cron: minute, hour, day of the month, month, day of the week. "0 3 1 * *" is 03:00 on the first of a month.
	Cron string `yaml:"cron" jsonschema:"required"`
	// Time zone of the IANA database in which the fields are read. Empty: UTC.
	TimeZone string `yaml:"time_zone,omitempty"`
}

// IsZero says that there is no schedule.
func (s Schedule) IsZero() bool { return s == Schedule{} }

// Window is the time of the week in which a key may be renewed, rotated and drilled. What cannot wait does not: material
// that is missing, and a renewal that would come too late.
type Window struct {
	// Days of the week: mon, tue, wed, thu, fri, sat, sun. Empty: every day. A window over midnight belongs to the day on which it begins.
	Days []string `yaml:"days,omitempty" jsonschema:"uniqueItems=true"`
	// Beginning, as 22:00.
	From string `yaml:"from" jsonschema:"required"`
	// End, as 04:00; before the beginning it is on the next day.
	To string `yaml:"to" jsonschema:"required"`
	// Time zone of the IANA database. Empty: UTC.
	TimeZone string `yaml:"time_zone,omitempty"`
}

// IsZero says that there is no window: any time will do.
func (w Window) IsZero() bool {
	return len(w.Days) == 0 && w.From == "" && w.To == "" && w.TimeZone == ""
}

// Backup is the second token in which a copy of a key has to be before the key is imported.
type Backup struct {
	// Name of the token.
	Token string `yaml:"token" jsonschema:"required"`
	// PKCS #11 URI of the copy. Empty: the same as the key's.
	URI pkcs11uri.URI `yaml:"uri,omitempty"`
}

// Quota replaces AWS's default request quota of an operation. The first that matches counts.
type Quota struct {
	// KMS operation: GetParametersForImport, ImportKeyMaterial, DescribeKey ...
	Operation string `yaml:"operation" jsonschema:"required"`
	// AWS account, 12 digits. Empty: every account.
	Account string `yaml:"account,omitempty"`
	// AWS Region. Empty: every Region.
	Region string `yaml:"region,omitempty"`
	// Requests in a time: 1/s, 0.25/s, 30/m. All daemons on one database share it.
	Rate Rate `yaml:"rate" jsonschema:"required"`
}

// Control is the daemon's local API.
type Control struct {
	// Unix socket on which the daemon listens and where the commands look for it. A relative path starts in the folder of the configuration file.
	Socket string `yaml:"socket,omitempty"`
	// Users, and groups with an @ before their name, who may change something: start, pause, retry, revoke. root and the daemon's own user always may. Whoever can open the socket may look.
	Operators []string `yaml:"operators,omitempty" jsonschema:"uniqueItems=true"`
}

// Metrics is where Prometheus metrics, /livez and /readyz are served.
type Metrics struct {
	// Address and port, or none. Default 127.0.0.1:9464.
	Listen string `yaml:"listen,omitempty"`
}

// Web is where the officers' pages are served, beside the control socket, which has them under /ui/ in any case.
type Web struct {
	// Loopback address and port, such as 127.0.0.1:9465, or none. Every user of the machine can look there. Default none.
	Listen string `yaml:"listen,omitempty"`
}

// Retention says how long what is over is kept in the daemon's database.
type Retention struct {
	// Jobs that ended longer ago are deleted, with the rows of their imports; of each kind the last one stays, and the audit log tells of all. At least 30d, or never. Default 400d.
	Jobs *Duration `yaml:"jobs,omitempty"`
}

// Log says what the daemon logs to standard error.
type Log struct {
	// debug, info, warn or error. Default info.
	Level string `yaml:"level,omitempty"`
	// json, or console for people. Default json.
	Format string `yaml:"format,omitempty"`
}
