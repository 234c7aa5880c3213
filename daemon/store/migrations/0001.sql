-- The first schema. Times are microseconds since 1970 in UTC, 0 for none; truth values are 0 and 1; lists and mappings are JSON.

-- What the daemon knows of a managed key as a whole.
CREATE TABLE keys (
    name          TEXT   NOT NULL PRIMARY KEY,
    paused_at     BIGINT NOT NULL DEFAULT 0,
    paused_by     TEXT   NOT NULL DEFAULT '',
    revoked_at    BIGINT NOT NULL DEFAULT 0,
    revoked_by    TEXT   NOT NULL DEFAULT '',
    waived_at     BIGINT NOT NULL DEFAULT 0, -- import without a backup
    waived_by     TEXT   NOT NULL DEFAULT '',
    waived_reason TEXT   NOT NULL DEFAULT '',
    rotated_at    BIGINT NOT NULL DEFAULT 0,
    -- what went wrong with the last job for the key as a whole
    needs_person  BIGINT NOT NULL DEFAULT 0,
    error         TEXT   NOT NULL DEFAULT '',
    error_class   TEXT   NOT NULL DEFAULT '',
    error_code    TEXT   NOT NULL DEFAULT ''
);

-- What is known of one KMS key that a managed key feeds: what DescribeKey showed, and what the daemon did.
CREATE TABLE destinations (
    key_name     TEXT   NOT NULL,
    destination  TEXT   NOT NULL,
    seen_at      BIGINT NOT NULL DEFAULT 0,
    kms_state    TEXT   NOT NULL DEFAULT '',
    present      BIGINT NOT NULL DEFAULT 0,
    valid_to     BIGINT NOT NULL DEFAULT 0,
    material_id  TEXT   NOT NULL DEFAULT '',
    rotations    BIGINT NOT NULL DEFAULT 0,
    first_at     BIGINT NOT NULL DEFAULT 0, -- the first import
    imported_at  BIGINT NOT NULL DEFAULT 0, -- the last one
    life         BIGINT NOT NULL DEFAULT 0,
    drilled_at   BIGINT NOT NULL DEFAULT 0,
    scheduled_at BIGINT NOT NULL DEFAULT 0,
    proved_at    BIGINT NOT NULL DEFAULT 0,
    proof        TEXT   NOT NULL DEFAULT '',
    needs_person BIGINT NOT NULL DEFAULT 0,
    error        TEXT   NOT NULL DEFAULT '',
    error_class  TEXT   NOT NULL DEFAULT '',
    error_code   TEXT   NOT NULL DEFAULT '',
    error_at     BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (key_name, destination)
);

-- The key material of a managed key: its key objects in the token, oldest first. Generation 1 is the object of the configuration.
CREATE TABLE materials (
    key_name    TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    object      TEXT   NOT NULL, -- PKCS#11 URI
    check_value TEXT   NOT NULL DEFAULT '',
    created_at  BIGINT NOT NULL,
    current_at  BIGINT NOT NULL DEFAULT 0, -- since when all KMS keys encrypt with it; 0: they do not yet
    PRIMARY KEY (key_name, generation)
);

-- The key material IDs that KMS gave them.
CREATE TABLE material_ids (
    key_name    TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    destination TEXT   NOT NULL,
    material_id TEXT   NOT NULL,
    PRIMARY KEY (key_name, generation, destination)
);

-- What has to be done, is being done and was done. An open job is queued, running or waiting for its next attempt.
CREATE TABLE jobs (
    id           {{serial}},
    key_name     TEXT   NOT NULL,
    destination  TEXT   NOT NULL, -- empty: the key as a whole
    kind         TEXT   NOT NULL,
    reason       TEXT   NOT NULL,
    token        TEXT   NOT NULL, -- empty: none is needed
    options      TEXT   NOT NULL DEFAULT '{}',
    requested_by TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    attempts     BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    queued_at    BIGINT NOT NULL DEFAULT 0, -- when it was last put into the queue, by the database's clock
    not_before   BIGINT NOT NULL DEFAULT 0,
    started_at   BIGINT NOT NULL DEFAULT 0,
    finished_at  BIGINT NOT NULL DEFAULT 0,
    valid_to     BIGINT NOT NULL DEFAULT 0, -- the expiry that its first attempt chose
    daemon       TEXT   NOT NULL DEFAULT '',
    error        TEXT   NOT NULL DEFAULT '',
    error_class  TEXT   NOT NULL DEFAULT '',
    error_code   TEXT   NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX jobs_open ON jobs (key_name, destination, kind) WHERE state IN ('queued', 'running', 'waiting');
CREATE INDEX jobs_state ON jobs (state);
CREATE INDEX jobs_key ON jobs (key_name, id);

-- The truth about imports: one row for each time that KMS was given key material, or was to be given.
CREATE TABLE imports (
    id                  {{serial}},
    job_id              BIGINT NOT NULL,
    key_name            TEXT   NOT NULL,
    destination         TEXT   NOT NULL,
    generation          BIGINT NOT NULL,
    result              TEXT   NOT NULL,
    finished_at         BIGINT NOT NULL,
    wrapping_algorithm  TEXT   NOT NULL DEFAULT '',
    wrapping_key_spec   TEXT   NOT NULL DEFAULT '',
    mechanism           TEXT   NOT NULL DEFAULT '',
    wrapping_key_sha256 TEXT   NOT NULL DEFAULT '',
    key_material_id     TEXT   NOT NULL DEFAULT '',
    check_value         TEXT   NOT NULL DEFAULT '',
    valid_to            BIGINT NOT NULL DEFAULT 0,
    proof               TEXT   NOT NULL DEFAULT '',
    request_ids         TEXT   NOT NULL DEFAULT '[]',
    error               TEXT   NOT NULL DEFAULT '',
    error_class         TEXT   NOT NULL DEFAULT '',
    details             TEXT   NOT NULL DEFAULT '{}'
);
CREATE INDEX imports_key ON imports (key_name, destination, id);

-- The journal and the audit trail: every step of every job, and every act of a person. Rows are only added.
CREATE TABLE events (
    id          {{serial}},
    at          BIGINT NOT NULL,
    kind        TEXT   NOT NULL,
    actor       TEXT   NOT NULL,
    key_name    TEXT   NOT NULL DEFAULT '',
    destination TEXT   NOT NULL DEFAULT '',
    job_id      BIGINT NOT NULL DEFAULT 0,
    message     TEXT   NOT NULL,
    fields      TEXT   NOT NULL DEFAULT '{}'
);
CREATE INDEX events_job ON events (job_id, id);
CREATE INDEX events_key ON events (key_name, id);

-- Tokens that are not to be used until a person says so, by any daemon: a wrong PIN is wrong for all of them.
CREATE TABLE parked (
    token     TEXT   NOT NULL PRIMARY KEY,
    daemon    TEXT   NOT NULL, -- which found out; it holds for all
    parked_at BIGINT NOT NULL,
    code      TEXT   NOT NULL,
    reason    TEXT   NOT NULL
);

-- Who works on a key. A lock ends with its lease; the fence tells a later holder from an earlier one. until is the database's own time.
CREATE TABLE locks (
    name  TEXT   NOT NULL PRIMARY KEY,
    owner TEXT   NOT NULL,
    fence BIGINT NOT NULL,
    until BIGINT NOT NULL
);

-- The generic cell rate algorithm: the theoretical arrival time of the next request, in the database's own time.
CREATE TABLE limits (
    name TEXT   NOT NULL PRIMARY KEY,
    tat  BIGINT NOT NULL
);
