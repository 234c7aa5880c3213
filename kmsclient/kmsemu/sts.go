package kmsemu

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// sts answers AssumeRole of AWS STS, so that destinations with a role can be tried. The Query protocol: a form in, XML out.
// Source: AWS STS API Reference, AssumeRole.
func (s *Server) sts(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	form, err := url.ParseQuery(string(body))
	w.Header().Set("Content-Type", "text/xml")
	role := form.Get("RoleArn")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", s.serial)
	wanted, known := s.opt.Roles[role]
	code := ""
	switch {
	case err != nil || form.Get("Action") != "AssumeRole":
		code = "InvalidAction"
	case signer(r) == "":
		code = "MissingAuthenticationToken"
	case s.opt.Roles != nil && (!known || wanted != form.Get("ExternalId")):
		code = "AccessDenied"
	}
	s.requests = append(s.requests, Request{Time: s.now(), Operation: "sts:" + form.Get("Action"), Role: role, Code: code})
	if code != "" {
		w.WriteHeader(http.StatusForbidden)
		_ = xml.NewEncoder(w).Encode(stsError{Code: code, Message: "not authorized to perform sts:AssumeRole on resource: " + role, RequestID: id})
		return
	}
	key := fmt.Sprintf("ASIAEMULATOR%08d", s.serial)
	s.assumed[key] = role
	_ = xml.NewEncoder(w).Encode(assumeRole{ //nolint:gosec // nothing in it is a secret
		Namespace: "https://sts.amazonaws.com/doc/2011-06-15/", RequestID: id, AssumedRole: role, AccessKeyID: key,
		Secret: "emulated", SessionToken: "emulated", Expiration: s.now().Add(time.Hour).UTC().Format(time.RFC3339),
	})
}

type assumeRole struct {
	XMLName      xml.Name `xml:"AssumeRoleResponse"`
	Namespace    string   `xml:"xmlns,attr"`
	AssumedRole  string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	AccessKeyID  string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	Secret       string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	SessionToken string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration   string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	RequestID    string   `xml:"ResponseMetadata>RequestId"`
}

type stsError struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}
