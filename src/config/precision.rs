//! Which arithmetic a machine is good at.

use super::load::Raw;
use super::schema::Precision;
use serde_json::Value;

/// Whether this processor multiplies bf16: AVX-512's or AMX's instructions (a processor with AMX has both), or Arm's. Without them
/// libtorch's products of bf16 take up to a hundred times as long as those of fp32.
pub fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Whether bf16 is no slower than fp32 on `device`, a `run.device`.
pub fn is_bf16_fast(device: &str) -> bool {
    device != "cpu" || has_bf16_products()
}

impl Precision {
    /// What `auto` comes to on `device`, a `run.device`.
    pub fn resolved(self, device: &str) -> Self {
        match self {
            Self::Auto if is_bf16_fast(device) => Self::Bf16,
            Self::Auto => Self::Fp32,
            other => other,
        }
    }
}

/// For using a model, not training it: bf16 becomes fp32 where that is faster. Keys that are set later still win.
pub fn prefer_fast(raw: &mut Raw) {
    let of = |group: &str, key: &str| raw.value.get(group).and_then(|g| g.get(key)).and_then(Value::as_str);
    let is_slow = of("train", "precision") == Some(Precision::Bf16.as_str()) && !is_bf16_fast(of("run", "device").unwrap_or("cpu"));
    if is_slow {
        raw.set("train.precision", Precision::Fp32.as_str().into(), "this processor, which has no products in bf16");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn raw(overrides: &[&str]) -> Raw {
        let mut raw = Raw::default();
        raw.apply("data.corpus=text").unwrap();
        overrides.iter().for_each(|text| raw.apply(text).unwrap());
        raw
    }

    #[test]
    fn auto_is_never_left_in_a_config() {
        let of = |overrides: &[&str]| raw(overrides).into_config().unwrap().0.train.precision;
        let here = if has_bf16_products() { Precision::Bf16 } else { Precision::Fp32 };
        assert_eq!(of(&["train.precision=auto"]), here);
        assert_eq!(of(&["train.precision=auto", "run.device=cuda"]), Precision::Bf16);
        assert_eq!([of(&["train.precision=bf16"]), of(&["train.precision=fp32"])], [Precision::Bf16, Precision::Fp32]);
    }

    #[test]
    fn a_model_is_used_in_the_arithmetic_that_is_fast_unless_told_otherwise() {
        let of = |before: &[&str], after: &[&str]| {
            let mut raw = raw(before);
            prefer_fast(&mut raw);
            after.iter().for_each(|text| raw.apply(text).unwrap());
            raw.into_config().unwrap().0.train.precision
        };
        let here = if has_bf16_products() { Precision::Bf16 } else { Precision::Fp32 };
        assert_eq!(of(&["train.precision=bf16"], &[]), here);
        assert_eq!(of(&["train.precision=bf16"], &["train.precision=bf16"]), Precision::Bf16);
        assert_eq!(of(&["train.precision=bf16", "run.device=cuda"], &[]), Precision::Bf16);
        assert_eq!(of(&[], &[]), Precision::Fp32);
    }
}
