package faults

import (
	"fmt"
	"regexp"
	"strings"
)

const head = `# Faults

What hsmbridge does when a token, or the module in front of it, fails. This page is written by a test (go test ./test/faults -update): every operation meets
every fault in every PKCS#11 call that it makes, on a token of SoftHSM2 behind a module that injects faults (test/shim). The fault happens once unless it says otherwise.
Probe, which is slow, meets one fault of each class.
For each, the test also holds that

- an error says what happened and what to do next, and shows no PIN;
- no session object and no session is left in the token, and no stored object that the error does not name;
- the token works when the fault is gone: the last column says what that takes.

## How to read it

| outcome | |
|---|---|
| done | the operation ended well: by itself, or on another session |
| session | the session or its handles are gone. The job is tried again after 5 s, on another session |
| token | the token, the login or the device. The daemon closes the token and opens it anew after 30 s, with one login (*rest*), or tries again without that (*again*), or leaves the token alone until a person has acted (*park*) |
| caller | this key or this request: nothing is tried again (*stop*). When a token is opened, it is the token that rests |
| library | the module's state in this process is broken or a call hangs: the process is replaced (*replace*) |
| wrong result | the token said CKR_OK and gave something wrong that cannot be seen there; it is found later, as said. Nothing is imported |

| afterwards | |
|---|---|
| goes on | the same connection works |
| opened anew | the token is closed and opened, as the daemon does by itself |
| a person | the login may have cost a try, so it is not repeated before a person says so (hsmbridge resume --token) |

A hang is given up at the end of the caller's context; the call itself ends with its process. A crash ends the process that the module is in.
`

// render is docs/faults.md.
func render(cells []cell) string {
	var b strings.Builder
	b.WriteString(head)
	entry := ""
	for i := 0; i < len(cells); {
		c := cells[i]
		if c.entry != entry {
			entry = c.entry
			rows := group(cells, entry)
			fmt.Fprintf(&b, "\n## %s\n\n| fault | in | outcome | afterwards |\n|---|---|---|---|\n", entry)
			for _, r := range rows {
				fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.fault, strings.Join(r.calls, ", "), r.outcome, r.after)
			}
		}
		i++
	}
	b.WriteString(messages(cells))
	return b.String()
}

// row is the calls in which a fault has the same outcome.
type row struct {
	fault, outcome, after string
	calls                 []string
}

func group(cells []cell, entry string) (rows []row) {
	at := map[[3]string]int{}
	for _, f := range faults() {
		for _, c := range cells {
			if c.entry != entry || c.fault != f.name {
				continue
			}
			key := [3]string{c.fault, c.outcome, c.after}
			i, ok := at[key]
			if !ok {
				i = len(rows)
				at[key] = i
				rows = append(rows, row{c.fault, c.outcome, c.after, nil})
			}
			rows[i].calls = append(rows[i].calls, c.call)
		}
	}
	return rows
}

// messages is one message for each outcome and call.
func messages(cells []cell) string {
	var b strings.Builder
	label := regexp.MustCompile(`hsmbridge-wk-[\w-]+`) // another every time
	b.WriteString("\n## What is said\n\nOne message for each outcome.\n\n")
	seen := map[string]bool{}
	for _, c := range cells {
		if c.err == nil || seen[c.outcome] || strings.HasPrefix(c.outcome, "wrong") {
			continue
		}
		seen[c.outcome] = true
		fmt.Fprintf(&b, "- %s (%s, %s): %s\n", c.outcome, c.entry, c.call, label.ReplaceAllString(strings.ReplaceAll(c.err.Error(), "\n", " / "), "hsmbridge-wk-..."))
	}
	return b.String()
}
