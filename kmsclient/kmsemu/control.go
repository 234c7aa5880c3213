package kmsemu

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net/http"
	"slices"
	"time"
)

// operations is the table of what the emulator answers.
func operations() map[string]func(*Server, call) (any, error) {
	return map[string]func(*Server, call) (any, error){
		"CreateKey": createKey, "DescribeKey": describeKey, "ListKeys": listKeys, "ReplicateKey": replicateKey,
		"EnableKey": setEnabled(true), "DisableKey": setEnabled(false),
		"ScheduleKeyDeletion": scheduleKeyDeletion, "CancelKeyDeletion": cancelKeyDeletion,
		"CreateAlias": createAlias, "UpdateAlias": updateAlias, "DeleteAlias": deleteAlias, "ListAliases": listAliases,
		"TagResource": tagResource, "UntagResource": untagResource, "ListResourceTags": listResourceTags,
		"GetParametersForImport": getParametersForImport, "ImportKeyMaterial": importKeyMaterial, "DeleteImportedKeyMaterial": deleteImportedKeyMaterial,
		"ListKeyRotations": listKeyRotations, "RotateKeyOnDemand": rotateKeyOnDemand, "GetKeyRotationStatus": getKeyRotationStatus,
		"GetPublicKey": getPublicKey, "Encrypt": encrypt, "Decrypt": decrypt,
		"GenerateDataKey": generateDataKey(true), "GenerateDataKeyWithoutPlaintext": generateDataKey(false),
		"GenerateMac": mac(false), "VerifyMac": mac(true), "Sign": signature(false), "Verify": signature(true),
	}
}

// Fault is something that goes wrong with the next requests of an operation.
type Fault struct {
	Operation string        `json:"operation"` // empty: any
	Times     int           `json:"times"`     // 0: once
	Skip      int           `json:"skip"`      // requests that pass first
	Delay     time.Duration `json:"delay"`     // the request is held up so long, or until [Server.ClearFaults], before it takes effect
	Cut       string        `json:"cut"`       // "before" or "after" the request takes effect: the connection is closed without an answer; "during": after half of the answer
	Drip      time.Duration `json:"drip"`      // the request takes effect, and the answer comes one byte at a time with this between them
	Code      string        `json:"code"`      // answer with this error; nothing takes effect
	Message   string        `json:"message"`
	Status    int           `json:"status"` // of Code or Body; 0: 400 or 200
	Body      string        `json:"body"`   // the request takes effect, and this is answered in place of KMS's JSON
	Type      string        `json:"type"`   // Content-Type of Body; empty: text/html
}

func (f *Fault) status() int {
	if f.Status == 0 {
		return http.StatusBadRequest
	}
	return f.Status
}

// Hostile changes what GetParametersForImport answers, for tests of clients.
type Hostile struct {
	Bits     int           `json:"bits"`     // an RSA key of this size
	Exponent int           `json:"exponent"` // another public exponent
	KeyID    string        `json:"key_id"`   // another ARN
	Life     time.Duration `json:"life"`     // another validity
}

// AddFault queues a fault.
func (s *Server) AddFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	s.faults = append(s.faults, &f)
}

// ClearFaults ends all faults, and the delays under way: what they hold up goes on.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	close(s.goOn)
	s.goOn = make(chan struct{})
}

// Held are the operations of the requests that a delay holds up. Whether their clients still wait is not looked at, as KMS does not.
func (s *Server) Held() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.held)
}

// hold holds a request up.
func (s *Server) hold(op string, delay time.Duration) {
	s.mu.Lock()
	s.held = append(s.held, op)
	goOn := s.goOn
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-goOn:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.held, op)
	s.held = slices.Delete(s.held, i, i+1)
}

// fault takes the fault that meets this request, if any.
func (s *Server) fault(op string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if f.Operation != "" && f.Operation != op {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			return nil
		}
		taken := *f
		f.Times--
		if f.Times == 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		return &taken
	}
	return nil
}

// Advance moves the emulator's clock.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew += d
}

// SetLag makes changes visible only after a while, as eventual consistency does.
func (s *Server) SetLag(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lag = d
}

// SetHostile makes GetParametersForImport answer as an attacker would.
func (s *Server) SetHostile(h Hostile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hostile = h
}

// Without makes the emulator a server that lacks operations; "KeyMaterialId" takes key material IDs away.
func (s *Server) Without(operations ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range operations {
		if op == "KeyMaterialId" {
			s.noIDs = true
			continue
		}
		s.without[op] = true
	}
}

// Refuse answers GetParametersForImport for a wrapping algorithm or wrapping key spec with an error code.
func (s *Server) Refuse(what, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[what] = code
}

// Requests is the log so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Count is how often an operation was asked for.
func (s *Server) Count(operation string) int {
	n := 0
	for _, r := range s.Requests() {
		if r.Operation == operation {
			n++
		}
	}
	return n
}

func (s *Server) beHostile(out map[string]any, p *parameters) error {
	h := s.hostile
	if h.KeyID != "" {
		out["KeyId"] = h.KeyID
	}
	if h.Life != 0 {
		out["ParametersValidTo"] = stamp(s.now().Add(h.Life))
	}
	public := p.Private.PublicKey
	if h.Bits != 0 {
		k, err := newWrapper(h.Bits)
		if err != nil {
			return err
		}
		public = k.PublicKey
	}
	if h.Exponent != 0 {
		public = rsa.PublicKey{N: new(big.Int).Set(public.N), E: h.Exponent}
	}
	der, err := x509.MarshalPKIXPublicKey(&public)
	out["PublicKey"] = der
	return err
}

// control is the emulator's own interface for tests that run the binary: JSON under /_emulator/.
func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	decode := func(v any) bool {
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return false
		}
		return true
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /_emulator/requests":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(nonNil(s.Requests()))
		return
	case "GET /_emulator/held":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(nonNil(s.Held()))
		return
	case "POST /_emulator/clock":
		var in struct{ Advance string }
		if !decode(&in) {
			return
		}
		d, err := time.ParseDuration(in.Advance)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.Advance(d)
	case "POST /_emulator/lag":
		var in struct{ Lag string }
		if !decode(&in) {
			return
		}
		d, err := time.ParseDuration(in.Lag)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.SetLag(d)
	case "POST /_emulator/faults":
		var f Fault
		if !decode(&f) {
			return
		}
		s.AddFault(f)
	case "DELETE /_emulator/faults":
		s.ClearFaults()
	case "POST /_emulator/hostile":
		var h Hostile
		if !decode(&h) {
			return
		}
		s.SetHostile(h)
	case "POST /_emulator/without":
		var in struct{ Operations []string }
		if !decode(&in) {
			return
		}
		s.Without(in.Operations...)
	case "POST /_emulator/refuse":
		var in struct{ What, Code string }
		if !decode(&in) {
			return
		}
		s.Refuse(in.What, in.Code)
	default:
		http.NotFound(w, r)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// State is the state of a key as DescribeKey shows it, empty for a key that is not there.
func (s *Server) State(arn string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	k := s.keys[arn]
	if k == nil {
		return ""
	}
	return k.state()
}
