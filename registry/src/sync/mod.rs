//! How two catalogues come to agree at a cost that grows with what they differ in: range-based set reconciliation.
//!
//! The set is the ids of the live records of a realm, a function of the records that were heard and of nothing else. It is compared by
//! [`prefix`]: equal fingerprints end a branch, different ones are looked into, few ids are told. [`tree`] keeps counts and sums, so that no
//! comparison walks the set; [`machine`] is the talk, pure. Fetching the records is the node's. See decision 0031.
//!
//! Invariant: what one question costs is bounded, whatever the set and the question hold.

pub mod machine;
pub mod measure;
pub mod prefix;
pub(crate) mod tree;

use std::collections::BTreeSet;

use cairn_protocol::{
    id::{RealmId, RecordId},
    limits::{FETCH_IDS_MAX, HEADS_PAGE_BYTES_MAX},
    peer_pb::RangeItem,
    record::{Record, RecordKind},
};

use crate::{
    Registry,
    catalog::{CatalogError, keys, tables},
    look,
};
use machine::{Answered, Garbled, IdSet, Reconciler, respond};
use tree::Stored;

/// How a comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The other side's words make no sense.
    #[error(transparent)]
    Garbled(#[from] Garbled),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Registry {
    /// Live records of this realm.
    pub async fn live_records(&self) -> Result<u64, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| tree::count(transaction, realm)).await
    }

    /// Whether a record is among the live ones.
    pub async fn is_live(&self, id: RecordId) -> Result<bool, CatalogError> {
        let realm = self.realm();
        self.catalog().read(move |transaction| Stored { transaction, realm }.has(id)).await
    }

    /// What to ask a peer next, and the machine to go on with. `None` when there is nothing more to ask.
    pub async fn next_question(
        &self,
        mut machine: Reconciler,
    ) -> Result<(Reconciler, Option<Vec<RangeItem>>), CatalogError> {
        let realm = self.realm();
        let asked = self.catalog().survey::<_, CatalogError, _>(move |transaction| {
            let question = machine.question(&Stored { transaction, realm })?;
            Ok((machine, question))
        });
        asked.await
    }

    /// Takes in a peer's answer.
    pub async fn take_answer(&self, mut machine: Reconciler, answer: Answered) -> Result<Reconciler, SyncError> {
        let realm = self.realm();
        let taken = self.catalog().survey::<_, SyncError, _>(move |transaction| {
            machine.answer::<_, SyncError>(&Stored { transaction, realm }, answer)?;
            Ok(machine)
        });
        taken.await
    }

    /// Answers a peer's question about this realm's set.
    pub async fn answer_ranges(&self, items: Vec<RangeItem>) -> Result<Answered, SyncError> {
        let realm = self.realm();
        let answered = self
            .catalog()
            .survey::<_, SyncError, _>(move |transaction| respond(&Stored { transaction, realm }, &items));
        answered.await
    }

    /// The live records of these ids that are here, in pages: at most [`FETCH_IDS_MAX`] and 512 KiB; the rest is to be asked for again. One
    /// that does not read back is left out.
    pub async fn live(&self, ids: Vec<RecordId>) -> Result<Vec<Record>, CatalogError> {
        let realm = self.realm();
        let ids: BTreeSet<RecordId> = ids.into_iter().take(FETCH_IDS_MAX).collect();
        let envelopes = self.catalog().read::<_, CatalogError, _>(move |transaction| {
            let (mut envelopes, mut bytes) = (Vec::new(), 0);
            for id in ids {
                let Some(envelope) = live_envelope(transaction, realm, id)? else { continue };
                bytes += envelope.len();
                if bytes > HEADS_PAGE_BYTES_MAX && !envelopes.is_empty() {
                    break;
                }
                envelopes.push(envelope);
            }
            Ok(envelopes)
        });
        let envelopes: Vec<Vec<u8>> = envelopes.await?;
        // Hundreds of signatures: neither on the catalogue's thread nor on an async worker.
        let verified =
            tokio::task::spawn_blocking(move || envelopes.iter().filter_map(|bytes| verified(bytes)).collect());
        verified.await.map_err(|_| CatalogError::Closed)
    }
}

fn live_envelope(
    transaction: &redb::ReadTransaction,
    realm: RealmId,
    id: RecordId,
) -> Result<Option<Vec<u8>>, CatalogError> {
    let Some(kind) = look::value_of(transaction, tables::LIVE, &keys::one(realm, id.as_bytes()))? else {
        return Ok(None);
    };
    let kind = kind.first().and_then(|kind| RecordKind::from_number((*kind).into()));
    let kind = kind.ok_or_else(|| keys::damaged("a live record's kind"))?;
    look::value_of(transaction, tables::RECORDS, &keys::record(realm, kind, id))
}

fn verified(envelope: &[u8]) -> Option<Record> {
    let record = Record::verify(envelope);
    record.inspect_err(|error| tracing::warn!(%error, "a record that a peer asks for does not read back")).ok()
}
