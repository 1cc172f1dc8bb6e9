//! What a mirror decides, case by case. Not how it is carried out.

use cairn_protocol::id::PublisherKey;
use proptest::prelude::*;

use super::*;
use crate::mirror::policy::Rules;

const PATIENCE: Patience = Patience { deficit_ms: 1_000, surplus_ms: 10_000 };

fn node(n: u8) -> NodeId {
    NodeId::from([n; 32])
}

fn candidate(path: &str, n: u8, here: Here) -> Candidate {
    let path: RepoPath = path.parse().unwrap();
    let repo = RepoId { publisher: PublisherKey::from([1; 32]), kind: path.kind, name: path.name.clone() };
    let revision = RevisionId::from([n; 32]);
    Candidate {
        repo,
        path,
        revision,
        license: "mit".into(),
        task: "text-generation".into(),
        tags: vec!["en".into()],
        bytes: 100,
        here,
    }
}

fn moment(now_ms: u64, minute: u16) -> Moment {
    Moment { now_ms, minute, patience: PATIENCE, budget: None }
}

fn policy(pattern: &str, rules: Rules) -> Policy {
    Policy { pattern: pattern.parse().unwrap(), rules }
}

fn copies(n: u32) -> Rules {
    Rules { copies: std::num::NonZeroU32::new(n), ..Rules::default() }
}

/// One node's view: nodes 1 to `mirrors` mirror, this one is `me`.
fn decide_as(
    decider: &mut Decider,
    now_ms: u64,
    me: u8,
    mirrors: u8,
    policies: &[Policy],
    candidates: &[Candidate],
    held: &[(u8, &[u8])],
) -> Vec<(Action, Why)> {
    let others: Vec<NodeId> = (1..=mirrors).filter(|n| *n != me).map(node).collect();
    let holders = held.iter().map(|(revision, nodes)| {
        let nodes = nodes.iter().filter(|n| **n != me).map(|n| Holder { node: node(*n), may_go: true }).collect();
        (RevisionId::from([*revision; 32]), nodes)
    });
    let holders: BTreeMap<_, _> = holders.collect();
    let mesh = Mesh { me: node(me), mirrors: &others, holders: &holders };
    let decisions = decider.decide(moment(now_ms, 0), policies, candidates, mesh);
    decisions.into_iter().map(|decision| (decision.action, decision.why)).collect()
}

fn decide(rules: Rules, candidates: &[Candidate], held: &[(u8, &[u8])]) -> Vec<(Action, Why)> {
    decide_as(&mut Decider::default(), 0, 1, 1, &[policy("acme/*", rules)], candidates, held)
}

#[test]
fn without_a_number_of_copies_this_node_keeps_one_whatever_others_do() {
    let candidates = [candidate("acme/a", 1, Here::Lacking), candidate("acme/b", 2, Here::Mirrored)];
    let decided = decide(Rules::default(), &candidates, &[(1, &[2, 3]), (2, &[2, 3])]);
    assert_eq!(decided, [(Action::Keep, Why::CopyHere), (Action::Fetch, Why::CopyHere)]);
}

#[test]
fn what_no_policy_names_is_not_decided_about() {
    let candidates = [candidate("zoo/a", 1, Here::Lacking)];
    assert_eq!(decide(Rules::default(), &candidates, &[]), []);
    let candidates = [candidate("acme/a", 1, Here::Lacking)];
    let named = |rules: Rules| decide(rules, &candidates, &[]).len();
    assert_eq!(named(Rules { licenses: vec!["MIT".into()], ..Rules::default() }), 1);
    assert_eq!(named(Rules { licenses: vec!["gpl".into()], ..Rules::default() }), 0);
    assert_eq!(named(Rules { tags: vec!["fr".into(), "en".into()], ..Rules::default() }), 1);
    assert_eq!(named(Rules { tags: vec!["fr".into()], ..Rules::default() }), 0);
    assert_eq!(named(Rules { tasks: vec!["Text-Generation".into()], ..Rules::default() }), 1);
    assert_eq!(named(Rules { tasks: vec!["translation".into()], ..Rules::default() }), 0);
    assert_eq!(named(Rules { kinds: vec![cairn_protocol::name::RepoKind::Dataset], ..Rules::default() }), 0);
}

#[test]
fn what_is_too_large_is_not_fetched_and_says_so() {
    let rules = Rules { bytes_max: Some(99), ..Rules::default() };
    let decided = decide(rules, &[candidate("acme/a", 1, Here::Lacking)], &[]);
    assert_eq!(decided, [(Action::Wait, Why::TooLarge { bytes: 100, bytes_max: 99 })]);
}

#[test]
fn a_quota_goes_to_what_is_here_first_and_then_in_order() {
    let rules = Rules { quota_bytes: Some(250), ..Rules::default() };
    let candidates = [
        candidate("acme/a", 1, Here::Lacking),
        candidate("acme/b", 2, Here::Lacking),
        candidate("acme/c", 3, Here::Mirrored),
    ];
    let decided = decide(rules, &candidates, &[]);
    let over = Why::Quota { quota_bytes: 250 };
    assert_eq!(decided, [(Action::Keep, Why::CopyHere), (Action::Fetch, Why::CopyHere), (Action::Wait, over)]);
}

