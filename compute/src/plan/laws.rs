//! What holds of every plan, on random models and meshes; and the choices that people notice, one by one.

use super::*;
use proptest::prelude::*;

fn node(n: u8) -> NodeId {
    NodeId::from([n; 32])
}

fn peer(n: u8) -> Candidate {
    Candidate {
        node: node(n),
        reachable: true,
        granted: true,
        standing: if n == 0 { Standing::Own } else { Standing::Listed },
        memory_free_bytes: 1 << 30,
        bandwidth_bytes_per_s: 20_000_000_000,
        macs_per_s: 100_000_000_000,
        rtt_us: Some(if n == 0 { 0 } else { 200 }),
        level: "avx2".into(),
        sessions: 0,
        sessions_max: 4,
        holds: false,
    }
}

/// Thirty layers of 3 MB, as a small model has them.
fn input(candidates: Vec<Candidate>, bound: Bound) -> PlanInput {
    PlanInput {
        cost: ModelCost {
            layers: vec![3_000_000; 30],
            read: vec![3_000_000; 30],
            embedding: 30_000_000,
            head: 30_000_000,
            tied: true,
            kv_bytes_per_token: 1536,
            layer_macs: 3_500_000,
            memory_percent: 100,
            angle_bytes_per_token: 0,
            buffer_bytes: 0,
        },
        context: 2048,
        prompt_tokens: 128,
        answer_tokens: 256,
        placed: Vec::new(),
        in_use: Vec::new(),
        coordinator: node(0),
        level: "avx2".into(),
        bound,
        privacy: Privacy::Trusted,
        candidates,
        excluded: BTreeSet::new(),
        may_wait: false,
    }
}

fn nodes_of(plan: &Plan) -> Vec<NodeId> {
    plan.stages.iter().map(|s| s.node).collect()
}

#[test]
fn a_model_that_fits_stays_on_the_coordinator_when_nobody_is_faster() {
    let plan = plan(&input((0..4).map(peer).collect(), Bound::Free)).unwrap();
    assert_eq!(nodes_of(&plan), [node(0)]);
    assert!(plan.rejected.iter().all(|r| r.reason == RejectReason::NotNeeded) && plan.rejected.len() == 3);
    assert!(!plan.deaths[0].survivable);
}

#[test]
fn a_much_faster_peer_gets_it_all() {
    let fast = Candidate { bandwidth_bytes_per_s: 200_000_000_000, ..peer(2) };
    assert_eq!(nodes_of(&plan(&input(vec![peer(0), peer(1), fast], Bound::Free)).unwrap()), [node(2)]);
}

#[test]
fn a_peer_that_is_a_little_faster_is_not_worth_the_fetch_for_a_short_answer() {
    let held = Candidate { holds: true, ..peer(0) };
    let fast = Candidate { bandwidth_bytes_per_s: 40_000_000_000, ..peer(1) };
    let place = |answer_tokens| {
        let input = PlanInput { answer_tokens, ..input(vec![held.clone(), fast.clone()], Bound::Free) };
        nodes_of(&plan(&input).unwrap())
    };
    assert_eq!(place(64), [node(0)]);
    assert_eq!(place(100_000), [node(1)]);
}

#[test]
fn what_is_placed_stays_while_that_is_no_slower() {
    let all = |sessions| vec![peer(0), Candidate { sessions, ..peer(1) }, peer(2)];
    let first = plan(&input(all(0), Bound::Exactly(3))).unwrap();
    let placed: Vec<_> = first.stages.iter().map(|s| (s.node, s.layers)).collect();
    let again = |sessions, answer_tokens| {
        let input =
            PlanInput { answer_tokens, placed: vec![placed.clone()], ..input(all(sessions), Bound::Exactly(3)) };
        plan(&input).unwrap()
    };
    assert_eq!(again(1, 64).stages.iter().map(|s| (s.node, s.layers)).collect::<Vec<_>>(), placed);
    assert_eq!(again(1, 64).predicted.ready_ms, 0.0);
    assert!(first.predicted.ready_ms > 1000.0, "{:?}", first.predicted);
    let moved = again(3, 1_000_000);
    assert_ne!(moved.stages.iter().map(|s| (s.node, s.layers)).collect::<Vec<_>>(), placed, "a busy node loses layers");
}

