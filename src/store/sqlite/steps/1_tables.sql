CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE servers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    state TEXT,                                 -- NULL: nothing is known of it
    last_seq INTEGER NOT NULL DEFAULT 0,
    rev_reserved INTEGER NOT NULL DEFAULT 0,    -- revisions up to here may have been used
    is_used INTEGER NOT NULL DEFAULT 0,         -- a change set was committed
    journal_entries INTEGER NOT NULL DEFAULT 0, -- what the journal holds of it now
    journal_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE told (
    server INTEGER NOT NULL REFERENCES servers,
    hash BLOB NOT NULL,
    rev INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,                -- times are milliseconds since 1970
    torrent TEXT NOT NULL,
    memory TEXT NOT NULL,
    UNIQUE (server, hash)
) STRICT;
CREATE TABLE journal (
    server INTEGER NOT NULL REFERENCES servers,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    hash BLOB,
    rev INTEGER NOT NULL,
    time INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (server, seq)
) STRICT;
CREATE TABLE progress (
    sink TEXT NOT NULL,
    server TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    sent_rev INTEGER NOT NULL,
    PRIMARY KEY (sink, server)
) STRICT, WITHOUT ROWID;
CREATE INDEX progress_of_server ON progress (server, cursor);
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    id TEXT NOT NULL,
    server TEXT NOT NULL,
    seq INTEGER NOT NULL,
    reason TEXT NOT NULL,
    time INTEGER NOT NULL,                      -- when it entered the queue
    body BLOB NOT NULL,
    UNIQUE (sink, id)
) STRICT;
CREATE TABLE retained (
    sink TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (sink, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE commands (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,                       -- '' is the bridge itself
    id TEXT NOT NULL,
    origin TEXT NOT NULL,
    hash BLOB,
    verb TEXT,
    body BLOB NOT NULL,                         -- emptied when it has its result
    received_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    reply TEXT,
    is_started INTEGER NOT NULL,
    status TEXT,
    result BLOB,
    UNIQUE (server, id)
) STRICT;
CREATE INDEX open_commands ON commands (number) WHERE result IS NULL;
CREATE INDEX finished_commands ON commands (received_at) WHERE result IS NOT NULL;
CREATE TABLE results (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    server TEXT NOT NULL,
    body BLOB NOT NULL,
    reply TEXT
) STRICT;
CREATE INDEX results_of_sink ON results (sink, number);
