//! A stranger's template, run so that it can't take the machine with it.
//!
//! minijinja's fuel bounds the steps of a run, but one step may double a string, and a value may nest until dropping it
//! overflows the stack. So here every step that makes something is charged for it:
//!
//! * plain text becomes an expression, since every expression is emitted through a formatter, which charges;
//! * `+`, `~` and `*` become calls of functions that charge before they compute;
//! * filters and Python's methods are charged for what they return, and those whose result may be longer than their
//!   arguments are measured first;
//! * what `set` assigns is copied flat: a bounded number of levels, nothing lazy, no namespace inside another.
//!
//! Not a sandbox of time: fuel is. Invariant: all that a run ever makes is at most [`MADE_BYTES_MAX`] plus a constant a
//! step, so whatever it holds is, too.

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig};
use minijinja::machinery::{make_string_output, parse, tokenize};
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters, functions};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All bytes that a run may make, in strings and lists together: a hundred times the longest conversation that a model
/// reads.
pub(super) const MADE_BYTES_MAX: usize = 64 << 20;
/// Steps a template may take; a conversation of a thousand messages takes about 200,000.
const FUEL: u64 = 4_000_000;
/// What one value costs, whatever it is.
const SLOT_BYTES: usize = 64;
/// Levels of lists and maps; JSON schemas of tools have up to 20.
const LEVELS_MAX: usize = 64;
/// Tokens between one pair of braces: the parser nests one level for each operator in a row.
const TAG_TOKENS_MAX: usize = 1000;
/// Names that are constants or begin a constant expression.
const CONSTANTS: [&str; 4] = ["true", "false", "none", "not"];
/// Begins the names of functions that only [`rewritten`] may call.
const OWN: &str = "__kept";

/// Renders a template.
pub(super) fn render(source: &str, mut environment: Environment<'_>, context: Value) -> Result<String, Error> {
    let source = rewritten(source)?;
    let budget = Arc::new(Budget(AtomicUsize::new(MADE_BYTES_MAX)));
    budget.govern(&mut environment);
    let plain = WhitespaceConfig { keep_trailing_newline: true, lstrip_blocks: false, trim_blocks: false };
    let tree = parse(&source, "template", Default::default(), plain)?;
    let mut code = CodeGenerator::new("template", &source);
    code.compile_stmt(&tree);
    let (mut instructions, mut blocks) = code.finish();
    blocks.values_mut().chain([&mut instructions]).for_each(charge_operators);
    run(&environment, &instructions, &blocks, context)
}

fn run<'e>(
    environment: &'e Environment<'e>,
    instructions: &Instructions<'e>,
    blocks: &BTreeMap<&'e str, Instructions<'e>>,
    context: Value,
) -> Result<String, Error> {
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    Vm::new(environment).eval(instructions, context, blocks, &mut out, AutoEscape::None)?;
    drop(out);
    Ok(text)
}

/// Puts calls in the place of operators that make something: both take their operands from the stack.
fn charge_operators(instructions: &mut Instructions<'_>) {
    let mut at = 0;
    while let Some(instruction) = instructions.get_mut(at) {
        let name = match instruction {
            Instruction::Add => Some("+"),
            Instruction::Mul => Some("*"),
            Instruction::StringConcat => Some("~"),
            _ => None,
        };
        if let Some(name) = name {
            *instruction = Instruction::CallFunction(name, Some(2));
        }
        at += 1;
    }
}

/// The same template with its plain text as expressions and its assignments through [`OWN`] functions. White space is
/// trimmed as `transformers` asks for.
fn rewritten(source: &str) -> Result<String, Error> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let mut out = String::with_capacity(source.len() * 2);
    let mut tag: Option<Tag> = None;
    for token in tokenize(source, false, Default::default(), whitespace) {
        let (token, span) = token?;
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        match (&token, &mut tag) {
            (Token::TemplateData(text), _) => push_literal(&mut out, text),
            (Token::VariableStart | Token::BlockStart, _) => {
                out += if matches!(token, Token::BlockStart) { "{% " } else { "{{ " };
                tag = Some(Tag { copied: end, ..Tag::default() });
            }
            (Token::VariableEnd | Token::BlockEnd, Some(open)) => {
                out += &source[open.copied..start];
                out += if open.is_assigned { "))" } else { "" };
                out += if matches!(token, Token::BlockEnd) { " %}" } else { " }}" };
                tag = None;
            }
            (_, Some(open)) => {
                if let Some(call) = open.take(&token)? {
                    out += &source[open.copied..end];
                    out += call;
                    open.copied = end;
                }
            }
            (_, None) => return Err(refused("it is not a template")),
        }
    }
    Ok(out)
}

