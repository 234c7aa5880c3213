package configs

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Duration is a length of time in whole minutes, written in days of 24 hours, hours and minutes: 90d, 12h, 1d12h.
// Zero is written never.
type Duration time.Duration

// Never is the duration of what does not end.
const Never Duration = 0

const (
	// day is 24 hours, as AWS KMS counts the days of an expiry.
	day = 24 * time.Hour
	// tooLong is longer than the days that can be written.
	tooLong = 100_000 * day
)

var durationForm = regexp.MustCompile(`^(?:(\d{1,5})d)?(?:(\d{1,5})h)?(?:(\d{1,5})m)?$`)

// Duration is d in Go's type; 0 for [Never].
func (d Duration) Duration() time.Duration { return time.Duration(d) }

// String writes d with the largest units: 8760h is 365d.
func (d Duration) String() string {
	if d == Never {
		return "never"
	}
	rest, s := time.Duration(d), ""
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if n := rest / unit.size; n > 0 {
			s += strconv.FormatInt(int64(n), 10) + unit.name
			rest -= n * unit.size
		}
	}
	return s
}

// MarshalText is [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what [Duration.String] writes, and the units in any number: 8760h.
func (d *Duration) UnmarshalText(text []byte) error {
	if string(text) == "never" {
		*d = Never
		return nil
	}
	var total time.Duration
	units := durationForm.FindSubmatch(text)
	for i, size := range []time.Duration{day, time.Hour, time.Minute} {
		if len(units) == 0 || len(units[i+1]) == 0 {
			continue
		}
		n, err := strconv.Atoi(string(units[i+1]))
		if err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
		total += time.Duration(n) * size
	}
	if total == 0 {
		return fmt.Errorf("%q is not a length of time: write days, hours or minutes such as 90d, 12h or 1d12h, or never", text)
	}
	if total >= tooLong {
		return fmt.Errorf("%q is longer than 99999 days: write never for what does not end", text)
	}
	*d = Duration(total)
	return nil
}
