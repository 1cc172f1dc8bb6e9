//! What is read from configuration and metadata, and what is refused of hostile numbers.

use super::*;
use crate::tiny::{self, Tiny};
use cairn_protocol::{
    dtype::Dtype,
    gguf::{GgufArray, GgufHeader, GgufValue, HeaderTensor},
    manifest::{Model, Naming, RopeScaling, TensorEntry, Variations},
};
use std::num::NonZeroU32;

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
    super::describe(Some(config.as_bytes()), generation.map(str::as_bytes), None, tensors).map(Description::model)
}

/// What is said of a config that is not served.
fn why_not(config: &str, tensors: &[TensorEntry]) -> String {
    match super::describe(Some(config.as_bytes()), None, None, tensors) {
        Ok(Description::Unserved(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn describe(
    config: Option<&[u8]>,
    generation: Option<&[u8]>,
    gguf: Option<&GgufHeader>,
    tensors: &[TensorEntry],
) -> Result<Option<Model>, DescribeError> {
    super::describe(config, generation, gguf, tensors).map(Description::model)
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
fn what_a_family_has_not_is_not_served() {
    let window = tiny::mistral(20).window;
    for model in [tiny::llama(), tiny::qwen2(), tiny::qwen3(), tiny::llama3(), tiny::smollm3(), tiny::qwen3moe(4, 2)] {
        assert!(is_served(&model) && !is_served(&Model { window, ..model }));
    }
    let all = [tiny::gemma3(), tiny::phi3(), tiny::phi3_turned(8), tiny::smollm3(), tiny::qwen3moe(4, 2)];
    for model in &all {
        assert!(is_served(model), "{model:?}");
    }
    let nothing = Variations::default();
    for (variations, has_it) in [
        (Variations { full_attention_every: NonZeroU32::new(3), ..nothing }, "gemma3"),
        (Variations { window_rope_base: Some(1e4), ..nothing }, "gemma3"),
        (Variations { query_scalar: Some(8.0), ..nothing }, "gemma3"),
        (Variations { unrotated_every: NonZeroU32::new(3), ..nothing }, "smollm3"),
        (Variations { rotary_width: NonZeroU32::new(8), ..nothing }, "phi3"),
    ] {
        for family in ["llama", "qwen3", "mistral", "gemma3", "smollm3", "phi3"] {
            let window = ["mistral", "gemma3", "phi3"].contains(&family).then_some(window).flatten();
            let model = Model { architecture: family.into(), window, variations, ..tiny::llama() };
            assert_eq!(is_served(&model), family == has_it, "{family} {variations:?}");
        }
    }
    let experts = tiny::qwen3moe(4, 2).variations;
    assert!(!is_served(&Model { variations: experts, ..tiny::qwen3() }));
    assert!(!is_served(&Model { variations: nothing, ..tiny::qwen3moe(4, 2) }), "experts are not optional");
    assert!(!is_served(&Model { window: None, ..tiny::gemma3() }), "layers without a window beside none with one");
}

#[test]
fn gemma3_is_described_with_its_two_kinds_of_layers() {
    let all = tensors(tiny::gemma3());
    let own = r#"{"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 24, "rope_local_base_freq": 1000.0, "#;
    let base = CONFIG
        .replace("llama", "gemma3_text")
        .replace("10000.0", "100000.0")
        .replace(r#""hidden_act": "silu""#, r#""hidden_activation": "gelu_pytorch_tanh""#);
    let with = |more: &str| base.replacen('{', &format!("{own}{more}"), 1);
    let by_number = with(r#""sliding_window_pattern": 3, "#);
    assert_eq!(from_config(&by_number, None, &all), Ok(Some(tiny::gemma3())));
    let kinds =
        |kinds: [&str; 3]| with(&format!(r#""layer_types": {:?}, "#, kinds.map(|kind| format!("{kind}_attention"))));
    assert_eq!(from_config(&kinds(["sliding", "sliding", "full"]), None, &all), Ok(Some(tiny::gemma3())));
    let none = from_config(&kinds(["sliding"; 3]), None, &all).expect("reads").expect("served");
    assert_eq!(none.variations.full_attention_every, None);
    for odd in [["full", "sliding", "sliding"], ["sliding", "full", "full"], ["sliding", "chunked", "full"]] {
        assert!(why_not(&kinds(odd), &all).contains("layer_types"), "{odd:?}");
    }
    let plain = Variations { query_scalar: None, ..tiny::gemma3().variations };
    let own_width = by_number.replace(r#""query_pre_attn_scalar": 24"#, r#""query_pre_attn_scalar": 32"#);
    assert_eq!(from_config(&own_width, None, &all), Ok(Some(Model { variations: plain, ..tiny::gemma3() })));
    for (more, word) in [
        (r#""final_logit_softcapping": 30.0, "#, "final_logit_softcapping"),
        (r#""attn_logit_softcapping": 50.0, "#, "attn_logit_softcapping"),
        (r#""use_bidirectional_attention": true, "#, "use_bidirectional_attention"),
        (r#""rope_parameters": {"full_attention": {"rope_theta": 1e6}}, "#, "rope_parameters"),
    ] {
        let why = why_not(&by_number.replacen('{', &format!("{{{more}"), 1), &all);
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn gemma3_in_gguf_files_has_the_numbers_that_llama_cpp_takes_for_granted() {
    let model = Model { naming: Naming::Gguf, layers: 7, ..tiny::gemma3() };
    let all = tensors(model.clone());
    let with = |more: &[(&str, GgufValue)]| {
        let mut header = gguf(&model, &all);
        header.metadata.extend(more.iter().map(|(name, value)| (format!("gemma3.{name}"), value.clone())));
        super::describe(None, None, Some(&header), &all).expect("reads")
    };
    let window = ("attention.sliding_window", GgufValue::Unsigned(24));
    let width = ("attention.key_length", GgufValue::Unsigned(32));
    let described = with(&[window.clone(), width.clone()]).model().expect("served");
    let assumed = Variations {
        full_attention_every: NonZeroU32::new(6),
        window_rope_base: Some(10_000.0),
        ..Variations::default()
    };
    assert_eq!(described, Model { variations: assumed, ..model.clone() });
    let said = with(&[
        window.clone(),
        width.clone(),
        ("attention.sliding_window_pattern", GgufValue::Unsigned(4)),
        ("rope.freq_base_swa", GgufValue::Float(500.0)),
    ]);
    let said = said.model().expect("served").variations;
    assert_eq!((said.full_attention_every, said.window_rope_base), (NonZeroU32::new(4), Some(500.0)));
    let capped = with(&[window, width, ("final_logit_softcapping", GgufValue::Float(30.0))]);
    assert!(matches!(capped, Description::Unserved(why) if why.contains("final_logit_softcapping")));
}

#[test]
fn phi3_is_described_with_its_fused_tensors_and_without_longrope() {
    let all = tensors(tiny::phi3());
    let base = CONFIG.replace("llama", "phi3");
    let with = |more: &str| base.replacen('{', &format!("{{{more}"), 1);
    assert_eq!(from_config(&with(r#""sliding_window": 40, "#), None, &all), Ok(Some(tiny::phi3())));
    assert_eq!(from_config(&base, None, &all), Ok(Some(Model { window: None, ..tiny::phi3() })));
    let turned = from_config(&with(r#""partial_rotary_factor": 0.75, "#), None, &all);
    assert_eq!(turned, Ok(Some(tiny::phi3_turned(12))));
    for odd in ["0.7", "1.5"] {
        let why = why_not(&with(&format!(r#""partial_rotary_factor": {odd}, "#)), &all);
        assert!(why.contains("rotary_width"), "{why}");
    }
    let longrope = r#""rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, "#;
    let why = why_not(&with(longrope), &all);
    assert!(why.contains("longrope"), "{why}");
    let named = Model { naming: Naming::Gguf, ..tiny::phi3_turned(12) };
    let mut all = tensors(named.clone());
    let mut header = gguf(&named, &all);
    header.metadata.push(("phi3.rope.dimension_count".into(), GgufValue::Unsigned(12)));
    assert_eq!(describe(None, None, Some(&header), &all), Ok(Some(named)));
    all.push(TensorEntry { name: "rope_factors_long.weight".into(), ..all[1].clone() });
    let described = super::describe(None, None, Some(&header), &all).expect("reads");
    assert!(matches!(described, Description::Unserved(why) if why.contains("longrope")));
}

#[test]
fn smollm3_is_described_with_the_layers_that_do_not_rotate() {
    let all = tensors(tiny::smollm3());
    let base = CONFIG.replace("llama", "smollm3");
    let with = |more: &str| base.replacen('{', &format!("{{{more}"), 1);
    for more in [r#""no_rope_layer_interval": 2, "#, r#""no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 4, "#] {
        assert_eq!(from_config(&with(more), None, &all), Ok(Some(tiny::smollm3())), "{more}");
    }
    let all_rotate = from_config(&with(r#""no_rope_layers": [1, 1, 1], "#), None, &all).expect("reads");
    assert_eq!(all_rotate.expect("served").variations, Variations::default());
    let every = from_config(&base, None, &all).expect("reads").expect("served").variations.unrotated_every;
    assert_eq!(every, NonZeroU32::new(4), "what transformers takes it for");
    for odd in ["[0, 1, 1]", "[1, 0]", "[1, 0, 0]"] {
        assert!(why_not(&with(&format!(r#""no_rope_layers": {odd}, "#)), &all).contains("no_rope_layers"), "{odd}");
    }
}

#[test]
fn qwen3_with_experts_is_described_from_folders_and_gguf_files() {
    let all = tensors(tiny::qwen3moe(8, 3));
    let own = r#"{"head_dim": 32, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "#;
    let base = CONFIG.replace("llama", "qwen3_moe").replacen('{', own, 1);
    assert_eq!(from_config(&base, None, &all), Ok(Some(tiny::qwen3moe(8, 3))));
    let unnormalised = from_config(&base.replace("true", "false"), None, &all).expect("reads").expect("served");
    assert!(!unnormalised.variations.experts.expect("experts").normalised);
    for (from, to, word) in [
        (r#""mlp_only_layers": []"#, r#""mlp_only_layers": [0]"#, "mlp_only_layers"),
        (r#""decoder_sparse_step": 1"#, r#""decoder_sparse_step": 2"#, "decoder_sparse_step"),
        (r#""num_experts_per_tok": 3"#, r#""num_experts_per_tok": 9"#, "experts"),
    ] {
        let why = why_not(&base.replace(from, to), &all);
        assert!(why.contains(word), "{why}");
    }
    let named = Model { naming: Naming::Gguf, ..tiny::qwen3moe(8, 3) };
    let all = tensors(named.clone());
    let mut header = gguf(&named, &all);
    for (name, n) in [
        ("expert_count", 8),
        ("expert_used_count", 3),
        ("expert_feed_forward_length", 32),
        ("attention.key_length", 32),
    ] {
        header.metadata.push((format!("qwen3moe.{name}"), GgufValue::Unsigned(n)));
    }
    assert_eq!(describe(None, None, Some(&header), &all), Ok(Some(named.clone())));
    header.metadata.push(("qwen3moe.expert_shared_count".into(), GgufValue::Unsigned(1)));
    assert_eq!(describe(None, None, Some(&header), &all), Ok(None));
    let mut llama = gguf(&Model { architecture: "llama".into(), ..named }, &all);
    llama.metadata.push(("llama.expert_count".into(), GgufValue::Unsigned(8)));
    let mixtral = super::describe(None, None, Some(&llama), &all).expect("reads");
    assert!(matches!(mixtral, Description::Unserved(why) if why.contains("8 experts")));
}

#[test]
fn a_layer_reads_of_its_experts_those_that_a_token_goes_through() {
    let model = tiny::qwen3moe(8, 2);
    let bytes = layer_bytes(&model, &tensors(model.clone())).expect("bytes");
    let expert = 3 * 32 * 64 * 4;
    assert!(bytes.layers.iter().zip(&bytes.read).all(|(all, read)| all - read == 6 * expert), "{bytes:?}");
    let dense = layer_bytes(&tiny::llama(), &tensors(tiny::llama())).expect("bytes");
    assert_eq!(dense.layers, dense.read);
}

#[test]
fn a_stage_keeps_a_table_for_each_kind_of_angles_that_its_layers_rotate_by() {
    let angles = |model: Model, start, end| {
        let part = StagePart { layers: LayerRange { start, end }, embedding: false, head: false };
        stage_memory(&model, &tensors(model.clone()), &part, 64).expect("memory").angles
    };
    let one = angles(tiny::qwen3(), 0, 3);
    let gemma = tiny::gemma3();
    assert_eq!((angles(gemma.clone(), 0, 2), angles(gemma.clone(), 2, 3), angles(gemma, 0, 3)), (one, one, 2 * one));
    let half = angles(tiny::llama(), 0, 3);
    assert_eq!((angles(tiny::smollm3(), 0, 3), angles(tiny::smollm3(), 1, 2)), (half, 0));
}

#[test]
fn llama_2_and_smollm2_are_plain_llamas() {
    // What their files say beside the numbers: Llama-2-7b-hf and SmolLM2-135M-Instruct.
    let all = tensors(tiny::llama());
    for more in [
        r#""pretraining_tp": 1, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "#,
        r#""attention_bias": false, "is_llama_config": true, "mlp_bias": false, "rope_interleaved": false, "#,
    ] {
        let config = CONFIG.replacen('{', &format!("{{{more}"), 1);
        assert_eq!(from_config(&config, None, &all), Ok(Some(tiny::llama())), "{more}");
    }
}

#[test]
fn what_is_not_served_is_said_in_a_sentence() {
    let all = tensors(tiny::llama());
    let with = |more: &str| CONFIG.replacen('{', &format!("{{{more}, "), 1);
    for (config, words) in [
        (CONFIG.replace("llama", "gemma2"), "its model_type is gemma2, which is not served, only llama"),
        (with(r#""rope_scaling": {"rope_type": "yarn", "factor": 8.0}"#), "in a way that is not served: yarn"),
        (with(r#""use_sliding_window": true"#), "its config.json sets use_sliding_window"),
        (with(r#""partial_rotary_factor": 0.5"#), "heads rotated in part, which its architecture has not"),
        (CONFIG.replace("silu", "relu2"), "its activation is relu2"),
        (CONFIG.replace("silu", "gelu_pytorch_tanh"), "which is not served for llama"),
    ] {
        let why = why_not(&config, &all);
        assert!(why.contains(words), "{why}");
    }
    let mut strange = all.clone();
    strange.push(TensorEntry { name: "model.layers.0.mlp.shared_expert.up_proj.weight".into(), ..all[1].clone() });
    assert!(why_not(CONFIG, &strange).contains("mlp.shared_expert.up_proj"));
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
fn memory_grows_with_context_and_with_what_conversion_widens() {
    let all = tensors(tiny::llama());
    let memory = |context| stage_memory(&tiny::llama(), &all, &StagePart::whole(3), context).expect("memory").total();
    let position = 3 * 2 * (16 + 16) * 2 + 16 * 8;
    assert_eq!(memory(512) - memory(256), 256 * position);
    assert_eq!(memory(u32::MAX), memory(512), "never more than the model's own context");
    let wide = Model { width: 256, head_width: 64, feed_forward: 256, ..tiny::llama() };
    let weights = |dtype| {
        let tensors = Tiny::new(wide.clone(), 1, |_| dtype).tensors;
        stage_memory(&wide, &tensors, &StagePart::whole(3), 64).expect("memory").weights
    };
    assert_eq!(weights(Dtype::Q3_K), weights(Dtype::Q8_0));
    assert!(weights(Dtype::Q5_0) < weights(Dtype::Q8_0) && weights(Dtype::Q4_K) < weights(Dtype::Q5_K));
}
