-- Crashes of the bridge while a command ran, by which one that causes them is given up.
ALTER TABLE commands ADD COLUMN is_running INTEGER NOT NULL DEFAULT 0;
ALTER TABLE commands ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
