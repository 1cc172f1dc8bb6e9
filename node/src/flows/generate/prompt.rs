//! From a request to token ids, with the model's own tokenizer.
//!
//! Fetches only what a tokenizer is read from: a few small files, or the header of a GGUF. Invariant: what a user's chat
//! message says never becomes a special token; in a raw prompt special tokens are parsed. Tokenizers and templates are
//! strangers' files in the hands of libraries: everything that reads or runs one does so on a blocking thread, where a
//! panic is a refusal ([`guarded`]).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use cairn_compute::{
    choose::Vocabulary,
    text::{self, ChatError, EncodeError, Files, Message, Moment, Tokenizer},
};
use cairn_protocol::{
    api, gguf,
    id::RevisionId,
    limits,
    manifest::{Manifest, ManifestFile, Model},
    refusal::{Reason, Refusal},
};

use crate::{
    data::fetch::Source,
    panics,
    shell::Node,
    stages::{self, choosing},
};

/// Tokenizers that are kept read: a node rarely serves more models at once, and one takes up to 100 MB.
const TEXTS_MAX: usize = 4;

/// Largest of the small files; larger ones are no tokenizer's.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Tokenizers by revision, the last used at the end.
#[derive(Default)]
pub(crate) struct TextCache {
    /// Guards the list; never held across an await.
    kept: Mutex<VecDeque<(RevisionId, Arc<Texts>)>>,
}

impl TextCache {
    fn get(&self, revision: RevisionId) -> Option<Arc<Texts>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(r, _)| *r == revision)?;
        let entry = kept.remove(at)?;
        let texts = entry.1.clone();
        kept.push_back(entry);
        Some(texts)
    }

    fn put(&self, revision: RevisionId, texts: Arc<Texts>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((revision, texts));
        if kept.len() > TEXTS_MAX {
            kept.pop_front();
        }
    }
}

/// A model's way with text.
pub(crate) struct Texts {
    tokenizer: Tokenizer,
    /// Made when the first grammar needs it.
    vocabulary: OnceLock<Arc<Vocabulary>>,
}

impl Texts {
    /// Ids that end a generation: the tokenizer's and the model's.
    pub fn eos(&self, model: &Model) -> Vec<u32> {
        let mut eos = [self.tokenizer.eos(), &model.eos_tokens].concat();
        eos.sort_unstable();
        eos.dedup();
        eos
    }

    /// An incremental decoder for what follows `prompt`.
    pub fn stream(&self, prompt: &[u32], stops: &[String]) -> text::Stream {
        self.tokenizer.stream(prompt, stops.to_vec())
    }

    /// The same for text that follows a grammar, of which no character may be lost.
    pub fn stream_exactly(&self, stops: &[String]) -> text::Stream {
        self.tokenizer.stream_exactly(stops.to_vec())
    }

    /// The bytes that an id adds to a text.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(id).to_vec()
    }

    /// What grammars need of the vocabulary, made once: it takes up to a second.
    pub async fn vocabulary(self: &Arc<Self>, model: &Model) -> Result<Arc<Vocabulary>, Refusal> {
        if let Some(vocabulary) = self.vocabulary.get() {
            return Ok(vocabulary.clone());
        }
        let (texts, eos, size) = (self.clone(), self.eos(model), model.vocabulary);
        let make = move || Vocabulary::new(&texts.tokenizer, &eos, size).map_err(|error| choosing::refusal(&error));
        let made = Arc::new(guarded("reading a vocabulary", make).await?);
        Ok(self.vocabulary.get_or_init(|| made).clone())
    }
}

/// The tokenizer of a revision, read once.
pub(crate) async fn texts(
    node: &Arc<Node>,
    revision: RevisionId,
    manifest: &Manifest,
    sources: &[Source],
) -> Result<Arc<Texts>, Refusal> {
    if let Some(texts) = node.stages.texts().get(revision) {
        return Ok(texts);
    }
    let material = material(node, manifest, sources).await?;
    let tokenizer = guarded("reading a tokenizer", move || material.read()).await?;
    let texts = Arc::new(Texts { tokenizer, vocabulary: OnceLock::new() });
    node.stages.texts().put(revision, texts.clone());
    Ok(texts)
}

