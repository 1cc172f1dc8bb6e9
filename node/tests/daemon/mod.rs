//! A real `cairn node` process for tests: started, spoken to, stopped.
//!
//! Invariant: the process is gone and its folder removed when a [`Daemon`] is dropped.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test; cargo has built it.
pub const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon on free ports of loopback, in a realm of its own.
pub struct Daemon {
    child: Child,
    home: tempfile::TempDir,
    /// What it said when it was ready.
    pub ready: Value,
}

impl Daemon {
    /// Starts one in a new home.
    pub fn start() -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), &[])
    }

    /// Starts one in `home` with more arguments.
    pub fn start_in(home: tempfile::TempDir, more: &[&str]) -> Daemon {
        Daemon::try_start_in(home, more).unwrap_or_else(|why| panic!("the daemon did not start: {why}"))
    }

    /// The same, or what it wrote to stderr when it ended instead.
    pub fn try_start_in(home: tempfile::TempDir, more: &[&str]) -> Result<Daemon, String> {
        let mut child = node(home.path()).args(more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            child.wait().unwrap();
            return Err(why);
        }
        Ok(Daemon { child, home, ready: serde_json::from_str(&line).unwrap() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn api(&self) -> String {
        self.ready["api"].as_str().unwrap().to_string()
    }

    pub fn http(&self) -> String {
        self.ready["http"].as_str().unwrap().to_string()
    }

    /// The port of the first libp2p TCP address.
    pub fn talk_port(&self) -> u16 {
        let addresses = self.ready["listen"].as_array().unwrap();
        let tcp = addresses.iter().find_map(|address| address.as_str().unwrap().split("/tcp/").nth(1)).unwrap();
        tcp.split('/').next().unwrap().parse().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end; what it wrote to stderr comes along. The home stays.
    pub fn wait(mut self) -> (ExitStatus, String, tempfile::TempDir) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "the daemon did not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let home = std::mem::replace(&mut self.home, tempfile::tempdir().unwrap());
        (status, log, home)
    }

    /// Runs a client command against it.
    pub fn cairn(&self, words: &[&str]) -> Output {
        cairn(self.home(), words)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon about to be started.
pub fn node(home: &Path) -> Command {
    let mut command = command(home);
    command
        .args(["node", "--json", "--no-mdns", "--realm", &"7e".repeat(32), "--threads", "1"])
        .args(["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"])
        .args(["--data-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn cairn(home: &Path, words: &[&str]) -> Output {
    command(home).args(words).stdin(Stdio::null()).output().unwrap()
}

/// Without anything of this machine's environment that would change what is tested.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(CAIRN);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAIRN_")) {
        command.env_remove(name);
    }
    command.env("CAIRN_HOME", home);
    command
}

/// The one object on the one line of stderr.
pub fn error_of(output: &Output) -> Value {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "a failure is one line: {text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    for key in ["code", "what", "why", "try"] {
        assert!(value["error"][key].is_string(), "{key} is missing: {text}");
    }
    value["error"].clone()
}
