//! Adapters chosen by requests, on real processes: everyone gets what it would get alone, on any split, whoever dies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cairn_client::{
    Client, Reason, ResumeToken,
    api::{self, generate_event::Event},
};
use cairn_testnet::{Generation, Testnet, greedy, random_adapter, tiny_model};
use futures::future::try_join_all;

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/model";
const PROMPT: &str = "JULIET:\nWhat's in a name? ";
const RANKS: [u64; 3] = [2, 8, 20];
/// A coordinator that keeps no layers itself, so that every stage is somebody else's process.
const NO_STAGES_HERE: &str = "stage_memory_bytes = \"0\"\n";
/// Bytes are fetched in groups of 16 KiB; a stage's tensors lie in one piece of the file, which has two ends.
const ENDS: u64 = 2 * 16 * 1024;

fn name(rank: u64) -> String {
    format!("adapters/test/rank{rank}")
}

/// Publishes the built-in model and an adapter of each rank.
async fn published(net: &Testnet, folder: &Path) -> Result<PathBuf> {
    let model = tiny_model(folder)?;
    net.publish(0, &model, REPO).await?;
    for rank in RANKS {
        net.publish(0, &random_adapter(&model, folder, rank, 7)?, &name(rank)).await?;
    }
    Ok(model)
}

fn ask(rank: Option<u64>, tokens: u32, stages: u32) -> api::GenerateRequest {
    api::GenerateRequest { adapter: rank.map(name).unwrap_or_default(), ..greedy(REPO, PROMPT, tokens, stages) }
}

