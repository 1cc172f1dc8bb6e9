//! A stage on the CPU: our own engine, which keeps the reproducible-arithmetic law.
//!
//! A pass takes pieces of several sessions' steps at once, since weights are read from memory once for all of them. What a
//! session's tokens become does not depend on its neighbours: columns of a pass meet nowhere ([`Pass`]).

use super::{
    Adapter, Checked, Facts, Hands, SESSIONS_USUAL,
    pages::{PageKey, Pages},
};
use crate::{
    cpu::{
        acts::Planes,
        adapters,
        cache::{Cache, Full, Page},
        kernels::KV_TILE,
        kv::KvFormat,
        model::Model,
        pass::{Pass, Slot},
        work::{PASS_TOKENS_MAX, SAMPLED_MAX, Work},
    },
    engine::Memory,
    sample::Sampling,
};
use smallvec::SmallVec;
use std::{
    mem,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Loaded weights and the buffers of their passes.
pub(crate) struct CpuWeights {
    model: Model,
    planes: Planes,
    context: usize,
    /// By what keys and values are held as.
    pages: [Arc<Pages>; KvFormat::ALL.len()],
    /// Guards the buffers of one pass; held by the engine thread for a pass, so never contended.
    work: Mutex<Option<Work>>,
}

/// One session on them.
pub(crate) struct CpuStage {
    weights: Arc<CpuWeights>,
    pages: Arc<Pages>,
    cache: Cache,
    /// What its first pages are known by, once they are full.
    keys: Vec<PageKey>,
    /// Pages that others can find.
    filed: usize,
    /// It computed something since it adopted.
    has_computed: bool,
}

impl CpuStage {
    /// Sees to it that the positions `at`, which come next, have pages.
    pub fn reserve(&mut self, at: Range<usize>) -> Result<(), Full> {
        self.has_computed = true;
        self.cache.reserve(at, || self.pages.take())
    }

    /// Forgets positions from `held` on.
    pub fn truncate(&mut self, held: usize) {
        self.cache.truncate(held);
        self.filed = self.filed.min(held / KV_TILE);
        // Other tokens may follow now than those that the keys name.
        if self.has_computed {
            self.keys.truncate(held / KV_TILE);
        }
    }

    /// Bytes of pages that no other session holds.
    pub fn own_bytes(&self) -> u64 {
        let is_own =
            |(index, page): &(usize, &Arc<Page>)| Arc::strong_count(page) <= 1 + usize::from(*index < self.filed);
        self.cache.pages().iter().enumerate().filter(is_own).count() as u64 * self.cache.shape().page_bytes()
    }

    /// Begins with what others have computed under these keys; says how many positions that are. Its own pages will be
    /// found under them, too.
    pub fn adopt(&mut self, keys: Vec<PageKey>) -> usize {
        let found = self.pages.find(&keys);
        let held = found.len() * KV_TILE;
        if let Some(memory) = self.pages.memory() {
            memory.note_adopted(held as u64);
        }
        self.filed = found.len();
        self.keys = keys;
        self.cache.adopt(found);
        self.has_computed = false;
        held
    }

    /// It holds what it adopted, and has computed nothing since.
    pub fn has_just_adopted(&self) -> bool {
        !self.has_computed
    }

    /// Lets others find the pages that are full when `held` positions are held, under these keys.
    pub fn name_pages(&mut self, keys: Vec<PageKey>, held: usize) {
        self.keys = keys;
        self.filed = 0;
        self.file(held);
    }

    /// Lets others find the pages that are full when `held` positions are held.
    pub fn file(&mut self, held: usize) {
        let full = (held / KV_TILE).min(self.keys.len());
        for index in self.filed..full {
            self.pages.file_page(self.keys[index], index, &self.cache.pages()[index]);
        }
        self.filed = self.filed.max(full);
    }

    /// Gives back all that it holds to who needs it more.
    pub fn evict(&mut self) {
        self.truncate(0);
        if let Some(memory) = self.pages.memory() {
            memory.note_eviction();
        }
    }

    /// Pages are known by nothing any more: what follows is computed in another way.
    pub fn forget_keys(&mut self) {
        self.keys.clear();
    }
}

/// A piece of one session's step: some of its positions, one after the other.
pub(crate) struct Piece<'a> {
    pub stage: &'a mut CpuStage,
    pub adapter: Option<&'a Arc<adapters::Adapter>>,
    /// What goes in, of just these positions.
    pub input: Checked<'a>,
    /// The position of the first.
    pub first: usize,
    /// How many.
    pub count: usize,
    pub wants: Wants<'a>,
}

