package fleet

import (
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// The configuration of a key is wrong, and is mended while its job is under way. The job fails by the configuration with which it began; nobody has to say that the
// cause is mended, as nobody has to where the reload comes a moment later.
func TestMendedWhileItFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	info, err := w.client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: string(wrapping.HMAC384)})
	if err != nil {
		t.Fatal(err)
	}
	w.manage("k", wrapping.HMAC256, []string{info.ARN})
	path := w.config("one", "")
	load := func() (*configs.Config, error) { return configs.Load(path) }
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	d, err := daemon.New(t.Context(), daemon.Options{Config: c, Load: load, OpenToken: openToken(), Log: zap.NewNop(), Version: "test", Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, d)
	w.keys = nil
	w.manage("k", wrapping.HMAC384, []string{info.ARN})
	client := control.NewClient(w.socket("one"))
	var mended atomic.Bool
	w.hook(nil, func(op string) {
		if op == "DescribeKey" && mended.CompareAndSwap(false, true) {
			w.config("one", "")
			if err := client.Reload(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	if err := d.Tick(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the first job", func() bool {
		list, err := client.Jobs(t.Context(), store.JobFilter{Key: "k"})
		return err == nil && len(list) == 1 && list[0].State == store.Failed
	})
	until(t, "the import", func() bool {
		if err := d.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		return w.emu.State(info.ARN) == "Enabled"
	})
}