fn push_literal(out: &mut String, text: &str) {
    *out += "{{ \"";
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    *out += "\" }}";
}

/// What is known of a tag while its tokens pass.
#[derive(Default)]
struct Tag {
    /// The source up to here is in the output.
    copied: usize,
    tokens: usize,
    /// Open parentheses, brackets and braces.
    depth: usize,
    is_set: bool,
    /// What is set is an attribute of something.
    has_dot: bool,
    is_assigned: bool,
    last: Last,
}

/// What the last token was, as far as a `*` after it matters.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Other,
    Text,
    Closing,
    Name,
    /// A `*` after a text.
    TextTimes,
    /// A parenthesis after that.
    TextTimesOpen,
    /// A `*` after something that is neither text nor name.
    Times,
    /// A `*` after a name.
    NameTimes,
}

impl Tag {
    /// Looks at a token; says what call begins after it.
    fn take(&mut self, token: &Token) -> Result<Option<&'static str>, Error> {
        self.tokens += 1;
        if self.tokens > TAG_TOKENS_MAX {
            return Err(refused("one of its tags is too long"));
        }
        self.last = self.times(token)?;
        match token {
            Token::Ident(name) if name.starts_with(OWN) => return Err(refused("it uses a name of ours")),
            Token::Ident("set") if self.tokens == 1 => self.is_set = true,
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => self.depth += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => self.depth = self.depth.saturating_sub(1),
            Token::Dot if !self.is_assigned => self.has_dot = true,
            Token::Assign if self.is_set && self.depth == 0 && !self.is_assigned => {
                self.is_assigned = true;
                return Ok(Some(if self.has_dot { " __kept_inside((" } else { " __kept((" }));
            }
            _ => {}
        }
        Ok(None)
    }

    /// The compiler itself computes a `*` of constants, before anything is charged: refused where an operand is a
    /// constant text or list and the other may be a constant. A list ends or begins in a bracket or a parenthesis.
    fn times(&self, token: &Token) -> Result<Last, Error> {
        let is_constant = match token {
            Token::Mul if self.last == Last::Closing => true,
            // A name that is no constant keeps the compiler from computing it.
            _ if self.last == Last::TextTimesOpen => {
                !matches!(token, Token::Ident(name) if !CONSTANTS.contains(&name.to_ascii_lowercase().as_str()))
            }
            Token::ParenOpen if self.last == Last::TextTimes => false,
            Token::ParenOpen | Token::BracketOpen => {
                matches!(self.last, Last::Times | Last::TextTimes | Last::NameTimes)
            }
            Token::Str(_) | Token::String(_) => matches!(self.last, Last::Times | Last::TextTimes),
            Token::Ident(_) => false,
            _ => self.last == Last::TextTimes,
        };
        if is_constant {
            return Err(refused("it multiplies a constant text or list"));
        }
        Ok(match (token, self.last) {
            (Token::ParenOpen, Last::TextTimes) => Last::TextTimesOpen,
            (Token::Mul, Last::Text) => Last::TextTimes,
            (Token::Mul, Last::Name) => Last::NameTimes,
            (Token::Mul, _) => Last::Times,
            (Token::Str(_) | Token::String(_), _) => Last::Text,
            (Token::ParenClose | Token::BracketClose, _) => Last::Closing,
            (Token::Ident(_), _) => Last::Name,
            _ => Last::Other,
        })
    }
}

/// Bytes that a run may still make.
struct Budget(AtomicUsize);

