-- The torrents that a command has begun to change and not ended with, as hashes with spaces between them; NULL: none. A
-- command with some goes on behind its result, also in the next run.
ALTER TABLE commands ADD COLUMN begun TEXT;
DROP INDEX unfinished_commands;
CREATE INDEX unfinished_commands ON commands (number) WHERE result IS NULL OR begun IS NOT NULL;
-- The right of the sender to see passkeys, which a command keeps when it is executed again.
ALTER TABLE commands ADD COLUMN sees_secrets INTEGER NOT NULL DEFAULT 0;
