package configs

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	minRetention    = 30 * day
	accountPattern  = `^[0-9]{12}$`
	operatorPattern = `^@?[a-z_][a-z0-9_-]{0,31}\$?$` // useradd(8)
	schemePattern   = `^[A-Za-z][A-Za-z0-9+.-]*://`
	keywordPattern  = `^[a-z]+ *= *\S` // libpq's other form: host=... dbname=...
	maxSocket       = 107              // unix(7): sun_path has 108 bytes, of which one ends it
)

// operations lists the KMS operations that hsmbridge calls.
func operations() []string {
	return []string{
		"CreateAlias", "CreateKey", "DeleteImportedKeyMaterial", "DescribeKey", "GenerateMac", "GetParametersForImport", "GetPublicKey",
		"ImportKeyMaterial", "ListKeyRotations", "ReplicateKey", "RotateKeyOnDemand", "Sign", "TagResource",
	}
}

// daemon checks what only the daemon reads.
func (v validator) daemon() {
	if v.c.Name != "" {
		v.matches("name", v.c.Name, namePattern, nameForm)
	}
	v.database()
	v.reaches()
	v.quotas()
	v.control()
	v.listen("metrics.listen", v.c.Metrics.Listen, "write 127.0.0.1:9464, or 0.0.0.0:9464 if every host may read them", false)
	v.listen("web.listen", v.c.Web.Listen, "write 127.0.0.1:9465", true)
	if at := "retention.jobs"; v.ok(at) && *v.c.Retention.Jobs != Never && v.c.Retention.Jobs.Duration() < minRetention {
		v.problem(at, "%s is less than 30d: what went wrong last month has to be found; leave it out for %s, or write never", *v.c.Retention.Jobs, Duration(defaultRetention))
	}
	v.oneOf("log.level", v.c.Log.Level, logLevels())
	v.oneOf("log.format", v.c.Log.Format, logFormats())
}

func logLevels() []string  { return []string{"debug", "info", "warn", "error"} }
func logFormats() []string { return []string{"json", "console"} }

// oneOf checks a text that is empty or one of some words.
func (v validator) oneOf(path, value string, words []string) {
	if v.ok(path) && value != "" && !slices.Contains(words, value) {
		v.problem(path, "%q is not one of %s", value, list(words))
	}
}

// database checks where the daemon's database is. No message quotes a URL, which may hold a password.
func (v validator) database() {
	const at = "database"
	value := v.c.Database
	if !v.ok(at) || value == "" {
		return
	}
	prefix, _, _ := strings.Cut(value, ":")
	switch {
	case isPostgres(value):
		v.postgres(at, value)
	case slices.Contains([]string{"sqlite", "sqlite3", "file"}, strings.ToLower(prefix)) && prefix != value:
		v.problem(at, "for SQLite write the path alone, without %s:", prefix)
	case regexp.MustCompile(schemePattern).MatchString(value):
		v.problem(at, "%s is no database that hsmbridge speaks: write the path of an SQLite file, or postgres://USER@HOST/DATABASE", prefix)
	case value == ":memory:":
		v.problem(at, "a database in memory forgets what the daemon did: write the path of a file")
	case regexp.MustCompile(keywordPattern).MatchString(value):
		v.problem(at, "this is not a path: for PostgreSQL write a URL, postgres://USER@HOST/DATABASE")
	default:
		v.path(at, value, "the database")
	}
}

func (v validator) postgres(at, value string) {
	u, err := url.Parse(value)
	if err != nil {
		v.problem(at, "this is not a URL: write postgres://USER@HOST/DATABASE")
		return
	}
	_, password := u.User.Password()
	for name := range u.Query() {
		password = password || isSecretName(name)
	}
	switch {
	case password:
		v.problem(at, "a password never stands in a configuration: leave it out, use PGPASSFILE, ~/.pgpass or peer authentication, and change a password that stood here")
	case strings.Trim(u.Path, "/") == "" && !u.Query().Has("dbname"):
		v.problem(at, "the URL names no database: write postgres://USER@HOST/DATABASE")
	}
}

func (v validator) quotas() {
	type scope struct{ operation, account, region string }
	first := make(map[scope]string)
	for i, q := range v.c.Quotas {
		if len(v.problems) > maxProblems {
			return
		}
		path := element("quotas", i)
		if at := path + ".operation"; v.ok(at) && !slices.Contains(operations(), q.Operation) {
			v.problem(at, "%q is no KMS operation that hsmbridge calls%s", q.Operation, operationHint(q.Operation))
		}
		if q.Account != "" {
			v.matches(path+".account", q.Account, accountPattern, "an AWS account of 12 digits")
		}
		if q.Region != "" {
			v.matches(path+".region", q.Region, regionPattern, "an AWS Region such as eu-central-1")
		}
		if !v.ok(path) {
			continue
		}
		own := scope{q.Operation, q.Account, q.Region}
		if other, twice := first[own]; twice {
			v.problem(path, "this quota stands in line %d already", v.at[other].line)
			continue
		}
		for _, general := range []scope{{q.Operation, "", q.Region}, {q.Operation, q.Account, ""}, {q.Operation, "", ""}} {
			if other, hidden := first[general]; hidden {
				v.problem(path, "the more general quota in line %d hides this one, because the first that matches counts: write this one before it", v.at[other].line)
				break
			}
		}
		first[own] = path
	}
}

func operationHint(name string) string {
	for _, known := range operations() {
		if near(name, known) {
			return ": did you mean " + known + "?"
		}
	}
	return ": there is " + list(operations())
}

func (v validator) control() {
	if at := "control.socket"; v.ok(at) && v.c.Control.Socket != "" {
		v.path(at, v.c.Control.Socket, "the socket")
		if whole := resolve(v.folder, v.c.Control.Socket); len(whole) > maxSocket {
			v.problem(at, "the path of the socket has %d bytes and Linux takes %d: write a shorter one, such as %s", len(whole), maxSocket, defaultSocket)
		}
	}
	seen := make(map[string]bool)
	for i, name := range v.c.Control.Operators {
		at := element("control.operators", i)
		v.matches(at, name, operatorPattern, "the name of a user, or of a group with an @ before it")
		if v.ok(at) && seen[name] {
			v.problem(at, "%s is listed twice", name)
		}
		seen[name] = true
	}
}

// listen checks an address and a port at which something is served.
func (v validator) listen(at, value, example string, loopback bool) {
	if !v.ok(at) || value == "" || value == noMetrics {
		return
	}
	host, port, ok := hostPort(value)
	n, notNumber := strconv.ParseUint(port, 10, 16)
	address, notAddress := netip.ParseAddr(host)
	switch {
	case !ok:
		v.problem(at, "%q is not an address and a port: %s; or none", value, example)
	case host == "":
		v.problem(at, "without a host these are all interfaces: %s", example)
	case notNumber != nil || n == 0:
		v.problem(at, "%q is not a port: write a number from 1 to 65535", port)
	case notAddress != nil && host != "localhost":
		v.problem(at, "%q is not an address of this machine: %s", host, example)
	case loopback && host != "localhost" && !address.IsLoopback():
		v.problem(at, "%s can be reached from elsewhere, and these pages ask for no password: %s; from another machine, ssh forwards the control socket (docs/approvals.md)", host, example)
	}
}