impl Budget {
    /// Sets the environment up so that everything is charged here.
    fn govern(self: &Arc<Self>, environment: &mut Environment<'_>) {
        environment.set_fuel(Some(FUEL));
        environment.remove_global("debug");
        environment.remove_filter("pprint");
        let budget = self.clone();
        environment.set_formatter(move |out, state, value| {
            budget.charge(deep(value)?)?;
            minijinja::escape_formatter(out, state, value)
        });
        let budget = self.clone();
        environment.set_unknown_method_callback(move |state, value, method, args| {
            let all: Vec<Value> = std::iter::once(value.clone()).chain(args.iter().cloned()).collect();
            budget.call(method, &all, || unknown_method_callback(state, value, method, args))
        });
        for (name, filter) in known_filters() {
            let budget = self.clone();
            environment.add_filter(name, move |state: &State, args: Rest<Value>| {
                budget.call(name, &args, || filter.call(state, &args))
            });
        }
        self.govern_operators(environment);
    }

    fn govern_operators(self: &Arc<Self>, environment: &mut Environment<'_>) {
        let budget = self.clone();
        environment.add_function("+", move |a: Value, b: Value| budget.add(&a, &b));
        let budget = self.clone();
        environment.add_function("*", move |a: Value, b: Value| budget.multiply(&a, &b));
        let budget = self.clone();
        environment.add_function("~", move |a: Value, b: Value| {
            budget.charge(deep(&a)?.saturating_add(deep(&b)?))?;
            Ok::<_, Error>(format!("{a}{b}"))
        });
        let budget = self.clone();
        environment.add_function("__kept", move |value: Value| match is_itself(&value) {
            true => Ok(value),
            false => budget.kept(&value, LEVELS_MAX),
        });
        let budget = self.clone();
        environment.add_function("__kept_inside", move |value: Value| budget.kept(&value, LEVELS_MAX));
        let (budget, namespace) = (self.clone(), Value::from_function(functions::namespace));
        environment.add_function("namespace", move |state: &State, args: Rest<Value>| {
            let kept: Vec<Value> = args.iter().map(|arg| budget.kept_arguments(arg)).collect::<Result<_, _>>()?;
            namespace.call(state, &kept)
        });
    }

    fn charge(&self, bytes: usize) -> Result<(), Error> {
        let spend = |left: usize| left.checked_sub(bytes);
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        spent.map(|_| ()).map_err(|_| too_much())
    }

    /// Calls a filter or a method.
    fn call(&self, name: &str, args: &[Value], work: impl FnOnce() -> Result<Value, Error>) -> Result<Value, Error> {
        if longest(name, args)? > MADE_BYTES_MAX {
            return Err(too_much());
        }
        let made = work()?;
        self.charge(size(&made)?)?;
        Ok(made)
    }

    fn add(&self, a: &Value, b: &Value) -> Result<Value, Error> {
        if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
            self.charge(a.len() + b.len() + SLOT_BYTES)?;
            return Ok(Value::from([a, b].concat()));
        }
        if is_list(a) && is_list(b) {
            self.charge(size(a)?.saturating_add(size(b)?))?;
            return Ok(Value::from(a.try_iter()?.chain(b.try_iter()?).collect::<Vec<Value>>()));
        }
        numbers("+", a, b, i128::checked_add, |a, b| a + b)
    }

    fn multiply(&self, a: &Value, b: &Value) -> Result<Value, Error> {
        let (repeated, times) = if a.as_str().is_some() || is_list(a) { (a, b) } else { (b, a) };
        let times = || times.as_usize().ok_or_else(|| refused("only whole numbers repeat texts and lists"));
        if let Some(text) = repeated.as_str() {
            self.charge((text.len() + SLOT_BYTES).saturating_mul(times()?.max(1)))?;
            return Ok(Value::from(text.repeat(times()?)));
        }
        if is_list(repeated) {
            self.charge(size(repeated)?.saturating_mul(times()?.max(1)))?;
            let items: Vec<Value> = repeated.try_iter()?.collect();
            return Ok(Value::from(vec![items; times()?].concat()));
        }
        numbers("*", a, b, i128::checked_mul, |a, b| a * b)
    }

    /// A copy that is nothing but strings, numbers, lists and maps of these.
    fn kept(&self, value: &Value, levels: usize) -> Result<Value, Error> {
        self.charge(SLOT_BYTES)?;
        let inside = || levels.checked_sub(1).ok_or_else(too_deep);
        match value.kind() {
            _ if is_itself(value) => Err(refused("it keeps a namespace or a macro inside another value")),
            ValueKind::Seq | ValueKind::Iterable => {
                let inside = inside()?;
                let items = value.try_iter()?.map(|item| self.kept(&item, inside));
                Ok(Value::from(items.collect::<Result<Vec<Value>, Error>>()?))
            }
            ValueKind::Map => {
                let inside = inside()?;
                let Some(pairs) = value.as_object().and_then(|map| map.try_iter_pairs()) else {
                    return Ok(value.clone());
                };
                let copied = pairs.map(|(key, item)| Ok((self.kept(&key, inside)?, self.kept(&item, inside)?)));
                Ok(copied.collect::<Result<Vec<(Value, Value)>, Error>>()?.into_iter().collect())
            }
            _ => Ok(value.clone()),
        }
    }

    /// The same for what a function is called with, where named arguments must stay such.
    fn kept_arguments(&self, value: &Value) -> Result<Value, Error> {
        if !value.is_kwargs() {
            return self.kept(value, LEVELS_MAX);
        }
        let named = Kwargs::try_from(value.clone())?;
        let keep = |name: &str| Ok((name.to_owned(), self.kept(&named.get::<Value>(name)?, LEVELS_MAX)?));
        let kept: Vec<(String, Value)> = named.args().map(keep).collect::<Result<_, Error>>()?;
        Ok(Value::from(kept.into_iter().collect::<Kwargs>()))
    }
}

