//! The command log in memory.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::{COMMAND_MEMORY, COMMANDS_MAX, RESULTS_BYTES_MAX, WAITERS_MAX};
use super::{MemoryStore, State, fits_page};
use crate::model::{CommandId, InfoHash, ServerName, SinkName, Timestamp};
use crate::port::{
    CommandLog, LoggedCommand, LoggedResult, Recorded, ReplyTo, ResultBacklog, StoreError, UnsentResult,
};

#[derive(Clone)]
pub(super) struct Command {
    logged: LoggedCommand,
    result: Option<Bytes>,
    /// Grows with each command.
    number: i64,
    is_running: bool,
    /// Further senders of the same id while it was being executed.
    waiters: Vec<(SinkName, Option<ReplyTo>)>,
}

#[async_trait]
impl CommandLog for MemoryStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        let mut state = self.state();
        state.forget_commands(self.clock.now());
        commands.into_iter().map(|(command, result)| state.record(command, result)).collect()
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        let mut state = self.state();
        state.command(server, id).ok_or_else(|| unknown(id))?.logged.is_started = true;
        Ok(())
    }

    async fn set_begun(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        begun: Vec<InfoHash>,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let command = state.command(server, id).ok_or_else(|| unknown(id))?;
        command.logged.begun = begun;
        command.drop_body();
        Ok(())
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        result: LoggedResult,
    ) -> Result<(), StoreError> {
        self.state().finish(server, id, result)
    }

    async fn result_of(&self, server: Option<&ServerName>, id: &CommandId) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().command(server, id).and_then(|command| command.result.clone()))
    }

    async fn set_running(&self, server: Option<&ServerName>, id: &CommandId, runs: bool) -> Result<(), StoreError> {
        if let Some(command) = self.state().command(server, id) {
            command.is_running = runs;
        }
        Ok(())
    }

    async fn end_earlier_run(&self, was_clean_shutdown: bool) -> Result<(), StoreError> {
        for command in self.state().commands.iter_mut().filter(|command| command.is_unfinished()) {
            let was_running = std::mem::take(&mut command.is_running);
            command.logged.crashes += u32::from(was_running && !was_clean_shutdown);
        }
        Ok(())
    }

    async fn servers_with_unfinished_commands(&self) -> Result<BTreeSet<Option<ServerName>>, StoreError> {
        let state = self.state();
        let unfinished = state.commands.iter().filter(|command| command.is_unfinished());
        Ok(unfinished.map(|command| command.logged.server.clone()).collect())
    }

    async fn unfinished_commands(
        &self,
        server: Option<&ServerName>,
        after: i64,
    ) -> Result<Vec<(i64, LoggedCommand)>, StoreError> {
        let state = self.state();
        let is_meant = |command: &&Command| {
            command.is_unfinished() && command.number > after && command.logged.server.as_ref() == server
        };
        let fits = fits_page(self.options.pages.commands, |command: &&Command| command.logged.body.len());
        let page = state.commands.iter().filter(is_meant).take_while(fits);
        Ok(page.map(|command| (command.number, command.logged.clone())).collect())
    }

    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError> {
        let state = self.state();
        let later = state.results.range(after.saturating_add(1)..).map(|(_, result)| result);
        let unsent = later.filter(|(of, _)| of == sink).map(|(_, result)| result.clone());
        let fits = fits_page(self.options.pages.results, |result: &UnsentResult| result.body.len());
        Ok(unsent.take(usize::from(limit)).take_while(fits).collect())
    }

    fn results_page_bytes(&self) -> usize {
        self.options.pages.results
    }

    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError> {
        let state = self.state();
        let unsent = state.results.values().filter(|(of, _)| of == sink);
        Ok(unsent.fold(ResultBacklog::default(), |backlog, (_, result)| ResultBacklog {
            count: backlog.count + 1,
            bytes: backlog.bytes + length(&result.body),
        }))
    }

    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.state().results.retain(|number, _| !numbers.contains(number));
        Ok(())
    }
}

impl Command {
    fn is_unfinished(&self) -> bool {
        self.result.is_none() || !self.logged.begun.is_empty()
    }

