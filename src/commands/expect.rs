//! What commands in flight are expected to do, and which event is whose effect.
//!
//! A worker says what it is about to ask for *before* it asks, so that an event which the next look
//! shows carries the command's name, however fast it comes. Whether the effect is there is judged only by looks
//! that began *after* the client was asked: an older one may show the state of before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::{
    Action, Add, Cause, ChangeSet, CommandId, Covers, InfoHash, Kind, Listing, Observed, Snapshot, Status,
};

/// What a look has to show for an action to count as done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Paused,
    Running,
    Stopped,
    Gone,
    Added {
        label: Option<String>,
        priority: Option<u8>,
        start: bool,
        is_checked: bool,
    },
    Label(String),
    Priority(u8),
    /// The client has shown it already; one more look gives its events their name.
    Rechecked,
    Announced,
    /// Its content is in this folder, or in one of its own below that.
    Moved(String),
    /// What follows is the client's word alone, as for [`Self::Rechecked`].
    Throttled,
    FilesChosen,
}

impl Effect {
    /// Whose torrent an action changes, and how that shows.
    pub fn of(action: &Action) -> (InfoHash, Self) {
        match action {
            Action::Pause(hash) => (*hash, Self::Paused),
            Action::Resume(hash) | Action::Start(hash) => (*hash, Self::Running),
            Action::Stop(hash) => (*hash, Self::Stopped),
            Action::Delete(hash) => (*hash, Self::Gone),
            Action::Hold(hash) => (*hash, Self::Stopped),
            Action::Move(hash, directory) => (*hash, Self::Moved(directory.clone())),
            Action::Throttle(hash, _) => (*hash, Self::Throttled),
            Action::FilePriority(hash, ..) => (*hash, Self::FilesChosen),
            Action::Recheck(hash) => (*hash, Self::Rechecked),
            Action::Announce(hash) => (*hash, Self::Announced),
            Action::Label(hash, label) => (*hash, Self::Label(label.clone())),
            Action::Priority(hash, priority) => (*hash, Self::Priority(*priority)),
            Action::Add(add) => {
                let Add { hash, label, priority, start, is_checked, .. } = add;
                let (label, priority, start, is_checked) = (label.clone(), *priority, *start, *is_checked);
                (*hash, Self::Added { label, priority, start, is_checked })
            }
        }
    }

    /// Whether a look that began after asking shows it.
    pub fn shows(&self, seen: Option<&Observed>) -> bool {
        let Some(seen) = seen else { return *self == Self::Gone };
        let torrent = &seen.torrent;
        match self {
            Self::Gone => false,
            Self::Paused => torrent.status == Status::Paused,
            Self::Running => !matches!(torrent.status, Status::Paused | Status::Stopped),
            Self::Stopped => torrent.status == Status::Stopped,
            Self::Added { label, priority, start, is_checked } => {
                (label.is_none() || torrent.label.as_deref() == label.as_deref())
                    && (priority.is_none() || torrent.priority == *priority)
                    && (!start || torrent.status != Status::Stopped)
                    && (!is_checked || torrent.finished)
            }
            Self::Label(label) => torrent.label.as_deref() == Some(label),
            Self::Priority(priority) => torrent.priority == Some(*priority),
            Self::Moved(directory) => torrent.directory.as_deref().is_some_and(|now| is_at_or_below(now, directory)),
            Self::Rechecked | Self::Announced | Self::Throttled | Self::FilesChosen => true,
        }
    }

    fn explains(&self, kind: Kind) -> bool {
        let kinds: &[Kind] = match self {
            Self::Paused => &[Kind::Paused, Kind::Unstalled],
            Self::Running => &[Kind::Started, Kind::Resumed, Kind::Checking, Kind::Checked, Kind::ErrorCleared],
            Self::Stopped => &[Kind::Stopped, Kind::Unstalled],
            Self::Gone => &[Kind::Removed, Kind::Stopped],
            Self::Added { .. } => {
                &[Kind::Added, Kind::LabelChanged, Kind::PriorityChanged, Kind::Checking, Kind::Checked, Kind::Started]
            }
            Self::Label(_) => &[Kind::LabelChanged],
            Self::Priority(_) => &[Kind::PriorityChanged],
            Self::Rechecked => &[Kind::Checking, Kind::Checked, Kind::Resumed, Kind::Paused],
            Self::Announced => &[],
            Self::Moved(_) => &[
                Kind::Moved,
                Kind::Stopped,
                Kind::Started,
                Kind::Paused,
                Kind::Resumed,
                Kind::Checking,
                Kind::Checked,
                Kind::Unstalled,
            ],
            Self::Throttled => &[Kind::Paused, Kind::Resumed],
            Self::FilesChosen => &[Kind::Finished, Kind::Unfinished],
        };
        kinds.contains(&kind)
    }
}

