//! What leaves on stdout and stderr.
//!
//! Results go to stdout: for people as text, with `--json` as one object a line, the last of which is the result. All else
//! goes to stderr, and a failure is one line there.
//!
//! Invariant: a reader that goes away (`| head`) ends the command quietly, it never makes it panic.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use cairn_protocol::refusal::{Reason, Refusal};
use serde_json::{Value, json};

/// How this invocation shows things.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    /// For programs or people; `quiet` leaves only results.
    pub fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    /// Whether objects are printed instead of text.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Whether a person watches stderr and wants to see progress.
    pub fn is_watched(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// The result, or one step of it: `value` for programs, `text` for people.
    pub fn result(self, value: &Value, text: impl FnOnce() -> String) {
        if self.json {
            put(&format!("{value}\n"));
        } else {
            let text = text();
            if !text.is_empty() {
                put(&format!("{}\n", text.trim_end()));
            }
        }
    }

    /// A line that only programs see.
    pub fn event(self, value: &Value) {
        if self.json {
            put(&format!("{value}\n"));
        }
    }

    /// A piece of text that only people see, as it is.
    pub fn piece(self, text: &str) {
        if !self.json {
            put(text);
        }
    }

    /// A remark beside the result, on stderr.
    pub fn note(self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// The one line of a failure, and its exit code.
    pub fn refusal(self, refusal: &Refusal) -> ExitCode {
        let line = if self.json {
            crate::doors::status::body(refusal).to_string()
        } else {
            format!("error: {}", one_line(&refusal.to_string()))
        };
        let _ = writeln!(io::stderr(), "{line}");
        ExitCode::from(refusal.reason.exit())
    }
}

/// Wrong usage in the same one-line form, exit 2; help and version on stdout, exit 0.
pub fn usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        put(&error.render().to_string());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let why = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a command is missing".to_string()
        }
        _ => {
            let paragraph: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Usage:")).collect();
            one_line(paragraph.join(" ").trim_start_matches("error: "))
        }
    };
    let is_json = words.iter().skip(1).take_while(|word| *word != "--").any(|word| word == "--json");
    let command = command_of(&text);
    let line = if is_json {
        json!({"error": {"code": "usage", "what": "command line", "why": why, "try": format!("{command} --help")}})
            .to_string()
    } else {
        format!("error: command line: {why} (try: {command} --help)")
    };
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(2)
}

/// The command whose usage clap shows: `Usage: cairn pull [OPTIONS] …` is `cairn pull`.
fn command_of(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: ")).unwrap_or("cairn");
    let words: Vec<&str> =
        usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    if words.is_empty() { "cairn".to_string() } else { words.join(" ") }
}

/// A failure of this machine rather than of a call.
pub fn failed(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Internal, what, error.to_string()).try_this("again, with -v")
}

/// Text from elsewhere on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes to stdout; ends the process quietly when nobody reads.
fn put(text: &str) {
    let mut stdout = io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_in_trouble_is_found_in_the_usage() {
        assert_eq!(command_of("error: x\n\nUsage: cairn pull [OPTIONS] <REPO>\n"), "cairn pull");
        assert_eq!(command_of("error: x\n\nUsage: cairn [OPTIONS] <COMMAND>\n"), "cairn");
        assert_eq!(command_of("error: x"), "cairn");
    }

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
    }
}
