//! Paths inside a revision. Not paths of this machine. Invariant: joined to a folder of any system, a [`FilePath`] stays
//! inside it and names the same file everywhere: no `..`, no absolute path, no drive, no NUL, no name that Windows reserves.

use std::fmt;
use std::str::FromStr;

use crate::limits::{PATH_BYTES_MAX, PATH_PART_BYTES_MAX};

/// Why a text is not a path of a revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Empty or longer than the limit.
    #[error("a path has 1 to {PATH_BYTES_MAX} bytes, its parts at most {PATH_PART_BYTES_MAX}")]
    Length,
    /// `.`, `..`, an empty part, or a slash at an end.
    #[error("`{0}` is not a relative path inside the revision")]
    Escapes(String),
    /// A character that some system gives a meaning.
    #[error("`{0}` has a character that is not portable (control, direction, backslash, or one of : < > \" | ? *)")]
    Character(String),
    /// A name that Windows takes for a device, or a part that it would shorten.
    #[error("`{0}` has a part that Windows reserves or changes")]
    Reserved(String),
}

/// A validated path: relative, parts separated by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(String);

impl FilePath {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In lowercase: two paths of one revision may not be equal in this form.
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }

    /// The part after the last slash.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Its parts, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for FilePath {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() || text.len() > PATH_BYTES_MAX {
            return Err(PathError::Length);
        }
        if text.contains(|c: char| c.is_control() || is_reordering(c) || "\\:<>\"|?*".contains(c)) {
            return Err(PathError::Character(text.escape_debug().collect()));
        }
        for part in text.split('/') {
            check_part(part, text)?;
        }
        Ok(Self(text.to_owned()))
    }
}

fn check_part(part: &str, whole: &str) -> Result<(), PathError> {
    match part {
        "" | "." | ".." => Err(PathError::Escapes(whole.to_owned())),
        _ if part.len() > PATH_PART_BYTES_MAX => Err(PathError::Length),
        _ if part.ends_with(['.', ' ']) || is_device(part) => Err(PathError::Reserved(whole.to_owned())),
        _ => Ok(()),
    }
}

/// Characters that show the rest of a name in another order: `exe.txt` is then `txt.exe`.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Windows takes `con`, `con.txt` and `con .txt` for the console.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end_matches(' ').to_ascii_uppercase();
    let numbered = |stem: &str| {
        let digit = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
        digit.is_some_and(|digit| {
            matches!(digit, "¹" | "²" | "³") || (digit.len() == 1 && digit.as_bytes()[0].is_ascii_digit())
        })
    };
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$") || numbered(&stem)
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_are_accepted() {
        for path in [
            "config.json",
            "a/b/c.safetensors",
            ".gitattributes",
            "onnx/модель.onnx",
            "com10.txt",
            "console.log",
            "a b.txt",
        ] {
            assert_eq!(path.parse::<FilePath>().unwrap().as_str(), path);
        }
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a/."] {
            assert!(path.parse::<FilePath>().is_err(), "{path:?} was accepted");
        }
    }

    #[test]
    fn paths_that_mean_something_else_on_windows_are_refused() {
        for path in [
            "C:/x", "a\\b", "a:b", "nul", "NUL.txt", "x/con", "Com1.log", "aux .x", "lpt¹", "a.", "a ", "a./b", "a\0b",
            "a\nb", "a?b",
        ] {
            assert!(path.parse::<FilePath>().is_err(), "{path:?} was accepted");
        }
    }

    #[test]
    fn names_that_show_as_another_are_refused() {
        for path in ["cod\u{202e}gpj.exe", "a\u{2066}b", "a\u{200f}.txt"] {
            assert!(matches!(path.parse::<FilePath>(), Err(PathError::Character(_))), "{path:?} was accepted");
        }
    }

    #[test]
    fn long_paths_are_refused() {
        assert_eq!("a".repeat(256).parse::<FilePath>(), Err(PathError::Length));
        assert_eq!(["a"; 600].join("/").parse::<FilePath>(), Err(PathError::Length));
        assert!("a".repeat(255).parse::<FilePath>().is_ok());
    }
}
