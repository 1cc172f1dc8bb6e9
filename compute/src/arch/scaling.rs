//! Reads how a model's files say that its rotary frequencies are scaled. What the kinds mean is in `rope`.

use super::{describe::DescribeError, family::Family, tensors::ROPE_FACTORS};
use cairn_protocol::{
    gguf::GgufHeader,
    manifest::{RopeScaling, TensorEntry},
};
use serde_json::Value;

/// What llama.cpp's converter calls the divisors of longrope.
const LONG_FACTORS: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// What files say of scaling.
pub(super) enum Scaling {
    /// What can be computed, be it nothing.
    Known(Option<RopeScaling>),
    /// A kind that is not served (yarn, longrope, dynamic), and why.
    Other(String),
}

/// From `config.json`: `rope_scaling`, or `rope_parameters` of newer files.
pub(super) fn of_config(config: &Value) -> Result<Scaling, DescribeError> {
    let given = |name: &str| config.get(name).filter(|value| !value.is_null());
    let Some(scaling) = given("rope_scaling").or(given("rope_parameters")) else { return Ok(Scaling::Known(None)) };
    let kind = scaling.get("rope_type").or(scaling.get("type"));
    let missing = |name: &str| DescribeError::Field(format!("rope_scaling.{name}"));
    let real = |name: &str| scaling.get(name).and_then(Value::as_f64).ok_or_else(|| missing(name));
    let known = match kind.map(|kind| kind.as_str()) {
        None if scaling.get("factor").is_none() => return Ok(Scaling::Known(None)),
        Some(Some("default")) => return Ok(Scaling::Known(None)),
        Some(Some("linear")) => RopeScaling::Linear { factor: real("factor")? },
        Some(Some("llama3")) => {
            let name = "original_max_position_embeddings";
            let original = scaling.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            RopeScaling::Llama3 {
                factor: real("factor")?,
                low: real("low_freq_factor")?,
                high: real("high_freq_factor")?,
                original_context: original.ok_or_else(|| missing(name))?,
            }
        }
        Some(kind) => return Ok(other(kind.unwrap_or("that is not a word"))),
        None => return Ok(other("without a name")),
    };
    checked(known)
}

/// From GGUF metadata, and from whether the tensor of divisors is there.
pub(super) fn of_gguf(header: &GgufHeader, family: Family, tensors: &[TensorEntry]) -> Result<Scaling, DescribeError> {
    let key = |name: &str| format!("{}.rope.{name}", family.name);
    // As llama.cpp reads it: a factor without a type is linear, and no factor is none.
    let factor = header.f64(&key("scaling.factor")).or(header.f64(&key("scale_linear")));
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    let has_divisors = tensors.iter().any(|t| t.name == ROPE_FACTORS);
    if tensors.iter().any(|t| LONG_FACTORS.contains(&t.name.as_str())) {
        return Ok(other("longrope"));
    }
    match (header.str(&key("scaling.type")).unwrap_or("linear"), factor) {
        ("none", _) | ("linear", None) => Ok(Scaling::Known(has_divisors.then_some(RopeScaling::Tensor))),
        ("linear", Some(factor)) if !has_divisors => checked(RopeScaling::Linear { factor }),
        ("linear", Some(_)) => Ok(Scaling::Other("its rotary frequencies are scaled twice".to_string())),
        (kind, _) => Ok(other(kind)),
    }
}

fn other(kind: &str) -> Scaling {
    let kind: String = kind.chars().take(64).collect();
    Scaling::Other(format!("its rotary frequencies are scaled in a way that is not served: {kind}"))
}

fn checked(scaling: RopeScaling) -> Result<Scaling, DescribeError> {
    let impossible = || DescribeError::Field("rope_scaling".to_string());
    if scaling.is_possible() { Ok(Scaling::Known(Some(scaling))) } else { Err(impossible()) }
}
