// Package control is the daemon's local API: HTTP and JSON on a Unix socket. The caller is known by the peer credentials that the kernel
// gives, and one table says for each route who may use it. The OpenAPI document is made from the same table.
package control

import (
	"context"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/store"
)

// Service is the daemon as the API sees it. actor is the user who asks.
type Service interface {
	Status(ctx context.Context) (Status, error)
	Keys(ctx context.Context, name string) ([]ManagedKey, error) // an unknown one is [ErrNotFound]
	KeyPage(ctx context.Context, after, search string, limit int) (page []ManagedKey, more bool, err error)
	Jobs(ctx context.Context, f store.JobFilter) ([]store.Job, error)
	Imports(ctx context.Context, key string, job int64, limit int) ([]store.Import, error)
	Events(ctx context.Context, f store.EventFilter) ([]store.Event, error)
	Watch() (changed <-chan struct{}, stop func())

	Queue(ctx context.Context, actor string, r StartRequest) ([]store.Job, error)
	Pause(ctx context.Context, actor, key string, resume bool) (changed bool, err error)
	ResumeToken(ctx context.Context, actor, token string) error
	Retry(ctx context.Context, actor, key string) ([]store.Job, error)
	RetryJob(ctx context.Context, actor string, id int64) error
	Cancel(ctx context.Context, actor string, id int64) (left string, err error)
	Revoke(ctx context.Context, actor, key, reason string) (store.Job, error)
	Restore(ctx context.Context, actor, key string) error
	Waive(ctx context.Context, actor, key, reason string) error
	Reload(ctx context.Context, actor string) error
	Backup(ctx context.Context, actor, file string) error

	Requests(ctx context.Context, key string, all bool, limit int) ([]Request, error)
	Request(ctx context.Context, name string) (Request, error)
	Approve(ctx context.Context, actor, name, signature string) (Request, error)
	Reject(ctx context.Context, actor, name, reason, signature string) (Request, error)
	Withdraw(ctx context.Context, actor, name, reason string) (Request, error)
	Standing(ctx context.Context, actor, key string, r StandingRequest) ([]Request, error)

	CeremonyStep(ctx context.Context, actor string, s CeremonyStep) error
	MergeCeremony(ctx context.Context, actor, log string) (int, error)

	AuditPage(ctx context.Context, first int64, limit int) (AuditPage, error)
	AuditKey(ctx context.Context) (AuditKey, error)
	AuditCheckpoint(ctx context.Context, now bool) (store.Checkpoint, error)
	AuditProof(ctx context.Context, n int64) (string, error)
}

// Status is the daemon at a glance.
type Status struct {
	Daemon   string         `json:"daemon"`
	Version  string         `json:"version"`
	PID      int            `json:"pid"`
	Database string         `json:"database"` // sqlite or postgres
	Started  time.Time      `json:"started"`
	Now      time.Time      `json:"now"`
	Ready    bool           `json:"ready"`
	NotReady string         `json:"not_ready,omitempty"` // why
	Jobs     map[string]int `json:"jobs"`                // open jobs by state
	Tokens   []Token        `json:"tokens"`
	Daemons  []Site         `json:"daemons,omitempty"` // those on a shared database
	Counts   Counts         `json:"counts"`
	Next     []Expiry       `json:"next"`    // what expires next, at most 20
	Running  []store.Job    `json:"running"` // at most 20
	People   []NeedsPerson  `json:"people"`  // what waits for a person
	Audit    Audit          `json:"audit"`
	Requests int            `json:"requests"`          // for approval, that are open
	Reload   string         `json:"reload,omitempty"`  // why the last reload was refused
	Removed  []RemovedKey   `json:"removed,omitempty"` // revoked keys that the configuration has no more, at most 20: first those of which something is left to do
}

