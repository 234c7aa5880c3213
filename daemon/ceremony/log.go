package ceremony

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
)

// Log is the room's own audit log: a file to which records are added, each one on the disk before what comes after it is done.
type Log struct {
	file    *os.File
	origin  string
	now     func() time.Time
	actor   string
	size    int64
	end     int64 // of the file's last whole line
	hashes  []audit.Hash
	records []audit.Record
	signed  int64 // records under the last checkpoint
}

// Origin names the log of a request.
func Origin(request string) string { return "hsmceremony/" + request }

// OpenLog opens the log of a request, or begins it. A log that is there is verified, and goes on; a last line that was not finished is cut
// off. It stays locked until [Log.Close]: one session at a time works on a request. The folder came from outside: a symbolic link in it is
// not followed, and of what is no log nothing is cut off.
func OpenLog(name, request, actor string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644) //nolint:gosec // it is handed to others
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, &FileError{"log of this ceremony", name + " is a symbolic link, which nobody here made; nothing was done"}
	case err != nil:
		return nil, fmt.Errorf("open the ceremony's log: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(&FileError{"log of this ceremony", name + " is not a regular file; nothing was done"}, f.Close())
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &MismatchError{fmt.Sprintf("another hsmceremony is at work on request %s (%s is locked): go on there, or end it first; nothing was done", request, name)}
		}
		return nil, errors.Join(err, f.Close())
	}
	l := &Log{file: f, origin: Origin(request), now: now, actor: actor}
	if err := l.load(request); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	syncFolder(name)
	return l, nil
}

func (l *Log) load(request string) error {
	text, err := read(l.file, l.file.Name())
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	if !begun(text[whole:]) {
		return &FileError{"log of this ceremony", "it ends with something else than lines of a log; nothing was done; keep the file, and begin again in another folder"}
	}
	report, err := audit.Verify(bytes.NewReader(text[:whole]), audit.Options{Each: func(r audit.Record) error {
		l.records = append(l.records, r)
		return nil
	}})
	if err != nil {
		return fmt.Errorf("read the ceremony's log: %w", err)
	}
	if !report.OK() {
		return &FileError{"log of this ceremony", report.Problems[0].Message + "; nothing was done; keep the file, and begin again in another folder"}
	}
	for i, r := range l.records {
		if step, ok := r.Data.(*audit.Step); !ok || step.Request != request {
			return &FileError{"log of this ceremony", fmt.Sprintf("record %d is of another request", i+1)}
		}
	}
	in := bufio.NewScanner(bytes.NewReader(text[:whole]))
	in.Buffer(nil, maxFile)
	for in.Scan() {
		line, err := audit.ParseLine(in.Bytes())
		switch {
		case err != nil: // an empty line
		case line.Checkpoint != "":
			if c, err := audit.ReadUnsigned(line.Checkpoint); err == nil {
				l.signed = c.Size
			}
		default:
			if err := l.grow(line.Hash); err != nil {
				return err
			}
		}
	}
	if err := l.file.Truncate(int64(whole)); err != nil {
		return fmt.Errorf("open the ceremony's log: %w", err)
	}
	l.end = int64(whole)
	return nil
}

// begun says that bytes are the beginning of a line that was not finished. A file system may leave zeros behind it.
func begun(tail []byte) bool {
	tail = bytes.TrimRight(tail, "\x00")
	for _, begins := range []string{`{"n":`, `{"checkpoint":`} {
		n := min(len(tail), len(begins))
		if string(tail[:n]) == begins[:n] {
			return true
		}
	}
	return false
}

// write adds a line and makes sure that it is on the disk. One that could not be written whole is taken away again, so that the log can go on.
func (l *Log) write(line []byte) error {
	line = append(line, '\n')
	_, err := l.file.WriteAt(line, l.end)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the ceremony's log, so nothing more is done: %w", errors.Join(err, l.file.Truncate(l.end)))
	}
	l.end += int64(len(line))
	return nil
}

func (l *Log) read(indexes []int64) ([]audit.Hash, error) {
	out := make([]audit.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = l.hashes[n]
	}
	return out, nil
}

func (l *Log) grow(leaf audit.Hash) error {
	_, hashes, err := audit.Append(l.size+1, leaf, l.read)
	if err != nil {
		return err
	}
	l.size++
	l.hashes = append(l.hashes, hashes...)
	return nil
}

// Add adds a record of a step and makes sure that it is on the disk. Without it the next step must not be done.
func (l *Log) Add(kind audit.Kind, key, destination, message string, step audit.Step) error {
	r := audit.Record{N: l.size + 1, Time: l.now(), Kind: kind, Actor: l.actor, Key: key, Destination: destination, Message: message, Data: &step}
	raw, err := r.Encode()
	if err != nil {
		return err
	}
	if err := l.write(audit.RecordLine(r.N, raw)); err != nil {
		return err
	}
	l.records = append(l.records, r)
	return l.grow(audit.LeafHash(raw))
}

