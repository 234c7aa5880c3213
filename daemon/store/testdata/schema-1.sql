CREATE TABLE keys (
    name          TEXT   NOT NULL PRIMARY KEY,
    paused_at     BIGINT NOT NULL DEFAULT 0,
    paused_by     TEXT   NOT NULL DEFAULT '',
    revoked_at    BIGINT NOT NULL DEFAULT 0,
    revoked_by    TEXT   NOT NULL DEFAULT '',
    waived_at     BIGINT NOT NULL DEFAULT 0,
    waived_by     TEXT   NOT NULL DEFAULT '',
    waived_reason TEXT   NOT NULL DEFAULT '',
    rotated_at    BIGINT NOT NULL DEFAULT 0,
    needs_person  BIGINT NOT NULL DEFAULT 0,
    error         TEXT   NOT NULL DEFAULT '',
    error_class   TEXT   NOT NULL DEFAULT '',
    error_code    TEXT   NOT NULL DEFAULT ''
);
CREATE TABLE destinations (
    key_name     TEXT   NOT NULL,
    destination  TEXT   NOT NULL,
    seen_at      BIGINT NOT NULL DEFAULT 0,
    kms_state    TEXT   NOT NULL DEFAULT '',
    present      BIGINT NOT NULL DEFAULT 0,
    valid_to     BIGINT NOT NULL DEFAULT 0,
    material_id  TEXT   NOT NULL DEFAULT '',
    rotations    BIGINT NOT NULL DEFAULT 0,
    first_at     BIGINT NOT NULL DEFAULT 0,
    imported_at  BIGINT NOT NULL DEFAULT 0,
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
CREATE TABLE materials (
    key_name    TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    object      TEXT   NOT NULL,
    check_value TEXT   NOT NULL DEFAULT '',
    created_at  BIGINT NOT NULL,
    current_at  BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (key_name, generation)
);
CREATE TABLE material_ids (
    key_name    TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    destination TEXT   NOT NULL,
    material_id TEXT   NOT NULL,
    PRIMARY KEY (key_name, generation, destination)
);
CREATE TABLE jobs (
    id           {{serial}},
    key_name     TEXT   NOT NULL,
    destination  TEXT   NOT NULL,
    kind         TEXT   NOT NULL,
    reason       TEXT   NOT NULL,
    token        TEXT   NOT NULL,
    options      TEXT   NOT NULL DEFAULT '{}',
    requested_by TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    attempts     BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    queued_at    BIGINT NOT NULL DEFAULT 0,
    not_before   BIGINT NOT NULL DEFAULT 0,
    started_at   BIGINT NOT NULL DEFAULT 0,
    finished_at  BIGINT NOT NULL DEFAULT 0,
    valid_to     BIGINT NOT NULL DEFAULT 0,
    daemon       TEXT   NOT NULL DEFAULT '',
    error        TEXT   NOT NULL DEFAULT '',
    error_class  TEXT   NOT NULL DEFAULT '',
    error_code   TEXT   NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX jobs_open ON jobs (key_name, destination, kind) WHERE state IN ('queued', 'running', 'waiting');
CREATE INDEX jobs_state ON jobs (state);
CREATE INDEX jobs_key ON jobs (key_name, id);
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
CREATE TABLE parked (
    token     TEXT   NOT NULL PRIMARY KEY,
    daemon    TEXT   NOT NULL,
    parked_at BIGINT NOT NULL,
    code      TEXT   NOT NULL,
    reason    TEXT   NOT NULL
);
CREATE TABLE locks (
    name  TEXT   NOT NULL PRIMARY KEY,
    owner TEXT   NOT NULL,
    fence BIGINT NOT NULL,
    until BIGINT NOT NULL
);
CREATE TABLE limits (
    name TEXT   NOT NULL PRIMARY KEY,
    tat  BIGINT NOT NULL
);
CREATE TABLE hsmbridge_schema (version BIGINT NOT NULL);
INSERT INTO hsmbridge_schema (version) VALUES (1);
INSERT INTO keys (name, paused_at, paused_by, waived_at, waived_by, waived_reason) VALUES ('payments', 1800000000000000, 'alice', 1800000000000000, 'bob', 'soon');
INSERT INTO destinations (key_name, destination, seen_at, kms_state, present, valid_to, material_id, rotations, first_at, imported_at, life) VALUES ('payments', 'arn', 1800000000000000, 'Enabled', 1, 1807776000000000, 'm1', 1, 1800000000000000, 1800000000000000, 7776000000000);
INSERT INTO destinations (key_name, destination, first_at, imported_at, drilled_at) VALUES ('payments', 'arn:drilled', 1800000001000000, 1800000001000000, 1800000001000000);
INSERT INTO destinations (key_name, destination, first_at, imported_at) VALUES ('payments', 'arn:found', 1800000002000000, 1800000002000000);
INSERT INTO destinations (key_name, destination, first_at, imported_at) VALUES ('payments', 'arn:unproved', 1800000004000000, 1800000004000000);
INSERT INTO materials (key_name, generation, object, check_value, created_at, current_at) VALUES ('payments', 1, 'pkcs11:object=payments', 'abcdef', 1800000000000000, 1800000000000000);
INSERT INTO material_ids (key_name, generation, destination, material_id) VALUES ('payments', 1, 'arn', 'm1');
INSERT INTO jobs (key_name, destination, kind, reason, token, requested_by, state, created_at) VALUES ('payments', 'arn', 'import', 'first', 'hsm', 'planner', 'done', 1800000000000000);
INSERT INTO imports (job_id, key_name, destination, generation, result, finished_at, request_ids) VALUES (1, 'payments', 'arn', 1, 'imported', 1800000000000000, '["r1"]');
INSERT INTO imports (job_id, key_name, destination, generation, result, finished_at) VALUES (1, 'payments', 'arn:found', 1, 'unchanged', 1800000002000000);
INSERT INTO imports (job_id, key_name, destination, generation, result, finished_at, error) VALUES (1, 'payments', 'arn:unproved', 1, 'restored', 1800000003000000, 'no proof');
INSERT INTO events (at, kind, actor, message, fields) VALUES (1800000000000000, 'test', 'alice', 'm', '{"a":"b"}');
INSERT INTO parked (token, daemon, parked_at, code, reason) VALUES ('hsm', 'one', 1800000000000000, 'CKR_PIN_INCORRECT', 'wrong');
INSERT INTO locks (name, owner, fence, until) VALUES ('payments', '', 3, 0);
INSERT INTO limits (name, tat) VALUES ('x', 1800000000000000);