#[test]
fn a_former_placement_that_cannot_be_is_not_made() {
    let whole = LayerRange { start: 0, end: 30 };
    let half = LayerRange { start: 0, end: 15 };
    let tail = LayerRange { start: 15, end: 30 };
    for placed in [vec![(node(9), whole)], vec![(node(1), half)], vec![(node(1), half), (node(1), tail)]] {
        let made = plan(&PlanInput { placed: vec![placed], ..input(vec![peer(0), peer(1)], Bound::Free) }).unwrap();
        assert_eq!(made.stages.iter().map(|s| s.layers).collect::<Vec<_>>(), [whole]);
        assert!(nodes_of(&made)[0] < node(2));
    }
    let small = Candidate { memory_free_bytes: 50_000_000, ..peer(1) };
    let made =
        plan(&PlanInput { placed: vec![vec![(node(1), whole)]], ..input(vec![peer(0), small], Bound::Free) }).unwrap();
    assert_eq!(nodes_of(&made), [node(0)]);
}

#[test]
fn weights_that_are_in_use_take_no_memory_twice() {
    let whole = LayerRange { start: 0, end: 30 };
    let full = |n| Candidate { memory_free_bytes: 1000, ..peer(n) };
    let ask = |in_use: Vec<Placement>| plan(&PlanInput { in_use, ..input(vec![full(0), full(1)], Bound::Free) });
    assert!(ask(Vec::new()).is_err());
    assert_eq!(nodes_of(&ask(vec![vec![(node(1), whole)]]).unwrap()), [node(1)]);
    let half = LayerRange { start: 0, end: 15 };
    assert!(ask(vec![vec![(node(1), half)]]).is_err(), "not all of it is there");
}

#[test]
fn a_bound_of_three_cuts_evenly_and_puts_the_embedding_first_and_the_head_last() {
    let plan = plan(&input((0..3).map(peer).collect(), Bound::Exactly(3))).unwrap();
    assert_eq!(plan.stages.len(), 3);
    assert!(plan.stages[0].embedding && plan.stages[2].head && !plan.stages[1].embedding && !plan.stages[1].head);
    let slowest = plan.stages.iter().map(|s| s.ms).fold(0.0, f64::max);
    // 30 layers of 3 MB and a head of 30 MB: 40 MB a stage is perfect, a layer's grain is what may be lost.
    assert!(slowest <= 43.0 / 20.0 + 1e-9, "{:?}", plan.stages);
    assert!(plan.deaths.iter().filter(|d| d.node != node(0)).all(|d| d.survivable && d.with.len() == 2));
}

#[test]
fn every_reason_is_given_to_the_peer_that_has_it() {
    let candidates = vec![
        peer(0),
        Candidate { granted: false, ..peer(1) },
        Candidate { memory_free_bytes: 1000, ..peer(2) },
        Candidate { rtt_us: Some(300_000), ..peer(3) },
        Candidate { reachable: false, ..peer(4) },
        Candidate { level: "neon".into(), ..peer(5) },
        Candidate { sessions: 4, ..peer(6) },
        Candidate { standing: Standing::Realm, ..peer(7) },
        Candidate { bandwidth_bytes_per_s: 100_000_000, ..peer(8) },
        peer(9),
    ];
    let mut wanted = input(candidates, Bound::Exactly(2));
    wanted.excluded.insert(node(9));
    let error = plan(&wanted).unwrap_err();
    let reasons: Vec<(u8, &str)> = error.rejected().iter().map(|r| (r.node.as_bytes()[0], r.reason.code())).collect();
    let expected = [
        (1, "no_grant"),
        (2, "no_memory"),
        (3, "too_slow"),
        (4, "unreachable"),
        (5, "wrong_instruction_set"),
        (6, "busy"),
        (7, "privacy"),
        (8, "too_slow"),
        (9, "unreachable"),
    ];
    assert_eq!(reasons, expected);
    assert_eq!(error.usable(), 1);
    assert!(error.to_string().starts_with("2 different nodes are wanted and 1 of 10 can be used"), "{error}");
}

