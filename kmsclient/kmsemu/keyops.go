package kmsemu

import (
	"encoding/base64"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

func createKey(s *Server, c call) (any, error) {
	in := struct {
		KeySpec, CustomerMasterKeySpec, KeyUsage, Origin, Description, CustomKeyStoreID string
		MultiRegion                                                                     bool
		Tags                                                                            []tag
	}{}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if in.KeySpec == "" {
		in.KeySpec = in.CustomerMasterKeySpec
	}
	if in.KeySpec == "" {
		in.KeySpec = "SYMMETRIC_DEFAULT"
	}
	usages, ok := specs()[in.KeySpec]
	switch {
	case !ok:
		return nil, fail("ValidationException", "1 validation error detected: Value '%s' at 'keySpec' failed to satisfy constraint", in.KeySpec)
	case in.CustomKeyStoreID != "":
		return nil, fail("CustomKeyStoreNotFoundException", "no custom key stores in the emulator")
	case in.Origin == "":
		in.Origin = "AWS_KMS"
	case in.Origin != "AWS_KMS" && in.Origin != "EXTERNAL":
		return nil, fail("UnsupportedOperationException", "origin %s", in.Origin)
	}
	if in.KeyUsage == "" {
		if len(usages) > 1 {
			return nil, fail("ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
		}
		in.KeyUsage = usages[0]
	}
	if !slices.Contains(usages, in.KeyUsage) {
		return nil, fail("ValidationException", "KeyUsage %s is not compatible with KeySpec %s", in.KeyUsage, in.KeySpec)
	}
	id := uuid()
	if in.MultiRegion {
		id = "mrk-" + strings.ReplaceAll(id, "-", "")
	}
	k := &key{
		ARN: s.arn(c.region, id), ID: id, Region: c.region, Spec: in.KeySpec, Usage: in.KeyUsage, Origin: in.Origin, Description: in.Description,
		Created: s.now(), Enabled: true, MultiRegion: in.MultiRegion, Tags: map[string]string{},
	}
	for _, t := range in.Tags {
		k.Tags[t.TagKey] = t.TagValue
	}
	if in.MultiRegion {
		k.Primary = k.ARN
	}
	if in.Origin == "AWS_KMS" {
		m, err := generate(in.KeySpec)
		if err != nil {
			return nil, err
		}
		k.Materials = []*material{{ID: materialID(k, m), Bytes: m, State: current}}
	}
	s.keys[k.ARN] = k
	return map[string]any{"KeyMetadata": s.metadata(k)}, nil
}

type tag struct{ TagKey, TagValue string }

func describeKey(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	k, err := s.lookup(c, in.KeyID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"KeyMetadata": s.metadata(k)}, nil
}

func listKeys(s *Server, c call) (any, error) {
	const usual, most = 100, 1000
	var in pageOf
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	var out []map[string]string
	for _, k := range s.keys {
		if k.Region == c.region {
			out = append(out, map[string]string{"KeyId": k.ID, "KeyArn": k.ARN})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i]["KeyArn"] < out[j]["KeyArn"] })
	return in.page("Keys", out, usual, most)
}

// pageOf is what every list is asked with.
type pageOf struct {
	Limit  int
	Marker string
}

// page cuts a page out of a list. Markers are places in it, in a form that nobody should read.
func (p pageOf) page(name string, all []map[string]string, usual, most int) (any, error) {
	from := 0
	switch {
	case p.Limit < 0 || p.Limit > most:
		return nil, fail("ValidationException", "Limit must be between 1 and %d", most)
	case p.Limit == 0:
		p.Limit = usual
	}
	if p.Marker != "" {
		b, err := base64.StdEncoding.DecodeString(p.Marker)
		n, notNumber := strconv.Atoi(string(b))
		if err != nil || notNumber != nil || n < 1 || n > len(all) {
			return nil, fail("InvalidMarkerException", "the marker is not one of this list")
		}
		from = n
	}
	to := min(from+p.Limit, len(all))
	out := map[string]any{name: nonNil(all[from:to]), "Truncated": to < len(all)}
	if to < len(all) {
		out["NextMarker"] = base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return out, nil
}

// nonNil makes an empty list an empty list in JSON too.
func nonNil[T any](v []T) []T {
	if v == nil {
		return []T{}
	}
	return v
}

// setEnabled is EnableKey and DisableKey.
func setEnabled(enabled bool) func(*Server, call) (any, error) {
	return func(s *Server, c call) (any, error) {
		var in struct{ KeyID string }
		k, err := s.requested(c, &in, &in.KeyID)
		if err != nil {
			return nil, err
		}
		if state := k.state(); state != "Enabled" && state != "Disabled" {
			return nil, fail("KMSInvalidStateException", "%s is in state %s.", k.ARN, state)
		}
		before := k.state()
		k.Enabled = enabled
		s.change(k, before)
		return nil, nil
	}
}

func scheduleKeyDeletion(s *Server, c call) (any, error) {
	in := struct {
		KeyID               string
		PendingWindowInDays int
	}{PendingWindowInDays: 30}
	k, err := s.requested(c, &in, &in.KeyID)
	switch {
	case err != nil:
		return nil, err
	case in.PendingWindowInDays < 7 || in.PendingWindowInDays > 30:
		return nil, fail("ValidationException", "PendingWindowInDays must be between 7 and 30")
	case !k.Deletion.IsZero():
		return nil, fail("KMSInvalidStateException", "%s is pending deletion.", k.ARN)
	}
	k.Deletion = s.now().AddDate(0, 0, in.PendingWindowInDays)
	return map[string]any{"KeyId": k.ARN, "DeletionDate": stamp(k.Deletion), "KeyState": "PendingDeletion", "PendingWindowInDays": in.PendingWindowInDays}, nil
}

func cancelKeyDeletion(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	k, err := s.requested(c, &in, &in.KeyID)
	switch {
	case err != nil:
		return nil, err
	case k.Deletion.IsZero():
		return nil, fail("KMSInvalidStateException", "%s is not pending deletion.", k.ARN)
	}
	k.Deletion, k.Enabled = time.Time{}, false
	return map[string]any{"KeyId": k.ARN}, nil
}

func replicateKey(s *Server, c call) (any, error) {
	var in struct {
		KeyID, ReplicaRegion, Description string
		Tags                              []tag
	}
	k, err := s.requested(c, &in, &in.KeyID)
	switch {
	case err != nil:
		return nil, err
	case !k.MultiRegion || k.ARN != k.Primary:
		return nil, fail("UnsupportedOperationException", "%s is not a multi-region primary key.", k.ARN)
	case s.keys[s.arn(in.ReplicaRegion, k.ID)] != nil:
		return nil, fail("AlreadyExistsException", "a replica exists in %s", in.ReplicaRegion)
	case k.state() == "PendingDeletion":
		return nil, fail("KMSInvalidStateException", "%s is pending deletion.", k.ARN)
	}
	r := *k
	r.ARN, r.Region, r.Description, r.Created, r.Enabled, r.Materials, r.Tags = s.arn(in.ReplicaRegion, k.ID), in.ReplicaRegion, in.Description, s.now(), true, nil, map[string]string{}
	for _, m := range k.Materials {
		n := *m
		if k.Origin == "EXTERNAL" {
			n.Bytes, n.ValidTo = nil, time.Time{}
		}
		r.Materials = append(r.Materials, &n)
	}
	for _, t := range in.Tags {
		r.Tags[t.TagKey] = t.TagValue
	}
	s.keys[r.ARN] = &r
	return map[string]any{"ReplicaKeyMetadata": s.metadata(&r), "ReplicaTags": nonNil(in.Tags)}, nil
}
