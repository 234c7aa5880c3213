package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/store"
)

// A place has the records from 1 up to a number, and the checkpoints up to a size. Both are in the database and move on after what was written
// is safe there, so that a daemon that is killed writes something twice rather than not at all. A file is looked at for what it has already:
// there each record stands once, whatever happens.

// batchOf is how many records are copied at a time: where nothing tells what has arrived, few, because after a kill they are sent again.
func batchOf(e configs.Export) int {
	const file, stream = 500, 20
	if e.File != "" {
		return file
	}
	return stream
}

// export copies what is new to a place.
func (a *auditor) export(ctx context.Context, e configs.Export) error {
	a.exporting.Lock()
	defer a.exporting.Unlock()
	for {
		next, signed, err := a.store.Exported(ctx, e.Name())
		if err != nil {
			return err
		}
		more, err := a.exportBatch(ctx, e, next, signed)
		if err != nil || !more {
			return err
		}
	}
}

// required copies what was added to the log to the places without which nothing may be done.
func (a *auditor) required(ctx context.Context) error {
	for _, e := range a.config().Audit.Export {
		if !e.Required {
			continue
		}
		if err := a.export(ctx, e); err != nil {
			return fmt.Errorf("the audit log has it, and could not be copied to %s, as audit.export requires it (required: true): %w; what was asked for is not lost, hsmbridge status shows what holds; nothing more is done until the log can be copied: mend the place, or correct audit.export and restart the daemon", e.Name(), err)
		}
	}
	return nil
}

// reaches copies the log to the places that a new configuration requires and the old one did not: where one cannot be written, nothing could be done
// any more, and the configuration could not be taken back without a restart.
func (a *auditor) reaches(ctx context.Context, old, c *configs.Config) error {
	for _, e := range c.Audit.Export {
		if !e.Required || slices.Contains(old.Audit.Export, e) {
			continue
		}
		if err := a.export(ctx, e); err != nil {
			return fmt.Errorf("the audit log cannot be copied to %s, which audit.export would require from now on: %w", e.Name(), err)
		}
	}
	return nil
}

// exportBatch copies the next records; more says that there are others behind them.
func (a *auditor) exportBatch(ctx context.Context, e configs.Export, next, signed int64) (more bool, err error) {
	b, err := a.batch(ctx, e, next, signed)
	if err != nil || len(b.lines) == 0 {
		return false, err
	}
	if e.File != "" {
		f, err := openLog(e.File)
		if err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if f.last != nil {
			if err := a.sameHistory(ctx, e.File, *f.last); err != nil {
				return false, err
			}
			if f.last.N+1 < next {
				a.log.Warn("the end of a copy of the audit log was gone, and is written again", zap.String("to", e.Name()), zap.Int64("from", f.last.N+1))
			}
			if f.last.N+1 != next || f.signed >= signed {
				if signed = min(signed, f.last.N+1); f.signed > 0 {
					signed = f.signed + 1
				}
				if b, err = a.batch(ctx, e, f.last.N+1, signed); err != nil {
					return false, err
				}
			}
		}
		err = f.add(b.lines)
		if err != nil {
			return false, err
		}
	} else if err := a.write(e, b.lines); err != nil {
		return false, err
	}
	return b.more, a.store.SetExported(ctx, e.Name(), b.next, b.signed)
}

// batch is a part of the log as a place gets it.
type batch struct {
	lines        [][]byte
	next, signed int64 // where it goes on
	more         bool
}

func (a *auditor) batch(ctx context.Context, e configs.Export, next, signed int64) (b batch, err error) {
	records, err := a.store.Log(ctx, next, batchOf(e))
	if err != nil {
		return b, err
	}
	last := next - 1
	if len(records) > 0 {
		last = records[len(records)-1].N
	}
	b.lines, b.signed, err = a.lines(ctx, records, signed, last)
	b.next, b.more = last+1, len(records) == batchOf(e)
	return b, err
}

// sameHistory says whether a file's last record is that of the database. If it is not, the database was put back to an earlier state, or one of
// them was changed: then nothing is added, and nothing is lost.
func (a *auditor) sameHistory(ctx context.Context, file string, last audit.Line) error {
	list, err := a.store.Log(ctx, last.N, 1)
	if err != nil {
		return err
	}
	if len(list) == 1 && list[0].N == last.N && bytes.Equal(list[0].Record, last.Record) {
		return nil
	}
	return fmt.Errorf("record %d, the last one in %s, is not in the database: the database was put back to an earlier state, or one of them was changed. Nothing was added; keep the file under another name, and the log goes on in a new one", last.N, file)
}

// lines are the records and the checkpoints that were made since, each checkpoint as early as it can be.
func (a *auditor) lines(ctx context.Context, records []store.Logged, signed, last int64) (lines [][]byte, next int64, err error) {
	const most = 500
	list, err := a.store.Checkpoints(ctx, signed-1, most)
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

// write sends lines to a place that is no file.
func (a *auditor) write(e configs.Export, lines [][]byte) error {
	if e.Syslog != "" {
		return toSyslog(e.Syslog, lines)
	}
	for _, l := range lines {
		if err := a.stdout(l); err != nil {
			return err
		}
	}
	return nil
}
