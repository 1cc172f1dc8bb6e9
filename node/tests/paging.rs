//! Keys and values in real processes: what was computed before is found, and sessions that don't fit together give way.

use anyhow::{Result, ensure};
use cairn_client::api;
use cairn_testnet::{Generation, Testnet, greedy, metric, tiny_model, wait_until};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/model";
/// Positions of a page.
const PAGE: u32 = 64;
/// What a plan keeps free beside weights, keys and values.
const PLAN_OVERHEAD_BYTES: f64 = (8 << 20) as f64;

async fn published(net: &Testnet) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, REPO).await?;
    Ok(folder)
}

/// A prompt of a few pages, another one for each number.
fn long_prompt(number: usize) -> String {
    let line = |n: usize| format!("FIRST CITIZEN {}: What say you of matter {}?\n", number * 31 + n, n * 7 + number);
    (0..6).map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_begins_like_an_earlier_one_is_not_computed_again_on_one_or_three_processes() -> Result<()> {
    let net = Testnet::start(CAIRN, 3, &[]).await?;
    let _model = published(&net).await?;
    let (client, prompt) = (net.client(0), long_prompt(1));
    for stages in [1, 3] {
        let first = Generation::of(client, greedy(REPO, &prompt, 90, stages)).await?;
        let again = Generation::of(client, greedy(REPO, &prompt, 90, stages)).await?;
        ensure!(first.tokens == again.tokens, "{:?} against {:?}", first.text, again.text);
        let (tokens, known) = (first.done.prompt_tokens, again.done.cached_tokens);
        ensure!(tokens > 2 * PAGE && first.done.cached_tokens == 0, "{:?}", first.done);
        ensure!(known == (tokens - 1) / PAGE * PAGE || known == tokens - 1, "{known} of {tokens} on {stages} stages");
        // What was generated is known, too, when the conversation goes on.
        let longer = format!("{prompt}{}", first.text);
        let next = Generation::of(client, greedy(REPO, &longer, 20, stages)).await?;
        ensure!(next.done.cached_tokens > tokens, "{} of {tokens} and an answer", next.done.cached_tokens);
        let fresh = Generation::of(net.client(1), greedy(REPO, &longer, 20, stages)).await?;
        ensure!(fresh.done.cached_tokens == 0, "another coordinator finds nothing of the first one's");
        ensure!(fresh.tokens == next.tokens, "{:?} against {:?}", fresh.text, next.text);
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_penalties_and_grammars_see_all_of_a_prompt_that_was_not_computed_again() -> Result<()> {
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    let _model = published(&net).await?;
    let ask = |seed| api::GenerateRequest {
        temperature: Some(0.8),
        seed: Some(seed),
        repetition_penalty: 1.4,
        frequency_penalty: 0.4,
        ..greedy(REPO, &long_prompt(2), 40, 1)
    };
    let first = Generation::of(net.client(0), ask(3)).await?;
    let again = Generation::of(net.client(0), ask(3)).await?;
    ensure!(again.done.cached_tokens > 0 && first.tokens == again.tokens);
    let plain =
        |logprobs| api::GenerateRequest { repetition_penalty: 1.4, logprobs, ..greedy(REPO, &long_prompt(2), 20, 1) };
    let chosen_here = Generation::of(net.client(0), plain(None)).await?;
    let chosen_apart = Generation::of(net.client(0), plain(Some(2))).await?;
    ensure!(chosen_here.tokens == chosen_apart.tokens && chosen_apart.done.cached_tokens > 0);
    net.stop().await;
    Ok(())
}

/// Memory that all users' keys and values don't fit into beside the weights, as the node itself tells it; and what each user is
/// told alone.
async fn tight() -> Result<(String, Vec<Vec<u32>>)> {
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    let _model = published(&net).await?;
    let client = net.client(0);
    let mut alone = Vec::new();
    for user in 0..USERS {
        alone.push(Generation::of(client, asked(user)).await?.tokens);
    }
    let idle =
        async || Ok(metric(client, "cairn_kv_idle_bytes").await? == metric(client, "cairn_kv_pages_bytes").await?);
    wait_until("no session holds a page", idle).await?;
    let (all, kept) =
        (metric(client, "cairn_stage_memory_bytes").await?, metric(client, "cairn_kv_pages_bytes").await?);
    net.stop().await;
    let weights = all - kept;
    // What the users leave behind are most of the pages that they need at the end.
    let pages = PLAN_OVERHEAD_BYTES + kept / 6.0;
    ensure!(pages < kept, "{USERS} users need {kept} bytes of pages, and a plan wants {pages}");
    Ok((format!("stage_memory_bytes = \"{}\"\n", weights + pages), alone))
}

const USERS: usize = 20;

fn asked(user: usize) -> api::GenerateRequest {
    greedy(REPO, &long_prompt(user + 10), 120, 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_do_not_fit_together_all_end_with_their_own_tokens_and_leave_no_page() -> Result<()> {
    let (config, alone) = tight().await?;
    let net = Testnet::start_configured(CAIRN, 1, &[], &[&config]).await?;
    let _model = published(&net).await?;
    let client = net.client(0);
    let users = (0..USERS).map(|user| Generation::of(client, asked(user)));
    let together = futures::future::try_join_all(users).await?;
    let evictions: u32 = together.iter().map(|made| made.done.evictions).sum();
    for (user, made) in together.iter().enumerate() {
        ensure!(made.tokens == alone[user], "user {user}: {:?}", made.text);
        ensure!(made.done.recoveries == 0, "giving way is no loss");
    }
    ensure!(evictions > 0, "they fitted: nothing was tried");
    ensure!(metric(client, "cairn_kv_evictions_total").await? >= f64::from(evictions));
    wait_until("no session holds a page", async || {
        Ok(metric(client, "cairn_kv_idle_bytes").await? == metric(client, "cairn_kv_pages_bytes").await?)
    })
    .await?;
    net.stop().await;
    Ok(())
}
