//! A connection that is made when it is needed: at first, and after it was lost.

use futures_util::future::BoxFuture;

/// The connection of a command source, driven by whoever waits for a command.
pub struct OnDemand<C, E> {
    /// The attempt that is being made.
    attempt: Option<BoxFuture<'static, Result<C, E>>>,
    connection: Option<C>,
}

impl<C, E> OnDemand<C, E> {
    /// Returns the connection; makes one attempt with `connect` if there is none. Cancel-safe.
    pub async fn get(&mut self, connect: impl FnOnce() -> BoxFuture<'static, Result<C, E>>) -> Result<&mut C, E> {
        match self.connection {
            Some(ref mut connection) => Ok(connection),
            None => {
                // Kept in `self`: a caller that stops waiting (for a stop, say) must not abort a handshake.
                let connected = self.attempt.get_or_insert_with(connect).await;
                self.attempt = None;
                Ok(self.connection.insert(connected?))
            }
        }
    }

    /// Returns the connection, if there is one now.
    pub fn current(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }

    /// Takes the connection out; the next [`get`](Self::get) makes a new one.
    pub fn take(&mut self) -> Option<C> {
        self.attempt = None;
        self.connection.take()
    }
}

impl<C, E> Default for OnDemand<C, E> {
    fn default() -> Self {
        Self { attempt: None, connection: None }
    }
}
