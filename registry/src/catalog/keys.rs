//! How keys are written and read back. The layouts stand in `tables`.
//!
//! Invariant: what is written here sorts as `tables` says, and reading back a key that was not written here is an error, never a
//! panic.

use cairn_protocol::{
    id::{BlobHash, PublisherKey, RealmId, RecordId, RevisionId},
    name::{Handle, RefName, RepoId, RepoKind, RepoName},
    record::{RecordKind, Subject},
};

use super::CatalogError;

/// Bytes of an id, and of the realm that begins every key.
pub(crate) const ID: usize = 32;

/// Everything of one realm.
pub(crate) fn realm(realm: RealmId) -> Vec<u8> {
    realm.as_bytes().to_vec()
}

/// Realm ‖ one id.
pub(crate) fn one(realm: RealmId, id: &[u8; ID]) -> Vec<u8> {
    [realm.as_bytes().as_slice(), id].concat()
}

/// Realm ‖ two ids.
pub(crate) fn two(realm: RealmId, first: &[u8; ID], second: &[u8; ID]) -> Vec<u8> {
    [realm.as_bytes().as_slice(), first, second].concat()
}

pub(crate) fn record(realm: RealmId, kind: RecordKind, id: RecordId) -> Vec<u8> {
    [realm.as_bytes().as_slice(), &[kind as u8], id.as_bytes()].concat()
}

pub(crate) fn handle(realm: RealmId, handle: &Handle) -> Vec<u8> {
    [realm.as_bytes().as_slice(), handle.folded().as_bytes()].concat()
}

pub(crate) fn claims_of(realm: RealmId, handle: &Handle) -> Vec<u8> {
    [realm.as_bytes().as_slice(), handle.folded().as_bytes(), &[0]].concat()
}

pub(crate) fn claim(realm: RealmId, handle: &Handle, publisher: PublisherKey) -> Vec<u8> {
    let mut key = claims_of(realm, handle);
    key.extend_from_slice(publisher.as_bytes());
    key
}

pub(crate) fn repo(realm: RealmId, repo: &RepoId) -> Vec<u8> {
    let name = repo.name.folded();
    [realm.as_bytes().as_slice(), repo.publisher.as_bytes(), &[repo.kind as u8], name.as_bytes(), &[0]].concat()
}

pub(crate) fn revision(realm: RealmId, id: &RepoId, revision: RevisionId) -> Vec<u8> {
    let mut key = repo(realm, id);
    key.extend_from_slice(revision.as_bytes());
    key
}

pub(crate) fn reference(realm: RealmId, id: &RepoId, name: &RefName) -> Vec<u8> {
    let mut key = repo(realm, id);
    key.extend_from_slice(name.as_str().as_bytes());
    key.push(0);
    key
}