// Sign adds a checkpoint, signed by a key in the HSM.
func (l *Log) Sign(public []byte, sign audit.Signer) error {
	root, err := l.Root()
	if err != nil {
		return err
	}
	note, err := audit.Checkpoint{Origin: l.origin, Size: l.size, Root: root, Time: l.now()}.Sign(public, sign)
	if err != nil {
		return err
	}
	if err := l.write(audit.CheckpointLine(note)); err != nil {
		return err
	}
	l.signed = l.size
	return nil
}

// Signed says that the last record is under a checkpoint.
func (l *Log) Signed() bool { return l.size > 0 && l.signed == l.size }

// Root is the hash of the log as it is.
func (l *Log) Root() (audit.Hash, error) { return audit.Root(l.size, l.read) }

// Place tells how many records there are and the beginning of the root, to be read aloud.
func (l *Log) Place() (string, error) {
	root, err := l.Root()
	return fmt.Sprintf("%d, root %s", l.size, approval.Short(root[:])), err
}

// placeOf is [Log.Place] of records that were read.
func placeOf(records []audit.Record) (string, error) {
	var l Log
	for _, r := range records {
		raw, err := r.Encode()
		if err != nil {
			return "", err
		}
		if err := l.grow(audit.LeafHash(raw)); err != nil {
			return "", err
		}
	}
	return l.Place()
}

// Records are those that are there.
func (l *Log) Records() []audit.Record { return l.records }

// Last is the last record of a kind; nil: there is none.
func (l *Log) Last(kind audit.Kind) *audit.Record {
	for i := len(l.records) - 1; i >= 0; i-- {
		if l.records[i].Kind == kind {
			return &l.records[i]
		}
	}
	return nil
}

// All are the records of a kind.
func (l *Log) All(kind audit.Kind) []audit.Record {
	var out []audit.Record
	for _, r := range l.records {
		if r.Kind == kind {
			out = append(out, r)
		}
	}
	return out
}

// Wraps are the records of wraps that were begun: of each one that the HSM was about to be asked for. With [audit.Step.FileSHA] it is one
// that the HSM did.
func (l *Log) Wraps() (begun, done []audit.Record) {
	for _, r := range l.records {
		if s, ok := r.Data.(*audit.Step); ok && r.Kind == wrapKind {
			if s.FileSHA == "" {
				begun = append(begun, r)
			} else {
				done = append(done, r)
			}
		}
	}
	return begun, done
}

// UsedError says that wrapping keys were used before, in another ceremony.
type UsedError struct{ Request, File string }

func (e *UsedError) Error() string {
	return fmt.Sprintf("the wrapping key of this request was used before, in request %s (%s): each import needs parameters of its own; fetch new ones, and have that request signed; nothing was done", e.Request, e.File)
}

// Class is "caller".
func (e *UsedError) Class() string { return "caller" }

// Used holds that no other ceremony whose log is in the folder used one of the request's wrapping keys.
func Used(folder string, q approval.Request) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("look for earlier ceremonies: %w", err)
	}
	mine := map[string]bool{}
	for _, der := range q.WrappingKeys {
		mine[approval.Fingerprint(der)] = true
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), LogExt) {
			continue
		}
		name := filepath.Join(folder, e.Name())
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
			continue // not of a ceremony; reading a pipe would not end
		}
		text, err := Read(name)
		if err != nil {
			continue // not of a ceremony
		}
		_, err = audit.Verify(bytes.NewReader(text), audit.Options{Each: func(r audit.Record) error {
			if s, ok := r.Data.(*audit.Step); ok && r.Kind == wrapKind && s.Request != q.ID && mine[s.Key] {
				return &UsedError{s.Request, e.Name()}
			}
			return nil
		}})
		var used *UsedError
		if errors.As(err, &used) {
			return used
		}
	}
	return nil
}

// Close closes the file, which unlocks it.
func (l *Log) Close() error { return l.file.Close() }

// Records reads the records of a room's log, which has to be whole.
func Records(text []byte) ([]audit.Record, error) {
	var out []audit.Record
	report, err := audit.Verify(bytes.NewReader(text), audit.Options{Each: func(r audit.Record) error {
		out = append(out, r)
		return nil
	}})
	if err != nil {
		return nil, fmt.Errorf("read the room's log: %w", err)
	}
	if !report.OK() {
		return nil, &FileError{"log of a ceremony", report.Problems[0].Message}
	}
	if len(out) == 0 {
		return nil, &FileError{"log of a ceremony", "it has no record"}
	}
	first, ok := out[0].Data.(*audit.Step)
	if !ok || first.Request == "" {
		return nil, &FileError{"log of a ceremony", "its first record is of something else"}
	}
	for _, r := range out {
		if s, ok := r.Data.(*audit.Step); !ok || s.Request != first.Request {
			return nil, &FileError{"log of a ceremony", fmt.Sprintf("record %d is of another request", r.N)}
		}
	}
	return out, nil
}
