//! Repos that nobody published, as a public hub has them: names of families, sizes and formats, publishers of whom few have much, cards
//! with front matter's facts and some sentences.
//!
//! Invariant: repo `n` of a seed is the same on every machine, whatever was made before it.

use cairn_protocol::{
    id::{RealmId, RevisionId},
    name::{RefName, RepoKind},
    record::{CardFacts, Head, Keypair, Profile, Record, RecordError, Revision},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const FAMILIES: [&str; 24] = [
    "Llama-3",
    "SmolLM2",
    "Qwen3",
    "Mistral",
    "Gemma-3",
    "Phi-4",
    "TinyLlama",
    "Falcon",
    "OLMo",
    "Yi",
    "DeepSeek-R1",
    "StableLM",
    "bert",
    "roberta",
    "distilbert",
    "t5",
    "whisper",
    "wav2vec2",
    "vit",
    "clip",
    "stable-diffusion",
    "flux",
    "mpnet",
    "gpt2",
];
const ARCHITECTURES: [&str; 12] =
    ["llama", "llama", "qwen3", "mistral", "gemma3", "phi3", "llama", "bert", "roberta", "t5", "whisper", "vit"];
const SIZES: [(&str, u64); 10] = [
    ("135M", 135),
    ("360M", 360),
    ("0.5B", 500),
    ("1B", 1_000),
    ("1.7B", 1_700),
    ("3B", 3_000),
    ("7B", 7_000),
    ("8B", 8_000),
    ("13B", 13_000),
    ("70B", 70_000),
];
const VARIANTS: [&str; 14] = [
    "instruct",
    "chat",
    "base",
    "code",
    "math",
    "reasoning",
    "dpo",
    "sft",
    "lora",
    "merged",
    "abliterated",
    "vision",
    "embedding",
    "roleplay",
];
const FORMATS: [&str; 8] = ["", "", "", "GGUF", "AWQ", "GPTQ", "bf16", "Q4_K_M"];
const TASKS: [&str; 14] = [
    "text-generation",
    "text-generation",
    "text-generation",
    "text-classification",
    "feature-extraction",
    "image-classification",
    "automatic-speech-recognition",
    "text-to-image",
    "translation",
    "summarization",
    "question-answering",
    "fill-mask",
    "sentence-similarity",
    "token-classification",
];
const LIBRARIES: [&str; 8] =
    ["transformers", "transformers", "transformers", "peft", "gguf", "diffusers", "sentence-transformers", "timm"];
const LICENSES: [&str; 10] =
    ["apache-2.0", "apache-2.0", "mit", "mit", "llama3", "gemma", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other"];
const LANGUAGES: [&str; 16] =
    ["en", "en", "en", "en", "zh", "de", "fr", "es", "ja", "ko", "ru", "pt", "it", "ar", "hi", "multilingual"];
const TAGS: [&str; 20] = [
    "safetensors",
    "pytorch",
    "conversational",
    "generated_from_trainer",
    "trl",
    "unsloth",
    "endpoints_compatible",
    "region:us",
    "en",
    "dataset:synthetic",
    "text-generation-inference",
    "4-bit",
    "8-bit",
    "medical",
    "legal",
    "finance",
    "code",
    "rag",
    "agents",
    "onnx",
];
const WORDS: [&str; 64] = [
    "model",
    "fine-tuned",
    "version",
    "dataset",
    "training",
    "evaluation",
    "results",
    "license",
    "intended",
    "uses",
    "limitations",
    "more",
    "information",
    "needed",
    "learning",
    "rate",
    "batch",
    "size",
    "optimizer",
    "epochs",
    "loss",
    "accuracy",
    "language",
    "english",
    "generation",
    "instruction",
    "following",
    "dialogue",
    "summaries",
    "translation",
    "speech",
    "images",
    "medical",
    "legal",
    "finance",
    "poetry",
    "code",
    "python",
    "reasoning",
    "mathematics",
    "benchmark",
    "quantised",
    "weights",
    "context",
    "tokens",
    "attention",
    "layers",
    "parameters",
    "adapter",
    "merge",
    "base",
    "chat",
    "assistant",
    "helpful",
    "harmless",
    "prompt",
    "template",
    "inference",
    "memory",
    "fast",
    "small",
    "large",
    "open",
    "community",
];

/// Words that cards are made of.
const VOCABULARY: f64 = 50_000.0;

/// So many of [`WORDS`] are the most frequent ones; the rest are words of a subject, each so many ranks behind the one before.
const FREQUENT: usize = 16;
const RARITY: usize = 24;

/// Publishers for so many repos: on a hub each has about six.
const REPOS_A_PUBLISHER: u64 = 6;

/// A maker of repos.
pub struct Synthetic {
    seed: u64,
    publishers: u64,
}

impl Synthetic {
    /// For so many repos in all.
    pub fn new(seed: u64, repos: u64) -> Self {
        Self { seed, publishers: (repos / REPOS_A_PUBLISHER).max(1) }
    }

    /// The key of a publisher.
    pub fn key(&self, publisher: u64) -> Keypair {
        let seed = [&self.seed.to_le_bytes()[..], &publisher.to_le_bytes()].concat();
        Keypair::from_seed(*cairn_protocol::id::BlobHash::of(&seed).as_bytes())
    }

    /// The handle of a publisher.
    pub fn handle(&self, publisher: u64) -> String {
        format!("{}{publisher}", ["lab-", "team", "acme-", "the", "ai-"][(publisher % 5) as usize])
    }

    /// Whose a repo is, and what its record says. The first publishers have much.
    pub fn repo(&self, number: u64) -> (u64, Revision) {
        let mut dice = StdRng::seed_from_u64(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let share: f64 = dice.random();
        let publisher = ((self.publishers as f64) * share.powi(3)) as u64;
        let pick = |dice: &mut StdRng, words: &[&str]| words[dice.random_range(0..words.len())].to_owned();
        let (size, millions) = SIZES[dice.random_range(0..SIZES.len())];
        let kind = match dice.random_range(0..10) {
            0..7 => RepoKind::Model,
            7 | 8 => RepoKind::Dataset,
            _ => RepoKind::Adapter,
        };
        let family = dice.random_range(0..FAMILIES.len());
        let parts = [
            FAMILIES[family].to_owned(),
            size.to_owned(),
            pick(&mut dice, &VARIANTS),
            pick(&mut dice, &FORMATS),
            number.to_string(),
        ];
        let name = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("-");
        let parameters = millions * 1_000_000 + dice.random_range(0..50_000_000);
        let revision = RevisionId::from(*cairn_protocol::id::BlobHash::of(name.as_bytes()).as_bytes());
        let some = |dice: &mut StdRng, words: &[&str], most: usize| {
            let mut picked: Vec<String> = (0..dice.random_range(1..=most)).map(|_| pick(dice, words)).collect();
            picked.sort();
            picked.dedup();
            picked
        };
        let body = Revision {
            revision,
            manifest_bytes: 4096,
            kind,
            name: name.parse().expect("made of names' characters"),
            parents: Vec::new(),
            files: dice.random_range(2..20),
            bytes: parameters * 2,
            message: String::new(),
            created_ms: 1_600_000_000_000 + dice.random_range(0..200_000_000_000),
            architecture: ARCHITECTURES[family % ARCHITECTURES.len()].to_owned(),
            parameters,
            license: pick(&mut dice, &LICENSES),
            quantisation: "BF16".to_owned(),
            tags: some(&mut dice, &TAGS, 8),
            card: Box::new(CardFacts {
                task: pick(&mut dice, &TASKS),
                library: pick(&mut dice, &LIBRARIES),
                languages: some(&mut dice, &LANGUAGES, 3),
                base_models: vec![format!("{}/{}-{size}", self.handle(family as u64), FAMILIES[family])],
                base_model_relation: "finetune".to_owned(),
                datasets: Vec::new(),
                text: text(&mut dice, number),
            }),
            publisher: None,
            origins: Vec::new(),
        };
        (publisher, body)
    }

    /// The signed records of a publisher.
    pub fn profile(&self, publisher: u64) -> Result<Record, RecordError> {
        let profile = Profile {
            handle: self.handle(publisher).parse().expect("made of names' characters"),
            display_name: String::new(),
            epoch: 0,
            recovery_key: None,
            previous: None,
            created_ms: 0,
            publisher: None,
            number: 0,
            signing_key: None,
            members: Vec::new(),
        };
        profile.sign(RealmId::PUBLIC, &self.key(publisher))
    }

    /// The signed records of a repo.
    pub fn records(&self, number: u64) -> Result<(u64, [Record; 2]), RecordError> {
        let (publisher, body) = self.repo(number);
        let key = self.key(publisher);
        let head = Head {
            kind: body.kind,
            name: body.name.clone(),
            ref_name: RefName::main(),
            epoch: 0,
            number: 1,
            revision: body.revision,
            previous: None,
            created_ms: body.created_ms,
            tag: false,
            publisher: None,
        };
        Ok((publisher, [body.sign(RealmId::PUBLIC, &key)?, head.sign(RealmId::PUBLIC, &key)?]))
    }
}

/// Sentences of words of which few are frequent, 200 to 1,500 bytes, and one word that no other repo has.
fn text(dice: &mut StdRng, number: u64) -> String {
    let words = dice.random_range(30..220);
    let mut text = format!("unique{number}");
    for _ in 0..words {
        let share: f64 = dice.random();
        // By Zipf's law: the chance of a rank is one over it.
        let rank = (VOCABULARY.powf(share) as usize).saturating_sub(1);
        text.push(' ');
        let behind = rank.checked_sub(FREQUENT).filter(|behind| behind.is_multiple_of(RARITY));
        let known = if rank < FREQUENT { Some(rank) } else { behind.map(|behind| FREQUENT + behind / RARITY) };
        match known.and_then(|at| WORDS.get(at)) {
            Some(word) => text.push_str(word),
            None => push_syllables(&mut text, rank),
        }
    }
    text
}

/// A word of three syllables for every rank.
fn push_syllables(text: &mut String, mut rank: usize) {
    for _ in 0..3 {
        text.push(char::from(b"bdfgklmnprstvz"[rank % 14]));
        rank /= 14;
        text.push(char::from(b"aeiou"[rank % 5]));
        rank /= 5;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repo_is_the_same_whatever_was_made_before_it() {
        let synthetic = Synthetic::new(7, 1000);
        let first = synthetic.repo(500);
        (0..10).for_each(|n| drop(synthetic.repo(n)));
        assert_eq!(synthetic.repo(500), first);
        assert_ne!(Synthetic::new(8, 1000).repo(500).1.card, first.1.card);
        assert!(synthetic.records(3).is_ok() && synthetic.profile(0).is_ok());
    }
}
