//! `cairn mirror`: which repos of others this node keeps.

use cairn_client::api;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn mirror add acme/tiny\n  cairn mirror add 'acme/*'\n  cairn mirror status")]
pub(super) struct MirrorArgs {
    #[command(subcommand)]
    command: MirrorCommand,
}

#[derive(Subcommand)]
enum MirrorCommand {
    /// Keep what the pattern names, now and as it changes; adding it again replaces its rules
    #[command(
        after_help = "Of several policies that name a revision, the one of the highest priority governs it.\nA copy that no rule wants is let go only while enough others keep it; what was pulled or published here stays.\n\nExamples:\n  cairn mirror add acme/tiny\n  cairn mirror add '*' --copies 3 --quota 500GiB --hours 22:00-06:00\n  cairn mirror add '*/*-instruct' --license mit --license apache-2.0 --max-bytes 10GiB --priority 2"
    )]
    Add(AddArgs),
    /// List the patterns
    #[command(after_help = "Examples:\n  cairn mirror ls\n  cairn mirror ls --json")]
    Ls,
    /// Stop keeping what the pattern names, and free the bytes that only it kept
    #[command(
        after_help = "What was pulled or published here stays, and so does what another pattern names;\n'cairn pull REPO' before keeps a repo's bytes.\n\nExamples:\n  cairn mirror rm acme/tiny"
    )]
    Rm {
        /// As it was added
        pattern: String,
    },
    /// Show how far each mirrored repo is, and why it is kept, fetched or left
    #[command(after_help = "Examples:\n  cairn mirror status\n  cairn mirror status --json")]
    Status,
}

#[derive(Args)]
struct AddArgs {
    /// A repo, PUBLISHER/*, PUBLISHER/GLOB, */GLOB or *
    pattern: String,
    /// Only repos of this kind: model, dataset, adapter or space (may be given again)
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// Only revisions of this licence (may be given again)
    #[arg(long = "license", value_name = "LICENSE")]
    licenses: Vec<String>,
    /// Only revisions whose card names this task, e.g. text-generation (may be given again)
    #[arg(long = "task", value_name = "TASK")]
    tasks: Vec<String>,
    /// Only revisions with this tag (may be given again)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Leave larger revisions, e.g. 10GiB
    #[arg(long, value_name = "BYTES", value_parser = crate::config::parse_bytes)]
    max_bytes: Option<u64>,
    /// Copies that all nodes together are to keep [default: one here, whatever others do]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    copies: Option<u32>,
    /// Higher comes first where not everything finds room
    #[arg(long, value_name = "P", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// The most bytes that this policy takes here, e.g. 500GiB
    #[arg(long, value_name = "BYTES", value_parser = crate::config::parse_bytes)]
    quota: Option<u64>,
    /// When fetches may begin, UTC
    #[arg(long, value_name = "HH:MM-HH:MM")]
    hours: Option<String>,
}

impl AddArgs {
    fn rules(self) -> api::MirrorRules {
        api::MirrorRules {
            kinds: self.kinds,
            licenses: self.licenses,
            tags: self.tags,
            tasks: self.tasks,
            bytes_max: self.max_bytes.unwrap_or(0),
            copies: self.copies.unwrap_or(0),
            priority: self.priority,
            quota_bytes: self.quota.unwrap_or(0),
            hours: self.hours.unwrap_or_default(),
        }
    }
}

