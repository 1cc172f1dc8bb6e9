//! Walks pickles without running them: which names they import, what they call, and whether they can be followed to the end.
//!
//! The machine that a pickle drives is kept in outline: a stack and a memo of texts, imported names and "something". So a name that
//! is put together from texts on the stack is known like one that stands in one instruction. It never imports, calls or builds.
//!
//! Invariant: an import that the walk did not see can't happen before the point that it reached, and what was not reached is not
//! called clean. Memory: at most [`STACK_MAX`] and [`MEMO_MAX`] values.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read, Seek, SeekFrom},
    rc::Rc,
};

use super::{
    FileFindings, Verdict,
    imports::{self, Import},
    kind::{self, PICKLE_NAMES},
    opcodes::{Argument, Broken, Instruction, Instructions},
};

/// Bytes of pickles that are walked; weights lie beside them or are read past.
pub(super) const PICKLE_BYTES_MAX: u64 = 16 << 30;
/// Instructions of one file.
const INSTRUCTIONS_MAX: u64 = 100_000_000;
/// Values on the stack.
const STACK_MAX: usize = 1 << 20;
/// Values in the memo.
const MEMO_MAX: usize = 1 << 21;
/// Pickles in a row.
const PICKLES_MAX: usize = 16;
/// Listed names that are told.
const LISTED_MAX: usize = 12;
/// The first pickle of what `torch.save` wrote before it wrote archives; four more follow, then the weights.
const TORCH_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const TORCH_PICKLES: usize = 5;

/// Walks a file that is a pickle by its first bytes or by its name.
pub(super) fn file(reader: &mut impl Read, name: &str, found: &mut FileFindings) -> io::Result<()> {
    let walk = walk(reader)?;
    let is_named = PICKLE_NAMES.contains(&kind::extension(name));
    if !is_named && walk.end != End::Whole && walk.imports.is_empty() {
        // Weights may begin with any two bytes, and a pickle that imports nothing does nothing.
        found.found(Verdict::Clean, "begins like a pickle, and is none");
        return Ok(());
    }
    walk.tell("", found);
    Ok(())
}

/// Walks a file that would be a pickle of the first protocols, which have no mark, if it can be walked.
pub(super) fn perhaps(reader: &mut (impl Read + Seek), name: &str, found: &mut FileFindings) -> io::Result<()> {
    reader.seek(SeekFrom::Start(0))?;
    let walk = walk(reader)?;
    if walk.end == End::Whole && !walk.imports.is_empty() || walk.is_attack {
        found.found(Verdict::Unsafe, format!("a pickle without a mark, in {name}"));
        walk.tell("", found);
    }
    Ok(())
}

/// Walks the pickles of a reader and tells what they do; `place` is where they lie inside a file, or empty.
pub(super) fn inside(reader: &mut impl Read, place: &str, found: &mut FileFindings) -> io::Result<()> {
    walk(reader)?.tell(place, found);
    Ok(())
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Malformed,
    TooLong,
}

/// What pickles do.
struct Walk {
    end: End,
    /// Module and name, with how each is judged.
    imports: BTreeSet<(String, String)>,
    calls: u64,
    /// What is found beside plain imports.
    findings: Vec<(Verdict, String)>,
    /// A dangerous name was called.
    is_attack: bool,
}