#[test]
fn the_coordinators_level_is_preferred_even_where_others_are_faster() {
    let fast = |n| Candidate { level: "avx512vnni".into(), bandwidth_bytes_per_s: 60_000_000_000, ..peer(n) };
    let plan_for = |bound| plan(&input(vec![peer(0), peer(1), fast(2), fast(3), fast(4)], bound)).unwrap();
    assert_eq!(plan_for(Bound::Exactly(2)).level, "avx2");
    let three = plan_for(Bound::Exactly(3));
    assert_eq!(three.level, "avx512vnni");
    assert!(three.rejected.iter().all(|r| r.reason == RejectReason::WrongInstructionSet));
}

#[test]
fn memory_decides_where_speed_would_choose_otherwise() {
    let small = |n| Candidate { memory_free_bytes: 60_000_000, bandwidth_bytes_per_s: 90_000_000_000, ..peer(n) };
    let plan = plan(&input(vec![small(0), small(1), small(2), peer(3)], Bound::Exactly(2))).unwrap();
    assert!(nodes_of(&plan).contains(&node(3)), "{:?}", plan.stages);
    let error = super::plan(&input(vec![small(0), small(1)], Bound::Free)).unwrap_err();
    assert!(matches!(error, PlanError::NoMemory { usable: 2, .. }), "{error}");
}

#[test]
fn a_bound_of_none_or_of_more_than_the_layers_is_refused() {
    assert!(matches!(
        plan(&input(vec![peer(0)], Bound::Exactly(0))),
        Err(PlanError::TooManyStages { wanted: 0, most: 16 })
    ));
    assert!(matches!(
        plan(&input(vec![peer(0)], Bound::Exactly(17))),
        Err(PlanError::TooManyStages { wanted: 17, most: 16 })
    ));
}

fn candidate() -> impl Strategy<Value = Candidate> {
    (
        (0u8..12, any::<bool>(), 0u32..3),
        (0u64..400_000_000, 0u64..60_000_000_000, 0u64..200_000_000_000),
        (prop::option::of(0u64..100_000), prop::bool::weighted(0.8), prop::bool::weighted(0.9)),
    )
        .prop_map(|((n, holds, sessions), (memory, bandwidth, macs), (rtt_us, same_level, usable))| Candidate {
            memory_free_bytes: memory,
            bandwidth_bytes_per_s: bandwidth,
            macs_per_s: macs,
            rtt_us,
            level: if same_level { "avx2".into() } else { "neon".into() },
            reachable: usable,
            holds,
            sessions,
            ..peer(n)
        })
}

fn any_bound() -> impl Strategy<Value = Bound> {
    prop_oneof![Just(Bound::Free), (1usize..6).prop_map(Bound::Exactly), (1usize..6).prop_map(Bound::AtMost)]
}

fn any_input() -> impl Strategy<Value = PlanInput> {
    let layers = prop::collection::vec(0u64..20_000_000, 1..20);
    (prop::collection::vec(candidate(), 0..10), any_bound(), layers, 0u64..40_000_000, any::<bool>(), 1u64..4096)
        .prop_map(|(candidates, bound, layers, embedding, tied, context)| {
            let mut input = input(candidates, bound);
            input.cost.layers = layers;
            (input.cost.embedding, input.cost.head, input.cost.tied) = (embedding, embedding, tied);
            input.context = context;
            input
        })
}

