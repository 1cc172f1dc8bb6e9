//! How the demo speaks: lines for a person, or one JSON object a step. Not what it says: that is the story's.

use std::io::{self, IsTerminal, stdout};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::cli::output::{self, Output};

/// Tells the story on standard output.
#[derive(Debug)]
pub struct Teller {
    output: Output,
    colour: bool,
    step: u32,
    broken: mpsc::Sender<io::Error>,
}

impl Teller {
    /// Colour only on a terminal that wants it. What is received is why the last words could not be written: then
    /// nobody hears the rest.
    pub fn new(output: Output) -> (Self, mpsc::Receiver<io::Error>) {
        let colour = !output.is_json() && stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (broken, heard) = mpsc::channel(1);
        (Self { output, colour, step: 0, broken }, heard)
    }

    /// A step was done: a heading for a person, or `value` as a line for a program.
    pub fn step(&mut self, heading: &str, seconds: f64, value: &Value) {
        self.step += 1;
        self.result(value);
        let number = self.step;
        let time = self.dim(&format!("{seconds:.1} s"));
        self.tell(&format!("\n{}  {time}\n", self.bold(&format!("{number} · {heading}"))));
    }

    /// A further line under the last heading; programs have it in the step's value.
    pub fn detail(&self, line: &str) {
        self.tell(&format!("    {line}\n"));
    }

    /// A piece of generated text, as it comes.
    pub fn text(&self, piece: &str) {
        self.tell(&piece.replace('\n', "\n    "));
    }

    /// A mark inside the generated text.
    pub fn mark(&self, what: &str) {
        self.tell(&self.red(what));
    }

    /// Begins a block of generated text.
    pub fn open_text(&self, prompt: &str) {
        self.tell(&format!("\n    {}", self.dim(&prompt.replace('\n', "\n    "))));
    }

    /// Ends a block of generated text.
    pub fn close_text(&self) {
        self.tell("\n\n");
    }

    /// A line for a program.
    pub fn result(&self, value: &Value) {
        if self.output.is_json() {
            self.say(&format!("{value}\n"));
        }
    }

    /// A row of the table that is a person's result: also for one who wants nothing else.
    pub fn figure(&self, what: &str, figure: &str) {
        if !self.output.is_json() {
            self.say(&format!("    {what:26} {figure}\n"));
        }
    }

    /// For a person who wants the story.
    fn tell(&self, text: &str) {
        if !self.output.is_json() && !self.output.is_quiet() {
            self.say(text);
        }
    }

    /// Writes at once.
    fn say(&self, text: &str) {
        if let Err(error) = output::write(text) {
            // One error is enough to end the story.
            let _ = self.broken.try_send(error);
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
