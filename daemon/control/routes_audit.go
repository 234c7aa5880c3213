package control

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"hsmbridge/daemon/store"
)

// Audit tells of the audit log at a glance.
type Audit struct {
	Records  int64         `json:"records"`
	Signs    bool          `json:"signs"`  // the configuration names a key that signs it
	Signed   int64         `json:"signed"` // records under the latest signed checkpoint
	SignedAt time.Time     `json:"signed_at,omitzero"`
	Problem  string        `json:"problem,omitempty"` // why it could not be signed the last time
	Exports  []AuditExport `json:"exports"`
}

// AuditExport is a place to which the audit log is copied.
type AuditExport struct {
	To      string `json:"to"`
	Behind  int64  `json:"behind"` // records that are not there yet
	Problem string `json:"problem,omitempty"`
}

// AuditPage is a part of the audit log.
type AuditPage struct {
	Origin      string             `json:"origin"`
	Size        int64              `json:"size"` // of the whole log
	Records     []store.Logged     `json:"records"`
	Checkpoints []store.Checkpoint `json:"checkpoints"` // of these records
}

// AuditKey is the public key by which checkpoints are verified.
type AuditKey struct {
	Origin string `json:"origin"`
	PEM    string `json:"pem"`    // with a line before it that names the log
	SHA256 string `json:"sha256"` // of its DER SubjectPublicKeyInfo
}

// AuditProof is a proof that a record is in the log.
type AuditProof struct {
	Proof string `json:"proof"`
}

// CeremonyStep is a step of a ceremony that was taken beside the daemon, on the machine with a network.
type CeremonyStep struct {
	Kind        string `json:"kind"` // ceremony-fetch or ceremony-upload
	Key         string `json:"key"`
	Destination string `json:"destination"`
	Message     string `json:"message"`
	Request     string `json:"request"`
	SHA256      string `json:"sha256"` // of the request's text
	File        string `json:"file"`
	Ended       bool   `json:"ended,omitempty"`    // it is over; otherwise it is about to begin, and a key that was revoked or paused is refused
	Imported    bool   `json:"imported,omitempty"` // KMS took the key material
}

// CeremonyLog is the log of an HSM room, as the file is.
type CeremonyLog struct {
	Log string `json:"log"`
}

// Merged is how many records were taken over.
type Merged struct {
	Records int `json:"records"`
}

// auditRoutes are those of the audit log.
func auditRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/v1/audit/log", permission: mayLook, summary: "Records of the audit log as they are hashed, and the checkpoints between them", query: map[string]string{"first": "from this number on", "limit": "at most so many"}, out: AuditPage{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			first, err := r.number("first")
			if err != nil {
				return nil, err
			}
			limit, err := r.number("limit")
			if err != nil {
				return nil, err
			}
			p, err := s.AuditPage(ctx, first, int(limit))
			p.Records, p.Checkpoints = all(p.Records), all(p.Checkpoints)
			return p, err
		}},
		{method: http.MethodGet, path: "/v1/audit/key", permission: mayLook, summary: "The public key by which checkpoints are verified", out: AuditKey{}, do: func(ctx context.Context, s Service, _ *request) (any, error) {
			return s.AuditKey(ctx)
		}},
		{method: http.MethodGet, path: "/v1/audit/checkpoint", permission: mayLook, summary: "The latest signed checkpoint", out: store.Checkpoint{}, do: func(ctx context.Context, s Service, _ *request) (any, error) {
			return s.AuditCheckpoint(ctx, false)
		}},
		{method: http.MethodPost, path: "/v1/audit/checkpoint", permission: mayOperate, summary: "Sign a checkpoint now", out: store.Checkpoint{}, do: func(ctx context.Context, s Service, _ *request) (any, error) {
			return s.AuditCheckpoint(ctx, true)
		}},
		{method: http.MethodPost, path: "/v1/ceremony/step", permission: mayOperate, summary: "Write down a step of a ceremony that was taken beside the daemon", in: CeremonyStep{}, out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in CeremonyStep
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			return OK{}, s.CeremonyStep(ctx, r.actor, in)
		}},
		{method: http.MethodPost, path: "/v1/ceremony/log", permission: mayOperate, summary: "Take the log of an HSM room over into the audit log; what is there already is not added twice", in: CeremonyLog{}, out: Merged{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in CeremonyLog
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			n, err := s.MergeCeremony(ctx, r.actor, in.Log)
			return Merged{n}, err
		}},
		{method: http.MethodGet, path: "/v1/audit/proof/{id}", permission: mayLook, summary: "The proof that a record is in the log of the latest signed checkpoint", out: AuditProof{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			n, err := strconv.ParseInt(r.path("id"), 10, 64)
			if err != nil {
				return nil, &badRequestError{fmt.Sprintf("%q is not the number of a record", r.path("id"))}
			}
			text, err := s.AuditProof(ctx, n)
			return AuditProof{text}, err
		}},
	}
}

// AuditPage asks for a part of the audit log.
func (c *Client) AuditPage(ctx context.Context, first int64, limit int) (p AuditPage, err error) {
	q := url.Values{"first": {strconv.FormatInt(first, 10)}}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	err = c.call(ctx, http.MethodGet, "/v1/audit/log", q, nil, &p)
	return p, err
}

// AuditKey asks for the public key of the audit log.
func (c *Client) AuditKey(ctx context.Context) (k AuditKey, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/audit/key", nil, nil, &k)
	return k, err
}

// AuditCheckpoint asks for the latest signed checkpoint, or for a new one.
func (c *Client) AuditCheckpoint(ctx context.Context, now bool) (out store.Checkpoint, err error) {
	method := http.MethodGet
	if now {
		method = http.MethodPost
	}
	err = c.call(ctx, method, "/v1/audit/checkpoint", nil, nil, &out)
	return out, err
}

// AuditProof asks for the proof that a record is in the log.
func (c *Client) AuditProof(ctx context.Context, n int64) (string, error) {
	var out AuditProof
	err := c.call(ctx, http.MethodGet, "/v1/audit/proof/"+strconv.FormatInt(n, 10), nil, nil, &out)
	return out.Proof, err
}

// CeremonyStep writes down a step of a ceremony.
func (c *Client) CeremonyStep(ctx context.Context, s CeremonyStep) error {
	return c.call(ctx, http.MethodPost, "/v1/ceremony/step", nil, s, nil)
}

// MergeCeremony takes the log of an HSM room over, and gives how many records were new.
func (c *Client) MergeCeremony(ctx context.Context, log string) (int, error) {
	var out Merged
	err := c.call(ctx, http.MethodPost, "/v1/ceremony/log", nil, CeremonyLog{log}, &out)
	return out.Records, err
}
