//! Moving torrents without their files: only the client changes.
//!
//! The content may be at the new place already, or has to be downloaded there once more. A client believes that it has what
//! it had, so what is there is compared first: unless these are the same files, the client has to find out anew.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::actions::{BUSY_PAUSE_MAX, BUSY_PAUSE_MIN, WhileBusy};
use super::asking::{Request, Stage};
use super::common::blocking;
use super::errors::{client_gone, precondition, still_busy};
use super::execution::{Attempt, Execution, Failure};
use super::file_operations::{CurrentTorrent, place_in};
use super::file_progress::not_begun;
use super::files::FilePlan;
use super::results::ResultBody;
use super::roots::Roots;
use crate::model::{
    Action, CommandError, Content, ContentFile, ErrorCode, InfoHash, Move, OutcomeStatus, Status, TorrentOutcome,
};
use crate::port::ClientError;

/// Time after which a torrent that is being checked is read again, whatever polls show.
const REREAD_INTERVAL: Duration = Duration::from_secs(2);

impl Execution<'_> {
    /// Sets the directory of torrents whose files are there already, or have to be downloaded there.
    ///
    /// Each is asked for as soon as it was compared, so that what was found still holds and the time to live is kept. What
    /// the client is busy with is compared and asked for again when all others are.
    pub(super) async fn move_without_files(&self, directory: &str) -> Attempt<ResultBody> {
        let (mut requests, mut rows, mut hashes) = (Vec::<Request<'_>>::new(), Vec::new(), self.torrents()?);
        if !self.request.dry_run {
            self.note_start().await?;
        }
        for may_wait in [false, true] {
            for hash in std::mem::take(&mut hashes) {
                match self.begin_bare_move(hash, directory, may_wait).await {
                    Ok(Some(request)) => {
                        if matches!(request.stage, Stage::Asked { is_seen: true, .. }) {
                            self.progress().settle(hash);
                        }
                        requests.push(request);
                    }
                    // The others need not wait for it.
                    Ok(None) => hashes.push(hash),
                    Err(Failure::Command(error)) => rows.push(TorrentOutcome::failed(hash, error)),
                    Err(failure @ Failure::Store(_)) => return Err(failure),
                    // Nothing was asked for yet, so the command can begin from the start.
                    Err(failure) if requests.is_empty() => return Err(failure),
                    Err(Failure::Unreachable | Failure::Unanswered(_)) => {
                        rows.push(TorrentOutcome::failed(hash, client_gone()));
                        self.wait_for_poll().await;
                        self.wait_for_client().await;
                    }
                }
            }
        }
        self.ask_busy_again(&mut requests, directory).await?;
        self.release_busy(&mut requests).await;
        let must_find = |request: &Request<'_>| match &request.action {
            Action::Move(Move { hash, must_find: Some(bytes), .. }) => Some((*hash, *bytes)),
            _ => None,
        };
        let must_find: HashMap<InfoHash, u64> = requests.iter().filter_map(must_find).collect();
        for row in self.see_effects(requests).await {
            let bytes = must_find.get(&row.hash).filter(|_| row.status == OutcomeStatus::Ok);
            let found = match bytes {
                Some(bytes) => self.check_found(row.hash, *bytes, directory).await,
                None => Ok(()),
            };
            rows.push(if let Err(error) = found { TorrentOutcome::failed(row.hash, error) } else { row });
        }
        rows.sort_by_key(|row| row.hash);
        for row in &rows {
            // What an earlier run has begun, and this one could not end, goes on behind the result.
            if row.status == OutcomeStatus::Ok || !self.command.begun.contains(&row.hash) {
                self.progress().note_outcome(row);
            }
        }
        Ok(ResultBody::of_torrents(rows))
    }

    /// Compares what is at the new place of a torrent, and asks the client; `None` for one that is being checked.
    async fn begin_bare_move(&self, hash: InfoHash, directory: &str, may_wait: bool) -> Attempt<Option<Request<'_>>> {
        if self.is_over() {
            return Err(not_begun().into());
        }
        let Some(action) = self.check_new_place(hash, directory, may_wait).await? else { return Ok(None) };
        let action = Action::Move(action);
        if self.request.dry_run {
            let row = self.dry_run(&action).await;
            return Ok(Some(Request { stage: Stage::Done(row), ..Request::new(action) }));
        }
        self.check(hash)?;
        let (roots, directory) = (self.parts.sources.roots.clone(), directory.to_owned());
        blocking(move || roots.make_directory(&directory)).await??;
        self.begin(hash).await?;
        let mut request = Request::new(action);
        self.ask_to_move(&mut request).await?;
        Ok(Some(request))
    }

    /// Asks for a move that was compared.
    async fn ask_to_move<'e>(&'e self, request: &mut Request<'e>) -> Attempt<()> {
        self.ask_until_taken(std::slice::from_mut(request), WhileBusy::Leave).await?;
        // One that is not held while it waits may be changed by others meanwhile.
        if request.busy().is_some() && self.current(request.action.hash()).await.is_ok_and(|current| !current.is_held())
        {
            request.effect = None;
        }
        Ok(())
    }

    /// Asks again, as long as there is time, for what the client was busy with. What is at the new place is compared anew,
    /// unless the client holds the torrent: by then it may have forgotten what it has.
    async fn ask_busy_again<'e>(&'e self, requests: &mut [Request<'e>], directory: &str) -> Attempt<()> {
        let (mut was_logged, mut pause) = (false, BUSY_PAUSE_MIN);
        loop {
            let mut busy: Vec<&mut Request<'e>> =
                requests.iter_mut().filter(|request| request.busy().is_some()).collect();
            let Some(reason) = busy.first().and_then(|request| request.busy()) else { return Ok(()) };
            if !std::mem::replace(&mut was_logged, true) {
                self.log_busy(busy.len(), reason);
            }
            sleep(pause).await;
            pause = (2 * pause).min(BUSY_PAUSE_MAX);
            for request in &mut busy {
                if self.is_over() {
                    return Ok(());
                }
                if request.effect.is_none() {
                    match self.check_new_place(request.action.hash(), directory, false).await {
                        Ok(Some(action)) => request.action = Action::Move(action),
                        // It is being checked, or the client does not answer.
                        Ok(None) | Err(Failure::Unreachable | Failure::Unanswered(_)) => continue,
                        Err(Failure::Command(error)) => {
                            request.fail(error);
                            continue;
                        }
                        Err(failure @ Failure::Store(_)) => return Err(failure),
                    }
                }
                self.ask_to_move(request).await?;
            }
        }
    }

    /// Checks that the client has found as much in the new directory as it had, when its check is over.
    async fn check_found(&self, hash: InfoHash, must_find: u64, directory: &str) -> Result<(), CommandError> {
        let found = self.server().wait_for(|server| match server.snapshot.get(&hash) {
            Some(one) if one.torrent.status == Status::Checking => None,
            found => Some(found.map_or(0, |one| one.torrent.downloaded)),
        });
        match self.within_verification(found).await {
            Some(found) if found >= must_find => Ok(()),
            Some(found) => Err(precondition(format!(
                "the files in {directory} have the right sizes and other content: the client has checked them, and finds \
                 {found} of {must_find} bytes of its content"
            ))),
            None => Err(CommandError::new(
                ErrorCode::Unconfirmed,
                format!(
                    "it is in {directory}, and the client is still checking whether the files there are its content"
                ),
            )),
        }
    }

    /// Lets torrents go on that the client has held for a move and was busy with until the end. Where the result has no time
    /// for that, it says that the torrent is in an unknown state, and the command goes on behind it.
    async fn release_busy(&self, requests: &mut [Request<'_>]) {
        for request in requests.iter_mut().filter(|request| request.busy().is_some()) {
            let (hash, limit) = (request.action.hash(), self.effect_timeout());
            // What is being checked at the new place by an attempt whose answer was lost is not to run there yet.
            let is_checked =
                self.current(hash).await.is_ok_and(|now| now.is_held() && now.torrent.status == Status::Checking);
            if is_checked || timeout(limit, self.release(hash)).await.is_err() {
                request.stage = Stage::Lost(ClientError::Timeout { limit });
            }
        }
    }

    /// Returns a torrent; `None` for one that is being checked, unless this may wait for the end of the check: until then
    /// the client does not know what it has.
    async fn current_unchecked(&self, hash: InfoHash, may_wait: bool) -> Attempt<Option<CurrentTorrent>> {
        loop {
            let asked = Instant::now();
            let current = self.current(hash).await?;
            if current.torrent.status != Status::Checking || self.request.dry_run {
                return Ok(Some(current));
            }
            if !may_wait {
                return Ok(None);
            }
            self.wake();
            // A client that has forgotten the torrent in its queue of checks says so only when it is read again.
            let checked = timeout(
                REREAD_INTERVAL,
                self.server().wait_for(|server| {
                    let is_fresh = server.poll.last_began.is_some_and(|began| began >= asked);
                    let found = server.snapshot.get(&hash);
                    let is_checking = found.is_some_and(|one| one.torrent.status == Status::Checking);
                    (is_fresh && !is_checking).then_some(())
                }),
            );
            if self.within_ttl(checked).await.is_none() {
                return Err(
                    still_busy("it is being checked, and what it has is not known before the check is over").into()
                );
            }
        }
    }

    /// Compares what a torrent has with what is in a directory to which it is moved without its files: where they differ,
    /// the client has to find out anew what it has. It would go on claiming what is not there, or not see what is.
    async fn check_new_place(&self, hash: InfoHash, directory: &str, may_wait: bool) -> Attempt<Option<Move>> {
        let Some(current) = self.current_unchecked(hash, may_wait).await? else { return Ok(None) };
        let action = Move { was_paused: current.was_paused(), ..Move::new(hash, directory) };
        let mut content = match self.content(&current).await {
            Ok(content) => content,
            // A magnet link, or its names are not known exactly, so nobody can look for them.
            Err(Failure::Command(error)) if error.code == ErrorCode::Precondition && !error.retryable => {
                return Ok(Some(action));
            }
            Err(failure) => return Err(failure),
        };
        let place = place_in(directory, &content);
        // An interrupted command has set the directory, and perhaps nothing else.
        if content.directory == place && !self.command.begun.contains(&hash) {
            return Ok(Some(action));
        }
        let before = std::mem::replace(&mut content.directory, place);
        let roots = self.parts.sources.roots.clone();
        let (is_held, may_overwrite) = (current.is_held(), !current.was_stopped());
        let torrent = current.torrent;
        let is_elsewhere = before != content.directory;
        let check = move || {
            // Without its root this machine sees nothing of the directory; then the client alone can say.
            if !roots.is_seen(&content.directory) {
                return Ok(action);
            }
            let old = Content { directory: before, ..content.clone() };
            let place = FilesThere::find(&roots, content)?;
            let recheck = Move { recheck: true, ..action.clone() };
            let whole = Move { must_find: Some(torrent.length), ..recheck.clone() };
            match place.difference() {
                // A check that a crash has interrupted has had the client forget what it has. One that runs was moved to all of
                // its content, or to none.
                _ if is_held && may_overwrite && !is_elsewhere && !place.is_empty() => Ok(whole),
                Some(_) if place.is_empty() || !may_overwrite => Ok(recheck),
                Some(difference) => Err(precondition(format!(
                    "{difference}; a torrent that runs needs there either all that it has or none of its files, because the \
                     client would overwrite what differs: stop it first"
                ))),
                None if place.is_empty() || (is_elsewhere && place.has_files_of(&roots, old)) => Ok(action),
                // Files of the same names and sizes may be others all the same, and the client would not notice.
                None if may_overwrite && is_elsewhere && (1..torrent.length).contains(&torrent.downloaded) => {
                    Err(precondition(
                        "the files there have the right sizes, and only a check by the client shows whether they are its content; \
                     a torrent that runs and is not complete might write to them meanwhile: stop it first",
                    ))
                }
                None if torrent.downloaded == 0 && may_overwrite && is_elsewhere => Ok(whole),
                None if torrent.downloaded == 0 => Ok(recheck),
                None => Ok(Move { must_find: Some(torrent.downloaded), ..recheck }),
            }
        };
        Ok(Some(blocking(check).await??))
    }
}

