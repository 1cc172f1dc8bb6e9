//! Reads the instructions of a pickle one by one, with their arguments. It knows how long each is and nothing of what it does.
//! Source: Python's `pickletools.py`, protocols 0 to 5.
//!
//! Invariant: of an argument, at most [`TEXT_BYTES_MAX`] are held in memory, whatever length it claims; the rest is read past.

use std::io::{self, BufRead, BufReader, Read};

/// Longest text that is remembered: names of modules are short, and what is longer can't be on a list.
const TEXT_BYTES_MAX: usize = 256;
/// Longest line of digits.
const DIGITS_MAX: usize = 32;

/// An instruction.
#[derive(Debug, PartialEq)]
pub(super) struct Instruction {
    pub(super) code: u8,
    pub(super) argument: Argument,
}

/// What follows an instruction's byte.
#[derive(Debug, PartialEq)]
pub(super) enum Argument {
    Nothing,
    /// A number that means a place, or a length that was read past.
    Number(u64),
    /// A text; `None` if it is long or not UTF-8.
    Text(Option<String>),
    /// Module and name; `None` if one of them is long or not UTF-8.
    Global(Option<(String, String)>),
    /// Some few bytes.
    Few(Vec<u8>),
}

/// Why there is no next instruction.
#[derive(Debug)]
pub(super) enum Broken {
    /// The bytes end.
    Ends,
    /// No such instruction, or an argument that none has.
    Wrong,
    /// The reader failed.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        // A packed stream that is damaged says so by these.
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Ends,
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Self::Wrong,
            _ => Self::Io(error),
        }
    }
}

/// A pickle, or several in a row.
pub(super) struct Instructions<R> {
    reader: BufReader<R>,
}

impl<R: Read> Instructions<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, reader) }
    }

    /// The first bytes of what is left, for a look.
    pub(super) fn ahead(&mut self) -> Result<&[u8], Broken> {
        Ok(self.reader.fill_buf()?)
    }

    /// The next instruction.
    pub(super) fn next(&mut self) -> Result<Instruction, Broken> {
        let code = self.array::<1>()?[0];
        let argument = self.argument(code)?;
        Ok(Instruction { code, argument })
    }

    fn argument(&mut self, code: u8) -> Result<Argument, Broken> {
        Ok(match code {
            b'(' | b')' | b'.' | b'0' | b'1' | b'2' | b'N' | b'Q' | b'R' | b']' | b'a' | b'b' | b'd' | b'e' | b'l' => {
                Argument::Nothing
            }
            b'o' | b's' | b't' | b'u' | b'}' | 0x81 | 0x85..=0x89 | 0x8f..=0x94 | 0x97 | 0x98 => Argument::Nothing,
            b'F' | b'I' | b'L' | b'P' => {
                self.line()?;
                Argument::Nothing
            }
            b'S' => Argument::Text(self.line()?.map(|line| unquoted(&line))),
            b'V' => Argument::Text(self.line()?),
            b'c' | b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                Argument::Global(module.zip(name))
            }
            b'g' | b'p' => self.digits()?,
            b'G' => self.skip(8)?,
            b'J' | 0x84 => self.skip(4)?,
            b'K' | 0x80 | 0x82 => self.skip(1)?,
            b'M' | 0x83 => self.skip(2)?,
            0x95 => self.skip(8)?,
            b'h' | b'q' => Argument::Number(self.array::<1>()?[0].into()),
            b'j' | b'r' => Argument::Number(u32::from_le_bytes(self.array()?).into()),
            0x8a => {
                let length = self.array::<1>()?[0];
                let mut few = vec![0; length.into()];
                self.reader.read_exact(&mut few)?;
                Argument::Few(few)
            }
            _ => return self.counted(code),
        })
    }

    /// Arguments that say their length first.
    fn counted(&mut self, code: u8) -> Result<Argument, Broken> {
        let length = match code {
            b'C' | b'U' | 0x8c => self.array::<1>()?[0].into(),
            b'B' | b'T' | b'X' | 0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                // Of these two the length is signed.
                if matches!(code, b'T' | 0x8b) && length > i32::MAX as u32 {
                    return Err(Broken::Wrong);
                }
                length.into()
            }
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.array()?),
            _ => return Err(Broken::Wrong),
        };
        match code {
            b'T' | b'U' | b'X' | 0x8c | 0x8d => self.text(length),
            _ => self.skip(length),
        }
    }

    fn text(&mut self, length: u64) -> Result<Argument, Broken> {
        if length > TEXT_BYTES_MAX as u64 {
            self.skip(length)?;
            return Ok(Argument::Text(None));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes)?;
        Ok(Argument::Text(String::from_utf8(bytes).ok()))
    }

    fn skip(&mut self, length: u64) -> Result<Argument, Broken> {
        let skipped = io::copy(&mut self.reader.by_ref().take(length), &mut io::sink())?;
        if skipped == length { Ok(Argument::Number(length)) } else { Err(Broken::Ends) }
    }

    /// A line without its end; `None` if it is long or not UTF-8.
    fn line(&mut self) -> Result<Option<String>, Broken> {
        let mut line = Vec::new();
        loop {
            let ahead = self.reader.fill_buf()?;
            if ahead.is_empty() {
                return Err(Broken::Ends);
            }
            let end = ahead.iter().position(|byte| *byte == b'\n');
            let part = &ahead[..end.unwrap_or(ahead.len())];
            let room = (TEXT_BYTES_MAX + 1).saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                let line = Some(line).filter(|line| line.len() <= TEXT_BYTES_MAX);
                return Ok(line.and_then(|line| String::from_utf8(line).ok()));
            }
        }
    }

    fn digits(&mut self) -> Result<Argument, Broken> {
        let line = self.line()?.filter(|line| line.len() <= DIGITS_MAX).ok_or(Broken::Wrong)?;
        line.trim().parse().map(Argument::Number).map_err(|_| Broken::Wrong)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The quotes of a text of protocol 0. Escapes stay, so that a text with one is on no list.
fn unquoted(line: &str) -> String {
    let inner = ['\'', '"'].iter().find_map(|quote| line.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.unwrap_or(line).to_owned()
}
