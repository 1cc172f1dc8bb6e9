//! What a request asks of its tokens, kept by real processes: grammars, log-probabilities, several answers, stop strings; alone,
//! among others, over several stages, and when one of them dies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cairn_client::{
    Client, Reason, ResumeToken,
    api::{self, generate_event::Event, generate_request::Format},
};
use cairn_testnet::{Generation, Testnet, greedy, real_model, tiny_model};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/model";
const PROMPT: &str = "JULIET:\nWhat's in a name? ";
/// So that the first stage is another process too.
const NO_STAGES_HERE: &str = "stage_memory_bytes = \"0\"\n";

const SCHEMAS: [&str; 5] = [
    r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["name", "age"], "additionalProperties": false}"#,
    r#"{"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4}"#,
    r#"{"type": "object", "properties": {"who": {"type": "string", "pattern": "^[A-Z][a-z]{2,6}$"}, "born": {"type": "string", "format": "date"}}, "required": ["who", "born"], "additionalProperties": false}"#,
    r#"{"anyOf": [{"type": "null"}, {"type": "boolean"}, {"type": "integer", "minimum": -50, "maximum": 50}]}"#,
    r##"{"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"leaf": {"type": "boolean"}, "more": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}, "required": ["leaf"], "additionalProperties": false}}}"##,
];

async fn published(net: &Testnet) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, REPO).await?;
    Ok(folder)
}

/// A request with dice.
fn lively(seed: u64, tokens: u32, stages: u32) -> api::GenerateRequest {
    api::GenerateRequest { temperature: Some(0.9), seed: Some(seed), ..greedy(REPO, PROMPT, tokens, stages) }
}

fn by_schema(schema: &str, ask: api::GenerateRequest) -> api::GenerateRequest {
    api::GenerateRequest { format: Some(Format::JsonSchema(schema.into())), ..ask }
}

