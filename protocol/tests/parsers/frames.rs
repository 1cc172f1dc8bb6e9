//! Frames between stages.

use cairn_protocol::SessionId;
use cairn_protocol::frame::{FrameDtype, FrameError, FrameHeader, HEADER_BYTES, put_values, values};
use cairn_protocol::limits::{CONTEXT_MAX, FRAME_BYTES_MAX, FRAME_POSITIONS_MAX, FRAME_WIDTH_MAX};
use proptest::prelude::*;

use crate::cases;

fn header() -> FrameHeader {
    FrameHeader {
        session: SessionId::from([7; 16]),
        epoch: 2,
        sequence: 3,
        first_position: 4,
        count: 5,
        width: 6,
        dtype: FrameDtype::F32,
        sample: true,
    }
}

fn bytes(header: &FrameHeader) -> Vec<u8> {
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    bytes
}

#[test]
fn the_header_lies_as_it_is_drawn() {
    let bytes = bytes(&header());
    assert_eq!(bytes.len(), HEADER_BYTES);
    assert_eq!(
        (&bytes[..4], bytes[4], bytes[20], bytes[24], bytes[32], bytes[40], bytes[44]),
        (&b"CAF1"[..], 7, 2, 3, 4, 5, 6)
    );
    assert_eq!(bytes[48..], [1, 1, 0, 0]);
    assert_eq!(header().payload_bytes(), 120);
}

#[test]
fn numbers_outside_of_their_limits_are_refused() {
    for (field, wrong) in [
        ("count", FrameHeader { count: 0, ..header() }),
        ("count", FrameHeader { count: FRAME_POSITIONS_MAX + 1, ..header() }),
        ("width", FrameHeader { width: 0, ..header() }),
        ("width", FrameHeader { width: FRAME_WIDTH_MAX + 1, ..header() }),
        ("payload", FrameHeader { count: FRAME_POSITIONS_MAX, width: FRAME_WIDTH_MAX, ..header() }),
        ("last position", FrameHeader { first_position: u64::MAX, ..header() }),
        ("last position", FrameHeader { first_position: u64::from(CONTEXT_MAX), ..header() }),
    ] {
        let error = FrameHeader::parse(&bytes(&wrong)).unwrap_err();
        assert!(matches!(error, FrameError::Limit { field: f, .. } if f == field), "{field}: {error}");
    }
}

#[test]
fn another_magic_type_flag_or_length_is_refused() {
    for at in [0, 48, 49, 50, 51] {
        let mut bytes = bytes(&header());
        bytes[at] ^= 0x80;
        assert_eq!(FrameHeader::parse(&bytes), Err(FrameError::NotAFrame));
    }
    assert_eq!(FrameHeader::parse(&bytes(&header())[..51]), Err(FrameError::Length(51)));
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_header_survives(session in any::<[u8; 16]>(), epoch: u32, sequence: u64, at in 0u64..1 << 19, count in 1u32..=512, width in 1u32..=8192, sample: bool) {
        let header = FrameHeader { session: session.into(), epoch, sequence, first_position: at, count, width, dtype: FrameDtype::F32, sample };
        prop_assert_eq!(FrameHeader::parse(&bytes(&header)), Ok(header));
    }

    #[test]
    fn any_bytes_promise_a_payload_within_the_limit(mut bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES), plausible: bool) {
        if plausible {
            bytes[..4].copy_from_slice(b"CAF1");
            bytes[48..].copy_from_slice(&[1, 0, 0, 0]);
            bytes[42..44].fill(0);
            bytes[46..48].fill(0);
            bytes[35..40].fill(0);
        }
        if let Ok(header) = FrameHeader::parse(&bytes) {
            prop_assert!(header.payload_bytes() <= FRAME_BYTES_MAX as usize);
        }
    }

    #[test]
    fn values_travel_to_the_bit(bits in prop::collection::vec(any::<u32>(), 0..50)) {
        let floats: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
        let mut bytes = Vec::new();
        put_values(&floats, &mut bytes);
        let read: Vec<u32> = values(&bytes).iter().map(|value| value.to_bits()).collect();
        prop_assert_eq!(read, bits);
    }
}
