//! `cairn plan`: where the layers would go, why, and what one death would do.

use cairn_client::api;
use cairn_compute::{KvFormat, quantise::Target};
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn plan acme/tiny\n  cairn plan acme/tiny --stages 3 --json\n  cairn plan acme/tiny --adapter adapters/acme/pirate"
)]
pub(super) struct PlanArgs {
    /// REPO[@REF]
    repo: String,
    /// Exactly this many nodes [default: the planner chooses]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    stages: u32,
    /// Positions to plan memory for [default: the planner's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    context: u32,
    /// An adapter, which takes memory on every stage: adapters/PUBLISHER/NAME[@REF]
    #[arg(long, value_name = "REPO")]
    adapter: Option<String>,
    /// Hold matrices of more bits as this type, which takes less memory: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0
    #[arg(long, value_name = "TYPE")]
    quantise: Option<Target>,
    /// What keys and values are held as: f16, or int8 in half the memory
    #[arg(long, value_name = "FORMAT", default_value_t = KvFormat::F16)]
    kv: KvFormat,
    /// Who may see activations: local, trusted, realm or open
    #[arg(long, default_value = "trusted")]
    privacy: String,
}

pub(super) async fn run(global: &Global, args: PlanArgs) -> Outcome {
    let PlanArgs { repo, stages, context, adapter, quantise, kv, privacy } = args;
    let quantise = quantise.map(|target| target.name().to_owned()).unwrap_or_default();
    let adapter = adapter.unwrap_or_default();
    let kv = kv.name().to_owned();
    let ask = api::PlanRequest { repo, stages, context, privacy, adapter, quantise, kv };
    let plan = global.connect().await?.plan(ask).await?;
    global.output().result(&plan_value(&plan), || describe(&plan));
    Ok(true)
}

/// A plan as programs see it.
pub(super) fn plan_value(plan: &api::PlanResponse) -> Value {
    json!({
        "repo": plan.repo, "revision": plan.revision,
        "stages": plan.stages.iter().map(|stage| json!({
            "node": stage.node, "layers": [stage.first_layer, stage.end_layer], "bytes": stage.bytes, "ms": stage.ms,
            "embedding": stage.embedding, "head": stage.head,
        })).collect::<Vec<_>>(),
        "rejected": plan.rejected.iter().map(|node| json!({
            "node": node.node, "reason": node.reason, "why": node.why,
        })).collect::<Vec<_>>(),
        "predicted": {
            "ttft_ms": plan.predicted_ttft_ms, "tokens_per_s": plan.predicted_tokens_per_s,
            "ready_ms": plan.predicted_ready_ms,
        },
        "deaths": plan.deaths.iter().map(|death| json!({
            "node": death.node, "survivable": death.survivable, "what": death.what,
        })).collect::<Vec<_>>(),
    })
}

fn describe(plan: &api::PlanResponse) -> String {
    let mut lines = vec![format!(
        "{} {:.10}: about {:.0} tokens/s, first token after {:.0} ms, of which {:.0} ms to fetch and load",
        plan.repo, plan.revision, plan.predicted_tokens_per_s, plan.predicted_ttft_ms, plan.predicted_ready_ms
    )];
    lines.extend(plan.stages.iter().map(|stage| format!("  {}  {}", stage_line(stage), HumanBytes(stage.bytes))));
    lines.extend(plan.rejected.iter().map(|node| format!("  not {:.10}: {} ({})", node.node, node.reason, node.why)));
    lines.extend(plan.deaths.iter().map(|death| format!("  if {:.10} dies: {}", death.node, death.what)));
    lines.join("\n")
}

fn stage_line(stage: &api::StagePlan) -> String {
    let embedding = if stage.embedding { "embedding, " } else { "" };
    let head = if stage.head { ", head" } else { "" };
    format!(
        "{:.10}  {embedding}layers {}..{}{head}  {:.2} ms a token",
        stage.node, stage.first_layer, stage.end_layer, stage.ms
    )
}
