package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// recoverable is faults that pass, in calls of every kind.
var recoverable = []string{
	"C_WrapKey: return CKR_DEVICE_ERROR one in 40", "C_WrapKey: session lost one in 60", "C_WrapKey: output zero one in 60", "C_WrapKey: length 1000000 one in 100",
	"C_CreateObject: return CKR_DEVICE_MEMORY one in 40", "C_CreateObject: session lost one in 60",
	"C_DestroyObject: return CKR_GENERAL_ERROR one in 40", "C_DestroyObject: session lost one in 60", "C_DestroyObject: return CKR_OBJECT_HANDLE_INVALID one in 60",
	"C_FindObjectsInit: return CKR_OPERATION_ACTIVE one in 60", "C_FindObjects: return CKR_FUNCTION_FAILED one in 60", "C_FindObjectsFinal: return CKR_GENERAL_ERROR one in 60",
	"C_GetAttributeValue: return CKR_DEVICE_ERROR one in 200", "C_GetAttributeValue: objects stale one in 400", "C_GetAttributeValue: output garbage one in 400",
	"C_Sign: return CKR_DEVICE_ERROR one in 40", "C_Sign: length 1000000 one in 100", "C_SignInit: session lost one in 60",
	"C_Encrypt: return CKR_FUNCTION_FAILED one in 40", "C_EncryptInit: return CKR_MECHANISM_INVALID one in 40",
	"C_OpenSession: return CKR_SESSION_COUNT one in 20", "C_CloseSession: return CKR_DEVICE_ERROR one in 20",
}

// held is what a process holds.
type held struct{ goroutines, files, heap, rss int }

func (h held) String() string {
	return fmt.Sprintf("%d goroutines, %d file descriptors, %d KiB of heap, %d KiB resident", h.goroutines, h.files, h.heap>>10, h.rss>>10)
}

func hold(tb testing.TB) held {
	tb.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		tb.Fatal(err)
	}
	return held{runtime.NumGoroutine(), len(files), int(m.HeapAlloc), pages * os.Getpagesize()} //nolint:gosec // sizes
}

// TestNoLeaks does 10,000 operations while faults come and go, and holds that nothing grows with them.
func TestNoLeaks(t *testing.T) {
	const operations, workers = 10000, 4
	w := newWorld(t)
	tok := w.open()
	w.module.Script(t, recoverable...)
	w.operate(tok, operations/10, workers) // caches, pools and the heap take their size
	before := hold(t)
	sessions := w.module.Counters(t)
	ended := w.operate(tok, operations, workers)
	after := hold(t)
	w.module.Script(t)
	if err := w.operateOnce(tok, 0); err != nil {
		t.Errorf("without faults: %v", err)
	}
	c := w.module.Counters(t)
	t.Logf("%d operations: %d done, %d reported, %d faults; before: %s; after: %s; %d sessions open", operations, ended.done, ended.reported, c.Injected-sessions.Injected, before, after, c.OpenSessions)
	if ended.done+ended.reported != operations || ended.reported == 0 || ended.done < operations/2 || c.Injected-sessions.Injected < operations/20 {
		t.Errorf("of %d operations %d were done and %d reported, with %d faults", operations, ended.done, ended.reported, c.Injected-sessions.Injected)
	}
	const mib = 1 << 20
	if after.goroutines > before.goroutines+2 || after.files > before.files+2 || after.heap > before.heap+4*mib || after.rss > before.rss+24*mib {
		t.Errorf("it grows: before %s; after %s", before, after)
	}
	if c.SessionObjects != 0 || c.OpenSessions > workers+1 || c.TokenObjects != sessions.TokenObjects {
		t.Errorf("%d session objects and %d sessions are there, %d objects were stored", c.SessionObjects, c.OpenSessions, c.TokenObjects-sessions.TokenObjects)
	}
	w.shut(tok)
	if c := w.module.Counters(t); c.OpenSessions != 0 {
		t.Errorf("%d sessions are open after Close", c.OpenSessions)
	}
}

// accounts is how operations ended.
type accounts struct{ done, reported int64 }

// operate does n operations with several workers at a time, and holds that each ends well or with an error of a class.
func (w *world) operate(tok *hsm.Token, n, workers int) accounts {
	w.t.Helper()
	var next, done, reported atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				err := w.operateOnce(tok, i)
				var e *hsm.Error
				switch {
				case err == nil:
					done.Add(1)
				case errors.As(err, &e) && e.ErrClass != "":
					reported.Add(1)
				default:
					w.t.Errorf("operation %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	return accounts{done.Load(), reported.Load()}
}

// operateOnce does one operation, with a context that can end, as the daemon does.
func (w *world) operateOnce(tok *hsm.Token, i int) error {
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	find := func(label string) (wrapping.Key, error) { return tok.Find(ctx, pkcs11uri.URI{Object: label}) }
	switch i % 4 {
	case 0, 1:
		key, err := find("aes")
		if err != nil {
			return err
		}
		_, err = tok.Wrap(ctx, key, w.kms.Public(), plan(wrapping.SymmetricDefault, wrapping.OAEPSHA1, oaep, 32))
		return err
	case 2:
		key, err := find("mac")
		if err != nil {
			return err
		}
		_, err = tok.MAC(ctx, key, []byte("message"))
		return err
	default:
		key, err := find("aes")
		if err != nil {
			return err
		}
		_, err = tok.CheckValue(ctx, key)
		return err
	}
}
