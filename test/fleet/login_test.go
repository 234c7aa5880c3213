package fleet

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/control"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/postgres"
)

// The process is killed between the token's answer to a PIN and writing it down. The PIN is not given again, by no daemon, until a person
// says so.
func TestKilledAtLogin(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]func(testing.TB) string{
		"sqlite":   func(testing.TB) string { return "" },
		"postgres": func(tb testing.TB) string { tb.Helper(); return postgres.Shared(tb) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kmsemu.Options{})
			arn := w.key("k", wrapping.HMAC256)
			db := database(t)
			path := w.config("one", db)
			pin := w.token.PINFile(t)
			wrong := filepath.Join(w.dir, "wrong")
			write(t, wrong, "000000")
			write(t, path, strings.Replace(readFile(t, path), pin, wrong, 1))
			w.launch("one", path, envKill+"=login", envLease+"=2s").died()

			// The next life does not try, whatever stands in the file now.
			write(t, path, strings.Replace(readFile(t, path), wrong, pin, 1))
			second := "one"
			if db != "" { // nor does another daemon, when the first has given no sign of life
				second = "two"
				path = w.config(second, db)
			}
			p := w.launch(second, path, envLease+"=2s")
			var parked control.Token
			until(t, "the token to be parked", func() bool {
				s, err := p.client.Status(t.Context())
				if err != nil || len(s.Tokens) != 1 {
					return false
				}
				parked = s.Tokens[0]
				return parked.State == "parked"
			})
			if !strings.Contains(parked.Reason, "ended before it was written down whether it was right") {
				t.Errorf("the token is %s", asJSON(parked))
			}
			if log := readFile(t, p.log); strings.Contains(log, "token opened") {
				t.Errorf("a login was tried:\n%s", log)
			}
			if err := p.client.ResumeToken(t.Context(), "hsm"); err != nil {
				t.Fatal(err)
			}
			until(t, "the import", func() bool { return w.emu.State(arn) == "Enabled" })

			// A good login leaves nothing behind that parks the token after a kill.
			p.settled()
			p.kill()
			released(t, db)
			p = w.launch(second, path, envLease+"=2s")
			p.settled()
			p.ask("import", "k", true)
			for _, j := range p.settled() {
				if j.State != "done" {
					t.Errorf("the job is %s", asJSON(j))
				}
			}
		})
	}
}

// released waits until PostgreSQL has seen that a daemon was killed: its name is in use until then, and another one of the same name does not start.
func released(t *testing.T, database string) {
	t.Helper()
	if database == "" {
		return // a file's lock ends with the process
	}
	db, err := sql.Open("pgx", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // it was only read
	until(t, "the end of the daemon's lock on its name", func() bool {
		var held int
		err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&held)
		return err == nil && held == 0
	})
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}
