//! How questions and answers travel: one protobuf message each way on a stream of its own, ended by closing it.
//!
//! A question that can't be read is handed on as such: libp2p drops the errors of this codec without telling anyone, and
//! who sent it would never pay. A stream that ends before its first byte is no such thing: whoever opened it gave up, as when a line was
//! cut and its packets arrive once it is mended.
//!
//! Invariant: no more bytes than the protocol's ceiling are read, whatever the other side sends, and what was read is
//! only handed on after `cairn_protocol::talk` accepted it.

use std::io;

use cairn_protocol::{
    limits::ANSWER_BYTES_MAX,
    peer_pb::{Answer, Question},
    talk,
};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use super::bounds::QUESTION_READ_BYTES_MAX;

/// A question as it came.
pub(super) type Received = Result<Question, Unread>;

/// Why there is no question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The stream ended before it began.
    Abandoned,
    /// What came makes no sense.
    Senseless(String),
}

/// The codec of the question protocol.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QuestionCodec;

impl request_response::Codec for QuestionCodec {
    type Protocol = StreamProtocol;
    type Request = Received;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Received>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = match read_to_end(io, QUESTION_READ_BYTES_MAX).await {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Err(Unread::Senseless(error.to_string())));
            }
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(Err(Unread::Abandoned));
        }
        Ok(talk::decode_question(&bytes).map_err(|error| Unread::Senseless(error.to_string())))
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = read_to_end(io, ANSWER_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side gave up before it answered"));
        }
        talk::decode_answer(&bytes).map_err(invalid)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, question: Received) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let question = question.map_err(|unread| invalid(format!("{unread:?}")))?;
        io.write_all(&talk::encode_question(&question).map_err(invalid)?).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&talk::encode_answer(&answer).map_err(invalid)?).await
    }
}

/// Reads until the stream ends; one byte more than `bytes_max` is an error.
async fn read_to_end<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > bytes_max {
        return Err(invalid(format!("a message of more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use libp2p::request_response::Codec;

    use super::*;

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");

    #[tokio::test]
    async fn a_stream_that_ends_before_it_begins_is_told_from_one_that_makes_no_sense() {
        let question = async |bytes: &'static [u8]| {
            QuestionCodec.read_request(&PROTOCOL, &mut Cursor::new(bytes)).await.expect("no error of the stream")
        };
        assert_eq!(question(b"").await, Err(Unread::Abandoned));
        for senseless in [&b"\xff"[..], &[0xff; QUESTION_READ_BYTES_MAX + 1]] {
            assert!(matches!(question(senseless).await, Err(Unread::Senseless(_))));
        }
        let answer = async |bytes: &'static [u8]| {
            let read = QuestionCodec.read_response(&PROTOCOL, &mut Cursor::new(bytes)).await;
            read.expect_err("no answer").kind()
        };
        assert_eq!(answer(b"").await, io::ErrorKind::UnexpectedEof);
        assert_eq!(answer(b"\xff").await, io::ErrorKind::InvalidData);
    }
}
