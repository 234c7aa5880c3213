-- Growth: what retention, one key's history and the screens for people ask for is found by an index.
CREATE INDEX jobs_ended ON jobs (finished_at, id) WHERE finished_at > 0;
CREATE INDEX imports_job ON imports (job_id);
CREATE INDEX requests_job ON requests (job_id);
CREATE INDEX destinations_person ON destinations (key_name, destination) WHERE needs_person = 1;
