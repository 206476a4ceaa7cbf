//! A connection that is made when it is first needed, and anew after it was lost.

use futures_util::future::BoxFuture;

/// A connection of a command source, which nobody drives but its caller.
pub struct OnDemand<C, E> {
    /// Kept between calls, so that a caller that stops waiting does not abort the attempt.
    attempt: Option<BoxFuture<'static, Result<C, E>>>,
    connection: Option<C>,
}

impl<C, E> OnDemand<C, E> {
    /// Returns the connection; makes one attempt with `connect` if there is none. Cancel-safe.
    pub async fn get(&mut self, connect: impl FnOnce() -> BoxFuture<'static, Result<C, E>>) -> Result<&mut C, E> {
        match self.connection {
            Some(ref mut connection) => Ok(connection),
            None => {
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
