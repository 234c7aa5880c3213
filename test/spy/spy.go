// Package spy is the witness of the tests: it runs a token's module through OpenSC's pkcs11-spy.so, which writes down every
// PKCS#11 call, and reads what was written.
//
// The log holds PINs and key values in the clear: it is for tests only. What [Parse] returns holds none of
// them. Calls of several threads run into each other in the log; Parse then answers with an error, so a test
// that is watched uses one session at a time.
package spy

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hsmbridge/test/token"
)

// Witness is a token whose module is pkcs11-spy.so in front of the real one.
type Witness struct {
	token.Token
	Log string // path of the log; processes append to it
}

// New puts pkcs11-spy.so in front of t.
func New(tb testing.TB, t token.Token) Witness {
	tb.Helper()
	module, err := token.Module("pkcs11-spy.so", "pkcs11")
	if err != nil {
		tb.Fatal(err)
	}
	w := Witness{t, filepath.Join(tb.TempDir(), "spy.log")}
	w.Environment = maps.Clone(t.Environment)
	if w.Environment == nil {
		w.Environment = map[string]string{}
	}
	w.Environment["PKCS11SPY"] = t.Module
	w.Environment["PKCS11SPY_OUTPUT"] = w.Log
	w.Module = module
	return w
}

// Calls reads the log. A log without any call fails the test: then nothing was watched.
func (w Witness) Calls(tb testing.TB) Calls {
	tb.Helper()
	f, err := os.Open(w.Log)
	if err != nil {
		tb.Fatalf("read the log of pkcs11-spy: %v", err)
	}
	defer func() { _ = f.Close() }()
	calls, err := Parse(f)
	if err != nil {
		tb.Fatal(err)
	}
	if len(calls) == 0 {
		tb.Fatalf("%s holds no PKCS#11 call", w.Log)
	}
	return calls
}

// Call is one PKCS#11 call.
type Call struct {
	Process    int         // 1 for the first process that wrote to the log, and so on
	Number     int         // of the call in its process, from 0
	Name       string      // C_WrapKey
	Mechanism  string      // CKM_RSA_PKCS_OAEP, or empty; the log's number where pkcs11-spy does not know the name
	Handles    []Handle    // what the call was given and what it answered, in the log's order
	Attributes []Attribute // of all templates, in the log's order
	Result     string      // CKR_OK
}

// Handle is a named handle of an object, a key or a session.
type Handle struct {
	Name  string // hKey, hWrappingKey, hObject, hSession ...
	Out   bool   // the call answered with it
	Value uint64
}

// Attribute is one attribute of a template.
type Attribute struct {
	Template string // pTemplate, pPublicKeyTemplate or pPrivateKeyTemplate
	Out      bool   // as the call left it; a template of C_GetAttributeValue stands in the log before and after the call
	Name     string // CKA_LABEL; "CKA_? (0x80000000)" where pkcs11-spy does not know the name
	Value    string // True, False or the name of a constant; empty for everything else
}

// The lines of the log that matter; everything else, values above all, is passed over.
var (
	lineProcess   = regexp.MustCompile(`^\*+ OpenSC PKCS#11 spy \*+$`)
	lineCall      = regexp.MustCompile(`^(\d+): (C_\w+)$`)
	lineTemplate  = regexp.MustCompile(`^\[(in|out)\] (p\w*Template)\[\d+\]:`)
	lineAttribute = regexp.MustCompile(`^ {4}(CKA_\?? ?(?:\w+|\(0x[0-9a-fA-F]+\)))\s+(.*?)\s*$`)
	lineHandle    = regexp.MustCompile(`^\[(in|out)\] \*?(p?h\w+) = 0x([0-9a-f]+)`)
	lineMechanism = regexp.MustCompile(`^\[in\] pMechanism->type = (.*?)\s*$`)
	lineReturned  = regexp.MustCompile(`^Returned:\s+\S+\s+(.*?)\s*$`)
	constant      = regexp.MustCompile(`^(True|False|CK[A-Z]_\w+)$`)
)

// Parse reads a log of pkcs11-spy (OpenSC 0.23 and later). It fails where two calls run into each other and where the
// log ends within a call.
func Parse(r io.Reader) (Calls, error) {
	var (
		calls    Calls
		process  int
		open     *Call // the call whose result has not been read yet
		template Attribute
	)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if lineProcess.MatchString(line) {
			process++
			continue
		}
		if m := lineCall.FindStringSubmatch(line); m != nil {
			if open != nil {
				return nil, fmt.Errorf("line %d: %s begins within %s: calls of several threads cannot be told apart", n, m[2], open.Name)
			}
			number, err := strconv.Atoi(m[1])
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			open, template = &Call{Process: process, Number: number, Name: m[2]}, Attribute{}
			continue
		}
		if open == nil {
			continue
		}
		if m := lineReturned.FindStringSubmatch(line); m != nil {
			open.Result = m[1]
			calls, open = append(calls, *open), nil
		} else if m := lineTemplate.FindStringSubmatch(line); m != nil {
			template = Attribute{Template: m[2], Out: m[1] == "out"}
		} else if m := lineAttribute.FindStringSubmatch(line); m != nil {
			a := template
			a.Name = m[1]
			if constant.MatchString(m[2]) {
				a.Value = m[2]
			}
			open.Attributes = append(open.Attributes, a)
		} else if m := lineMechanism.FindStringSubmatch(line); m != nil {
			open.Mechanism = m[1]
		} else if m := lineHandle.FindStringSubmatch(line); m != nil {
			value, err := strconv.ParseUint(m[3], 16, 64)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			open.Handles = append(open.Handles, Handle{Name: m[2], Out: m[1] == "out", Value: value})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the log of pkcs11-spy: %w", err)
	}
	if open != nil {
		return nil, fmt.Errorf("the log ends within %s, call %d of process %d", open.Name, open.Number, open.Process)
	}
	return calls, nil
}

// String names the call as the log does.
func (c Call) String() string {
	return strings.TrimSpace(fmt.Sprintf("process %d, call %d: %s %s", c.Process, c.Number, c.Name, c.Mechanism))
}