// Counts are numbers of destinations.
type Counts struct {
	Keys         int `json:"keys"`
	Destinations int `json:"destinations"`
	Ready        int `json:"ready"`    // KMS holds the material
	Missing      int `json:"missing"`  // it does not
	Unseen       int `json:"unseen"`   // nobody has looked yet
	Expiring     int `json:"expiring"` // KMS holds the material, until a time
	Revoked      int `json:"revoked"`
	Paused       int `json:"paused"`
	Removed      int `json:"removed"` // revoked keys that the configuration has no more; the other numbers are of those that it has
}

// Token is a token of the configuration.
type Token struct {
	Name        string    `json:"name"`
	State       string    `json:"state"` // open, opening, closed, resting, parked, elsewhere (this daemon does not reach it)
	Reason      string    `json:"reason,omitempty"`
	Until       time.Time `json:"until,omitzero"` // of resting, and of opening where a person is waited for at the token's device
	Serial      string    `json:"serial,omitempty"`
	Model       string    `json:"model,omitempty"`
	Firmware    string    `json:"firmware,omitempty"`
	PINTriesLow bool      `json:"pin_tries_low,omitempty"`
	Warnings    []string  `json:"warnings,omitempty"` // of an open token: what a person should know of it and of its keys
	Busy        int       `json:"busy"`               // calls that run now
}

// Replica is what a token holds of a key that several tokens hold.
type Replica struct {
	store.Replica
	Object     string `json:"object"`      // PKCS#11 URI by which the token has it
	TokenState string `json:"token_state"` // as in Token, at this daemon or else at one that reaches the token; unreached: none that is alive does
	Required   bool   `json:"required"`    // new material waits for it
	Agrees     bool   `json:"agrees"`      // it is the material that it has to be; else see problem
}

// Site is a daemon among those that share a database.
type Site struct {
	Name   string            `json:"name"`
	Alive  bool              `json:"alive"`
	Seen   time.Time         `json:"seen"`   // its last sign of life
	Tokens map[string]string `json:"tokens"` // that it reaches, with their states there
}

// Expiry is a destination and when it ends.
type Expiry struct {
	Key         string    `json:"key"`
	Destination string    `json:"destination"`
	ValidTo     time.Time `json:"valid_to"`
	Renewal     time.Time `json:"renewal"` // from when on it is renewed
}

// RemovedKey is a revoked key that the configuration has no more.
type RemovedKey struct {
	Name          string      `json:"name"`
	RevokedAt     time.Time   `json:"revoked_at"`
	RevokedBy     string      `json:"revoked_by"`
	RevokedReason string      `json:"revoked_reason"`
	Destinations  int         `json:"destinations"`        // KMS keys that its material went to, without those that another key feeds now
	Present       int         `json:"present"`             // those of them that held material when KMS was asked last
	Job           int64       `json:"job,omitempty"`       // the open one that deletes it
	JobState      store.State `json:"job_state,omitempty"` // queued, running or waiting
}

// NeedsPerson is something that does not mend itself.
type NeedsPerson struct {
	Key         string `json:"key,omitempty"`
	Destination string `json:"destination,omitempty"`
	Token       string `json:"token,omitempty"`
	Code        string `json:"code,omitempty"`
	Class       string `json:"class,omitempty"` // of the error; after "caller" nothing is tried again until something is changed
	Message     string `json:"message"`
	Retry       string `json:"retry"`              // the command that goes on when the cause is mended
	Approval    bool   `json:"approval,omitempty"` // it is no fault: officers have to approve it
}

// ManagedKey is a managed key with what is known of it.
type ManagedKey struct {
	Name         string              `json:"name"`
	Token        string              `json:"token"`
	KeySpec      string              `json:"key_spec"`
	Expires      string              `json:"expires"`
	State        store.Key           `json:"state"`
	Destinations []store.Destination `json:"destinations"`
	Renewals     []time.Time         `json:"renewals"` // by destination; zero: none
	Materials    []store.Material    `json:"materials,omitempty"`
	Tokens       []string            `json:"tokens,omitempty"`   // all that hold the key, if there are several
	Replicas     []Replica           `json:"replicas,omitempty"` // what they hold of it
	Deletion     *store.Job          `json:"deletion,omitempty"` // of a revoked key: the open job that deletes its material from KMS
	Removed      bool                `json:"removed,omitempty"`  // the configuration has it no more; that of a revoked one is told of all the same
}

