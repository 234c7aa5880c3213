// Package ceremony is the air-gapped import: the files that go between the three machines, the room's own log, what is done beside the
// HSM, and the report. It is linked into hsmceremony, which has no network code.
//
// The request is the text of package approval, with the wrapping public keys in it: what officers sign is the file that goes into the
// room. [Room.Wrap] is the function to read.
package ceremony

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hsmbridge/daemon/approval"
)

// block is a named part of a file: PEM without headers.
type block struct {
	kind  string
	bytes []byte
}

// field is a named line of a file. A field without a value has no line.
type field struct{ name, value string }

const (
	column  = 22
	maxFile = 256 << 10
)

// sheet is a text file: a title, fields in an order that its title fixes, blocks. What is read is what is written, to the byte.
func sheet(title string, fields []field, blocks []block) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n", title)
	for _, f := range fields {
		if f.value == "" {
			continue
		}
		if f.value != approval.OneLine(f.value) {
			return nil, fmt.Errorf("%s: %q has characters that cannot be shown in one line", f.name, f.value[:min(len(f.value), 80)])
		}
		fmt.Fprintf(&b, "%-*s%s\n", column, f.name+":", f.value)
	}
	for _, p := range blocks {
		b.WriteByte('\n')
		if err := pem.Encode(&b, &pem.Block{Type: p.kind, Bytes: p.bytes}); err != nil {
			return nil, fmt.Errorf("write a file: %w", err)
		}
	}
	if b.Len() > maxFile {
		return nil, fmt.Errorf("a file of %d bytes is too long", b.Len())
	}
	return b.Bytes(), nil
}

// FileError says why a file is not what it should be.
type FileError struct{ What, Reason string }

func (e *FileError) Error() string { return fmt.Sprintf("this is no %s: %s", e.What, e.Reason) }

// Class is "caller".
func (e *FileError) Class() string { return "caller" }

// parseSheet reads fields and blocks. The caller writes them again and compares: see [same].
func parseSheet(text []byte, title, what string, names []string) (map[string]string, []block, error) {
	fail := func(format string, args ...any) (map[string]string, []block, error) {
		return nil, nil, &FileError{what, fmt.Sprintf(format, args...)}
	}
	if len(text) > maxFile {
		return fail("it has %d bytes", len(text))
	}
	rest, ok := strings.CutPrefix(string(text), title+"\n\n")
	if !ok {
		return fail("it does not begin with %q", title)
	}
	fields, at := map[string]string{}, 0
	for rest != "" && !strings.HasPrefix(rest, "\n") {
		line, more, _ := strings.Cut(rest, "\n")
		rest = more
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fail("the line %q has no name and value", line[:min(len(line), 40)])
		}
		for at < len(names) && names[at] != name {
			at++
		}
		if at == len(names) {
			return fail("%q is unknown, or stands there twice or in the wrong place", name[:min(len(name), 40)])
		}
		at++
		fields[name] = strings.TrimLeft(value, " ")
	}
	var blocks []block
	const most = 8
	for rest != "" {
		p, more := pem.Decode([]byte(rest))
		if p == nil || len(p.Headers) > 0 || len(blocks) == most {
			return fail("only blocks in PEM may follow the lines")
		}
		blocks = append(blocks, block{p.Type, p.Bytes})
		rest = string(more)
	}
	return fields, blocks, nil
}

// same holds that a file is written exactly as hsmbridge writes it.
func same(text, again []byte, err error, what string) error {
	switch {
	case err != nil:
		return &FileError{what, err.Error()}
	case !bytes.Equal(text, again):
		return &FileError{what, "it is not written as hsmbridge writes it: somebody edited it, or a program changed it on the way"}
	}
	return nil
}

// WriteNew writes a file that must not be there yet, and makes sure that it is on the disk. It is there whole or not at all: whatever
// interrupts it leaves NAME.part at most, which the next try writes anew.
func WriteNew(name string, data []byte, mode os.FileMode) error {
	if _, err := os.Lstat(name); err == nil {
		return &ExistsError{name}
	}
	part := name + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write %s: %w", name, err)
	}
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		// As O_EXCL: a file of that name that came meanwhile stays. FAT, of USB sticks, has no links but knows this flag.
		err = unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
	}
	switch {
	case errors.Is(err, os.ErrExist):
		return errors.Join(&ExistsError{name}, os.Remove(part))
	case err != nil:
		return errors.Join(fmt.Errorf("write %s: %w; what was written of it is removed", name, err), os.Remove(part))
	}
	syncFolder(name)
	return nil
}

// syncFolder makes a new name safe. Not every file system can.
func syncFolder(name string) {
	if d, err := os.Open(filepath.Dir(name)); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}

// ExistsError says that a file is there that is to be written.
type ExistsError struct{ Name string }

func (e *ExistsError) Error() string {
	return e.Name + " is there already, and no file of a ceremony is ever overwritten: move it away, or work in another folder"
}

// Class is "caller".
func (e *ExistsError) Class() string { return "caller" }

// Read reads a file of a ceremony, which is never long.
func Read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read a file of the ceremony: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	return read(f, name)
}

func read(in io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(b) > maxFile:
		return nil, &FileError{"file of a ceremony", fmt.Sprintf("%s has more than %d bytes", name, maxFile)}
	}
	return b, nil
}
