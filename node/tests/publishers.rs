//! Publishers among real nodes: members, rotation, warnings that stop a pull, history that all nodes tell alike.

use std::path::Path;

use anyhow::{Result, ensure};
use cairn_client::api;
use cairn_protocol::refusal::Reason;
use cairn_testnet::{Testnet, wait_until};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");

async fn start(nodes: usize) -> Result<Testnet> {
    let net = Testnet::start_configured(CAIRN, nodes, &[], &vec![""; nodes]).await?;
    net.all_know_each_other().await?;
    Ok(net)
}

/// Publishes some bytes; the revision.
async fn publish(net: &Testnet, node: usize, folder: &Path, repo: &str, text: &str) -> Result<String> {
    let path = folder.join("w.bin");
    std::fs::write(&path, text.repeat(1000))?;
    Ok(net.publish(node, &path, repo).await?.revision)
}

async fn resolves_to(net: &Testnet, node: usize, repo: &str, revision: &str) -> Result<()> {
    wait_until("it resolves", || async {
        Ok(net.client(node).resolve(repo).await.is_ok_and(|resolved| resolved.revision == revision))
    })
    .await
}

fn pull(repo: &str, despite: &[&str]) -> api::PullRequest {
    let despite = despite.iter().map(ToString::to_string).collect();
    api::PullRequest { repo: repo.to_owned(), despite, ..api::PullRequest::default() }
}

/// Pulls; how it ended.
async fn pulled(net: &Testnet, node: usize, ask: api::PullRequest) -> Result<api::Pulled, Reason> {
    let mut events = net.client(node).pull(ask).await.map_err(|refusal| refusal.reason)?;
    while let Some(event) = events.next().await.map_err(|refusal| refusal.reason)? {
        if let Some(api::pull_event::Event::Done(done)) = event.event {
            return Ok(done);
        }
    }
    Err(Reason::Internal)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_stops_a_pull_elsewhere_until_it_is_taken_back_or_accepted() -> Result<()> {
    let net = start(2).await?;
    let work = tempfile::tempdir()?;
    let first = publish(&net, 0, work.path(), "acme/tiny", "one").await?;
    let tag = api::SetRefRequest { repo: "acme/tiny".into(), r#ref: "v1".into(), tag: true };
    net.client(0).set_ref(tag).await?;
    resolves_to(&net, 1, "acme/tiny@v1", &first).await?;
    let warning = api::AdviseRequest {
        name: "y1".into(),
        category: "yanked".into(),
        subjects: vec!["acme/tiny@v1".into()],
        text: "wrong weights".into(),
        ..api::AdviseRequest::default()
    };
    net.client(0).advise(warning).await?;
    let evaluation = api::AttestRequest {
        repo: "acme/tiny".into(),
        r#type: "evaluation".into(),
        verdict: "failed".into(),
        ..api::AttestRequest::default()
    };
    net.client(0).attest(evaluation).await?;
    wait_until("both are heard", || async {
        let shown = net.client(1).show("acme/tiny").await?;
        Ok(shown.advisories.iter().any(|said| said.weight == "publisher" && said.action == "refuse")
            && shown.attestations.iter().any(|said| said.verdict == "failed"))
    })
    .await?;
    ensure!(pulled(&net, 1, pull("acme/tiny", &[])).await == Err(Reason::Policy));
    let taken = pulled(&net, 1, pull("acme/tiny", &["y1"])).await.map_err(|reason| anyhow::anyhow!("{reason}"))?;
    ensure!(taken.advisories.len() == 1 && taken.bytes_fetched > 0);
    // A rotation keeps what was warned of.
    let rotated = api::KeyRotateRequest { publisher: "acme".into(), ..api::KeyRotateRequest::default() };
    let rotated = net.client(0).key_rotate(rotated).await?;
    ensure!(rotated.refs.len() == 2 && rotated.publisher.is_some_and(|now| now.epoch == 1));
    wait_until("the new key is heard of", || async {
        let shown = net.client(1).publisher(api::PublisherRequest { publisher: "acme".into() }).await?;
        let said = net.client(1).show("acme/tiny").await?.advisories;
        Ok(shown.epoch == 1 && said.iter().any(|said| said.weight == "publisher"))
    })
    .await?;
    ensure!(pulled(&net, 1, pull("acme/tiny", &[])).await == Err(Reason::Policy));
    let back = api::AdviseRequest { name: "y1".into(), withdraw: true, signer: "acme".into(), ..Default::default() };
    net.client(0).advise(back).await?;
    wait_until("it is taken back", || async { Ok(pulled(&net, 1, pull("acme/tiny", &[])).await.is_ok()) }).await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_publishes_for_its_organisation_from_its_own_node_until_it_is_removed() -> Result<()> {
    let net = start(3).await?;
    let work = tempfile::tempdir()?;
    let new = |handle: &str| api::KeyNewRequest { handle: handle.into(), ..api::KeyNewRequest::default() };
    net.client(0).key_new(new("lab")).await?;
    let bob = net.client(1).key_new(new("bob")).await?.publisher;
    let first = publish(&net, 0, work.path(), "lab/tiny", "one").await?;
    resolves_to(&net, 1, "lab/tiny", &first).await?;
    let refused = net.publish(1, &work.path().join("w.bin"), "lab/tiny").await;
    ensure!(refused.is_err(), "bob is no member yet");
    let members = api::ProfileSetRequest {
        publisher: "lab".into(),
        display_name: "The Lab".into(),
        add_members: vec![bob.clone()],
    };
    net.client(0).profile_set(members).await?;
    wait_until("bob's node heard of it", || async {
        let lab = net.client(1).publisher(api::PublisherRequest { publisher: "lab".into() }).await?;
        Ok(lab.own && lab.display_name == "The Lab")
    })
    .await?;
    let second = publish(&net, 1, work.path(), "lab/tiny", "two").await?;
    for node in 0..3 {
        resolves_to(&net, node, "lab/tiny", &second).await?;
    }
    let ask = api::HistoryRequest { repo: "lab/tiny".into(), ..api::HistoryRequest::default() };
    let told = net.client(2).history(ask).await?.revisions;
    ensure!(told.len() == 2 && told[0].signer == bob && told[0].number == 2 && told[1].number == 1);
    let out = api::KeyRotateRequest {
        publisher: "lab".into(),
        remove_members: vec![bob.clone()],
        ..api::KeyRotateRequest::default()
    };
    net.client(0).key_rotate(out).await?;
    wait_until("bob's node heard that it signs no more", || async {
        let lab = net.client(1).publisher(api::PublisherRequest { publisher: "lab".into() }).await?;
        Ok(lab.epoch == 1 && !lab.own)
    })
    .await?;
    ensure!(net.publish(1, &work.path().join("w.bin"), "lab/tiny").await.is_err());
    resolves_to(&net, 2, "lab/tiny", &second).await?;
    net.stop().await;
    Ok(())
}