/// The files of a torrent that are in a directory to which it is moved.
struct FilesThere {
    plan: FilePlan,
    files: Vec<ContentFile>,
}

impl FilesThere {
    /// Finds the files, whatever their sizes.
    ///
    /// # Errors
    /// Something is in the way: a link, a folder, or what is no regular file.
    fn find(roots: &Roots, Content { directory, folder_name, files }: Content) -> Result<Self, CommandError> {
        let any_size = files.iter().map(|file| ContentFile { is_complete: false, ..file.clone() }).collect();
        let plan = FilePlan::new(roots, &Content { directory, folder_name, files: any_size })?;
        Ok(Self { plan, files })
    }

    fn is_empty(&self) -> bool {
        self.plan.files.is_empty()
    }

    /// Whether the files are those of another directory, by another way to it.
    fn has_files_of(&self, roots: &Roots, other: Content) -> bool {
        let Ok(other) = Self::find(roots, other) else { return false };
        let identities = |there: &Self| {
            there.plan.files.iter().map(|file| (file.path.clone(), file.identity)).collect::<HashMap<_, _>>()
        };
        identities(self) == identities(&other)
    }

    /// Returns the first file that is not as the client has it; `None` if all are.
    fn difference(&self) -> Option<String> {
        let path = |path: &Path| self.plan.directory.join(path).display().to_string();
        if let Some(missing) = self.plan.missing.first() {
            return Some(format!("{} is not there, though the client has data of it", path(missing)));
        }
        let lengths: HashMap<&Path, u64> =
            self.files.iter().filter(|file| file.is_complete).map(|file| (&*file.path, file.length)).collect();
        self.plan.files.iter().find_map(|file| {
            let length = lengths.get(&*file.path).filter(|length| **length != file.bytes)?;
            Some(format!("{} has {} bytes, and not {length}", path(&file.path), file.bytes))
        })
    }
}