/// One of eight users: three have an adapter, the fourth has none, and so on.
async fn user(client: &Client, user: usize, stages: u32) -> Result<Vec<u32>> {
    let prompt = format!("{} {user}", PROMPT.repeat(1 + user % 5));
    let ask = api::GenerateRequest { prompt, ..ask(RANKS.get(user % 4).copied(), 24, stages) };
    Ok(Generation::of(client, ask).await?.tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_users_with_three_adapters_and_none_get_what_each_gets_alone_on_one_and_on_three_processes() -> Result<()>
{
    let (net, folder) = (Testnet::start(CAIRN, 3, &[]).await?, tempfile::tempdir()?);
    published(&net, folder.path()).await?;
    let plain = Generation::of(net.client(0), ask(None, 24, 1)).await?;
    ensure!(plain.started.adapter.is_empty());
    for rank in RANKS {
        let adapted = Generation::of(net.client(0), ask(Some(rank), 24, 1)).await?;
        ensure!(adapted.tokens != plain.tokens, "the adapter of rank {rank} changes nothing");
        ensure!(adapted.started.adapter == net.client(0).resolve(&name(rank)).await?.revision);
    }
    let mut alone = Vec::new();
    for index in 0..8 {
        alone.push(user(net.client(0), index, 1).await?);
    }
    for stages in [1, 3] {
        let together = try_join_all((0..8).map(|index| user(net.client(0), index, stages))).await?;
        ensure!(together == alone, "{stages} stages: {together:?} against {alone:?}");
    }
    let again = Generation::of(net.client(0), ask(None, 24, 3)).await?;
    ensure!(again.tokens == plain.tokens, "whoever had an adapter left it behind");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_is_killed_is_replaced_by_one_with_the_same_adapter() -> Result<()> {
    let (mut net, folder) = (Testnet::start_configured(CAIRN, 4, &[], &[NO_STAGES_HERE]).await?, tempfile::tempdir()?);
    published(&net, folder.path()).await?;
    let calm = Generation::of(net.client(0), ask(Some(8), 40, 2)).await?;
    ensure!(calm.done.recoveries == 0 && calm.done.stages.len() == 2, "{:?}", calm.done);
    for (place, moment) in [(0, 3), (1, 17)] {
        let client = net.client(0).clone();
        let (mut seen, mut victim, mut killed) = (0, None, false);
        let disturbed = Generation::run(&client, ask(Some(8), 40, 2), async |event| {
            match event {
                Event::Started(started) => {
                    let plan = started.plan.as_ref().context("a plan")?;
                    victim = net.index_of(&plan.stages.get(place).context("that stage")?.node);
                }
                Event::Token(_) => seen += 1,
                _ => (),
            }
            if let (false, Some(index), true) = (killed, victim, seen >= moment) {
                killed = true;
                net.node_mut(index).kill().await?;
            }
            Ok(())
        });
        let disturbed = disturbed.await?;
        ensure!(disturbed.tokens == calm.tokens, "stage {place} killed at token {moment}: {:?}", disturbed.tokens);
        ensure!(disturbed.done.recoveries >= 1, "stage {place} killed at token {moment}: nobody noticed");
        net.restart(victim.context("a victim")?).await?;
        net.all_know_each_other().await?;
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_fetches_the_adapters_tensors_of_its_own_layers() -> Result<()> {
    let (net, folder) = (Testnet::start_configured(CAIRN, 3, &[], &[NO_STAGES_HERE]).await?, tempfile::tempdir()?);
    let model = published(&net, folder.path()).await?;
    let bytes =
        std::fs::metadata(random_adapter(&model, folder.path(), 20, 7)?.join("adapter_model.safetensors"))?.len();
    let plain = Generation::of(net.client(0), ask(None, 4, 2)).await?;
    let cold = Generation::of(net.client(0), ask(Some(20), 4, 2)).await?;
    let warm = Generation::of(net.client(0), ask(Some(20), 4, 2)).await?;
    let mut needed = 0;
    for ((plain, cold), warm) in plain.done.stages.iter().zip(&cold.done.stages).zip(&warm.done.stages) {
        ensure!(plain.node == cold.node && cold.node == warm.node, "{plain:?} {cold:?}");
        let own = cold.bytes_needed - plain.bytes_needed;
        ensure!(own > 0 && cold.bytes_fetched >= own && cold.bytes_fetched <= own + ENDS, "{own} of {cold:?}");
        ensure!(warm.bytes_fetched == 0 && warm.bytes_local == cold.bytes_needed, "{warm:?}");
        needed += own;
    }
    ensure!(needed < bytes && bytes - needed < 64 * 1024, "{needed} of a file of {bytes} with a header");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_generation_keeps_its_adapter_though_the_name_has_moved_on() -> Result<()> {
    let (net, folder) = (Testnet::start(CAIRN, 2, &[]).await?, tempfile::tempdir()?);
    let model = published(&net, folder.path()).await?;
    let whole = Generation::of(net.client(0), ask(Some(8), 30, 1)).await?;
    net.publish(0, &random_adapter(&model, folder.path(), 8, 99)?, &name(8)).await?;
    let other = Generation::of(net.client(0), ask(Some(8), 30, 1)).await?;
    ensure!(other.tokens != whole.tokens, "another adapter under the name");
    let token: ResumeToken = whole.started.resume_token.parse()?;
    ensure!(token.adapter.map(|revision| revision.to_string()) == Some(whole.started.adapter.clone()));
    let received: Vec<api::Token> =
        whole.tokens[..11].iter().map(|id| api::Token { id: *id, ..api::Token::default() }).collect();
    let rest = Generation::of(net.client(1), token.request(ask(Some(8), 30, 1), &received)).await?;
    ensure!(rest.tokens == whole.tokens[11..], "{:?}", rest.tokens);
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_is_none_or_does_not_fit_is_refused_with_the_reason() -> Result<()> {
    let (net, folder) = (Testnet::start(CAIRN, 1, &[]).await?, tempfile::tempdir()?);
    let model = published(&net, folder.path()).await?;
    let client = net.client(0);
    let refused = async |adapter: &str| -> Result<cairn_client::Refusal> {
        let ask = api::GenerateRequest { adapter: adapter.into(), ..ask(None, 4, 1) };
        match Generation::of(client, ask).await {
            Ok(_) => anyhow::bail!("{adapter} was taken"),
            Err(error) => error.downcast::<cairn_client::Refusal>(),
        }
    };
    let no_adapter = refused(REPO).await?;
    ensure!(no_adapter.reason == Reason::BadInput && no_adapter.to_string().contains("adapters/"), "{no_adapter}");
    let nobodys = refused("adapters/test/nobodys").await?;
    ensure!(nobodys.reason == Reason::NotFound, "{nobodys}");

    let config = |path: &Path| path.join("config.json");
    let wider = folder.path().join("wider");
    std::fs::create_dir(&wider)?;
    let text = std::fs::read_to_string(config(&model))?.replace("\"hidden_size\": 128", "\"hidden_size\": 160");
    std::fs::write(config(&wider), text)?;
    net.publish(0, &random_adapter(&wider, folder.path(), 3, 1)?, "adapters/test/wider").await?;
    let misfit = refused("adapters/test/wider").await?;
    ensure!(misfit.reason == Reason::Unsupported && misfit.why.contains("q_proj.lora_A"), "{misfit}");
    ensure!(misfit.to_string().contains("test/model"), "it says for which model: {misfit}");

    let dora = random_adapter(&model, folder.path(), 3, 2)?;
    let text = std::fs::read_to_string(dora.join("adapter_config.json"))?.replacen('{', "{\"use_dora\": true,", 1);
    std::fs::write(dora.join("adapter_config.json"), text)?;
    let unserved = net.publish(0, &dora, "adapters/test/dora").await.err().context("it was published")?;
    ensure!(unserved.to_string().contains("use_dora"), "{unserved}");
    net.publish(0, &dora, "datasets/test/dora").await.context("stored as something else")?;

    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare)?;
    std::fs::write(bare.join("README.md"), "none")?;
    net.publish(0, &bare, "adapters/test/bare").await?;
    ensure!(refused("adapters/test/bare").await?.reason == Reason::Unsupported);

    let shown = client.show(name(20)).await?.adapter.context("described")?;
    ensure!((shown.rank, shown.alpha, shown.base_model.as_str(), shown.served) == (20, 20.0, "test/model", true));
    let plan = |adapter: String| api::PlanRequest { repo: REPO.into(), adapter, ..api::PlanRequest::default() };
    let bytes = async |adapter| Ok::<_, anyhow::Error>(client.plan(plan(adapter)).await?.stages[0].bytes);
    ensure!(bytes(name(20)).await? > bytes(String::new()).await?, "an adapter takes memory in a plan");
    net.stop().await;
    Ok(())
}
