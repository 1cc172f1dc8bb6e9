//! What is read from configuration and metadata, and what is refused of hostile numbers.

use super::*;
use crate::tiny::{self, Tiny};
use cairn_protocol::{
    dtype::Dtype,
    gguf::{GgufArray, GgufHeader, GgufValue, HeaderTensor},
    manifest::{Model, Naming, RopeScaling, TensorEntry},
};

fn tensors(model: Model) -> Vec<TensorEntry> {
    Tiny::new(model, 1, |_| Dtype::F32).tensors
}

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}"#;

fn from_config(
    config: &str,
    generation: Option<&str>,
    tensors: &[TensorEntry],
) -> Result<Option<Model>, DescribeError> {
    describe(Some(config.as_bytes()), generation.map(str::as_bytes), None, tensors)
}

#[test]
fn a_hugging_face_folder_is_described() {
    let all = tensors(tiny::llama());
    assert_eq!(from_config(CONFIG, None, &all), Ok(Some(tiny::llama())));
    let generation = r#"{"eos_token_id": [7, 2]}"#;
    let described = from_config(CONFIG, Some(generation), &all).expect("reads").expect("served");
    assert_eq!(described.eos_tokens, [7, 2], "the generation config goes first");
    let nested =
        CONFIG.replace(r#""rope_theta": 10000.0"#, r#""rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}"#);
    assert_eq!(from_config(&nested, None, &all).expect("reads").expect("served").rope_base, 5e5);
    let untied = Model { tied_embeddings: false, ..tiny::llama() };
    let described = from_config(CONFIG, None, &tensors(untied)).expect("reads").expect("served");
    assert!(!described.tied_embeddings, "a head of its own is found by its tensor");
}

#[test]
fn qwen2_is_described_with_its_biases() {
    let model = Model { naming: Naming::HuggingFace, ..tiny::qwen2() };
    let config = CONFIG.replace("llama", "qwen2");
    assert_eq!(from_config(&config, None, &tensors(model.clone())), Ok(Some(model)));
}

#[test]
fn qwen3_is_described_with_its_norms_of_heads() {
    let config = CONFIG.replace("llama", "qwen3").replacen('{', r#"{"head_dim": 32, "#, 1);
    let all = tensors(tiny::qwen3());
    assert_eq!(from_config(&config, None, &all), Ok(Some(tiny::qwen3())));
    let mut cut = all.clone();
    cut.retain(|t| t.name != "model.layers.1.self_attn.k_norm.weight");
    let part = StagePart::whole(3);
    assert!(
        matches!(stage_tensors(&tiny::qwen3(), &cut, &part), Err(StageError::Missing(_))),
        "a norm is not optional"
    );
    let named = Model { naming: Naming::Gguf, ..tiny::qwen3() };
    let all = tensors(named.clone());
    let mut header = gguf(&named, &all);
    header.metadata.push(("qwen3.attention.key_length".into(), GgufValue::Unsigned(32)));
    assert_eq!(describe(None, None, Some(&header), &all), Ok(Some(named)));
    let moe = CONFIG.replace("llama", "qwen3_moe");
    assert_eq!(from_config(&moe, None, &all), Ok(None));
}

#[test]
fn a_mistral_is_described_with_its_window() {
    let all = tensors(tiny::llama());
    let with = |window: &str| from_config(&CONFIG.replace("llama", "mistral").replacen('{', window, 1), None, &all);
    assert_eq!(with(r#"{"sliding_window": 20, "#), Ok(Some(tiny::mistral(20))));
    assert_eq!(with(r#"{"sliding_window": null, "#), Ok(Some(tiny::mistral(0))));
    assert_eq!(with("{"), Ok(Some(tiny::mistral(4096))), "what transformers takes it for");
    for broken in ["0", "-1", "2.5", "\"20\"", "4294967296"] {
        let described = with(&format!(r#"{{"sliding_window": {broken}, "#));
        assert_eq!(described, Err(DescribeError::Field("sliding_window".into())), "{broken}");
    }
    let named = Model { naming: Naming::Gguf, rope_half_split: false, ..tiny::mistral(20) };
    let header = gguf(&named, &tensors(named.clone()));
    assert_eq!(describe(None, None, Some(&header), &tensors(named)), Ok(None), "no GGUF file is called that");
}

#[test]
fn a_window_where_the_family_has_none_is_not_served() {
    let window = tiny::mistral(20).window;
    for model in [tiny::llama(), tiny::qwen2(), tiny::qwen3(), tiny::llama3()] {
        assert!(is_served(&model) && !is_served(&Model { window, ..model }));
    }
}

#[test]
fn what_the_forward_pass_has_not_is_not_described() {
    let all = tensors(tiny::llama());
    let set = |what: &str| CONFIG.replace('{', &format!("{{{what}, "));
    for config in [
        set(r#""rope_scaling": {"rope_type": "yarn", "factor": 8.0}"#),
        set(r#""rope_scaling": {"factor": 2.0}"#),
        set(r#""rope_scaling": {"type": 3, "factor": 2.0}"#),
        set(r#""use_sliding_window": true"#),
        set(r#""partial_rotary_factor": 0.5"#),
        CONFIG.replace("silu", "gelu"),
        CONFIG.replace("llama", "gemma3"),
        CONFIG.replace(r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 3"#),
        "{}".to_string(),
    ] {
        assert_eq!(from_config(&config, None, &all), Ok(None), "{config}");
    }
    let mut strange = all.clone();
    strange.push(TensorEntry { name: "model.layers.0.self_attn.q_norm.weight".into(), ..all[1].clone() });
    assert_eq!(from_config(CONFIG, None, &strange), Ok(None), "a norm that would be left out");
    assert_eq!(describe(None, None, None, &all), Ok(None));
}

#[test]
fn scaled_rotary_frequencies_are_described_under_a_name_that_says_so() {
    let all = tensors(tiny::llama());
    let with = |scaling: &str| from_config(&CONFIG.replacen('{', &format!("{{{scaling}, "), 1), None, &all);
    let numbers = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
    let llama3 =
        format!(r#""rope_scaling": {{"rope_type": "llama3", {numbers}, "original_max_position_embeddings": 64}}"#);
    assert_eq!(with(&llama3), Ok(Some(tiny::llama3())));
    assert_eq!(tiny::llama3().architecture, "llama+scaled-rope");
    let linear = tiny::scaled(RopeScaling::Linear { factor: 4.0 });
    assert_eq!(with(r#""rope_scaling": {"type": "linear", "factor": 4.0}"#), Ok(Some(linear.clone())));
    assert_eq!(with(r#""rope_parameters": {"rope_type": "linear", "factor": 4.0}"#), Ok(Some(linear)));
    for none in [r#""rope_scaling": null"#, r#""rope_scaling": {"type": "default"}"#, r#""rope_scaling": {}"#] {
        assert_eq!(with(none), Ok(Some(tiny::llama())), "{none}");
    }
    for (broken, field) in [
        (llama3.replace("64", "-1"), "rope_scaling.original_max_position_embeddings"),
        (llama3.replace("64", "1e99"), "rope_scaling.original_max_position_embeddings"),
        (llama3.replace("64", "0"), "rope_scaling"),
        (llama3.replace("8.0", "\"8\""), "rope_scaling.factor"),
        (llama3.replace("8.0", "0"), "rope_scaling"),
        (llama3.replace("4.0", "1.0"), "rope_scaling"),
        (llama3.replace("low_freq_factor", "low"), "rope_scaling.low_freq_factor"),
        (r#""rope_scaling": {"type": "linear"}"#.to_string(), "rope_scaling.factor"),
        (r#""rope_scaling": {"type": "linear", "factor": 0.5}"#.to_string(), "rope_scaling"),
    ] {
        assert_eq!(with(&broken), Err(DescribeError::Field(field.into())), "{broken}");
    }
}

#[test]
fn a_name_that_does_not_say_what_the_numbers_do_is_not_served() {
    let linear = Some(RopeScaling::Linear { factor: 2.0 });
    for model in [
        Model { rope_scaling: linear, ..tiny::llama() },
        Model { architecture: "llama+scaled-rope".into(), ..tiny::llama() },
        Model { architecture: "llama+scaled-rope+more".into(), rope_scaling: linear, ..tiny::llama() },
        Model { architecture: "+scaled-rope".into(), rope_scaling: linear, ..tiny::llama() },
        tiny::scaled(RopeScaling::Unknown),
        tiny::scaled(RopeScaling::Linear { factor: f64::NAN }),
    ] {
        assert!(!is_served(&model), "{model:?}");
    }
}

#[test]
fn broken_configurations_say_what_is_wrong() {
    let all = tensors(tiny::llama());
    assert!(matches!(from_config("{", None, &all), Err(DescribeError::Json { file: "config.json", .. })));
    assert!(matches!(from_config(CONFIG, Some("]"), &all), Err(DescribeError::Json { .. })));
    let missing = CONFIG.replace("hidden_size", "hidden");
    assert_eq!(from_config(&missing, None, &all), Err(DescribeError::Field("hidden_size".into())));
    let huge = CONFIG.replace(r#""num_hidden_layers": 3"#, r#""num_hidden_layers": 99999999999"#);
    assert_eq!(from_config(&huge, None, &all), Err(DescribeError::Field("num_hidden_layers".into())));
    let none = CONFIG.replace(r#""num_attention_heads": 4"#, r#""num_attention_heads": 0"#);
    assert!(from_config(&none, None, &all).is_err());
}

fn gguf(model: &Model, all: &[TensorEntry]) -> GgufHeader {
    let key = |name: &str| format!("{}.{name}", model.architecture);
    let number = |name: &str, n: u32| (key(name), GgufValue::Unsigned(n.into()));
    let tensor = |t: &TensorEntry| HeaderTensor {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        offset: t.offset,
        length: t.length,
    };
    GgufHeader {
        version: 3,
        metadata: vec![
            ("general.architecture".into(), GgufValue::String(model.architecture.clone())),
            number("block_count", model.layers),
            number("embedding_length", model.width),
            number("feed_forward_length", model.feed_forward),
            number("attention.head_count", model.heads),
            number("attention.head_count_kv", model.kv_heads),
            number("context_length", model.context_max),
            (key("attention.layer_norm_rms_epsilon"), GgufValue::Float(model.norm_epsilon)),
            (key("rope.freq_base"), GgufValue::Float(model.rope_base)),
            ("tokenizer.ggml.tokens".into(), GgufValue::Array(GgufArray::String(vec![String::new(); 50]))),
            ("tokenizer.ggml.eos_token_id".into(), GgufValue::Unsigned(2)),
            ("tokenizer.ggml.bos_token_id".into(), GgufValue::Unsigned(1)),
        ],
        tensors: all.iter().map(tensor).collect(),
        header_bytes: 0,
    }
}

#[test]
fn gguf_files_are_described() {
    let llama = Model { naming: Naming::Gguf, rope_half_split: false, ..tiny::llama() };
    for model in [llama, tiny::qwen2()] {
        let all = tensors(model.clone());
        let header = gguf(&model, &all);
        assert_eq!(describe(None, None, Some(&header), &all), Ok(Some(model.clone())));
        let mut scaled = header.clone();
        let key = format!("{}.rope.scaling.type", model.architecture);
        scaled.metadata.push((key, GgufValue::String("yarn".into())));
        assert_eq!(describe(None, None, Some(&scaled), &all), Ok(None));
        let turned = |elements: u64| {
            let mut header = header.clone();
            let key = format!("{}.rope.dimension_count", model.architecture);
            header.metadata.push((key, GgufValue::Unsigned(elements)));
            describe(None, None, Some(&header), &all)
        };
        assert_eq!((turned(16), turned(8)), (Ok(Some(model.clone())), Ok(None)), "heads are rotated whole");
        let mut cut = header.clone();
        cut.metadata.remove(1);
        assert!(matches!(describe(None, None, Some(&cut), &all), Err(DescribeError::Field(_))));
        let mut other = header;
        other.metadata[0].1 = GgufValue::String("mamba".into());
        assert_eq!(describe(None, None, Some(&other), &all), Ok(None));
    }
}

#[test]
fn scaling_in_gguf_files_is_metadata_or_a_tensor() {
    let neighbours = |model: Model| Model { naming: Naming::Gguf, rope_half_split: false, ..model };
    let (divided, plain) = (neighbours(tiny::scaled(RopeScaling::Tensor)), neighbours(tiny::llama()));
    let divided_tensors = tensors(divided.clone());
    let header = |all: &[TensorEntry], more: &[(&str, GgufValue)]| {
        let mut header = gguf(&plain, all);
        header.metadata.extend(more.iter().map(|(name, value)| (format!("llama.rope.{name}"), value.clone())));
        describe(None, None, Some(&header), all)
    };
    let kind = |kind: &str| ("scaling.type", GgufValue::String(kind.into()));
    let factor = |factor| ("scaling.factor", GgufValue::Float(factor));
    assert_eq!(header(&divided_tensors, &[]), Ok(Some(divided.clone())));
    assert_eq!(header(&divided_tensors, &[kind("none")]), Ok(Some(divided)));
    assert_eq!(header(&divided_tensors, &[kind("linear"), factor(2.0)]), Ok(None), "both at once");
    let all = tensors(plain.clone());
    let linear = neighbours(tiny::scaled(RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(header(&all, &[kind("linear"), factor(2.0)]), Ok(Some(linear.clone())));
    assert_eq!(header(&all, &[("scale_linear", GgufValue::Unsigned(2))]), Ok(Some(linear)), "the older key");
    assert_eq!(header(&all, &[kind("linear")]), Ok(Some(plain.clone())));
    assert_eq!(header(&all, &[kind("yarn"), factor(2.0)]), Ok(None));
    assert!(matches!(header(&all, &[kind("linear"), factor(f64::NAN)]), Err(DescribeError::Field(_))));
    let mut wrong = divided_tensors.clone();
    let divisors = wrong.iter_mut().find(|t| t.name == "rope_freqs.weight").expect("divisors");
    (divisors.shape, divisors.length) = (vec![4], 16);
    let model = header(&wrong, &[]).expect("reads").expect("described");
    assert!(matches!(stage_tensors(&model, &wrong, &StagePart::whole(3)), Err(StageError::Dimensions { .. })));
}

#[test]
fn hostile_shapes_are_refused() {
    let l = tiny::llama;
    for model in [
        Model { heads: 0, ..l() },
        Model { kv_heads: 0, ..l() },
        Model { kv_heads: 3, ..l() },
        Model { layers: 0, ..l() },
        Model { layers: u32::MAX, ..l() },
        Model { width: 0, ..l() },
        Model { width: u32::MAX, ..l() },
        Model { head_width: 0, ..l() },
        Model { head_width: 7, ..l() },
        Model { head_width: 258, ..l() },
        Model { heads: 1 << 24, kv_heads: 1, head_width: 256, ..l() },
        Model { vocabulary: u32::MAX, ..l() },
        Model { context_max: 0, ..l() },
        Model { norm_epsilon: f64::NAN, ..l() },
        Model { norm_epsilon: 0.0, ..l() },
        Model { rope_base: f64::INFINITY, ..l() },
        Model { architecture: "bert".into(), ..l() },
    ] {
        assert!(!is_served(&model), "{model:?}");
        let all = tensors(l());
        assert!(matches!(stage_tensors(&model, &all, &StagePart::whole(3)), Err(StageError::Shape(_))));
        assert!(layer_bytes(&model, &all).is_err() && stage_memory(&model, &all, &StagePart::whole(3), 64).is_err());
    }
}

#[test]
fn numbers_that_the_tensors_do_not_bear_out_are_refused_without_an_allocation_of_their_size() {
    let all = tensors(tiny::llama());
    let huge = Model { layers: 4096, width: 1 << 24, feed_forward: 1 << 24, vocabulary: 1 << 24, ..tiny::llama() };
    let huge = Model { heads: 1 << 16, kv_heads: 1 << 16, head_width: 256, ..huge };
    assert!(matches!(stage_tensors(&huge, &all, &StagePart::whole(4096)), Err(StageError::Dimensions { .. })));
    let changed = |change: fn(&mut TensorEntry)| {
        let mut all = all.clone();
        change(&mut all[2]);
        stage_tensors(&tiny::llama(), &all, &StagePart::whole(3)).expect_err("refused")
    };
    assert!(matches!(changed(|t| t.shape = vec![64, 32]), StageError::Dimensions { .. }));
    assert!(matches!(changed(|t| t.shape = vec![64 * 64]), StageError::Dimensions { .. }));
    assert!(matches!(changed(|t| t.length += 1), StageError::Length { .. }));
    assert!(matches!(changed(|t| t.dtype = Dtype::F64), StageError::Type { .. }));
    assert!(matches!(changed(|t| t.dtype = Dtype::Other), StageError::Type { .. }));
    assert!(matches!(changed(|t| t.dtype = Dtype::Q6_K), StageError::Length { .. }), "rows are not whole blocks");
    assert!(matches!(changed(|t| t.name = "x".into()), StageError::Missing(_)));
}

#[test]
fn parts_outside_a_model_are_refused() {
    let all = tensors(tiny::llama());
    let part = |start, end, embedding, head| StagePart { layers: LayerRange { start, end }, embedding, head };
    for bad in [
        part(0, 4, true, true),
        part(2, 1, false, false),
        part(1, 3, true, true),
        part(0, 2, true, true),
        part(1, 1, false, false),
    ] {
        assert!(matches!(stage_tensors(&tiny::llama(), &all, &bad), Err(StageError::Part { .. })), "{bad:?}");
    }
    assert!(stage_tensors(&tiny::llama(), &all, &part(0, 0, true, false)).is_ok(), "an embedding by itself");
}

#[test]
fn a_tied_embedding_is_needed_by_both_ends_and_counted_once_in_a_whole() {
    let all = tensors(tiny::llama());
    let names = |part| -> Vec<&str> {
        stage_tensors(&tiny::llama(), &all, &part).expect("tensors").iter().map(|t| t.name.as_str()).collect()
    };
    let embedding = "model.embed_tokens.weight";
    let of =
        |start, end| names(StagePart::of(LayerRange { start, end }, 3)).iter().filter(|n| **n == embedding).count();
    assert_eq!((of(0, 3), of(0, 1), of(1, 2), of(1, 3)), (1, 1, 0, 1));
    let bytes = layer_bytes(&tiny::llama(), &all).expect("bytes");
    assert_eq!(bytes.embedding, 50 * 64 * 4);
    assert_eq!(bytes.head, bytes.embedding + 64 * 4);
    let layers: u64 = bytes.layers.iter().sum();
    assert_eq!(layers + bytes.head, all.iter().map(|t| t.length).sum::<u64>());
}

#[test]
fn memory_grows_with_context_and_is_what_the_held_type_takes() {
    let all = tensors(tiny::llama());
    let memory = |context| stage_memory(&tiny::llama(), &all, &StagePart::whole(3), context).expect("memory").total();
    let position = 3 * 2 * (16 + 16) * 2 + 16 * 8;
    assert_eq!(memory(512) - memory(256), 256 * position);
    assert_eq!(memory(u32::MAX), memory(512), "never more than the model's own context");
    let held = |dtype: Dtype| {
        let all = Tiny::new(tiny::llama(), 1, |_| dtype).tensors;
        stage_memory(&tiny::llama(), &all, &StagePart::whole(3), 64).expect("memory").weights
    };
    assert_eq!(held(Dtype::Q8_1), held(Dtype::Q8_0), "what is converted counts as what it becomes");
    let (four, five, eight) = (held(Dtype::IQ4_NL), held(Dtype::Q5_0), held(Dtype::Q8_0));
    assert!(four < five && five < eight && five * 34 <= eight * 23, "five bits take five bits: {five} of {eight}");
}
