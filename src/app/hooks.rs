//! The set-up of hooks: the port for their signals, and what each hooked client is to request there.

use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio::net::TcpListener;

use super::listen;
use crate::config::{self, Config};
use crate::model::{Hook, HookAddress, HookKey, HookSecret, ServerName};

/// The bound port, and the hook of each server whose config wants one.
pub(super) struct HookListener {
    /// The bound port.
    pub listener: TcpListener,
    /// The secret of this run, which every signal has to contain.
    pub secret: HookSecret,
    /// The hook of each server with `hooks = true`.
    pub hooks: BTreeMap<ServerName, Hook>,
}

impl HookListener {
    /// Returns `None` if no server of the config has hooks.
    pub(super) async fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let hooked = config.servers.iter().filter_map(|(name, server)| Some((name, server.hooks.as_ref()?)));
        let hooked: Vec<(&ServerName, &config::Hooks)> = hooked.collect();
        if hooked.is_empty() {
            return Ok(None);
        }
        let listen = config.http.hooks_listen;
        let listener = listen::bind("http.hooks_listen", listen, &config.data_dir).await?;
        // The config may say port 0.
        let bound = listener.local_addr().context("listen for hooks")?;
        // New at each start: a hook of an earlier run that was killed cannot wake this one (docs/decisions/0006).
        let secret = HookSecret::new(rand::random());
        let hook = |(name, hooks): (&ServerName, &config::Hooks)| {
            let address = match &hooks.address {
                Some(address) => address.clone(),
                None => HookAddress::parse(&bound.to_string())?,
            };
            let key = HookKey::new(&config.instance, name)?;
            anyhow::Ok((name.clone(), Hook { key, address, secret: secret.clone(), server: name.clone() }))
        };
        let hooks = hooked.into_iter().map(hook).collect::<anyhow::Result<_>>().context("set up hooks")?;
        Ok(Some(Self { listener, secret, hooks }))
    }
}
