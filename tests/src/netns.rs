//! A network of its own for each node: namespaces joined by a bridge, parted and made lossy by
//! nftables. Needs root, `ip` (Debian: iproute2) and `nft` (nftables).
//!
//! The harness sits on the bridge, so clients reach every node whatever is between the nodes: the
//! rules stand where frames are forwarded.
//!
//! **Invariant:** every name made here holds the id of this process, and everything with such a name
//! is removed when the [`Spaces`] are dropped; what a killed process left is removed by the next.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// How names of namespaces begin, before the process id.
const PREFIX: &str = "natter-it-";

static MADE: AtomicU32 = AtomicU32::new(0);

/// What is wrong between the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing arrives from the first at the second.
    pub blocked: BTreeSet<(usize, usize)>,
    /// This many of a thousand packets between nodes are lost, at most 999.
    pub loss_per_1000: u32,
}

/// One namespace for each node.
#[derive(Debug)]
pub struct Spaces {
    tag: String,
    subnet: String,
    nodes: usize,
}

impl Spaces {
    /// Makes `nodes` namespaces.
    ///
    /// # Errors
    /// If that is not possible here; the message says what is missing.
    pub fn new(nodes: usize) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "namespaces need root");
        run("ip", &["-V"]).context("no `ip` (Debian: apt-get install iproute2)")?;
        run("nft", &["--version"]).context("no `nft` (Debian: apt-get install nftables)")?;
        remove_left_behind()?;
        let (pid, made) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let place = pid.wrapping_add(made.wrapping_mul(1031));
        // 198.18.0.0/15 is for tests of networks and nobody's home.
        let subnet = format!("198.{}.{}", 18 + (place >> 8) % 2, place % 256);
        let spaces = Self { tag: format!("{pid:x}-{made}"), subnet, nodes };
        spaces.build()?;
        spaces.set(&Weather::default())?;
        Ok(spaces)
    }

    fn build(&self) -> Result<()> {
        let bridge = self.bridge();
        let here = format!("{}.1/24", self.subnet);
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        run("ip", &["address", "add", &here, "dev", &bridge])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        for node in 0..self.nodes {
            let (space, cable) = (self.space(node), self.cable(node));
            let address = format!("{}/24", self.address(node));
            run("ip", &["netns", "add", &space])?;
            let pair = ["type", "veth", "peer", "name", "eth0", "netns", &space];
            run("ip", &[&["link", "add", &cable], &pair[..]].concat())?;
            run("ip", &["link", "set", &cable, "master", &bridge, "up"])?;
            run("ip", &["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", &space, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("nb{}", self.tag)
    }

    fn cable(&self, node: usize) -> String {
        format!("nv{}-{node}", self.tag)
    }

    fn space(&self, node: usize) -> String {
        format!("{PREFIX}{}-{node}", self.tag)
    }

    fn table(&self) -> String {
        format!("natter_it_{}", self.tag.replace('-', "_"))
    }

    /// The address of a node, which listens there.
    pub fn address(&self, node: usize) -> String {
        format!("{}.{}", self.subnet, 10 + node)
    }

    /// The command before the program of a node.
    pub fn launcher(&self, node: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(node)].map(ToOwned::to_owned).into()
    }

    /// Makes it so between the nodes, whatever was before.
    ///
    /// # Errors
    /// If `nft` fails.
    pub fn set(&self, weather: &Weather) -> Result<()> {
        let table = self.table();
        let part = |(from, to): &(usize, usize)| {
            format!(
                "ip saddr {} ip daddr {} drop
",
                self.address(*from),
                self.address(*to)
            )
        };
        let mut rules: Vec<String> = weather.blocked.iter().map(part).collect();
        if weather.loss_per_1000 > 0 {
            let (net, loss) = (format!("{}.0/24", self.subnet), weather.loss_per_1000.min(999));
            rules.push(format!(
                "ip saddr {net} ip daddr {net} numgen random mod 1000 < {loss} drop
"
            ));
        }
        let rules = rules.concat();
        let script = format!(
            "table bridge {table}\ndelete table bridge {table}\ntable bridge {table} {{\n\
             chain forward {{ type filter hook forward priority 0; policy accept;\n{rules}}}\n}}\n"
        );
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut nft = nft.spawn().context("nft")?;
        nft.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
        let done = nft.wait_with_output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "nft: {}\n{script}", said.trim());
        Ok(())
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        let mut gone = vec![run("nft", &["delete", "table", "bridge", &self.table()])];
        for node in 0..self.nodes {
            gone.push(run("ip", &["netns", "delete", &self.space(node)]));
            // The kernel removes the cable too, some time after the last process in the namespace.
            drop(run("ip", &["link", "delete", &self.cable(node)]));
        }
        gone.push(run("ip", &["link", "delete", &self.bridge()]));
        for error in gone.into_iter().filter_map(Result::err) {
            eprintln!("not cleaned up: {error:#}");
        }
    }
}

/// Removes what processes made that did not live to remove it.
fn remove_left_behind() -> Result<()> {
    let dead = |tag: &str| {
        let pid = tag.split('-').next().and_then(|pid| u32::from_str_radix(pid, 16).ok());
        pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    for line in run("ip", &["netns", "list"])?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name.strip_prefix(PREFIX).is_some_and(dead) {
            run("ip", &["netns", "delete", name])?;
        }
    }
    for line in run("ip", &["-o", "link", "show", "type", "bridge"])?.lines() {
        let name = line.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(':');
        if let Some(tag) = name.strip_prefix("nb").filter(|tag| dead(tag)) {
            run("ip", &["link", "delete", name])?;
            let table = format!("natter_it_{}", tag.replace('-', "_"));
            run("nft", &["delete", "table", "bridge", &table]).ok();
        }
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let done =
        Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether plain TCP from one node comes to another and back.
    fn reaches(spaces: &Spaces, from: usize, to: usize) -> bool {
        let script = format!("exec 3<>/dev/tcp/{}/9", spaces.address(to));
        let mut words = spaces.launcher(from);
        words.extend(["timeout", "1", "bash", "-c"].map(ToOwned::to_owned));
        words.push(script);
        let mut command = Command::new(&words[0]);
        let done = command.args(&words[1..]).output().unwrap();
        // Nobody listens: a refusal has come all the way and back, silence has not.
        String::from_utf8_lossy(&done.stderr).contains("refused")
    }

    #[test]
    fn nodes_reach_each_other_as_the_rules_say_and_nothing_is_left() {
        let spaces = match Spaces::new(3) {
            Ok(spaces) => spaces,
            Err(error) => return skip::skipped(error),
        };
        let reached = |pairs: [(usize, usize); 4]| pairs.map(|(a, b)| reaches(&spaces, a, b));
        let pairs = [(0, 1), (1, 0), (1, 2), (0, 2)];
        assert_eq!(reached(pairs), [true; 4]);
        // TCP needs both ways: a one-way rule silences both, a rule between others nobody.
        let blocked = BTreeSet::from([(0, 1)]);
        spaces.set(&Weather { blocked, loss_per_1000: 0 }).unwrap();
        assert_eq!(reached(pairs), [false, false, true, true]);
        spaces.set(&Weather { loss_per_1000: 999, ..Weather::default() }).unwrap();
        assert_eq!(reached(pairs), [false; 4]);
        let bridge = spaces.bridge();
        spaces.set(&Weather::default()).unwrap();
        assert_eq!(reached(pairs), [true; 4]);
        drop(spaces);
        assert!(run("ip", &["link", "show", &bridge]).is_err());
    }
}
