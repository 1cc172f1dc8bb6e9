//! Keys and values as bytes: the same law, half the memory, apart from those of halves.

use super::{
    tests::{engine, generated, load, prompt, step, tokens, wait_for},
    *,
};
use crate::{
    cpu::kernels::KV_TILE,
    tiny::{self, Tiny},
};
use cairn_protocol::{dtype::Dtype, layers::LayerRange};

fn session(of: &StageHandle, kv: KvFormat) -> StageHandle {
    of.another_for(ClientId::default(), 300, kv).expect("opens")
}

#[test]
fn bytes_give_the_same_tokens_however_stages_and_batches_are_cut() {
    for tiny in [Tiny::new(tiny::llama(), 71, |_| Dtype::Q8_0), Tiny::new(tiny::gemma3(), 72, |_| Dtype::F32)] {
        let layers = tiny.model.layers;
        let ids: Vec<Vec<u32>> = (0..6).map(|user| prompt(&tiny, 20 + 33 * user, user)).collect();
        let mut of_level: Option<Vec<Vec<u32>>> = None;
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let engine = engine(level, 2);
            let whole = load(&engine, &tiny, StagePart::whole(layers), 2);
            let alone: Vec<Vec<u32>> =
                ids.iter().map(|ids| generated(&[session(&whole, KvFormat::Int8)], ids, 20)).collect();
            let part = |start, end| StagePart {
                layers: LayerRange { start, end },
                embedding: start == 0,
                head: end == layers,
            };
            let chain = [load(&engine, &tiny, part(0, 1), 2), load(&engine, &tiny, part(1, layers), 2)];
            let chain: Vec<StageHandle> = chain.iter().map(|stage| session(stage, KvFormat::Int8)).collect();
            assert_eq!(generated(&chain, &ids[5], 20), alone[5], "on two stages");
            let together: Vec<Vec<u32>> = thread::scope(|scope| {
                let user = |(user, ids): (usize, &Vec<u32>)| {
                    let (whole, ids) = (&whole, ids.clone());
                    // Neighbours of the other format go through the same passes.
                    let kv = if user % 2 == 0 { KvFormat::Int8 } else { KvFormat::F16 };
                    scope.spawn(move || generated(&[session(whole, kv)], &ids, 20))
                };
                let users: Vec<_> = ids.iter().enumerate().map(user).collect();
                users.into_iter().map(|user| user.join().expect("a user")).collect()
            });
            for user in [0, 2, 4] {
                assert_eq!(together[user], alone[user], "{level} user {user}");
            }
            assert_eq!(of_level.get_or_insert_with(|| alone.clone()), &alone, "{level}");
        }
    }
}

#[test]
fn bytes_take_half_the_memory_and_are_not_found_as_halves() {
    let tiny = Tiny::new(tiny::llama(), 73, |_| Dtype::Q8_0);
    let engine = engine(Level::best(), 1);
    let base = load(&engine, &tiny, StagePart::whole(tiny.model.layers), 2);
    let ids = prompt(&tiny, 128, 1);
    let keys: Vec<[u8; 32]> = vec![[1; 32], [2; 32]];
    let adopt = |stage: &StageHandle| {
        let (done, held) = sync_channel(1);
        stage.adopt(keys.clone(), Box::new(move |result| drop(done.send(result))));
        held.recv().expect("an answer").expect("adopted")
    };
    let mut bytes = [0; 2];
    for (kv, bytes) in KvFormat::ALL.into_iter().zip(&mut bytes) {
        let before = engine.keys_and_values().bytes;
        let stage = session(&base, kv);
        assert_eq!(adopt(&stage), 0, "nothing of {kv} is there yet");
        step(&stage, tokens(0, &ids, false)).expect("a step");
        *bytes = engine.keys_and_values().bytes - before;
        assert_eq!(*bytes, stage.pages_bytes(2 * KV_TILE as u64));
        drop(stage);
        assert_eq!(adopt(&session(&base, kv)), 128, "{kv}");
    }
    assert!(bytes[1] < bytes[0] * 5 / 8, "{bytes:?}");
    let part = StagePart::whole(tiny.model.layers);
    assert_eq!(arch::pages_bytes(&tiny.model, &part, 128, KvFormat::Int8).expect("a model"), bytes[1]);
    wait_for(|| engine.keys_and_values().idle_bytes == bytes[0] + bytes[1]);
}
