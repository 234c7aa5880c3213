package kmsclient

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmbridge/kmsclient/kmsemu"
)

func TestAssumeRole(t *testing.T) {
	const role = "arn:aws:iam::111122223333:role/hsmbridge"
	emu, err := kmsemu.New(kmsemu.Options{Roles: map[string]string{role: "the-external-id"}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(emu)
	defer server.Close()
	plain := newTestClient(t, server.URL)
	key := create(t, plain, "SYMMETRIC_DEFAULT")

	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL)
	c := newTestClient(t, server.URL, func(c *Config) { c.RoleARN, c.ExternalID = role, "the-external-id" })
	for range 2 {
		if _, err := c.DescribeKey(t.Context(), key.ARN); err != nil {
			t.Fatal(err)
		}
	}
	requests := emu.Requests()
	if last := requests[len(requests)-1]; last.Operation != "DescribeKey" || last.Role != role {
		t.Errorf("the last request is %+v", last)
	}
	if n := emu.Count("sts:AssumeRole"); n != 1 {
		t.Errorf("%d times AssumeRole for two requests", n)
	}

	c = newTestClient(t, server.URL, func(c *Config) { c.RoleARN, c.ExternalID = role, "a-wrong-one" })
	_, err = c.DescribeKey(t.Context(), key.ARN)
	if Code(err) != codeNoCredentials || !strings.Contains(err.Error(), "AccessDenied") {
		t.Errorf("with a wrong external ID: %v", err)
	}
	if strings.Contains(err.Error(), "a-wrong-one") {
		t.Errorf("the error shows the external ID: %v", err)
	}
}

// Every attempt waits for its turn, also those that the SDK repeats.
func TestLimit(t *testing.T) {
	emu, _ := newEmulator(t, kmsemu.Options{})
	server := httptest.NewServer(emu)
	defer server.Close()
	var turns atomic.Int32
	refuse := errors.New("the database is gone")
	var refused atomic.Bool
	c := newTestClient(t, server.URL, func(c *Config) {
		c.Limit = func(_ context.Context, operation, key string) error {
			if refused.Load() {
				return refuse
			}
			if operation == "DescribeKey" && key != "" {
				turns.Add(1)
			}
			return nil
		}
	})
	key := create(t, c, "SYMMETRIC_DEFAULT")
	emu.AddFault(kmsemu.Fault{Operation: "DescribeKey", Code: "ThrottlingException", Times: 2})
	if _, err := c.DescribeKey(t.Context(), key.ARN); err != nil {
		t.Fatal(err)
	}
	if got := turns.Load(); got != 3 {
		t.Errorf("three attempts took %d turns", got)
	}
	refused.Store(true)
	sent := emu.Count("DescribeKey") + emu.Count("DeleteImportedKeyMaterial")
	_, err := c.DescribeKey(t.Context(), key.ARN)
	if !errors.Is(err, refuse) || Code(err) != codeHeldBack {
		t.Errorf("held back: %v", err)
	}
	err = c.DeleteImportedKeyMaterial(t.Context(), key.ARN, "")
	if Code(err) != codeHeldBack || OutcomeUnknown(err) {
		t.Errorf("a change that was held back: %v", err)
	}
	if emu.Count("DescribeKey")+emu.Count("DeleteImportedKeyMaterial") != sent {
		t.Error("what was held back was sent all the same")
	}
}

func TestClockSkew(t *testing.T) {
	emu, c := newEmulator(t, kmsemu.Options{})
	if _, known := c.ClockSkew(); known {
		t.Error("a skew is known before any answer")
	}
	create(t, c, "HMAC_256")
	if skew, known := c.ClockSkew(); !known || skew.Abs() > 2*time.Second {
		t.Errorf("skew %s, known %t", skew, known)
	}
	emu.Advance(-time.Hour)
	create(t, c, "HMAC_256")
	if skew, _ := c.ClockSkew(); (skew + time.Hour).Abs() > 2*time.Second {
		t.Errorf("skew %s of a clock that is an hour behind", skew)
	}
}

func TestRotateKeyOnDemand(t *testing.T) {
	_, c := newEmulator(t, kmsemu.Options{})
	key := create(t, c, "SYMMETRIC_DEFAULT")
	var ids []string
	for range 2 {
		in := wrap(t, c, key.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", random(t, 32))
		in.ImportType = "NEW_KEY_MATERIAL"
		out, err := c.ImportKeyMaterial(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, out.KeyMaterialID)
	}
	if err := c.RotateKeyOnDemand(t.Context(), key.ARN); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListKeyMaterials(t.Context(), key.ARN)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(list, ids, func(m KeyMaterial, id string) bool { return m.ID == id }) || list[0].State != "NON_CURRENT" || list[1].State != "CURRENT" {
		t.Errorf("the materials are %+v", list)
	}
	if err := c.RotateKeyOnDemand(t.Context(), key.ARN); Code(err) != "KMSInvalidStateException" {
		t.Errorf("nothing waits for rotation: %v", err)
	}
}

func TestFIPSEndpoint(t *testing.T) {
	hermetic(t)
	c, err := New(t.Context(), Config{Region: "us-gov-west-1", FIPS: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	dialled := ""
	c, err = New(t.Context(), Config{Region: c.Region(), FIPS: true, MaxAttempts: 1, HTTPClient: refusing(&dialled)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.DescribeKey(t.Context(), "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab")
	if err == nil || dialled != "kms-fips.us-gov-west-1.amazonaws.com" {
		t.Errorf("called %q, %v", dialled, err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// refusing is an HTTP client that notes the host and sends nothing.
func refusing(host *string) *http.Client {
	return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		*host = r.URL.Host
		return nil, errors.New("not sent")
	})}
}
