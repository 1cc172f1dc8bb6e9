//! Two sets that talk until one has learnt what it lacks; and what a liar's words do.

use std::{collections::BTreeMap, convert::Infallible};

use proptest::prelude::*;

use super::*;

impl IdSet for BTreeSet<RecordId> {
    type Error = Infallible;

    fn children(&self, prefix: Prefix) -> Result<[Summary; CHILDREN], Infallible> {
        let mut children = [Summary::default(); CHILDREN];
        self.under(prefix).for_each(|id| children[prefix.step_of(id)].add(id));
        Ok(children)
    }

    fn ids(&self, prefix: Prefix, limit: usize) -> Result<Vec<RecordId>, Infallible> {
        Ok(self.under(prefix).take(limit).collect())
    }

    fn has(&self, id: RecordId) -> Result<bool, Infallible> {
        Ok(self.contains(&id))
    }
}

trait Under {
    fn under(&self, prefix: Prefix) -> impl Iterator<Item = RecordId>;
}

impl Under for BTreeSet<RecordId> {
    fn under(&self, prefix: Prefix) -> impl Iterator<Item = RecordId> {
        self.range(RecordId::from(prefix.first_id())..).copied().take_while(move |id| prefix.holds(*id))
    }
}

#[derive(Debug, PartialEq)]
struct Failed(Garbled);

impl From<Garbled> for Failed {
    fn from(garbled: Garbled) -> Self {
        Self(garbled)
    }
}

