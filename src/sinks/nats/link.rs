//! One connection that publishes: what is sent on it, and what makes it run.
//!
//! What must hold:
//! - messages go out in the order of `send`, and each is settled by an answer of its own: JetStream's
//!   acknowledgement, or for what nobody stores the return of an echo that was sent behind it (I3, I5);
//! - the first failure ends the link: everything unsettled fails, and nothing is sent again here;
//! - where the stream could refuse one event and take the next, the link asks for strict ordering;
//! - an event that was never sent before and is answered as a repetition ends the sink: its id was
//!   given to another event, by a data folder that is older than the stream (I6).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message as Received, StatusCode, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::answer::{Answer, Denied, read_answer};
use super::dial::{Complaint, Ended, Line, Word};
use super::message::{Message, Messages, Reply, Surety, messages};
use super::subjects::Subjects;
use super::tally::{Tally, Told};
use crate::model::{Seq, ServerName, SinkName};
use crate::port::{DeliverError, Delivery, EventOrdering, Link, LinkLimits};

/// How many deliveries may be under way at once.
const DEPTH: usize = 256;
/// A delivery is at most two messages; the rest is our own.
const CHANNEL: usize = 2 * DEPTH + 16;
/// Answers that wait to be read.
pub(super) const ANSWERS: usize = 2 * CHANNEL;
/// Where something was denied, so many messages may be under way: the crate keeps 128 words of the server until
/// they are read, and drops what is more.
const DENIALS: usize = 100;
/// If no answer comes for so long, though one is due, the line is dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After a refusal the answers that are still due are waited for this long.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(3);
/// A stream without room or without a leader is tried again after this.
const NOT_NOW_RETRY: Duration = Duration::from_secs(1);

type Verdict = Result<(), DeliverError>;

/// What the connections of a sink know together: which events were sent before, and what became of them.
#[derive(Debug)]
pub struct History {
    /// The newest entry of each server that was ever sent, or written before this run.
    sent: Mutex<BTreeMap<ServerName, Seq>>,
    /// Why nothing may be sent any more.
    pub over: OnceLock<String>,
    /// The login may not publish everything.
    was_denied: AtomicBool,
}

impl History {
    /// `before`: the newest entry of each server when this run began.
    pub fn new(before: BTreeMap<ServerName, Seq>) -> Self {
        Self { sent: Mutex::new(before), over: OnceLock::new(), was_denied: AtomicBool::new(false) }
    }

    /// Notes that an entry is sent; whether that is for the first time ever.
    fn is_first(&self, server: &ServerName, seq: Seq) -> bool {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = sent.entry(server.clone()).or_default();
        let is_first = *newest < seq;
        *newest = seq.max(*newest);
        is_first
    }
}

/// What a link is for.
#[derive(Clone)]
pub(super) struct Voice {
    pub sink: SinkName,
    pub instance: String,
    pub subjects: Subjects,
    pub is_stored: bool,
    /// The stream may refuse one event and take the next.
    pub may_refuse_one: bool,
    /// There are other servers to go to.
    pub has_others: bool,
    pub history: Arc<History>,
    pub tally: Arc<Tally>,
}

struct Job {
    message: Message,
    settle: oneshot::Sender<Verdict>,
}

pub(super) struct NatsLink {
    voice: Voice,
    jobs: mpsc::Sender<Job>,
    payload_bytes_max: usize,
}

impl NatsLink {
    fn check(&self, message: &Message) -> Verdict {
        let bytes = message.payload_bytes();
        if bytes > self.payload_bytes_max {
            let reason = format!("{bytes} bytes are more than the {} that the server takes", self.payload_bytes_max);
            return Err(DeliverError::Rejected { reason });
        }
        Ok(())
    }

    fn hand_over(&self, message: Message) -> Result<oneshot::Receiver<Verdict>, DeliverError> {
        let (settle, settled) = oneshot::channel();
        self.jobs.try_send(Job { message, settle }).map_err(|_| unavailable("the connection is over"))?;
        Ok(settled)
    }

    /// Wherever a reply subject comes from, it is looked at again here, the last place that can.
    fn hand_over_reply(&self, reply: Message) -> Result<oneshot::Receiver<Verdict>, DeliverError> {
        let checked = self.voice.subjects.check_reply(&reply.subject);
        checked.map_err(|error| DeliverError::Rejected { reason: format!("not a subject to answer on: {error}") })?;
        self.hand_over(reply)
    }
}

