// Package kmsclient is a narrow client of AWS KMS: the calls that importing key material needs, and no others.
// No type of the AWS SDK appears in its API.
//
// What it adds to the SDK: the answer of GetParametersForImport is checked before anybody sees it
// ([UntrustedParametersError]); calls that change something are sent once, never repeated
// ([OutcomeUnknown]); every failure says its cause and what to do about it ([Error]); and the wrapping
// public key never comes over a connection without TLS.
package kmsclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
)

// Defaults of [Config].
const (
	DefaultTimeout     = 15 * time.Second
	DefaultMaxAttempts = 5
)

// Config says which KMS is called, and as whom. Credentials come from the usual AWS chain: environment,
// profile, single sign-on, web identity, container, instance.
type Config struct {
	Region   string // empty: AWS_REGION or the profile's region
	Endpoint string // another endpoint: a VPC endpoint, FIPS, an emulator; empty: AWS's. https, or http on a loopback address
	Profile  string // of the AWS configuration files; empty: AWS_PROFILE or the default profile
	FIPS     bool   // AWS's FIPS 140 endpoint of the Region; has no effect together with Endpoint

	RoleARN    string // assumed with the usual credentials (sts:AssumeRole); empty: the usual credentials call KMS
	ExternalID string // that the role's trust policy asks for

	Timeout     time.Duration // of one attempt, from dialling to the last byte; 0: DefaultTimeout
	MaxAttempts int           // of calls that change nothing; 0: DefaultMaxAttempts. Calls that change something have one

	HTTPClient *http.Client // its Transport is used instead of the built-in one; redirects are refused in any case
	Log        func(Call)   // called after every attempt; may be nil
	// Limit is called before every attempt, also before those that the SDK repeats, and waits until the request may be sent; its
	// error ends the call, and nothing was sent. May be nil.
	Limit func(ctx context.Context, operation, key string) error
	Now   func() time.Time // nil: time.Now
}

// Call describes one attempt of one call. It holds nothing that was sent and nothing of the answer.
type Call struct {
	Operation string // "DescribeKey"
	Key       string // as asked for; empty for CreateKey
	Attempt   int    // from 1
	RequestID string // empty if KMS did not answer
	Status    int    // HTTP status; 0 if there was no answer
	Code      string // see [Error]; empty for success
	Duration  time.Duration
}

// Client calls AWS KMS in one Region. It is safe for concurrent use.
type Client struct {
	api      api
	region   string
	endpoint string
	log      func(Call)
	limit    func(ctx context.Context, operation, key string) error
	now      func() time.Time
	skew     atomic.Pointer[time.Duration]
}

// New makes a client. It reads the AWS configuration and calls nobody; credentials are looked for at the
// first call. Its errors are of type [Error].
func New(ctx context.Context, c Config) (*Client, error) {
	cfg, err := load(ctx, c)
	if err != nil {
		return nil, err
	}
	httpClient, err := newHTTPClient(c, cfg.HTTPClient)
	if err != nil {
		return nil, configError("InvalidConfiguration", err.Error(), err)
	}
	client := kms.NewFromConfig(cfg, func(o *kms.Options) {
		o.HTTPClient = httpClient
		o.Retryer = newRetryer(c.MaxAttempts)
		o.RetryMaxAttempts = 0 // AWS_MAX_ATTEMPTS would replace what newRetryer says
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})
	// AWS_ENDPOINT_URL and endpoint_url of a profile end here too.
	endpoint := aws.ToString(client.Options().BaseEndpoint)
	if err := checkEndpoint(endpoint); err != nil {
		return nil, configError("InsecureEndpoint", err.Error(), err)
	}
	k := &Client{api: client, region: cfg.Region, endpoint: endpoint, log: c.Log, limit: c.Limit, now: c.Now}
	if k.now == nil {
		k.now = time.Now
	}
	return k, nil
}

// Region is the Region that is called.
func (c *Client) Region() string { return c.region }

// Endpoint is the endpoint that is called, also when the environment or the profile chose it; empty for
// AWS's own endpoint of the Region.
func (c *Client) Endpoint() string { return c.endpoint }

// ClockSkew is how far KMS's clock is ahead of this machine's, from the Date of its latest answer, to the
// second; false before the first answer.
func (c *Client) ClockSkew() (ahead time.Duration, known bool) {
	if d := c.skew.Load(); d != nil {
		return *d, true
	}
	return 0, false
}

// load reads the AWS configuration: environment, files, and what c says explicitly.
func load(ctx context.Context, c Config) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}),                    // the SDK's own warnings would go to the standard error output
		config.WithAppID("hsmbridge"),                       // so that CloudTrail shows who called
		config.WithHTTPClient(awshttp.NewBuildableClient()), // AWS_CA_BUNDLE is applied to it
	}
	if c.Region != "" {
		opts = append(opts, config.WithRegion(c.Region))
	}
	if c.FIPS && c.Endpoint == "" {
		opts = append(opts, config.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
	}
	if c.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(c.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	var noProfile config.SharedConfigProfileNotExistError
	switch {
	case errors.As(err, &noProfile):
		return cfg, configError("ProfileNotFound", fmt.Sprintf("profile %q", noProfile.Profile), err)
	case err != nil:
		return cfg, configError("InvalidConfiguration", oneLine(err.Error()), err)
	case cfg.Region == "":
		return cfg, configError("NoRegion", "", nil)
	case !isRegion(cfg.Region):
		return cfg, configError("InvalidRegion", fmt.Sprintf("%q", cfg.Region), nil)
	}
	if c.HTTPClient != nil { // roles are assumed through it too
		cfg.HTTPClient = &http.Client{Transport: c.HTTPClient.Transport, Timeout: DefaultTimeout}
	}
	if c.RoleARN != "" {
		cfg.Credentials = assumeRole(cfg, c)
	}
	cfg.Credentials = credentialsProvider{cfg.Credentials}
	return cfg, nil
}

// assumeRole gives the credentials of c's role, renewed before they expire.
func assumeRole(cfg aws.Config, c Config) aws.CredentialsProvider {
	return aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(cfg), c.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = "hsmbridge" // CloudTrail shows it
		o.ExternalID = optional(c.ExternalID)
	}), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })
}

// credentialsProvider marks errors of the credential chain as such.
type credentialsProvider struct{ aws.CredentialsProvider }

// Retrieve asks the chain.
func (p credentialsProvider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := p.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	return creds, nil
}

type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// newRetryer is the SDK's standard mode with the error table's word on what is worth repeating. Never the
// adaptive mode: it stops repeating for good once its quota is used up.
func newRetryer(maxAttempts int) aws.Retryer {
	if maxAttempts == 0 {
		maxAttempts = DefaultMaxAttempts
	}
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = maxAttempts
		o.Retryables = []retry.IsErrorRetryable{
			retry.NoRetryCanceledError{},
			retry.RetryableError{}, // what the SDK itself marks: a clock skew that it has corrected for
			retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
				return aws.BoolTernary(lookUp("", diagnose(err)).retryable)
			}),
		}
	})
}
