//! Every bound of the protocol, each with its reason. Not configuration: both sides of a wire check these before they
//! allocate, so a change is a change of the protocol. Invariant: no other file of the workspace invents a bound on peers' bytes.

/// An encoded record envelope: small enough that a page of hundreds stays in one answer, large enough for a revision's tags.
pub const RECORD_BYTES_MAX: usize = 32 * 1024;
/// The payload of a revision record: a summary; what is larger belongs into the manifest.
pub const REVISION_BYTES_MAX: usize = 16 * 1024;
/// A manifest blob: room for about 400 000 tensors or files with long names.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A signed advert: it is gossiped by every node, so a thousand nodes cost 4 MiB.
pub const ADVERT_BYTES_MAX: usize = 4 * 1024;
/// A question to a peer.
pub const QUESTION_BYTES_MAX: usize = 1024 * 1024;
/// An answer to a question.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The records of one page of heads: half an answer, so that the framing never reaches the limit.
pub const HEADS_PAGE_BYTES_MAX: usize = 512 * 1024;
/// Bytes of records that one catalogue holds of publishers that are not known here, and takes of those that are: a million publications
/// of ordinary size each. Signing is free, so a stranger could otherwise fill any disk with valid records.
pub const CATALOG_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes of strangers' records that one page of a peer's catalogue pushes out of a full ring: a 32nd of a page, so that looking at
/// each other never makes two full nodes write for ever, and a newcomer that a node missed still gets in after some looks.
pub const CATALOG_PAGE_DISPLACES_MAX: u64 = 16 * 1024;
/// Hashes in one `Holds` question.
pub const HOLDS_MAX: usize = 1024;
/// Numbers (flattened pairs) of byte ranges told of one incomplete blob: of those held, and again of those under way.
pub const HOLDING_RANGES_MAX: usize = 256;

/// A part of a name: a folder name on every file system with room for a suffix.
pub const NAME_BYTES_MAX: usize = 96;
/// A ref: `release/2025/…` nests, but it must fit a file name.
pub const REF_BYTES_MAX: usize = 200;
/// A path inside a revision; Windows without long paths takes 260 with the folder before it.
pub const PATH_BYTES_MAX: usize = 1024;
/// One part of such a path: the limit of nearly all file systems.
pub const PATH_PART_BYTES_MAX: usize = 255;

/// Files of one revision.
pub const MANIFEST_FILES_MAX: usize = 200_000;
/// Tensors of one revision.
pub const MANIFEST_TENSORS_MAX: usize = 400_000;
/// Metadata entries of one revision.
pub const MANIFEST_ENTRIES_MAX: usize = 4096;
/// Parents of one revision: merges of more are nobody's work.
pub const PARENTS_MAX: usize = 16;
/// The commit message of a revision.
pub const MESSAGE_BYTES_MAX: usize = 4096;
/// Key and value of one metadata entry together.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Tags of a revision record.
pub const TAGS_MAX: usize = 64;
/// Short free texts of a record: licence, architecture, quantisation, one tag.
pub const WORD_BYTES_MAX: usize = 128;
/// Items of one message that compares sets of records.
pub const RANGE_ITEMS_MAX: usize = 512;
/// Bytes of one answer that compares sets of records.
pub const RANGE_BYTES_MAX: usize = 256 * 1024;
/// Records that one question names by their ids.
pub const FETCH_IDS_MAX: usize = 1024;
/// Revisions in one question for what is kept whole; each costs the other a look at its manifest.
pub const KEEPS_MAX: usize = 256;
/// Licences, tasks or tags that one rule of a mirror's policy names.
pub const MIRROR_WORDS_MAX: usize = 32;
/// Languages of a revision record: models for all languages of a benchmark name some hundred.
pub const LANGUAGES_MAX: usize = 128;
/// Base models of a revision record: merges name some.
pub const BASE_MODELS_MAX: usize = 16;
/// Datasets of a revision record.
pub const DATASETS_MAX: usize = 32;
/// A repo as a card names it: kind, publisher, name and ref.
pub const NAMED_REPO_BYTES_MAX: usize = 256;
/// The card's text in a revision record: what a search looks through, a quarter of the record.
pub const CARD_TEXT_BYTES_MAX: usize = 4096;
/// The display name of a profile.
pub const DISPLAY_NAME_BYTES_MAX: usize = 256;
/// Profiles of one publisher that are kept: each begins an epoch, or is the newest of one.
pub const PROFILES_MAX: usize = 256;
/// Keys that sign for a publisher beside its own: the record holds them all.
pub const MEMBERS_MAX: usize = 256;
/// Repos and revisions that a revision's record says it was made from, or that an attestation looked at.
pub const ORIGINS_MAX: usize = 32;
/// What one advisory is about.
pub const SUBJECTS_MAX: usize = 64;
/// Where more is to be read about an advisory.
pub const URL_BYTES_MAX: usize = 1024;
/// Numbers of one attestation: a suite of benchmarks has some dozens.
pub const MEASUREMENTS_MAX: usize = 64;
/// Digests of one file that are read; more are refused.
pub const DIGESTS_MAX: usize = 16;
/// A file's size: 2^53 stays exact in JSON and far from overflow in sums of a manifest's files.
pub const FILE_BYTES_MAX: u64 = 1 << 53;