fn unavailable(reason: impl Into<String>) -> DeliverError {
    Ended::other(reason).into()
}

async fn outcome(settled: oneshot::Receiver<Verdict>) -> Verdict {
    settled.await.unwrap_or_else(|_| Err(unavailable("the connection was given up")))
}

#[async_trait]
impl Link for NatsLink {
    fn limits(&self) -> LinkLimits {
        let ordering = match self.voice.may_refuse_one {
            true => EventOrdering::Strict,
            false => EventOrdering::Pipelined,
        };
        LinkLimits { window: DEPTH, result_bytes_max: None, ordering }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Verdict> {
        let Voice { subjects, instance, is_stored, .. } = &self.voice;
        if matches!(delivery, Delivery::Clear { .. }) && !is_stored {
            // What was kept when there was JetStream cannot be taken back without it.
            return Box::pin(async { Ok(()) });
        }
        let Messages { own, reply } = messages(subjects, instance, *is_stored, delivery);
        // All or none: a result that is too large is replaced, and answered once. The reply has more headers than
        // the result itself, so it may be too large alone.
        if let Some(refusal) =
            own.iter().chain(reply.as_ref().map(|reply| &reply.message)).find_map(|message| self.check(message).err())
        {
            return Box::pin(async move { Err(refusal) });
        }
        let sent: Vec<_> = own.into_iter().map(|message| self.hand_over(message)).collect();
        let replied = reply.map(|Reply { message, told }| (self.hand_over_reply(message), told));
        let (sink, tally) = (self.voice.sink.clone(), Arc::clone(&self.voice.tally));
        Box::pin(async move {
            let mut verdict = Ok(());
            for settled in sent {
                let one = outcome(settled?).await;
                // A line that is over counts more than a message that is not taken.
                if verdict.is_ok() || one.as_ref().is_err_and(|error| !error.is_rejected()) {
                    verdict = one;
                }
            }
            verdict?;
            let Some((replied, told)) = replied else { return Ok(()) };
            match async { outcome(replied?).await }.await {
                Ok(()) => tally.replied(told),
                // The answer stands on the result subject; whoever asked for a reply chose where to.
                Err(DeliverError::Rejected { reason }) => {
                    warn!(%sink, reason, "the reply to a command was not taken");
                    tally.replied(Told { error: Some(reason), ..told });
                }
                Err(unavailable) => return Err(unavailable),
            }
            Ok(())
        })
    }

    async fn close(self: Box<Self>) -> Verdict {
        let offline = Message::bridge_status(&self.voice.subjects, false);
        let goodbye = async { outcome(self.hand_over(offline)?).await };
        match timeout(GOODBYE_WITHIN, goodbye).await {
            Ok(verdict) => verdict,
            Err(_) => Err(unavailable("the server did not take our goodbye in time")),
        }
    }
}

/// Who waits for a message to be settled.
struct Ticket {
    subject: String,
    settle: oneshot::Sender<Verdict>,
    is_event: bool,
    /// It was sent for the first time ever.
    is_first: bool,
    since: Instant,
}

impl Ticket {
    fn settle(self, verdict: Verdict) {
        // An error means that nobody waits any more, which is their choice.
        self.settle.send(verdict).ok();
    }
}

/// Moves the connection on and settles what was sent.
pub(super) struct Driver {
    voice: Voice,
    line: Line,
    jobs: mpsc::Receiver<Job>,
    /// Answers come to subjects below this.
    inbox: String,
    answers: Subscriber,
    /// Counts what was published.
    number: u64,
    /// Waiting for JetStream, by number.
    under_way: BTreeMap<u64, Ticket>,
    /// Waiting for an echo from behind them.
    unheard: VecDeque<(u64, Ticket)>,
    /// The number up to which the echo that is under way will have been heard.
    echo: Option<u64>,
    /// We may not send ourselves an echo, so what is written counts as heard.
    is_mute: bool,
    ending: Option<(Ended, Instant)>,
}

impl Driver {
    /// Takes over a line: `online` is said on it first.
    pub(super) async fn begin(voice: Voice, line: Line) -> Result<(NatsLink, Self), Ended> {
        let client = line.client.clone();
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| Ended::other(error.to_string()))?;
        let (send, jobs) = mpsc::channel(CHANNEL);
        let payload_bytes_max = client.server_info().max_payload;
        let link = NatsLink { voice: voice.clone(), jobs: send, payload_bytes_max };
        let mut driver = Self {
            voice,
            line,
            jobs,
            inbox,
            answers,
            number: 0,
            under_way: BTreeMap::new(),
            unheard: VecDeque::new(),
            echo: None,
            is_mute: false,
            ending: None,
        };
        let online = Message::bridge_status(&driver.voice.subjects, true);
        let mut settled = link.hand_over(online).map_err(|error| Ended::other(error.to_string()))?;
        loop {
            match settled.try_recv() {
                Ok(Ok(())) => return Ok((link, driver)),
                Ok(Err(error)) => {
                    warn!(sink = %driver.voice.sink, %error, "nobody is told that the bridge is online");
                    return Ok((link, driver));
                }
                Err(oneshot::error::TryRecvError::Empty) => driver.step().await?,
                Err(oneshot::error::TryRecvError::Closed) => return Err(Ended::other("given up")),
            }
        }
    }