fn is_at_or_below(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The expectations of one server.
#[derive(Default)]
pub struct Expectations {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    looks: u64,
    tickets: u64,
    /// By ticket, so the oldest first.
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    command: CommandId,
    hash: InfoHash,
    effect: Effect,
    /// Judged by looks with a higher number; `None` until the client was asked.
    asked_in_look: Option<u64>,
    shown: Option<oneshot::Sender<()>>,
}

/// A place in the book; dropping it takes the expectation back.
pub struct Ticket<'a> {
    expectations: &'a Expectations,
    number: u64,
    shown: oneshot::Receiver<()>,
}

impl Expectations {
    /// Enters what `command` is about to do to `hash`.
    pub fn expect(&self, command: &CommandId, hash: InfoHash, effect: Effect) -> Ticket<'_> {
        let (sender, shown) = oneshot::channel();
        let mut book = self.book();
        book.tickets += 1;
        let number = book.tickets;
        let command = command.clone();
        book.waiting.insert(number, Waiting { command, hash, effect, asked_in_look: None, shown: Some(sender) });
        Ticket { expectations: self, number, shown }
    }

    /// A look begins; returns its number.
    pub fn begin_poll(&self) -> u64 {
        let mut book = self.book();
        book.looks += 1;
        book.looks
    }

    /// Gives events that a command explains its name.
    pub fn mark(&self, change_set: &mut ChangeSet) {
        let book = self.book();
        let mut by_hash: HashMap<InfoHash, Vec<&Waiting>> = HashMap::new();
        for waiting in book.waiting.values() {
            by_hash.entry(waiting.hash).or_default().push(waiting);
        }
        for new_event in &mut change_set.events {
            let Some(hash) = new_event.torrent.as_ref().map(|torrent| torrent.hash) else { continue };
            let mut of_torrent = by_hash.get(&hash).into_iter().flatten();
            if let Some(waiting) = of_torrent.find(|waiting| waiting.effect.explains(new_event.kind)) {
                new_event.cause = Cause::Command;
                new_event.command_id = Some(waiting.command.clone());
            }
        }
    }

    /// Answers whoever waits for what this look, now told, shows.
    pub fn judge(&self, look: u64, listing: &Listing, snapshot: &Snapshot) {
        let mut book = self.book();
        for waiting in book.waiting.values_mut() {
            let is_asked = waiting.asked_in_look.is_some_and(|asked| asked < look);
            let seen = listing.torrents.get(&waiting.hash);
            let is_spoken_of = seen.is_some() || listing.covers == Covers::All;
            let is_gone_in_word = waiting.effect != Effect::Gone || !snapshot.contains_key(&waiting.hash);
            if is_asked
                && is_spoken_of
                && is_gone_in_word
                && waiting.effect.shows(seen)
                && let Some(shown) = waiting.shown.take()
            {
                // Refused only if the wait timed out this instant: then nobody is interested.
                let _nobody_waits = shown.send(());
            }
        }
    }

    /// Whether somebody waits for a look.
    pub fn is_waiting(&self) -> bool {
        self.book().waiting.values().any(|waiting| waiting.asked_in_look.is_some() && waiting.shown.is_some())
    }

    /// The torrents whose change somebody waits for.
    pub fn awaited(&self, into: &mut BTreeSet<InfoHash>) {
        let book = self.book();
        let open = book.waiting.values().filter(|waiting| waiting.asked_in_look.is_some() && waiting.shown.is_some());
        into.extend(open.map(|waiting| waiting.hash));
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// The client was asked: looks that begin from now on count.
    pub fn asked(&self) {
        let mut book = self.expectations.book();
        let looks = book.looks;
        if let Some(waiting) = book.waiting.get_mut(&self.number) {
            waiting.asked_in_look = Some(looks);
        }
    }

    /// Waits until a look shows the effect. Cancel-safe.
    pub async fn shown(&mut self) {
        if (&mut self.shown).await.is_err() {
            // The book gives an answer or keeps the sender as long as the ticket lives.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.expectations.book().waiting.remove(&self.number);
    }
}