/// Filters whose results are charged: minijinja's own and those that were added.
fn known_filters() -> Vec<(&'static str, Value)> {
    macro_rules! known {
        ($($name:literal $filter:ident),* $(,)?) => {
            vec![$(($name, Value::from_function(filters::$filter))),*]
        };
    }
    let own = Value::from_function(|value: Value, options: Kwargs| super::chat::to_json(&value, &options));
    let mut all = known![
        "escape" escape, "e" escape, "lower" lower, "upper" upper, "title" title, "capitalize" capitalize,
        "replace" replace, "length" length, "count" length, "dictsort" dictsort, "items" items, "reverse" reverse,
        "trim" trim, "join" join, "split" split, "lines" lines, "default" default, "d" default, "round" round,
        "abs" abs, "int" int, "float" float, "attr" attr, "first" first, "last" last, "min" min, "max" max,
        "sort" sort, "list" list, "string" string, "bool" bool, "batch" batch, "slice" slice, "sum" sum,
        "indent" indent, "select" select, "reject" reject, "selectattr" selectattr, "rejectattr" rejectattr,
        "map" map, "groupby" groupby, "unique" unique, "chain" chain, "zip" zip, "format" format,
    ];
    all.push(("tojson", own));
    all
}

/// Most bytes that a filter or a method may return for these arguments, where that is not in proportion to each of
/// them by itself.
fn longest(name: &str, args: &[Value]) -> Result<usize, Error> {
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let all =
        |args: &[Value]| args.iter().try_fold(0, |sum: usize, arg| Ok::<_, Error>(sum.saturating_add(deep(arg)?)));
    Ok(match name {
        "replace" => {
            let places = text(0).len().checked_div(text(1).len()).unwrap_or(text(0).len()) + 1;
            text(0).len().saturating_add(places.saturating_mul(text(2).len()))
        }
        "join" => {
            let (list, between) =
                if is_list(&args[0]) { (&args[0], text(1)) } else { (args.get(1).unwrap_or(&args[0]), text(0)) };
            let gaps = size(list)? / SLOT_BYTES;
            deep(list)?.saturating_add(gaps.saturating_mul(between.len()))
        }
        "split" | "lines" | "splitlines" => {
            let breaks = match text(1) {
                "" => text(0).chars().filter(|c| c.is_whitespace()).count(),
                between => text(0).matches(between).count(),
            };
            text(0).len().saturating_add((breaks + 1).saturating_mul(SLOT_BYTES))
        }
        "list" | "sort" | "unique" | "reverse" | "min" | "max"
            if args.first().is_some_and(|v| v.as_str().is_some()) =>
        {
            text(0).len().saturating_mul(SLOT_BYTES)
        }
        "indent" | "batch" | "slice" | "format" => {
            let holes = if name == "format" { text(0).matches(['%', '{']).count() } else { 1 };
            let number = args.iter().map(largest_number).max().unwrap_or(0).max(digits(text(0)));
            let each = if name == "indent" { lines(text(0)) } else { 1 };
            all(args)?.saturating_mul(holes.max(1)).saturating_add(
                number
                    .saturating_mul(holes.max(1))
                    .saturating_mul(each)
                    .saturating_mul(if name == "batch" || name == "slice" { SLOT_BYTES } else { 1 }),
            )
        }
        "tojson" | "string" | "list" | "sort" | "unique" | "groupby" | "map" | "sum" | "select" | "reject"
        | "escape" | "e" | "chain" | "zip" | "dictsort" | "min" | "max" | "selectattr" | "rejectattr" | "urlencode" => {
            all(args)?
        }
        _ => 0,
    })
}

