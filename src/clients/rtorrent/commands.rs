//! Carrying out actions.

use super::{RtorrentClient, Turn};
use crate::model::{Action, Listing};
use crate::port::{Applied, ClientError};

#[derive(Default)]
pub(super) struct Memory {}

pub(super) async fn pause_again(_: &Turn<'_>, _: &Listing) -> Result<(), ClientError> {
    Ok(())
}

pub(super) async fn apply(_: &RtorrentClient, _: &Action) -> Result<Applied, ClientError> {
    Err(ClientError::Unsupported { what: "do anything yet".to_owned() })
}
