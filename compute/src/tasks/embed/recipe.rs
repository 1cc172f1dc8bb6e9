//! How a model's hidden states become one vector: its encoder, most tokens, pooling, normalisation, prompts. From
//! `modules.json` and the files that it names, as the sentence-transformers library writes them; a model without those is
//! pooled by the mean, as that library does. Invariant: a module that is not understood is refused, never left out.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        encoder::{Hidden, Shape},
        files::{Files, LoadError},
    },
    EncodeError, PASS_TOKENS, pooling,
    pooling::Pooling,
};

/// Modules of one model: an encoder, pooling, normalisation, and some.
const MODULES_MAX: usize = 8;
/// Prompts of one model.
const PROMPTS_MAX: usize = 64;
/// Longest prompt: an instruction of a paragraph.
const PROMPT_BYTES_MAX: usize = 4 << 10;
/// Bytes that a tokenizer takes in memory for one of its file, about.
const TOKENIZER_GROWTH: u64 = 8;

/// The recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The encoder.
    pub shape: Shape,
    /// The folder of the encoder's files in the revision: empty, or ending in `/`.
    pub folder: String,
    /// Most tokens of a text, the special ones too; more are cut off.
    pub tokens_max: usize,
    /// Texts are put in lower case first.
    pub lowers_case: bool,
    /// Vectors have length 1.
    pub is_normalised: bool,
    poolings: Vec<Pooling>,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    tokenizer_bytes: u64,
}

impl Recipe {
    /// Reads it.
    pub fn read(files: &Files) -> Result<Recipe, LoadError> {
        let modules = Modules::read(files)?;
        let file = |name: &str| format!("{}{name}", modules.folder);
        let config = file("config.json");
        let shape = Shape::read(files.small(&config).ok_or(LoadError::Missing(config))?)?;
        let transformer = optional(files, &file("sentence_bert_config.json"))?;
        let tokenizer = optional(files, &file("tokenizer_config.json"))?;
        let library = optional(files, "config_sentence_transformers.json")?;
        let tokens_max = tokens_max(&shape, &transformer, &tokenizer)?;
        let (prompts, default_prompt) = prompts(&library)?;
        if !prompts.is_empty() && !modules.includes_prompt {
            return Err(unserved("pooling without the prompt", "include_prompt: false", "pooling of all tokens"));
        }
        Ok(Recipe {
            shape,
            tokens_max,
            lowers_case: transformer["do_lower_case"] == true,
            is_normalised: modules.is_normalised,
            poolings: modules.poolings,
            prompts,
            default_prompt,
            tokenizer_bytes: files.size(&file("tokenizer.json")),
            folder: modules.folder,
        })
    }

    /// Values of a vector.
    pub fn width(&self) -> usize {
        self.shape.width * self.poolings.len()
    }

    /// Memory that it takes loaded, with the buffers of a pass.
    pub fn memory(&self) -> u64 {
        self.shape.memory(self.tokens_max.max(PASS_TOKENS)).saturating_add(self.tokenizer_bytes * TOKENIZER_GROWTH)
    }

    /// Which files of the revision hold the encoder's tensors.
    pub fn weights_files(&self, files: &Files) -> Vec<u32> {
        let is_weights = |name: &str| name.starts_with("model") && name.ends_with(".safetensors");
        let is_own = |path: &str| path.strip_prefix(&self.folder).is_some_and(is_weights);
        let numbered = (0..).zip(&files.listing).filter(|(_, (path, _))| is_own(path));
        numbered.map(|(file, _)| file).collect()
    }

    /// The path of the tokenizer's file in the revision.
    pub fn tokenizer_file(&self) -> String {
        format!("{}tokenizer.json", self.folder)
    }

    /// Names of the prompts that may stand before texts.
    pub fn prompts(&self) -> impl Iterator<Item = &str> {
        self.prompts.keys().map(String::as_str)
    }

    /// The prompt of that name; the default one for none.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str, EncodeError> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else { return Ok("") };
        let known = || self.prompts.keys().cloned().collect::<Vec<_>>().join(", ");
        let prompt = self.prompts.get(name);
        prompt.map(String::as_str).ok_or_else(|| EncodeError::Prompt { name: name.to_owned(), known: known() })
    }

    /// The vectors of a pass's texts, one after the other.
    pub(super) fn pool(&self, hidden: &Hidden, lengths: impl Iterator<Item = usize>) -> Vec<f32> {
        let (mut all, mut from) = (Vec::new(), 0);
        for count in lengths {
            let begin = all.len();
            self.poolings.iter().for_each(|pooling| pooling.of(hidden, from, count, &mut all));
            if self.is_normalised {
                pooling::normalise(&mut all[begin..]);
            }
            from += count;
        }
        all
    }
}

