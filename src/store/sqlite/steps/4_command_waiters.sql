-- Further senders of a command that is being executed: they get its result too.
CREATE TABLE askers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,                       -- with `id`: the command
    id TEXT NOT NULL,
    sink TEXT NOT NULL,
    reply TEXT
) STRICT;
CREATE INDEX askers_of_command ON askers (server, id, number);
