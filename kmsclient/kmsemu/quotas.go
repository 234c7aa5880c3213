package kmsemu

import "time"

// quotas are requests a second for one account and Region. Source: AWS KMS Developer Guide, "Request quotas" (defaults).
func quotas() map[string]float64 {
	return map[string]float64{
		"GetParametersForImport": 1, "ImportKeyMaterial": 15, "DeleteImportedKeyMaterial": 15, "DescribeKey": 2000, "GetPublicKey": 2000,
		"ListKeyRotations": 100, "CreateKey": 5, "CreateAlias": 5, "ReplicateKey": 5, "RotateKeyOnDemand": 5, "TagResource": 10,
	}
}

// SetQuotas enforces AWS's default request quotas from now on, or no more.
func (s *Server) SetQuotas(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opt.Quotas = on
	clear(s.buckets)
}

// bucket is a token bucket that holds one second's worth.
type bucket struct {
	tokens float64
	at     time.Time
}

// take takes one request out of an operation's bucket in an account and Region, false when it is empty.
func (s *Server) take(op, place string) bool {
	rate, ok := quotas()[op]
	if !ok {
		return true
	}
	now := s.now()
	b := s.buckets[place+"/"+op]
	if b == nil {
		b = &bucket{tokens: max(1, rate), at: now}
		s.buckets[place+"/"+op] = b
	}
	b.tokens, b.at = min(max(1, rate), b.tokens+rate*now.Sub(b.at).Seconds()), now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