fn lines(text: &str) -> usize {
    text.matches('\n').count() + 1
}

/// The largest whole number that an argument says, by name or not.
fn largest_number(value: &Value) -> usize {
    match Kwargs::try_from(value.clone()) {
        Ok(named) if value.is_kwargs() => {
            let number = |name: &str| named.get::<Value>(name).ok().and_then(|value| value.as_usize());
            named.args().filter_map(number).max().unwrap_or(0)
        }
        _ => value.as_usize().unwrap_or(0),
    }
}

/// The largest number written in a text.
fn digits(text: &str) -> usize {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0)
}

/// What a value itself takes: its text, or its places. At most a little more than [`MADE_BYTES_MAX`] is ever counted.
fn size(value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len() + SLOT_BYTES);
    }
    let most = MADE_BYTES_MAX / SLOT_BYTES + 1;
    let places = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => match value.len() {
            Some(length) => length,
            None => value.try_iter()?.take(most).count(),
        },
        _ => 0,
    };
    Ok(places.saturating_add(1).saturating_mul(SLOT_BYTES))
}

/// What a value takes with everything in it, each time it occurs.
fn deep(value: &Value) -> Result<usize, Error> {
    let mut bytes = 0;
    add_deep(value, LEVELS_MAX, &mut bytes)?;
    Ok(bytes)
}

fn add_deep(value: &Value, levels: usize, bytes: &mut usize) -> Result<(), Error> {
    *bytes += SLOT_BYTES + value.as_str().map_or(0, str::len);
    if *bytes > MADE_BYTES_MAX {
        return Err(too_much());
    }
    let inside = || levels.checked_sub(1).ok_or_else(too_deep);
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let inside = inside()?;
            value.try_iter()?.try_for_each(|item| add_deep(&item, inside, bytes))
        }
        ValueKind::Map => {
            let inside = inside()?;
            let mut pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
            pairs.try_for_each(|(key, item)| {
                add_deep(&key, inside, bytes)?;
                add_deep(&item, inside, bytes)
            })
        }
        _ => Ok(()),
    }
}

/// Numbers as minijinja computes with them: whole ones exactly, others as floats.
fn numbers(
    operator: &str,
    a: &Value,
    b: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(a) || !is_number(b) {
        return Err(refused(&format!("{operator} does not take {} and {}", a.kind(), b.kind())));
    }
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if is_whole(a) && is_whole(b) {
        let result = whole(i128::try_from(a.clone())?, i128::try_from(b.clone())?);
        let result = result.ok_or_else(|| refused("a number is too large"))?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    Ok(Value::from(float(f64::try_from(a.clone())?, f64::try_from(b.clone())?)))
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// Whether a value can't be copied: a namespace, which can be changed and so could hold itself, or a macro, which holds
/// what was around it. Their types are not public.
fn is_itself(value: &Value) -> bool {
    let is = |name: &str| name.ends_with("::Namespace") || name.ends_with("::Macro");
    value.as_object().is_some_and(|object| is(object.type_name()))
}

fn too_much() -> Error {
    refused(&format!("it makes more than {} MiB", MADE_BYTES_MAX >> 20))
}

fn too_deep() -> Error {
    refused(&format!("its values nest deeper than {LEVELS_MAX} levels"))
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_owned())
}
