//! From `adapter_config.json` to the metadata of a manifest, and from metadata to what stages compute by.
//!
//! The word under `adapter` decides, as a model's architecture does: `lora` means for ever what is computed here, and
//! whatever goes beyond it has another word, which this version does not know and therefore refuses. A field of the
//! config that is not known here and is set might change the computation, and is refused by name.

use super::fit::{AdapterError, Pair, pairs};
use cairn_protocol::{
    limits::{ADAPTER_PATTERNS_MAX, ADAPTER_RANK_MAX},
    manifest::TensorEntry,
};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What this version computes.
const LORA: &str = "lora";
const FORMAT: &str = "adapter";
const BASE_MODEL: &str = "adapter.base_model";
const RANK: &str = "adapter.rank";
const ALPHA: &str = "adapter.alpha";
const RANK_STABILISED: &str = "adapter.rslora";
const MODULES: &str = "adapter.modules";
/// Before a module's name.
const MODULE_ALPHA: &str = "adapter.alpha.";

/// The largest name of a base model that is kept.
const BASE_MODEL_BYTES_MAX: usize = 1024;

/// Fields that say nothing of what is computed, or are read below.
const HARMLESS: [&str; 27] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "bias",
];

/// First values of A and B that leave the base as it is; the others take something out of it.
const INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What an adapter says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// The model it was trained on, as its trainer named it; may be empty.
    pub base_model: String,
    /// Rank of matrices that say nothing else.
    pub rank: u64,
    /// Factor, before it is divided by the rank.
    pub alpha: f64,
    /// It is divided by the rank's square root instead (rank-stabilised LoRA).
    pub is_rank_stabilised: bool,
    /// Factors of some modules, named in whole or by the end of their path.
    pub alphas: Vec<(String, f64)>,
    /// Kinds of modules that it adds to, for people.
    pub modules: Vec<String>,
}

/// Describes a PEFT folder: the metadata of its manifest.
pub fn describe(config: &[u8], tensors: &[TensorEntry]) -> Result<Vec<(String, String)>, AdapterError> {
    let config: Value = serde_json::from_slice(config).map_err(|error| AdapterError::Json(error.to_string()))?;
    let config = config.as_object().ok_or_else(|| AdapterError::Json("no object".to_owned()))?;
    refuse_more(config)?;
    let pairs = pairs(tensors)?;
    let alphas = numbers(config, "alpha_pattern")?;
    let spec = AdapterSpec {
        base_model: text(config, "base_model_name_or_path").chars().take(BASE_MODEL_BYTES_MAX / 4).collect(),
        rank: config.get("r").and_then(Value::as_u64).ok_or(AdapterError::Field("r"))?,
        alpha: config.get("lora_alpha").and_then(Value::as_f64).ok_or(AdapterError::Field("lora_alpha"))?,
        is_rank_stabilised: config.get("use_rslora") == Some(&Value::Bool(true)),
        alphas,
        modules: kinds(&pairs),
    };
    check_ranks(&spec, &numbers(config, "rank_pattern")?, &pairs)?;
    pairs.iter().try_for_each(|pair| spec.scale(&pair.module, pair.rank).map(drop))?;
    spec.check()?;
    Ok(spec.to_metadata())
}

/// What the config asks for beyond what is computed.
fn refuse_more(config: &Map<String, Value>) -> Result<(), AdapterError> {
    let kind = text(config, "peft_type");
    if kind != "LORA" {
        return Err(AdapterError::Unserved(format!("peft_type {kind:?}")));
    }
    let bias = config.get("bias").and_then(Value::as_str).unwrap_or("none");
    if bias != "none" {
        return Err(AdapterError::Unserved(format!("bias {bias:?}")));
    }
    if let Some(first) = config.get("init_lora_weights").and_then(Value::as_str)
        && !INITIALISATIONS.contains(&first)
    {
        return Err(AdapterError::Unserved(format!("init_lora_weights {first:?}, which changes the base model")));
    }
    match config.iter().find(|(name, value)| !HARMLESS.contains(&name.as_str()) && is_set(value)) {
        Some((name, _)) => Err(AdapterError::Unserved(name.chars().take(64).collect())),
        None => Ok(()),
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_so) => *is_so,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
    }
}

fn text<'a>(config: &'a Map<String, Value>, name: &str) -> &'a str {
    config.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A table from modules to numbers. Keys are patterns to PEFT; plain names are what is read here.
