//! Instruction sets, and how a kernel is compiled for each of them.

use std::fmt;
use std::str::FromStr;

use lingqu_backend::BackendError;

/// An instruction set that the kernels are compiled for. Results are the same bits on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// The same with AMX tiles of int8.
    Amx,
}

impl Isa {
    /// From the slowest to the fastest.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The fastest that this machine has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.available()).expect("the portable kernels run anywhere")
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && has_f16c(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.available() && crate::simd::amx::available(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => false,
        }
    }

    /// Name as people type it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

/// Whether the machine is AMD's or, of the same kind, Hygon's.
pub(crate) fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static IS_AMD: OnceLock<bool> = OnceLock::new();
        *IS_AMD.get_or_init(|| {
            let leaf = std::arch::x86_64::__cpuid(0);
            let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
            [*b"AuthenticAMD", *b"HygonGenuine"].iter().any(|vendor| name.as_flattened() == vendor)
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
fn has_f16c() -> bool {
    is_x86_feature_detected!("f16c")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no instruction set of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no instruction set: portable, avx2, avx512 or amx")]
pub struct UnknownIsa(pub String);

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.into()))
    }
}

/// Proof that this machine has an instruction set; kernels are entered through it alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simd(Isa);

impl Simd {
    /// The best, or the one asked for where the machine has it.
    pub fn choose(isa: Option<Isa>) -> Result<Self, BackendError> {
        let isa = isa.unwrap_or_else(Isa::detect);
        if isa.available() {
            return Ok(Self(isa));
        }
        let problem = format!("this machine lacks {isa}; the fastest that it has is {}", Isa::detect());
        Err(BackendError::Device { backend: "cpu".into(), problem })
    }

    pub fn isa(self) -> Isa {
        self.0
    }
}

/// Makes a function that runs `$body` (an `#[inline(always)]` function in plain Rust) compiled for the instruction
/// set at hand. Rust neither reorders nor contracts float operations, so the bits are those of plain compilation.
macro_rules! per_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(simd: $crate::isa::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match simd.isa() {
                // SAFETY: a `Simd` of this set exists, so the machine has its instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 | $crate::isa::Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!(
            "sse9".parse::<Isa>().unwrap_err().to_string(),
            "'sse9' is no instruction set: portable, avx2, avx512 or amx"
        );
        assert!(Isa::detect().available());
    }

    #[test]
    fn a_set_that_the_machine_lacks_is_refused() {
        for isa in Isa::ALL {
            assert_eq!(Simd::choose(Some(isa)).is_ok(), isa.available());
        }
    }
}