    /// Runs until the connection is over, and says why.
    pub(super) async fn run(mut self) -> DeliverError {
        loop {
            if let Err(ended) = self.step().await {
                let error = DeliverError::from(ended);
                self.fail_all(&error);
                return error;
            }
        }
    }

    /// Until when an answer has to come, if one is due. The oldest that is not answered counts: what is
    /// answered after it, by a stream that does well or for a message that came later, says nothing of it.
    fn deadline(&self) -> Option<Instant> {
        let oldest = [self.under_way.values().next(), self.unheard.front().map(|(_, ticket)| ticket)];
        let since = oldest.into_iter().flatten().map(|ticket| ticket.since).min()?;
        Some(self.ending.as_ref().map_or(since + ANSWER_WITHIN, |(_, until)| *until))
    }

    async fn step(&mut self) -> Result<(), Ended> {
        let due = self.deadline();
        let is_due = due.is_some();
        if let Some((ended, until)) = &self.ending
            && (!is_due || Instant::now() >= *until)
        {
            return Err(ended.clone());
        }
        let deadline = due.unwrap_or_else(Instant::now);
        let may_take = self.may_take();
        tokio::select! {
            biased;
            word = self.line.word() => self.on_word(word?),
            answer = self.answers.next() => match answer {
                Some(answer) => self.on_answer(&answer).await,
                None => Err(Ended::other("the connection broke")),
            },
            () = tokio::time::sleep_until(deadline), if is_due => match &self.ending {
                Some(_) => Ok(()),
                // Where others listen on a subject too, the server does not say that a stream is gone.
                None => Err(Ended::other(format!("no answer within {ANSWER_WITHIN:?}: the server is gone, or the stream"))),
            },
            Some(job) = self.jobs.recv(), if may_take => self.take(job).await,
        }
    }

    /// Whether another message may go out, as far as the line is concerned.
    fn may_take(&self) -> bool {
        let has_room = || self.under_way.len() + self.unheard.len() < DENIALS;
        self.ending.is_none() && (!self.voice.history.was_denied.load(Ordering::Relaxed) || has_room())
    }

    fn on_word(&mut self, word: Word) -> Result<(), Ended> {
        match word {
            Word::Denied(complaint) => self.on_denial(&complaint),
            Word::LameDuck if self.voice.has_others => {
                info!(sink = %self.voice.sink, "the server is about to stop (lame duck mode): going to another one");
                self.end_soon(Ended::other("the server was about to stop (lame duck mode)"));
                Ok(())
            }
            Word::LameDuck => {
                info!(sink = %self.voice.sink, "the server is about to stop (lame duck mode), and no other is known");
                Ok(())
            }
            Word::TooSlow => Err(Ended::other("answers came faster than they were read")),
            Word::Other => Ok(()),
        }
    }

