//! Adapters in the engine: loading one, and giving it to a session.
//!
//! Invariant: a session computes with an adapter that was loaded for weights of the same sizes, on the CPU, or with none.

use super::{
    Engine, LoadError, StageHandle,
    threads::{AdapterJob, Answer, Job},
};
use crate::{
    adapter::{self, AdapterSpec},
    arch::StagePart,
    stage::Adapter,
    weights::TensorSource,
};
use cairn_protocol::{
    id::RevisionId,
    manifest::{Model, TensorEntry},
};
use std::{
    fmt,
    sync::{Arc, mpsc::TrySendError},
};

/// A loaded adapter. Its memory is given back with the last handle and the last session that uses it.
#[derive(Clone)]
pub struct AdapterHandle {
    inner: Arc<Adapter>,
}

/// What loading an adapter ends with.
pub type AdapterDone = Box<dyn FnOnce(Result<AdapterHandle, LoadError>) + Send>;

/// Why a session does not take an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetAdapterError {
    /// Weights of other sizes, or on a GPU.
    #[error("the adapter was not loaded for these weights")]
    OtherWeights,
    /// Nothing was changed.
    #[error("the engine's queue is full")]
    Busy,
}

impl AdapterHandle {
    pub(super) fn new(adapter: Adapter) -> Self {
        Self { inner: Arc::new(adapter) }
    }

    /// Which adapter it is. Keys and values that were computed with it are of no use to any other.
    pub fn revision(&self) -> RevisionId {
        self.inner.revision
    }

    /// Bytes of memory that were reserved for it.
    pub fn bytes(&self) -> u64 {
        self.inner.share.bytes
    }

    pub(super) fn adapter(&self) -> &Arc<Adapter> {
        &self.inner
    }
}

impl fmt::Debug for AdapterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterHandle").field("revision", &self.inner.revision).finish()
    }
}

impl Engine {
    /// Loads an adapter for a part of a model. `done` is called once, on the loader thread, or at once on this one when the
    /// load is refused.
    pub fn load_adapter(&self, wanted: WantedAdapter, source: Box<dyn TensorSource>, done: AdapterDone) {
        if self.inner.device.is_some() {
            return done(Err(LoadError::Gpu("adapters are computed on CPUs, and this node computes on a GPU".into())));
        }
        let WantedAdapter { model, spec, revision, tensors, part } = wanted;
        let needed = match adapter::fit(&model, &spec, &tensors, &part) {
            Ok(fitted) => fitted.memory(),
            Err(error) => return done(Err(error.into())),
        };
        let share = match self.inner.memory.reserve(needed) {
            Ok(share) => share,
            Err(error) => return done(Err(error)),
        };
        let answer = Answer::new(done, || LoadError::Stopped);
        let job = Box::new(AdapterJob { model, spec, revision, tensors, part, source, share, answer });
        if let Err(TrySendError::Full(Job::Adapter(job))) = self.inner.loads.try_send(Job::Adapter(job)) {
            job.answer.give(Err(LoadError::Busy));
        }
    }
}

/// An adapter to be loaded.
#[derive(Clone, Debug)]
pub struct WantedAdapter {
    /// The model that it is for.
    pub model: Model,
    /// What it says of itself.
    pub spec: AdapterSpec,
    /// Which it is.
    pub revision: RevisionId,
    /// All its tensors.
    pub tensors: Vec<TensorEntry>,
    /// The part whose layers are loaded.
    pub part: StagePart,
}

impl StageHandle {
    /// Computes with an adapter, or with none, after the steps before. Positions that were computed with another are forgotten.
    pub fn set_adapter(&self, adapter: Option<&AdapterHandle>) -> Result<(), SetAdapterError> {
        let adapter = adapter.map(|adapter| adapter.adapter().clone());
        if adapter.as_ref().is_some_and(|adapter| !self.weights().takes(adapter)) {
            return Err(SetAdapterError::OtherWeights);
        }
        if self.give_adapter(adapter) { Ok(()) } else { Err(SetAdapterError::Busy) }
    }
}
