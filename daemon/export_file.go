package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"hsmbridge/daemon/audit"
)

// logFile is a file to which the log is copied. It is opened anew each time, so that it may be moved away (logrotate).
type logFile struct {
	f      *os.File
	end    int64       // of its last whole line: a process that was killed may have left half of one behind it
	last   *audit.Line // the last record in it; nil: none near its end
	signed int64       // size of the last checkpoint; 0: none near its end
}

// openLog opens a file and looks at what it has. Nobody else adds to it until it is closed.
func openLog(name string) (_ *logFile, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = newLog(name)
	}
	if err != nil {
		return nil, fmt.Errorf("export the audit log: %w", err)
	}
	l := &logFile{f: f}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export the audit log to %s: %w", name, err), f.Close())
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another process writes to it: %w", err)
	}
	err = l.look()
	return l, err
}

// newLog makes a file that its group may read, also where the process's umask says otherwise: what ships the log away has to. A file system without modes
// takes it as it is.
func newLog(name string) (*os.File, error) {
	const mode = 0o640
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, mode)
	if err == nil {
		_ = f.Chmod(mode)
	}
	return f, err
}

// look reads the end of the file.
func (l *logFile) look() error {
	const far = 1 << 20
	size, err := l.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	from := max(0, size-far)
	tail := make([]byte, size-from)
	if _, err := l.f.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	l.end = from + int64(whole)
	lines := bytes.Split(bytes.TrimSuffix(tail[:whole], []byte("\n")), []byte("\n"))
	const enough = 1000
	for i := len(lines) - 1; i >= max(0, len(lines)-enough) && (l.last == nil || l.signed == 0); i-- {
		if i == 0 && (from > 0 || len(lines[0]) == 0) {
			break // it may begin in the middle, or the file is empty
		}
		line, err := audit.ParseLine(lines[i])
		if err != nil && l.last == nil {
			return fmt.Errorf("its end is no audit log (%w): it is used for something else, or was damaged; keep it under another name, and the log goes on in a new one", err)
		}
		if err == nil && line.Checkpoint == "" && l.last == nil {
			l.last = &line
		}
		if c, cerr := audit.ReadUnsigned(line.Checkpoint); err == nil && cerr == nil && l.signed == 0 {
			l.signed = c.Size
		}
	}
	if l.last == nil && size > 0 && (from > 0 || whole == 0 && !bytes.HasPrefix(tail, []byte("{"))) {
		return errors.New("it does not end with lines of the audit log: it is used for something else, or was damaged; keep it under another name, and the log goes on in a new one")
	}
	return nil
}

// add writes lines and makes sure that they are on the disk.
func (l *logFile) add(lines [][]byte) error {
	if err := l.f.Truncate(l.end); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	var b bytes.Buffer
	for _, line := range lines {
		b.Write(line)
		b.WriteByte('\n')
	}
	if _, err := l.f.WriteAt(b.Bytes(), l.end); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *logFile) Close() error { return l.f.Close() }