pub(crate) fn head(realm: RealmId, id: &RepoId, name: &RefName, epoch: u64, number: u64, head: RecordId) -> Vec<u8> {
    let mut key = reference(realm, id, name);
    key.extend_from_slice(&epoch.to_be_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(head.as_bytes());
    key
}

/// A row of STATED.
pub(crate) fn stated(realm: RealmId, publisher: PublisherKey, epoch: u64, number: u64, id: RecordId) -> Vec<u8> {
    let (epoch, number) = (epoch.to_be_bytes(), number.to_be_bytes());
    [realm.as_bytes().as_slice(), publisher.as_bytes(), &epoch, &number, id.as_bytes()].concat()
}

/// A row of ADVISORY_NAMES.
pub(crate) fn advisory_name(realm: RealmId, signer: PublisherKey, name: &str) -> Vec<u8> {
    [realm.as_bytes().as_slice(), signer.as_bytes(), name.as_bytes(), &[0]].concat()
}

/// Everything in ADVISORIES about a subject. A repo is named by the BLAKE3 of its key.
pub(crate) fn subject(realm: RealmId, subject: &Subject) -> Vec<u8> {
    let (sort, id) = match subject {
        Subject::Publisher(publisher) => (1, *publisher.as_bytes()),
        Subject::Repo(id) => (2, *blake3::hash(&repo(realm, id)).as_bytes()),
        Subject::Revision(revision) => (3, *revision.as_bytes()),
        Subject::Blob(blob) => (4, *blob.as_bytes()),
    };
    [realm.as_bytes().as_slice(), &[sort], &id].concat()
}

/// What one key signed about a subject.
pub(crate) fn advisories_by(realm: RealmId, about: &Subject, signer: PublisherKey) -> Vec<u8> {
    [subject(realm, about).as_slice(), signer.as_bytes()].concat()
}

/// A row of ADVISORIES.
pub(crate) fn advisory(realm: RealmId, about: &Subject, signer: PublisherKey, id: RecordId) -> Vec<u8> {
    [subject(realm, about).as_slice(), signer.as_bytes(), id.as_bytes()].concat()
}

/// A row of ATTESTATIONS.
pub(crate) fn attestation(
    realm: RealmId,
    revision: RevisionId,
    signer: PublisherKey,
    r#type: &str,
    tool: &str,
) -> Vec<u8> {
    let words = [r#type.as_bytes(), &[0], tool.as_bytes(), &[0]].concat();
    [realm.as_bytes().as_slice(), revision.as_bytes(), signer.as_bytes(), &words].concat()
}

pub(crate) fn text(realm: RealmId, text: &str) -> Vec<u8> {
    [realm.as_bytes().as_slice(), text.as_bytes()].concat()
}

/// The last id in a key.
pub(crate) fn last_id(key: &[u8]) -> Result<[u8; ID], CatalogError> {
    key.last_chunk().copied().ok_or_else(|| damaged("a key shorter than an id"))
}

/// Revision ids end REVISIONS' keys, record ids HEADS', blobs KEPT_BLOBS'.
pub(crate) fn last_blob(key: &[u8]) -> Result<BlobHash, CatalogError> {
    last_id(key).map(BlobHash::from)
}

/// Realm ‖ second ‖ first, of a key that is realm ‖ first ‖ second: KEPT_BLOBS' keys and BLOB_KEEPERS'.
pub(crate) fn swapped(key: &[u8]) -> Result<Vec<u8>, CatalogError> {
    if key.len() != 3 * ID {
        return Err(damaged("a kept blob's key"));
    }
    Ok([&key[..ID], &key[2 * ID..], &key[ID..2 * ID]].concat())
}

/// What a HEADS key says after the prefix of its repo: (ref, epoch, number, head).
pub(crate) fn parse_head<'a>(key: &'a [u8], repo_prefix: &[u8]) -> Result<(&'a str, u64, u64, RecordId), CatalogError> {
    let rest = key.get(repo_prefix.len()..).ok_or_else(|| damaged("a head's key"))?;
    let (rest, id) = rest.split_last_chunk::<ID>().ok_or_else(|| damaged("a head's id"))?;
    let (rest, number) = rest.split_last_chunk::<8>().ok_or_else(|| damaged("a head's number"))?;
    let (rest, epoch) = rest.split_last_chunk::<8>().ok_or_else(|| damaged("a head's epoch"))?;
    let name = rest.strip_suffix(&[0]).ok_or_else(|| damaged("a head's ref"))?;
    let name = std::str::from_utf8(name).map_err(|_| damaged("a head's ref"))?;
    Ok((name, u64::from_be_bytes(*epoch), u64::from_be_bytes(*number), RecordId::from(*id)))
}

/// The repo that a REPOS key and its value name.
pub(crate) fn parse_repo(key: &[u8], name: &[u8]) -> Result<RepoId, CatalogError> {
    let publisher = key.get(ID..2 * ID).ok_or_else(|| damaged("a repo's key"))?;
    let publisher = PublisherKey::try_from(publisher).map_err(|_| damaged("a repo's publisher"))?;
    let kind = key.get(2 * ID).copied().ok_or_else(|| damaged("a repo's kind"))?;
    let kind = RepoKind::from_pb(kind.into()).ok_or_else(|| damaged("a repo's kind"))?;
    let name = std::str::from_utf8(name).map_err(|_| damaged("a repo's name"))?;
    let name: RepoName = name.parse().map_err(|_| damaged("a repo's name"))?;
    Ok(RepoId { publisher, kind, name })
}

/// The first key after every key that begins with `prefix`; `None` when there is no such key.
pub(crate) fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

pub(crate) fn damaged(what: &str) -> CatalogError {
    CatalogError::Damaged(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_prefix_is_past_every_key_that_begins_with_it() {
        assert_eq!(after(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after(&[255, 255]), None);
    }

    #[test]
    fn a_head_key_that_is_too_short_is_an_error() {
        assert!(parse_head(&[0; 40], &[0; 10]).is_err());
        assert!(parse_head(&[0; 5], &[0; 10]).is_err());
    }
}
