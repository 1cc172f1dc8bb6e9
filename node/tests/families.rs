//! Families beyond the first, through real processes: the tokens of another engine, and what is said of a model that is not
//! served.

use anyhow::{Context, Result, ensure};
use cairn_client::api;
use cairn_testnet::{Generation, Testnet, greedy, real_model, tiny_model};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/model";

/// What llama.cpp says of Gemma 3's weights in F32: see `compute/src/references/real.rs`.
const SAID: &str = include_str!("../../compute/src/references/gemma3-270m.json");

#[tokio::test(flavor = "multi_thread")]
async fn gemma_3_writes_what_llama_cpp_does_on_one_and_on_three_processes() -> Result<()> {
    let Some(path) = real_model("gemma3", "gemma-3-270m.Q4_K_M.gguf")? else { return Ok(()) };
    let net = Testnet::start(CAIRN, 3, &[]).await?;
    let published = net.publish(0, &path, REPO).await?;
    ensure!(published.unserved.is_empty(), "{published:?}");
    let said: serde_json::Value = serde_json::from_str(SAID)?;
    for greedy_of in said["greedy"].as_array().context("prompts")? {
        let (prompt, ids) = (greedy_of["prompt"].as_str().context("a prompt")?, greedy_of["ids"].as_array());
        let want: Option<Vec<u64>> = ids.context("ids")?.iter().map(serde_json::Value::as_u64).collect();
        for stages in [1, 3] {
            let made = Generation::of(net.client(0), greedy(REPO, prompt, 32, stages)).await?;
            let made: Vec<u64> = made.tokens.into_iter().map(u64::from).collect();
            ensure!(Some(&made) == want.as_ref(), "{stages} stages, {prompt:?}: {made:?} against {want:?}");
        }
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_served_is_published_with_the_reason_and_refused_when_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = tiny_model(folder.path())?;
    let config = std::fs::read_to_string(path.join("config.json"))?;
    let capped = config.replacen('{', "{\"final_logit_softcapping\": 30.0, ", 1);
    std::fs::write(path.join("config.json"), capped)?;
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    let published = net.publish(0, &path, REPO).await?;
    ensure!(published.unserved.contains("final_logit_softcapping"), "{published:?}");
    let refused = Generation::of(net.client(0), greedy(REPO, "a", 4, 1)).await.expect_err("not served");
    ensure!(refused.to_string().contains("no model that is served"), "{refused}");
    std::fs::write(path.join("config.json"), config)?;
    ensure!(net.publish(0, &path, REPO).await?.unserved.is_empty(), "what is served has no reason");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_longer_than_the_context_is_refused_with_both_lengths() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    net.publish(0, &tiny_model(folder.path())?, REPO).await?;
    let long = "What's in a name? ".repeat(2000);
    let refused = Generation::of(net.client(0), greedy(REPO, &long, 4, 1)).await.expect_err("too long");
    let text = refused.to_string();
    ensure!(text.contains("tokens long, and the model holds") && text.contains("a shorter prompt"), "{text}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_memory_has_no_room_for_is_refused_and_a_shorter_one_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = tiny_model(folder.path())?;
    let config = std::fs::read_to_string(path.join("config.json"))?;
    let mut config: serde_json::Value = serde_json::from_str(&config)?;
    config["max_position_embeddings"] = serde_json::json!(1 << 20);
    std::fs::write(path.join("config.json"), config.to_string())?;
    let net = Testnet::start_configured(CAIRN, 1, &[], &["stage_memory_bytes = \"64MiB\"\n"]).await?;
    net.publish(0, &path, REPO).await?;
    let ask = |tokens| api::GenerateRequest { max_tokens: tokens, ..greedy(REPO, "a", 4, 0) };
    let refused = Generation::of(net.client(0), ask(1 << 19)).await.expect_err("no room");
    ensure!(refused.to_string().contains("a shorter context"), "{refused}");
    ensure!(Generation::of(net.client(0), ask(4)).await?.tokens.len() == 4);
    net.stop().await;
    Ok(())
}
