-- Why a key was revoked, beside when and by whom. That of a key which is revoked already stands in the journal, which is never deleted: the last time that it was revoked.
ALTER TABLE keys ADD COLUMN revoked_reason TEXT NOT NULL DEFAULT '';
UPDATE keys SET revoked_reason = coalesce((SELECT substr(message, length('revoked: ') + 1) FROM events WHERE events.key_name = keys.name AND events.kind = 'revoke'
    ORDER BY events.id DESC LIMIT 1), '') WHERE revoked_at <> 0;