/// Does what a stranger's tokenizer or template takes part in, away from the async workers and with panics caught. It
/// goes on to its end if this future is dropped.
async fn guarded<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(move || panics::catch(what, work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => Err(unreadable(&format!("the library that reads it failed: {why}"))),
        Err(e) => Err(Refusal::new(Reason::Internal, "the tokenizer", e.to_string()).try_this("the node's log")),
    }
}

/// The bytes that a tokenizer is read from.
#[derive(Default)]
struct Material {
    tokenizer: Option<Bytes>,
    tokenizer_config: Option<Bytes>,
    special_tokens_map: Option<Bytes>,
    generation_config: Option<Bytes>,
    config: Option<Bytes>,
    chat_template: Option<Bytes>,
    gguf: Option<(Bytes, u64)>,
}

async fn material(node: &Arc<Node>, manifest: &Manifest, sources: &[Source]) -> Result<Material, Refusal> {
    let whole = async |name: &str| -> Result<Option<Bytes>, Refusal> {
        let Some(file) = file(manifest, name).filter(|f| f.size <= FILE_BYTES_MAX) else { return Ok(None) };
        read(node, file, file.size, sources).await.map(Some)
    };
    if let Some(tokenizer) = whole("tokenizer.json").await? {
        return Ok(Material {
            tokenizer: Some(tokenizer),
            tokenizer_config: whole("tokenizer_config.json").await?,
            special_tokens_map: whole("special_tokens_map.json").await?,
            generation_config: whole("generation_config.json").await?,
            config: whole("config.json").await?,
            chat_template: whole("chat_template.jinja").await?,
            gguf: None,
        });
    }
    let gguf = manifest.files.iter().find(|f| f.path.as_str().ends_with(".gguf") && f.header_bytes > 0);
    let Some(file) = gguf.filter(|f| f.header_bytes <= limits::GGUF_HEADER_BYTES_MAX) else {
        let why = "it has neither a tokenizer.json nor a GGUF header";
        return Err(Refusal::new(Reason::Unsupported, "the model", why).try_this("publish its tokenizer.json with it"));
    };
    let header = read(node, file, file.header_bytes, sources).await?;
    Ok(Material { gguf: Some((header, file.size)), ..Material::default() })
}

fn file<'a>(manifest: &'a Manifest, name: &str) -> Option<&'a ManifestFile> {
    manifest.files.iter().find(|f| f.path.as_str() == name)
}

/// The first `bytes` of a file, fetched if they are not here.
async fn read(node: &Arc<Node>, file: &ManifestFile, bytes: u64, sources: &[Source]) -> Result<Bytes, Refusal> {
    let blobs = node.registry.blobs();
    let pin = blobs.temp_pin(file.blake3).await;
    let range = 0..bytes;
    let wanted = std::slice::from_ref(&range);
    let fetched = node.data.fetch_ranges(node, file.blake3, file.size, wanted, sources, |_| {}).await?;
    if fetched.bytes_fetched > 0 {
        stages::keep(node, &[file.blake3]).await?;
    }
    let read = blobs.read(file.blake3, range).await;
    drop(pin);
    read.map_err(|e| Refusal::new(Reason::Corrupt, file.path.to_string(), e.to_string()).try_this("cairn verify"))
}

impl Material {
    fn read(&self) -> Result<Tokenizer, Refusal> {
        let tokenizer = match (&self.tokenizer, &self.gguf) {
            (Some(tokenizer), _) => Tokenizer::from_files(&Files {
                tokenizer,
                tokenizer_config: self.tokenizer_config.as_deref(),
                special_tokens_map: self.special_tokens_map.as_deref(),
                generation_config: self.generation_config.as_deref(),
                config: self.config.as_deref(),
                chat_template: self.chat_template.as_deref(),
            }),
            (None, Some((header, size))) => {
                let header = gguf::parse_header(header, *size).map_err(|e| unreadable(&e))?;
                Tokenizer::from_gguf(&header)
            }
            (None, None) => return Err(unreadable(&"there is none")),
        };
        tokenizer.map_err(|e| unreadable(&e))
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::Unsupported, "the model's tokenizer", error.to_string())
        .try_this("a model with a byte-level or SPM BPE")
}