#[test]
fn what_a_quota_pushes_out_stays_while_it_is_the_last_copy() {
    let rules = Rules { quota_bytes: Some(99), ..Rules::default() };
    let candidates = [candidate("acme/a", 1, Here::Mirrored)];
    assert_eq!(decide(rules.clone(), &candidates, &[]), [(Action::Keep, Why::LastCopy)]);
    let quota = Why::Quota { quota_bytes: 99 };
    let last = (1..=9).max_by_key(|n| rank(RevisionId::from([1; 32]), node(*n))).unwrap();
    let first = (1..=9).min_by_key(|n| rank(RevisionId::from([1; 32]), node(*n))).unwrap();
    let judge = |me: u8, other: u8| {
        let policies = [policy("acme/*", rules.clone())];
        decide_as(&mut Decider::default(), 0, me, 9, &policies, &candidates, &[(1, &[other])])
    };
    assert_eq!(judge(last, first), [(Action::LetGo, quota.clone())]);
    assert_eq!(judge(first, last), [(Action::Keep, quota)], "of two, the last in the order goes");
}

#[test]
fn what_a_person_wanted_is_never_let_go() {
    let rules = Rules { quota_bytes: Some(1), bytes_max: Some(1), ..copies(1) };
    let decided = decide(rules, &[candidate("acme/a", 1, Here::Wanted)], &[(1, &[2, 3])]);
    assert_eq!(decided, [(Action::Keep, Why::Person)]);
}

#[test]
fn those_first_in_the_order_fetch_and_the_others_stand_by() {
    let candidates = [candidate("acme/a", 1, Here::Lacking)];
    let policies = [policy("acme/*", copies(2))];
    let actions = |now_ms: u64, deciders: &mut [Decider]| -> usize {
        let fetches = (1..=5).filter(|me| {
            let decider = &mut deciders[*me as usize - 1];
            decide_as(decider, now_ms, *me, 5, &policies, &candidates, &[])[0].0 == Action::Fetch
        });
        fetches.count()
    };
    let mut deciders: Vec<Decider> = (0..5).map(|_| Decider::default()).collect();
    assert_eq!(actions(0, &mut deciders), 2);
    assert_eq!(actions(PATIENCE.deficit_ms, &mut deciders), 3, "a deficit that lasts calls the next");
    assert_eq!(actions(PATIENCE.deficit_ms * 3, &mut deciders), 5);
}

#[test]
fn a_surplus_goes_after_a_while_and_one_copy_at_a_time() {
    let candidates = [candidate("acme/a", 1, Here::Mirrored)];
    let policies = [policy("acme/*", copies(2))];
    let holders: &[(u8, &[u8])] = &[(1, &[1, 2, 3, 4])];
    let mut deciders: Vec<Decider> = (0..4).map(|_| Decider::default()).collect();
    let mut gone = |now_ms: u64| -> Vec<u8> {
        let lets_go = (1..=4).filter(|me| {
            let decider = &mut deciders[*me as usize - 1];
            decide_as(decider, now_ms, *me, 4, &policies, &candidates, holders)[0].0 == Action::LetGo
        });
        lets_go.collect()
    };
    assert!(gone(0).is_empty());
    assert!(gone(PATIENCE.surplus_ms - 1).is_empty());
    assert_eq!(gone(PATIENCE.surplus_ms).len(), 1);
}

#[test]
fn fetches_begin_within_their_hours() {
    let hours: Hours = "22:00-06:00".parse().unwrap();
    let policies = [policy("acme/*", Rules { hours: Some(hours), ..Rules::default() })];
    let candidates = [candidate("acme/a", 1, Here::Lacking), candidate("acme/b", 2, Here::Mirrored)];
    let holders = BTreeMap::new();
    let mesh = Mesh { me: node(1), mirrors: &[], holders: &holders };
    let at = |minute: u16| -> Vec<Action> {
        let decided = Decider::default().decide(moment(0, minute), &policies, &candidates, mesh);
        decided.into_iter().map(|decision| decision.action).collect()
    };
    assert_eq!(at(12 * 60), [Action::Keep, Action::Wait]);
    assert_eq!(at(23 * 60), [Action::Keep, Action::Fetch]);
}

