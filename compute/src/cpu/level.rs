//! Which instructions the kernels use, chosen once at run time.
//!
//! The scalar text defines what every level computes; all levels give the same bits (tests hold them to it).

use std::{fmt, str::FromStr};

/// A set of instructions to compute with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Level {
    /// Plain Rust; runs everywhere.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX2, FMA, F16C and AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// Aarch64 with NEON and the dot-product extension.
    Neon,
}

/// A level that this build does not know by that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no instruction-set level is called {0:?}: scalar, avx2, avx-vnni, avx512 or neon")]
pub struct UnknownLevel(String);

impl Level {
    /// Every level, the lowest of each kind of processor first.
    pub const ALL: [Level; 5] = [Level::Scalar, Level::Avx2, Level::AvxVnni, Level::Avx512, Level::Neon];

    /// The name that adverts, options and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// True when this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => narrow(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => narrow() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => narrow() && wide(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => {
                std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            _ => false,
        }
    }

    /// The best level this processor has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Self::Scalar)
    }
}

#[cfg(target_arch = "x86_64")]
fn narrow() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn wide() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;
    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| UnknownLevel(name.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_one_that_this_processor_has() {
        assert!(Level::best().is_available());
    }

    /// Tests over levels pass over those that a processor lacks; whoever runs them for one level's sake names it.
    #[test]
    fn the_level_that_these_tests_are_run_for_is_here_and_the_best() {
        if let Ok(name) = std::env::var("CAIRN_REQUIRE_LEVEL") {
            assert_eq!(Level::best().name(), name);
        }
    }
}