impl Walk {
    fn tell(self, place: &str, found: &mut FileFindings) {
        let at = if place.is_empty() { String::new() } else { format!("{place}: ") };
        let mut listed = Vec::new();
        for (module, name) in &self.imports {
            let what = format!("{module}.{name}");
            match imports::judge(module, name) {
                Import::Listed => listed.push(what),
                Import::Unknown => {
                    found.found(
                        Verdict::Unsafe,
                        format!("{at}imports {what}, which is not on the list of what data needs"),
                    );
                }
                Import::Dangerous => {
                    found.found(Verdict::Unsafe, format!("{at}imports {what}, which runs or opens something"));
                }
            }
        }
        self.findings.iter().for_each(|(verdict, what)| found.found(*verdict, format!("{at}{what}")));
        match self.end {
            End::Whole => {}
            End::Malformed => found.found(Verdict::Unsafe, format!("{at}a pickle that can't be followed to its end")),
            End::TooLong => found.found(Verdict::Unsafe, format!("{at}a pickle too long to be followed to its end")),
        }
        if !listed.is_empty() {
            let more = listed.len().saturating_sub(LISTED_MAX);
            listed.truncate(LISTED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let what = format!("{at}a pickle of data: {} calls, of {}{more}", self.calls, listed.join(", "));
            found.found(Verdict::Clean, what);
        }
    }
}

fn walk(reader: &mut impl Read) -> io::Result<Walk> {
    let mut instructions = Instructions::new(reader.take(PICKLE_BYTES_MAX));
    let mut machine = Machine::default();
    let mut pickles = 0;
    let end = loop {
        match machine.run(&mut instructions) {
            Ok(()) => pickles += 1,
            Err(Stop::TooLong) => break End::TooLong,
            Err(Stop::Broken(Broken::Io(error))) => return Err(error),
            Err(Stop::Broken(_)) => break End::Malformed,
        }
        let more = match instructions.ahead() {
            Ok(ahead) if machine.is_torch => !ahead.is_empty() && pickles < TORCH_PICKLES,
            Ok(ahead) => matches!(ahead, [0x80, 0..=5, ..]),
            Err(Broken::Io(error)) => return Err(error),
            Err(_) => break End::Malformed,
        };
        if !more {
            break End::Whole;
        }
        if pickles == PICKLES_MAX {
            break End::TooLong;
        }
    };
    let Machine { imports, calls, findings, is_attack, .. } = machine;
    Ok(Walk { end, imports, calls, findings: findings.into_iter().collect(), is_attack })
}

enum Stop {
    Broken(Broken),
    TooLong,
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

const WRONG: Stop = Stop::Broken(Broken::Wrong);

/// What lies on the stack, as far as it matters.
#[derive(Clone)]
enum Value {
    Mark,
    Text(Rc<str>),
    Global(Rc<(String, String)>),
    Something,
}

/// The outline of the machine that runs pickles.
#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<u64, Value>,
    steps: u64,
    imports: BTreeSet<(String, String)>,
    calls: u64,
    findings: BTreeSet<(Verdict, String)>,
    is_attack: bool,
    is_torch: bool,
}

impl Machine {
    /// One pickle, to its end.
    fn run(&mut self, instructions: &mut Instructions<impl Read>) -> Result<(), Stop> {
        self.stack.clear();
        self.memo.clear();
        loop {
            self.steps += 1;
            let is_full = self.stack.len() >= STACK_MAX || self.memo.len() >= MEMO_MAX;
            if self.steps > INSTRUCTIONS_MAX || is_full || self.imports.len() > super::FINDINGS_MAX * 16 {
                return Err(Stop::TooLong);
            }
            let instruction = instructions.next()?;
            if instruction.code == b'.' {
                return self.pop().map(drop);
            }
            self.step(instruction)?;
        }
    }

    fn step(&mut self, instruction: Instruction) -> Result<(), Stop> {
        let Instruction { code, argument } = instruction;
        match code {
            b'c' => self.import(argument),
            b'i' => {
                self.pop_to_mark()?;
                self.import(argument)?;
                self.call_top()
            }
            b'R' | 0x81 => {
                self.pop()?;
                self.call_top()
            }
            0x92 => {
                self.pop()?;
                self.pop()?;
                self.call_top()
            }
            b'o' => self.object(),
            b'b' => self.build(),
            0x93 => self.stack_global(),
            0x82..=0x84 => {
                self.find(Verdict::Unsafe, "imports by a number of the extension registry");
                self.push(Value::Something)
            }
            b'p' | b'q' | b'r' | b'g' | b'h' | b'j' | 0x94 => self.remember(code, &argument),
            _ => self.shuffle(code, argument),
        }
    }

