//! Keys and values in pages: a hard ceiling, giving way, and pages that are found again.

use super::{
    tests::{assert_same_bits, engine, engine_of, generated, hidden, load, prompt, step, tokens, wait_for},
    *,
};
use crate::{
    cpu::kernels::KV_TILE,
    stage::{PageKey, StepError, StepOutput},
    tiny::{self, Tiny},
};
use cairn_protocol::dtype::Dtype;

fn whole(tiny: &Tiny) -> StagePart {
    StagePart::whole(tiny.model.layers)
}

fn small() -> Tiny {
    Tiny::new(tiny::llama(), 70, |_| Dtype::Q8_0)
}

/// Keys that name nothing but the tokens.
fn keys(ids: &[u32]) -> Vec<PageKey> {
    let up_to = |end: usize| ids[..end].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    (1..=ids.len() / KV_TILE).map(|page| *blake3::hash(&up_to(page * KV_TILE)).as_bytes()).collect()
}

fn adopt(stage: &StageHandle, ids: &[u32]) -> usize {
    let (done, held) = sync_channel(1);
    stage.adopt(keys(ids), Box::new(move |result| drop(done.send(result))));
    held.recv().expect("an answer").expect("adopted") as usize
}

/// Memory for the weights and so many pages.
fn room(tiny: &Tiny, pages: u64) -> u64 {
    let memory = arch::stage_memory(&tiny.model, &tiny.tensors, &whole(tiny), 300).expect("a stage");
    memory.total() - memory.cache + pages * page_bytes(tiny)
}

fn page_bytes(tiny: &Tiny) -> u64 {
    arch::stage_memory(&tiny.model, &tiny.tensors, &whole(tiny), 1).expect("a stage").cache
}

/// Greedy tokens, as a coordinator gets them that begins again whenever it has to; and how often it had to.
fn persistent(stage: &StageHandle, ids: &[u32], n: usize) -> (Vec<u32>, usize) {
    let (mut all, mut held, mut evicted) = (ids.to_vec(), 0, 0);
    while all.len() < ids.len() + n {
        match step(stage, tokens(held, &all[held..], true)) {
            Ok(StepOutput::Token { token, .. }) => {
                held = all.len();
                all.push(token);
            }
            Err(StepError::Evicted) => {
                (held, evicted) = (0, evicted + 1);
                thread::sleep(std::time::Duration::from_millis(1));
            }
            other => panic!("{other:?}"),
        }
    }
    (all.split_off(ids.len()), evicted)
}

#[test]
fn a_session_takes_pages_as_it_grows_and_gives_them_back_at_once() {
    let (tiny, engine) = (small(), engine(Level::best(), 1));
    let stage = load(&engine, &tiny, whole(&tiny), 2);
    let pages = || engine.keys_and_values().bytes / page_bytes(&tiny);
    let loaded = engine.memory().0;
    assert_eq!(pages(), 0);
    step(&stage, tokens(0, &prompt(&tiny, 64, 1), true)).expect("a step");
    assert_eq!(pages(), 1);
    step(&stage, tokens(64, &prompt(&tiny, 70, 2), true)).expect("a step");
    assert_eq!((pages(), engine.memory().0), (3, loaded + 3 * page_bytes(&tiny)));
    assert!(stage.truncate(65));
    wait_for(|| pages() == 2);
    let other = stage.another(300).expect("opens");
    drop(other);
    drop(stage);
    wait_for(|| engine.memory().0 == 0);
    assert_eq!(pages(), 0);
}

