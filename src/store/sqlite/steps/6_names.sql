-- Names as the documentation has them.
ALTER TABLE servers RENAME COLUMN is_used TO has_commits;       -- a change set was committed
ALTER TABLE servers RENAME COLUMN reset TO journal_reset;       -- pending: 1; was emitted in this epoch: 2
ALTER TABLE told RENAME TO snapshot;
ALTER TABLE snapshot RENAME COLUMN memory TO diff_state;
ALTER TABLE retained RENAME TO retained_topics;
ALTER TABLE retained_topics RENAME COLUMN name TO topic;
ALTER TABLE sinks RENAME COLUMN search TO retained_scan;        -- pending: 1; and of the first run of this file: 2
ALTER TABLE sinks RENAME COLUMN is_careful TO has_strict_ordering;
ALTER TABLE memories RENAME TO projections;
ALTER TABLE projections RENAME COLUMN memory TO state;
ALTER TABLE askers RENAME TO waiters;
DROP INDEX askers_of_command;
CREATE INDEX waiters_of_command ON waiters (server, id, number);
DROP INDEX open_commands;
CREATE INDEX unfinished_commands ON commands (number) WHERE result IS NULL;
