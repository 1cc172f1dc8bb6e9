//! Element types of tensors and how many bytes they take. Not arithmetic on them. Invariant: the numbers equal
//! `cairn.record.v1.Dtype`, which are ggml's plus one, then those that only safetensors has.

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $block:literal, $bytes:literal;)*) => {
        /// An element type; quantised ones come in blocks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[allow(non_camel_case_types)]
        pub enum Dtype {
            $($(#[$doc])* $name = $number,)*
        }

        impl Dtype {
            /// Every type there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// From the number in `cairn.record.v1.Dtype`.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The name that people read: `Q4_K`, `BF16`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Elements in a block: 1 for plain types.
            pub const fn block_elements(self) -> u64 {
                match self {
                    $(Self::$name => $block,)*
                }
            }

            /// Bytes of a block; 0 for [`Dtype::Other`], whose size nobody knows.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$name => $bytes,)*
                }
            }
        }
    };
}

dtypes! {
    /// IEEE single.
    F32 = 1, "F32", 1, 4;
    /// IEEE half.
    F16 = 2, "F16", 1, 2;
    /// 4-bit, one scale for 32.
    Q4_0 = 3, "Q4_0", 32, 18;
    /// 4-bit with a minimum.
    Q4_1 = 4, "Q4_1", 32, 20;
    /// 5-bit.
    Q5_0 = 7, "Q5_0", 32, 22;
    /// 5-bit with a minimum.
    Q5_1 = 8, "Q5_1", 32, 24;
    /// 8-bit.
    Q8_0 = 9, "Q8_0", 32, 34;
    /// 8-bit with a sum.
    Q8_1 = 10, "Q8_1", 32, 36;
    /// 2-bit super-blocks.
    Q2_K = 11, "Q2_K", 256, 84;
    /// 3-bit super-blocks.
    Q3_K = 12, "Q3_K", 256, 110;
    /// 4-bit super-blocks.
    Q4_K = 13, "Q4_K", 256, 144;
    /// 5-bit super-blocks.
    Q5_K = 14, "Q5_K", 256, 176;
    /// 6-bit super-blocks.
    Q6_K = 15, "Q6_K", 256, 210;
    /// 8-bit super-blocks, in memory only.
    Q8_K = 16, "Q8_K", 256, 292;
    /// 4-bit with a table.
    IQ4_NL = 21, "IQ4_NL", 32, 18;
    /// Signed byte.
    I8 = 25, "I8", 1, 1;
    /// Signed, two bytes.
    I16 = 26, "I16", 1, 2;
    /// Signed, four bytes.
    I32 = 27, "I32", 1, 4;
    /// Signed, eight bytes.
    I64 = 28, "I64", 1, 8;
    /// IEEE double.
    F64 = 29, "F64", 1, 8;
    /// The upper half of a single.
    BF16 = 31, "BF16", 1, 2;
    /// Unsigned byte.
    U8 = 101, "U8", 1, 1;
    /// Unsigned, two bytes.
    U16 = 102, "U16", 1, 2;
    /// Unsigned, four bytes.
    U32 = 103, "U32", 1, 4;
    /// Unsigned, eight bytes.
    U64 = 104, "U64", 1, 8;
    /// One byte, 0 or 1.
    Bool = 105, "BOOL", 1, 1;
    /// Eight-bit float, 4 bits of exponent.
    F8E4M3 = 106, "F8_E4M3", 1, 1;
    /// Eight-bit float, 5 bits of exponent.
    F8E5M2 = 107, "F8_E5M2", 1, 1;
    /// Known to exist, nothing else known.
    Other = 255, "OTHER", 1, 0;
}

impl Dtype {
    /// The number in `cairn.record.v1.Dtype`.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// From ggml's own number, as GGUF files carry it; types without a place here are [`Dtype::Other`].
    pub const fn from_ggml(number: u32) -> Self {
        match number.checked_add(1) {
            Some(number) if number < 101 => match Self::from_number(number) {
                Some(dtype) => dtype,
                None => Self::Other,
            },
            _ => Self::Other,
        }
    }

    /// From the names in safetensors headers.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        let quantised = |dtype: &Self| dtype.block_elements() > 1;
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name && !quantised(dtype) && *dtype != Self::Other)
    }

    /// Bytes of this many elements; `None` when they don't fill whole blocks, overflow, or the size is unknown.
    pub const fn bytes_for(self, elements: u64) -> Option<u64> {
        if self.block_bytes() == 0 || !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// The signed form.
    pub fn to_pb(self) -> i32 {
        self as i32
    }

    /// From the signed form; `None` for numbers that are not known here.
    pub fn from_pb(number: i32) -> Option<Self> {
        u32::try_from(number).ok().and_then(Self::from_number)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The product of the dimensions, checked; 1 for a scalar.
pub fn elements(shape: &[u64]) -> Option<u64> {
    // A zero anywhere makes the whole zero, whatever the others' product would overflow to.
    match shape.contains(&0) {
        true => Some(0),
        false => shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n)),
    }
}

#[cfg(test)]
mod tests {
    use crate::record_pb;

    use super::*;

    #[test]
    fn numbers_equal_the_signed_enum() {
        for dtype in Dtype::ALL {
            let name = record_pb::Dtype::try_from(dtype.to_pb()).unwrap().as_str_name();
            assert_eq!(name, format!("DTYPE_{}", dtype.name()));
            assert_eq!(Dtype::from_pb(dtype.to_pb()), Some(*dtype));
        }
        assert_eq!(Dtype::from_pb(-1), None);
    }

    #[test]
    fn ggml_numbers_are_one_less() {
        assert_eq!(Dtype::from_ggml(0), Dtype::F32);
        assert_eq!(Dtype::from_ggml(12), Dtype::Q4_K);
        assert_eq!(Dtype::from_ggml(30), Dtype::BF16);
        assert_eq!(Dtype::from_ggml(100), Dtype::Other);
        assert_eq!(Dtype::from_ggml(u32::MAX), Dtype::Other);
    }

    #[test]
    fn partial_blocks_and_overflow_have_no_size() {
        assert_eq!(Dtype::Q4_K.bytes_for(512), Some(288));
        assert_eq!(Dtype::Q4_K.bytes_for(300), None);
        assert_eq!(Dtype::F32.bytes_for(u64::MAX), None);
        assert_eq!(Dtype::Other.bytes_for(4), None);
        assert_eq!(elements(&[u64::MAX, 2]), None);
        assert_eq!(elements(&[u64::MAX, 2, 0]), Some(0));
    }
}