    /// Instructions that move values and make none that matters.
    fn shuffle(&mut self, code: u8, argument: Argument) -> Result<(), Stop> {
        match (code, argument) {
            (b'(', _) => self.push(Value::Mark),
            (b'0', _) => self.stack.pop().map(drop).ok_or(WRONG),
            (b'1', _) => self.pop_to_mark(),
            (b'2', _) => {
                let top = self.top()?.clone();
                self.push(top)
            }
            (0x80 | 0x95, _) => Ok(()),
            (0x98, _) => self.top().map(drop),
            // Take one and leave one.
            (b'Q' | 0x85, _) => self.replace(1),
            (0x86, _) => self.replace(2),
            (0x87, _) => self.replace(3),
            // Add to what lies below.
            (b'a', _) => self.pop().and_then(|_| self.top().map(drop)),
            (b's', _) => self.pop().and_then(|_| self.pop()).and_then(|_| self.top().map(drop)),
            (b'e' | b'u' | 0x90, _) => self.pop_to_mark().and_then(|()| self.top().map(drop)),
            // Gather.
            (b'd' | b'l' | b't' | 0x91, _) => self.pop_to_mark().and_then(|()| self.push(Value::Something)),
            (_, Argument::Text(Some(text))) => self.push(Value::Text(text.into())),
            (0x8a, Argument::Few(few)) => {
                self.is_torch |= few == TORCH_MAGIC;
                self.push(Value::Something)
            }
            _ => self.push(Value::Something),
        }
    }

    fn import(&mut self, argument: Argument) -> Result<(), Stop> {
        match argument {
            Argument::Global(Some((module, name))) => self.imported(module, name),
            _ => {
                self.find(Verdict::Unsafe, "imports a name that is longer than any or no text");
                self.push(Value::Something)
            }
        }
    }

    fn imported(&mut self, module: String, name: String) -> Result<(), Stop> {
        self.imports.insert((module.clone(), name.clone()));
        self.push(Value::Global(Rc::new((module, name))))
    }

    fn stack_global(&mut self) -> Result<(), Stop> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (module, name) {
            (Value::Text(module), Value::Text(name)) => self.imported(module.to_string(), name.to_string()),
            _ => {
                self.find(Verdict::Unsafe, "imports a name that it computes");
                self.push(Value::Something)
            }
        }
    }

    /// Calls what lies on top, with arguments that were taken off.
    fn call_top(&mut self) -> Result<(), Stop> {
        self.calls += 1;
        match self.pop()? {
            Value::Global(global) => self.called(&global.0, &global.1),
            _ => self.find(Verdict::Unsafe, "calls what it computed"),
        }
        self.push(Value::Something)
    }

    fn called(&mut self, module: &str, name: &str) {
        match imports::judge(module, name) {
            Import::Listed => {}
            Import::Unknown => self.find(Verdict::Unsafe, &format!("calls {module}.{name}")),
            Import::Dangerous => {
                self.is_attack = true;
                self.find(Verdict::Unsafe, &format!("calls {module}.{name}"));
            }
        }
    }

    /// The callable lies on the mark, its arguments above.
    fn object(&mut self) -> Result<(), Stop> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or(WRONG)?;
        let callable = self.stack.get(mark + 1).cloned().ok_or(WRONG)?;
        self.stack.truncate(mark);
        self.push(callable)?;
        self.call_top()
    }

    fn build(&mut self) -> Result<(), Stop> {
        self.pop()?;
        if let Value::Global(global) = self.top()?.clone() {
            self.find(Verdict::Unsafe, &format!("changes {}.{} itself", global.0, global.1));
        }
        Ok(())
    }

    fn remember(&mut self, code: u8, argument: &Argument) -> Result<(), Stop> {
        let place = match argument {
            Argument::Number(place) => *place,
            _ => self.memo.len() as u64,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let value = self.memo.get(&place).cloned().ok_or(WRONG)?;
            return self.push(value);
        }
        let value = self.top()?.clone();
        self.memo.insert(place, value);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), Stop> {
        self.stack.push(value);
        Ok(())
    }

    /// Takes a value off; a mark is none.
    fn pop(&mut self) -> Result<Value, Stop> {
        match self.stack.pop() {
            Some(Value::Mark) | None => Err(WRONG),
            Some(value) => Ok(value),
        }
    }

    fn top(&self) -> Result<&Value, Stop> {
        self.stack.last().filter(|value| !matches!(value, Value::Mark)).ok_or(WRONG)
    }

    fn replace(&mut self, count: usize) -> Result<(), Stop> {
        for _ in 0..count {
            self.pop()?;
        }
        self.push(Value::Something)
    }

    fn pop_to_mark(&mut self) -> Result<(), Stop> {
        while let Some(value) = self.stack.pop() {
            if matches!(value, Value::Mark) {
                return Ok(());
            }
        }
        Err(WRONG)
    }

    fn find(&mut self, verdict: Verdict, what: &str) {
        if self.findings.len() < super::FINDINGS_MAX * 2 {
            self.findings.insert((verdict, what.to_owned()));
        }
    }
}
