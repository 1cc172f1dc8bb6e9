//! The tables of the catalogue. A table's name ends in the version of its layout, which stands above it.
//!
//! Every key but those of `META` and `RING` begins with the realm's 32 bytes. Strings in keys end in a NUL, which no validated name holds, so no
//! key is a prefix of another's field by accident. Numbers in keys are big-endian, so that they sort.
//!
//! Invariant: a layout never changes under its name; a new layout is a new name and a migration.

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// `"schema"` → the schema's number, u32 little-endian; [`KNOWN_BYTES`], [`RING_BYTES`] → u64 little-endian.
pub(crate) const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta-0");

/// Key in META of the bytes of all records that were ever stored. Until schema 3.
pub(crate) const RECORD_BYTES: &str = "record-bytes";

/// Key in META of the bytes of the records that are not in [`RING`]. Since schema 3.
pub(crate) const KNOWN_BYTES: &str = "known-bytes";

/// Key in META of the bytes of the records that are in [`RING`]. Since schema 3.
pub(crate) const RING_BYTES: &str = "ring-bytes";

/// realm ‖ kind u8 ‖ record id → the envelope's exact bytes. The order of the keys is the order of a late joiner's pages:
/// profiles, revisions, heads.
pub(crate) const RECORDS: Bytes = TableDefinition::new("records-1");

/// realm ‖ publisher → epoch u64 ‖ id of the profile record in force ‖ handle as written.
pub(crate) const PROFILES: Bytes = TableDefinition::new("profiles-1");

/// realm ‖ folded handle ‖ 0 ‖ publisher → nothing: who claims the handle in the profile in force.
pub(crate) const CLAIMS: Bytes = TableDefinition::new("claims-1");

/// realm ‖ folded handle → publisher that a person's explicit act chose.
pub(crate) const HANDLE_PINS: Bytes = TableDefinition::new("handle-pins-1");

/// realm ‖ folded handle → publisher that the operator trusts for it.
pub(crate) const TRUSTED: Bytes = TableDefinition::new("trusted-1");

/// realm ‖ publisher ‖ kind u8 ‖ folded name ‖ 0 → name as first written.
pub(crate) const REPOS: Bytes = TableDefinition::new("repos-1");

/// the key of REPOS ‖ revision → revision record's id.
pub(crate) const REVISIONS: Bytes = TableDefinition::new("revisions-1");

/// realm ‖ revision ‖ publisher → the key of REPOS without the realm: where a revision belongs, by its hash alone.
pub(crate) const REVISION_REPOS: Bytes = TableDefinition::new("revision-repos-1");

/// the key of REPOS ‖ ref ‖ 0 ‖ epoch u64 ‖ number u64 ‖ head record's id → revision ‖ tag u8 ‖ previous head or 32 zeros.
pub(crate) const HEADS: Bytes = TableDefinition::new("heads-1");

/// the key of REPOS ‖ ref ‖ 0 → id of the head that this node has made its own (published it, or keeps its bytes).
pub(crate) const ADOPTED: Bytes = TableDefinition::new("adopted-1");

/// realm ‖ revision → nothing: revisions that this node keeps (pin class "record").
pub(crate) const KEPT: Bytes = TableDefinition::new("kept-1");

/// realm ‖ revision ‖ blob → size u64 little-endian: the blobs of a kept revision, its manifest included.
pub(crate) const KEPT_BLOBS: Bytes = TableDefinition::new("kept-blobs-1");

/// realm ‖ blob ‖ revision → nothing: the blobs of [`KEPT_BLOBS`] by themselves, for asking whether a blob is of this realm. Since
/// schema 2.
pub(crate) const BLOB_KEEPERS: Bytes = TableDefinition::new("blob-keepers-1");

/// realm ‖ blob → last use in ms u64 little-endian ‖ bytes held u64 little-endian (pin class "stage cache").
pub(crate) const STAGE_BLOBS: Bytes = TableDefinition::new("stage-blobs-1");

/// realm ‖ SHA-256 → blob, only of bytes that were hashed here.
pub(crate) const SHA256: Bytes = TableDefinition::new("sha256-1");

/// realm ‖ pattern as written → nothing.
pub(crate) const MIRRORS: Bytes = TableDefinition::new("mirrors-1");

/// realm ‖ publisher → nothing: publishers that a person's act made known here. Since schema 3.
pub(crate) const KNOWN: Bytes = TableDefinition::new("known-1");

/// number of arrival → publisher ‖ key of RECORDS: the records that make way when strangers' bytes are full, oldest first, of whatever
/// realm. Rows of publishers that became known later are dropped when their turn comes. Since schema 3.
pub(crate) const RING: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("ring-1");

