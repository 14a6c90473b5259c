//! The servers that are measured: nodes of our own, started fresh, or one that runs already.
//!
//! Several nodes of our own form one cluster: the first founds it, the others join.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::args::Common;
use crate::clock::{Clock, MS_NS, SECOND_NS};
use crate::link::Target;
use crate::pins::Pins;
use crate::process::cpu_s;
use crate::spawned::{Reached, Spawned};

/// Longest wait until nodes are one cluster.
const FORMED_NS: u64 = 120 * SECOND_NS;

/// Pause between two looks at a cluster.
const LOOK: Duration = Duration::from_millis(250);

/// The servers.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    common: &'a Common,
    clock: Clock,
    /// None of them, if the server is not ours.
    spawned: Vec<Spawned>,
    reached: Vec<Reached>,
    other_pid: Option<u32>,
    pub(crate) pins: Pins,
}

impl<'a> Server<'a> {
    /// Those that `common` asks for.
    pub(crate) fn of(common: &'a Common, clock: Clock) -> Result<Self> {
        let pins = Pins::default();
        if common.spawn {
            let (spawned, reached) = (Vec::new(), Vec::new());
            let mut all = Self { common, clock, spawned, reached, other_pid: None, pins };
            all.form()?;
            return Ok(all);
        }
        let (Some(address), Some(pid)) = (common.server, common.server_pid) else {
            bail!("say --spawn, or --server ADDR --server-pid PID --ca FILE --pins FILE");
        };
        let Some(file) = &common.pins else {
            bail!("--pins FILE is needed to register users: the server's standard output");
        };
        pins.follow_file(file)?;
        let ca = if common.plain { None } else { common.ca.clone() };
        if ca.is_none() && !common.plain {
            bail!("--ca FILE is needed for TLS, or say --plain");
        }
        let reached = vec![Reached { address, ca }];
        Ok(Self { common, clock, spawned: Vec::new(), reached, other_pid: Some(pid), pins })
    }

    fn form(&mut self) -> Result<()> {
        self.add()?;
        self.reached.push(self.spawned[0].ready()?);
        for _ in 1..self.common.nodes {
            self.add()?;
        }
        for node in &self.spawned[1..] {
            self.reached.push(node.ready()?);
        }
        self.formed()
    }

    /// Starts one more node of our own; it joins the others by itself.
    pub(crate) fn add(&mut self) -> Result<()> {
        let seed = self.spawned.first().map(Spawned::seed);
        let node = Spawned::start(self.common, self.clock, &self.pins, seed.as_ref())?;
        self.spawned.push(node);
        Ok(())
    }

    /// SIGKILL for the last of our own nodes.
    pub(crate) fn kill_last(&mut self) -> Result<()> {
        self.spawned.last_mut().map_or(Ok(()), Spawned::kill)
    }

    /// Starts the last of our own nodes again.
    pub(crate) fn start_last(&mut self) -> Result<()> {
        self.spawned.last_mut().map_or(Ok(()), Spawned::start_again)
    }

    /// Waits until our nodes are one cluster, with its replicas and leaders where they should be.
    fn formed(&self) -> Result<()> {
        if self.spawned.len() < 2 {
            return Ok(());
        }
        let begin_ns = self.clock.now_ns();
        while self.spawned[0].members()? != self.spawned.len() {
            if self.clock.now_ns() - begin_ns > FORMED_NS {
                bail!("the nodes did not become one cluster; a log ends:\n{}", self.log_tail());
            }
            thread::sleep(LOOK);
        }
        self.spawned[0].rebalance()
    }

    /// Where to connect: connections are spread over them in turn. The last `spare` nodes get none.
    pub(crate) fn targets(&self, spare: usize) -> Result<Vec<Target>> {
        let target = |reached: &Reached| {
            let tls = match &reached.ca {
                None => None,
                Some(ca) => {
                    let name = ServerName::try_from(self.common.server_name.clone())?;
                    Some((Arc::new(trusting(ca)?), name))
                }
            };
            Ok(Target { address: reached.address, tls })
        };
        let used = self.reached.len().saturating_sub(spare).max(1);
        self.reached[..used].iter().map(target).collect()
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.other_pid.into_iter().chain(self.spawned.iter().map(Spawned::pid)).collect()
    }

    /// Stops and starts them on the same data, so that nothing but their data is left. Does nothing
    /// and returns `false` for a server that is not ours.
    pub(crate) fn restart(&mut self) -> Result<bool> {
        self.spawned.iter_mut().try_for_each(Spawned::stop)?;
        self.spawned.iter_mut().try_for_each(Spawned::start_again)?;
        if !self.spawned.is_empty() {
            self.reached = self.spawned.iter().map(Spawned::ready).collect::<Result<_>>()?;
            self.formed()?;
        }
        Ok(!self.spawned.is_empty())
    }

    /// Ends them by SIGTERM, if they are ours.
    ///
    /// # Errors
    /// If one does not end, or not well.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.spawned.iter_mut().try_for_each(Spawned::stop)
    }

    /// The end of their logs, if they are ours.
    pub(crate) fn log_tail(&self) -> String {
        self.spawned.iter().map(Spawned::log_tail).collect()
    }
}

/// TLS 1.3 that trusts one certificate and resumes nothing: every handshake is a whole one.
fn trusting(ca: &std::path::Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("cannot read {}", ca.display()))?;
    for certificate in certificates {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"natter/1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Waits until the servers use no CPU to speak of, so that what they still do for one phase is not
/// counted in the next. At most ten seconds.
pub(crate) fn quiet(pids: &[u32], clock: Clock) -> Result<()> {
    let begin_ns = clock.now_ns();
    let mut before = cpu_s(pids)?;
    while clock.now_ns() - begin_ns < 10 * SECOND_NS {
        thread::sleep(Duration::from_nanos(300 * MS_NS));
        let now = cpu_s(pids)?;
        if now - before <= 0.01 * pids.len() as f64 {
            break;
        }
        before = now;
    }
    Ok(())
}
