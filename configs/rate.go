package configs

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
)

// Rate is a number of requests in a time, written 1/s, 0.25/s, 30/m or 100/h.
type Rate float64

// PerSecond is the rate in requests a second.
func (r Rate) PerSecond() float64 { return float64(r) }

const ratePattern = `^(\d{1,6}(?:\.\d{1,6})?)/([smh])$`

var rateForm = regexp.MustCompile(ratePattern)

// rateUnits lists the units and their seconds.
func rateUnits() [3]struct {
	name    string
	seconds float64
} {
	return [3]struct {
		name    string
		seconds float64
	}{{"s", 1}, {"m", 60}, {"h", 3600}}
}

// String writes the rate in the first of the units in which it is exact: 60/m is 1/s, and 1/m stays.
func (r Rate) String() string {
	for _, unit := range rateUnits() {
		const decimals = 1e6
		if n := math.Round(float64(r)*unit.seconds*decimals) / decimals; Rate(n/unit.seconds) == r {
			return strconv.FormatFloat(n, 'f', -1, 64) + "/" + unit.name
		}
	}
	return strconv.FormatFloat(float64(r), 'f', -1, 64) + "/s"
}

// MarshalText is [Rate.String].
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a rate, which is more than zero.
func (r *Rate) UnmarshalText(text []byte) error {
	if parts := rateForm.FindStringSubmatch(string(text)); parts != nil {
		n, err := strconv.ParseFloat(parts[1], 64)
		for _, unit := range rateUnits() {
			if err == nil && n > 0 && unit.name == parts[2] {
				*r = Rate(n / unit.seconds)
				return nil
			}
		}
	}
	return fmt.Errorf("%q is not a rate: write requests per second, minute or hour, such as 1/s, 0.25/s or 30/m", text)
}
