//! The set that nodes compare: the same wherever the same was heard, in whatever order.

#![allow(clippy::unwrap_used, clippy::panic)] // A test may fail loudly.

mod house;

use std::collections::BTreeSet;

use cairn_protocol::{
    RecordId,
    limits::FETCH_IDS_MAX,
    record::{Record, Revision},
};
use cairn_registry::{
    Registry,
    sync::{SyncError, machine::Reconciler},
};
use house::{House, REALM, head, key, profile, revision, statement};

/// What `mine` lacks of `theirs`.
async fn lacking(mine: &Registry, theirs: &Registry) -> BTreeSet<RecordId> {
    let mut machine = Reconciler::new(BTreeSet::new());
    loop {
        let (asking, question) = mine.next_question(machine).await.unwrap();
        let Some(question) = question else { return asking.lacking() };
        let answer = theirs.answer_ranges(question).await.unwrap();
        machine = mine.take_answer(asking, answer).await.unwrap();
    }
}

/// Two profiles of one key, two records that say the same of one revision, heads, and enough of others to split rows.
fn heard() -> Vec<Record> {
    let owner = key(1);
    let again = Revision { license: "mit".into(), ..statement("tiny", 1) }.sign(REALM, &owner).unwrap();
    let first = head("tiny", 1, 1, None).sign(REALM, &owner).unwrap();
    let second = head("tiny", 2, 2, Some(first.id())).sign(REALM, &owner).unwrap();
    let mut heard = vec![profile(&owner, "acme", 1), profile(&owner, "acme2", 2), revision(&owner, "tiny", 1), again];
    heard.extend([revision(&owner, "tiny", 2), first, second]);
    heard.extend((2..90).map(|n| profile(&key(n), &format!("p{n}"), 0)));
    heard
}

#[tokio::test]
async fn the_same_records_make_the_same_set_in_any_order() {
    let (a, b) = (House::new().await, House::new().await);
    let mut records = heard();
    a.registry.insert_page(records.clone()).await.unwrap();
    records.reverse();
    b.registry.insert_page(records).await.unwrap();
    // One profile and one of the two that say the same don't count.
    let live = [a.registry.live_records().await.unwrap(), b.registry.live_records().await.unwrap()];
    assert_eq!(live, [heard().len() as u64 - 2; 2]);
    assert!(lacking(&a.registry, &b.registry).await.is_empty() && lacking(&b.registry, &a.registry).await.is_empty());
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn what_one_lacks_is_found_fetched_and_then_nothing_is_lacking() {
    let (a, b) = (House::new().await, House::new().await);
    let records = heard();
    a.registry.insert_page(records.clone()).await.unwrap();
    b.registry.insert_page(records.iter().skip(1).step_by(2).cloned().collect()).await.unwrap();
    let missing = lacking(&b.registry, &a.registry).await;
    assert!((40..50).contains(&missing.len()), "{}", missing.len());
    let fetched = a.registry.live(missing.iter().copied().collect()).await.unwrap();
    assert_eq!(fetched.iter().map(Record::id).collect::<BTreeSet<_>>(), missing);
    b.registry.insert_page(fetched).await.unwrap();
    assert!(lacking(&b.registry, &a.registry).await.is_empty());
    let b = b.reopen().await;
    assert!(lacking(&b.registry, &a.registry).await.is_empty(), "and it is kept");
    a.registry.close().await;
    b.registry.close().await;
}

#[tokio::test]
async fn more_than_fits_a_page_is_cut_and_what_is_not_live_is_not_handed_out() {
    let a = House::new().await;
    let records = heard();
    a.registry.insert_page(records.clone()).await.unwrap();
    let older = records[0].id();
    assert!(!a.registry.is_live(older).await.unwrap() && a.registry.is_live(records[1].id()).await.unwrap());
    let asked = vec![older, records[1].id(), RecordId::from([9; 32])];
    let live = a.registry.live(asked).await.unwrap();
    assert_eq!(live.iter().map(Record::id).collect::<Vec<_>>(), [records[1].id()]);
    let many = vec![records[1].id(); FETCH_IDS_MAX + 7];
    assert!(a.registry.live(many).await.unwrap().len() <= FETCH_IDS_MAX);
    a.registry.close().await;
}

#[tokio::test]
async fn a_question_without_sense_is_refused() {
    let a = House::new().await;
    assert!(matches!(a.registry.answer_ranges(Vec::new()).await, Err(SyncError::Garbled(_))));
    a.registry.close().await;
}
