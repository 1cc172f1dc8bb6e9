//! A stranger that says it keeps everything: no mirror lets its copy go for that.

use std::time::Duration;

use anyhow::{Result, ensure};
use cairn_client::api;
use cairn_testnet::{Testnet, tiny_model, wait_until};

use super::{CAIRN, Lies, meet};

/// Short patience, so that a copy too many would go within seconds.
const CONFIG: &str = "mirror_lease_s = 6\nmirror_standby_s = 1\nmirror_surplus_s = 1\n";
const REPO: &str = "honest/tiny";

async fn standing(net: &Testnet) -> Result<Option<api::MirroredRepo>> {
    Ok(net.client(0).mirror_list().await?.repos.into_iter().find(|repo| repo.repo == REPO))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_not_let_go_for_one_that_nobody_shows() -> Result<()> {
    let mut net = Testnet::start_configured(CAIRN, 2, &["-v"], &[CONFIG, CONFIG]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(1, &tiny_model(folder.path())?, REPO).await?;
    net.client(0).mirror_add("honest/*").await?;
    let is_held = |repo: &Option<api::MirroredRepo>| repo.as_ref().is_some_and(|repo| repo.state == "held");
    wait_until("the mirror holds it", || async { Ok(is_held(&standing(&net).await?)) }).await?;
    net.node_mut(1).kill().await?;
    let _stranger = meet(&net, 7, Lies::default()).await?;
    net.client(0).mirror_by("honest/*", api::MirrorRules { copies: 1, ..api::MirrorRules::default() }).await?;
    wait_until("the stranger's word makes its copy one too many", || async {
        Ok(standing(&net).await?.is_some_and(|repo| repo.why.contains("more than the 1 that are wanted")))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(is_held(&standing(&net).await?), "the last copy is gone");
    ensure!(net.verify(0, REPO).await?.ok);
    net.stop().await;
    Ok(())
}
