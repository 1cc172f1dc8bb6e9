//! One node killed with SIGKILL at random moments of what a mirror does all day: publishing, pulling, mirroring, letting go, moving refs,
//! signing, rotating keys, taking in bundles. After each death: every acknowledged record is there, every kept revision whole, nothing half-visible.
//!
//! `CAIRN_KILLS` is how many deaths (50), `CAIRN_SEED` repeats a run; both are printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cairn_client::{Client, api};
use cairn_testnet::{Testnet, publish, pull, wait_until};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// The node that dies; node 0 lives and publishes.
const VICTIM: usize = 1;
/// Short patience, so that mirroring is under way when death comes.
const CONFIG: &str = "mirror_lease_s = 6\nmirror_standby_s = 1\nmirror_surplus_s = 1\n";
/// Deaths unless told otherwise.
const KILLS: u64 = 50;
/// Microseconds until death: acts take some milliseconds on an idle machine, and many on a busy one.
const LIVES_US: [u64; 3] = [8_000, 30_000, 160_000];
/// Repos of the publisher that live; what is published besides replaces the oldest's place in the mirror.
const OTHERS: usize = 12;

/// What the victim is asked to do while death comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Publish,
    Pull,
    Mirror,
    LetGo,
    Tag,
    Advise,
    Rotate,
    Apply,
}

const ACTS: [Act; 8] =
    [Act::Publish, Act::Pull, Act::Mirror, Act::LetGo, Act::Tag, Act::Advise, Act::Rotate, Act::Apply];

/// What the victim has acknowledged, and must keep.
#[derive(Default)]
struct Word {
    /// `REPO@REVISION` that it published or pulled.
    whole: BTreeSet<String>,
    /// `REPO@REVISION` that it was seen to hold for a policy that still stands.
    mirrored: BTreeSet<String>,
    /// `REPO@TAG` and its revision.
    tags: BTreeMap<String, String>,
    /// Names of advisories.
    advisories: BTreeSet<String>,
    /// The publisher's epoch.
    epoch: u64,
    /// Numbers of heads of `own/a`.
    published: u64,
}