/// realm ‖ revision → the pattern, as written, that alone keeps it: those of [`KEPT`] that no person's act keeps. Since schema 4.
pub(crate) const MIRRORED: Bytes = TableDefinition::new("mirrored-1");

/// the key of REPOS, or realm ‖ publisher → number u64 little-endian ‖ of a publisher's row, the key of REPOS that its work goes on
/// after: what changed and is not in the search index yet. Since schema 7.
pub(crate) const JOURNAL: Bytes = TableDefinition::new("journal-1");

/// Key in META of the number that the next row of [`JOURNAL`] gets; they begin at 1. Since schema 7.
pub(crate) const JOURNAL_NEXT: &str = "journal-next";

/// Beginning of the keys in META, which end in a realm, of the highest number of a row that was taken out of [`JOURNAL`]. Since schema 7.
pub(crate) const JOURNAL_DONE: &str = "journal-done-";

/// realm ‖ record id → kind u8: the records that are compared with other nodes' ([`crate::sync`]): profiles in force, and what REVISIONS and
/// HEADS name. Since schema 8.
pub(crate) const LIVE: Bytes = TableDefinition::new("live-1");

/// realm ‖ half bytes of a prefix u8 ‖ the prefix → count u64 ‖ sum of LIVE's ids under it, 32 bytes, little-endian. Since schema 8.
pub(crate) const TREE: Bytes = TableDefinition::new("tree-1");

/// realm ‖ publisher ‖ epoch u64 ‖ number u64 ‖ id of the profile's record → when it was heard, counted by publisher, u64 little-endian: what
/// [`crate::authority`] settles. Since schema 9.
pub(crate) const STATED: Bytes = TableDefinition::new("stated-1");

/// realm ‖ sort of subject u8 ‖ its id ‖ signer ‖ id of the advisory's record → nothing. Since schema 9.
pub(crate) const ADVISORIES: Bytes = TableDefinition::new("advisories-1");

/// realm ‖ signer ‖ advisory's name ‖ 0 → number u64 little-endian ‖ id of the record of that number. Since schema 9.
pub(crate) const ADVISORY_NAMES: Bytes = TableDefinition::new("advisory-names-1");

/// realm ‖ publisher → nothing: publishers whose advisories the operator heeds. Since schema 9.
pub(crate) const ADVISERS: Bytes = TableDefinition::new("advisers-1");

/// realm ‖ revision ‖ signer ‖ type ‖ 0 ‖ tool ‖ 0 → number u64 little-endian ‖ id of the record of that number. Since schema 9.
pub(crate) const ATTESTATIONS: Bytes = TableDefinition::new("attestations-1");

/// realm ‖ sort of origin u8 ‖ its id ‖ id of a revision's record → relation: what was made from a repo, a revision or a name
/// ([`crate::lineage`]). Since schema 9.
pub(crate) const DESCENDANTS: Bytes = TableDefinition::new("descendants-1");

/// Beginning of the keys in META, which end in a realm, of a day u64 ‖ bytes u64, little-endian: what mirroring brought that day.
pub(crate) const MIRRORED_BYTES: &str = "mirrored-bytes-";

/// Every table of bytes that the first schema had, for making them all at once: a read transaction refuses a table that was never made.
pub(crate) const ALL: [Bytes; 15] = [
    RECORDS,
    PROFILES,
    CLAIMS,
    HANDLE_PINS,
    TRUSTED,
    REPOS,
    REVISIONS,
    REVISION_REPOS,
    HEADS,
    ADOPTED,
    KEPT,
    KEPT_BLOBS,
    STAGE_BLOBS,
    SHA256,
    MIRRORS,
];

/// Opens a table for reading in either kind of transaction, so that a look-up is written once.
pub(crate) trait Tables {
    type Table<'a>: ReadableTable<&'static [u8], &'static [u8]>
    where
        Self: 'a;

    fn table(&self, definition: Bytes) -> Result<Self::Table<'_>, TableError>;
}

impl Tables for ReadTransaction {
    type Table<'a> = ReadOnlyTable<&'static [u8], &'static [u8]>;

    fn table(&self, definition: Bytes) -> Result<Self::Table<'_>, TableError> {
        self.open_table(definition)
    }
}

impl Tables for WriteTransaction {
    type Table<'a> = Table<'a, &'static [u8], &'static [u8]>;

    fn table(&self, definition: Bytes) -> Result<Self::Table<'_>, TableError> {
        self.open_table(definition)
    }
}
