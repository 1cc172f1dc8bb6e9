//! What the `tokenizers` crate takes on trust in a `tokenizer.json`, checked before it is asked.
//!
//! Read from the crate's source, version 0.23: places where it indexes, slices or multiplies by what a file says. Not a
//! validator: what the crate checks itself is left to it, and a panic that is missed here is for the caller to catch.
//! Invariant: no file that passes makes a text grow beyond [`GROWTH_MAX`] times itself.

use serde_json::Value;

/// Most that normalizers and pre-tokenizers may make of a byte; real ones make 24 at most.
const GROWTH_MAX: usize = 256;
/// Longest prefix or suffix that a model puts to every piece of a word; real ones have up to 4 bytes.
const AFFIX_BYTES_MAX: usize = 64;

/// The parts of the file that are looked at.
pub(super) struct Parts<'a> {
    pub added_tokens: &'a Value,
    pub normalizer: &'a Value,
    pub pre_tokenizer: &'a Value,
    pub model: &'a Value,
}

/// Says what is wrong with the file, if something is.
pub(super) fn check(parts: &Parts) -> Result<(), String> {
    added_tokens(parts.added_tokens)?;
    let growth = growth(parts.normalizer)?.saturating_mul(growth(parts.pre_tokenizer)?);
    if growth > GROWTH_MAX {
        return Err(format!("it makes up to {growth} bytes of one, at most {GROWTH_MAX} are allowed"));
    }
    model(parts.model)
}

/// A token of white space that also swallows white space can end before it begins.
fn added_tokens(tokens: &Value) -> Result<(), String> {
    let strips = |token: &Value| token["lstrip"] == true || token["rstrip"] == true;
    let is_blank = |token: &Value| token["content"].as_str().is_some_and(|text| text.trim().is_empty());
    match tokens.as_array().into_iter().flatten().find(|token| is_blank(token) && strips(token)) {
        Some(token) => Err(format!("the added token {} is white space and strips white space", token["id"])),
        None => Ok(()),
    }
}

/// Bytes that a normalizer or a pre-tokenizer makes of one byte, at most.
fn growth(step: &Value) -> Result<usize, String> {
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    Ok(match step["type"].as_str() {
        Some("Sequence") => {
            let steps =
                [&step["normalizers"], &step["pretokenizers"]].into_iter().filter_map(Value::as_array).flatten();
            steps.map(growth).try_fold(1, |all: usize, one| Ok::<_, String>(all.saturating_mul(one?)))?
        }
        Some("Replace") => match length(&step["pattern"]["String"]) {
            // A regular expression, or an empty pattern, may match between any two bytes.
            0 => length(&step["content"]).saturating_add(1),
            pattern => length(&step["content"]).div_ceil(pattern).max(1),
        },
        Some("Prepend") => length(&step["prepend"]).saturating_add(1),
        Some("ByteLevel") => 2,
        Some("FixedLength") if step["length"] == 0 => return Err("it cuts texts into pieces of no length".to_owned()),
        _ => 1,
    })
}

/// Merges are joined in a buffer as long as the longest token, the right half less the prefix.
fn model(model: &Value) -> Result<(), String> {
    let affix = |name: &str| model[name].as_str().unwrap_or_default();
    let (prefix, suffix) = (affix("continuing_subword_prefix"), affix("end_of_word_suffix"));
    if prefix.len().max(suffix.len()) > AFFIX_BYTES_MAX {
        return Err(format!("its prefix or suffix of pieces is longer than {AFFIX_BYTES_MAX} bytes"));
    }
    let longest = model["vocab"].as_object().into_iter().flatten().map(|(token, _)| token.len()).max().unwrap_or(0);
    for merge in model["merges"].as_array().into_iter().flatten() {
        let halves = match merge {
            Value::String(line) => line.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        if let Some((left, right)) = halves {
            merge_fits(left, right, prefix, longest)?;
        }
    }
    Ok(())
}

/// Whether a merge's result can be a token, of which the longest has so many bytes.
pub(super) fn merge_fits(left: &str, right: &str, prefix: &str, longest: usize) -> Result<(), String> {
    let fits = right.strip_prefix(prefix).is_some_and(|rest| left.len() + rest.len() <= longest);
    if fits { Ok(()) } else { Err(format!("the merge of {left:?} and {right:?} is no token")) }
}

/// The first special token that a post-processor puts before a text.
pub(super) fn first_token(post_processor: &Value) -> Result<Option<u32>, String> {
    match post_processor["type"].as_str() {
        Some("TemplateProcessing") => first_of_template(post_processor),
        Some("RobertaProcessing" | "BertProcessing") => Ok(id(&post_processor["cls"][1])),
        Some("Sequence") => {
            let steps = post_processor["processors"].as_array().into_iter().flatten();
            let all: Vec<Option<u32>> = steps.map(first_token).collect::<Result<_, _>>()?;
            // The last one works on what the others made.
            Ok(all.into_iter().rev().flatten().next())
        }
        _ => Ok(None),
    }
}

fn first_of_template(processor: &Value) -> Result<Option<u32>, String> {
    let pieces = |name: &str| processor[name].as_array().into_iter().flatten();
    let special = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(str::to_owned);
    let known = |name: &String| processor["special_tokens"].get(name).is_some();
    if let Some(name) = pieces("single").chain(pieces("pair")).filter_map(special).find(|name| !known(name)) {
        return Err(format!("its post-processor names {name:?}, which is none of its special tokens"));
    }
    let before = pieces("single").take_while(|piece| piece.get("Sequence").is_none()).filter_map(special);
    Ok(before.filter_map(|name| id(&processor["special_tokens"][name]["ids"][0])).next())
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_special_token_before_the_text_is_found_in_every_kind_of_post_processor() {
        let template = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [6], "tokens": ["</s>"]}}});
        assert_eq!(first_token(&template), Ok(Some(5)));
        assert_eq!(
            first_token(&json!({"type": "Sequence", "processors": [template, {"type": "ByteLevel"}]})),
            Ok(Some(5))
        );
        assert_eq!(
            first_token(&json!({"type": "RobertaProcessing", "cls": ["<s>", 7], "sep": ["</s>", 2]})),
            Ok(Some(7))
        );
        assert_eq!(first_token(&json!({"type": "ByteLevel"})), Ok(None));
        assert_eq!(first_token(&Value::Null), Ok(None));
    }

    #[test]
    fn a_text_may_grow_as_real_normalizers_let_it_and_no_further() {
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
        assert_eq!(growth(&llama), Ok(12));
        let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        assert!(growth(&json!({"type": "Sequence", "normalizers": vec![doubling; 30]})).unwrap() > GROWTH_MAX);
    }
}