#[test]
fn sessions_that_don_t_fit_together_give_way_and_all_get_their_own_tokens() {
    let tiny = small();
    let (long, users) = (100, 6);
    let ids: Vec<Vec<u32>> = (0..users).map(|user| prompt(&tiny, 60 + 9 * user, user)).collect();
    let lone = engine(Level::best(), 2);
    let stage = load(&lone, &tiny, whole(&tiny), 2);
    let alone: Vec<Vec<u32>> =
        ids.iter().map(|ids| persistent(&stage.another(300).expect("opens"), ids, long).0).collect();
    // Each needs three or four pages in the end, and there are seven for all six.
    let tight = engine_of(Level::best(), 2, room(&tiny, 7));
    let stage = load(&tight, &tiny, whole(&tiny), 2);
    let together: Vec<(Vec<u32>, usize)> = thread::scope(|scope| {
        let user = |ids: &Vec<u32>| {
            let ids = ids.clone();
            let stage = stage.another(300).expect("opening takes no page");
            scope.spawn(move || persistent(&stage, &ids, long))
        };
        let users: Vec<_> = ids.iter().map(user).collect();
        users.into_iter().map(|user| user.join().expect("a user")).collect()
    });
    assert_eq!(alone, together.iter().map(|(tokens, _)| tokens.clone()).collect::<Vec<_>>());
    let evicted: usize = together.iter().map(|(_, evicted)| evicted).sum();
    assert!(evicted > 0 && together[0].1 == 0, "the first never gave way: {together:?}");
    assert!(tight.keys_and_values().evictions >= evicted as u64);
    wait_for(|| tight.keys_and_values().bytes == 0);
    assert_eq!(tight.memory().0, room(&tiny, 0), "the weights are left");
}

#[test]
fn what_does_not_fit_alone_is_refused_and_what_was_held_is_kept() {
    let tiny = small();
    let engine = engine_of(Level::best(), 1, room(&tiny, 2));
    let stage = load(&engine, &tiny, whole(&tiny), 2);
    let ids = prompt(&tiny, 200, 1);
    step(&stage, tokens(0, &ids[..100], false)).expect("fits");
    assert_eq!(step(&stage, tokens(100, &ids[100..], true)), Err(StepError::NoRoom { needed: 200 }));
    assert!(step(&stage, tokens(100, &ids[100..128], true)).is_ok(), "what fits goes on");
}

#[test]
fn an_evicted_session_is_told_so_until_it_begins_again() {
    let tiny = small();
    let engine = engine_of(Level::best(), 1, room(&tiny, 2));
    let first = load(&engine, &tiny, whole(&tiny), 2);
    let second = first.another(300).expect("opens");
    let ids = prompt(&tiny, 128, 1);
    step(&second, tokens(0, &ids[..64], false)).expect("a page");
    step(&first, tokens(0, &ids, false)).expect("the second gives way");
    for _ in 0..2 {
        assert_eq!(step(&second, tokens(64, &ids[64..], true)), Err(StepError::Evicted));
    }
    drop(first);
    assert!(step(&second, tokens(0, &ids, true)).is_ok());
    assert_eq!(step(&second, tokens(64, &ids[64..], true)), Err(StepError::NotNext { held: 128, got: 64 }));
}

#[test]
fn a_prompt_that_was_computed_before_is_not_computed_again_and_gives_the_same_bits() {
    for (name, tiny) in [("llama", small()), ("gemma3", Tiny::new(tiny::gemma3(), 71, |_| Dtype::Q4_0))] {
        let engine = engine(Level::best(), 2);
        let stage = load(&engine, &tiny, tiny.headless(), 2);
        let ids = prompt(&tiny, 200, 3);
        let mut other = ids[..140].to_vec();
        other.extend(prompt(&tiny, 60, 9));
        assert_eq!(adopt(&stage, &ids), 0);
        let want = hidden(&stage, 0, &ids);
        let width = want.len() / ids.len();
        let (again, apart) = (stage.another(300).expect("opens"), stage.another(300).expect("opens"));
        assert_eq!((adopt(&again, &ids), adopt(&apart, &other)), (192, 128), "{name}");
        assert_eq!(engine.keys_and_values().adopted_positions, 320);
        let bytes = engine.keys_and_values().bytes;
        assert_same_bits(name, &want[192 * width..], &hidden(&again, 192, &ids[192..]));
        let fresh = stage.another(300).expect("opens");
        let expected = hidden(&fresh, 0, &other);
        assert_same_bits(name, &expected[128 * width..], &hidden(&apart, 128, &other[128..]));
        let cache = arch::stage_memory(&tiny.model, &tiny.tensors, &tiny.headless(), 1).expect("a stage").cache;
        assert_eq!(engine.keys_and_values().bytes, bytes + (1 + 2 + 4) * cache, "only what differs takes pages");
    }
}