    /// Drops the arguments of a command that has ended.
    fn drop_body(&mut self) {
        if !self.is_unfinished() {
            self.logged.body = Bytes::new();
        }
    }

    /// Notes a further sender. The same address of the same sink gets one result, however often it asks.
    fn add_waiter(&mut self, sink: SinkName, reply: Option<ReplyTo>) -> Recorded {
        let waiter = (sink, reply);
        if (&self.logged.origin, &self.logged.reply) == (&waiter.0, &waiter.1) || self.waiters.contains(&waiter) {
            return Recorded::Running;
        }
        if waiter.1.is_some() && self.waiters.len() as u64 >= WAITERS_MAX {
            return Recorded::WaitersFull;
        }
        self.waiters.push(waiter);
        Recorded::Running
    }
}

impl State {
    fn command(&mut self, server: Option<&ServerName>, id: &CommandId) -> Option<&mut Command> {
        self.commands.iter_mut().find(|c| c.logged.server.as_ref() == server && c.logged.id == *id)
    }

    fn queue_result(&mut self, sink: SinkName, server: Option<ServerName>, body: Bytes, reply: Option<ReplyTo>) {
        self.last_result += 1;
        let number = self.last_result;
        self.results.insert(number, (sink, UnsentResult { number, server, body, reply }));
    }

    fn record(&mut self, command: LoggedCommand, result: Option<LoggedResult>) -> Result<Recorded, StoreError> {
        if let Some(known) = self.command(command.server.as_ref(), &command.id) {
            if command.differs_from(known.logged.digest) {
                return Ok(Recorded::IdTaken);
            }
            let Some(body) = known.result.clone() else { return Ok(known.add_waiter(command.origin, command.reply)) };
            self.queue_result(command.origin, command.server, body, command.reply);
            return Ok(Recorded::Answered);
        }
        let (server, id) = (command.server.clone(), command.id.clone());
        let number = self.commands.last().map_or(1, |last| last.number + 1);
        self.commands.push(Command { logged: command, result: None, number, is_running: false, waiters: Vec::new() });
        if let Some(result) = result {
            self.finish(server.as_ref(), &id, result)?;
        }
        Ok(Recorded::New)
    }

    fn finish(&mut self, server: Option<&ServerName>, id: &CommandId, result: LoggedResult) -> Result<(), StoreError> {
        let command = self.command(server, id).ok_or_else(|| unknown(id))?;
        if command.result.is_some() {
            return Ok(());
        }
        command.result = Some(result.body.clone());
        command.logged.is_answered = true;
        command.drop_body();
        let LoggedCommand { origin, server, reply, .. } = command.logged.clone();
        let waiters = std::mem::take(&mut command.waiters);
        for (sink, reply) in std::iter::once((origin, reply)).chain(waiters) {
            self.queue_result(sink, server.clone(), result.body.clone(), reply);
        }
        Ok(())
    }

    /// Forgets finished commands that are too old, and the oldest of too many and of too many bytes.
    fn forget_commands(&mut self, now: Timestamp) {
        let is_old = |command: &Command| {
            let age_millis = u128::from(now.millis_since(command.logged.received_at));
            !command.is_unfinished() && age_millis >= COMMAND_MEMORY.as_millis()
        };
        self.commands.retain(|command| !is_old(command));
        let is_finished = |command: &&Command| !command.is_unfinished();
        let finished = self.commands.iter().filter(is_finished).filter_map(|command| command.result.as_ref());
        let (mut count, mut bytes) =
            finished.fold((0, 0), |(count, bytes), result| (count + 1, bytes + length(result)));
        self.commands.retain(|command| {
            let Some(result) = command.result.as_ref().filter(|_| !command.is_unfinished()) else { return true };
            let is_excess = count > COMMANDS_MAX || bytes > RESULTS_BYTES_MAX;
            if is_excess {
                count -= 1;
                bytes -= length(result);
            }
            !is_excess
        });
    }
}

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

fn unknown(id: &CommandId) -> StoreError {
    StoreError::Io(format!("command {id} is not in the log").into())
}
