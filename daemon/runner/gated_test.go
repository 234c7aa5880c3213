package runner

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// counting is a token that is told to wrap and does not: only whether it is asked is in question.
type counting struct {
	importer.Token
	asked int
}

func (c *counting) Wrap(context.Context, wrapping.Key, *rsa.PublicKey, wrapping.Plan) ([]byte, error) {
	c.asked++
	return nil, nil
}

// A permission is for one wrap of one object under one public key by one way; everything else does not reach the token.
func TestGated(t *testing.T) {
	public := func() *rsa.PublicKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		return &k.PublicKey
	}
	right, swapped := public(), public()
	plan := wrapping.Plan{Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA4096}
	act := importer.Act{
		Plan: importer.Plan{Algorithm: plan.Algorithm, Mechanism: plan.Mechanism.String()}, Key: wrapping.Key{Label: "payments", ID: []byte{1}},
		Now: true, Parameters: kmsclient.ImportParameters{PublicKey: right},
	}
	weaker := plan
	weaker.Algorithm = wrapping.OAEPSHA1
	for _, c := range []struct {
		name    string
		key     wrapping.Key
		public  *rsa.PublicKey
		plan    wrapping.Plan
		allowed int // how often it was allowed
		want    int // how often the token is asked, of two tries
	}{
		{"as allowed: once", act.Key, right, plan, 1, 1},
		{"never allowed", act.Key, right, plan, 0, 0},
		{"another wrapping public key", act.Key, swapped, plan, 1, 0},
		{"another object", wrapping.Key{Label: "other", ID: []byte{1}}, right, plan, 1, 0},
		{"another object of the same label", wrapping.Key{Label: "payments", ID: []byte{2}}, right, plan, 1, 0},
		{"a weaker algorithm", act.Key, right, weaker, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := &counting{}
			g := &gated{Token: token}
			for range c.allowed {
				g.allow(act)
			}
			for range 2 {
				_, err := g.Wrap(t.Context(), c.key, c.public, c.plan)
				var refused *Error
				if err != nil && (!errors.As(err, &refused) || refused.ErrClass != "caller") {
					t.Errorf("it is refused by %v", err)
				}
			}
			if token.asked != c.want {
				t.Errorf("the token was asked %d times, want %d", token.asked, c.want)
			}
		})
	}
}
