//! Which adapter a request means, and whether it fits the model.
//!
//! A name becomes a revision once, here; every stage is told that revision. What an adapter is, its manifest says, which
//! every stage reads for itself ([`crate::stages`]). Invariant: a [`Chosen`] fits the model that it was chosen for.

use cairn_compute::{
    StagePart,
    adapter::{self, AdapterError, AdapterSpec},
};
use cairn_protocol::{
    id::{PublisherKey, RevisionId},
    manifest::{Manifest, Model},
    name::{RepoKind, RepoRef},
    refusal::{Reason, Refusal},
};
use cairn_registry::Resolved;

use super::{advisories, holders, names, plan::Wish};
use crate::{data::fetch::Source, shell::Node};

/// An adapter of one generation.
#[derive(Clone)]
pub(crate) struct Chosen {
    /// Which it is, the same on every stage.
    pub revision: RevisionId,
    /// Who published it.
    pub publisher: PublisherKey,
    /// Who holds it or some of it.
    pub sources: Vec<Source>,
    /// Memory of each layer, and of a stage's buffers.
    layers: Vec<u64>,
    buffers: u64,
    name: RepoRef,
    resolved: Resolved,
}

/// The adapter that a request names, if it names one.
pub(crate) async fn choose(node: &Node, name: &str, model: &Model) -> Result<Option<Chosen>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let reference = names::parse(name)?;
    if reference.path.kind != RepoKind::Adapter {
        let why = "an adapter's name begins with adapters/";
        return Err(Refusal::new(Reason::BadInput, name, why).try_this(format!("adapters/{name}")));
    }
    let resolved = names::resolve_anywhere(node, &reference).await?;
    let manifest = holders::manifest_of(node, &resolved).await?;
    advisories::permit(node, &resolved, &manifest, &[]).await?;
    let spec = spec(name, &manifest)?;
    let whole = StagePart::whole(model.layers);
    let fitted = adapter::fit(model, &spec, &manifest.tensors, &whole).map_err(|error| misfit(name, &spec, &error))?;
    let layers = fitted.layer_memory(model.layers);
    let buffers = fitted.memory() - layers.iter().sum::<u64>();
    Ok(Some(Chosen {
        revision: resolved.revision,
        publisher: manifest.repo.publisher,
        sources: holders::sources(node, resolved.revision).await,
        layers,
        buffers,
        name: reference,
        resolved,
    }))
}

impl Chosen {
    /// Remembers whose handle it is. Only for an explicit act of a person.
    pub async fn remember(&self, node: &Node) {
        names::remember(node, &self.name, &self.resolved).await;
    }

    /// Counts its memory among that of the layers it adds to.
    pub fn weigh(&self, wish: &mut Wish) {
        for (layer, more) in wish.cost.layers.iter_mut().zip(&self.layers) {
            *layer = layer.saturating_add(*more);
        }
        wish.cost.buffer_bytes = wish.cost.buffer_bytes.saturating_add(self.buffers);
    }
}

/// What a manifest says of its adapter.
pub(crate) fn spec(what: &str, manifest: &Manifest) -> Result<AdapterSpec, Refusal> {
    AdapterSpec::from_metadata(&manifest.metadata).map_err(|error| {
        Refusal::new(Reason::Unsupported, what, error.to_string())
            .try_this("a PEFT folder with a LoRA, published as adapters/PUBLISHER/NAME")
    })
}

/// An adapter that the model can't take, with the model that it was made for.
pub(crate) fn misfit(what: &str, spec: &AdapterSpec, error: &AdapterError) -> Refusal {
    let attempt = match spec.base_model.as_str() {
        "" => "the model that it was trained on".to_owned(),
        base => format!("the model that it was trained on, {base}"),
    };
    Refusal::new(Reason::Unsupported, what, error.to_string()).try_this(attempt)
}
