//! The command line: what can be said, and where each command lives.
//!
//! Every command but `node`, `config` and `bench` is a thin client of a daemon. Options of all commands are accepted
//! before or after the command. What leaves on stdout and stderr is decided in [`output`].
//!
//! Invariant: a failure is one line on stderr and an exit code of the contract: 1 failed, 2 wrong usage, 3 not found,
//! 4 refused, 5 unavailable.

mod advise;
mod bench;
mod bench_catalog;
mod bench_embed;
mod bench_sync;
mod bundle;
mod catalog;
mod daemon;
mod demo;
mod export;
mod history;
mod import;
mod interruption;
mod keys;
mod mesh;
mod mirror;
pub mod output;
mod plan;
mod progress;
mod publish;
mod pull;
mod run;
mod scan;
mod search;
mod settings;
mod task;
mod telling;
mod trust;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cairn_client::{Client, ConnectOptions};
use cairn_protocol::refusal::Refusal;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{panics, telemetry};
use output::Output;

/// What a command comes to: `Ok(false)` has shown its result, and that result is a failure.
pub type Outcome = Result<bool, Refusal>;

#[derive(Parser)]
#[command(
    name = "cairn",
    version,
    about = "A peer-to-peer registry and compute mesh for models",
    after_help = "Examples:\n  cairn demo                                 the whole story on one machine\n  cairn node                                 run the daemon\n  cairn publish ./model acme/tiny            sign and publish a folder\n  cairn run acme/tiny \"Once upon a time\"     generate text, layers split over the mesh\n\nA client finds its daemon by --api, CAIRN_API, config.toml, HOME/ready.json, then 127.0.0.1:4180."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The folder of keys, catalogue and blobs [default: CAIRN_HOME, else XDG_DATA_HOME/cairn, else ~/.local/share/cairn]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// The daemon to talk to, IP:PORT or a URL
    #[arg(long, global = true, value_name = "URL")]
    pub api: Option<String>,
    /// Print JSON objects, one a line; the last line on stdout is the result
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more (twice: much more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// The home that was asked for, or the usual one.
    pub fn home(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(cairn_client::default_home)
    }

    /// How things are to be shown.
    pub fn output(&self) -> Output {
        Output::new(self.json, self.quiet)
    }

    /// Finds the daemon and connects.
    pub async fn connect(&self) -> Result<Client, Refusal> {
        let options = ConnectOptions { api: self.api.clone(), home: Some(self.home()), ..ConnectOptions::default() };
        Client::connect(&options).await
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Node(daemon::NodeArgs),
    /// Show the whole story on this machine: publish, replicate, generate, survive a death
    #[command(
        after_help = "Examples:\n  cairn demo\n  cairn demo --nodes 4 --json\n  cairn demo --model ./SmolLM2-135M-Instruct --keep"
    )]
    Demo(demo::DemoArgs),
    /// Sign and publish a file or folder
    Publish(publish::PublishArgs),
    /// Bring a model in from a Hub, a folder or a .gguf file
    Import(import::ImportArgs),
    /// Make a model again with quantised matrices, and publish it
    Quantise(publish::QuantiseArgs),
    /// Fetch and verify a repo
    Pull(pull::PullArgs),
    /// Write a repo to a folder, or to the cache of the Hub's own clients
    Export(export::ExportArgs),
    /// Carry repos in one file to where no network leads
    Bundle(bundle::BundleArgs),
    /// Tell what the files of a repo or folder would do to whoever opens them
    Scan(scan::ScanArgs),
    /// Keep copies of others' repos
    Mirror(mirror::MirrorArgs),
    /// List the repos that this node knows
    Ls(catalog::LsArgs),
    /// Find repos by words, phrases and fields
    Search(search::SearchArgs),
    /// Show everything known of one repo
    Show(catalog::ShowArgs),
    /// Show what a ref stood for, newest first
    History(history::HistoryArgs),
    /// Show what differs between two revisions: files and tensors
    Diff(history::DiffArgs),
    /// Make a branch stand for a revision
    Branch(history::BranchArgs),
    /// Give a revision a tag, which never moves
    Tag(history::TagArgs),
    /// Read the bytes and signatures of a repo again
    Verify(catalog::VerifyArgs),
    /// Warn of a repo, revision, publisher or file, or take a warning back
    Advise(advise::AdviseArgs),
    /// Sign what you found out about a revision
    Attest(advise::AttestArgs),
    /// Decide whose handles and warnings to believe
    Trust(trust::TrustArgs),
    /// Make, list and rotate the keys that sign
    Key(keys::KeyArgs),
    /// Show who a publisher is, or change your own profile
    Profile(keys::ProfileArgs),
    /// List the nodes that this node knows
    Peers(mesh::PeersArgs),
    /// Show how this node is
    Status(mesh::StatusArgs),
    /// Show what this machine can do
    Capacity(mesh::CapacityArgs),
    /// Show where the layers of a model would go, and why
    Plan(plan::PlanArgs),
    /// Generate text; a chat when no prompt is given
    Run(run::RunArgs),
    /// Do what a model does that is whole on one node: texts to vectors
    Task(task::TaskArgs),
    /// Show the configuration
    Config(settings::ConfigArgs),
    /// Measure this machine; needs no daemon
    Bench(bench::BenchArgs),
}

