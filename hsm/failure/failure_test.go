package failure

import "testing"

// A command is started anew, a daemon is told to go on: each text is for whoever reads it.
func TestInDaemon(t *testing.T) {
	for text, want := range map[string]string{
		"the PIN is wrong; correct the PIN of demo, then " + Anew:         "the PIN is wrong; correct the PIN of demo, then run hsmbridge resume --token demo",
		"have somebody at the device, then " + AnewAtDevice + ": no card": "have somebody at the device, then run hsmbridge resume --token demo: no card",
		"the module is out of memory":                                     "the module is out of memory",
	} {
		if got := InDaemon(text, "demo"); got != want {
			t.Errorf("%q is told as %q, want %q", text, got, want)
		}
	}
}
