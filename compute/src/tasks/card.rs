//! Which task a model is for, from what its own files say. Pure.
//!
//! In this order: `modules.json` of the sentence-transformers library, the README's `pipeline_tag`, its `library_name`, and
//! last the class that `architectures` names. Not a judgement of whether the model can be computed ([`super::encoder`]).
//! Invariant: no guess; files that say nothing give [`Task::Unknown`].

use serde_json::Value;

/// Longest front matter that is read.
const FRONT_BYTES_MAX: usize = 64 << 10;
/// Longest word that is taken from a file.
const WORD_BYTES_MAX: usize = 64;

/// What a model's files say of its use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// `pipeline_tag` of the README's front matter.
    pub pipeline_tag: Option<String>,
    /// `library_name` of the same.
    pub library_name: Option<String>,
    /// The first of `architectures` in `config.json`.
    pub architecture: Option<String>,
    /// There is a `modules.json`.
    pub has_modules: bool,
}

/// What a model is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A task of [`super::SERVED`], by name.
    Served(&'static str),
    /// Another, as the hub calls it.
    Unserved(String),
    /// Its files do not say.
    Unknown,
}

impl Card {
    /// From the files, as far as they are there.
    pub fn read(readme: Option<&[u8]>, config: Option<&[u8]>, has_modules: bool) -> Card {
        let front = readme.map(front_matter).unwrap_or_default();
        let config: Value = config.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        let architecture = config["architectures"][0].as_str().and_then(word);
        Card {
            pipeline_tag: value_of(&front, "pipeline_tag"),
            library_name: value_of(&front, "library_name"),
            architecture,
            has_modules,
        }
    }

    /// The task.
    pub fn task(&self) -> Task {
        if self.has_modules || self.library_name.as_deref() == Some("sentence-transformers") {
            return Task::Served("embed");
        }
        let tag = self.pipeline_tag.as_deref().or_else(|| self.architecture.as_deref().and_then(tag_of_class));
        match tag {
            None => Task::Unknown,
            Some(tag) => match super::SERVED.iter().find(|task| task.tags.contains(&tag)) {
                Some(task) => Task::Served(task.name),
                None => Task::Unserved(tag.to_owned()),
            },
        }
    }
}

/// What the hub calls the use of a class of the transformers library.
fn tag_of_class(class: &str) -> Option<&'static str> {
    const ENDS: [(&str, &str); 12] = [
        ("ForSequenceClassification", "text-classification"),
        ("ForTokenClassification", "token-classification"),
        ("ForQuestionAnswering", "question-answering"),
        ("ForMaskedLM", "fill-mask"),
        ("ForPreTraining", "fill-mask"),
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
        ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
        ("ForCTC", "automatic-speech-recognition"),
        ("ForImageClassification", "image-classification"),
        ("ForObjectDetection", "object-detection"),
        ("Model", "feature-extraction"),
    ];
    match class {
        "MarianMTModel" => Some("translation"),
        "WhisperForConditionalGeneration" => Some("automatic-speech-recognition"),
        _ if class.ends_with("ForConditionalGeneration") => Some("text2text-generation"),
        _ => ENDS.iter().find(|(end, _)| class.ends_with(end)).map(|(_, tag)| *tag),
    }
}

/// The lines between the first two `---` of a README.
fn front_matter(readme: &[u8]) -> String {
    let text = String::from_utf8_lossy(&readme[..readme.len().min(FRONT_BYTES_MAX)]);
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return String::new();
    }
    lines.take_while(|line| line.trim_end() != "---").fold(String::new(), |all, line| all + line + "\n")
}

/// The value of a key at the left margin; YAML of more than one line is none of these keys'.
fn value_of(front: &str, key: &str) -> Option<String> {
    let value = front.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let value = value.split(" #").next().unwrap_or(value).trim();
    word(value.trim_matches(['"', '\'']))
}

fn word(text: &str) -> Option<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!text.is_empty() && text.len() <= WORD_BYTES_MAX && text.chars().all(is_word)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(readme: &str, config: &str, has_modules: bool) -> Task {
        Card::read(Some(readme.as_bytes()), Some(config.as_bytes()), has_modules).task()
    }

    #[test]
    fn a_models_own_files_say_what_it_is_for() {
        let unserved = |tag: &str| Task::Unserved(tag.to_owned());
        let tagged = |tag: &str| format!("---\nlicense: mit\npipeline_tag: {tag}\n---\n# A model\n");
        let class = |class: &str| format!("{{\"architectures\":[\"{class}\"]}}");
        for (readme, config, has_modules, expected) in [
            (tagged("sentence-similarity"), String::new(), false, Task::Served("embed")),
            (tagged("\"feature-extraction\"  # both"), String::new(), false, Task::Served("embed")),
            (tagged("translation"), class("BertModel"), false, unserved("translation")),
            (tagged("text-classification"), class("BertModel"), true, Task::Served("embed")),
            ("---\nlibrary_name: sentence-transformers\n---".to_owned(), String::new(), false, Task::Served("embed")),
            (String::new(), class("BertModel"), false, Task::Served("embed")),
            (String::new(), class("RobertaForSequenceClassification"), false, unserved("text-classification")),
            (String::new(), class("WhisperForConditionalGeneration"), false, unserved("automatic-speech-recognition")),
            (String::new(), class("LlamaForCausalLM"), false, unserved("text-generation")),
            ("pipeline_tag: translation".to_owned(), String::new(), false, Task::Unknown),
            (tagged("a b\u{1b}[2J"), "{".to_owned(), false, Task::Unknown),
        ] {
            assert_eq!(task(&readme, &config, has_modules), expected, "{readme:?} {config:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_card() {
        for bytes in [&b"---"[..], b"---\n", b"---\n---", b"\xff\xfe---\n", b"---\npipeline_tag\n---", b"[[[[["] {
            assert_eq!(Card::read(Some(bytes), Some(bytes), false).task(), Task::Unknown);
        }
    }
}
