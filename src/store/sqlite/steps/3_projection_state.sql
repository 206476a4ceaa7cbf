-- State of a sink's projection.
CREATE TABLE memories (sink TEXT PRIMARY KEY, memory TEXT NOT NULL) STRICT;
