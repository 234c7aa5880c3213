package kmsemu

import (
	"sort"
	"strings"
)

func createAlias(s *Server, c call) (any, error) {
	var in struct{ AliasName, TargetKeyID string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(in.AliasName, "alias/") || strings.HasPrefix(in.AliasName, "alias/aws/") {
		return nil, fail("ValidationException", "AliasName must begin with alias/ and not with alias/aws/")
	}
	if _, ok := s.aliases[c.region+"/"+in.AliasName]; ok {
		return nil, fail("AlreadyExistsException", "An alias with the name %s already exists", in.AliasName)
	}
	k, err := s.lookupNoAlias(c, in.TargetKeyID)
	if err != nil {
		return nil, err
	}
	s.aliases[c.region+"/"+in.AliasName] = k.ARN
	return nil, nil
}

func updateAlias(s *Server, c call) (any, error) {
	var in struct{ AliasName, TargetKeyID string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if _, ok := s.aliases[c.region+"/"+in.AliasName]; !ok {
		return nil, fail("NotFoundException", "Alias %s is not found.", in.AliasName)
	}
	k, err := s.lookupNoAlias(c, in.TargetKeyID)
	if err != nil {
		return nil, err
	}
	s.aliases[c.region+"/"+in.AliasName] = k.ARN
	return nil, nil
}

func deleteAlias(s *Server, c call) (any, error) {
	var in struct{ AliasName string }
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if _, ok := s.aliases[c.region+"/"+in.AliasName]; !ok {
		return nil, fail("NotFoundException", "Alias %s is not found.", in.AliasName)
	}
	delete(s.aliases, c.region+"/"+in.AliasName)
	return nil, nil
}

func listAliases(s *Server, c call) (any, error) {
	const usual, most = 50, 100
	var in struct {
		pageOf
		KeyID string
	}
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	only := ""
	if in.KeyID != "" {
		k, err := s.lookupNoAlias(c, in.KeyID)
		if err != nil {
			return nil, err
		}
		only = k.ARN
	}
	var out []map[string]string
	for name, arn := range s.aliases {
		name, ok := strings.CutPrefix(name, c.region+"/")
		if !ok || only != "" && arn != only {
			continue
		}
		i := strings.Index(arn, ":key/")
		out = append(out, map[string]string{"AliasName": name, "AliasArn": arn[:i] + ":" + name, "TargetKeyId": arn[i+len(":key/"):]})
	}
	sort.Slice(out, func(i, j int) bool { return out[i]["AliasName"] < out[j]["AliasName"] })
	return in.page("Aliases", out, usual, most)
}

func tagResource(s *Server, c call) (any, error) {
	var in struct {
		KeyID string
		Tags  []tag
	}
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	for _, t := range in.Tags {
		k.Tags[t.TagKey] = t.TagValue
	}
	return nil, nil
}

func untagResource(s *Server, c call) (any, error) {
	var in struct {
		KeyID   string
		TagKeys []string
	}
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	for _, t := range in.TagKeys {
		delete(k.Tags, t)
	}
	return nil, nil
}

func listResourceTags(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	out := []tag{}
	for name, value := range k.Tags {
		out = append(out, tag{name, value})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].TagKey < out[j].TagKey })
	return map[string]any{"Tags": out, "Truncated": false}, nil
}
