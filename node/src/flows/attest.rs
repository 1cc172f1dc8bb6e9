//! Attestations for people: what this node found out about a revision, signed, and what others say they found.
//!
//! Invariant: an attestation is signed by a key of this node and about a revision that resolved here.

use cairn_protocol::{
    api,
    id::RevisionId,
    name::RepoId,
    record::{Attestation, Measurement, Subject},
    refusal::{Reason, Refusal},
};
use cairn_registry::{Attested, Weight};

use super::{
    advisories::{handle_of, signer},
    names,
    publishers::{self, now_ms},
    show::catalog,
};
use crate::shell::Node;

/// Answers `Attest`.
pub async fn attest(node: &Node, request: api::AttestRequest) -> Result<api::AttestResponse, Refusal> {
    let resolved = names::resolve_anywhere(node, &names::parse(&request.repo)?).await?;
    let finding = Finding {
        r#type: request.r#type,
        tool: request.tool,
        tool_version: request.tool_version,
        verdict: request.verdict,
        measurements: request.measurements.into_iter().map(measurement).collect(),
        text: request.text,
    };
    let attested = sign(node, resolved.revision, finding, &request.signer, request.withdraw).await?;
    Ok(api::AttestResponse { attestation: Some(told(node, &attested).await?) })
}

/// What was found out about a revision.
pub(crate) struct Finding {
    pub r#type: String,
    pub tool: String,
    pub tool_version: String,
    pub verdict: String,
    pub measurements: Vec<Measurement>,
    pub text: String,
}

/// Signs what was found out and tells peers. `named` is whose key signs, or empty.
pub(crate) async fn sign(
    node: &Node,
    revision: RevisionId,
    finding: Finding,
    named: &str,
    is_withdrawn: bool,
) -> Result<Attested, Refusal> {
    let signer = signer(node, named, Some(&Subject::Revision(revision))).await?;
    let key = signer.key.public();
    let number =
        node.registry.next_attestation(key, revision, &finding.r#type, &finding.tool).await.map_err(catalog)?;
    let attestation = Attestation {
        revision,
        r#type: finding.r#type,
        tool: finding.tool,
        tool_version: finding.tool_version,
        number,
        is_withdrawn,
        verdict: finding.verdict,
        measurements: finding.measurements,
        text: finding.text,
        materials: Vec::new(),
        report: None,
        created_ms: now_ms(),
    };
    let record = attestation.sign(node.registry.realm(), &signer.key);
    let record = record.map_err(|error| {
        Refusal::new(Reason::BadInput, "the attestation", error.to_string()).try_this("cairn attest --help")
    })?;
    let id = record.id();
    publishers::state(node, signer.publisher, vec![record]).await?;
    Ok(Attested { id, signer: key, attestation, weight: Weight::Own })
}

/// What is attested of a revision, as the public API tells it.
pub(super) async fn on(node: &Node, repo: &RepoId, revision: RevisionId) -> Result<Vec<api::Attestation>, Refusal> {
    let own: Vec<_> = node.home.signing_keys()?.iter().map(|key| key.public()).collect();
    let attested = node.registry.attestations(repo.publisher, revision, &own).await.map_err(catalog)?;
    let mut shown = Vec::with_capacity(attested.len());
    for attested in &attested {
        shown.push(told(node, attested).await?);
    }
    Ok(shown)
}

async fn told(node: &Node, attested: &Attested) -> Result<api::Attestation, Refusal> {
    let attestation = &attested.attestation;
    Ok(api::Attestation {
        r#type: attestation.r#type.clone(),
        tool: attestation.tool.clone(),
        tool_version: attestation.tool_version.clone(),
        number: attestation.number,
        verdict: attestation.verdict.clone(),
        measurements: attestation.measurements.iter().map(measured).collect(),
        text: attestation.text.clone(),
        created_ms: attestation.created_ms,
        signer: attested.signer.to_string(),
        signer_handle: handle_of(node, attested.signer).await?,
        weight: attested.weight.name().to_owned(),
    })
}

fn measurement(pb: api::Measurement) -> Measurement {
    Measurement { name: pb.name, value: pb.value, unit: pb.unit, on: pb.on }
}

fn measured(measurement: &Measurement) -> api::Measurement {
    api::Measurement {
        name: measurement.name.clone(),
        value: measurement.value,
        unit: measurement.unit.clone(),
        on: measurement.on.clone(),
    }
}