pub(super) async fn run(global: &Global, args: MirrorArgs) -> Outcome {
    let client = global.connect().await?;
    let output = global.output();
    match args.command {
        MirrorCommand::Add(args) => {
            let pattern = args.pattern.clone();
            client.mirror_by(&pattern, args.rules()).await?;
            output.result(&json!({"pattern": pattern, "added": true}), || format!("keeping {pattern}"));
        }
        MirrorCommand::Rm { pattern } => {
            let gone = client.mirror_remove(&pattern).await?;
            if !gone.removed {
                return Err(
                    Refusal::new(Reason::NotFound, pattern, "no mirror has this pattern").try_this("cairn mirror ls")
                );
            }
            let result = json!({
                "pattern": pattern, "removed": true, "revisions": gone.revisions, "bytes_freed": gone.bytes_freed,
            });
            output.result(&result, || removed(&pattern, &gone));
        }
        MirrorCommand::Ls => {
            let list = client.mirror_list().await?;
            let policies: Vec<_> = list.policies.iter().map(policy).collect();
            output.result(&json!({"patterns": list.patterns, "policies": policies}), || {
                list.policies.iter().map(policy_row).collect::<Vec<_>>().join("\n")
            });
        }
        MirrorCommand::Status => {
            let list = client.mirror_list().await?;
            let repos: Vec<_> = list.repos.iter().map(mirrored).collect();
            let result = json!({
                "patterns": list.patterns, "repos": repos, "bytes_per_day": list.bytes_per_day, "bytes_today": list.bytes_today,
            });
            output.result(&result, || list.repos.iter().map(row).chain(budget(&list)).collect::<Vec<_>>().join("\n"));
        }
    }
    Ok(true)
}

fn budget(list: &api::MirrorListResponse) -> Option<String> {
    let (spent, most) = (HumanBytes(list.bytes_today), HumanBytes(list.bytes_per_day));
    (list.bytes_per_day > 0).then(|| format!("{spent} of {most} were fetched today"))
}

fn removed(pattern: &str, gone: &api::MirrorRemoveResponse) -> String {
    let bytes = HumanBytes(gone.bytes_freed);
    match gone.revisions {
        0 => format!("no longer keeping {pattern}; it alone kept nothing here"),
        1 => format!("no longer keeping {pattern}: 1 revision, {bytes} are being freed"),
        many => format!("no longer keeping {pattern}: {many} revisions, {bytes} are being freed"),
    }
}

fn mirrored(repo: &api::MirroredRepo) -> Value {
    let from: Map<_, _> = repo.bytes_from.iter().map(|from| (from.node.clone(), json!(from.bytes))).collect();
    json!({
        "repo": repo.repo, "revision": repo.revision, "state": repo.state, "why": repo.why,
        "bytes_total": repo.bytes_total, "bytes_held": repo.bytes_held, "bytes_from": from,
        "pattern": repo.pattern, "copies_elsewhere": repo.copies_elsewhere,
    })
}

fn policy(policy: &api::MirrorPolicy) -> Value {
    let rules = policy.rules.clone().unwrap_or_default();
    json!({
        "pattern": policy.pattern, "kinds": rules.kinds, "licenses": rules.licenses, "tasks": rules.tasks, "tags": rules.tags,
        "bytes_max": rules.bytes_max, "copies": rules.copies, "priority": rules.priority,
        "quota_bytes": rules.quota_bytes, "hours": rules.hours,
    })
}

fn policy_row(policy: &api::MirrorPolicy) -> String {
    let rules = policy.rules.clone().unwrap_or_default();
    let mut said = vec![match rules.copies {
        0 => "a copy here".to_owned(),
        copies => format!("{copies} copies in all"),
    }];
    let words = [("kind", &rules.kinds), ("license", &rules.licenses), ("task", &rules.tasks), ("tag", &rules.tags)];
    said.extend(
        words.iter().filter(|(_, words)| !words.is_empty()).map(|(name, words)| format!("{name} {}", words.join("|"))),
    );
    let bytes = [("at most", rules.bytes_max), ("quota", rules.quota_bytes)];
    said.extend(
        bytes.iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| format!("{name} {}", HumanBytes(*bytes))),
    );
    if rules.priority != 0 {
        said.push(format!("priority {}", rules.priority));
    }
    if !rules.hours.is_empty() {
        said.push(format!("at {} UTC", rules.hours));
    }
    format!("{:<40} {}", policy.pattern, said.join(", "))
}

fn row(repo: &api::MirroredRepo) -> String {
    let why = if repo.why.is_empty() { String::new() } else { format!("  ({})", repo.why) };
    format!(
        "{:<40} {:.10}  {:<8} {} of {}{why}",
        repo.repo,
        repo.revision,
        repo.state,
        HumanBytes(repo.bytes_held),
        HumanBytes(repo.bytes_total)
    )
}
