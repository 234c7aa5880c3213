package kmsclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// api is the part of the SDK's client that is used.
type api interface {
	CreateAlias(context.Context, *kms.CreateAliasInput, ...func(*kms.Options)) (*kms.CreateAliasOutput, error)
	CreateKey(context.Context, *kms.CreateKeyInput, ...func(*kms.Options)) (*kms.CreateKeyOutput, error)
	DeleteImportedKeyMaterial(context.Context, *kms.DeleteImportedKeyMaterialInput, ...func(*kms.Options)) (*kms.DeleteImportedKeyMaterialOutput, error)
	DescribeKey(context.Context, *kms.DescribeKeyInput, ...func(*kms.Options)) (*kms.DescribeKeyOutput, error)
	GenerateMac(context.Context, *kms.GenerateMacInput, ...func(*kms.Options)) (*kms.GenerateMacOutput, error)
	GetParametersForImport(context.Context, *kms.GetParametersForImportInput, ...func(*kms.Options)) (*kms.GetParametersForImportOutput, error)
	GetPublicKey(context.Context, *kms.GetPublicKeyInput, ...func(*kms.Options)) (*kms.GetPublicKeyOutput, error)
	ImportKeyMaterial(context.Context, *kms.ImportKeyMaterialInput, ...func(*kms.Options)) (*kms.ImportKeyMaterialOutput, error)
	ListAliases(context.Context, *kms.ListAliasesInput, ...func(*kms.Options)) (*kms.ListAliasesOutput, error)
	ListKeyRotations(context.Context, *kms.ListKeyRotationsInput, ...func(*kms.Options)) (*kms.ListKeyRotationsOutput, error)
	ListKeys(context.Context, *kms.ListKeysInput, ...func(*kms.Options)) (*kms.ListKeysOutput, error)
	ListResourceTags(context.Context, *kms.ListResourceTagsInput, ...func(*kms.Options)) (*kms.ListResourceTagsOutput, error)
	ReplicateKey(context.Context, *kms.ReplicateKeyInput, ...func(*kms.Options)) (*kms.ReplicateKeyOutput, error)
	RotateKeyOnDemand(context.Context, *kms.RotateKeyOnDemandInput, ...func(*kms.Options)) (*kms.RotateKeyOnDemandOutput, error)
	Sign(context.Context, *kms.SignInput, ...func(*kms.Options)) (*kms.SignOutput, error)
}

// operation is the name of a KMS operation, which is also its IAM action after "kms:".
type operation string

const (
	opCreateAlias            operation = "CreateAlias"
	opCreateKey              operation = "CreateKey"
	opDeleteImported         operation = "DeleteImportedKeyMaterial"
	opDescribeKey            operation = "DescribeKey"
	opGenerateMAC            operation = "GenerateMac"
	opGetParametersForImport operation = "GetParametersForImport"
	opGetPublicKey           operation = "GetPublicKey"
	opImportKeyMaterial      operation = "ImportKeyMaterial"
	opListAliases            operation = "ListAliases"
	opListKeyRotations       operation = "ListKeyRotations"
	opListKeys               operation = "ListKeys"
	opListResourceTags       operation = "ListResourceTags"
	opReplicateKey           operation = "ReplicateKey"
	opRotateKeyOnDemand      operation = "RotateKeyOnDemand"
	opSign                   operation = "Sign"
)

// changes says that the operation changes something in KMS. It is then sent once: after a failure whose
// outcome is not known the caller reads back what KMS holds before it sends again.
func (op operation) changes() bool {
	switch op {
	case opCreateAlias, opCreateKey, opDeleteImported, opImportKeyMaterial, opReplicateKey, opRotateKeyOnDemand:
		return true
	default:
		return false
	}
}

// call sends a request and returns the answer, never nil without an error, and its request ID.
func call[I, O any](ctx context.Context, c *Client, op operation, key string,
	send func(context.Context, *I, ...func(*kms.Options)) (*O, error), in *I,
) (out *O, requestID string, err error) {
	t := &trace{op: op, key: key, client: c}
	out, err = send(ctx, in, t.options)
	if err == nil && out == nil {
		err = &notKMSError{"the answer is empty"}
	}
	switch {
	case err == nil:
		return out, t.requestID, nil
	case ctx.Err() != nil && (!op.changes() || !is[smithy.APIError](err)):
		// What went wrong on the way followed from it. Only KMS's word on a change says more.
		err = &smithy.CanceledError{Err: ctx.Err()}
	}
	return nil, "", newError(op, key, err, t.sent.Load())
}

