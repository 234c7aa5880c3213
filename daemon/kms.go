package daemon

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// clients are the KMS clients: one for each Region, endpoint and role.
type clients struct {
	config func() *configs.Config
	store  *store.Store
	log    *zap.Logger
	now    func() time.Time
	calls  func(kmsclient.Call) // for metrics
	http   *http.Client         // for tests; nil: the usual one
	paces  *paces
	keeper *keeper

	mu   sync.Mutex
	made map[place]*kms
}

// place is who is called as whom.
type place struct {
	region, endpoint, profile, role, external string
	fips                                      bool
}

// kms is a client that does not trust its own clock: with a wrong one it would choose a wrong expiry.
type kms struct {
	*kmsclient.Client
	skewed  func(ahead time.Duration)
	breaker breaker
	keeper  *keeper
}

// breaker keeps jobs from waiting, each anew and all of them, for a KMS that does not answer: they would hold up those of other Regions.
type breaker struct {
	now func() time.Time

	mu     sync.Mutex
	until  time.Time
	cause  error
	asking bool // somebody finds out whether it answers again
}

// restTime is how long a KMS that did not answer is left alone.
const restTime = 20 * time.Second

// allow says whether a request may be sent. One finds out, the others wait for what it finds.
func (b *breaker) allow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil {
		return nil
	}
	if !b.asking && !b.now().Before(b.until) {
		b.asking = true
		return nil
	}
	return &runner.Error{ErrCode: "KMSUnavailable", ErrClass: "kms", Message: "KMS did not answer a moment ago, and is left alone for some seconds", Err: b.cause}
}

// rouse lets the next request be sent at once: a person says that KMS answers again.
func (b *breaker) rouse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = time.Time{}
}

// answered notes what became of a request.
func (b *breaker) answered(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asking = false
	switch kmsclient.Code(err) {
	case "Timeout", "ConnectionRefused", "ConnectionCut", "Unreachable", "DNSFailure", "TLSFailure", "ServiceUnavailable":
		b.cause, b.until = err, b.now().Add(restTime)
	case "Canceled", "HeldBack": // says nothing about KMS
	default:
		b.cause = nil
	}
}

// maxSkew is how wrong the clock may be. AWS refuses signatures that are 15 minutes off.
const maxSkew = 5 * time.Minute

// DescribeKey asks KMS, and compares the clocks.
func (k *kms) DescribeKey(ctx context.Context, arn string) (kmsclient.KeyInfo, error) {
	if err := k.breaker.allow(); err != nil { // every job begins with this request
		return kmsclient.KeyInfo{}, err
	}
	info, err := k.Client.DescribeKey(ctx, arn)
	k.breaker.answered(err)
	if err != nil {
		return info, err
	}
	if ahead, known := k.ClockSkew(); known && ahead.Abs() > maxSkew {
		k.skewed(ahead)
		return info, &runner.Error{
			ErrCode: runner.CodeClock, ErrClass: "kms",
			Message: fmt.Sprintf("this machine's clock differs from that of AWS KMS by %s, so nothing was decided by it; synchronise it (timedatectl), then this goes on by itself", ahead.Abs().Round(time.Second)),
		}
	}
	return info, nil
}

