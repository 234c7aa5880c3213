package main

import (
	"errors"
	"fmt"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/failure"
	"hsmbridge/kmsclient"
)

// severalErrors are failures of one run that have nothing to do with each other: each is told by itself.
type severalErrors []error

// several is nil when there are none, and the error itself when there is one.
func several(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return severalErrors(errs)
}

func (s severalErrors) Error() string {
	var out []string
	for _, err := range s {
		out = append(out, err.Error())
	}
	return strings.Join(out, "\n")
}

// Unwrap lets errors.Is and the class of an error look into each.
func (s severalErrors) Unwrap() []error { return s }

// complain says on standard error what happened and, on a line of its own, what to do next; last, and once, where the command's help is if it was used wrongly.
func (a *app) complain(err error) {
	if a.tell(err) {
		a.see()
	}
}

// see says where the help of the command is.
func (a *app) see() { fmt.Fprintf(a.err, "see: %s --help\n", a.used) }

// tell is complain without the help; wrongly: the command was used wrongly.
func (a *app) tell(err error) (wrongly bool) {
	var all severalErrors
	if errors.As(err, &all) {
		for _, one := range all {
			wrongly = a.tell(one) || wrongly
		}
		return wrongly
	}
	var bad *configs.Error
	if errors.As(err, &bad) {
		fmt.Fprintln(a.err, bad.Error())
		return false
	}
	what, next := told(err)
	fmt.Fprintln(a.err, "hsmbridge:", printable(what))
	if next != "" {
		fmt.Fprintln(a.err, "next:", printable(next))
	}
	return codeOf(err) == exitUsage
}

// told takes what to do next out of an error's text, where the error has it apart.
func told(err error) (what, next string) {
	what, fix := err.Error(), fixOf(err)
	before, after, found := strings.Cut(what, "; "+fix)
	if fix == "" || !found {
		return what, ""
	}
	return before + after, fix
}

// fixOf is what an error in the chain says to do next, empty if none does.
func fixOf(err error) string {
	if e, ok := errors.AsType[*failure.Error](err); ok {
		return e.Fix
	}
	if e, ok := errors.AsType[*kmsclient.Error](err); ok {
		return e.Fix
	}
	if e, ok := errors.AsType[*importer.RefusedError](err); ok {
		return e.Fix
	}
	if e, ok := errors.AsType[*advised](err); ok {
		return e.next
	}
	return ""
}

// configured ends a sentence about a name that the configuration does not have: with the one that was probably meant,
// and with all that it has.
func configured(name string, names []string) string {
	if len(names) == 0 {
		return "; the configuration has none"
	}
	has := "he configuration has: " + strings.Join(names, ", ")
	if m := configs.Meant(name, names); m != "" {
		return fmt.Sprintf(": did you mean %s? T%s", m, has)
	}
	return "; t" + has
}
