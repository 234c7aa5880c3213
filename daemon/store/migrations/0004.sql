-- Several sites: daemons that reach different tokens, and keys that several tokens hold.

-- The daemons on this database: when each gave the last sign of life, by the database's own clock, and which tokens it reaches and can use.
CREATE TABLE daemons (
    name    TEXT   NOT NULL PRIMARY KEY,
    seen_at BIGINT NOT NULL,
    tokens  TEXT   NOT NULL -- JSON: state by the token's name
);

-- What a token was seen to hold of a key that several tokens hold.
CREATE TABLE replicas (
    key_name   TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    token      TEXT   NOT NULL,
    identity   TEXT   NOT NULL, -- what tells the material: its check value, public key or MAC; empty: see problem
    problem    TEXT   NOT NULL,
    serial     TEXT   NOT NULL, -- of the token
    daemon     TEXT   NOT NULL, -- which looked
    seen_at    BIGINT NOT NULL,
    PRIMARY KEY (key_name, generation, token)
);

-- What tells the material of a generation, as it was when KMS took it.
ALTER TABLE materials ADD COLUMN identity TEXT NOT NULL DEFAULT '';

-- Tokens that one daemon alone is not to use: what is wrong is on its side of the HSM.
CREATE TABLE parked_here (
    token     TEXT   NOT NULL,
    daemon    TEXT   NOT NULL,
    parked_at BIGINT NOT NULL,
    code      TEXT   NOT NULL,
    reason    TEXT   NOT NULL,
    PRIMARY KEY (token, daemon)
);