struct Campaign {
    net: Testnet,
    dice: StdRng,
    work: tempfile::TempDir,
    word: Word,
    /// Repos of the publisher, each at its newest revision.
    others: Vec<(String, String)>,
    acknowledged: BTreeMap<Act, u64>,
    lost: BTreeMap<Act, u64>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_keeps_its_word() -> Result<()> {
    let kills = number("CAIRN_KILLS").unwrap_or(KILLS);
    let seed = number("CAIRN_SEED").unwrap_or_else(rand::random);
    eprintln!("CAIRN_KILLS={kills} CAIRN_SEED={seed}");
    let mut campaign = Campaign::start(seed).await?;
    for round in 0..kills {
        let ended = campaign.round().await.with_context(|| format!("round {round} of CAIRN_SEED={seed}"));
        ended.inspect_err(|_| campaign.tell_the_log())?;
    }
    eprintln!("{kills} kills; acknowledged {:?}, cut short {:?}", campaign.acknowledged, campaign.lost);
    let sum = |counts: &BTreeMap<Act, u64>| counts.values().sum::<u64>();
    ensure!(sum(&campaign.acknowledged) > kills / 10, "hardly anything was acknowledged");
    ensure!(sum(&campaign.lost) > kills / 10, "hardly anything was cut short");
    campaign.net.stop().await;
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

impl Campaign {
    async fn start(seed: u64) -> Result<Self> {
        let net = Testnet::start_configured(CAIRN, 2, &[], &[CONFIG, CONFIG]).await?;
        let mut campaign = Self {
            net,
            dice: StdRng::seed_from_u64(seed),
            work: tempfile::tempdir()?,
            word: Word::default(),
            others: Vec::new(),
            acknowledged: BTreeMap::new(),
            lost: BTreeMap::new(),
        };
        let path = campaign.folder()?;
        campaign.net.publish(VICTIM, &path, "own/a").await?;
        campaign.word.published = 1;
        for _ in 0..OTHERS {
            campaign.publish_elsewhere().await?;
        }
        Ok(campaign)
    }

    async fn round(&mut self) -> Result<()> {
        if self.dice.random_ratio(1, 3) {
            self.publish_elsewhere().await?;
        }
        let act = ACTS[self.dice.random_range(0..ACTS.len())];
        let longest = LIVES_US[self.dice.random_range(0..LIVES_US.len())];
        let life = Duration::from_micros(self.dice.random_range(0..longest));
        let is_acknowledged = self.act(act, life).await?;
        *if is_acknowledged { &mut self.acknowledged } else { &mut self.lost }.entry(act).or_default() += 1;
        self.net.node_mut(VICTIM).kill().await?;
        self.net.restart(VICTIM).await?;
        self.check().await.with_context(|| format!("after {act:?}, killed after {life:?}"))
    }

    /// What the victim wrote lately: the home goes with the test.
    fn tell_the_log(&self) {
        let log = std::fs::read_to_string(self.net.node(VICTIM).home().join("stderr.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("the victim's log ends:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }

    /// Begins an act, and lets it go on for `life`. Whether the victim acknowledged it before.
    async fn act(&mut self, act: Act, life: Duration) -> Result<bool> {
        match act {
            Act::Publish => self.publish(life).await,
            Act::Pull => self.pull(life).await,
            Act::Mirror => self.mirror(life).await,
            Act::LetGo => self.let_go(life).await,
            Act::Tag => self.tag(life).await,
            Act::Advise => self.advise(life).await,
            Act::Rotate => self.rotate(life).await,
            Act::Apply => self.apply(life).await,
        }
    }

    async fn publish(&mut self, life: Duration) -> Result<bool> {
        let path = self.folder()?;
        let client = self.net.client(VICTIM).clone();
        let done = within(life, async move { publish(&client, &path, "own/a").await }).await;
        let Some(published) = done else { return Ok(false) };
        self.word.whole.insert(format!("own/a@{}", published.revision));
        self.word.published = published.number.max(self.word.published);
        Ok(true)
    }

    async fn pull(&mut self, life: Duration) -> Result<bool> {
        let (repo, revision) = self.others[self.dice.random_range(0..self.others.len())].clone();
        let name = format!("{repo}@{revision}");
        let ask = api::PullRequest { repo: name.clone(), ..api::PullRequest::default() };
        // It has just come up, and has yet to hear who holds what.
        let client = self.net.client(VICTIM);
        wait_until("the victim knows it", || async { Ok(client.resolve(name.as_str()).await.is_ok()) }).await?;
        let client = client.clone();
        let done = within(life, async move { pull(&client, ask).await }).await;
        if done.is_some() {
            self.word.whole.insert(name);
        }
        Ok(done.is_some())
    }

    /// Mirrors everything of the publisher; what is seen to be held is the victim's word until it lets go.
    async fn mirror(&mut self, life: Duration) -> Result<bool> {
        let client = self.net.client(VICTIM).clone();
        let asked = client.clone();
        if within(life, async move { Ok(asked.mirror_add("pub/*").await?) }).await.is_none() {
            return Ok(false);
        }
        tokio::time::sleep(life).await;
        let Some(list) = within(life, async move { Ok(client.mirror_list().await?) }).await else { return Ok(false) };
        let held = list.repos.into_iter().filter(|repo| repo.state == "held");
        let held: Vec<String> = held.map(|repo| format!("{}@{}", repo.repo, repo.revision)).collect();
        self.word.mirrored.extend(held);
        Ok(true)
    }

    /// Stops mirroring, so that what only the policy kept is collected. What was pulled stays.
    async fn let_go(&mut self, life: Duration) -> Result<bool> {
        let client = self.net.client(VICTIM).clone();
        // From the moment of asking either answer is right for what only the policy kept.
        self.word.mirrored.clear();
        let done = within(life, async move { Ok(client.mirror_remove("pub/*").await?) }).await;
        tokio::time::sleep(life).await;
        Ok(done.is_some())
    }

    async fn tag(&mut self, life: Duration) -> Result<bool> {
        let tag = format!("t{}", self.dice.random_range(0..u32::MAX));
        let client = self.net.client(VICTIM).clone();
        let ask = api::SetRefRequest { repo: "own/a".into(), r#ref: tag.clone(), tag: true };
        let done = within(life, async move { Ok(client.set_ref(ask).await?) }).await;
        let Some(set) = done else { return Ok(false) };
        self.word.tags.insert(format!("own/a@{tag}"), set.revision);
        Ok(true)
    }

    async fn advise(&mut self, life: Duration) -> Result<bool> {
        let name = format!("a{}", self.dice.random_range(0..u32::MAX));
        let client = self.net.client(VICTIM).clone();
        let ask = api::AdviseRequest {
            name: name.clone(),
            category: "deprecated".into(),
            subjects: vec!["own".into()],
            ..api::AdviseRequest::default()
        };
        let done = within(life, async move { Ok(client.advise(ask).await?) }).await;
        if done.is_some() {
            self.word.advisories.insert(name);
        }
        Ok(done.is_some())
    }

    async fn rotate(&mut self, life: Duration) -> Result<bool> {
        let client = self.net.client(VICTIM).clone();
        let ask = api::KeyRotateRequest { publisher: "own".into(), ..api::KeyRotateRequest::default() };
        let done = within(life, async move { Ok(client.key_rotate(ask).await?) }).await;
        let Some(publisher) = done.and_then(|rotated| rotated.publisher) else { return Ok(false) };
        self.word.epoch = publisher.epoch;
        Ok(true)
    }

    /// Takes in a bundle of the publisher's, of one repo or all: whole once it is acknowledged.
    async fn apply(&mut self, life: Duration) -> Result<bool> {
        let mut inside = self.others.clone();
        let mut repos = Vec::new();
        if self.dice.random_ratio(2, 3) {
            inside = vec![inside.swap_remove(self.dice.random_range(0..inside.len()))];
            repos = inside.iter().map(|(repo, revision)| format!("{repo}@{revision}")).collect();
        }
        let path = self.work.path().join("bundle.cairn").display().to_string();
        let create = api::BundleCreateRequest { repos, path: path.clone(), ..api::BundleCreateRequest::default() };
        let mut created = self.net.client(0).bundle_create(create).await?;
        while created.next().await?.is_some() {}
        let client = self.net.client(VICTIM).clone();
        let done = within(life, async move {
            let ask = api::BundleApplyRequest { path, ..api::BundleApplyRequest::default() };
            let mut events = client.bundle_apply(futures::stream::once(async { ask })).await?;
            while let Some(event) = events.next().await? {
                if let Some(api::bundle_apply_event::Event::Done(_)) = event.event {
                    return Ok(());
                }
            }
            bail!("it ended without a result")
        });
        if done.await.is_none() {
            return Ok(false);
        }
        self.word.whole.extend(inside.iter().map(|(repo, revision)| format!("{repo}@{revision}")));
        Ok(true)
    }

    async fn check(&self) -> Result<()> {
        let client = self.net.client(VICTIM);
        for name in self.word.whole.union(&self.word.mirrored) {
            let report = self.net.verify(VICTIM, name).await.with_context(|| format!("{name} is gone"))?;
            ensure!(report.ok, "{name}: {report:?}");
            let shown = client.show(name.as_str()).await?.repo.context("no repo")?;
            ensure!(shown.held, "{name} is not held any more");
        }
        for (name, revision) in &self.word.tags {
            let found = client.resolve(name.as_str()).await.with_context(|| format!("{name} is gone"))?;
            ensure!(found.revision == *revision, "{name} moved");
        }
        let said = client.advisories(api::AdvisoriesRequest::default()).await?.advisories;
        let said: BTreeSet<&str> = said.iter().map(|advisory| advisory.name.as_str()).collect();
        let missing: Vec<_> = self.word.advisories.iter().filter(|name| !said.contains(name.as_str())).collect();
        ensure!(missing.is_empty(), "advisories are gone: {missing:?}");
        let own = client.publisher(api::PublisherRequest { publisher: "own".into() }).await?;
        ensure!(own.own && own.epoch >= self.word.epoch, "epoch {} after {}", own.epoch, self.word.epoch);
        self.check_history(client).await?;
        self.check_nothing_is_half_visible(client).await
    }

    /// Numbers go up by one in an epoch, and none that was acknowledged is missing.
    async fn check_history(&self, client: &Client) -> Result<()> {
        let ask = api::HistoryRequest { repo: "own/a".into(), limit: 500, ..api::HistoryRequest::default() };
        let history = client.history(ask).await?.revisions;
        ensure!(history.iter().all(|past| past.state == "current" || past.state == "past"), "{history:?}");
        let of = |epoch: u64| history.iter().filter(move |past| past.epoch == epoch).map(|past| past.number);
        for epoch in history.iter().map(|past| past.epoch).collect::<BTreeSet<_>>() {
            let numbers: Vec<u64> = of(epoch).collect();
            let expected: Vec<u64> = (1..=numbers.len() as u64).rev().collect();
            ensure!(numbers == expected, "epoch {epoch}: {numbers:?}");
        }
        Ok(())
    }

    /// What is listed as held is whole, whether it was acknowledged or not.
    async fn check_nothing_is_half_visible(&self, client: &Client) -> Result<()> {
        let repos = client.list(api::ListRequest::default()).await?.repos;
        for repo in repos.iter().filter(|repo| repo.held) {
            let name = format!("{}@{}", repo.repo, repo.revision);
            let report = self.net.verify(VICTIM, &name).await.with_context(|| format!("{name} is listed as held"))?;
            ensure!(report.ok, "{name} is listed as held: {report:?}");
        }
        Ok(())
    }

    /// The publisher that lives makes a repo, or another revision of one.
    async fn publish_elsewhere(&mut self) -> Result<()> {
        let path = self.folder()?;
        let at = self.others.len();
        let at = if at < OTHERS { at } else { self.dice.random_range(0..at) };
        let repo = format!("pub/m{at}");
        let published = self.net.publish(0, &path, &repo).await?;
        self.others.retain(|(known, _)| *known != repo);
        self.others.push((repo, published.revision));
        Ok(())
    }

    /// Files that lie in the store's database, in one file of its own, and, some of them, in others' revisions too.
    fn folder(&mut self) -> Result<PathBuf> {
        let folder = self.work.path().join(format!("f{}", self.dice.random_range(0..u64::MAX)));
        std::fs::create_dir(&folder)?;
        let common = self.dice.random_range(0..6u64);
        write(&folder.join("common.bin"), common, 150_000)?;
        write(&folder.join("small.txt"), self.dice.random_range(0..u64::MAX), 300)?;
        let large = self.dice.random_range(20_000..600_000);
        write(&folder.join("large.bin"), self.dice.random_range(0..u64::MAX), large)?;
        Ok(folder)
    }
}

fn write(path: &Path, seed: u64, bytes: usize) -> Result<()> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    Ok(std::fs::write(path, data)?)
}

/// What an act came to within its time; nothing if death comes first. Then it is still under way: a call that is given up would be
/// cancelled, and the node is to die in the middle of it.
async fn within<T: Send + 'static>(life: Duration, act: impl Future<Output = Result<T>> + Send + 'static) -> Option<T> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let mut acts = tokio::task::JoinSet::new();
    acts.spawn(async move { drop(reply.send(act.await)) });
    acts.detach_all();
    tokio::time::timeout(life, answer).await.ok()?.ok()?.ok()
}
