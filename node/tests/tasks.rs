//! Texts embedded by real processes: the same bits wherever, whoever dies; the reference's vectors; refusals with reasons.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use cairn_client::{
    Client, Reason,
    api::{self, embed_event::Event},
};
use cairn_testnet::{ENCODER_WIDTH, Testnet, encoder_model, minilm_model, tiny_model, wait_until};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/embed";

/// A node that asks others: it has no memory for models itself.
const NO_MODELS_HERE: &str = "stage_memory_bytes = \"0\"\n";

/// What a request came to.
#[derive(Debug)]
struct Embedded {
    vectors: Vec<Vec<f32>>,
    done: api::EmbedDone,
}

async fn embed(client: &Client, texts: &[String]) -> Result<Embedded> {
    watch(client, texts, async |_| Ok(())).await
}

/// Runs a request; `on_event` sees every event before it is counted.
async fn watch(
    client: &Client,
    texts: &[String],
    mut on_event: impl AsyncFnMut(&Event) -> Result<()>,
) -> Result<Embedded> {
    let ask = api::EmbedRequest { repo: REPO.into(), texts: texts.to_vec(), ..Default::default() };
    let mut events = client.embed(ask).await?;
    let mut vectors = Vec::new();
    while let Some(event) = events.next().await? {
        let event = event.event.context("an event")?;
        on_event(&event).await?;
        match event {
            Event::Vectors(piece) => {
                ensure!(piece.first as usize == vectors.len(), "vectors come once and in order");
                vectors.extend(piece.values.chunks(piece.width as usize).map(<[f32]>::to_vec));
            }
            Event::Done(done) => return Ok(Embedded { vectors, done }),
            _ => {}
        }
    }
    anyhow::bail!("it ended without a result")
}

fn sentences(count: usize) -> Vec<String> {
    let words = ["a", "stone", "on", "the", "cairn", "marks", "way", "over", "hills", "that", "nobody", "owns"];
    let word = |i: usize| words[i * 7 % words.len()];
    (0..count).map(|n| (0..3 + n * 5 % 40).map(|i| word(n + i)).collect::<Vec<_>>().join(" ")).collect()
}

async fn published(net: &Testnet, node: usize) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let published = net.publish(node, &encoder_model(folder.path(), 12)?, REPO).await?;
    ensure!(published.unserved.is_empty(), "nodes compute embeddings with it: {}", published.unserved);
    Ok(folder)
}

