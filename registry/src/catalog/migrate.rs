//! Brings a catalogue of any earlier schema to the present one, one numbered step after the other.
//!
//! It is not a place for defaults or repairs: a step moves stored values from one layout to the next and nothing else.
//!
//! Invariant: every step is idempotent and commits together with its number, so a crash between two steps resumes at the
//! right one; a catalogue of a later schema is refused untouched.

use cairn_protocol::record::Record;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableError, WriteTransaction};

use super::{CatalogError, keys, tables};
use crate::{lineage, ring, sync::tree};

/// The schema that this code reads and writes: the number of steps in the chain.
pub(crate) const SCHEMA: u32 = STEPS.len() as u32;

type Step = fn(&WriteTransaction) -> Result<(), CatalogError>;

/// Step n takes schema n to n + 1.
const STEPS: [Step; 9] = [
    make_first_tables,
    list_kept_blobs_by_blob,
    part_strangers_from_the_known,
    tell_mirrored_from_wanted,
    move_nothing,
    move_nothing,
    keep_a_journal,
    sum_up_the_live,
    note_statements,
];

/// Why a catalogue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It was written by a later version of the program.
    #[error("the catalogue has schema {found}, this program reads up to {known}")]
    Newer {
        /// Schema in the file.
        found: u32,
        /// Schema of this program.
        known: u32,
    },
    /// The database failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Runs the steps that are missing.
pub(crate) fn migrate(database: &Database) -> Result<(), MigrateError> {
    let found = schema_of(database)?;
    if found > SCHEMA {
        return Err(MigrateError::Newer { found, known: SCHEMA });
    }
    for (number, step) in (1..).zip(STEPS).skip(found as usize) {
        run_step(database, number, step)?;
    }
    Ok(())
}

fn schema_of(database: &Database) -> Result<u32, CatalogError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(tables::META) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let Some(value) = table.get("schema")? else { return Ok(0) };
    let bytes = value.value().try_into().map_err(|_| CatalogError::Damaged("schema number".to_owned()))?;
    Ok(u32::from_le_bytes(bytes))
}

fn run_step(database: &Database, number: u32, step: Step) -> Result<(), CatalogError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    step(&transaction)?;
    transaction.open_table(tables::META)?.insert("schema", number.to_le_bytes().as_slice())?;
    transaction.commit()?;
    Ok(())
}

fn make_first_tables(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    for table in tables::ALL {
        transaction.open_table(table)?;
    }
    Ok(())
}

/// Schema 2: BLOB_KEEPERS says of KEPT_BLOBS' pairs the second first.
fn list_kept_blobs_by_blob(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    let kept = transaction.open_table(tables::KEPT_BLOBS)?;
    let mut keepers = transaction.open_table(tables::BLOB_KEEPERS)?;
    for entry in kept.iter()? {
        let key = entry?.0;
        keepers.insert(keys::swapped(key.value())?.as_slice(), [].as_slice())?;
    }
    Ok(())
}

/// Schema 3: KNOWN lists the publishers that matter here; the records of all others enter RING in the order of RECORDS' keys, for the
/// order of their arrival was not kept.
fn part_strangers_from_the_known(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    transaction.delete_table(tables::RING)?;
    transaction.open_table(tables::RING)?;
    note_the_known(transaction)?;
    let known = transaction.open_table(tables::KNOWN)?;
    let mut ring = transaction.open_table(tables::RING)?;
    let (mut known_bytes, mut ring_bytes, mut arrival) = (0, 0, 0);
    for entry in transaction.open_table(tables::RECORDS)?.iter()? {
        let (key, envelope) = entry?;
        let size = envelope.value().len() as u64;
        // What does not read back is nobody's; it stays where it is.
        let stranger = match Record::verify(envelope.value()) {
            Ok(record) if known.get(keys::one(record.realm(), record.key().as_bytes()).as_slice())?.is_none() => record,
            _ => {
                known_bytes += size;
                continue;
            }
        };
        ring.insert(arrival, ring::row(stranger.key(), key.value()).as_slice())?;
        (ring_bytes, arrival) = (ring_bytes + size, arrival + 1);
    }
    let mut meta = transaction.open_table(tables::META)?;
    meta.insert(tables::KNOWN_BYTES, known_bytes.to_le_bytes().as_slice())?;
    meta.insert(tables::RING_BYTES, ring_bytes.to_le_bytes().as_slice())?;
    meta.remove(tables::RECORD_BYTES)?;
    Ok(())
}

/// Schema 4: MIRRORED. Who wanted what was kept before is not known, so all of it counts as a person's.
fn tell_mirrored_from_wanted(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    transaction.open_table(tables::MIRRORED)?;
    Ok(())
}

/// Schemas 5 and 6 changed nothing.
fn move_nothing(_: &WriteTransaction) -> Result<(), CatalogError> {
    Ok(())
}

/// Schema 7: JOURNAL. An index that is made anew goes through the whole catalogue, so nothing of before is noted.
fn keep_a_journal(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    transaction.open_table(tables::JOURNAL)?;
    Ok(())
}

/// Schema 8: LIVE and TREE.
fn sum_up_the_live(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    tree::rebuild(transaction)
}

/// Schema 9: STATED has what PROFILES' records say of keys, DESCENDANTS what revisions' records say of where they come from; there are no
/// advisories and attestations yet.
fn note_statements(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    let empty = [tables::STATED, tables::ADVISORIES, tables::ADVISORY_NAMES, tables::ADVISERS, tables::ATTESTATIONS];
    for table in empty.into_iter().chain([tables::DESCENDANTS]) {
        transaction.open_table(table)?;
    }
    let mut stated = transaction.open_table(tables::STATED)?;
    for entry in transaction.open_table(tables::PROFILES)?.iter()? {
        let (key, value) = entry?;
        let row = value.value().get(..8 + keys::ID).ok_or_else(|| keys::damaged("a profile"))?;
        let epoch = row.first_chunk().map_or(0, |epoch| u64::from_le_bytes(*epoch)).to_be_bytes();
        let key = [key.value(), &epoch, &[0; 8], &row[8..]].concat();
        stated.insert(key.as_slice(), [0; 8].as_slice())?;
    }
    lineage::rebuild(transaction)
}

/// Publishers that a handle means, and those of whose revisions one is kept.
fn note_the_known(transaction: &WriteTransaction) -> Result<(), CatalogError> {
    let mut known = transaction.open_table(tables::KNOWN)?;
    for decided in [tables::TRUSTED, tables::HANDLE_PINS] {
        for entry in transaction.open_table(decided)?.iter()? {
            let (key, publisher) = entry?;
            let realm = key.value().get(..keys::ID).ok_or_else(|| keys::damaged("a handle's key"))?;
            known.insert([realm, publisher.value()].concat().as_slice(), [].as_slice())?;
        }
    }
    let kept = transaction.open_table(tables::KEPT)?;
    for entry in transaction.open_table(tables::REVISION_REPOS)?.iter()? {
        let key = entry?.0;
        let (place, publisher) = key.value().split_at_checked(2 * keys::ID).ok_or_else(|| keys::damaged("a place"))?;
        if kept.get(place)?.is_some() {
            known.insert([&place[..keys::ID], publisher].concat().as_slice(), [].as_slice())?;
        }
    }
    Ok(())
}