/// Whether one admitted node can hold it all.
fn some_single_node_fits(input: &PlanInput) -> bool {
    let whole = LayerRange { start: 0, end: input.cost.layers.len() as u32 };
    let needed = input.cost.stage_memory(whole, input.context);
    let (admitted, _) = admit::admit(input, &BTreeSet::new());
    admitted.iter().any(|c| c.memory_free_bytes >= needed)
}

proptest! {
    #[test]
    fn every_plan_keeps_the_laws(input in any_input()) {
        let Ok(plan) = plan(&input) else {
            prop_assert!(matches!(input.bound, Bound::Exactly(_)) || !some_single_node_fits(&input), "a node that fits was overlooked");
            return Ok(());
        };
        let layers = input.cost.layers.len() as u32;
        let mut next = 0;
        for stage in &plan.stages {
            prop_assert_eq!(stage.layers.start, next);
            prop_assert!(stage.layers.end > next);
            next = stage.layers.end;
            let candidate = input.candidates.iter().find(|c| c.node == stage.node).unwrap();
            prop_assert!(input.cost.stage_memory(stage.layers, input.context) <= candidate.memory_free_bytes);
            prop_assert!(candidate.reachable && candidate.granted);
            prop_assert_eq!(&candidate.level, &plan.level);
        }
        prop_assert_eq!(next, layers);
        let different: BTreeSet<NodeId> = nodes_of(&plan).into_iter().collect();
        prop_assert_eq!(different.len(), plan.stages.len());
        match input.bound {
            Bound::Exactly(n) => prop_assert_eq!(plan.stages.len(), n),
            Bound::AtMost(n) => prop_assert!(plan.stages.len() <= n),
            Bound::Free => {}
        }
        let all: BTreeSet<NodeId> = input.candidates.iter().map(|c| c.node).collect();
        let named: BTreeSet<NodeId> = plan.rejected.iter().map(|r| r.node).chain(different).collect();
        prop_assert_eq!(all, named);
        prop_assert_eq!(plan.deaths.len(), plan.stages.len());
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(mut input in any_input(), turn in 0usize..10) {
        let mut seen = BTreeSet::new();
        input.candidates.retain(|c| seen.insert(c.node));
        let one = plan(&input);
        let by = turn.min(input.candidates.len());
        input.candidates.rotate_left(by);
        input.candidates.reverse();
        prop_assert_eq!(one, plan(&input));
    }

    #[test]
    fn the_cut_of_a_bound_plan_has_the_least_slowest_stage(
        layers in prop::collection::vec(1u64..20, 3..9), speeds in prop::collection::vec(1u64..8, 3),
    ) {
        let mut input = input((0..3).map(|n| Candidate { bandwidth_bytes_per_s: speeds[n as usize] * 1000, rtt_us: Some(0), ..peer(n) }).collect(), Bound::Exactly(3));
        input.cost.layers = layers.iter().map(|l| l * 1000).collect();
        (input.cost.embedding, input.cost.head) = (0, 0);
        let made = plan(&input).unwrap();
        let slowest = made.stages.iter().map(|s| s.ms).fold(0.0, f64::max);
        let order: Vec<&Candidate> = made.stages.iter().map(|s| input.candidates.iter().find(|c| c.node == s.node).unwrap()).collect();
        let count = layers.len() as u32;
        let mut best = f64::MAX;
        for a in 1..count - 1 {
            for b in a + 1..count {
                let ranges = [(0, a), (a, b), (b, count)].map(|(start, end)| LayerRange { start, end });
                let worst = ranges.iter().zip(&order).map(|(r, c)| input.cost.decode_ns(*r, c)).max().unwrap();
                best = best.min(worst as f64 / 1e6);
            }
        }
        prop_assert!(slowest <= best + 1e-9, "{} > {}", slowest, best);
    }
}