/// The JSON header of a safetensors file: the limit of the format's own reader.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 100_000_000;
/// The header of a GGUF file: large vocabularies with merges take 20 MB.
pub const GGUF_HEADER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Tensors of one safetensors or GGUF file.
pub const HEADER_TENSORS_MAX: u64 = 200_000;
/// Metadata entries of one GGUF or safetensors file.
pub const HEADER_ENTRIES_MAX: u64 = 65_536;
/// A tensor's name.
pub const TENSOR_NAME_BYTES_MAX: usize = 512;
/// Dimensions of a tensor.
pub const TENSOR_DIMENSIONS_MAX: usize = 8;
/// How deep GGUF arrays may nest: the format allows it, nobody uses it.
pub const GGUF_ARRAY_DEPTH_MAX: usize = 2;

/// Layers of a model that can be served.
pub const LAYERS_MAX: u32 = 4096;
/// Width, feed-forward width, vocabulary and the like of a model.
pub const MODEL_NUMBER_MAX: u32 = 1 << 24;
/// Experts of a layer.
pub const EXPERTS_MAX: u32 = 4096;
/// What a rotary frequency may be divided by.
pub const ROPE_FACTOR_MAX: u32 = 1 << 20;
/// Positions that a model with scaled rotary frequencies may say it was first trained for.
pub const ROPE_CONTEXT_MAX: u32 = 1 << 30;
/// End-of-sequence tokens of a model.
pub const EOS_TOKENS_MAX: usize = 64;

/// Rank of an adapter: twice the largest in use.
pub const ADAPTER_RANK_MAX: u64 = 512;
/// Bytes of an adapter's tensors: rank 64 on every matrix of a model of 70 thousand million parameters is under this.
pub const ADAPTER_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Modules of an adapter with a factor of their own.
pub const ADAPTER_PATTERNS_MAX: usize = 1024;

/// Addresses of one sort in an advert.
pub const ADVERT_ADDRESSES_MAX: usize = 16;
/// Bytes of one address.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Revisions that an advert says it holds.
pub const ADVERT_HOLDS_MAX: usize = 32;
/// GPUs of one advert.
pub const ADVERT_GPUS_MAX: usize = 16;
/// Tasks that an advert says its node computes.
pub const ADVERT_TASKS_MAX: usize = 16;
/// Revisions that an advert says are loaded for a task: more are rarely in one memory, and 16 are 0.5 KiB.
pub const ADVERT_WARM_MAX: usize = 16;
/// Time to live that an advert may ask for: an hour, so that a vanished node is forgotten within the day.
pub const ADVERT_TTL_MS_MAX: u32 = 3_600_000;

/// Positions in one frame between stages: a prompt travels in pieces of this many.
pub const FRAME_POSITIONS_MAX: u32 = 512;
/// Values of one position in a frame.
pub const FRAME_WIDTH_MAX: u32 = 65_536;
/// The payload of one frame; both factors at their largest together are refused.
pub const FRAME_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// A control message on a stage's stream: 128 Ki token ids of history fit.
pub const STAGE_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Texts of one task: a request is answered in seconds, and longer lists are several requests.
pub const TASK_TEXTS_MAX: usize = 1024;
/// One text of a task: the longest that any known model reads is 8,192 tokens.
pub const TASK_TEXT_BYTES_MAX: usize = 64 * 1024;
/// All texts of one task together: half a message between nodes.
pub const TASK_BYTES_MAX: usize = 512 * 1024;
/// Values of one vector: four times the widest known.
pub const VECTOR_WIDTH_MAX: u32 = 16_384;
/// A piece of a byte stream over gRPC.
pub const PIECE_BYTES_MAX: usize = 256 * 1024;
/// Positions of one session: prompt and output together.
pub const CONTEXT_MAX: u32 = 1 << 20;
