package kmsemu_test

import (
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmbridge/kmsclient/kmsemu"
)

// A request that a delay holds up has arrived and has no effect, until the faults are cleared.
func TestHeld(t *testing.T) {
	c := newCloud(t, kmsemu.Options{})
	arn := c.create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt, false)
	c.emu.AddFault(kmsemu.Fault{Operation: "DescribeKey", Delay: time.Hour})
	answered := make(chan error, 1)
	go func() {
		_, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn})
		answered <- err
	}()
	for !slices.Equal(c.emu.Held(), []string{"DescribeKey"}) {
		select {
		case err := <-answered:
			t.Fatalf("it was answered: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	if n := c.emu.Count("DescribeKey"); n != 0 {
		t.Errorf("it took effect %d times", n)
	}
	c.emu.ClearFaults()
	if err := <-answered; err != nil || c.emu.Count("DescribeKey") != 1 || len(c.emu.Held()) != 0 {
		t.Errorf("%v, asked for %d times, %v are held up", err, c.emu.Count("DescribeKey"), c.emu.Held())
	}
}