fn bits(vectors: &[Vec<f32>]) -> Vec<u32> {
    vectors.iter().flatten().map(|value| value.to_bits()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_model_asks_one_that_has_it_and_gets_its_very_bits() -> Result<()> {
    let net = Testnet::start_configured(CAIRN, 3, &[], &[NO_MODELS_HERE]).await?;
    let _model = published(&net, 1).await?;
    net.knows(0, REPO).await?;
    net.knows(2, REPO).await?;
    let texts = sentences(40);
    let there = embed(net.client(1), &texts).await?;
    ensure!(there.vectors.len() == 40 && there.done.width as usize == ENCODER_WIDTH && there.done.texts == 40);
    ensure!(there.done.nodes == [net.node(1).ready().node_id.clone()], "{:?}", there.done);
    // Node 1 keeps the files and has the model loaded; node 2 would fetch, node 0 has no memory.
    wait_until("its advert says that it is warm", || async {
        let asked =
            net.client(0).describe_task(api::DescribeRequest { repo: REPO.into(), ..Default::default() }).await?;
        Ok(asked.nodes.first().is_some_and(|node| node.warm && node.holds))
    })
    .await?;
    let asked = net.client(0).describe_task(api::DescribeRequest { repo: REPO.into(), ..Default::default() }).await?;
    let order: Vec<_> = asked.nodes.iter().map(|node| net.index_of(&node.node)).collect();
    ensure!(order == [Some(1), Some(2)], "{asked:?}");
    ensure!(asked.rejected.len() == 1 && asked.rejected[0].reason == "no_memory", "{asked:?}");
    let asked = embed(net.client(0), &texts).await?;
    ensure!(asked.done.nodes == there.done.nodes && asked.done.tokens == there.done.tokens);
    ensure!(bits(&asked.vectors) == bits(&there.vectors), "the wire changed the vectors");
    let mut alone = Vec::new();
    for text in &texts[..10] {
        alone.extend(embed(net.client(2), std::slice::from_ref(text)).await?.vectors);
    }
    ensure!(bits(&alone) == bits(&there.vectors[..10]), "a text's neighbours changed its vector");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_is_killed_in_the_middle_and_another_node_goes_on_with_the_same_bits() -> Result<()> {
    let mut net = Testnet::start_configured(CAIRN, 3, &[], &[NO_MODELS_HERE]).await?;
    let _model = published(&net, 1).await?;
    net.knows(2, REPO).await?;
    net.pull(2, api::PullRequest { repo: REPO.into(), ..Default::default() }).await?;
    let texts = sentences(1000);
    let calm = embed(net.client(2), &texts).await?;
    for killed_after in [0, 300] {
        let (mut seen, mut victim) = (0, None);
        let client = net.client(0).clone();
        let heard = watch(&client, &texts, async |event| {
            let node = match event {
                Event::Started(started) => Some(started.node.clone()),
                Event::Vectors(piece) => {
                    seen += piece.values.len() / piece.width as usize;
                    Some(piece.node.clone())
                }
                _ => None,
            };
            if let (Some(node), None, true) = (node, victim, seen >= killed_after) {
                let index = net.index_of(&node).context("a node of the mesh")?;
                eprintln!("killed after {seen} of 1000 vectors");
                victim = Some(index);
                net.node_mut(index).kill().await?;
            }
            Ok(())
        })
        .await?;
        ensure!(heard.vectors.len() == 1000 && bits(&heard.vectors) == bits(&calm.vectors), "{:?}", heard.done);
        ensure!(heard.done.lost.len() == 1, "killed after {killed_after}: {:?}", heard.done.lost);
        let victim = victim.context("somebody was killed")?;
        let last = heard.done.nodes.last().context("a node that answered")?;
        ensure!(net.index_of(last) != Some(victim), "{:?}", heard.done);
        ensure!(killed_after == 0 || heard.done.nodes.len() == 2, "{:?}", heard.done.nodes);
        eprintln!("{:?}; all after {:.2} s", heard.done.lost[0].why, heard.done.seconds);
        net.restart(victim).await?;
        net.all_know_each_other().await?;
        net.knows(victim, REPO).await?;
        wait_until("both are able again", || async {
            let ask = api::DescribeRequest { repo: REPO.into(), ..Default::default() };
            Ok(net.client(0).describe_task(ask).await?.nodes.iter().filter(|node| node.holds).count() == 2)
        })
        .await?;
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_frees_its_place_and_many_at_once_get_their_own() -> Result<()> {
    let net = Testnet::start_configured(CAIRN, 2, &[], &[NO_MODELS_HERE]).await?;
    let _model = published(&net, 1).await?;
    net.knows(0, REPO).await?;
    let texts = sentences(60);
    let alone = embed(net.client(1), &texts).await?;
    for _ in 0..20 {
        let ask = api::EmbedRequest { repo: REPO.into(), texts: sentences(900), ..Default::default() };
        let mut events = net.client(0).embed(ask).await?;
        let _ = events.next().await?;
    }
    let users = (0..6).map(|user| {
        let (client, texts) = (net.client(user % 2).clone(), texts[user * 10..][..10].to_vec());
        async move { embed(&client, &texts).await }
    });
    for (user, got) in futures::future::try_join_all(users).await?.into_iter().enumerate() {
        ensure!(bits(&got.vectors) == bits(&alone.vectors[user * 10..][..10]), "user {user} got another's vectors");
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_is_refused_by_its_name_and_with_every_nodes_reason() -> Result<()> {
    let nobody = "stage_memory_bytes = \"0\"\n[grant]\ncompute = \"nobody\"\n";
    let net = Testnet::start_configured(CAIRN, 2, &[], &[NO_MODELS_HERE, nobody]).await?;
    let folder = published(&net, 0).await?;
    let refused = async |repo: &str, change: fn(&mut api::EmbedRequest)| {
        let mut ask = api::EmbedRequest { repo: repo.into(), texts: sentences(1), ..Default::default() };
        change(&mut ask);
        let Err(refusal) = drain(net.client(0), ask).await else { anyhow::bail!("{repo} was embedded") };
        Ok(refusal)
    };
    let refusal = refused(REPO, |_| ()).await?;
    ensure!(refusal.reason == Reason::TooFewNodes, "{refusal}");
    ensure!(refusal.why.contains("no_memory") && refusal.why.contains("no_grant"), "{refusal}");
    let refusal = refused(REPO, |ask| ask.prompt = "query".into()).await?;
    ensure!(refusal.reason == Reason::BadInput && refusal.why.contains("query"), "{refusal}");
    for (change, reason) in [
        ((|ask| ask.texts.clear()) as fn(&mut api::EmbedRequest), Reason::BadInput),
        (|ask| ask.texts = vec![String::new(); 1025], Reason::Limit),
        (|ask| ask.texts = vec!["x".repeat(70_000)], Reason::Limit),
        (|ask| ask.privacy = "secret".into(), Reason::BadInput),
        (|ask| ask.repo = "test/nothing".into(), Reason::NotFound),
    ] {
        ensure!(refused(REPO, change).await?.reason == reason);
    }
    net.publish(0, &tiny_model(folder.path())?, "test/llama").await?;
    let refusal = refused("test/llama", |_| ()).await?;
    ensure!(refusal.reason == Reason::Unsupported && refusal.why.contains("text-generation"), "{refusal}");
    let other = encoder_model(&folder.path().join("other"), 2)?;
    fs::write(other.join("README.md"), "---\npipeline_tag: translation\n---\n")?;
    fs::remove_file(other.join("modules.json"))?;
    net.publish(0, &other, "test/translator").await?;
    let refusal = refused("test/translator", |_| ()).await?;
    ensure!(refusal.why.contains("translation") && refusal.why.contains("sentence-similarity"), "{refusal}");
    net.stop().await;
    Ok(())
}

async fn drain(client: &Client, ask: api::EmbedRequest) -> Result<(), cairn_client::Refusal> {
    let mut events = client.embed(ask).await?;
    while events.next().await?.is_some() {}
    Ok(())
}

/// Our own sentences, and their vectors as transformers makes them (`scripts/reference-embeddings minilm`).
const SENTENCES: &str = include_str!("minilm/sentences.txt");
const VECTORS: &[u8] = include_bytes!("minilm/vectors.f32");

#[tokio::test(flavor = "multi_thread")]
async fn minilm_gives_the_references_vectors_alone_and_in_company() -> Result<()> {
    let Some(model): Option<PathBuf> = minilm_model()? else { return Ok(()) };
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    net.publish(0, Path::new(&model), REPO).await?;
    let texts: Vec<String> = SENTENCES.lines().map(str::to_owned).collect();
    let together = embed(net.client(0), &texts).await?;
    let wanted: Vec<f32> = VECTORS.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    ensure!(wanted.len() == texts.len() * 384 && together.done.width == 384 && together.done.truncated == 1);
    let distances = together.vectors.iter().zip(wanted.chunks(384)).map(|(got, wanted)| distance(got, wanted));
    let worst = distances.fold(0.0, f64::max);
    eprintln!("cosine distance to the reference: at most {worst:.1e}");
    ensure!(worst < 1e-6, "off by {worst}");
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(embed(net.client(0), std::slice::from_ref(text)).await?.vectors);
    }
    ensure!(bits(&alone) == bits(&together.vectors), "alone and in company differ");
    net.stop().await;
    Ok(())
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
