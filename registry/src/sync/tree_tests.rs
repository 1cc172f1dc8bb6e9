//! The tree against one that is made from the ids anew.

use std::{collections::BTreeMap, ops::ControlFlow};

use proptest::prelude::*;
use redb::{Database, ReadableDatabase};

use super::*;

const REALM: RealmId = RealmId::PUBLIC;

fn database() -> Database {
    let database = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
    write_in(&database, |transaction| {
        transaction.open_table(tables::LIVE).unwrap();
        transaction.open_table(tables::TREE).unwrap();
    });
    database
}

fn write_in(database: &Database, work: impl FnOnce(&WriteTransaction)) {
    let transaction = database.begin_write().unwrap();
    work(&transaction);
    transaction.commit().unwrap();
}

/// Under few beginnings, so that rows split and merge at many depths.
fn id(n: u16) -> RecordId {
    let mut bytes = *blake3::hash(&n.to_le_bytes()).as_bytes();
    bytes[..usize::from(n % 4)].fill(0xAA);
    RecordId::from(bytes)
}

fn rows(transaction: &ReadTransaction) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rows = BTreeMap::new();
    let visited = look::visit(transaction, tables::TREE, &keys::realm(REALM), None, |key, value| {
        rows.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    });
    visited.unwrap();
    rows
}

/// The rows that these ids call for.
fn expected(all: Vec<RecordId>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut rows, mut open) = (BTreeMap::new(), vec![(Prefix::ALL, all)]);
    while let Some((prefix, ids)) = open.pop() {
        if ids.is_empty() {
            continue;
        }
        if ids.len() as u64 > SPLIT {
            for child in (0..CHILDREN).filter_map(|step| prefix.child(step)) {
                open.push((child, ids.iter().copied().filter(|id| child.holds(*id)).collect()));
            }
        }
        rows.insert(row_key(REALM, prefix), Summary::of(ids).to_bytes().to_vec());
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_are_what_the_ids_say_after_any_inserts_and_removals(
        steps in proptest::collection::vec((any::<bool>(), 0..400u16), 0..900), first in 0..400u16,
    ) {
        let database = database();
        let mut live: std::collections::BTreeSet<RecordId> = (0..first).map(id).collect();
        write_in(&database, |transaction| {
            live.iter().for_each(|id| insert(transaction, REALM, RecordKind::Head, *id).unwrap());
            for (adds, n) in steps {
                let id = id(n);
                if adds {
                    live.insert(id);
                    insert(transaction, REALM, RecordKind::Head, id).unwrap();
                } else {
                    live.remove(&id);
                    remove(transaction, REALM, id).unwrap();
                }
            }
        });
        let transaction = database.begin_read().unwrap();
        prop_assert_eq!(rows(&transaction), expected(live.iter().copied().collect()));
        let stored = Stored { transaction: &transaction, realm: REALM };
        for prefix in [Prefix::ALL, Prefix::of(id(1), 1), Prefix::of(id(1), 2), Prefix::of(id(3), 6), Prefix::of(id(2), 9)] {
            prop_assert_eq!(stored.children(prefix).unwrap(), live.children(prefix).unwrap());
            prop_assert_eq!(stored.ids(prefix, 7).unwrap(), live.ids(prefix, 7).unwrap());
        }
        prop_assert_eq!(count(&transaction, REALM).unwrap(), live.len() as u64);
    }
}