    /// What a login may not do is said by the server without a number: the oldest of that subject is meant.
    fn on_denial(&mut self, complaint: &Complaint) -> Result<(), Ended> {
        let reason = complaint.to_string();
        match complaint.denied() {
            Some(Denied::Publish(subject)) if subject.starts_with(&self.inbox) => {
                warn!(
                    sink = %self.voice.sink, reason,
                    "we may not send ourselves an echo: what is not stored counts as delivered once it is written"
                );
                self.is_mute = true;
                self.echo = None;
                self.heard_up_to(u64::MAX);
                Ok(())
            }
            Some(Denied::Publish(subject)) => {
                self.voice.history.was_denied.store(true, Ordering::Relaxed);
                let number =
                    self.under_way.iter().find(|(_, ticket)| ticket.subject == subject).map(|(number, _)| *number);
                if let Some(ticket) = number.and_then(|number| self.under_way.remove(&number)) {
                    ticket.settle(Err(DeliverError::Rejected { reason }));
                } else if let Some(at) = self.unheard.iter().position(|(_, ticket)| ticket.subject == subject)
                    && let Some((_, ticket)) = self.unheard.remove(at)
                {
                    ticket.settle(Err(DeliverError::Rejected { reason }));
                }
                Ok(())
            }
            Some(Denied::Subscribe(_)) | None => {
                Err(Ended::refused(format!("{reason}: the login needs the right to subscribe to _INBOX.>")))
            }
        }
    }

    async fn on_answer(&mut self, answer: &Received) -> Result<(), Ended> {
        let Some(token) = answer.subject.rsplit('.').next() else { return Ok(()) };
        if let Some(number) = token.strip_prefix('e') {
            let number = number.parse().unwrap_or_default();
            self.heard_up_to(number);
            self.echo = None;
            return self.echo_if_due().await;
        }
        let Some(ticket) = token.parse().ok().and_then(|number: u64| self.under_way.remove(&number)) else {
            return Ok(());
        };
        let has_no_responder = answer.status == Some(StatusCode::NO_RESPONDERS);
        match read_answer(has_no_responder, &answer.payload) {
            Answer::Stored { is_duplicate: true } if ticket.is_first && ticket.is_event => {
                let reason = self.ids_are_taken(&ticket.subject);
                ticket.settle(Err(unavailable(reason.clone())));
                return Err(Ended::refused(reason));
            }
            Answer::Stored { .. } => ticket.settle(Ok(())),
            Answer::Refused(reason) => ticket.settle(Err(DeliverError::Rejected { reason })),
            Answer::NotNow(reason) => {
                let reason = format!("{} is not taken: {reason}", ticket.subject);
                let ended = Ended { reason: reason.clone(), retry_after: Some(NOT_NOW_RETRY) };
                let error = match ticket.is_event {
                    true => DeliverError::Deferred { reason, retry_after: Some(NOT_NOW_RETRY) },
                    false => ended.clone().into(),
                };
                ticket.settle(Err(error));
                self.end_soon(ended);
            }
        }
        Ok(())
    }

    fn ids_are_taken(&self, subject: &str) -> String {
        let reason = format!(
            "the stream has an event with the id of a new one ({subject}): the data folder is older than the stream, as \
             after a restored backup, or two tables of the config send to one stream. Nothing more is sent here. \
             For a new history stop the bridge, move the state file out of the data folder, and start it again"
        );
        if self.voice.history.over.set(reason.clone()).is_ok() {
            error!(sink = %self.voice.sink, reason, "ids of events would name two events each");
        }
        reason
    }

    /// No more is sent; what was sent may still be answered, and then it is over.
    fn end_soon(&mut self, ended: Ended) {
        self.ending.get_or_insert_with(|| (ended, Instant::now() + LAST_ANSWERS_WITHIN));
    }

    fn heard_up_to(&mut self, number: u64) {
        while self.unheard.front().is_some_and(|(of, _)| *of <= number) {
            if let Some((_, ticket)) = self.unheard.pop_front() {
                ticket.settle(Ok(()));
            }
        }
    }

    async fn take(&mut self, job: Job) -> Result<(), Ended> {
        let mut next = Some(job);
        while let Some(job) = next {
            self.publish(job).await?;
            next = if self.may_take() { self.jobs.try_recv().ok() } else { None };
        }
        self.echo_if_due().await
    }

    async fn publish(&mut self, job: Job) -> Result<(), Ended> {
        let Job { message, settle } = job;
        let is_event = message.entry.is_some() && message.surety == Surety::Stored;
        let Message { subject, headers, body, surety, entry } = message;
        self.number += 1;
        let number = self.number;
        let is_first = entry.is_some_and(|(server, seq)| self.voice.history.is_first(&server, seq));
        let ticket = Ticket { subject: subject.clone(), settle, is_event, is_first, since: Instant::now() };
        let reply = match surety {
            Surety::Stored => {
                self.under_way.insert(number, ticket);
                Some(format!("{}.{number}", self.inbox))
            }
            Surety::Heard => {
                self.unheard.push_back((number, ticket));
                None
            }
        };
        self.write(subject, reply, headers, body).await
    }

