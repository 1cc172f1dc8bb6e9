//! Reads a model's shape from `config.json` and `generation_config.json`, or from GGUF metadata.
//!
//! What is not served is said in a sentence ([`Description::Unserved`]): such a revision is stored and shared like any
//! other. What is described was checked: it can be computed if its tensors are as described.

use super::{
    ShapeError, from_config, from_gguf, shape,
    tensors::{ROPE_FACTORS, layer_names},
};
use cairn_protocol::{
    gguf::GgufHeader,
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};

/// A file that names a known architecture but cannot be understood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DescribeError {
    /// Not JSON.
    #[error("{file} is not JSON: {why}")]
    Json {
        /// Which file.
        file: &'static str,
        /// What the parser says.
        why: String,
    },
    /// A number that is missing or of another kind.
    #[error("{0} is missing or not a number that fits")]
    Field(String),
}

/// What files say of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Description {
    /// One that is served.
    Model(Box<Model>),
    /// One that is not, and why.
    Unserved(String),
    /// Nothing of a language model.
    Nothing,
}

impl Description {
    /// The model, if it is served.
    pub fn model(self) -> Option<Model> {
        match self {
            Self::Model(model) => Some(*model),
            Self::Unserved(_) | Self::Nothing => None,
        }
    }
}

/// Why a reader of files stops.
pub(super) enum Stop {
    Broken(DescribeError),
    Unserved(String),
    Nothing,
}

impl From<DescribeError> for Stop {
    fn from(error: DescribeError) -> Self {
        Self::Broken(error)
    }
}

/// Stops since something is not served.
pub(super) fn unserved<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Unserved(why.into()))
}

/// Describes a model from what its files say.
pub fn describe(
    config_json: Option<&[u8]>,
    generation_config: Option<&[u8]>,
    gguf: Option<&GgufHeader>,
    tensors: &[TensorEntry],
) -> Result<Description, DescribeError> {
    let described = match (gguf, config_json) {
        (Some(header), _) => from_gguf::read(header, tensors),
        (None, Some(config)) => from_config::read(config, generation_config, tensors),
        (None, None) => Err(Stop::Nothing),
    };
    match described.and_then(|model| checked(model, tensors)) {
        Ok(model) => Ok(Description::Model(Box::new(model))),
        Err(Stop::Unserved(why)) => Ok(Description::Unserved(why)),
        Err(Stop::Nothing) => Ok(Description::Nothing),
        Err(Stop::Broken(error)) => Err(error),
    }
}

fn checked(model: Model, tensors: &[TensorEntry]) -> Result<Model, Stop> {
    shape(&model).map_err(|error: ShapeError| Stop::Unserved(error.to_string()))?;
    match stranger(&model, tensors) {
        Some(name) => {
            unserved(format!("its tensor {name} is not part of {} as it is computed here", model.architecture))
        }
        None => Ok(model),
    }
}

/// A tensor inside a layer that the forward pass would leave out: another architecture under a known name.
fn stranger<'a>(model: &Model, tensors: &'a [TensorEntry]) -> Option<&'a str> {
    let (prefix, harmless) = match model.naming {
        Naming::Gguf => ("blk.", ""),
        Naming::HuggingFace => ("model.layers.", "self_attn.rotary_emb.inv_freq"),
    };
    let names = layer_names(model);
    let is_left_out = |name: &str| name == ROPE_FACTORS && model.rope_scaling != Some(RopeScaling::Tensor);
    let within = |name: &'a str| name.strip_prefix(prefix).and_then(|n| n.split_once('.')).map(|(_, rest)| rest);
    let is_strange = |name: &'a str| within(name).is_some_and(|rest| rest != harmless && !names.contains(rest));
    tensors.iter().map(|t| t.name.as_str()).find(|name| is_left_out(name) || is_strange(name))
}
