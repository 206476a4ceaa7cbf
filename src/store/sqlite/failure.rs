//! The failure of a request, and the store error that it becomes.

use rusqlite::ErrorCode;

use crate::port::StoreError;

/// The failure of a request, before it is known whether it was a read or a write.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure {
    /// The stored data cannot be used.
    pub fn corrupt(reason: impl std::fmt::Display) -> Self {
        Self::Store(StoreError::Corrupt { reason: reason.to_string() })
    }

    /// The error of a read.
    pub fn into_read_error(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Sql(error) => match error.sqlite_error_code() {
                Some(code) if is_damage(code) => StoreError::Corrupt { reason: error.to_string() },
                _ => StoreError::Io(error.into()),
            },
        }
    }

    /// The error of a write. One that failed because the disk is full or does not work may succeed later.
    pub fn into_write_error(self) -> StoreError {
        use ErrorCode::{CannotOpen, DatabaseBusy, DiskFull, ReadOnly, SystemIoFailure};
        // A disk that is full or broken makes SQLite fail in all of these ways, depending on the file it needs.
        const MAY_PASS: [ErrorCode; 5] = [DiskFull, ReadOnly, SystemIoFailure, CannotOpen, DatabaseBusy];
        match self {
            Self::Sql(error) if error.sqlite_error_code().is_some_and(|code| MAY_PASS.contains(&code)) => {
                StoreError::Full { reason: error.to_string() }
            }
            other => other.into_read_error(),
        }
    }
}

/// Whether the file itself is damaged, as opposed to the disk it is on.
pub(super) fn is_damage(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
}
