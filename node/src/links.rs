//! This node's end of the links to other nodes: its port, what it says of itself.

use std::sync::Arc;

use anyhow::Context as _;
use links::{Config, Me, Peers, Port, Runner, Service};
use supervision::ChildSpec;

use crate::config::Cluster;
use crate::keys::identity::Identity;

/// The links, open and not yet running.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    port: Port,
    runner: Runner,
}

impl Links {
    /// Takes the port.
    ///
    /// # Errors
    /// They name the setting and the cure.
    pub(crate) fn open(
        config: &Cluster,
        identity: &Identity,
        cookie: &str,
        incarnation: u64,
    ) -> anyhow::Result<(Self, Peers)> {
        let identity = links::Identity::new(identity.node_key(), cookie)?;
        let name = config.node_name();
        let me = Me {
            incarnation,
            name,
            address: config.advertise.clone(),
            client_address: String::new(),
            websocket_address: String::new(),
            zone: config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let links =
            Config { listen: config.listen.0, seeds: config.seeds.clone(), ..Config::default() };
        let opened = links::open(links, identity, me).context("the node cannot be linked")?;
        Ok((Self { port: opened.port, runner: opened.runner }, opened.peers))
    }

    /// Where the node is reached by others, HOST:PORT; `None` if it is not.
    pub(crate) fn address(&self) -> Option<String> {
        self.port.bound().map(|bound| bound.to_string())
    }

    /// What the others are told.
    pub(crate) fn advertised(&self) -> String {
        self.port.address()
    }

    /// Tells others where clients reach this node; empty: nowhere.
    pub(crate) fn tell_client_addresses(&self, tcp: &str, websocket: &str) {
        self.port.set_client_addresses(tcp.to_owned(), websocket.to_owned());
    }

    /// What the links counted.
    pub(crate) fn counts(&self) -> links::Counts {
        self.port.counts()
    }

    /// The running part.
    pub(crate) fn child(&self, service: Arc<dyn Service>) -> ChildSpec {
        self.runner.clone().into_child("links", service)
    }
}
