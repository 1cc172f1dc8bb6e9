//! A model quantised by a node that did not have it, and run by one that did not make it.

use anyhow::{Context, Result, ensure};
use cairn_client::api::{self, publish_event::Event};
use cairn_protocol::refusal::{Reason, Refusal};
use cairn_testnet::{Generation, Testnet, greedy};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

async fn quantise(net: &Testnet, node: usize, source: &str, repo: &str, to: &str) -> Result<api::Published, Refusal> {
    let ask = api::QuantiseRequest {
        source: source.to_owned(),
        repo: repo.to_owned(),
        r#type: to.to_owned(),
        ..api::QuantiseRequest::default()
    };
    let mut events = net.client(node).quantise(ask).await?;
    while let Some(event) = events.next().await? {
        if let Some(Event::Done(done)) = event.event {
            return Ok(done);
        }
    }
    Err(Refusal::internal(repo, "the call ended without a result"))
}

async fn tokens(net: &Testnet, node: usize, repo: &str) -> Result<Vec<u32>> {
    Ok(Generation::of(net.client(node), greedy(repo, "Once upon a time", 32, 1)).await?.tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quantised_model_is_signed_with_its_lineage_and_runs_anywhere() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let full = net.publish(0, MODEL.as_ref(), "acme/tiny").await?;
    net.knows(1, "acme/tiny").await?;
    let made = quantise(&net, 1, "acme/tiny", "lab/tiny-q8", "q8_0").await?;
    ensure!(made.bytes < full.bytes, "{} of {} bytes", made.bytes, full.bytes);

    let shown = net.client(1).show("lab/tiny-q8").await?;
    ensure!(shown.parents == [full.revision.clone()], "{:?}", shown.parents);
    let said = |key: &str| shown.metadata.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
    ensure!(
        said("base_model").is_some_and(|base| base.contains(&full.revision)) && said("quantised_to") == Some("q8_0")
    );
    ensure!(shown.repo.as_ref().is_some_and(|repo| repo.quantisation == "Q8_0"), "{:?}", shown.repo);
    ensure!(shown.model.as_ref().is_some_and(|model| model.served), "{:?}", shown.model);

    net.knows(0, "lab/tiny-q8").await?;
    let (want, got) = (tokens(&net, 0, "acme/tiny").await?, tokens(&net, 0, "lab/tiny-q8").await?);
    let alike = want.iter().zip(&got).take_while(|(w, g)| w == g).count();
    ensure!(alike >= 8, "8 bits a weight change no early token: {want:?} and {got:?}");

    let ask = api::GenerateRequest { quantise: "q8_0".to_owned(), ..greedy("acme/tiny", "Once upon a time", 32, 2) };
    let while_loading = Generation::of(net.client(0), ask).await?;
    ensure!(while_loading.tokens == got, "quantised before or while loading: {got:?} and {:?}", while_loading.tokens);
    let refused = api::GenerateRequest { quantise: "q3".to_owned(), ..greedy("acme/tiny", "Once", 1, 1) };
    let refused = Generation::of(net.client(0), refused).await.expect_err("no such type");
    ensure!(refused.to_string().contains("q4_k"), "{refused:#}");

    let again = quantise(&net, 1, "lab/tiny-q8", "lab/tiny-q4", "q4_0").await?;
    let parents = net.client(1).show("lab/tiny-q4").await?.parents;
    ensure!(again.bytes < made.bytes && parents == [made.revision], "a chain of revisions: {parents:?}");
    let left: Vec<_> = std::fs::read_dir(net.node(1).home().join("work")).context("its working folder")?.collect();
    ensure!(left.is_empty(), "{left:?}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_quantised_is_refused_before_anything_is_signed() -> Result<()> {
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    net.publish(0, MODEL.as_ref(), "acme/tiny").await?;
    quantise(&net, 0, "acme/tiny", "lab/q8", "q8_0").await?;
    let refused = [
        (quantise(&net, 0, "acme/tiny", "lab/x", "q3_k").await, Reason::BadInput, "q4_k"),
        (quantise(&net, 0, "lab/q8", "lab/x", "q8_0").await, Reason::BadInput, "no more bits"),
        (quantise(&net, 0, "acme/none", "lab/x", "q8_0").await, Reason::NotFound, "none"),
    ];
    for (result, reason, word) in refused {
        let refusal = result.expect_err("refused");
        let line = refusal.to_string();
        ensure!(refusal.reason == reason && line.contains(word) && !line.contains('\n'), "{line}");
    }
    ensure!(net.client(0).show("lab/x").await.is_err());
    net.stop().await;
    Ok(())
}