/// What `modules.json` says.
struct Modules {
    folder: String,
    poolings: Vec<Pooling>,
    is_normalised: bool,
    includes_prompt: bool,
}

impl Modules {
    fn read(files: &Files) -> Result<Modules, LoadError> {
        let mut said = Modules {
            folder: String::new(),
            poolings: vec![Pooling::Mean],
            is_normalised: false,
            includes_prompt: true,
        };
        let Some(bytes) = files.small("modules.json") else { return Ok(said) };
        let modules: Vec<Value> =
            serde_json::from_slice(bytes).map_err(|error| LoadError::malformed("modules.json", error))?;
        if modules.is_empty() || modules.len() > MODULES_MAX {
            return Err(LoadError::malformed("modules.json", format!("{} modules", modules.len())));
        }
        for (at, module) in modules.iter().enumerate() {
            let path = folder_of(module);
            let kind = module["type"].as_str().unwrap_or_default();
            match (at, kind.rsplit('.').next().unwrap_or_default()) {
                (0, "Transformer") => said.folder = path,
                (1, "Pooling") => said.pooling(files, &format!("{path}config.json"))?,
                (2.., "Normalize") => said.is_normalised = true,
                _ => {
                    let served = "a Transformer, then Pooling, then Normalize or nothing";
                    return Err(unserved("the module", kind, served));
                }
            }
        }
        Ok(said)
    }

    fn pooling(&mut self, files: &Files, path: &str) -> Result<(), LoadError> {
        let config = files.small(path).ok_or_else(|| LoadError::Missing(path.to_owned()))?;
        let config: Value = serde_json::from_slice(config).map_err(|error| LoadError::malformed(path, error))?;
        let is_on = |(_, name): &&(Pooling, &str)| config[*name] == true;
        self.poolings = Pooling::ALL.iter().filter(is_on).map(|(pooling, _)| *pooling).collect();
        self.includes_prompt = config["include_prompt"] != false;
        match self.poolings.is_empty() {
            true => Err(LoadError::malformed(path, "no way of pooling is on")),
            false => Ok(()),
        }
    }
}

/// A module's folder: empty, or ending in `/`.
fn folder_of(module: &Value) -> String {
    let path = module["path"].as_str().unwrap_or_default().trim_matches('/');
    if path.is_empty() { String::new() } else { format!("{path}/") }
}

/// Small files of a model's modules, as far as `modules.json` can be read: a node fetches them before the recipe is read.
pub fn named_files(modules: &[u8]) -> Vec<String> {
    let modules: Vec<Value> = serde_json::from_slice(modules).unwrap_or_default();
    let folders: BTreeSet<String> =
        modules.iter().take(MODULES_MAX).map(folder_of).filter(|folder| !folder.is_empty()).collect();
    let names = ["config.json", "sentence_bert_config.json", "tokenizer_config.json"];
    folders.iter().flat_map(|folder| names.map(|name| format!("{folder}{name}"))).collect()
}

/// A JSON object that may not be there.
fn optional(files: &Files, path: &str) -> Result<Value, LoadError> {
    let Some(bytes) = files.small(path) else { return Ok(Value::Null) };
    serde_json::from_slice(bytes).map_err(|error| LoadError::malformed(path, error))
}

/// As the library: what its configuration says, else the shorter of what model and tokenizer take; never more than there
/// are positions.
fn tokens_max(shape: &Shape, transformer: &Value, tokenizer: &Value) -> Result<usize, LoadError> {
    let said = match transformer["max_seq_length"].as_u64() {
        Some(said) => said,
        // Some tokenizers say 10³⁰ for no bound, which is no whole number here.
        None => tokenizer["model_max_length"].as_u64().unwrap_or(u64::MAX),
    };
    match usize::try_from(said).unwrap_or(usize::MAX).min(shape.positions()) {
        tokens if tokens >= 3 => Ok(tokens),
        tokens => Err(LoadError::malformed("sentence_bert_config.json", format!("texts of {tokens} tokens"))),
    }
}

