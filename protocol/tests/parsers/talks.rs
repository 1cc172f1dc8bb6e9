//! Questions, answers and stage messages as bytes.

use cairn_protocol::limits::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX};
use cairn_protocol::peer_pb::{
    Answer, Held, Holding, Holds, OpenStage, Question, Records, Resolve, StageCommand, StageEvent, answer, question,
};
use cairn_protocol::record_pb::Envelope;
use cairn_protocol::talk::{
    TalkError, decode_answer, decode_command, decode_event, decode_open, decode_question, encode_answer, encode_open,
    encode_question,
};
use proptest::prelude::*;

use crate::cases;

fn holds(hashes: Vec<Vec<u8>>) -> Question {
    Question { ask: Some(question::Ask::Holds(Holds { hashes })) }
}

fn held(ranges: Vec<u64>) -> Answer {
    let holdings = vec![Holding { hash: vec![1; 32], complete: false, coming: ranges.clone(), ranges }];
    Answer { say: Some(answer::Say::Held(Held { holdings })) }
}

#[test]
fn questions_and_answers_survive() {
    let resolve = Question { ask: Some(question::Ask::Resolve(Resolve { name: "x".into(), ..Default::default() })) };
    for question in [resolve, holds(vec![vec![1; 32]; 1024])] {
        assert_eq!(decode_question(&encode_question(&question).unwrap()), Ok(question));
    }
    let answer = held(vec![0, 1, 5, 9]);
    assert_eq!(decode_answer(&encode_answer(&answer).unwrap()), Ok(answer));
    let open = OpenStage { context: 3, ..Default::default() };
    assert_eq!(decode_open(&encode_open(&open).unwrap()), Ok(open));
}

#[test]
fn what_asks_or_says_nothing_is_refused() {
    // A question of a later version: field 99.
    for bytes in [&[][..], &[0x9a, 0x06, 0]] {
        assert_eq!(decode_question(bytes), Err(TalkError::Unknown));
        assert_eq!(decode_answer(bytes), Err(TalkError::Unknown));
        assert_eq!(decode_command(bytes), Err(TalkError::Unknown) as Result<StageCommand, _>);
        assert_eq!(decode_event(bytes), Err(TalkError::Unknown) as Result<StageEvent, _>);
    }
}

#[test]
fn what_is_too_much_is_refused_on_both_sides() {
    assert_eq!(encode_question(&holds(vec![vec![1; 32]; 1025])), Err(TalkError::Invalid("hashes")));
    assert_eq!(encode_question(&holds(vec![vec![1; 31]])), Err(TalkError::Invalid("hashes")));
    assert!(matches!(decode_question(&vec![0; QUESTION_BYTES_MAX + 1]), Err(TalkError::TooLarge { .. })));
    let record = Envelope { payload: vec![0; ANSWER_BYTES_MAX], ..Default::default() };
    let large = Answer { say: Some(answer::Say::Records(Records { records: vec![record] })) };
    assert!(matches!(encode_answer(&large), Err(TalkError::TooLarge { .. })));
}

#[test]
fn ranges_are_ascending_pairs() {
    for ranges in [vec![1], vec![5, 5], vec![5, 3], vec![0, 5, 4, 6], (0..258).collect()] {
        assert_eq!(encode_answer(&held(ranges)), Err(TalkError::Invalid("ranges")));
    }
    assert!(encode_answer(&held((0..256).collect())).is_ok());
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (decode_question(&bytes), decode_answer(&bytes), decode_open(&bytes), decode_command(&bytes), decode_event(&bytes));
    }
}