/// Whether a text is JSON that a schema accepts, as another library sees it.
fn check(schema: &str, made: &Generation) -> Result<()> {
    ensure!(made.done.finish == "stop", "{} after {:?}", made.done.finish, made.text);
    ensure!(made.text == made.done.text);
    let value = serde_json::from_str(&made.text).with_context(|| format!("{:?} is no JSON", made.text))?;
    let validator = jsonschema::validator_for(&serde_json::from_str(schema)?)?;
    ensure!(validator.is_valid(&value), "{value} is not what {schema} accepts");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_schema_asks_for_is_what_comes_on_any_split() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let _model = published(&net).await?;
    for schema in SCHEMAS {
        for seed in 0..3 {
            let one = Generation::of(net.client(0), by_schema(schema, lively(seed, 200, 1))).await?;
            check(schema, &one).with_context(|| format!("seed {seed}"))?;
            let two = Generation::of(net.client(0), by_schema(schema, lively(seed, 200, 2))).await?;
            ensure!(one.tokens == two.tokens, "{:?} against {:?}", one.text, two.text);
        }
    }
    let any = api::GenerateRequest { format: Some(Format::Json(true)), ..lively(3, 40, 2) };
    let any = Generation::of(net.client(0), any).await?;
    ensure!(
        any.done.finish == "length" || serde_json::from_str::<serde_json::Value>(&any.text).is_ok(),
        "{:?}",
        any.text
    );
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_dies_in_the_middle_of_a_grammar_changes_no_token() -> Result<()> {
    let mut net = Testnet::start_configured(CAIRN, 4, &[], &[NO_STAGES_HERE]).await?;
    let _model = published(&net).await?;
    let ask = || api::GenerateRequest {
        logprobs: Some(2),
        presence_penalty: 0.5,
        ..by_schema(SCHEMAS[0], lively(5, 200, 2))
    };
    let calm = Generation::of(net.client(0), ask()).await?;
    check(SCHEMAS[0], &calm)?;
    // The last stage, which holds the grammar, and the first.
    for place in [1, 0] {
        let client = net.client(0).clone();
        let (mut seen, mut victim, mut killed) = (0, None, None);
        let disturbed = Generation::run(&client, ask(), async |event| {
            match event {
                Event::Started(started) => {
                    let plan = started.plan.as_ref().context("a plan")?;
                    victim = net.index_of(&plan.stages[place].node);
                }
                Event::Token(_) => seen += 1,
                _ => (),
            }
            if let (true, None, Some(index)) = (seen == 4, killed, victim) {
                net.node_mut(index).kill().await?;
                killed = Some(index);
            }
            Ok(())
        })
        .await?;
        ensure!(disturbed.done.recoveries >= 1 && disturbed.tokens == calm.tokens, "{:?}", disturbed.text);
        check(SCHEMAS[0], &disturbed)?;
        net.restart(killed.context("a victim")?).await?;
        net.all_know_each_other().await?;
        net.knows(killed.context("a victim")?, REPO).await?;
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_goes_on_in_the_middle_of_a_grammar() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let _model = published(&net).await?;
    net.pull(1, api::PullRequest { repo: REPO.into(), ..Default::default() }).await?;
    let ask = api::GenerateRequest { frequency_penalty: 0.4, ..by_schema(SCHEMAS[2], lively(8, 200, 1)) };
    let (mut resume, mut received) = (None, Vec::new());
    let whole = Generation::run(net.client(0), ask.clone(), async |event| {
        match event {
            Event::Started(started) => resume = Some(started.resume_token.parse::<ResumeToken>()?),
            Event::Token(token) => received.push(token.clone()),
            _ => (),
        }
        Ok(())
    })
    .await?;
    check(SCHEMAS[2], &whole)?;
    let resume = resume.context("a resume token")?;
    for cut in [1, received.len() / 2, received.len() - 1] {
        let rest = Generation::of(net.client(1), resume.request(ask.clone(), &received[..cut])).await?;
        ensure!(rest.tokens == whole.tokens[cut..], "from {cut}: {:?} against {:?}", rest.text, whole.text);
    }
    let mut wrong = resume.request(ask, &received[..3]);
    wrong.format = Some(Format::Regex("[0-9]+".into()));
    let refused = Generation::of(net.client(1), wrong).await.expect_err("what was generated is no number");
    ensure!(refused.to_string().contains("do not follow"), "{refused}");
    net.stop().await;
    Ok(())
}

/// Twenty requests of all kinds.
fn crowd() -> Vec<api::GenerateRequest> {
    let ask = |user: usize| {
        let prompt = format!("{} {}", PROMPT.repeat(1 + user % 4), "I say. ".repeat(user));
        let ask = api::GenerateRequest { prompt, ..lively(user as u64, 24, [1, 2][user % 2]) };
        match user % 5 {
            0 => api::GenerateRequest { temperature: Some(0.0), ..ask },
            1 => api::GenerateRequest { top_p: 0.9, min_p: 0.02, repetition_penalty: 1.1, ..ask },
            2 => by_schema(SCHEMAS[user / 5], ask),
            3 => api::GenerateRequest { logprobs: Some(4), frequency_penalty: 0.5, ..ask },
            _ => api::GenerateRequest { format: Some(Format::Regex("([A-Z][a-z]{1,8} ){3,9}".into())), ..ask },
        }
    };
    (0..20).map(ask).collect()
}

/// Tokens with all that was said of them.
async fn told(client: &Client, ask: api::GenerateRequest) -> Result<Vec<api::Token>> {
    let mut tokens = Vec::new();
    Generation::run(client, ask, async |event| {
        if let Event::Token(token) = event {
            tokens.push(token.clone());
        }
        Ok(())
    })
    .await?;
    Ok(tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_of_all_kinds_get_what_each_gets_alone() -> Result<()> {
    let many = "sessions_per_peer = 32\n";
    let net = Testnet::start_configured(CAIRN, 2, &[], &[many, many]).await?;
    let _model = published(&net).await?;
    let mut alone = Vec::new();
    for ask in crowd() {
        alone.push(told(net.client(0), ask).await?);
    }
    let together = crowd().into_iter().map(|ask| told(net.client(0), ask));
    let together = futures::future::try_join_all(together).await?;
    for (user, (alone, together)) in alone.iter().zip(&together).enumerate() {
        ensure!(alone == together, "user {user}: {together:?} against {alone:?}");
        ensure!(!alone.is_empty());
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_are_told_of_every_token_and_are_the_same_on_any_split() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let _model = published(&net).await?;
    let ask = |stages| api::GenerateRequest { logprobs: Some(5), ..greedy(REPO, PROMPT, 24, stages) };
    let (one, two) = (told(net.client(0), ask(1)).await?, told(net.client(0), ask(2)).await?);
    ensure!(one == two && one.len() == 24);
    for token in &one {
        let logprobs = token.logprobs.as_ref().context("log-probabilities")?;
        ensure!(logprobs.best.len() == 5 && logprobs.best.is_sorted_by(|a, b| a.logprob >= b.logprob), "{logprobs:?}");
        let best = &logprobs.best[0];
        ensure!(
            best.id == token.id && best.logprob == logprobs.logprob && best.bytes == logprobs.bytes,
            "{logprobs:?}"
        );
        let together: f64 = logprobs.best.iter().map(|one| one.logprob.exp()).sum();
        ensure!(together > 0.0 && together <= 1.0 + 1e-6, "{together}");
    }
    let plain = Generation::of(net.client(0), greedy(REPO, PROMPT, 24, 1)).await?;
    ensure!(plain.tokens == one.iter().map(|token| token.id).collect::<Vec<_>>(), "telling changes nothing");
    let forced = api::GenerateRequest { logit_bias: vec![api::LogitBias { id: 70, bias: 100.0 }], ..ask(1) };
    let forced = told(net.client(0), forced).await?;
    ensure!(forced.iter().all(|token| token.id == 70));
    ensure!(forced[0].logprobs.as_ref().is_some_and(|told| told.logprob < -0.5 && told.best[0].id != 70), "{forced:?}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_have_dice_of_their_own_and_each_can_be_had_again() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let _model = published(&net).await?;
    let ask = || api::GenerateRequest { n: 3, ..lively(4, 20, 2) };
    let mut events = net.client(0).generate(ask()).await?;
    let mut answers: BTreeMap<u32, (Vec<u32>, Option<api::Done>)> = BTreeMap::new();
    let mut started = 0;
    while let Some(api::GenerateEvent { event, choice }) = events.next().await? {
        let (tokens, done) = answers.entry(choice).or_default();
        match event {
            Some(Event::Started(_)) => started += 1,
            Some(Event::Token(token)) => {
                ensure!(token.index as usize == tokens.len(), "each answer's tokens come in order");
                tokens.push(token.id);
            }
            Some(Event::Done(said)) => *done = Some(said),
            _ => {}
        }
    }
    ensure!(started == 3 && answers.keys().eq(&[0, 1, 2]));
    let mut plans = Vec::new();
    for (choice, (tokens, done)) in &answers {
        let done = done.as_ref().context("each ends")?;
        ensure!(done.tokens == *tokens && done.seed == 4);
        plans.push(done.stages.iter().map(|stage| (stage.node.clone(), stage.first_layer)).collect::<Vec<_>>());
        let again = api::GenerateRequest { n: 1, sample_index: *choice, ..ask() };
        ensure!(Generation::of(net.client(0), again).await?.tokens == *tokens, "answer {choice} alone");
    }
    ensure!(plans.iter().all(|plan| *plan == plans[0]), "one plan: {plans:?}");
    ensure!(answers[&0].0 != answers[&1].0 && answers[&1].0 != answers[&2].0);
    let one = Generation::of(net.client(0), api::GenerateRequest { n: 0, ..ask() }).await?;
    ensure!(one.tokens == answers[&0].0, "the first is the one that is made when one is asked for");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_any_stop_string_is_shown() -> Result<()> {
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    let _model = published(&net).await?;
    let whole = Generation::of(net.client(0), greedy(REPO, PROMPT, 60, 1)).await?.text;
    let at = |from: usize| whole.char_indices().nth(from).map_or(whole.len(), |(at, _)| at);
    for from in [0, 7, 23] {
        let stop = whole[at(from)..at(from + 6)].to_string();
        let stops = vec!["never there".into(), stop.clone(), whole[at(40)..at(44)].to_string()];
        let made =
            Generation::of(net.client(0), api::GenerateRequest { stop: stops, ..greedy(REPO, PROMPT, 60, 1) }).await?;
        let end = whole.find(&stop).context("it is there")?;
        ensure!(made.text == whole[..end] && made.done.finish == "stop", "{stop:?}: {:?}", made.text);
        ensure!(made.done.text == made.text);
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_is_refused_in_one_line_and_the_next_is_served() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let _model = published(&net).await?;
    let deep = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
    for (format, reason) in [
        (Format::JsonSchema("{".into()), Reason::BadInput),
        (Format::JsonSchema(r#"{"type": "number", "multipleOf": {}}"#.into()), Reason::BadInput),
        (Format::Regex("(".into()), Reason::BadInput),
        (Format::Regex(deep), Reason::Limit),
        (Format::Regex("x".repeat(100_000)), Reason::Limit),
        (Format::Grammar("start: nowhere".into()), Reason::BadInput),
    ] {
        let ask = api::GenerateRequest { format: Some(format.clone()), ..lively(1, 10, 2) };
        let mut refusal = None;
        match net.client(0).generate(ask).await {
            Err(error) => refusal = Some(error),
            Ok(mut events) => {
                while refusal.is_none() {
                    match events.next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => refusal = Some(error),
                    }
                }
            }
        }
        let refusal = refusal.with_context(|| format!("{format:?} was served"))?;
        ensure!(refusal.reason == reason && !refusal.to_string().contains('\n'), "{refusal}");
    }
    check(SCHEMAS[1], &Generation::of(net.client(0), by_schema(SCHEMAS[1], lively(1, 200, 2))).await?)?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_says_what_a_schema_asks_for() -> Result<()> {
    let Some(path) = real_model("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")? else { return Ok(()) };
    let net = Testnet::start(CAIRN, 1, &[]).await?;
    net.publish(0, &path, REPO).await?;
    let ask = |seed, prompt: &str| api::GenerateRequest { raw: false, prompt: prompt.into(), ..lively(seed, 160, 1) };
    for schema in SCHEMAS {
        for seed in 0..4 {
            let made =
                Generation::of(net.client(0), by_schema(schema, ask(seed, "Tell me about Ada Lovelace as JSON.")))
                    .await?;
            check(schema, &made).with_context(|| format!("seed {seed}"))?;
        }
    }
    let city = api::GenerateRequest {
        format: Some(Format::Regex("(Paris|London|Rome)".into())),
        temperature: Some(0.0),
        ..ask(0, "What is the capital of France?")
    };
    let city = Generation::of(net.client(0), city).await?.text;
    ensure!(["Paris", "London", "Rome"].contains(&city.as_str()), "{city:?}");
    net.stop().await;
    Ok(())
}
