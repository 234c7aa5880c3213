package fleet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// BenchmarkBulkInRealTime imports 60 keys in two Regions with real clocks and sockets, while KMS enforces its quotas: no request may be
// throttled, and the time is told as a ratio to N / (q R).
func BenchmarkBulkInRealTime(b *testing.B) {
	const keys, regions = 60, 2
	for range b.N {
		w := newWorld(b, kmsemu.Options{})
		w.quotas = true // those of AWS hold for the daemon too
		var clients []*kmsclient.Client
		for i := range regions {
			region, _ := place(i)
			c, err := kmsclient.New(b.Context(), kmsclient.Config{Region: region, Endpoint: w.url})
			if err != nil {
				b.Fatal(err)
			}
			clients = append(clients, c)
		}
		for i := range keys {
			info, err := clients[i%regions].CreateKey(b.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
			if err != nil {
				b.Fatal(err)
			}
			w.manage(fmt.Sprintf("k%02d", i), wrapping.HMAC256, []string{info.ARN})
		}
		w.emu.SetQuotas(true)
		p := w.start("one", "", envPoll+"=500ms")
		for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
			s, err := p.client.Status(b.Context())
			if err == nil && s.Counts.Ready == keys {
				break
			}
			if time.Now().After(end) {
				b.Fatalf("%+v, %v", s.Counts, err)
			}
		}
		r := judge(w.emu)
		const ideal = keys / regions // seconds
		if r.throttled > 0 {
			b.Errorf("KMS throttled %d requests", r.throttled)
		}
		b.ReportMetric(r.took.Seconds()/ideal, "of-ideal")
		b.ReportMetric(r.took.Seconds(), "s")
		b.ReportMetric(float64(r.throttled), "throttled")
		p.kill()
		if len(r.sent) != keys || strings.Contains(fmt.Sprint(r.sent), "Throttl") {
			b.Errorf("%d requests for parameters for %d keys", len(r.sent), keys)
		}
	}
}
