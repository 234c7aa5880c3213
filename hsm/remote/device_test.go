package remote

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// A person has minutes for a login at the device, whatever the call timeout and the caller's deadline are, and then it is over.
func TestTimeAtDevice(t *testing.T) {
	for name, tc := range map[string]struct {
		device bool
		comes  time.Duration
		opens  bool
	}{
		"a person who comes late": {true, DefaultDeviceTime - time.Second, true},
		"nobody":                  {true, DefaultDeviceTime + time.Second, false},
		"a PIN that is looked at": {false, DefaultCallTimeout + time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				tok := newToken(Config{Name: "test", CallTimeout: DefaultCallTimeout}, ours, ours)
				tok.kill = func() { _ = ours.Close() }
				go tok.receive()
				over := make(chan struct{})
				go func() {
					defer close(over)
					defer theirs.Close() //nolint:errcheck // a pipe
					c := wire.NewConn(theirs, theirs, wire.MaxRequest)
					for _, answer := range []func() error{
						func() error { return c.Send(wire.KindWantPIN, 0, 0, &wire.WantPIN{AtDevice: tc.device}) },
						func() error { time.Sleep(tc.comes); return c.Send(wire.KindAnswer, 0, 0, &wire.Opened{Sessions: 1}) },
					} {
						h, err := c.Next()
						if err == nil {
							_, err = c.Payload(h, nil)
						}
						if err == nil {
							err = answer()
						}
						if err != nil {
							return
						}
					}
					_, _ = io.Copy(io.Discard, theirs)
				}()
				tok.hello <- wire.Hello{Version: wire.Version}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var s Starter
				h := &handover{s: &s, t: tok, c: Config{Name: "test", CallTimeout: DefaultCallTimeout, DeviceTime: DefaultDeviceTime}, place: "here"}
				h.source = func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return []byte("1234"), nil }
				err := h.run(ctx)
				var e *failure.Error
				switch {
				case tc.opens && err != nil:
					t.Errorf("it was not waited for: %v", err)
				case !tc.opens && (!errors.As(err, &e) || e.CKR() != failure.PINRefused || !strings.Contains(err.Error(), "is not known")):
					t.Errorf("%v", err)
				case (s.mayLogIn("here", false) == nil) != tc.opens:
					t.Error("the next login")
				}
				tok.end(death{cause: "the test is over"})
				<-over
			})
		})
	}
}