// StartRequest asks for jobs.
type StartRequest struct {
	Keys  []string   `json:"keys,omitempty"` // names; empty with All
	All   bool       `json:"all,omitempty"`
	Kind  store.Kind `json:"kind"`            // import, rotate or reconcile
	Renew bool       `json:"renew,omitempty"` // import also what KMS holds with the life asked for
	Drill bool       `json:"drill,omitempty"` // the same, and called a drill
	Why   string     `json:"why,omitempty"`   // for the officers who are asked to approve it
}

// ReasonRequest says why.
type ReasonRequest struct {
	Reason  string `json:"reason"`
	Confirm string `json:"confirm,omitempty"` // the name of the key, typed again
}

// BackupRequest names the file to write, which must not be there yet.
type BackupRequest struct {
	File string `json:"file"`
}

// Problem is the answer to a request that failed.
type Problem struct {
	Error string `json:"error"`
	Class string `json:"class,omitempty"`

	Request string `json:"request,omitempty"` // for approval, that it waits for; the status is then 202
}

// JobList is an answer.
type JobList struct {
	Jobs []store.Job `json:"jobs"`
}

// ImportList is an answer.
type ImportList struct {
	Imports []store.Import `json:"imports"`
}

// KeyList is an answer.
type KeyList struct {
	Keys []ManagedKey `json:"keys"`
	More bool         `json:"more,omitempty"` // there are others behind these
}

// EventList is an answer.
type EventList struct {
	Events []store.Event `json:"events"`
}

// Request is a request for approval, with what its signatures are worth now.
type Request struct {
	store.Request
	SHA256      string                `json:"sha256"` // of the text
	Short       string                `json:"short"`  // its beginning, to be read aloud
	Decision    approval.Decision     `json:"decision"`
	Signed      []store.Signature     `json:"signed"`
	Officers    []Officer             `json:"officers"`           // who may approve it
	Before      string                `json:"before,omitempty"`   // the last one of its kind that was used
	BeforeAt    time.Time             `json:"before_at,omitzero"` // when
	Differences []approval.Difference `json:"differences"`        // from that one
}

// Officer is a person who may approve.
type Officer struct {
	Name string   `json:"name"`
	Keys []string `json:"keys"` // SHA-256 fingerprints of the SSH keys
}

// RequestList is an answer.
type RequestList struct {
	Requests []Request `json:"requests"`
}

// SignatureRequest is what an officer signed.
type SignatureRequest struct {
	Signature string `json:"signature"`        // as ssh-keygen -Y sign writes it
	Reason    string `json:"reason,omitempty"` // of a rejection; it is part of what is signed
}

// StandingRequest asks for renewals in advance.
type StandingRequest struct {
	For string `json:"for"` // 90d
	Why string `json:"why"`
}

// ClassApproval is the class of what waits for officers.
const ClassApproval = "approval"

// WaitsError says that nothing is done before officers approve it.
type WaitsError struct{ Request, Message string }

func (e *WaitsError) Error() string { return e.Message }

// PauseAnswer says whether there was anything to change. An older daemon says nothing: then it has done it.
type PauseAnswer struct {
	Unchanged bool `json:"unchanged"` // it was so already, and nothing was noted
}

// CancelAnswer says what is left when a job was cancelled that deletes the material of a revoked key.
type CancelAnswer struct {
	Left string `json:"left,omitempty"`
}

// OK is the answer when there is nothing to say.
type OK struct{}
