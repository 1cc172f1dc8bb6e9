//! Six hosts whose line is cut in the middle while both halves publish: each half goes on by itself, and when the line is mended all
//! know the same and hold as many copies as were asked for. Driven as a person would, by the command line on each host.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cairn_testnet::Hosts;
use serde_json::Value;

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// Short patience, so that a test sees what takes minutes in life.
const CONFIG: &str = "mirror_lease_s = 6\nmirror_standby_s = 1\nmirror_surplus_s = 1\n";
/// Publisher and host; the other hosts of its half mirror.
const PUBLISHERS: [(&str, usize); 2] = [("acme", 0), ("zoo", 3)];
const MIRRORS: [usize; 4] = [1, 2, 4, 5];
/// The half that is cut off.
const OTHER_HALF: [usize; 3] = [3, 4, 5];
const PATIENCE: Duration = Duration::from_secs(180);

struct Parted {
    hosts: Hosts,
    nodes: Vec<Child>,
    work: tempfile::TempDir,
    realm: String,
}

impl Drop for Parted {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill().and_then(|()| node.wait()); // It may have ended.
        }
    }
}

#[test]
fn halves_that_both_publish_agree_when_the_line_between_them_is_mended() -> Result<()> {
    let Some(mut parted) = Parted::start()? else { return Ok(()) };
    for mirror in MIRRORS {
        for (publisher, _) in PUBLISHERS {
            parted.cairn(mirror, &["mirror", "add", &format!("{publisher}/*"), "--copies", "3"])?;
        }
    }
    let mut newest = BTreeMap::new();
    parted.publish(&mut newest, &["one", "two"])?;
    parted.until("both publishers' repos are on two mirrors each", |parted| parted.wrong(&newest, &MIRRORS))?;

    parted.hosts.part(&OTHER_HALF)?;
    parted.publish(&mut newest, &["two", "three", "four"])?;
    for (publisher, host) in PUBLISHERS {
        let newest = newest.iter().filter(|(repo, _)| repo.starts_with(publisher) && !repo.ends_with("one"));
        let newest = newest.map(|(repo, revision)| (repo.clone(), revision.clone())).collect();
        let near = MIRRORS.map(|mirror| mirror).into_iter().filter(|mirror| mirror / 3 == host / 3).collect::<Vec<_>>();
        parted.until("each half mirrors what it publishes", |parted| parted.wrong(&newest, &near))?;
    }
    let known = parted.known(1)?;
    ensure!(
        known.get("zoo/two") != newest.get("zoo/two") && !known.contains_key("zoo/three"),
        "no line, yet: {known:?}"
    );

    parted.hosts.mend()?;
    let mended = Instant::now();
    parted.until("all know the same", |parted| {
        let wrong = (0..parted.nodes.len()).map(|host| Ok((host, parted.known(host)?)));
        let wrong: Result<Vec<_>> =
            wrong.filter(|known| known.as_ref().map_or(true, |(_, known)| *known != newest)).collect();
        Ok(wrong?.into_iter().map(|(host, known)| format!("host {host} knows {known:?}")).collect())
    })?;
    eprintln!("all know the same {:?} after the line was mended", mended.elapsed());
    parted.until("each repo is on two mirrors", |parted| parted.wrong(&newest, &MIRRORS))?;
    eprintln!("and hold as many copies as were asked for after {:?}", mended.elapsed());
    for mirror in MIRRORS {
        for repo in parted.held(mirror)?.keys() {
            parted.cairn(mirror, &["verify", repo]).with_context(|| format!("{repo} on {mirror}"))?;
        }
    }
    Ok(())
}

impl Parted {
    fn start() -> Result<Option<Self>> {
        let Some(hosts) = Hosts::start(6)? else { return Ok(None) };
        let realm: [u8; 32] = rand::random();
        let realm = realm.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut parted = Self { hosts, nodes: Vec::new(), work: tempfile::tempdir()?, realm };
        let mut listen = Vec::new();
        for host in 0..6 {
            listen.push(parted.launch(host, &listen)?);
        }
        parted.until("all hosts see each other", |parted| {
            let seen = (0..6).map(|host| {
                let peers = parted.cairn(host, &["peers"])?;
                let connected =
                    peers["peers"].as_array().into_iter().flatten().filter(|peer| peer["connected"] == true);
                Ok(connected.count())
            });
            let seen: Vec<usize> = seen.collect::<Result<_>>()?;
            Ok(seen.iter().filter(|seen| **seen < 5).map(|_| format!("{seen:?} are connected")).collect())
        })?;
        Ok(Some(parted))
    }

