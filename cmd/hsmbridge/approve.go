package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

func (a *app) approveCommand() *cobra.Command {
	var key, signature, file string
	var assumeYes bool
	c := &cobra.Command{
		Use: "approve REQUEST...", Short: "Sign requests for approval with your SSH key",
		Long: `Read a request for approval, sign its text with your SSH key, and hand the signature in.

The key is the one in ssh-agent that belongs to an officer, so that smartcards and security keys work; --key FILE signs with ssh-keygen and
that key file. --signature FILE hands in what ssh-keygen -Y sign -n hsmbridge-approval wrote somewhere else. --file REQUEST.txt asks no
daemon: it signs the text in the file and writes REQUEST.txt.sig beside it.

Type the first four characters of the request's name to confirm that you have read it. The daemon checks the signature now and again
immediately before anything is done.`,
		Example: "  hsmbridge approve 7K3M-9QXA-0B2C-D4EF\n  hsmbridge approve --file request.txt --key ~/.ssh/id_ed25519_sk",
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				if len(args) > 0 || signature != "" {
					return usageError(errors.New("--file takes the text from a file: name no request beside it"))
				}
				return a.approveFile(cmd.Context(), file, key, assumeYes)
			}
			if len(args) == 0 {
				return usageError(errors.New("name a request (hsmbridge requests lists them)"))
			}
			if signature != "" && len(args) > 1 {
				return usageError(errors.New("a signature is over one request: name one"))
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := a.approve(cmd.Context(), c, name, key, signature, assumeYes); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "sign with ssh-keygen and this key `file`; a public key file if the private key is in ssh-agent")
	f.StringVar(&signature, "signature", "", "hand in the signature in this `file`")
	f.StringVar(&file, "file", "", "sign the request in this `file`, without the daemon")
	f.BoolVar(&assumeYes, "yes", false, "do not ask; for scripts")
	return c
}

func (a *app) approve(ctx context.Context, c *control.Client, name, key, signature string, assumeYes bool) error {
	r, err := c.Request(ctx, name)
	if err != nil {
		return err
	}
	var signed []byte
	if signature != "" {
		if signed, err = readSmall(signature); err != nil {
			return err
		}
	} else {
		if !r.Open() {
			return &exitError{exitRefused, fmt.Errorf("request %s is %s: there is nothing to sign", r.Name, r.State)}
		}
		if err := a.showRequest(r, time.Now(), a.showDifferences); err != nil {
			return err
		}
		if err := a.confirm(r.Name, assumeYes); err != nil {
			return err
		}
		s := signer{keyFile: key}
		for _, o := range r.Officers {
			s.known = append(s.known, o.Keys...)
		}
		if signed, err = s.sign(ctx, approval.Namespace, []byte(r.Text)); err != nil {
			return err
		}
	}
	if r, err = c.Approve(ctx, r.Name, signed); err != nil {
		return err
	}
	switch r.State {
	case store.RequestApproved, store.RequestUsed:
		next := "it is carried out now"
		if r.Purpose == string(approval.Standing) {
			next = "renewals need no further approval until " + r.ValidUntil.UTC().Format(time.DateOnly)
		}
		fmt.Fprintf(a.out, "%s: approved (%s); %s\n", r.Name, signedBy(r), next)
	default:
		fmt.Fprintf(a.out, "%s: your approval was taken: %s\n", r.Name, r.Decision.Message)
	}
	return nil
}

// confirm lets a person type the beginning of the request's name.
func (a *app) confirm(name string, assumeYes bool) error {
	if assumeYes {
		return nil
	}
	if !isTerminal(os.Stdin) {
		return usageError(errors.New("there is no terminal to ask on; give --yes to sign without being asked"))
	}
	want, _, _ := strings.Cut(name, "-")
	got, err := a.ask(fmt.Sprintf("\nType %s to sign, anything else to leave it: ", want))
	if err != nil {
		return err
	}
	if !strings.EqualFold(got, want) {
		return &exitError{exitRefused, fmt.Errorf("%q is not %q: nothing was signed", got, want)}
	}
	return nil
}

// readSmall reads a file that a person hands over.
func readSmall(name string) ([]byte, error) {
	const most = 128 << 10
	f, err := os.Open(name)
	if err != nil {
		return nil, usageError(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(b) > most:
		return nil, usageError(fmt.Errorf("%s is longer than a request or a signature can be", name))
	}
	return b, nil
}

// approveFile signs the text in a file, away from the daemon.
func (a *app) approveFile(ctx context.Context, file, key string, assumeYes bool) error {
	text, err := readSmall(file)
	if err != nil {
		return err
	}
	q, err := approval.Parse(text)
	if err != nil {
		return &exitError{exitRefused, fmt.Errorf("%s: %w", file, err)}
	}
	r := control.Request{Request: store.Request{Name: q.ID, Text: string(text), State: store.RequestOpen, ValidUntil: q.ValidUntil}}
	r.Decision.Message = "whether it is enough is decided where it is carried out"
	if err := a.showRequest(r, time.Now(), a.showAway); err != nil {
		return err
	}
	if !time.Now().Before(q.ValidUntil) {
		return &exitError{exitRefused, fmt.Errorf("the request was valid until %s: ask again; nothing was signed", q.ValidUntil.Format(time.RFC3339))}
	}
	out := file + ".sig"
	if _, err := os.Lstat(out); err == nil {
		return &exitError{exitRefused, fmt.Errorf("there is a signature already, %s; nothing was signed: move the file away, and sign again", out)}
	}
	if err := a.confirm(q.ID, assumeYes); err != nil {
		return err
	}
	signed, err := signer{keyFile: key}.sign(ctx, approval.Namespace, text)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // a signature is public
	if err != nil {
		return &exitError{exitRefused, fmt.Errorf("the signature was not kept: %w; move the file away, and sign again", err)}
	}
	if _, err = f.Write(signed); err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("the signature was not kept: %w", err)
	}
	if len(q.WrappingKeys) > 0 {
		fmt.Fprintf(a.out, "signed; put %s beside the request that goes into the HSM room, renamed so that no other officer's overwrites it: %s.YOURNAME.sig\n", out, file)
		return nil
	}
	fmt.Fprintf(a.out, "signed; hand in %s: hsmbridge approve %s --signature %s\n", out, q.ID, out)
	return nil
}