/// The binary's main: reads the command line, runs the command, says how it ended.
pub fn main() -> ExitCode {
    panics::abort_outside_the_engine();
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error, &command_of(&words), &words),
    };
    let usual = match cli.command {
        Command::Node(_) if cli.global.quiet => "warn,libp2p_kad=error",
        Command::Node(_) => "warn,libp2p_kad=error,cairn=info,cairn_node=info,cairn_registry=info,cairn_compute=info",
        _ => "error",
    };
    telemetry::log_to_stderr(usual, cli.global.verbose);
    let output = cli.global.output();
    let result = runtime(&cli.command).and_then(|runtime| {
        let result = runtime.block_on(dispatch(cli));
        // A reader that waits on a terminal must not hold the process.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(refusal) => output.refusal(&refusal),
    }
}

/// The command that these words name, as far as they name one: `cairn bench engine`.
fn command_of(words: &[OsString]) -> String {
    let (mut command, mut name) = (Cli::command(), "cairn".to_string());
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(inner) = command.find_subcommand(word).cloned() {
            name = format!("{name} {word}");
            command = inner;
        }
    }
    name
}

/// A daemon gets all cores; a client needs one thread.
fn runtime(command: &Command) -> Result<tokio::runtime::Runtime, Refusal> {
    let mut builder = match command {
        Command::Node(_) | Command::Bench(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build().map_err(|error| output::failed("the async runtime", &error))
}

async fn dispatch(cli: Cli) -> Outcome {
    let global = &cli.global;
    match cli.command {
        Command::Node(args) => daemon::run(global, args).await,
        Command::Demo(args) => demo::run(global, args).await,
        Command::Publish(args) => publish::publish(global, args).await,
        Command::Import(args) => import::import(global, args).await,
        Command::Quantise(args) => publish::quantise(global, args).await,
        Command::Pull(args) => pull::run(global, args).await,
        Command::Export(args) => export::export(global, args).await,
        Command::Bundle(args) => bundle::run(global, args).await,
        Command::Scan(args) => scan::scan(global, args).await,
        Command::Mirror(args) => mirror::run(global, args).await,
        Command::Ls(args) => catalog::ls(global, args).await,
        Command::Search(args) => search::run(global, args).await,
        Command::Show(args) => catalog::show(global, args).await,
        Command::Verify(args) => catalog::verify(global, args).await,
        Command::History(args) => history::history(global, args).await,
        Command::Diff(args) => history::diff(global, args).await,
        Command::Branch(args) => history::branch(global, args).await,
        Command::Tag(args) => history::tag(global, args).await,
        Command::Advise(args) => advise::run(global, args).await,
        Command::Attest(args) => advise::attest(global, args).await,
        Command::Trust(args) => trust::run(global, args).await,
        Command::Key(args) => keys::run(global, args).await,
        Command::Profile(args) => keys::profile(global, args).await,
        Command::Peers(_) => mesh::peers(global).await,
        Command::Status(_) => mesh::status(global).await,
        Command::Capacity(_) => mesh::capacity(global).await,
        Command::Plan(args) => plan::run(global, args).await,
        Command::Run(args) => run::run(global, args).await,
        Command::Task(args) => task::run(global, args).await,
        Command::Config(args) => settings::run(global, args),
        Command::Bench(args) => bench::run(global, args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:") && help.contains("cairn "), "{path} has no examples");
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        check(&Cli::command(), "cairn");
    }

    #[test]
    fn the_command_in_trouble_is_found_in_the_words() {
        for (words, command) in [
            ("cairn pull x --layers 5..2", "cairn pull"),
            ("cairn --home ls", "cairn ls"),
            ("cairn --json bench engine m --planes 9", "cairn bench engine"),
            ("cairn frobnicate", "cairn"),
        ] {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            assert_eq!(command_of(&words), command);
        }
    }

    #[test]
    fn options_of_all_commands_go_before_or_after() {
        for words in ["cairn --json --home /h ls -q", "cairn ls --json --home /h -q"] {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap();
            assert!(cli.global.json && cli.global.quiet);
            assert_eq!(cli.global.home(), PathBuf::from("/h"));
        }
    }
}