#[test]
fn no_more_is_fetched_than_a_day_may_bring() {
    let policies = [policy("acme/*", Rules::default())];
    let candidates: Vec<_> = (1..=4).map(|n| candidate(&format!("acme/r{n}"), n, Here::Lacking)).collect();
    let holders = BTreeMap::new();
    let mesh = Mesh { me: node(1), mirrors: &[], holders: &holders };
    let fetched = |bytes_per_day: u64, spent: u64, begun: &[u8]| -> Vec<bool> {
        let begun = begun.iter().map(|n| RevisionId::from([*n; 32])).collect();
        let moment = Moment { budget: Some(Budget { bytes_per_day, spent, begun }), ..moment(0, 0) };
        let decided = Decider::default().decide(moment, &policies, &candidates, mesh);
        for decision in decided.iter().filter(|decision| decision.action != Action::Fetch) {
            assert!(matches!(decision.why, Why::Budget { .. }), "{decision:?}");
        }
        decided.iter().map(|decision| decision.action == Action::Fetch).collect()
    };
    assert_eq!(fetched(250, 0, &[]), [true, true, false, false]);
    assert_eq!(fetched(250, 200, &[]), [false; 4]);
    assert_eq!(fetched(250, 200, &[1, 2]), [true, true, false, false], "what is under way is spent already");
    assert_eq!(
        fetched(50, 0, &[]),
        [true, false, false, false],
        "what is more than a day's comes as the first of a day"
    );
}

#[test]
fn of_several_policies_the_one_of_the_highest_priority_governs() {
    let low = policy("*", Rules { bytes_max: Some(1), ..Rules::default() });
    let high = policy("acme/*", Rules { priority: 1, ..copies(1) });
    let candidates = [candidate("acme/a", 1, Here::Lacking)];
    let decided = decide_as(&mut Decider::default(), 0, 1, 1, &[low.clone(), high], &candidates, &[]);
    assert_eq!(decided, [(Action::Fetch, Why::Deficit { known: 0, copies: 1 })]);
    let equal = policy("acme/*", Rules::default());
    let fewer = policy("acme/a", copies(1));
    let decided = decide_as(&mut Decider::default(), 0, 1, 1, &[fewer, equal], &candidates, &[(1, &[7])]);
    assert_eq!(decided, [(Action::Fetch, Why::CopyHere)], "of equals the one that wants more copies");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nodes that all decide at once, see each other rightly and act at once come to the wanted copies, keep to their quotas where
    /// copies suffice, and never lose the last copy. Some (`firm`) keep a copy whatever others do.
    #[test]
    fn mirrors_converge_on_the_wanted_copies(
        mirrors in 1..7u8,
        wanted in 1..5u32,
        held in proptest::collection::vec(proptest::collection::btree_set(0..7u8, 0..7), 1..12),
        quotas in proptest::collection::vec(proptest::option::of(0..12u64), 7),
        firm in proptest::collection::btree_set(1..7u8, 0..3),
    ) {
        // Node 0 publishes: it holds everything and never lets go.
        let mut held: Vec<BTreeSet<u8>> = held;
        for nodes in &mut held {
            nodes.retain(|n| *n <= mirrors);
            nodes.insert(0);
        }
        let mut deciders: Vec<Decider> = (0..=mirrors).map(|_| Decider::default()).collect();
        for round in 0..60u64 {
            let now_ms = round * PATIENCE.surplus_ms;
            let before = held.clone();
            for me in 1..=mirrors {
                let quota_bytes = quotas[me as usize - 1].map(|revisions| revisions * 100);
                let rules = if firm.contains(&me) { Rules::default() } else { Rules { quota_bytes, ..copies(wanted) } };
                let policies = [policy("acme/*", rules)];
                let candidates: Vec<Candidate> = (0..before.len())
                    .map(|n| {
                        let here = if before[n].contains(&me) { Here::Mirrored } else { Here::Lacking };
                        candidate(&format!("acme/r{n}"), n as u8, here)
                    })
                    .collect();
                let holders: BTreeMap<RevisionId, Vec<Holder>> = before
                    .iter()
                    .enumerate()
                    .map(|(n, nodes)| {
                        let others = nodes.iter().filter(|n| **n != me);
                        let others = others.map(|n| Holder { node: node(*n), may_go: *n != 0 && !firm.contains(n) });
                        (RevisionId::from([n as u8; 32]), others.collect())
                    })
                    .collect();
                let others: Vec<NodeId> = (1..=mirrors).filter(|n| *n != me).map(node).collect();
                let mesh = Mesh { me: node(me), mirrors: &others, holders: &holders };
                for decision in deciders[me as usize].decide(moment(now_ms, 0), &policies, &candidates, mesh) {
                    let nodes = &mut held[decision.revision.as_bytes()[0] as usize];
                    match decision.action {
                        Action::Fetch => { nodes.insert(me); }
                        Action::LetGo => { nodes.remove(&me); }
                        Action::Keep | Action::Wait => {}
                    }
                }
            }
        }
        let firm = firm.iter().filter(|n| **n <= mirrors).count();
        let has_quota = quotas[..mirrors as usize].iter().any(Option::is_some);
        for nodes in &held {
            prop_assert!(nodes.contains(&0));
            let expected = (wanted as usize).min(mirrors as usize + 1).max(firm + 1);
            if has_quota {
                prop_assert!(nodes.len() <= expected.max(1), "{nodes:?}");
            } else {
                prop_assert_eq!(nodes.len(), expected, "{:?}", nodes);
            }
        }
    }
}
