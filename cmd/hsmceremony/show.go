package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

// can tells how the HSM can wrap a key: what has to be fetched.
func (a *app) can(ctx context.Context, args []string) (err error) {
	f := a.flags("can", "KEY", "How this HSM can wrap a key, best first: which parameters have to be fetched for it.")
	config := f.String("c", "", "the room's configuration `file`")
	names, err := a.parse(f, args, 1)
	if err != nil {
		return err
	}
	c, err := load(ctx, *config)
	if err != nil {
		return err
	}
	k, ok := c.Key(names[0])
	if !ok {
		return usageError{fmt.Errorf("the configuration has no key %q", names[0])}
	}
	t, _ := c.Token(k.Token)
	token, _, err := openToken(ctx, t, a.err)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	list, err := ceremony.Can(ctx, token, k.KeySpec, c.Wrapping.Policy(configs.Destination{ARN: k.Destinations[0].ARN}.Partition()))
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return &ceremony.MismatchError{Reason: "this HSM can wrap the key by no algorithm that KMS takes: hsmbridge probe says why"}
	}
	for _, p := range list {
		fmt.Fprintf(a.out, "--algorithm %-24s --wrapping-key-spec %s  by %s\n", p.Algorithm, p.WrappingKeySpec, p.Mechanism)
	}
	return nil
}

// show prints a file of a ceremony.
func (a *app) show(ctx context.Context, args []string) error {
	f := a.flags("show", "FILE", "Show a request, a wrapped key, import tokens or a log. The file is read strictly: one that was changed is refused.")
	names, err := a.parse(f, args, 1)
	if err != nil {
		return err
	}
	text, err := readNamed(ctx, names[0])
	if err != nil {
		return err
	}
	s := a.screens(0)
	defer s.flush()
	switch {
	case bytes.HasPrefix(text, []byte("hsmbridge import token")):
		t, err := ceremony.ParseTokens(text)
		if err != nil {
			return err
		}
		s.line("request", t.Request)
		s.line("request SHA-256", t.SHA256)
		s.line("import tokens", fmt.Sprint(len(t.Tokens)))
		s.line("AWS request IDs", t.IDs)
		s.gap()
		s.say("This file stays on the machine that fetched it: in the HSM room nobody needs it.")
		return nil
	case bytes.HasPrefix(text, []byte("{")):
		return a.showLog(text)
	case bytes.HasPrefix(text, []byte("hsmbridge wrapped key")):
		w, err := ceremony.ParseWrapped(text)
		if err != nil {
			return err
		}
		s.line("request", w.Request)
		s.line("key", w.Key)
		s.line("wrapped at", w.At.Format(time.RFC3339))
		s.line("HSM", strings.Join([]string{w.HSM, w.Serial, w.Firmware}, ", "))
		s.line("material", w.Material)
		s.line("algorithm", w.Algorithm)
		s.line("mechanism", w.Mechanism)
		s.line("log", w.Log+", "+w.Records)
		for _, k := range w.Keys {
			s.line("wrapping key", k.WrappingKey)
			s.line("output", fmt.Sprintf("%d bytes", len(k.Bytes)))
		}
		return nil
	}
	q, err := approval.Parse(text)
	if err != nil {
		return &ceremony.FileError{What: "file of a ceremony", Reason: err.Error()}
	}
	for _, l := range q.Fields() {
		s.line(l.Name, l.Value)
	}
	s.gap()
	s.line("SHA-256 of the text", approval.Short(approval.Digest(text)))
	s.line("", ceremony.Digest(text))
	if left := time.Until(q.ParametersValidTo); !q.ParametersValidTo.IsZero() && left > 0 {
		s.line("time left", left.Round(time.Minute).String())
	} else if !q.ParametersValidTo.IsZero() {
		s.line("time left", "none: the import parameters have expired")
	}
	return nil
}

func (a *app) showLog(text []byte) error {
	var records []audit.Record
	report, err := audit.Verify(bytes.NewReader(text), audit.Options{Each: func(r audit.Record) error { records = append(records, r); return nil }})
	if err != nil {
		return err
	}
	for _, r := range records { // also of kinds that nobody knows: what they say may not look like other lines
		fmt.Fprintf(a.out, "%3d  %s  %-15s %s\n", r.N, r.Time.UTC().Format("2006-01-02 15:04:05"), approval.OneLine(string(r.Kind)), approval.OneLine(r.Message))
	}
	fmt.Fprintf(a.out, "\n%d records, root %s\n", report.Records, report.Root)
	if root, err := base64.StdEncoding.DecodeString(report.Root); err == nil && len(root) > 0 {
		fmt.Fprintf(a.out, "as on the paper: the log: %d, root %s\n", report.Records, approval.Short(root))
	}
	if !report.OK() {
		for _, p := range report.Problems {
			fmt.Fprintln(a.out, "!", approval.OneLine(p.Message))
		}
		return &ceremony.MismatchError{Reason: "the log was changed, or damaged"}
	}
	return nil
}
