//! What leaves on stdout and stderr.
//!
//! Results go to stdout: for people as text, with `--json` as one object a line, the last of which is the result. All else
//! goes to stderr, and a failure is one line there.
//!
//! Invariant: a reader that goes away (`| head`) ends the command quietly, it never makes it panic; a result that can't
//! be written for any other reason is a failure.

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

    /// Whether only results are wanted.
    pub fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Whether a person watches stderr and wants to see progress.
    pub fn is_watched(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// The result, or one step of it: `value` for programs, `text` for people.
    pub fn result(self, value: &Value, text: impl FnOnce() -> String) {
        if self.json {
            self.put(&format!("{value}\n"));
        } else {
            let text = text();
            if !text.is_empty() {
                self.put(&format!("{}\n", text.trim_end()));
            }
        }
    }

    /// A line that only programs see.
    pub fn event(self, value: &Value) {
        if self.json {
            self.put(&format!("{value}\n"));
        }
    }

    /// A piece of text that only people see, as it is.
    pub fn piece(self, text: &str) {
        if !self.json {
            self.put(text);
        }
    }

    /// A remark beside the result, on stderr.
    pub fn note(self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Writes to stdout; ends the process when that can't be done: quietly when nobody reads.
    fn put(self, text: &str) {
        if let Err(error) = write(text) {
            let code = self.unwritable(&error).map_or(0, |refusal| {
                let _ = self.refusal(&refusal);
                refusal.reason.exit()
            });
            std::process::exit(code.into());
        }
    }

    /// What a result that can't be written is: nothing to speak of when its reader went away, else a failure.
    pub fn unwritable(self, error: &io::Error) -> Option<Refusal> {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return None;
        }
        let reason = if error.kind() == io::ErrorKind::StorageFull { Reason::DiskFull } else { Reason::Internal };
        Some(Refusal::new(reason, "standard output", error.to_string()).try_this("another place for the output"))
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

/// Wrong usage of `command` in the same one-line form, exit 2; help and version on stdout, exit 0.
pub fn usage(error: &clap::Error, command: &str, words: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    let is_json = words.iter().skip(1).take_while(|word| *word != "--").any(|word| word == "--json");
    let output = Output::new(is_json, false);
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        output.put(&text);
        return ExitCode::SUCCESS;
    }
    let why = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a command is missing".to_string()
        }
        _ => complaint(&text),
    };
    let line = if is_json {
        json!({"error": {"code": "usage", "what": "command line", "why": why, "try": format!("{command} --help")}})
            .to_string()
    } else {
        format!("error: command line: {why} (try: {command} --help)")
    };
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(2)
}

/// What clap has against the words, on one line and without its advice.
fn complaint(text: &str) -> String {
    let is_advice =
        |line: &&str| line.starts_with("Usage:") || line.starts_with("For more") || line.contains("tip: to pass");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take_while(|l| !is_advice(l)).collect();
    one_line(lines.join(" ").trim_start_matches("error: "))
}

/// A failure of this machine rather than of a call.
pub fn failed(what: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Internal, what, error.to_string()).try_this("again, with -v")
}

/// Text from elsewhere on one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes to stdout, at once.
pub fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_without_advice() {
        let noise = "error: invalid value 'x' for '--seed <S>': no number\n\nFor more information, try '--help'.\n";
        assert_eq!(complaint(noise), "invalid value 'x' for '--seed <S>': no number");
        let tip = "error: unexpected argument '--nope' found\n\n  tip: to pass '--nope' as a value, use '-- --nope'\n\nUsage: cairn\n";
        assert_eq!(complaint(tip), "unexpected argument '--nope' found");
    }

    #[test]
    fn a_failure_is_one_line() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
    }
}
