package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// CeremonyStep writes down a step that hsmbridge ceremony took beside the daemon. Where it is about to begin, it is refused for a key that was revoked or paused.
func (d *Daemon) CeremonyStep(ctx context.Context, actor string, s control.CeremonyStep) error {
	if !slices.Contains([]string{"ceremony-fetch", "ceremony-upload"}, s.Kind) {
		return fmt.Errorf("%q is no step that is taken outside of the HSM room: %w", s.Kind, control.ErrRefused)
	}
	k, _ := d.config.Load().Key(s.Key)
	i := slices.IndexFunc(k.Destinations, func(c configs.Destination) bool { return c.ARN == s.Destination })
	ours := i >= 0
	why, err := d.barredFrom(ctx, s.Key, s.Destination)
	switch {
	case err != nil:
		return err
	case why != "" && !s.Ended:
		return fmt.Errorf("%s: %w", why, control.ErrRefused)
	}
	err = d.store.AddEvent(ctx, store.Event{
		Kind: s.Kind, Actor: actor, Key: s.Key, Destination: s.Destination, Message: s.Message,
		Fields:   map[string]string{"request": s.Request, "sha256": s.SHA256, "file": s.File},
		Sending:  ours && s.Kind == "ceremony-upload",
		Imported: ours && s.Imported && s.Kind == "ceremony-upload",
	})
	if err != nil || why == "" || !ours || s.Kind != "ceremony-upload" {
		return err
	}
	// It was revoked while the upload ran, after the destinations had been emptied perhaps. What KMS shows makes the planner delete it again.
	if err := d.mustSee(ctx, target{key: k, dest: k.Destinations[i]}); err != nil {
		d.log.Warn("a KMS key could not be looked at after an upload; it is looked at later", zap.String("key", s.Key), zap.String("destination", s.Destination), zap.Error(err))
	}
	d.nudge()
	return nil
}

// barredFrom says why nothing is imported into a destination now, by whatever name its key has. Empty: nothing speaks against it.
func (d *Daemon) barredFrom(ctx context.Context, key, destination string) (string, error) {
	names := []string{key}
	for _, k := range d.config.Load().Keys {
		if slices.ContainsFunc(k.Destinations, func(c configs.Destination) bool { return c.ARN == destination }) {
			names = append(names, k.Name)
		}
	}
	known, err := d.store.KeysOf(ctx, names...)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if why := known[name].Barred(); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// MergeCeremony takes the room's log over: each record as it is, once. A log whose beginning is not the one that was taken over before is
// refused.
func (d *Daemon) MergeCeremony(ctx context.Context, actor, log string) (int, error) {
	records, err := ceremony.Records([]byte(log))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, control.ErrRefused)
	}
	step, _ := records[0].Data.(*audit.Step)
	origin := ceremony.Origin(step.Request)
	var list []store.Merging
	for _, r := range records {
		raw, err := r.Encode() // to the byte what stands in the log
		if err != nil {
			return 0, err
		}
		hash := audit.LeafHash(raw)
		list = append(list, store.Merging{N: r.N, Hash: hash, Event: store.Event{
			Kind: "ceremony", Actor: actor, Key: r.Key, Destination: r.Destination, Message: fmt.Sprintf("record %d of %s: %s", r.N, origin, r.Message),
			Fields: map[string]string{"request": step.Request, "origin": origin, "n": strconv.FormatInt(r.N, 10), "hash": hash.String(), "record": string(raw)},
		}})
	}
	n, err := d.store.Merge(ctx, origin, list)
	if errors.Is(err, store.ErrOtherHistory) {
		return 0, fmt.Errorf("nothing was taken over: %w; two rooms wrote a log for the same request, or the file was changed: keep both and compare them with hsmceremony show: %w", err, control.ErrRefused)
	}
	return n, err
}
