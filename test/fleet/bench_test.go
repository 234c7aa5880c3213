package fleet

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// BenchmarkStart10000 starts a daemon with ten thousand managed keys that are all imported: how long until it is ready, what memory it
// then has, and how much of one CPU it takes when there is nothing to do.
func BenchmarkStart10000(b *testing.B) {
	const keys = 10000
	w := newWorld(b, kmsemu.Options{})
	for i := range keys {
		w.manage(fmt.Sprintf("key-%05d", i), wrapping.SymmetricDefault, []string{fmt.Sprintf("arn:aws:kms:eu-central-1:111122223333:key/%08d-0000-4000-8000-000000000000", i)})
	}
	path := filepath.Join(w.dir, "hsmbridge.db")
	s, err := store.Open(b.Context(), store.Config{Path: path, Daemon: "one", NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	err = s.Tx(b.Context(), func(tx *store.Tx) error {
		for i := range keys {
			if _, err := tx.ExecContext(b.Context(), `INSERT INTO destinations (key_name, destination, seen_at, kms_state, present, valid_to, first_at, imported_at, drilled_at, life) VALUES (?, ?, ?, 'Enabled', 1, ?, ?, ?, ?, ?)`,
				fmt.Sprintf("key-%05d", i), fmt.Sprintf("arn:aws:kms:eu-central-1:111122223333:key/%08d-0000-4000-8000-000000000000", i),
				now.UnixMicro(), now.Add(80*day).UnixMicro(), now.UnixMicro(), now.UnixMicro(), now.UnixMicro(), (90 * day).Microseconds()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	config := w.config("one", "")
	var ready, start, rss, idle float64
	for b.Loop() {
		told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(b.TempDir(), "notify"), Net: "unixgram"})
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		p := w.launch("one", config, envPoll+"=0s", "NOTIFY_SOCKET="+told.LocalAddr().String())
		awaitReady(b, told)
		ready += time.Since(began).Seconds() * 1000
		start += cpu(b, p).Seconds() * 1000
		_ = told.Close()
		if st, err := p.client.Status(b.Context()); err != nil || !st.Ready || st.Counts.Ready != keys {
			b.Fatal(st.Counts, err)
		}
		time.Sleep(2 * time.Second) // its first pass
		const quiet = 10 * time.Second
		before := cpu(b, p)
		time.Sleep(quiet)
		idle += (cpu(b, p) - before).Seconds() / quiet.Seconds() * 100
		rss += memory(b, p)
		p.kill()
	}
	n := float64(b.N)
	b.ReportMetric(ready/n, "ready-ms")
	b.ReportMetric(start/n, "ready-CPU-ms") // what it takes of one CPU, also on a machine that does other things
	b.ReportMetric(rss/n, "RSS-MiB")
	b.ReportMetric(idle/n, "idle-CPU-%")
	b.ReportMetric(0, "ns/op")
}

// awaitReady waits for what systemd waits for. Source: sd_notify(3).
func awaitReady(tb testing.TB, told *net.UnixConn) {
	tb.Helper()
	if err := told.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	for message := make([]byte, 4096); ; {
		n, err := told.Read(message)
		if err != nil {
			tb.Fatal("the daemon does not get ready:", err)
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			return
		}
	}
}

// cpu is the CPU time that a process has used. Source: proc(5), /proc/PID/stat, in ticks of a hundredth of a second.
func cpu(tb testing.TB, p *process) time.Duration {
	tb.Helper()
	_, rest, _ := strings.Cut(readFile(tb, "/proc/"+itoa(p.Process.Pid)+"/stat"), ") ")
	f := strings.Fields(rest)
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		tb.Fatal(err1, err2)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is the resident memory of a process in MiB.
func memory(tb testing.TB, p *process) float64 {
	tb.Helper()
	for line := range strings.Lines(readFile(tb, "/proc/"+itoa(p.Process.Pid)+"/status")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				tb.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	tb.Fatal("no VmRSS")
	return 0
}
