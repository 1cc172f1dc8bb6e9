//! How the demo speaks: lines for a person, or one JSON object a step. Not what it says: that is the story's.

use std::io::{IsTerminal, Write, stdout};

use serde_json::Value;

/// Tells the story on standard output.
#[derive(Debug)]
pub struct Teller {
    json: bool,
    colour: bool,
    step: u32,
}

impl Teller {
    /// `json` for programs; colour only on a terminal that wants it.
    pub fn new(json: bool) -> Self {
        let colour = !json && stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, step: 0 }
    }

    /// A step was done: a heading for a person, or `value` as a line for a program.
    pub fn step(&mut self, heading: &str, seconds: f64, value: &Value) {
        self.step += 1;
        if self.json {
            return say(&format!("{value}\n"));
        }
        let number = self.step;
        let time = self.dim(&format!("{seconds:.1} s"));
        say(&format!("\n{}  {time}\n", self.bold(&format!("{number} · {heading}"))));
    }

    /// A further line under the last heading; programs have it in the step's value.
    pub fn detail(&self, line: &str) {
        if !self.json {
            say(&format!("    {line}\n"));
        }
    }

    /// A piece of generated text, as it comes.
    pub fn text(&self, piece: &str) {
        if !self.json {
            say(&piece.replace('\n', "\n    "));
        }
    }

    /// A mark inside the generated text.
    pub fn mark(&self, what: &str) {
        if !self.json {
            say(&self.red(what));
        }
    }

    /// Begins a block of generated text.
    pub fn open_text(&self, prompt: &str) {
        if !self.json {
            say(&format!("\n    {}", self.dim(&prompt.replace('\n', "\n    "))));
        }
    }

    /// Ends a block of generated text.
    pub fn close_text(&self) {
        if !self.json {
            say("\n\n");
        }
    }

    /// The last line for a program: the result.
    pub fn result(&self, value: &Value) {
        if self.json {
            say(&format!("{value}\n"));
        }
    }

    fn bold(&self, text: &str) -> String {
        self.painted("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.painted("2", text)
    }

    fn red(&self, text: &str) -> String {
        self.painted("1;31", text)
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// Writes at once; a reader that went away is not an error worth a word.
fn say(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
