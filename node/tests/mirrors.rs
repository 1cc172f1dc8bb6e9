//! Several mirrors with policies: as many copies as were asked for, whoever dies, and none too many.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Result, ensure};
use cairn_client::api;
use cairn_testnet::{Testnet, wait_until};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// Short patience, so that a test sees what takes minutes in life.
const CONFIG: &str = "mirror_lease_s = 6\nmirror_standby_s = 1\nmirror_surplus_s = 1\n";

/// One publisher and so many mirrors.
async fn start(mirrors: usize) -> Result<Testnet> {
    let configs = vec![CONFIG; mirrors + 1];
    let net = Testnet::start_configured(CAIRN, mirrors + 1, &[], &configs).await?;
    net.all_know_each_other().await?;
    Ok(net)
}

async fn publish(net: &Testnet, folder: &Path, name: &str, bytes: usize) -> Result<()> {
    let path = folder.join(format!("{name}.bin"));
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut data);
    std::fs::write(&path, data)?;
    net.publish(0, &path, &format!("acme/{name}")).await?;
    Ok(())
}

fn copies(copies: u32) -> api::MirrorRules {
    api::MirrorRules { copies, ..api::MirrorRules::default() }
}

async fn held(net: &Testnet, mirror: usize) -> Result<BTreeSet<String>> {
    let repos = net.client(mirror).mirror_list().await?.repos;
    Ok(repos.into_iter().filter(|repo| repo.state == "held").map(|repo| repo.repo).collect())
}

/// Copies on the mirrors, of each repo.
async fn counts(net: &Testnet, mirrors: &[usize], names: &[&str]) -> Result<Vec<usize>> {
    let mut counts = vec![0; names.len()];
    for mirror in mirrors {
        let held = held(net, *mirror).await?;
        for (count, name) in counts.iter_mut().zip(names) {
            *count += usize::from(held.contains(&format!("acme/{name}")));
        }
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_together_keep_as_many_copies_as_were_asked_for_also_when_one_dies() -> Result<()> {
    let mut net = start(3).await?;
    let work = tempfile::tempdir()?;
    let names = ["a", "b", "c", "d"];
    for name in names {
        publish(&net, work.path(), name, 300_000).await?;
    }
    // The publisher's own copy is one of the three.
    for mirror in 1..=3 {
        net.client(mirror).mirror_by("acme/*", copies(3)).await?;
    }
    wait_until("each repo is on two mirrors", || async { Ok(counts(&net, &[1, 2, 3], &names).await? == [2; 4]) })
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(counts(&net, &[1, 2, 3], &names).await? == [2; 4], "nobody fetches more, nobody lets go");
    let left = net.client(1).mirror_list().await?.repos;
    for repo in left.iter().filter(|repo| repo.state == "left") {
        ensure!(repo.why.contains("3 copies are known elsewhere, 3 are wanted"), "{}", repo.why);
    }
    net.node_mut(3).kill().await?;
    wait_until("the two that live hold all of it", || async { Ok(counts(&net, &[1, 2], &names).await? == [2; 4]) })
        .await?;
    net.restart(3).await?;
    net.all_know_each_other().await?;
    wait_until("copies too many are let go, and no more", || async {
        Ok(counts(&net, &[1, 2, 3], &names).await? == [2; 4])
    })
    .await?;
    for mirror in 1..=3 {
        for repo in held(&net, mirror).await? {
            ensure!(net.verify(mirror, &repo).await?.ok, "{repo}");
        }
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_and_a_size_bound_what_a_policy_takes_and_status_says_so() -> Result<()> {
    let net = start(1).await?;
    let work = tempfile::tempdir()?;
    for (name, bytes) in [("small", 100_000), ("middle", 200_000), ("large", 900_000)] {
        publish(&net, work.path(), name, bytes).await?;
    }
    let rules = api::MirrorRules { quota_bytes: 250_000, bytes_max: 800_000, ..api::MirrorRules::default() };
    net.client(1).mirror_by("acme/*", rules).await?;
    wait_until("what fits is held, the rest is left", || async {
        let repos = net.client(1).mirror_list().await?.repos;
        let stands = |name: &str, state: &str, why: &str| {
            let repo = repos.iter().find(|repo| repo.repo == format!("acme/{name}"));
            repo.is_some_and(|repo| repo.state == state && repo.why.contains(why))
        };
        Ok(stands("small", "held", "a copy here")
            && stands("middle", "left", "250000 bytes are used up")
            && stands("large", "left", "900000 bytes, the policy takes at most 800000"))
    })
    .await?;
    // With more room the next one comes; with less, what another node keeps goes.
    let rules = api::MirrorRules { bytes_max: 800_000, ..api::MirrorRules::default() };
    net.client(1).mirror_by("acme/*", rules).await?;
    wait_until("both are held", || async { Ok(held(&net, 1).await?.len() == 2) }).await?;
    let rules = api::MirrorRules { quota_bytes: 150_000, ..api::MirrorRules::default() };
    net.client(1).mirror_by("acme/*", rules).await?;
    wait_until("the one that is over the quota has gone", || async { Ok(held(&net, 1).await?.len() == 1) }).await?;
    wait_until("its bytes are freed", || async { Ok(net.client(1).status().await?.bytes_stored < 150_000) }).await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_fetched_than_a_day_may_bring_also_after_a_restart() -> Result<()> {
    let mut net = Testnet::start_configured(CAIRN, 2, &[], &["", "mirror_bytes_per_day = \"350000\"\n"]).await?;
    let work = tempfile::tempdir()?;
    for name in ["a", "b", "c"] {
        publish(&net, work.path(), name, 150_000).await?;
    }
    net.client(1).mirror_by("acme/*", api::MirrorRules::default()).await?;
    wait_until("two are held, one waits for another day", || async {
        let repos = net.client(1).mirror_list().await?.repos;
        let waits = |repo: &&api::MirroredRepo| repo.state == "left" && repo.why.contains("today's 350000 bytes");
        Ok(held(&net, 1).await?.len() == 2 && repos.iter().filter(waits).count() == 1)
    })
    .await?;
    net.node_mut(1).kill().await?;
    net.restart(1).await?;
    net.knows(1, "acme/c").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let list = net.client(1).mirror_list().await?;
    ensure!(held(&net, 1).await?.len() == 2 && list.bytes_today >= 300_000, "{list:?}");
    ensure!(list.bytes_today <= list.bytes_per_day && list.bytes_per_day == 350_000, "{list:?}");
    // What a person asks for is not counted.
    for name in ["a", "b", "c"] {
        net.pull(1, api::PullRequest { repo: format!("acme/{name}"), ..api::PullRequest::default() }).await?;
    }
    net.stop().await;
    Ok(())
}
