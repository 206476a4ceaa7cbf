-- Counts the synced commits, see `CommitMark`.
INSERT INTO meta VALUES ('commits', 0);
