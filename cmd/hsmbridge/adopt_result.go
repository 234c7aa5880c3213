package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/adopt"
)

// counted is a number of things: 1 key, 2 keys.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// few lists names, and says how many there are more than can be read.
func few(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// writable holds that the result can be written, before anything is created for it.
func (a *app) writable(o adoptOptions) error {
	switch {
	case o.dryRun:
	case o.out != "":
		if _, err := os.Lstat(o.out); !errors.Is(err, fs.ErrNotExist) {
			return usageError(fmt.Errorf("%s is there already and was left as it is; nothing was changed: name another file", o.out))
		}
		if _, err := os.Stat(filepath.Dir(o.out)); err != nil {
			return usageError(err)
		}
	case o.appendTo:
		tmp, err := os.CreateTemp(filepath.Dir(a.configFile), ".adopt-*.yaml")
		if err != nil {
			return &exitError{exitConfig, fmt.Errorf("%s cannot be replaced; nothing was changed: %w", a.configFile, err)}
		}
		return errors.Join(tmp.Close(), os.Remove(tmp.Name()))
	}
	return nil
}

// check holds that the configuration can be loaded with the keys. file is where they come from, empty: from KMS. Where the keys are not to be
// put into the configuration, it does not matter that they could not be.
func (a *app) check(c *configs.Config, file string, list []adopt.Proposal, appended bool) error {
	problems, err := a.problems(c, list, appended)
	if err != nil {
		return err
	}
	return wrong(file, problems)
}

// problems are what the configuration would refuse.
func (a *app) problems(c *configs.Config, list []adopt.Proposal, appended bool) (adopt.Problems, error) {
	old, err := os.ReadFile(a.configFile)
	if err != nil {
		return nil, &exitError{exitConfig, err}
	}
	problems, err := adopt.Check(a.configFile, old, len(c.Keys), list)
	if err != nil && appended {
		return nil, &exitError{exitConfig, fmt.Errorf("%s: %w; nothing was changed", a.configFile, err)}
	}
	return problems, nil
}

// wrong is an error of the configuration, if there are problems: each is told by itself, of very many some.
func wrong(file string, problems adopt.Problems) error {
	if len(problems) == 0 {
		return nil
	}
	var all severalErrors
	for _, line := range problems.Lines(file) {
		all = append(all, errors.New(line))
	}
	what := "correct the file and run the same command again"
	if file == "" {
		what = "write the keys with --out FILE in place of --append, correct them, then: hsmbridge adopt FILE --append"
	}
	return &exitError{exitConfig, append(all, fmt.Errorf("%s; nothing was created or written: %s", counted(len(problems), "mistake"), what))}
}

// result prints the keys, writes them to a file, or puts them into the configuration.
func (a *app) result(list []adopt.Proposal, o adoptOptions) error {
	table := strings.EqualFold(filepath.Ext(o.out), ".csv")
	var text []byte
	switch {
	case o.dryRun:
		return nil
	case o.out != "" && len(list) == 0:
		fmt.Fprintf(a.err, "no key is new: %s was not written\n", o.out)
		return nil
	case o.appendTo:
		return a.appendKeys(adopt.YAML(list), len(list))
	case o.out == "":
		_, err := a.out.Write(adopt.YAML(list))
		return err
	case table:
		var err error
		if text, err = adopt.CSV(list); err != nil {
			return err
		}
	default:
		text = adopt.FleetYAML(list, "A fleet for hsmbridge adopt. The comments say what was found.")
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // no secret is in it
	if err != nil {
		return usageError(err)
	}
	if _, err = f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	notes := "its comments say"
	if table {
		notes = "was noted"
		for _, p := range list {
			for _, n := range p.Notes {
				fmt.Fprintf(a.err, "%s: %s\n", p.Name, printable(n))
			}
		}
	}
	fmt.Fprintf(a.err, "%s written to %s; correct what %s, then: hsmbridge adopt %s --append\n", counted(len(list), "key"), o.out, notes, o.out)
	return nil
}

// appendKeys puts keys at the end of the configuration's list, if the result can be loaded. The old file stays whole until then.
func (a *app) appendKeys(keys []byte, n int) error {
	if n == 0 {
		return nil
	}
	old, err := os.ReadFile(a.configFile)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	info, err := os.Stat(a.configFile)
	if err != nil {
		return &exitError{exitConfig, err}
	}
	text, err := adopt.Append(old, keys)
	if err != nil {
		return &exitError{exitConfig, fmt.Errorf("%s: %w; nothing was changed", a.configFile, err)}
	}
	tmp, err := os.CreateTemp(filepath.Dir(a.configFile), ".adopt-*.yaml")
	if err != nil {
		return &exitError{exitConfig, err}
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // renamed, or of no use
	if _, err = tmp.Write(text); err == nil {
		err = errors.Join(tmp.Chmod(info.Mode().Perm()), tmp.Sync())
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return &exitError{exitConfig, err}
	}
	if _, err := configs.Load(tmp.Name()); err != nil {
		fmt.Fprintf(a.err, "%s was not changed: with these keys it could not be loaded; correct what follows and run the same command again\n", a.configFile)
		var bad *configs.Error
		if errors.As(err, &bad) {
			bad.File = a.configFile // not the temporary file, which is gone
		}
		return &exitError{exitConfig, err}
	}
	if err := os.Rename(tmp.Name(), a.configFile); err != nil {
		return &exitError{exitConfig, err}
	}
	fmt.Fprintf(a.err, "%s put into %s; hsmbridge reload tells the daemon\n", counted(n, "key"), a.configFile)
	return nil
}

// meter tells on a terminal how far something is, how fast, and how long it still takes.
func (a *app) meter(what string) func(done, of int) {
	if !isTerminal(a.err) {
		return func(int, int) {}
	}
	began, last := time.Now(), time.Time{}
	return func(done, of int) {
		now := time.Now()
		if now.Sub(last) < 200*time.Millisecond && done < of {
			return
		}
		last = now
		rate := float64(done) / max(now.Sub(began).Seconds(), 0.001)
		left := time.Duration(float64(of-done)/max(rate, 0.001)) * time.Second
		fmt.Fprintf(a.err, "\r\x1b[K%s: %d of %d, %.1f a second, %s left", what, done, of, rate, left)
		if done == of {
			fmt.Fprintf(a.err, "\r\x1b[K")
		}
	}
}
