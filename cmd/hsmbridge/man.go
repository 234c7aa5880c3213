package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand is for whoever makes a package: it writes the man pages. Their date is SOURCE_DATE_EPOCH, where that is set.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the man pages into DIR", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			root.DisableAutoGenTag = true
			root.Long = root.Short + ".\n\n" + manExitCodes()
			// The environment of whoever makes the package has no place in it.
			root.PersistentFlags().Lookup("config").DefValue = ""
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // man pages are for everybody
				return err
			}
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "hsmbridge " + version, Manual: "hsmbridge"}, args[0])
		},
	}
}

// manExitCodes is the section EXIT STATUS, in the Markdown that cobra makes man pages of.
func manExitCodes() string {
	var b strings.Builder
	b.WriteString("# EXIT STATUS\n")
	for _, e := range exitTable() {
		fmt.Fprintf(&b, "**%d**\n: %s\n\n", e.code, e.meaning)
	}
	return strings.TrimSpace(b.String())
}
