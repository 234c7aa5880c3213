package remote

import (
	"sync"
	"testing"

	"hsmbridge/hsm/remote"
	"hsmbridge/test/softhsm"
)

// Whoever closes a token that others close at the same moment is told of no error: what it had is gone either way.
func TestClosedAtOnce(t *testing.T) {
	fixture := softhsm.New(t)
	for range 5 {
		tok := open(t, new(remote.Starter), config(t, fixture.Token), fixture.PIN)
		var closing sync.WaitGroup
		for range 4 {
			closing.Go(func() {
				if err := tok.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
	}
}
