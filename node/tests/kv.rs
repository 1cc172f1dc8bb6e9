//! Keys and values held as bytes, by processes: the same tokens on one node and on two, in half the memory.

use anyhow::{Result, ensure};
use cairn_client::api;
use cairn_testnet::{Generation, Testnet, greedy};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

fn as_bytes(stages: u32) -> api::GenerateRequest {
    api::GenerateRequest { kv: "int8".to_owned(), ..greedy("acme/tiny", &"Once upon a time ".repeat(30), 100, stages) }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_as_bytes_give_the_same_tokens_on_one_node_and_on_two() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    net.publish(0, MODEL.as_ref(), "acme/tiny").await?;
    net.knows(1, "acme/tiny").await?;
    let alone = Generation::of(net.client(0), as_bytes(1)).await?;
    let halves = Generation::of(net.client(0), api::GenerateRequest { kv: String::new(), ..as_bytes(1) }).await?;
    ensure!(halves.done.cached_tokens == 0, "pages of bytes are no pages of halves");
    let apart = Generation::of(net.client(1), as_bytes(2)).await?;
    ensure!(apart.tokens == alone.tokens, "{:?} and {:?}", alone.tokens, apart.tokens);
    let again = Generation::of(net.client(0), as_bytes(1)).await?;
    ensure!(again.tokens == alone.tokens && again.done.cached_tokens > 0, "{:?}", again.done);

    let plan = |kv: &str| api::PlanRequest {
        repo: "acme/tiny".to_owned(),
        context: 512,
        kv: kv.to_owned(),
        ..api::PlanRequest::default()
    };
    for ask in ["f16", "int8"] {
        ensure!(!net.client(0).plan(plan(ask)).await?.stages.is_empty(), "{ask}");
    }
    let refused = net.client(0).plan(plan("int4")).await.expect_err("no such format");
    ensure!(refused.to_string().contains("f16 or int8"), "{refused}");
    net.stop().await;
    Ok(())
}
