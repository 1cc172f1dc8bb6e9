//! Questions and answers between nodes, and messages of stages, as bytes. Not the streams, not who may ask. Invariant: what
//! decodes is within the limits and says something; what is too large is refused before it is decoded.

use prost::Message;

use crate::limits::{
    ANSWER_BYTES_MAX, FETCH_IDS_MAX, HOLDING_RANGES_MAX, HOLDS_MAX, KEEPS_MAX, QUESTION_BYTES_MAX, RANGE_ITEMS_MAX,
    STAGE_MESSAGE_BYTES_MAX,
};
use crate::peer_pb::{Answer, OpenStage, Question, StageCommand, StageEvent, answer, question};

/// Why bytes are not a message, or a message may not be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// Larger than its sort may be.
    #[error("the message has {got} bytes, at most {max} are accepted")]
    TooLarge {
        /// Its bytes.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// Not protobuf.
    #[error("the message is not protobuf")]
    Malformed,
    /// Nothing that this version understands is in it.
    #[error("the message asks or says nothing that is understood here")]
    Unknown,
    /// More of something than is accepted, or a field of a wrong length.
    #[error("the message's {0} are not acceptable")]
    Invalid(&'static str),
}

/// A question as bytes.
pub fn encode_question(question: &Question) -> Result<Vec<u8>, TalkError> {
    check_question(question)?;
    encode(question, QUESTION_BYTES_MAX)
}

/// A question from bytes.
pub fn decode_question(bytes: &[u8]) -> Result<Question, TalkError> {
    let question = decode::<Question>(bytes, QUESTION_BYTES_MAX)?;
    check_question(&question).map(|()| question)
}

/// An answer as bytes.
pub fn encode_answer(answer: &Answer) -> Result<Vec<u8>, TalkError> {
    check_answer(answer)?;
    encode(answer, ANSWER_BYTES_MAX)
}

/// An answer from bytes. The records in it are not verified here.
pub fn decode_answer(bytes: &[u8]) -> Result<Answer, TalkError> {
    let answer = decode::<Answer>(bytes, ANSWER_BYTES_MAX)?;
    check_answer(&answer).map(|()| answer)
}

/// The first message on a stage's stream, as bytes.
pub fn encode_open(open: &OpenStage) -> Result<Vec<u8>, TalkError> {
    encode(open, STAGE_MESSAGE_BYTES_MAX)
}

/// The first message on a stage's stream. Ids and ranges in it are checked by whoever opens the stage.
pub fn decode_open(bytes: &[u8]) -> Result<OpenStage, TalkError> {
    decode(bytes, STAGE_MESSAGE_BYTES_MAX)
}

/// A command to a stage, as bytes.
pub fn encode_command(command: &StageCommand) -> Result<Vec<u8>, TalkError> {
    encode(command, STAGE_MESSAGE_BYTES_MAX)
}

/// A command to a stage.
pub fn decode_command(bytes: &[u8]) -> Result<StageCommand, TalkError> {
    let command = decode::<StageCommand>(bytes, STAGE_MESSAGE_BYTES_MAX)?;
    command.command.is_some().then_some(command).ok_or(TalkError::Unknown)
}

/// An event of a stage, as bytes.
pub fn encode_event(event: &StageEvent) -> Result<Vec<u8>, TalkError> {
    encode(event, STAGE_MESSAGE_BYTES_MAX)
}

/// An event of a stage.
pub fn decode_event(bytes: &[u8]) -> Result<StageEvent, TalkError> {
    let event = decode::<StageEvent>(bytes, STAGE_MESSAGE_BYTES_MAX)?;
    event.event.is_some().then_some(event).ok_or(TalkError::Unknown)
}

fn encode<M: Message>(message: &M, max: usize) -> Result<Vec<u8>, TalkError> {
    match message.encoded_len() {
        got if got > max => Err(TalkError::TooLarge { got, max }),
        _ => Ok(message.encode_to_vec()),
    }
}

fn decode<M: Message + Default>(bytes: &[u8], max: usize) -> Result<M, TalkError> {
    match bytes.len() {
        got if got > max => Err(TalkError::TooLarge { got, max }),
        _ => M::decode(bytes).map_err(|_| TalkError::Malformed),
    }
}

fn check_question(question: &Question) -> Result<(), TalkError> {
    match &question.ask {
        None => Err(TalkError::Unknown),
        Some(question::Ask::Holds(holds)) if holds.hashes.len() > HOLDS_MAX => Err(TalkError::Invalid("hashes")),
        Some(question::Ask::Reconcile(set)) if set.items.len() > RANGE_ITEMS_MAX => Err(TalkError::Invalid("items")),
        Some(question::Ask::Fetch(fetch)) if fetch.ids.len() > FETCH_IDS_MAX => Err(TalkError::Invalid("ids")),
        Some(question::Ask::Keeps(keeps)) if keeps.revisions.len() > KEEPS_MAX => Err(TalkError::Invalid("revisions")),
        Some(question::Ask::Holds(holds)) if holds.hashes.iter().any(|hash| hash.len() != 32) => {
            Err(TalkError::Invalid("hashes"))
        }
        Some(_) => Ok(()),
    }
}

fn check_answer(answer: &Answer) -> Result<(), TalkError> {
    let Some(answer::Say::Held(held)) = &answer.say else {
        return answer.say.is_some().then_some(()).ok_or(TalkError::Unknown);
    };
    if held.holdings.len() > HOLDS_MAX {
        return Err(TalkError::Invalid("holdings"));
    }
    match held.holdings.iter().all(|holding| holding.hash.len() == 32 && are_ranges(&holding.ranges)) {
        true => Ok(()),
        false => Err(TalkError::Invalid("ranges")),
    }
}

/// Flattened pairs [from, to), ascending and apart.
fn are_ranges(numbers: &[u64]) -> bool {
    numbers.len() <= HOLDING_RANGES_MAX && numbers.len().is_multiple_of(2) && numbers.is_sorted_by(|a, b| a < b)
}