    fn home(&self, host: usize) -> PathBuf {
        self.work.path().join(format!("home{host}"))
    }

    /// Starts a host's node; the address under which others find it.
    fn launch(&mut self, host: usize, bootstrap: &[String]) -> Result<String> {
        let (home, address) = (self.home(host), self.hosts.address(host));
        std::fs::create_dir_all(&home)?;
        std::fs::write(home.join("config.toml"), CONFIG)?;
        let mut command = self.hosts.command(host, CAIRN);
        command.arg("--home").arg(&home).args(["--json", "node", "--no-mdns", "--until-stdin-closes"]);
        command.args(["--listen", &format!("/ip4/{address}/tcp/0"), "--data-listen", &format!("{address}:0")]);
        command.args(["--api-listen", "127.0.0.1:0", "--http-listen", "none", "--realm", &self.realm]);
        command.args(bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
        command.env("CAIRN_LOG", "info").stderr(std::fs::File::create(home.join("stderr.log"))?);
        let mut node = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = node.stdout.take().context("a node's output")?;
        self.nodes.push(node);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("host {host} said {line:?}"))?;
        Ok(ready["listen"][0].as_str().context("a node's address")?.to_owned())
    }

    /// The command line on a host: its result.
    fn cairn(&self, host: usize, arguments: &[&str]) -> Result<Value> {
        let output = self
            .hosts
            .command(host, CAIRN)
            .arg("--home")
            .arg(self.home(host))
            .arg("--json")
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let last = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
        serde_json::from_slice(last).with_context(|| format!("{arguments:?}"))
    }

    /// Both publishers publish these, new bytes each time.
    fn publish(&self, newest: &mut BTreeMap<String, String>, names: &[&str]) -> Result<()> {
        for (publisher, host) in PUBLISHERS {
            for name in names {
                let (path, repo) = (self.work.path().join("weights.bin"), format!("{publisher}/{name}"));
                write(&path, 200_000)?;
                let published = self.cairn(host, &["publish", &path.display().to_string(), &repo])?;
                newest.insert(repo, published["revision"].as_str().context("a revision")?.to_owned());
            }
        }
        Ok(())
    }

    /// Repos that a host knows, with their newest revisions.
    fn known(&self, host: usize) -> Result<BTreeMap<String, String>> {
        let listed = self.cairn(host, &["ls"])?;
        let repos = listed["repos"].as_array().context("repos")?;
        let text = |repo: &Value, key: &str| repo[key].as_str().unwrap_or_default().to_owned();
        Ok(repos.iter().map(|repo| (text(repo, "repo"), text(repo, "revision"))).collect())
    }

    /// Repos that a mirror holds whole: revision, and why it holds it.
    fn held(&self, mirror: usize) -> Result<BTreeMap<String, (String, String)>> {
        let status = self.cairn(mirror, &["mirror", "status"])?;
        let repos = status["repos"].as_array().context("repos")?.iter().filter(|repo| repo["state"] == "held");
        let text = |repo: &Value, key: &str| repo[key].as_str().unwrap_or_default().to_owned();
        Ok(repos.map(|repo| (text(repo, "repo"), (text(repo, "revision"), text(repo, "why")))).collect())
    }

    /// Which of these revisions are not on two of the mirrors, and what those say that hold them.
    fn wrong(&self, newest: &BTreeMap<String, String>, mirrors: &[usize]) -> Result<Vec<String>> {
        let held: Vec<_> = mirrors.iter().map(|mirror| Ok((mirror, self.held(*mirror)?))).collect::<Result<_>>()?;
        let wrong = newest.iter().filter_map(|(repo, revision)| {
            let on = held.iter().filter_map(|(mirror, held)| Some((mirror, held.get(repo)?)));
            let on: Vec<_> =
                on.filter(|(_, (held, _))| held == revision).map(|(mirror, (_, why))| (mirror, why)).collect();
            (on.len() != 2).then(|| format!("{repo} is on {on:?}"))
        });
        Ok(wrong.collect())
    }

    /// Looks until nothing is wrong.
    fn until(&mut self, what: &str, wrong: impl Fn(&Self) -> Result<Vec<String>>) -> Result<()> {
        let started = Instant::now();
        loop {
            let still = wrong(self)?;
            if still.is_empty() {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}: {still:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn write(path: &Path, bytes: usize) -> Result<()> {
    let (mut data, seed) = (vec![0; bytes], rand::random::<[u8; 32]>());
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut data);
    Ok(std::fs::write(path, data)?)
}
