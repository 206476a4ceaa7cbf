-- Flags of a sink, and whether a sink knows a server from a lost state.
CREATE TABLE sinks (
    sink TEXT PRIMARY KEY,
    search INTEGER NOT NULL DEFAULT 0,          -- pending: 1; and of the first run of this file: 2
    is_careful INTEGER NOT NULL DEFAULT 0
) STRICT;
ALTER TABLE servers ADD COLUMN reset INTEGER NOT NULL DEFAULT 0; -- journal_reset is pending: 1; was emitted: 2