fn numbers(config: &Map<String, Value>, name: &'static str) -> Result<Vec<(String, f64)>, AdapterError> {
    let Some(table) = config.get(name).filter(|value| is_set(value)) else { return Ok(Vec::new()) };
    let table =
        table.as_object().filter(|table| table.len() <= ADAPTER_PATTERNS_MAX).ok_or(AdapterError::Field(name))?;
    let one = |(module, number): (&String, &Value)| {
        let is_plain = module.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        if module.is_empty() || !is_plain {
            return Err(AdapterError::Unserved(format!(
                "the pattern {module:?} in {name} (names of modules are read)"
            )));
        }
        Ok((module.clone(), number.as_f64().ok_or(AdapterError::Field(name))?))
    };
    table.iter().map(one).collect()
}

/// What a table says of a module: entries that name it in whole or by its end, which must agree.
fn of_module(table: &[(String, f64)], module: &str) -> Result<Option<f64>, AdapterError> {
    let is_named =
        |name: &str| module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    let mut found = table.iter().filter(|(name, _)| is_named(name)).map(|(_, number)| *number);
    let first = found.next();
    match found.find(|other| Some(*other) != first) {
        Some(_) => Err(AdapterError::Unserved(format!("two entries of one table for module {module}"))),
        None => Ok(first),
    }
}

fn check_ranks(spec: &AdapterSpec, ranks: &[(String, f64)], pairs: &[Pair]) -> Result<(), AdapterError> {
    for pair in pairs {
        let want = of_module(ranks, &pair.module)?.unwrap_or(spec.rank as f64);
        if want != pair.rank as f64 {
            return Err(AdapterError::Rank { name: pair.a.name.clone(), got: pair.rank, want });
        }
    }
    Ok(())
}

fn kinds(pairs: &[Pair]) -> Vec<String> {
    let last = |pair: &Pair| pair.module.rsplit('.').next().unwrap_or_default().to_owned();
    pairs.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect()
}

impl AdapterSpec {
    /// Whether metadata describes an adapter of any format.
    pub fn is_in(metadata: &[(String, String)]) -> bool {
        metadata.iter().any(|(key, _)| key == FORMAT)
    }

    /// From the metadata of a manifest.
    pub fn from_metadata(metadata: &[(String, String)]) -> Result<Self, AdapterError> {
        let find = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        match find(FORMAT) {
            Some(LORA) => {}
            Some(other) => return Err(AdapterError::Format(other.chars().take(64).collect())),
            None => return Err(AdapterError::Undescribed),
        }
        let number =
            |key: &'static str| find(key).and_then(|text| text.parse::<f64>().ok()).ok_or(AdapterError::Field(key));
        let alphas = metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(MODULE_ALPHA)?, value)));
        let alpha = |(module, value): (&str, &String)| {
            value.parse().map(|alpha| (module.to_owned(), alpha)).map_err(|_| AdapterError::Field(MODULE_ALPHA))
        };
        let spec = Self {
            base_model: find(BASE_MODEL).unwrap_or_default().to_owned(),
            rank: find(RANK).and_then(|text| text.parse().ok()).ok_or(AdapterError::Field(RANK))?,
            alpha: number(ALPHA)?,
            is_rank_stabilised: find(RANK_STABILISED) == Some("true"),
            alphas: alphas.take(ADAPTER_PATTERNS_MAX).map(alpha).collect::<Result<_, _>>()?,
            modules: find(MODULES).unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        };
        spec.check().map(|()| spec)
    }

    fn to_metadata(&self) -> Vec<(String, String)> {
        let mut entries = vec![
            (FORMAT, LORA.to_owned()),
            (RANK, self.rank.to_string()),
            (ALPHA, self.alpha.to_string()),
            (MODULES, self.modules.join(" ")),
        ];
        if !self.base_model.is_empty() {
            entries.push((BASE_MODEL, self.base_model.clone()));
        }
        if self.is_rank_stabilised {
            entries.push((RANK_STABILISED, "true".to_owned()));
        }
        let named = entries.into_iter().map(|(key, value)| (key.to_owned(), value));
        let alphas = self.alphas.iter().map(|(module, alpha)| (format!("{MODULE_ALPHA}{module}"), alpha.to_string()));
        named.chain(alphas).collect()
    }

    fn check(&self) -> Result<(), AdapterError> {
        if !(1..=ADAPTER_RANK_MAX).contains(&self.rank) {
            return Err(AdapterError::Field("rank"));
        }
        let finite = self.alpha.is_finite() && self.alphas.iter().all(|(_, alpha)| alpha.is_finite());
        if finite { Ok(()) } else { Err(AdapterError::Field("alpha")) }
    }

    /// What the product of a module's matrices, of that rank, is multiplied by.
    pub(super) fn scale(&self, module: &str, rank: u64) -> Result<f32, AdapterError> {
        let alpha = of_module(&self.alphas, module)?.unwrap_or(self.alpha);
        let by = if self.is_rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / by) as f32)
    }
}
