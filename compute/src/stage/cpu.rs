//! A stage on the CPU: our own engine, which keeps the reproducible-arithmetic law.

use super::{Checked, Facts, Hands, Made, Run, Stage, StepError};
use crate::cpu::{
    acts::Planes,
    cache::Cache,
    model::Model,
    pass::{Pass, Slot},
    work::{PASS_TOKENS_MAX, Work},
};
use std::sync::{Arc, Mutex, PoisonError};

/// Loaded weights and the buffers of their passes.
pub(crate) struct CpuWeights {
    model: Model,
    planes: Planes,
    context: usize,
    /// Guards the buffers of one pass; held by the engine thread for a pass, so never contended.
    work: Mutex<Option<Work>>,
}

/// One session on them.
pub(crate) struct CpuStage {
    weights: Arc<CpuWeights>,
    cache: Cache,
    slots: Vec<Slot>,
}

impl CpuWeights {
    pub fn new(model: Model, planes: Planes, context: usize) -> Arc<Self> {
        Arc::new(Self { model, planes, context, work: Mutex::new(None) })
    }

    pub fn facts(&self) -> Facts {
        let s = &self.model.shape;
        Facts {
            width: s.width,
            vocabulary: s.vocabulary,
            has_embedding: self.model.embedding.is_some(),
            context: self.context,
            position_bytes: Cache::position_bytes(self.model.layers.len() as u64, s.kv_heads as u64, s.head_width),
        }
    }

    pub fn open(self: &Arc<Self>, context: usize) -> CpuStage {
        let s = &self.model.shape;
        let cache = Cache::new(self.model.layers.len(), s.kv_heads, s.head_width, context);
        CpuStage { weights: self.clone(), cache, slots: Vec::new() }
    }
}

impl Stage for CpuStage {
    fn compute(&mut self, hands: &Hands, run: Run, choose: &mut dyn FnMut(&[f32]) -> u32) -> Result<Made, StepError> {
        let weights = self.weights.clone();
        let model = &weights.model;
        let mut guard = weights.work.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a pass that panics leaves no half-written buffers behind.
        let mut work = guard.take().unwrap_or_else(|| Work::new(model, weights.planes, PASS_TOKENS_MAX, 1));
        let hidden = self.passes(hands, &weights, &mut work, run);
        let made = match hidden {
            Some(values) => Made::Hidden(values),
            None if run.sample => Made::Token(choose(&work.logits[..model.shape.vocabulary])),
            None => Made::Nothing,
        };
        *guard = Some(work);
        Ok(made)
    }
}

impl CpuStage {
    /// Walks all positions, a pass at a time; gives the hidden states of a stage that is not last.
    fn passes(&mut self, hands: &Hands, weights: &CpuWeights, work: &mut Work, run: Run) -> Option<Vec<f32>> {
        let (model, Run { input, held, count, sample }) = (&weights.model, run);
        let width = model.shape.width;
        let mut hidden = model.head.is_none().then(|| vec![0f32; count * width]);
        for start in (0..count).step_by(PASS_TOKENS_MAX) {
            let end = count.min(start + PASS_TOKENS_MAX);
            self.slots.clear();
            self.slots.extend((start..end).map(|i| Slot { sequence: 0, position: held + i }));
            let (pool, level, planes) = (&hands.pool, hands.level, weights.planes);
            let pass = Pass { model, pool, level, planes, slots: &self.slots };
            match input {
                Checked::Ids(ids) => pass.embed(work, &ids[start..end]),
                Checked::Values(values) => pass.receive(work, &values[start * width..end * width]),
            }
            pass.walk(work, std::slice::from_mut(&mut self.cache));
            match &mut hidden {
                Some(values) => pass.send(work, &mut values[start * width..end * width]),
                None if sample && end == count => pass.logits(work, &[end - start - 1]),
                None => {}
            }
        }
        hidden
    }
}
