package configs

import (
	"cmp"
	"fmt"
	"regexp"
	"time"
)

// Network says whether a module may use the network.
type Network string

// The values of [Token.Network].
const (
	NetworkNone    Network = "none"    // the default
	NetworkAllowed Network = "allowed" // the HSM is reached over it
)

// Timeout is how long a call may take, in whole seconds or minutes: 30s, 2m. Zero is not given.
type Timeout time.Duration

var timeoutForm = regexp.MustCompile(timeoutPattern)

const (
	timeoutPattern     = `^\d{1,4}[sm]$`
	defaultCallTimeout = 30 * time.Second
	maxCallTimeout     = 10 * time.Minute
)

// String writes t in minutes where it is whole ones, else in seconds.
func (t Timeout) String() string {
	d := time.Duration(t)
	if d%time.Minute == 0 && d > 0 {
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// MarshalText is [Timeout.String].
func (t Timeout) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what [Timeout.String] writes.
func (t *Timeout) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err != nil || !timeoutForm.Match(text) {
		return fmt.Errorf("%q is not a length of time: write seconds or minutes such as 30s or 2m", text)
	}
	*t = Timeout(d)
	return nil
}

// Timeout is how long a call to the token's module may take: [Token.CallTimeout], or 30 seconds.
func (t Token) Timeout() time.Duration {
	return cmp.Or(time.Duration(t.CallTimeout), defaultCallTimeout)
}

// module checks how the process of a token's module is to be.
func (v validator) module(path string, t *Token) {
	if at := path + ".network"; v.ok(at) && t.Network != "" && t.Network != NetworkNone && t.Network != NetworkAllowed {
		v.problem(at, "%q is neither %s nor %s", t.Network, NetworkNone, NetworkAllowed)
	}
	if at := path + ".call_timeout"; v.ok(at) && (t.CallTimeout < Timeout(time.Second) || t.CallTimeout > Timeout(maxCallTimeout)) {
		v.problem(at, "%s is not between 1s and %s: a call that takes longer counts as hung; leave it out for %s", t.CallTimeout, Timeout(maxCallTimeout), Timeout(defaultCallTimeout))
	}
}
