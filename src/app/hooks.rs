//! The set-up of hooks: the port for their signals, and what each hooked client is to request there.

use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::config::{self, Config};
use crate::http;
use crate::model::{Hook, HookAddress, HookKey, HookSecret, ServerName};

/// The bound port, and the hook of each server whose config wants one.
pub(super) struct HookListener {
    pub listener: TcpListener,
    pub secret: HookSecret,
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
        let listener = http::bind(listen).await.with_context(|| format!("listen for hooks on {listen}"))?;
        let bound = listener.local_addr().context("listen for hooks")?;
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
