//! A card's text without its markup: what a search looks through and a page shows a line of.
//!
//! Not a Markdown renderer: pictures, addresses of links, tags of HTML, code fences and rules of tables go, words stay.
//!
//! Invariant: the result has at most so many bytes as were asked for, one space between words, and is cut between characters.

/// The words of a Markdown text, at most `bytes_max` bytes of them. One pass over at most what is needed.
pub(super) fn plain(markdown: &str, bytes_max: usize) -> String {
    let mut plain = String::new();
    let mut is_code = false;
    for line in markdown.lines() {
        let trimmed = line.trim();
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            is_code = !is_code;
            continue;
        }
        if is_code || is_rule(trimmed) {
            continue;
        }
        push_words(&mut plain, trimmed.trim_start_matches(['#', '>', '-', '*', '+', ' ']), bytes_max);
        if plain.len() >= bytes_max {
            break;
        }
    }
    plain.truncate(plain.floor_char_boundary(bytes_max));
    plain.truncate(plain.trim_end().len());
    plain
}

/// A line of a table's or heading's frame.
fn is_rule(line: &str) -> bool {
    !line.is_empty() && line.chars().all(|c| matches!(c, '-' | '=' | '|' | ':' | ' ' | '*' | '_'))
}

fn push_words(plain: &mut String, line: &str, bytes_max: usize) {
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if plain.len() > bytes_max {
            return;
        }
        let skipped = skip(rest, c);
        if let Some(skipped) = skipped {
            rest = skipped;
            push_space(plain);
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '*' | '`' | '|' | '[' | ']' => {}
            c if c.is_whitespace() || c.is_control() => push_space(plain),
            c => plain.push(c),
        }
    }
    push_space(plain);
}

/// What follows a tag of HTML, the address of a link or a bare address, if the rest begins with one.
fn skip(rest: &str, first: char) -> Option<&str> {
    match first {
        '<' => {
            let is_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
            let end = if is_tag { rest.find('>')? } else { return None };
            Some(&rest[end + 1..])
        }
        ']' if rest[1..].starts_with('(') => rest.find(')').map(|end| &rest[end + 1..]),
        'h' if rest.starts_with("http://") || rest.starts_with("https://") => {
            let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ')' | '>' | '"')).unwrap_or(rest.len());
            Some(&rest[end..])
        }
        '!' if rest[1..].starts_with('[') => Some(&rest[1..]),
        _ => None,
    }
}

fn push_space(plain: &mut String) {
    if !plain.is_empty() && !plain.ends_with(' ') {
        plain.push(' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_and_markup_goes() {
        let card = "# Tiny **Llama**\n\n![logo](https://x.y/z.png) A [small](http://a.b) model, 3 < 4.\n<br/>\n| a | b |\n|---|---|\n\
            ```python\nimport x\n```\n> See https://example.org/q?a=b for `more`.\n";
        assert_eq!(plain(card, 4096), "Tiny Llama logo A small model, 3 < 4. a b See for more.");
    }

    #[test]
    fn it_is_cut_between_characters() {
        assert_eq!(plain(&"ü".repeat(100), 5), "üü");
        assert_eq!(plain("one two three", 8), "one two");
        assert_eq!(plain("", 8), "");
    }

    #[test]
    fn any_text_is_taken() {
        use proptest::prelude::*;
        proptest!(|(text in "[\\[\\]()<>!#*`| \\nha-z:/é]{0,80}", bytes_max in 0usize..40)| {
            let plain = plain(&text, bytes_max);
            prop_assert!(plain.len() <= bytes_max && !plain.contains("  "));
        });
    }
}
