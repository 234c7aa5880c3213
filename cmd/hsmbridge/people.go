package main

import (
	"fmt"
	"strings"

	"hsmbridge/daemon/control"
)

// fewLines is how much of an error is told where the errors of several keys are.
const fewLines = 4

// printPeople prints what waits for a person, each cause once with all that have it.
func (a *app) printPeople(list []control.NeedsPerson) {
	if len(list) == 0 {
		return
	}
	const most = 10
	fmt.Fprintln(a.out, "\nWAITS FOR A PERSON")
	causes := sameCauses(list)
	left := 0
	for i, same := range causes {
		if i >= most {
			left += len(same)
			continue
		}
		for j, p := range same {
			if j == most && len(same) > most+1 {
				fmt.Fprintf(a.out, "  and %d with the same: hsmbridge status --json\n", len(same)-most)
				break
			}
			what := p.Key
			if p.Token != "" {
				what = "token " + p.Token
			}
			if p.Destination != "" {
				what += " -> " + p.Destination
			}
			fmt.Fprintln(a.out, "  "+printable(what))
		}
		p := same[0]
		whole, limit := "hsmbridge status "+p.Key, fewLines
		if p.Key == "" {
			limit = 0 // nothing else tells it
		}
		wrappedLines(a.out, "    ", "    ", p.Message, limit, whole)
		if p.Class == "caller" && !p.Approval {
			fmt.Fprintln(a.out, "    first: change what is named there; until then a retry fails in the same way")
		}
		for _, then := range commands(same) {
			wrapped(a.out, "    then: ", "          ", then)
		}
	}
	if left > 0 {
		fmt.Fprintf(a.out, "  and %d more: hsmbridge status --json\n", left)
	}
}

// sameCauses groups what needs a person by the cause and by whether it is about tokens, in the list's order.
func sameCauses(list []control.NeedsPerson) (out [][]control.NeedsPerson) {
	at := map[string]int{}
	for _, p := range list {
		cause := fmt.Sprintf("%t %s", p.Token != "", sameCause(p))
		i, ok := at[cause]
		if !ok {
			i = len(out)
			at[cause] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], p)
	}
	return out
}

// commands are the commands that go on with several keys: those that are one but for the name of the key, which they take several of, are one.
func commands(list []control.NeedsPerson) []string {
	const retry = "hsmbridge retry "
	var names, out []string
	for _, p := range list {
		if name, ok := strings.CutPrefix(p.Retry, retry); ok {
			names = append(names, name)
		} else {
			out = append(out, p.Retry)
		}
	}
	if len(names) > 0 {
		out = append(out, retry+strings.Join(unique(names), " "))
	}
	return unique(out)
}
