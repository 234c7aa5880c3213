-- When KMS last took key material, as far as the journal knows; 0: no import is known. imported_at is what the planner counts from: it is set as well when KMS
-- was found to hold the material already, and nothing was sent.
ALTER TABLE destinations ADD COLUMN sent_at BIGINT NOT NULL DEFAULT 0;

-- When key material last went to KMS, whatever became of it; 0: never. From then on KMS may hold it.
ALTER TABLE destinations ADD COLUMN tried_at BIGINT NOT NULL DEFAULT 0;

-- Which of the two it was of an old row stands in the imports, of which the last of each result is never deleted.
UPDATE destinations SET sent_at = coalesce((SELECT max(finished_at) FROM imports WHERE imports.key_name = destinations.key_name
    AND imports.destination = destinations.destination AND imports.result IN ('imported', 'restored', 'reimported')),
    CASE WHEN drilled_at > 0 THEN imported_at ELSE 0 END);

-- Before, an import of which it was not known whether KMS took it was a failed one.
UPDATE destinations SET tried_at = coalesce((SELECT max(finished_at) FROM imports WHERE imports.key_name = destinations.key_name
    AND imports.destination = destinations.destination AND imports.result IN ('imported', 'restored', 'reimported', 'failed')), sent_at);
