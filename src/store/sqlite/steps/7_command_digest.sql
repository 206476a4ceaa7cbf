-- What a command asks for, by which another command under the same id is known; NULL: logged before this step.
ALTER TABLE commands ADD COLUMN digest BLOB;