/// What is wanted of a piece.
pub(crate) enum Wants<'a> {
    /// The hidden states of its positions, token-major.
    Hidden(&'a mut [f32]),
    /// The token after its last position.
    Token { sampling: &'a Sampling, history: &'a [u32], token: &'a mut Option<u32> },
    /// The logits after its last position.
    Logits(&'a mut Option<Vec<f32>>),
    /// That its keys and values are kept.
    Nothing,
}

impl CpuWeights {
    /// What was loaded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// `memory` counts the pages of their sessions; without one nobody does.
    pub fn new(model: Model, planes: Planes, context: usize, memory: Option<&Arc<Memory>>) -> Arc<Self> {
        let pages = KvFormat::ALL.map(|format| Pages::new(model.page_shape(format), memory));
        Arc::new(Self { model, planes, context, pages, work: Mutex::new(None) })
    }

    pub fn facts(&self) -> Facts {
        let s = &self.model.shape;
        Facts {
            width: s.width,
            vocabulary: s.vocabulary,
            has_embedding: self.model.embedding.is_some(),
            has_head: self.model.head.is_some(),
            context: self.context,
        }
    }

    /// Bytes of keys and values that one position takes.
    pub fn position_bytes(&self, kv: KvFormat) -> u64 {
        self.pages(kv).shape().position_bytes()
    }

    fn pages(&self, kv: KvFormat) -> &Arc<Pages> {
        &self.pages[kv as usize]
    }

    /// Whether an adapter was loaded for just such weights.
    pub fn takes(&self, adapter: &Adapter) -> bool {
        adapter.shape == self.model.shape && adapter.weights.layers.len() == self.model.layers.len()
    }

    /// A session without a position.
    pub fn open(self: &Arc<Self>, kv: KvFormat) -> CpuStage {
        let pages = self.pages(kv).clone();
        CpuStage {
            weights: self.clone(),
            cache: Cache::empty(pages.shape()),
            pages,
            keys: Vec::new(),
            filed: 0,
            has_computed: false,
        }
    }

    /// Computes all pieces in one pass: at most [`PASS_TOKENS_MAX`] positions, of which [`SAMPLED_MAX`] give tokens. All are of
    /// sessions on these weights, each session once.
    fn pass(&self, hands: &Hands, pieces: &mut [Piece]) {
        let mut guard = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a pass that panics leaves no half-written buffers behind.
        let mut work =
            guard.take().unwrap_or_else(|| Work::new(&self.model, self.planes, PASS_TOKENS_MAX, SAMPLED_MAX));
        let slots: SmallVec<[Slot; PASS_TOKENS_MAX]> = slots(pieces).collect();
        let pass =
            Pass { model: &self.model, pool: &hands.pool, level: hands.level, planes: self.planes, slots: &slots };
        let width = self.model.shape.width;
        match self.model.embedding {
            Some(_) => pass.embed(&mut work, pieces.iter().flat_map(|piece| piece.input.ids()).copied()),
            None => pass.receive(&mut work, pieces.iter().flat_map(|piece| piece.input.values().chunks_exact(width))),
        }
        let adapters: SmallVec<[_; SESSIONS_USUAL]> = pieces.iter().map(|piece| piece.adapter).collect();
        work.low.gather(&adapters, &slots);
        let mut caches: SmallVec<[&mut Cache; SESSIONS_USUAL]> =
            pieces.iter_mut().map(|piece| &mut piece.stage.cache).collect();
        pass.walk(&mut work, &mut caches);
        drop(caches);
        work.low.clear();
        match self.model.head {
            Some(_) => choose(&pass, &mut work, pieces),
            None => pass.send(&work, pieces.iter_mut().flat_map(|piece| piece.wants.rows(width))),
        }
        *guard = Some(work);
    }
}

/// Computes pieces of steps of sessions that share their weights.
pub(crate) fn pass(hands: &Hands, pieces: &mut [Piece]) {
    let Some(first) = pieces.first() else { return };
    let weights = first.stage.weights.clone();
    weights.pass(hands, pieces);
}

fn slots(pieces: &[Piece]) -> impl Iterator<Item = Slot> {
    let of = |(sequence, piece): (usize, &Piece)| {
        let first = piece.first;
        (0..piece.count).map(move |i| Slot { sequence, position: first + i })
    };
    pieces.iter().enumerate().flat_map(of)
}

/// The tokens of the pieces that want one, from the logits of their last positions.
fn choose(pass: &Pass, work: &mut Work, pieces: &mut [Piece]) {
    let mut wanted = SmallVec::<[usize; SAMPLED_MAX]>::new();
    let mut end = 0;
    for piece in pieces.iter() {
        end += piece.count;
        if matches!(piece.wants, Wants::Token { .. } | Wants::Logits(_)) {
            wanted.push(end - 1);
        }
    }
    if wanted.is_empty() {
        return;
    }
    pass.logits(work, &wanted);
    let (mut column, mut sampler) = (0, mem::take(&mut work.sampler));
    for piece in pieces {
        let logits = match piece.wants {
            Wants::Token { .. } | Wants::Logits(_) => pass.column(work, column, wanted.len()),
            Wants::Hidden(_) | Wants::Nothing => continue,
        };
        match &mut piece.wants {
            Wants::Token { sampling, history, token } => {
                **token = Some(sampler.choose(logits, sampling, (piece.first + piece.count) as u64, history));
            }
            Wants::Logits(values) => **values = Some(logits.to_vec()),
            Wants::Hidden(_) | Wants::Nothing => {}
        }
        column += 1;
    }
    work.sampler = sampler;
}

impl Wants<'_> {
    fn rows(&mut self, width: usize) -> std::slice::ChunksExactMut<'_, f32> {
        match self {
            Self::Hidden(values) => values.chunks_exact_mut(width),
            Self::Token { .. } | Self::Logits(_) | Self::Nothing => [].chunks_exact_mut(width),
        }
    }
}
