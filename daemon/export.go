package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/store"
)

// A place has the records from 1 up to a number, and the checkpoints up to a size. Both numbers are in the database and move on after what
// was written is safe there, so that a daemon that is killed writes something twice rather than not at all; a file is looked at for what
// it has already.

// checkpointsOf names the position of a place's checkpoints.
func checkpointsOf(place string) string { return place + " (checkpoints)" }

// exportBatch is how many records are copied at a time.
const exportBatch = 500

// export copies what is new to a place.
func (a *auditor) export(ctx context.Context, e configs.Export) error {
	name := e.Name()
	for {
		next, err := a.store.Exported(ctx, name)
		if err != nil {
			return err
		}
		signed, err := a.store.Exported(ctx, checkpointsOf(name))
		if err != nil {
			return err
		}
		records, err := a.store.Log(ctx, next, exportBatch)
		if err != nil {
			return err
		}
		last := next - 1
		if len(records) > 0 {
			last = records[len(records)-1].N
		}
		lines, signed, err := a.lines(ctx, records, signed, last)
		if err != nil || len(lines) == 0 {
			return err
		}
		if err := a.write(e, lines, next); err != nil {
			return err
		}
		if err := a.store.SetExported(ctx, name, last+1); err != nil {
			return err
		}
		if err := a.store.SetExported(ctx, checkpointsOf(name), signed); err != nil {
			return err
		}
		if len(records) < exportBatch {
			return nil
		}
	}
}

// lines are the records and the checkpoints that were made since, each checkpoint as early as it can be.
func (a *auditor) lines(ctx context.Context, records []store.Logged, signed, last int64) (lines [][]byte, next int64, err error) {
	list, err := a.store.Checkpoints(ctx, signed-1, exportBatch)
	if err != nil {
		return nil, signed, err
	}
	add := func(upTo int64) {
		for len(list) > 0 && list[0].Size <= upTo {
			lines, signed = append(lines, audit.CheckpointLine(list[0].Note)), list[0].Size+1
			list = list[1:]
		}
	}
	if len(records) == 0 {
		add(last)
	}
	for _, r := range records {
		add(r.N - 1)
		lines = append(lines, audit.RecordLine(r.N, r.Record))
	}
	add(last)
	return lines, signed, nil
}

func (a *auditor) write(e configs.Export, lines [][]byte, first int64) error {
	switch {
	case e.File != "":
		return appendLines(e.File, lines, first)
	case e.Syslog != "":
		return toSyslog(e.Syslog, lines)
	}
	for _, l := range lines {
		if err := a.stdout(l); err != nil {
			return err
		}
	}
	return nil
}

// appendLines writes lines to a file and makes sure that they are on the disk. The file is opened anew each time, so that it may be moved
// away (logrotate). A last line that a killed process did not finish is taken away; records that it finished are not written again.
func appendLines(name string, lines [][]byte, first int64) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o640) //nolint:gosec // its group may read it
	if err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	last, end, err := lastRecord(f)
	if err != nil {
		return err
	}
	if err := f.Truncate(end); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	var b bytes.Buffer
	for _, line := range lines {
		if l, err := audit.ParseLine(line); err == nil && l.Checkpoint == "" && l.N <= last && l.N >= first {
			continue
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	if _, err := f.WriteAt(b.Bytes(), end); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	return nil
}

// lastRecord is the number of the last record that a file has whole, 0 if none near its end, and where its last whole line ends.
func lastRecord(f *os.File) (n, end int64, err error) {
	const far = 1 << 20
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, fmt.Errorf("export the audit log: %w", err)
	}
	from := max(0, size-far)
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("export the audit log: %w", err)
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	if whole == 0 && from > 0 {
		return 0, 0, errors.New("the file does not end with lines of the audit log: it is used for something else, or was damaged; name another one")
	}
	lines := bytes.Split(bytes.TrimSuffix(tail[:whole], []byte("\n")), []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		if l, err := audit.ParseLine(lines[i]); err == nil && l.Checkpoint == "" {
			return l.N, from + int64(whole), nil
		}
	}
	return 0, from + int64(whole), nil
}

// toSyslog sends each line as a message of the facility authpriv.
func toSyslog(place string, lines [][]byte) (err error) {
	network, address := "", ""
	if place != "local" {
		var ok bool
		if network, address, ok = strings.Cut(place, "://"); !ok {
			return fmt.Errorf("syslog: %q is no place", place)
		}
	}
	w, err := syslog.Dial(network, address, syslog.LOG_NOTICE|syslog.LOG_AUTHPRIV, "hsmbridge-audit")
	if err != nil {
		return fmt.Errorf("syslog: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, l := range lines {
		if _, err := w.Write(l); err != nil {
			return fmt.Errorf("syslog: %w", err)
		}
	}
	return nil
}
