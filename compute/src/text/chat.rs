//! The model's own chat template, rendered as its authors' library renders it.
//!
//! Not a list of known formats, and no clock: the date that some templates print is an argument. Invariant: what a
//! message says can't become a special token. Each place in a message where one could begin is marked before rendering
//! with a character that occurs nowhere else; the marks are taken out of the result and become the offsets where the
//! tokenizer may not find one. A template may still trim or test the text, as they do.
//!
//! Templates come from strangers: they get a budget of steps and bytes ([`bounded`]), bounded recursion, and no way to load
//! anything.

use super::bounded;
use super::specials::Specials;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

/// Longest template that is rendered; real ones have up to 20 KB.
const TEMPLATE_BYTES_MAX: usize = 128 << 10;
/// Roles that stand in templates unmarked.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// system, user, assistant or tool.
    pub role: String,
    /// What it says.
    pub content: String,
}

/// A moment in civil time, for templates that print the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since the Unix epoch, in the time zone to be shown.
    pub seconds: i64,
}

/// Names of special tokens by role, as templates see them.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialNames {
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub unk_token: Option<String>,
    pub pad_token: Option<String>,
}

/// A chat template in Jinja.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    names: SpecialNames,
}

/// A conversation as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text, marks removed.
    pub text: String,
    /// Byte offsets where no special token may begin, sorted.
    pub forbidden: Vec<usize>,
}

/// Why a conversation could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The template refused the conversation in its own words.
    #[error("the model's chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template can't be rendered.
    #[error("the model's chat template fails: {0}")]
    Template(String),
    /// Not a role.
    #[error("{0:?} is not a role (system, user, assistant, tool)")]
    Role(String),
    /// There is nothing to answer.
    #[error("a conversation needs at least one message")]
    Empty,
}

impl ChatTemplate {
    pub(super) fn new(source: String, names: SpecialNames) -> ChatTemplate {
        ChatTemplate { source, names }
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation, followed by what invites the assistant's answer.
    pub(super) fn render(&self, messages: &[Message], now: Moment, specials: &Specials) -> Result<Rendered, ChatError> {
        if self.source.len() > TEMPLATE_BYTES_MAX {
            return Err(ChatError::Template(format!("it is longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let mark = unused_character(&self.source, messages);
        let marked: Vec<Message> = messages
            .iter()
            .map(|m| Message { role: m.role.clone(), content: marked(&m.content, mark, specials) })
            .collect();
        let text = bounded::render(&self.source, environment(now), self.context(&marked)).map_err(failure)?;
        Ok(without_marks(&text, mark))
    }

    fn context(&self, messages: &[Message]) -> Value {
        let name = |n: &Option<String>| n.clone().unwrap_or_default();
        minijinja::context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => name(&self.names.bos_token),
            eos_token => name(&self.names.eos_token),
            unk_token => name(&self.names.unk_token),
            pad_token => name(&self.names.pad_token),
        }
    }
}

/// There is a message, and every role is a role, whether or not the model has a template that looks at them.
pub(super) fn check(messages: &[Message]) -> Result<(), ChatError> {
    if messages.is_empty() {
        return Err(ChatError::Empty);
    }
    match messages.iter().find(|m| !ROLES.contains(&m.role.as_str())) {
        Some(message) => Err(ChatError::Role(message.role.clone())),
        None => Ok(()),
    }
}

/// A private-use character that neither the template nor any message holds.
fn unused_character(template: &str, messages: &[Message]) -> char {
    let used = |c: char| template.contains(c) || messages.iter().any(|m| m.content.contains(c));
    ('\u{F0000}'..='\u{FFFFD}').find(|c| !used(*c)).unwrap_or('\u{10FFFD}')
}

fn marked(content: &str, mark: char, specials: &Specials) -> String {
    let mut out = String::with_capacity(content.len());
    let mut done = 0;
    for at in specials.beginnings(content) {
        if content.is_char_boundary(at) {
            out += &content[done..at];
            out.push(mark);
            done = at;
        }
    }
    out + &content[done..]
}

fn without_marks(text: &str, mark: char) -> Rendered {
    let mut rendered = Rendered { text: String::with_capacity(text.len()), forbidden: Vec::new() };
    for part in text.split_inclusive(mark) {
        match part.strip_suffix(mark) {
            Some(before) => {
                rendered.text += before;
                rendered.forbidden.push(rendered.text.len());
            }
            None => rendered.text += part,
        }
    }
    rendered
}

/// As `transformers` sets it up: `raise_exception` and `strftime_now`. Trimmed blocks, Python's methods and a `tojson` that
/// writes like Python's are added where they are bounded.
fn environment(now: Moment) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, RAISED.to_string() + &why))
    });
    environment.add_function("strftime_now", move |format: String| now.format(&format));
    environment
}

/// Marks our own error among the library's.
const RAISED: &str = "raised: ";

fn failure(error: Error) -> ChatError {
    match error.detail().and_then(|d| d.strip_prefix(RAISED)) {
        Some(why) => ChatError::Raised(why.to_string()),
        None => ChatError::Template(error.to_string()),
    }
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let json = serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    write_json(&json, indent.map(|i| i.min(16)), 0, &mut out);
    Ok(out)
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let (open, close, count) = match value {
        serde_json::Value::Array(list) => ('[', ']', list.len()),
        serde_json::Value::Object(map) => ('{', '}', map.len()),
        other => return *out += &other.to_string(),
    };
    out.push(open);
    let line = |depth: usize| indent.map_or_else(String::new, |i| format!("\n{}", " ".repeat(i * depth)));
    let mut item = |i: usize, key: Option<&String>, value: &serde_json::Value| {
        *out += if i == 0 {
            ""
        } else if indent.is_some() {
            ","
        } else {
            ", "
        };
        *out += &line(depth + 1);
        if let Some(key) = key {
            *out += &serde_json::Value::String(key.clone()).to_string();
            *out += ": ";
        }
        write_json(value, indent, depth + 1, out);
    };
    match value {
        serde_json::Value::Array(list) => list.iter().enumerate().for_each(|(i, v)| item(i, None, v)),
        serde_json::Value::Object(map) => map.iter().enumerate().for_each(|(i, (k, v))| item(i, Some(k), v)),
        _ => {}
    }
    if count > 0 {
        *out += &line(depth);
    }
    out.push(close);
}

impl Moment {
    /// `strftime` in English, for the directives that templates use; others stay as they are.
    fn format(self, format: &str) -> String {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
        let (days, second_of_day) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let (name, weekday) = (MONTHS[month as usize - 1], DAYS[days.rem_euclid(7) as usize]);
        let (mut out, mut chars) = (String::new(), format.chars());
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('Y') => out += &year.to_string(),
                Some('m') => out += &format!("{month:02}"),
                Some('d') => out += &format!("{day:02}"),
                Some('B') => out += name,
                Some('b') => out += &name[..3],
                Some('A') => out += weekday,
                Some('a') => out += &weekday[..3],
                Some('H') => out += &format!("{:02}", second_of_day / 3600),
                Some('M') => out += &format!("{:02}", second_of_day / 60 % 60),
                Some('S') => out += &format!("{:02}", second_of_day % 60),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}

/// Year, month and day of a day number since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}