    async fn write(
        &mut self,
        subject: String,
        reply: Option<String>,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<(), Ended> {
        let client = &self.line.client;
        let mut lines = HeaderMap::new();
        headers.iter().for_each(|(name, value)| lines.insert(*name, value.as_str()));
        let headers = lines;
        let writing = async {
            match (reply, headers.is_empty()) {
                (Some(reply), _) => client.publish_with_reply_and_headers(subject, reply, headers, body).await,
                (None, false) => client.publish_with_headers(subject, headers, body).await,
                (None, true) => client.publish(subject, body).await,
            }
        };
        match timeout(ANSWER_WITHIN, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Ended::other(format!("the connection broke: {error}"))),
            Err(_) => Err(Ended::other("the server reads nothing any more")),
        }
    }

    /// What is not stored is heard when an echo from behind it comes back; one is under way at most.
    async fn echo_if_due(&mut self) -> Result<(), Ended> {
        if self.unheard.is_empty() || self.echo.is_some() {
            return Ok(());
        }
        if self.is_mute {
            let flushed = timeout(ANSWER_WITHIN, self.line.client.flush()).await;
            flushed
                .map_err(|_| Ended::other("the server reads nothing any more"))?
                .map_err(|error| Ended::other(error.to_string()))?;
            self.heard_up_to(u64::MAX);
            return Ok(());
        }
        self.echo = Some(self.number);
        self.write(format!("{}.e{}", self.inbox, self.number), None, Vec::new(), Bytes::new()).await
    }

    fn fail_all(&mut self, error: &DeliverError) {
        self.jobs.close();
        let under_way = std::mem::take(&mut self.under_way).into_values();
        let unheard = self.unheard.drain(..).map(|(_, ticket)| ticket);
        for ticket in under_way.chain(unheard) {
            ticket.settle(Err(error.clone()));
        }
        let waiting = std::iter::from_fn(|| self.jobs.try_recv().ok());
        for Job { settle, .. } in waiting {
            settle.send(Err(error.clone())).ok();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.fail_all(&unavailable("the connection was given up"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::ReplyTo;
    use crate::sinks::nats::settings::Prefix;

    #[tokio::test]
    async fn a_result_whose_reply_alone_is_too_large_is_rejected_and_none_of_it_is_sent() {
        let body = Bytes::from(r#"{"status":"error","error":{"code":"bad_request","message":"no","retryable":false}}"#);
        let result = || Delivery::Result {
            server: None,
            body: body.clone(),
            reply: Some(ReplyTo { topic: "_INBOX.1".into(), correlation: None }),
        };
        let (jobs, mut sent) = mpsc::channel(CHANNEL);
        let voice = Voice {
            sink: SinkName::parse("bus").unwrap(),
            instance: "main".to_owned(),
            subjects: Subjects::new(Prefix::default(), "main", true),
            is_stored: true,
            may_refuse_one: false,
            has_others: false,
            history: Arc::new(History::new(BTreeMap::new())),
            tally: Arc::new(Tally::new(String::new())),
        };
        let Messages { own, reply } = messages(&voice.subjects, "main", true, result());
        let (of_own, of_reply) = (own[0].payload_bytes(), reply.unwrap().message.payload_bytes());
        assert!(of_own < of_reply);
        let mut link = NatsLink { voice, jobs, payload_bytes_max: of_reply - 1 };
        assert!(matches!(link.send(result()).await, Err(DeliverError::Rejected { .. })));
        assert!(sent.try_recv().is_err());
        link.payload_bytes_max = of_reply;
        drop(link.send(result()));
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_ok());
    }

    #[test]
    fn an_entry_is_sent_first_only_once_and_never_if_it_is_older_than_this_run() {
        let home = ServerName::parse("home").unwrap();
        let attic = ServerName::parse("attic").unwrap();
        let history = History::new(BTreeMap::from([(home.clone(), Seq(5))]));
        assert!(!history.is_first(&home, Seq(5)));
        assert!(history.is_first(&home, Seq(6)));
        assert!(!history.is_first(&home, Seq(6)));
        assert!(history.is_first(&attic, Seq(1)));
    }
}