impl From<Infallible> for Failed {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// What one talk costs.
#[derive(Debug, Default)]
struct Cost {
    questions: u32,
    sent: usize,
    heard: usize,
}

fn size(items: &[RangeItem]) -> usize {
    items.iter().map(|item| item.prefix.len() + item.fingerprints.len() + item.ids.len() + 20).sum()
}

/// What `mine` lacks of `theirs`, by talks that go on until one ends by itself.
fn talk(mine: &BTreeSet<RecordId>, theirs: &BTreeSet<RecordId>) -> (BTreeSet<RecordId>, Cost) {
    let (mut cost, mut found) = (Cost::default(), BTreeSet::new());
    let mut mine = mine.clone();
    loop {
        let mut machine = Reconciler::new(BTreeSet::new());
        while let Some(question) = machine.question(&mine).unwrap() {
            cost.sent += size(&question);
            let answer = respond::<_, Failed>(theirs, &question).unwrap();
            assert!(size(&answer.items) <= 2 * RANGE_BYTES_MAX);
            cost.heard += size(&answer.items);
            machine.answer::<_, Failed>(&mine, answer).unwrap();
        }
        cost.questions += machine.questions();
        let is_cut_short = machine.is_cut_short();
        let lacking = machine.lacking();
        assert!(!is_cut_short || !lacking.is_empty(), "a talk that was cut short found something");
        mine.extend(&lacking);
        found.extend(lacking);
        if !is_cut_short {
            return (found, cost);
        }
    }
}

/// Spread as hashes are.
fn spread(n: u64) -> RecordId {
    RecordId::from(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

#[test]
fn what_it_costs_to_agree_grows_with_the_difference() {
    let all: BTreeSet<RecordId> = (0..100_000).map(spread).collect();
    let without =
        |count: usize| -> BTreeSet<RecordId> { all.iter().copied().skip(1).step_by(100_000 / count).collect() };
    let costs: BTreeMap<usize, Cost> = [1, 10, 100]
        .into_iter()
        .map(|count| {
            let gone = without(count);
            let (lacking, cost) = talk(&all.difference(&gone).copied().collect(), &all);
            assert_eq!(lacking, gone);
            (count, cost)
        })
        .collect();
    assert!(costs[&1].sent + costs[&1].heard < 3_000, "{costs:?}");
    assert!(costs[&100].sent < 100_000 && costs[&100].heard < 100_000, "{costs:?}");
    assert!(costs[&100].questions <= 5, "{costs:?}");
    let (lacking, cost) = talk(&all, &all);
    assert!(lacking.is_empty() && cost.questions == 1 && cost.sent < 400 && cost.heard == 0, "{cost:?}");
}

#[test]
fn a_newcomer_learns_of_everything_in_bounded_pieces() {
    let all: BTreeSet<RecordId> = (0..80_000).map(spread).collect();
    let (lacking, cost) = talk(&BTreeSet::new(), &all);
    assert!(lacking == all && cost.questions < 400, "{cost:?}");
    let (lacking, _) = talk(&all, &BTreeSet::new());
    assert!(lacking.is_empty());
}

#[test]
fn ids_that_were_ground_to_one_beginning_are_found_too() {
    let ground = |n: u64| {
        let mut bytes = *spread(n).as_bytes();
        bytes[..24].fill(7);
        RecordId::from(bytes)
    };
    let all: BTreeSet<RecordId> = (0..3_000).map(ground).collect();
    let some = all.iter().copied().filter(|id| id.as_bytes()[31] % 7 != 0).collect();
    assert_eq!(talk(&some, &all).0, all.difference(&some).copied().collect());
}

#[test]
fn what_was_declined_is_not_lacking() {
    let all: BTreeSet<RecordId> = (0..50).map(spread).collect();
    let mut machine = Reconciler::new([spread(1), spread(2)].into());
    let none = BTreeSet::new();
    while let Some(question) = machine.question(&none).unwrap() {
        let answer = respond::<_, Failed>(&all, &question).unwrap();
        machine.answer::<_, Failed>(&none, answer).unwrap();
    }
    assert_eq!(machine.lacking().len(), 48);
}

#[test]
fn an_answer_about_something_else_is_refused() {
    let (mine, theirs) =
        ((0..500).map(spread).collect::<BTreeSet<_>>(), (100..600).map(spread).collect::<BTreeSet<_>>());
    let begin = || {
        let mut machine = Reconciler::new(BTreeSet::new());
        let question = machine.question(&mine).unwrap().unwrap();
        (machine, respond::<_, Failed>(&theirs, &question).unwrap())
    };
    let refused = |change: fn(&mut Answered)| {
        let (mut machine, mut answer) = begin();
        change(&mut answer);
        machine.answer::<_, Failed>(&mine, answer).is_err()
    };
    assert!(!refused(|_| ()));
    assert!(refused(|answer| answer.handled = 0));
    assert!(refused(|answer| answer.handled = 2));
    assert!(refused(|answer| (answer.items[0].prefix, answer.items[0].steps) = (vec![], 0)));
    assert!(refused(|answer| answer.items[0].kind = RangeKind::Lacking as i32));
    assert!(refused(|answer| answer.items.push(answer.items[0].clone())));
    assert!(refused(|answer| answer.items[0].kind = 9));
    assert!(refused(|answer| answer.items[0].fingerprints.truncate(15)));
    assert!(refused(|answer| answer.items[0].children = 1 << 16));
}

fn ids() -> impl Strategy<Value = BTreeSet<RecordId>> {
    // Spread ones and such as share long beginnings. Sums are told apart since ids are hashes, so the rest of these is one.
    let close = (0..4u8, 0..64u64).prop_map(|(first, n)| {
        let mut bytes = *spread(n).as_bytes();
        bytes[..12].fill(first);
        RecordId::from(bytes)
    });
    proptest::collection::btree_set(prop_oneof![(0..200u64).prop_map(spread), close], 0..150)
}

fn item() -> impl Strategy<Value = RangeItem> {
    let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
    (0..5i32, bytes(5), 0..12u32, any::<u32>(), bytes(80), bytes(100)).prop_map(
        |(kind, prefix, steps, children, fingerprints, ids)| RangeItem {
            kind,
            prefix,
            steps,
            children,
            fingerprints,
            ids,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_learn_what_they_lack(one in ids(), other in ids()) {
        prop_assert_eq!(talk(&one, &other).0, other.difference(&one).copied().collect());
        prop_assert_eq!(talk(&other, &one).0, one.difference(&other).copied().collect());
    }

    #[test]
    fn words_without_sense_are_refused_and_never_panic(
        mine in ids(), items in proptest::collection::vec(item(), 0..8), handled in 0..5usize,
    ) {
        let _ = respond::<_, Failed>(&mine, &items);
        let mut machine = Reconciler::new(BTreeSet::new());
        let _ = machine.question(&mine);
        let _ = machine.answer::<_, Failed>(&mine, Answered { items, handled });
        let _ = machine.question(&mine);
    }
}
