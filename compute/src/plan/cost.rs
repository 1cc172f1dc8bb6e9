//! What a model's parts cost: bytes to read a token, multiply-adds a prompt token, memory to hold.
//!
//! Not a measurement of any machine; a candidate's speeds come from its advert. All times are whole nanoseconds, so
//! that equal inputs give equal plans on every machine.

use super::Candidate;
use crate::cpu::{cache::PageShape, kv::KvFormat};
use cairn_protocol::layers::LayerRange;
use cairn_protocol::manifest::Model;

/// The loader's buffers and what else a stage takes, beside weights, cache, angles and activations.
const STAGE_OVERHEAD_BYTES: u64 = 8 << 20;
/// Read bandwidth assumed of a node that has not measured: an old desktop's.
const BANDWIDTH_UNKNOWN: u64 = 5_000_000_000;
/// Rate at which weights come from another node: a gigabit link, less its overhead. All stages fetch from the same few
/// holders, so their times add up.
const FETCH_BYTES_PER_S: u64 = 100_000_000;
/// Rate at which weights that are there are read and packed: what small servers do.
const LOAD_BYTES_PER_S: u64 = 250_000_000;
/// Multiply-adds a second assumed of a node that has not measured.
const MACS_UNKNOWN: u64 = 10_000_000_000;

/// What a model's parts cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCost {
    /// Stored bytes of each layer.
    pub layers: Vec<u64>,
    /// Of each layer, stored bytes that a decoded token reads: of experts, those that it goes through.
    pub read: Vec<u64>,
    /// Stored bytes of the embedding table.
    pub embedding: u64,
    /// Stored bytes of the head: final norm and output table (the embedding's bytes where they are tied).
    pub head: u64,
    /// Embedding and head are one table, which a stage with both holds once.
    pub tied: bool,
    /// Bytes of keys and values that one layer keeps for one position.
    pub kv_bytes_per_token: u64,
    /// Multiply-adds of one layer for one token, attention over the past left out.
    pub layer_macs: u64,
    /// Bytes in memory for 100 stored bytes: over 100 where weights are widened at load.
    pub memory_percent: u64,
    /// Bytes that a stage keeps for each position of its context, however many its layers are.
    pub angle_bytes_per_token: u64,
    /// Bytes of a stage's activations.
    pub buffer_bytes: u64,
}

/// Bytes of keys and values that one layer of a model keeps for one position.
pub fn kv_bytes_per_token(model: &Model, format: KvFormat) -> u64 {
    let (kv_heads, width) = (model.kv_heads as usize, model.head_width as usize);
    PageShape { layers: 1, kv_heads, width, format }.position_bytes()
}

impl ModelCost {
    /// From the model's shape and the stored bytes of its parts; a token reads all of them.
    pub fn new(model: &Model, layers: Vec<u64>, embedding: u64, head: u64) -> ModelCost {
        let (width, feed_forward) = (u64::from(model.width), u64::from(model.feed_forward));
        let kv_width = u64::from(model.kv_heads) * u64::from(model.head_width);
        let query_width = u64::from(model.heads) * u64::from(model.head_width);
        let (routed, blocks) =
            model.variations.experts.map_or((0, 1), |experts| (u64::from(experts.count), u64::from(experts.used)));
        ModelCost {
            read: layers.clone(),
            layers,
            embedding,
            head,
            tied: model.tied_embeddings,
            kv_bytes_per_token: kv_bytes_per_token(model, KvFormat::F16),
            layer_macs: width * (2 * query_width + 2 * kv_width + routed + 3 * feed_forward * blocks),
            memory_percent: 100,
            angle_bytes_per_token: 0,
            buffer_bytes: 0,
        }
    }

    /// Number of layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Stored bytes of a stage.
    pub fn stage_bytes(&self, layers: LayerRange) -> u64 {
        let own = self.layers[layers.start as usize..layers.end as usize]
            .iter()
            .fold(0, |sum: u64, b| sum.saturating_add(*b));
        let (first, last) = (self.is_first(layers), self.is_last(layers));
        let ends = match (first, last) {
            (true, true) if self.tied => self.embedding.max(self.head),
            (true, true) => self.embedding.saturating_add(self.head),
            (true, false) => self.embedding,
            (false, true) => self.head,
            (false, false) => 0,
        };
        own.saturating_add(ends)
    }

