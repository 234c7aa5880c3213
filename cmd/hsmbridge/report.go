package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// writeReport probes one token and writes what was found to a new file, without anything that names the token or its place.
func (a *app) writeReport(ctx context.Context, file string, names []string) error {
	conn, names, err := a.connectTokens(names)
	if err != nil {
		return err
	}
	defer conn.close() //nolint:errcheck // the probe's result stands
	if len(names) != 1 {
		return usageError(fmt.Errorf("--report is about one token: name one of %s", strings.Join(names, ", ")))
	}
	t, err := conn.token(ctx, names[0])
	if err != nil {
		return err
	}
	c, _ := conn.config.Token(names[0])
	r, err := t.Report(ctx, version, []string{c.Module, c.URI.Token, c.URI.Serial, c.URI.SlotDescription})
	if err != nil {
		return err
	}
	text, err := r.Encode()
	if err != nil {
		return err
	}
	if file == "-" {
		_, err := a.out.Write(text)
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write the report: %w", err), os.Remove(file))
	}
	fmt.Fprintf(a.out, "Wrote %s. It holds no label, serial number, path or name of your configuration; read it before you give it away.\n", file)
	return nil
}
