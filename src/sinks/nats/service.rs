//! Commands as requests to a micro service, on a connection of its own.
//!
//! The service is called `dtorrent` and answers to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`. Its
//! endpoints take commands, as one of a queue group, so that of several bridges one gets each. The
//! reply is the result, sent by the sink once the effect was seen, so it is not given here.
//!
//! What must hold: what comes is passed on with all that is known of it, and judged by nobody here,
//! except that an answer to somebody's question is no command; the monitoring answers tell of what was really taken,
//! and really answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message as Received, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{SelectAll, select_all};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::System;
use super::answer::is_answer;
use super::dial::{Ended, Line, Word};
use crate::model::Timestamp;
use crate::port::{Clock, CommandSource, DeliverError, Incoming, ReplyTo};

const NAME: &str = "dtorrent";
/// All bridges share it.
const QUEUE: &str = "q";
/// So many requests of an endpoint wait to be taken; what is more is lost, and said aloud.
const WAITING_MAX: usize = 256;
/// At most this often it is said that some are lost.
const TOO_SLOW_EACH: Duration = Duration::from_secs(10);
/// The header in which a sender says who it is; as on MQTT the user property.
const USER: &str = "user";
/// How a subscription is told from the others.
type Source = Option<usize>;

/// A NATS system as a source of commands.
pub struct NatsCommands {
    system: Arc<System>,
    state: State,
    started: Timestamp,
    endpoints: Vec<Endpoint>,
    /// When it was said last that requests are lost.
    too_slow_at: Option<Instant>,
}

struct Endpoint {
    name: String,
    subject: String,
}

enum State {
    Away,
    /// Kept here, so that a caller who stops waiting does not stop the attempt.
    Connecting(BoxFuture<'static, Result<Session, Ended>>),
    Connected(Box<Session>),
}

struct Session {
    line: Line,
    requests: SelectAll<BoxedRequests>,
    /// Monitoring answers that are still to be written.
    answers: VecDeque<(String, Value)>,
    /// Why nothing more will come.
    over: Option<Ended>,
}

type BoxedRequests = futures_util::stream::BoxStream<'static, (Source, Received)>;

impl NatsCommands {
    pub(super) fn of(system: Arc<System>, clock: &dyn Clock) -> Self {
        let settings = &system.settings;
        let endpoints = match settings.takes_commands {
            true => system.subjects.endpoints(&settings.servers),
            false => Vec::new(),
        };
        let endpoints = endpoints.into_iter().map(|(name, subject)| Endpoint { name, subject }).collect();
        let started = clock.now();
        Self { system, state: State::Away, started, endpoints, too_slow_at: None }
    }

    /// Moves on by one step. Cancel-safe: all that lasts is in `self`.
    async fn step(&mut self) -> Result<Option<(Source, Received)>, Ended> {
        match &mut self.state {
            State::Away => {
                let system = Arc::clone(&self.system);
                let subjects = self.endpoints.iter().map(|endpoint| endpoint.subject.clone()).collect();
                self.state = State::Connecting(Box::pin(async move { Session::open(&system, subjects).await }));
                Ok(None)
            }
            State::Connecting(connecting) => {
                let session = connecting.await?;
                info!(sink = %self.system.settings.name, endpoints = self.endpoints.len(), "taking commands");
                self.state = State::Connected(Box::new(session));
                Ok(None)
            }
            State::Connected(session) => {
                session.answer().await;
                if let Some(over) = &session.over {
                    // What was received before is taken all the same.
                    let rest = session.requests.next().now_or_never().flatten();
                    return rest.map_or_else(|| Err(over.clone()), |received| Ok(Some(received)));
                }
                tokio::select! {
                    biased;
                    word = session.line.word() => {
                        self.on_word(word);
                        Ok(None)
                    }
                    received = session.requests.next() => match received {
                        Some(received) => Ok(Some(received)),
                        None => Err(Ended::other("the connection broke")),
                    },
                }
            }
        }
    }

    fn on_word(&mut self, word: Result<Word, Ended>) {
        let sink = &self.system.settings.name;
        let over = match word {
            Err(over) => over,
            Ok(Word::LameDuck) if self.system.has_others() => {
                Ended::other("the server was about to stop (lame duck mode)")
            }
            Ok(Word::Denied(complaint)) => {
                warn!(%sink, %complaint, "some requests cannot be heard or answered");
                return;
            }
            Ok(Word::TooSlow) => {
                if self.too_slow_at.is_none_or(|at| at.elapsed() > TOO_SLOW_EACH) {
                    self.too_slow_at = Some(Instant::now());
                    warn!(%sink, "requests come faster than they are taken, some are lost without an answer");
                }
                return;
            }
            Ok(Word::LameDuck | Word::Other) => return,
        };
        if let State::Connected(session) = &mut self.state {
            session.over = Some(over);
        }
    }

    /// Answers to a question about the service itself.
    fn answer(&mut self, question: Received) {
        let Some(reply) = question.reply.as_ref().filter(|reply| self.system.subjects.check_reply(reply).is_ok())
        else {
            return;
        };
        let verb = question.subject.split('.').nth(1).unwrap_or_default();
        let body = self.monitoring(verb);
        if let (Some(body), State::Connected(session)) = (body, &mut self.state) {
            session.answers.push_back((reply.to_string(), body));
        }
    }