// trace follows the attempts of one call.
type trace struct {
	op        operation
	key       string
	client    *Client
	attempts  int
	requestID string      // of the last answer
	sent      atomic.Bool // a connection was there, so KMS may have got the request
}

// options are the SDK's options of one call.
func (t *trace) options(o *kms.Options) {
	if t.op.changes() {
		o.Retryer = aws.NopRetryer{} // one attempt
	}
	o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error {
		return errors.Join(
			s.Finalize.Insert(middleware.FinalizeMiddlewareFunc("hsmbridge.attempt", t.attempt), "Retry", middleware.After),
			s.Finalize.Insert(middleware.FinalizeMiddlewareFunc("hsmbridge.send", t.send), "Signing", middleware.After),
		)
	})
}

// send comes behind the signature. From here on it is KMS that is connected to: before, STS or the machine's metadata service may have been asked who signs.
func (t *trace) send(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
	return next.HandleFinalize(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { t.sent.Store(true) }}), in)
}

// attempt wraps every attempt of the call.
func (t *trace) attempt(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	middleware.FinalizeOutput, middleware.Metadata, error,
) {
	if t.client.limit != nil {
		if err := t.client.limit(ctx, string(t.op), t.key); err != nil {
			return middleware.FinalizeOutput{}, middleware.Metadata{}, &limitError{err}
		}
	}
	start := time.Now()
	out, meta, err := next.HandleFinalize(ctx, in)
	t.attempts++
	id, _ := awsmiddleware.GetRequestIDMetadata(meta)
	t.requestID = oneLine(id)
	done := Call{Operation: string(t.op), Key: t.key, Attempt: t.attempts, RequestID: t.requestID, Duration: time.Since(start)}
	if r, ok := awsmiddleware.GetRawResponse(meta).(*smithyhttp.Response); ok && r.Response != nil {
		done.Status = r.StatusCode
		t.client.noteDate(r.Header.Get("Date"))
	}
	if t.client.log == nil {
		return out, meta, err
	}
	if err != nil {
		done.Code = diagnose(err).code
	}
	t.client.log(done)
	return out, meta, err
}

// limitError is a refusal of [Config.Limit].
type limitError struct{ err error }

func (e *limitError) Error() string { return e.err.Error() }
func (e *limitError) Unwrap() error { return e.err }

// noteDate keeps how far the sender's clock is ahead.
func (c *Client) noteDate(date string) {
	if at, err := http.ParseTime(date); err == nil {
		ahead := at.Sub(c.now()).Truncate(time.Second)
		c.skew.Store(&ahead)
	}
}

// checkKey refuses what is not a key ARN of the client's Region before anything is sent.
func (c *Client) checkKey(op operation, key string) error {
	a, err := ParseARN(key)
	if err != nil {
		return localError(op, key, "InvalidArnException", err.Error())
	}
	return c.checkRegion(op, key, a)
}

func (c *Client) checkRegion(op operation, key string, a ARN) error {
	if a.Region != c.region {
		return localError(op, key, "WrongRegion", fmt.Sprintf("the key is in %s, and KMS is called in %s", a.Region, c.region))
	}
	return nil
}

// checkAnswer refuses an answer about another key. Servers that name none are believed only where optional.
func checkAnswer(op operation, asked string, answered *string, optional bool) error {
	got := aws.ToString(answered)
	if got == asked || got == "" && optional {
		return nil
	}
	return newError(op, asked, &notKMSError{fmt.Sprintf("the answer is about %q", oneLine(got))}, true)
}

// notKMSError is an answer that KMS would not give.
type notKMSError struct{ what string }

func (e *notKMSError) Error() string { return e.what }

// missing is an answer without something that belongs to it.
func missing(op operation, key, what string) error {
	return newError(op, key, &notKMSError{"the answer has no " + what}, true)
}
