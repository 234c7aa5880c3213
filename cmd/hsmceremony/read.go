package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"hsmbridge/configs"
	"hsmbridge/daemon/ceremony"
)

// reading reads files, and gives up when the command is interrupted: a pipe that nobody writes to, or a file system that does not answer, holds its reader
// in open(2) or read(2), where a signal that the program catches does not end it. Who gives up ends the program, and the reader with it.
func reading[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ch := make(chan result, 1)
	go func() {
		value, err := read()
		ch <- result{value, err}
	}()
	select {
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	case r := <-ch:
		return r.value, r.err
	}
}

// readFile reads a file of a ceremony.
func readFile(ctx context.Context, name string) ([]byte, error) {
	return reading(ctx, func() ([]byte, error) { return ceremony.Read(name) })
}

// readNamed reads a file of a ceremony that the command line names.
func readNamed(ctx context.Context, name string) ([]byte, error) {
	text, err := readFile(ctx, name)
	return text, named(name, err)
}

// named makes a wrong command line of an error that says that what it names is not there, or is not of that kind.
func named(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return usageError{fmt.Errorf("%s is not there", name)}
	case errors.Is(err, syscall.EISDIR):
		return usageError{fmt.Errorf("%s is a folder, and a file is expected", name)}
	}
	return err
}

// load reads the configuration.
func load(ctx context.Context, file string) (*configs.Config, error) {
	if file == "" {
		return nil, usageError{errors.New("-c is missing: the room's configuration, with the token, the key and its officers")}
	}
	c, err := reading(ctx, func() (*configs.Config, error) { return configs.Load(file) })
	if err != nil {
		return nil, configError{err}
	}
	return c, nil
}

// signature is a file that should be an officer's.
type signature struct {
	file string
	text []byte
}

// readSignatures reads those beside the request and those that are named, each once.
func readSignatures(ctx context.Context, request string, more []string) ([]signature, error) {
	beside, err := filepath.Glob(escape(request) + "*.sig")
	if err != nil {
		return nil, fmt.Errorf("look for signatures: %w", err)
	}
	var out []signature
	for _, name := range append(beside, more...) {
		b, err := readNamed(ctx, name)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(out, func(o signature) bool { return bytes.Equal(o.text, b) }) {
			out = append(out, signature{filepath.Base(name), b})
		}
	}
	return out, nil
}

// escape keeps the characters of a name from being taken for a pattern.
func escape(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}