// client gives the client of a destination.
func (cs *clients) client(ctx context.Context, d configs.Destination) (importer.KMS, error) {
	c := cs.config()
	p := place{d.Region(), c.KMS.Endpoint, c.KMS.Profile, d.RoleARN, d.ExternalID, c.KMS.FIPS}
	if d.Endpoint != "" {
		p.endpoint = d.Endpoint
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if k := cs.made[p]; k != nil {
		return k, nil
	}
	client, err := kmsclient.New(ctx, kmsclient.Config{
		Region: p.region, Endpoint: p.endpoint, Profile: p.profile, FIPS: p.fips, RoleARN: p.role, ExternalID: p.external, Now: cs.now,
		Limit: cs.before, HTTPClient: cs.http,
		Log: func(call kmsclient.Call) { //nolint:contextcheck // an answer counts also when whoever asked is gone
			cs.answered(call)
			cs.calls(call)
			cs.log.Debug("KMS call", zap.String("operation", call.Operation), zap.String("key", call.Key), zap.Int("attempt", call.Attempt),
				zap.String("request_id", call.RequestID), zap.String("code", call.Code), zap.Duration("duration", call.Duration))
		},
	})
	if err != nil {
		return nil, err
	}
	k := &kms{Client: client, keeper: cs.keeper, breaker: breaker{now: cs.now}, skewed: func(ahead time.Duration) {
		cs.log.Error("the clock is wrong", zap.Duration("kms_is_ahead", ahead), zap.String("region", p.region))
	}}
	cs.made[p] = k
	return k, nil
}

// skews gives what is known of the clock, by Region.
func (cs *clients) skews() map[string]time.Duration {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	out := map[string]time.Duration{}
	for p, k := range cs.made {
		if ahead, known := k.ClockSkew(); known {
			out[p.region] = ahead
		}
	}
	return out
}

// forget makes new clients after the configuration or the environment changed.
func (cs *clients) forget() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	clear(cs.made)
}

// rouse lets each KMS be asked at once that was left alone.
func (cs *clients) rouse() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, k := range cs.made {
		k.breaker.rouse()
	}
}

// worthLimiting is the quota in requests a second from which on nobody can reach it from here: such requests do not queue.
const worthLimiting = 200

// paced is the operation whose quota a bulk of imports waits for: its requests leave one at a time, see [paces].
const paced = "GetParametersForImport"

func queueOf(arn kmsclient.ARN, operation string) string {
	return arn.Account + "/" + arn.Region + "/" + operation
}

// answered notes that a request was answered, or failed.
func (cs *clients) answered(call kmsclient.Call) {
	arn, err := kmsclient.ParseARN(call.Key)
	if err != nil || call.Operation != paced {
		return
	}
	if err := cs.paces.answered(context.Background(), queueOf(arn, paced), call.Key, call.Status != 0); err != nil {
		cs.log.Warn("the next request for import parameters is held back a second step", zap.Error(err))
	}
}

// before is called before each attempt of a request.
func (cs *clients) before(ctx context.Context, operation, key string) error {
	if err := cs.limit(ctx, operation, key); err != nil {
		return err
	}
	err := runner.Fence(ctx)
	if arn, aerr := kmsclient.ParseARN(key); err != nil && aerr == nil && operation == paced {
		cs.paces.dropped(ctx, queueOf(arn, paced), key)
	}
	return err
}

// limit waits for a request's place in the queue that all daemons share. A tenth of AWS's default quota stays for others, but where
// requests are paced by the answers.
func (cs *clients) limit(ctx context.Context, operation, key string) error {
	arn, err := kmsclient.ParseARN(key)
	if err != nil {
		return nil //nolint:nilerr // not about a key: nothing is counted
	}
	rate := cs.rate(operation, arn)
	if rate == 0 || rate > worthLimiting {
		return nil
	}
	if operation == paced {
		return cs.paces.enter(ctx, queueOf(arn, operation), key, rate, importer.Proving(ctx))
	}
	wait, err := cs.store.Reserve(ctx, queueOf(arn, operation), rate)
	if err != nil {
		return err
	}
	if wait == 0 {
		return nil
	}
	return sleep(ctx, wait)
}

// rate is the number of requests a second that may be sent; 0: as many as one likes.
func (cs *clients) rate(operation string, arn kmsclient.ARN) float64 {
	for _, q := range cs.config().Quotas {
		if q.Operation == operation && (q.Account == "" || q.Account == arn.Account) && (q.Region == "" || q.Region == arn.Region) {
			return q.Rate.PerSecond()
		}
	}
	for _, q := range kmsclient.Quotas() {
		if q.Operation == operation {
			if operation == paced {
				return q.PerSecond
			}
			return q.PerSecond * 0.9
		}
	}
	return 0
}
