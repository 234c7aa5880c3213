package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hsmbridge/configs"
)

// inPlainWords has every command say by the names of its Use line what is missing on its command line, or too much; a command that may be meant is named.
func inPlainWords(c *cobra.Command) {
	if fits := c.Args; fits != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if fits(c, args) == nil {
				return nil
			}
			return usageError(misfit(c, args))
		}
	}
	for _, sub := range c.Commands() {
		inPlainWords(sub)
	}
}

// misfit says what is wrong with arguments that a command does not take.
func misfit(c *cobra.Command, args []string) error {
	_, operand, _ := strings.Cut(c.Use, " ")
	operand = strings.Trim(operand, "[]")
	switch {
	case len(args) == 0:
		return fmt.Errorf("%s: %s (%s) is missing", c.Name(), operandMeans(operand), strings.TrimSuffix(operand, "..."))
	case c.HasAvailableSubCommands() && (operand == "" || meantCommand(c, args[0]) != ""):
		return fmt.Errorf("unknown command %q for %q%s", args[0], c.CommandPath(), meantCommand(c, args[0]))
	case operand == "":
		return fmt.Errorf("%s takes no arguments, and got: %s", c.Name(), strings.Join(args, " "))
	}
	return fmt.Errorf("%s takes one %s, and got %d: %s", c.Name(), operand, len(args), strings.Join(args, " "))
}

// operandMeans says what the word in a Use line stands for.
func operandMeans(operand string) string {
	switch name, _, _ := strings.Cut(operand, "."); name {
	case "NAME":
		return "the name of a key"
	case "TOKEN":
		return "the name of a token"
	case "NUMBER":
		return "a number"
	case "REQUEST":
		return "the name of a request"
	case "DIR":
		return "a directory"
	}
	return "the name of a file"
}

// meantCommand ends a sentence about a command that is not there with the one that was probably meant; empty: none is near.
func meantCommand(c *cobra.Command, name string) string {
	var known []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			known = append(known, sub.Name())
		}
	}
	m := configs.Meant(name, known)
	if m == "" {
		return ""
	}
	return ": did you mean " + c.CommandPath() + " " + m + "?"
}

// wrongFlag says what a flag's value has to be where that is a number or yes or no; the library's own words are about its functions.
func wrongFlag(_ *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	if !errors.As(err, &bad) {
		return usageError(err)
	}
	var wanted string
	switch bad.GetFlag().Value.Type() {
	case "int", "int64":
		wanted = "a number"
	case "bool":
		wanted = "true or false"
	default:
		return usageError(err)
	}
	return usageError(fmt.Errorf("--%s: %q is not %s", bad.GetFlag().Name, bad.GetValue(), wanted))
}
