package daemon

import (
	"errors"
	"testing"
	"time"

	"hsmbridge/kmsclient"
)

// A KMS that does not answer is asked by one at a time, and no more often than every twenty seconds.
func TestBreaker(t *testing.T) {
	now := time.Now()
	b := breaker{now: func() time.Time { return now }}
	down := &kmsclient.Error{Op: "DescribeKey", Code: "Timeout"}
	allowed := func() bool { return b.allow() == nil }
	everybody := func(when string) {
		t.Helper()
		for range 3 {
			if !allowed() {
				t.Error("not everybody may ask: " + when)
			}
		}
	}
	everybody("at first")
	b.answered(down)
	if allowed() {
		t.Error("asked again at once")
	}
	now = now.Add(restTime)
	if !allowed() || allowed() {
		t.Error("after a while one may ask, and no other")
	}
	b.answered(down)
	if err := b.allow(); !errors.Is(err, error(down)) {
		t.Errorf("the refusal does not say why: %v", err)
	}
	now = now.Add(restTime)
	if !allowed() {
		t.Error("nobody may ask")
	}
	b.answered(&kmsclient.Error{Code: "Canceled"})
	if !allowed() || allowed() {
		t.Error("an asker that was cancelled found out nothing: the next one may ask")
	}
	b.answered(&kmsclient.Error{Code: "AccessDeniedException"}) // an answer
	everybody("KMS answers again")
}

// A person says that KMS answers again: one asks at once, and the others wait for what it finds.
func TestBreakerRoused(t *testing.T) {
	now := time.Now()
	b := breaker{now: func() time.Time { return now }}
	down := &kmsclient.Error{Op: "DescribeKey", Code: "ConnectionRefused"}
	b.answered(down)
	b.rouse()
	if b.allow() != nil || b.allow() == nil {
		t.Error("one may ask, and no other")
	}
	b.answered(down)
	if b.allow() == nil {
		t.Error("it was told once that KMS answers, and it does not: it is left alone again")
	}
}
