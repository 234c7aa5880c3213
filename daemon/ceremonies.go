package daemon

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// CeremonyStep writes down a step that hsmbridge ceremony took beside the daemon.
func (d *Daemon) CeremonyStep(ctx context.Context, actor string, s control.CeremonyStep) error {
	if !slices.Contains([]string{"ceremony-fetch", "ceremony-upload"}, s.Kind) {
		return fmt.Errorf("%q is no step that is taken outside of the HSM room: %w", s.Kind, control.ErrRefused)
	}
	return d.store.AddEvent(ctx, store.Event{
		Kind: s.Kind, Actor: actor, Key: s.Key, Destination: s.Destination, Message: s.Message,
		Fields: map[string]string{"request": s.Request, "sha256": s.SHA256, "file": s.File},
	})
}

// MergeCeremony takes the room's log over: each record as it is, once.
func (d *Daemon) MergeCeremony(ctx context.Context, actor, log string) (int, error) {
	records, err := ceremony.Records([]byte(log))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, control.ErrRefused)
	}
	step, _ := records[0].Data.(*audit.Step)
	origin := ceremony.Origin(step.Request)
	var events []store.Event
	in := bufio.NewScanner(strings.NewReader(log))
	const longest = 1 << 20
	in.Buffer(nil, longest)
	for in.Scan() {
		line, err := audit.ParseLine(in.Bytes())
		if err != nil || line.Checkpoint != "" {
			continue
		}
		r, err := audit.Decode(line.Record)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", err, control.ErrRefused)
		}
		events = append(events, store.Event{
			Kind: "ceremony", Actor: actor, Key: r.Key, Destination: r.Destination, Message: fmt.Sprintf("record %d of %s: %s", line.N, origin, r.Message),
			Fields: map[string]string{"request": step.Request, "origin": origin, "n": strconv.FormatInt(line.N, 10), "hash": line.Hash.String(), "record": string(line.Record)},
		})
	}
	return d.store.Merge(ctx, origin, events)
}
