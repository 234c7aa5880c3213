package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/wrapping"
)

func (a *app) keysCommand() *cobra.Command {
	keys := &cobra.Command{Use: "keys", Short: "List and generate keys in a token", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	keys.AddCommand(a.loginFlag(a.jsonFlag(&cobra.Command{
		Use: "list [TOKEN...]", Short: "List the secret and private keys of tokens, and whether each can be imported into KMS",
		RunE: func(c *cobra.Command, args []string) error { return a.listKeys(c.Context(), args) },
	}, "print one JSON object per key, each on a line")))
	var token, spec, label, id string
	generate := &cobra.Command{
		Use:   "generate [NAME]",
		Short: "Generate a key in a token: sensitive, extractable under a wrapping key, read back",
		Long: `Generate a key in a token: sensitive, extractable under a wrapping key, read back.

With NAME the token, key spec and label are those of that managed key. Otherwise give --token, --spec and --label.
A label or an id that is taken is refused; no key is ever replaced.

Key specs: ` + specNames(),
		Example: "  hsmbridge keys generate payments\n  hsmbridge keys generate --token demo --spec HMAC_384 --label sessions",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.generateKey(c.Context(), args, token, spec, label, id)
		},
	}
	f := generate.Flags()
	f.StringVar(&token, "token", "", "`name` of the token")
	f.StringVar(&spec, "spec", "", "key `spec` in AWS's spelling")
	f.StringVar(&label, "label", "", "CKA_LABEL of the new key")
	f.StringVar(&id, "id", "", "CKA_ID of the new key in `hex`; random if it is not given")
	keys.AddCommand(a.loginFlag(a.jsonFlag(generate, "print the key as JSON")))
	return keys
}

func specNames() string {
	var out []string
	for _, s := range wrapping.KeySpecs() {
		out = append(out, string(s))
	}
	return strings.Join(out, ", ")
}

// keyRow is a key as `keys list --json` prints it.
type keyRow struct {
	Token string `json:"token"`
	ID    string `json:"id"`
	wrapping.Key
	Importable bool     `json:"importable"`
	Identity   string   `json:"identity,omitempty"` // of a key that was just made: its check value, or its public key's SHA-256
	Warnings   []string `json:"warnings,omitempty"` // how it, or another key with its help, could leave the HSM past the configuration
}

func rowOf(c *configs.Config, token string, k wrapping.Key) keyRow {
	return keyRow{Token: token, ID: hex.EncodeToString(k.ID), Key: k, Importable: len(k.Blockers) == 0, Warnings: c.Exposures(token, []wrapping.Key{k})[0]}
}

func (a *app) listKeys(ctx context.Context, names []string) error {
	conn, names, err := a.connectTokens(names)
	if err != nil {
		return err
	}
	defer conn.close() //nolint:errcheck // only read
	var failed []error
	for i, name := range names {
		t, err := conn.token(ctx, name)
		if err != nil {
			failed = append(failed, fmt.Errorf("token %s: %w", name, err))
			continue
		}
		keys, err := t.Keys(ctx)
		if err != nil {
			failed = append(failed, fmt.Errorf("token %s: %w", name, err))
			continue
		}
		slices.SortFunc(keys, func(x, y wrapping.Key) int { return strings.Compare(x.Label, y.Label) })
		if !a.json && i > 0 {
			fmt.Fprintln(a.out)
		}
		if err := a.printKeys(conn.config, name, keys); err != nil {
			return err
		}
	}
	if err := a.replicas(ctx, conn); err != nil {
		failed = append(failed, err)
	}
	return several(failed)
}

func (a *app) printKeys(c *configs.Config, token string, keys []wrapping.Key) error {
	if a.json {
		for _, k := range keys {
			if err := writeJSON(a.out, rowOf(c, token, k)); err != nil {
				return err
			}
		}
		return nil
	}
	fmt.Fprintf(a.out, "Token %s: %s\n", token, counted(len(keys), "key"))
	if len(keys) == 0 {
		return nil
	}
	var rows [][]string
	for _, k := range keys {
		rows = append(rows, []string{k.Label, kindOf(k), fmt.Sprint(k.Bits), hex.EncodeToString(k.ID), string(k.KeySpec), yesNo(len(k.Blockers) == 0)})
	}
	table(a.out, []string{"LABEL", "KIND", "BITS", "ID", "KMS KEY SPEC", "IMPORTABLE"}, rows)
	for _, k := range keys {
		for _, b := range k.Blockers {
			wrapped(a.out, "  "+k.Label+": ", "    ", b)
		}
	}
	exposures := c.Exposures(token, keys)
	for i, k := range keys {
		for _, w := range exposures[i] {
			wrapped(a.out, "  warning, "+k.Label+": ", "    ", w)
		}
	}
	return nil
}

func kindOf(k wrapping.Key) string {
	kind := strings.TrimPrefix(k.KeyType, "CKK_")
	if k.Curve != "" {
		kind += " " + k.Curve
	}
	return kind
}

func (a *app) generateKey(ctx context.Context, args []string, token, spec, label, id string) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	rawID, err := hex.DecodeString(id)
	if err != nil {
		return usageError(fmt.Errorf("--id is not hex: %w", err))
	}
	if len(args) == 1 {
		if token+spec+label+id != "" {
			return usageError(errors.New("give NAME, or --token, --spec and --label, not both"))
		}
		keys, err := keysNamed(c, args, false)
		if err != nil {
			return err
		}
		k := keys[0]
		token, spec, label, rawID = k.Token, string(k.KeySpec), k.URI.Object, k.URI.ID
		if label == "" {
			return usageError(fmt.Errorf("the uri of %s names no label (object=...), which a new key needs", k.Name))
		}
	}
	switch {
	case token == "" || spec == "" || label == "":
		return usageError(errors.New("give NAME, or --token, --spec and --label"))
	case !slices.Contains(wrapping.KeySpecs(), wrapping.KeySpec(spec)):
		return usageError(fmt.Errorf("--spec %s: %s; it takes %s", spec, orUnknown(wrapping.KeySpec(spec).WhyNot()), specNames()))
	}
	if err := knownTokens(c, []string{token}); err != nil {
		return err
	}
	conn := a.connect(c, []string{token})
	defer conn.close() //nolint:errcheck // the key is made
	t, err := conn.token(ctx, token)
	if err != nil {
		return err
	}
	k, err := t.Generate(ctx, wrapping.KeySpec(spec), label, rawID)
	if err != nil {
		return err
	}
	which, err := ceremony.Identify(ctx, t, k)
	if err != nil {
		a.complain(fmt.Errorf("the key was made, and what tells it from others could not be read: %w", err))
	}
	if a.json {
		row := rowOf(c, token, k)
		row.Identity = which
		return writeJSON(a.out, row)
	}
	fmt.Fprintf(a.out, "Generated in token %s and read back: sensitive, extractable only under a wrapping key.\n", token)
	if which != "" {
		wrapped(a.out, "", "", which+": keep it with the HSM's papers; officers compare it in a ceremony.")
	}
	return a.printKeys(c, token, []wrapping.Key{k})
}

func orUnknown(s string) string {
	if s == "" {
		return "not known"
	}
	return s
}