    fn monitoring(&self, verb: &str) -> Option<Value> {
        let settings = &self.system.settings;
        let servers: Vec<&str> = settings.servers.iter().map(crate::model::ServerName::as_str).collect();
        let mut body = json!({
            "name": NAME,
            "id": self.system.tally.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {
                "instance": settings.instance,
                "prefix": settings.prefix.as_str(),
                "servers": servers.join(","),
            },
        });
        let kind = verb.to_lowercase();
        body["type"] = json!(format!("io.nats.micro.v1.{kind}_response"));
        match verb {
            "PING" => {}
            "INFO" => {
                body["description"] = json!("torrents: commands, answered when their effect was seen");
                let of = |endpoint: &Endpoint| {
                    json!({
                        "name": endpoint.name, "subject": endpoint.subject, "queue_group": QUEUE,
                        "metadata": {"request": "a command's body, JSON", "response": "dtorrent.result/1"},
                    })
                };
                body["endpoints"] = self.endpoints.iter().map(of).collect();
            }
            "STATS" => {
                body["started"] = json!(self.started);
                let of = |endpoint: &Endpoint| {
                    let counts = self.system.tally.of(&endpoint.name);
                    json!({
                        "name": endpoint.name, "subject": endpoint.subject, "queue_group": QUEUE,
                        "num_requests": counts.requests, "num_errors": counts.errors, "last_error": counts.last_error,
                        "processing_time": nanos(counts.processing), "average_processing_time": nanos(counts.average()),
                    })
                };
                body["endpoints"] = self.endpoints.iter().map(of).collect();
            }
            _ => return None,
        }
        Some(body)
    }

    /// Makes a message a command; `None` if it is none of ours.
    fn incoming(&mut self, endpoint: usize, received: Received) -> Option<Incoming> {
        let Received { subject, reply, payload, headers, status, .. } = received;
        let mut names = headers.iter().flat_map(|headers| headers.iter()).map(|(name, _)| name.as_ref());
        if is_answer(status.is_some(), &mut names, reply.as_deref(), &payload) {
            warn!(
                sink = %self.system.settings.name, %subject,
                "an answer to somebody's question came where commands come, and is none"
            );
            return None;
        }
        let user = headers.as_ref().and_then(|headers| headers.get(USER)).map(|user| user.as_str().to_owned());
        let mark = self.endpoints.get(endpoint).map(|endpoint| self.system.tally.requested(&endpoint.name));
        let address = self.system.subjects.command(&subject)?;
        let reply = reply.and_then(|reply| match self.system.subjects.check_reply(&reply) {
            Ok(()) => Some(ReplyTo { topic: reply.to_string(), correlation: mark }),
            Err(error) => {
                info!(sink = %self.system.settings.name, %error, "not answering on the reply subject of a command");
                None
            }
        });
        Some(Incoming {
            address,
            body: payload,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply,
            user,
            // Nobody keeps a request: what is lost before it is in the log is not answered either.
            ack: Box::new(|| {}),
        })
    }
}

#[async_trait]
impl CommandSource for NatsCommands {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        loop {
            match self.step().await {
                Ok(Some((Some(endpoint), received))) => {
                    if let Some(incoming) = self.incoming(endpoint, received) {
                        return Ok(incoming);
                    }
                }
                Ok(Some((None, question))) => self.answer(question),
                Ok(None) => {}
                Err(ended) => {
                    self.state = State::Away;
                    return Err(ended.into());
                }
            }
        }
    }

    /// Leaves, so that who asks is told at once that nobody is there: nobody keeps what would be answered too late.
    async fn pause(&mut self) {
        self.state = State::Away;
    }
}

impl Session {
    async fn open(system: &System, endpoints: Vec<String>) -> Result<Self, Ended> {
        let line = system.dial("commands", WAITING_MAX).await?;
        let client = line.client.clone();
        let failed = |error: async_nats::SubscribeError| Ended::other(format!("cannot subscribe: {error}"));
        let tagged =
            |source: Source, subscriber: Subscriber| subscriber.map(move |received| (source, received)).boxed();
        let (id, mut all) = (&system.tally.id, Vec::new());
        for (number, subject) in endpoints.into_iter().enumerate() {
            let subscriber = client.queue_subscribe(subject, QUEUE.to_owned()).await.map_err(failed)?;
            all.push(tagged(Some(number), subscriber));
        }
        for verb in ["PING", "INFO", "STATS"] {
            for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{NAME}"), format!("$SRV.{verb}.{NAME}.{id}")] {
                all.push(tagged(None, client.subscribe(subject).await.map_err(failed)?));
            }
        }
        client.flush().await.map_err(|error| Ended::other(error.to_string()))?;
        Ok(Self { line, requests: select_all(all), answers: VecDeque::new(), over: None })
    }

    async fn answer(&mut self) {
        while let Some((reply, body)) = self.answers.pop_front() {
            if let Err(error) = self.line.client.publish(reply, Bytes::from(body.to_string())).await {
                debug!(%error, "a monitoring answer was not sent");
            }
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