/// The prompts, and the name of the one that is used when none is asked for.
fn prompts(library: &Value) -> Result<(BTreeMap<String, String>, Option<String>), LoadError> {
    let wrong = |why: &str| LoadError::malformed("config_sentence_transformers.json", why);
    let mut prompts = BTreeMap::new();
    for (name, prompt) in library["prompts"].as_object().into_iter().flatten().take(PROMPTS_MAX) {
        let prompt = prompt.as_str().filter(|prompt| prompt.len() <= PROMPT_BYTES_MAX);
        // Empty ones say that there is none.
        match prompt.ok_or_else(|| wrong("a prompt is no text, or very long"))? {
            "" => {}
            prompt => drop(prompts.insert(name.clone(), prompt.to_owned())),
        }
    }
    let default = library["default_prompt_name"].as_str().filter(|name| prompts.contains_key(*name));
    Ok((prompts.clone(), default.map(str::to_owned)))
}

fn unserved(what: &'static str, name: &str, served: &'static str) -> LoadError {
    LoadError::Unserved { what, name: name.to_owned(), served }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CONFIG: &str = r#"{"model_type":"bert","hidden_size":32,"num_attention_heads":4,"num_hidden_layers":2,
        "intermediate_size":64,"vocab_size":100,"max_position_embeddings":64}"#;

    fn modules(kinds: &[(&str, &str)]) -> Value {
        let module =
            |(path, kind): &(&str, &str)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
        Value::Array(kinds.iter().map(module).collect())
    }

    fn files(more: &[(&str, Value)]) -> Files {
        let mut files = Files::default();
        files.small.insert("config.json".into(), CONFIG.into());
        for (path, value) in more {
            files.small.insert((*path).into(), value.to_string().into_bytes());
        }
        files
    }

    #[test]
    fn a_recipe_is_read_from_the_files_of_the_library() {
        let recipe = Recipe::read(&files(&[
            ("modules.json", modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])),
            ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true})),
            ("sentence_bert_config.json", json!({"max_seq_length": 48, "do_lower_case": true})),
            ("config_sentence_transformers.json", json!({"prompts": {"query": "query: ", "none": ""}})),
        ]))
        .unwrap();
        assert_eq!((recipe.tokens_max, recipe.width(), recipe.lowers_case, recipe.is_normalised), (48, 64, true, true));
        assert_eq!(recipe.poolings, [Pooling::Cls, Pooling::Mean]);
        assert_eq!(recipe.prompt(Some("query")).unwrap(), "query: ");
        assert_eq!(recipe.prompt(None).unwrap(), "");
        assert!(recipe.prompt(Some("none")).unwrap_err().to_string().contains("query"));
    }

    #[test]
    fn a_model_without_modules_is_pooled_by_the_mean_and_cut_at_its_positions() {
        let plain = Recipe::read(&files(&[("tokenizer_config.json", json!({"model_max_length": 1e30}))])).unwrap();
        assert_eq!((plain.tokens_max, plain.is_normalised, &plain.poolings[..]), (64, false, &[Pooling::Mean][..]));
        let shorter = Recipe::read(&files(&[("tokenizer_config.json", json!({"model_max_length": 40}))])).unwrap();
        assert_eq!(shorter.tokens_max, 40);
    }

    #[test]
    fn a_module_that_is_not_understood_is_refused() {
        let mean = ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}));
        for kinds in [
            &[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")][..],
            &[("", "CLIPModel")],
            &[("", "Transformer"), ("1", "WeightedLayerPooling")],
            &[("1_Pooling", "Pooling")],
        ] {
            let error = Recipe::read(&files(&[("modules.json", modules(kinds)), mean.clone()])).unwrap_err();
            assert!(matches!(error, LoadError::Unserved { .. }), "{kinds:?}: {error}");
        }
        let two = modules(&[("", "Transformer"), ("1_Pooling", "Pooling")]);
        for (path, value) in [
            ("modules.json", json!([])),
            ("modules.json", json!({})),
            ("1_Pooling/config.json", json!({})),
            ("sentence_bert_config.json", json!({"max_seq_length": 2})),
            ("config_sentence_transformers.json", json!({"prompts": {"query": 5}})),
        ] {
            let all = files(&[("modules.json", two.clone()), mean.clone(), (path, value.clone())]);
            assert!(Recipe::read(&all).is_err(), "{path} {value}");
        }
        let unpooled = files(&[("modules.json", two)]);
        assert!(matches!(Recipe::read(&unpooled), Err(LoadError::Missing(path)) if path == "1_Pooling/config.json"));
    }
}
