package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
)

// TestPeople holds that a slip in the first step may be mended, three tries for each name, and that the next sessions say when and by whom the ceremony was
// begun, and which session was the last.
func TestPeople(t *testing.T) {
	at := time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "payments-X"+ceremony.LogExt)
	for _, tt := range []struct{ typed, people, stop, says string }{
		{"", "", "nobody answers: the input has ended", ""},
		{"\n\n\nAnn\n", "", "two different people have to be here", "A name is missing. Look again; type stop to end here."},
		{"Ann\nann\nANN\n\n", "", "two different people have to be here", "ann is the person who operates, and two different people have to be here. Look again"},
		{"Ann\nStop\n", "", `"Stop" is not "a name", so the ceremony stops here`, ""},
		{"\nAnn  Operator\nann operator\n\nNo, Will\n", "Ann Operator, No Will", "", "A name is missing"},
		{"yes\n", "Ann Operator, No Will", "", "This ceremony was begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. It goes on; what was"},
		{"no\nCleo\nDan\n", "Cleo, Dan", "", "begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. Its last session, of 2, began at 2030-01-31T12:06:00Z by Ann Operator, No Will. It goes on"},
		{"yes\n", "Cleo, Dan", "", "begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. Its last session, of 3, began at 2030-01-31T12:07:00Z by Cleo, Dan. It goes on"},
	} {
		at = at.Add(time.Minute)
		now := func() time.Time { return at }
		l, err := ceremony.OpenLog(file, "", "room", now)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		a := &app{in: strings.NewReader(tt.typed), out: &out}
		s := &session{screens: a.screens(1), app: a, room: ceremony.Room{Log: l, Now: now}, q: approval.Request{ParametersValidTo: at.Add(time.Hour), ValidUntil: at.Add(time.Hour)}}
		err = s.people(t.Context())
		if s.room.People != tt.people || (err == nil) != (tt.stop == "") || err != nil && err.Error() != tt.stop {
			t.Errorf("%q: %q, %v", tt.typed, s.room.People, err)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, tt.says) {
			t.Errorf("%q: it shows %q", tt.typed, got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
