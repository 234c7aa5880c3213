-- Who sent the last request of a queue that passes one at a time, how long its requests usually take, and when somebody else asked in vain, in microseconds.
ALTER TABLE limits ADD COLUMN sender TEXT NOT NULL DEFAULT '';
ALTER TABLE limits ADD COLUMN usual BIGINT NOT NULL DEFAULT 0;
ALTER TABLE limits ADD COLUMN asked BIGINT NOT NULL DEFAULT 0;
