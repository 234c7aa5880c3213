package fleet

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// A job waits for permission, for hours perhaps, and the configuration of its key is changed, which may be just what was missing. Its errors are forgotten, and it begins
// at once, whether it waited already or failed a moment after the reload: it does not wait on, and nobody knows what for.
func TestMendedWhileItWaits(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		t.Run(map[bool]string{false: "waits", true: "fails after the reload"}[late], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kmsemu.Options{})
			arn := w.key("k", wrapping.HMAC256)
			path := w.config("one", "")
			load := func() (*configs.Config, error) { return configs.Load(path) }
			c, err := load()
			if err != nil {
				t.Fatal(err)
			}
			d, err := daemon.New(t.Context(), daemon.Options{Config: c, Load: load, OpenToken: openToken(), Log: zap.NewNop(), Version: "test", Manual: true, Poll: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			begin(t, d)
			client := control.NewClient(w.socket("one"))
			w.keys[0] = strings.Replace(w.keys[0], "expires: 90d", "expires: 80d", 1)
			reload := func() {
				w.config("one", "")
				if err := client.Reload(t.Context()); err != nil {
					t.Error(err)
				}
			}
			w.emu.AddFault(kmsemu.Fault{Operation: "DescribeKey", Code: "AccessDeniedException", Message: "no"})
			var asked atomic.Bool
			w.hook(nil, func(op string) {
				if op == "DescribeKey" && asked.CompareAndSwap(false, true) && late {
					reload()
				}
			})
			if err := d.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !late {
				until(t, "the wait for permission", func() bool {
					s, err := client.Status(t.Context())
					return err == nil && len(s.People) == 1 && s.Jobs["waiting"] == 1
				})
				reload()
			}
			until(t, "the import, without another tick", func() bool { return w.emu.State(arn) == "Enabled" })
			until(t, "the end of the job", func() bool {
				list, err := client.Jobs(t.Context(), store.JobFilter{Key: "k"})
				return err == nil && len(list) == 1 && list[0].State == store.Done
			})
			if s, err := client.Status(t.Context()); err != nil || len(s.People) != 0 {
				t.Errorf("for a person waits %+v, %v", s.People, err)
			}
		})
	}
}