    /// Memory that a stage takes: weights, keys and values for `context` positions, and scratch.
    pub fn stage_memory(&self, layers: LayerRange, context: u64) -> u64 {
        let cache =
            self.kv_bytes_per_token.saturating_mul(context).saturating_mul(u64::from(layers.end - layers.start));
        let weights = self.stage_bytes(layers) as u128 * u128::from(self.memory_percent) / 100;
        clamp(weights).saturating_add(cache).saturating_add(self.fixed_memory(context))
    }

    /// The least that any stage of this model needs.
    pub(super) fn smallest_stage_memory(&self, context: u64) -> u64 {
        let smallest = self.layers.iter().min().copied().unwrap_or(0) as u128 * u128::from(self.memory_percent) / 100;
        clamp(smallest)
            .saturating_add(self.kv_bytes_per_token.saturating_mul(context))
            .saturating_add(self.fixed_memory(context))
    }

    /// What any stage takes, however many its layers are.
    fn fixed_memory(&self, context: u64) -> u64 {
        let angles = self.angle_bytes_per_token.saturating_mul(context);
        angles.saturating_add(self.buffer_bytes).saturating_add(STAGE_OVERHEAD_BYTES)
    }

    /// Nanoseconds that one token spends computing in a stage. Of the embedding one row is read, which is nothing.
    pub fn decode_ns(&self, layers: LayerRange, on: &Candidate) -> u64 {
        let own =
            self.read[layers.start as usize..layers.end as usize].iter().fold(0, |sum: u64, b| sum.saturating_add(*b));
        let bytes = if self.is_last(layers) { own.saturating_add(self.head) } else { own };
        let rate = if on.bandwidth_bytes_per_s == 0 { BANDWIDTH_UNKNOWN } else { on.bandwidth_bytes_per_s };
        per_second_ns(bytes, rate, on.sessions)
    }

    /// Nanoseconds that a prompt of `tokens` spends computing in a stage.
    pub fn prefill_ns(&self, layers: LayerRange, tokens: u64, on: &Candidate) -> u64 {
        let macs = self.layer_macs.saturating_mul(u64::from(layers.end - layers.start)).saturating_mul(tokens);
        let rate = if on.macs_per_s == 0 { MACS_UNKNOWN } else { on.macs_per_s };
        per_second_ns(macs, rate, on.sessions)
    }

    /// Nanoseconds until a stage could compute: what `on` lacks is fetched, and all of it loaded, unless it `loaded`
    /// these very layers before.
    pub fn ready_ns(&self, layers: LayerRange, on: &Candidate, loaded: Option<LayerRange>) -> u64 {
        if loaded == Some(layers) {
            return 0;
        }
        let bytes = self.stage_bytes(layers);
        let had = if on.holds { bytes } else { loaded.map_or(0, |had| self.shared_bytes(layers, had)) };
        let fetching = per_second_ns(bytes.saturating_sub(had), FETCH_BYTES_PER_S, 0);
        fetching.saturating_add(per_second_ns(bytes, LOAD_BYTES_PER_S, 0))
    }

    /// Stored bytes that two stages have in common.
    fn shared_bytes(&self, a: LayerRange, b: LayerRange) -> u64 {
        let (start, end) = (a.start.max(b.start), a.end.min(b.end));
        if start < end { self.stage_bytes(LayerRange { start, end }) } else { 0 }
    }

    fn is_first(&self, layers: LayerRange) -> bool {
        layers.start == 0
    }

    fn is_last(&self, layers: LayerRange) -> bool {
        layers.end as usize == self.layers.len()
    }
}

/// `amount` at `rate` a second, shared with the sessions already there.
fn per_second_ns(amount: u64, rate: u64, sessions: u32) -> u64 {
    clamp(u128::from(amount) * 1_000_000_000 * (u128::from(sessions) + 1) / u128::from(rate.max(1)))
}

fn clamp(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
