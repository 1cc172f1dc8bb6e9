//! Several hosts on one machine: a network namespace each, with a line to a switch that can be parted in two.
//!
//! Needs root and `ip`. Invariant: nothing of it outlives the [`Hosts`] value, and no packet leaves its namespaces.

use std::{
    net::Ipv4Addr,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};

/// Hosts 0, 1, …
#[derive(Debug)]
pub struct Hosts {
    /// Beginning of the namespaces' names: other runs on this machine have another.
    prefix: String,
    count: usize,
}

impl Hosts {
    /// `None` where this machine allows no namespaces, and says so; an error if `CAIRN_REQUIRE_NETWORK` is set, as in CI.
    pub fn start(count: usize) -> Result<Option<Self>> {
        let hosts = Self { prefix: format!("cairn{}", std::process::id()), count };
        if let Err(error) = ip(&["netns", "add", &hosts.switch()]) {
            ensure!(std::env::var_os("CAIRN_REQUIRE_NETWORK").is_none(), "network namespaces are required: {error:#}");
            eprintln!("NOT TESTED: this needs network namespaces (root, `ip netns`): {error:#}");
            return Ok(None);
        }
        for bridge in BRIDGES {
            ip(&["-n", &hosts.switch(), "link", "add", bridge, "type", "bridge"])?;
            ip(&["-n", &hosts.switch(), "link", "set", bridge, "up"])?;
        }
        for index in 0..count {
            hosts.connect(index)?;
        }
        Ok(Some(hosts))
    }

    fn connect(&self, index: usize) -> Result<()> {
        let (switch, host, port) = (self.switch(), self.name(index), port(index));
        ip(&["netns", "add", &host])?;
        ip(&["-n", &host, "link", "set", "lo", "up"])?;
        ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &host])?;
        ip(&["-n", &switch, "link", "set", &port, "master", BRIDGES[0], "up"])?;
        ip(&["-n", &host, "addr", "add", &format!("{}/24", self.address(index)), "dev", "eth0"])?;
        ip(&["-n", &host, "link", "set", "eth0", "up"])
    }

    /// Where a host's line ends.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, index as u8 + 1)
    }

    /// What runs `program` on a host; arguments follow.
    pub fn command(&self, index: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(index), program]);
        command
    }

    /// From now on these reach each other and not the others, and the others each other.
    pub fn part(&self, side: &[usize]) -> Result<()> {
        (0..self.count).try_for_each(|index| self.plug(index, BRIDGES[usize::from(side.contains(&index))]))
    }

    /// All reach all again.
    pub fn mend(&self) -> Result<()> {
        self.part(&[])
    }

    fn plug(&self, index: usize, bridge: &str) -> Result<()> {
        ip(&["-n", &self.switch(), "link", "set", &port(index), "master", bridge])
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    fn name(&self, index: usize) -> String {
        format!("{}-host{index}", self.prefix)
    }
}

/// Two halves of one switch.
const BRIDGES: [&str; 2] = ["half0", "half1"];

fn port(index: usize) -> String {
    format!("port{index}")
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for index in 0..self.count {
            let _ = ip(&["netns", "del", &self.name(index)]); // It may not have been made.
        }
        let _ = ip(&["netns", "del", &self.switch()]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let Output { status, stderr, .. } = Command::new("ip").args(arguments).output().context("starting `ip`")?;
    if !status.success() {
        bail!("`ip {}`: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(())
}
