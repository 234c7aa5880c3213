package configs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"unicode/utf8"

	"hsmbridge/daemon/access"
)

// The largest configurations that are read. The YAML parser takes a hundred times a file's size in memory; what is written plainly
// enough for readSimple takes some ten times.
const (
	maxBytes  = 8 << 20  // some thirty thousand keys
	maxSimple = 64 << 20 // 250,000 keys
)

// Load reads and checks the configuration in a file. Relative paths in module, pin_file, database and control.socket are resolved against the
// file's folder, so that it does not matter where hsmbridge is started. Mistakes in the configuration are an [*Error].
func Load(path string) (*Config, error) {
	folder, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("read the configuration: %w%s", err, access.Advice(path, access.Read))
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w; hsmbridge config init writes one to start from", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := trusted(path, f); err != nil {
		return nil, fmt.Errorf("read the configuration: %s: %w", path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSimple+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := parse(path, folder, data)
	if err != nil {
		return nil, err
	}
	for i := range c.Tokens {
		t := &c.Tokens[i]
		t.Module = resolve(folder, t.Module)
		t.PINFile = resolve(folder, t.PINFile)
	}
	c.Control.Socket = resolve(folder, c.Control.Socket)
	if !isPostgres(c.Database) {
		c.Database = resolve(folder, c.Database)
	}
	return c, nil
}

func resolve(folder, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// Parse reads and checks a configuration. The name stands for the file in messages; relative paths are left as they are.
// The error is an [*Error] with every mistake.
func Parse(name string, data []byte) (*Config, error) {
	return parse(name, filepath.Dir(name), data)
}

func parse(name, folder string, data []byte) (*Config, error) {
	d := newDecoder()
	if !d.readable(data) {
		return nil, &Error{File: name, Problems: d.sorted()}
	}
	if root, ok := readSimple(data); ok {
		if c := d.config(root, folder, len(data)); len(d.problems) == 0 {
			c.seal(data, d)
			return c, nil
		}
		if len(data) > maxBytes {
			d.source = newSource(data)
			d.problems = nil
			d.config(root, folder, len(data)) // once more, for the lines that are shown
			return nil, &Error{File: name, Problems: d.sorted()}
		}
		d = newDecoder() // what is wrong, the YAML parser says
	} else if len(data) > maxBytes {
		d.add(position{1, 1}, "", "the file is larger than 8 MiB; up to 64 MiB are read where each value stands in one line, without escapes, anchors, tabs, or spaces at the ends of lines")
		return nil, &Error{File: name, Problems: d.sorted()}
	}
	d.source = newSource(data)
	c := &Config{}
	if root := d.document(data); root != nil {
		c = d.config(root, folder, len(data))
	}
	if problems := d.sorted(); len(problems) > 0 {
		return nil, &Error{File: name, Problems: problems}
	}
	c.seal(data, d)
	return c, nil
}

// config decodes and checks a configuration; size is that of its file.
func (d *decoder) config(root *node, folder string, size int) *Config {
	const perValue = 32                                         // bytes of a file, about
	d.at = make(map[string]position, min(size/perValue, 1<<18)) // it does not grow while a file of usual size is read
	var c Config
	d.decode("", root, reflect.ValueOf(&c).Elem())
	if len(d.problems) <= maxProblems {
		validate(&c, folder, d)
	}
	return &c
}

// seal notes what the configuration was read from, and where each key is in it.
func (c *Config) seal(data []byte, d *decoder) {
	sum := sha256.New()
	sum.Write(data)
	sum.Write(d.read)
	c.digest = hex.EncodeToString(sum.Sum(nil))
	c.byName = make(map[string]int, len(c.Keys))
	for i := range c.Keys {
		c.byName[c.Keys[i].Name] = i
	}
}

// readable checks what has to hold before a file is read as YAML.
func (d *decoder) readable(data []byte) bool {
	start := position{1, 1}
	switch {
	case len(data) > maxSimple:
		d.add(start, "", "the file is larger than 64 MiB: this is not a configuration of hsmbridge")
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		d.add(start, "", "the file starts with a byte order mark: save it as UTF-8 without one")
	case !utf8.Valid(data):
		valid := 0
		for {
			r, size := utf8.DecodeRune(data[valid:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			valid += size
		}
		d.add(endOf(data[:valid]), "", "byte 0x%02X is not UTF-8: save the file as UTF-8", data[valid])
	case bytes.ContainsRune(data, 0):
		d.add(endOf(data[:bytes.IndexByte(data, 0)]), "", "a zero byte: this is not a text file")
	case len(bytes.TrimSpace(data)) == 0:
		d.add(start, "", "the file is empty; hsmbridge config init writes one to start from")
	default:
		return true
	}
	return false
}

// endOf is the position behind a text.
func endOf(text []byte) position {
	lastLine := text[bytes.LastIndexByte(text, '\n')+1:]
	return position{bytes.Count(text, []byte("\n")) + 1, utf8.RuneCount(lastLine) + 1}
}