#[test]
fn who_forgets_part_of_a_shared_page_writes_its_own() {
    let (tiny, engine) = (small(), engine(Level::best(), 1));
    let stage = load(&engine, &tiny, tiny.headless(), 2);
    let ids = prompt(&tiny, 130, 4);
    adopt(&stage, &ids);
    let want = hidden(&stage, 0, &ids);
    let width = want.len() / ids.len();
    let other = stage.another(300).expect("opens");
    assert_eq!(adopt(&other, &ids), 128);
    assert!(other.truncate(100));
    let differs = prompt(&tiny, 40, 8);
    let made = hidden(&other, 100, &differs);
    assert!(made[..width] != want[100 * width..101 * width]);
    assert!(stage.truncate(128));
    assert_same_bits("the first", &want[128 * width..], &hidden(&stage, 128, &ids[128..]));
    let third = stage.another(300).expect("opens");
    assert_eq!(adopt(&third, &ids), 128);
    assert_same_bits("a third", &want[128 * width..], &hidden(&third, 128, &ids[128..]));
    let changed = [&ids[..100], &differs[..]].concat();
    assert_eq!(
        adopt(&stage.another(300).expect("opens"), &changed),
        64,
        "other tokens are not filed under the old keys"
    );
}

#[test]
fn pages_for_who_begins_alike_give_way_to_sessions_and_to_weights() {
    let tiny = small();
    let engine = engine_of(Level::best(), 1, room(&tiny, 3));
    let stage = load(&engine, &tiny, whole(&tiny), 2);
    let ids = prompt(&tiny, 192, 5);
    let first = stage.another(300).expect("opens");
    adopt(&first, &ids);
    let want = generated(std::slice::from_ref(&first), &ids[..150], 20);
    drop(first);
    wait_for(|| engine.keys_and_values().idle_bytes == 2 * page_bytes(&tiny));
    let second = stage.another(300).expect("opens");
    assert_eq!(
        generated(std::slice::from_ref(&second), &ids[..150], 20),
        want,
        "three pages, two of them the idle ones"
    );
    assert_eq!((engine.keys_and_values().idle_bytes, engine.keys_and_values().evictions), (0, 0));
    drop(second);
    wait_for(|| engine.keys_and_values().bytes == 0);
    let third = stage.another(300).expect("opens");
    adopt(&third, &ids);
    hidden_or_token(&third, &ids);
    drop(third);
    wait_for(|| engine.keys_and_values().idle_bytes == 3 * page_bytes(&tiny));
    assert!(engine.reserve(3 * page_bytes(&tiny)).is_ok(), "whatever else computes here comes first");
    assert_eq!(engine.keys_and_values().bytes, 0);
}

fn hidden_or_token(stage: &StageHandle, ids: &[u32]) {
    step(stage, tokens(0, ids, true)).expect("a step");
}

#[test]
fn what_an_adapter_computed_is_not_taken_for_the_model_s_own() {
    let (tiny, engine) = (small(), engine(Level::best(), 1));
    let stage = load(&engine, &tiny, tiny.headless(), 2);
    let ids = prompt(&tiny, 70, 6);
    adopt(&stage, &ids);
    hidden(&stage, 0, &ids);
    let adapted = stage.another(300).expect("opens");
    let adapter = crate::adapter::tests::loaded(&engine, &tiny, tiny.headless());
    adapted.set_adapter(Some(&adapter)).expect("taken");
    assert_eq!(adopt(&adapted, &ids), 0);
    hidden(&adapted, 0, &ids);
    let again = stage.another(300).expect("opens");
    again.set_adapter(Some(&adapter)).expect("taken");
    assert_eq!(adopt(&again, &ids), 64, "but for itself it is");
    adapted.set_adapter(None).expect("taken");
    hidden(&adapted, 0, &ids);
    assert_eq!(adopt(&stage.another(300).expect("opens"), &ids), 64);
}