/// The ids of a request: those given, or its messages or prompt encoded.
pub(super) async fn ids(
    texts: &Arc<Texts>,
    request: &api::GenerateRequest,
    vocabulary: u32,
) -> Result<Vec<u32>, Refusal> {
    match (request.token_ids.is_empty(), request.prompt.is_empty(), request.messages.is_empty()) {
        (false, true, true) => return given(request, vocabulary),
        (true, true, false) | (true, _, true) => {}
        _ => {
            let why = "it is given in several ways, and only one of prompt, messages and token_ids can be gone on from";
            return Err(Refusal::new(Reason::BadInput, "the prompt", why).try_this("one of them"));
        }
    }
    let (texts, said) = (texts.clone(), Said::of(request));
    let ids = guarded("encoding a prompt", move || said.encode(&texts.tokenizer)).await?;
    match ids.iter().find(|id| **id >= vocabulary) {
        Some(id) => Err(unreadable(&format!("it has an id {id}, the model {vocabulary} ids"))),
        None => Ok(ids),
    }
}

/// What a request says in words.
enum Said {
    Raw(String),
    Chat(Vec<Message>),
}

impl Said {
    fn of(request: &api::GenerateRequest) -> Said {
        if request.raw { Said::Raw(request.prompt.clone()) } else { Said::Chat(messages(request)) }
    }

    fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Refusal> {
        let encoded = match self {
            Said::Raw(prompt) => tokenizer.encode_raw(prompt),
            Said::Chat(messages) => tokenizer.encode_chat(messages, now()),
        };
        encoded.map_err(|e| Refusal::new(Reason::BadInput, "the prompt", e.to_string()).try_this(advice(&e)))
    }
}

fn advice(error: &EncodeError) -> &'static str {
    match error {
        EncodeError::Chat(ChatError::Role(_)) => "one of these roles",
        EncodeError::Chat(ChatError::Empty) => "a message of role user",
        // The model's own template stands in the way; without it, the text is taken as it is.
        EncodeError::Chat(ChatError::Raised(_) | ChatError::Template(_)) => "a raw prompt (--raw)",
        EncodeError::Tokenizer(_) => "another text",
    }
}

fn given(request: &api::GenerateRequest, vocabulary: u32) -> Result<Vec<u32>, Refusal> {
    match request.token_ids.iter().find(|id| **id >= vocabulary) {
        Some(id) => {
            let why = format!("the model has {vocabulary} ids");
            Err(Refusal::new(Reason::BadInput, format!("token id {id}"), why).try_this("ids of this model's tokenizer"))
        }
        None => Ok(request.token_ids.clone()),
    }
}

fn messages(request: &api::GenerateRequest) -> Vec<Message> {
    if request.messages.is_empty() {
        return vec![Message { role: "user".to_owned(), content: request.prompt.clone() }];
    }
    let message = |m: &api::ChatMessage| Message { role: m.role.clone(), content: m.content.clone() };
    request.messages.iter().map(message).collect()
}

fn now() -> Moment {
    Moment { seconds: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs() as i64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_over_a_strangers_file_is_a_refusal_and_what_comes_after_it_is_served() {
        let refused = guarded::<()>("a test", || panic!("index out of bounds")).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Unsupported);
        assert!(refused.why.contains("index out of bounds"), "{refused}");
        assert_eq!(guarded("a test", || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_tokenizer_that_makes_the_library_panic_is_refused() {
        // Its character map is no base64, which the library takes for granted.
        let tokenizer = br#"{"version": "1.0", "added_tokens": [],
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
        let material = Material { tokenizer: Some(Bytes::from_static(tokenizer)), ..Material::default() };
        let refused = guarded("a test", move || material.read()).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Unsupported);
        assert!(refused.why.contains("the library"), "{refused}");
    }
}
