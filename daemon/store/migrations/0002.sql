-- The journal becomes the audit log: each event is a record in a Merkle tree, and officers approve.

-- Which log this is; one row.
CREATE TABLE audit_log (
    origin     TEXT   NOT NULL PRIMARY KEY,
    public_key TEXT   NOT NULL DEFAULT '', -- that signs its checkpoints: DER SubjectPublicKeyInfo in base64
    since      BIGINT NOT NULL DEFAULT 0
);

-- The record as it is hashed: the other columns of the row are there to find it. id is its number, from 1 and without gaps.
ALTER TABLE events ADD COLUMN record TEXT NOT NULL DEFAULT '';

-- The hashes of the tree, by their index (RFC 6962; golang.org/x/mod/sumdb/tlog, StoredHashIndex), in base64.
CREATE TABLE audit_hashes (
    number BIGINT NOT NULL PRIMARY KEY,
    hash   TEXT   NOT NULL
);

-- Signed checkpoints.
CREATE TABLE checkpoints (
    size BIGINT NOT NULL PRIMARY KEY,
    at   BIGINT NOT NULL,
    note TEXT   NOT NULL
);

-- Up to where a daemon has copied the log to a place outside. Each daemon copies the whole log.
CREATE TABLE audit_exports (
    daemon TEXT   NOT NULL,
    sink   TEXT   NOT NULL,
    next   BIGINT NOT NULL, -- number of the first record that is not there yet
    signed BIGINT NOT NULL, -- size of the first checkpoint that is not there yet, or less
    PRIMARY KEY (daemon, sink)
);

-- What officers are asked to approve. text is what they sign; the rest of the row is there to find it.
CREATE TABLE requests (
    id          {{serial}},
    name        TEXT   NOT NULL, -- the random one in the text
    purpose     TEXT   NOT NULL,
    key_name    TEXT   NOT NULL,
    destination TEXT   NOT NULL DEFAULT '',
    plan        TEXT   NOT NULL DEFAULT '',
    job_id      BIGINT NOT NULL DEFAULT 0,
    text        TEXT   NOT NULL,
    state       TEXT   NOT NULL, -- open, approved, used, rejected, withdrawn, expired
    asked_by    TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    valid_until BIGINT NOT NULL,
    allowed_at  BIGINT NOT NULL DEFAULT 0, -- when something was first done by it
    ended_at    BIGINT NOT NULL DEFAULT 0,
    reason      TEXT   NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX requests_name ON requests (name);
CREATE INDEX requests_key ON requests (key_name, id);
CREATE INDEX requests_state ON requests (state);

-- Signatures of officers, as they were handed in. Whether they count is decided each time anew.
CREATE TABLE signatures (
    id         {{serial}},
    request_id BIGINT NOT NULL,
    officer    TEXT   NOT NULL,
    ssh_key    TEXT   NOT NULL, -- SHA-256 fingerprint
    signature  TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    handed_by  TEXT   NOT NULL
);
CREATE UNIQUE INDEX signatures_once ON signatures (request_id, ssh_key);

-- Records of the logs of ceremonies that were taken over, each with its leaf hash there.
CREATE TABLE merged (
    origin TEXT   NOT NULL,
    number BIGINT NOT NULL,
    hash   TEXT   NOT NULL,
    PRIMARY KEY (origin, number)
);
