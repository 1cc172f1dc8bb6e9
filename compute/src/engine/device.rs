//! Where stages are computed: the CPU, or a GPU that candle drives where this was built with the feature `cuda` or
//! `metal` and `CAIRN_DEVICE` names it (`cuda`, `cuda:1`, `metal`).

use candle_core::Device;

/// Names the device; unset, empty and `cpu` are the CPU.
const DEVICE_VARIABLE: &str = "CAIRN_DEVICE";

/// Why a named device is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such word.
    #[error("no device is called {0:?}: cpu, cuda, cuda:N, metal or metal:N")]
    Unknown(String),
    /// Built without its feature, or the machine has none.
    #[error("{name} can't be used: {why}")]
    Missing {
        /// Which.
        name: String,
        /// What candle says.
        why: String,
    },
}

/// The device that the environment names; none is the CPU.
pub(super) fn chosen() -> Result<Option<Device>, DeviceError> {
    named(&std::env::var(DEVICE_VARIABLE).unwrap_or_default())
}

fn named(name: &str) -> Result<Option<Device>, DeviceError> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    let number = number.parse().map_err(|_| DeviceError::Unknown(name.to_string()))?;
    let device = match kind {
        "" | "cpu" => return Ok(None),
        "cuda" => Device::new_cuda(number),
        "metal" => Device::new_metal(number),
        _ => return Err(DeviceError::Unknown(name.to_string())),
    };
    device.map(Some).map_err(|error| DeviceError::Missing { name: name.to_string(), why: error.to_string() })
}

/// The word for a device's kind, which plans compare.
pub(super) fn kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "candle",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_the_default_and_unknown_devices_are_refused() {
        assert!(matches!(named(""), Ok(None)) && matches!(named("cpu"), Ok(None)));
        for name in ["tpu", "cuda:x", "cuda:", ":1:"] {
            assert!(matches!(named(name), Err(DeviceError::Unknown(_))), "{name}");
        }
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_build_without_gpus_says_so() {
        assert!(matches!(named("cuda"), Err(DeviceError::Missing { .. })));
        assert!(matches!(named("metal"), Err(DeviceError::Missing { .. })));
    }
}
