-- Bulk: import parameters are fetched exactly at AWS's rate, and those that were not used survive.

-- A request of a queue that passes one at a time is under way: from when on its place counts as lost; 0: it was answered.
ALTER TABLE limits ADD COLUMN open BIGINT NOT NULL DEFAULT 0;

-- Import parameters that were fetched and not used yet. A row counts only with the signature of the token's audit key over all of it:
-- who can write the database could plant a wrapping public key of his own here.
CREATE TABLE parameters (
    destination        TEXT   NOT NULL,
    wrapping_algorithm TEXT   NOT NULL,
    wrapping_key_spec  TEXT   NOT NULL,
    endpoint           TEXT   NOT NULL, -- of KMS; empty: AWS's own
    public_key         TEXT   NOT NULL, -- DER SubjectPublicKeyInfo in base64
    import_token       TEXT   NOT NULL, -- base64
    request_id         TEXT   NOT NULL,
    fetched_at         BIGINT NOT NULL,
    valid_to           BIGINT NOT NULL,
    signature          TEXT   NOT NULL, -- base64
    PRIMARY KEY (destination, wrapping_algorithm, wrapping_key_spec, endpoint)
);
CREATE INDEX parameters_end ON parameters (valid_to);
