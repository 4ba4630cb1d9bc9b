//! The operations of one step, and who can execute them on this machine.
//!
//! Tensors are contiguous f32 on the backend's device. T is the number of rows of the step (tokens
//! of all sequences), D the head size, H query heads, G KV heads.

use std::{ops::Range, str::FromStr};

use candle_core::{Device, Tensor};

use crate::{
    ActivationBits, Arena, AttentionPlan, Error, Histogram, Move, PageId, PageRef, RawMatrix,
    Result, RopeTable,
    portable::{self, Portable},
};

#[cfg(target_arch = "aarch64")]
use crate::aarch64;
#[cfg(any(feature = "cuda", feature = "cuda-emu"))]
use crate::cuda;
#[cfg(target_arch = "x86_64")]
use crate::x86;

/// What attention leaves for the output projection and for [`Backend::attribute`].
pub struct Attended {
    /// (T, H * D), rotated back.
    pub out: Tensor,
    /// (T, H): log-sum-exp of the scaled scores.
    pub lse: Tensor,
}

/// A weight matrix prepared for one backend: y = x W^T.
pub trait Linear: Send + Sync {
    /// x (M, in), returns (M, out).
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Dequantized rows of W: (ids.len(), in). A token embedding is a lookup of rows.
    fn rows(&self, ids: &[u32]) -> Result<Tensor>;

    /// Resident bytes.
    fn bytes(&self) -> usize;
}

/// What a token's metadata says; see [`Backend::attributions`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenAttribution {
    pub position: u32,
    pub attribution: f32,
}

/// One device's kernels. A backend overrides only what it makes faster: every default is the
/// portable twin, on host memory.
pub trait Backend: Send + Sync {
    fn name(&self) -> &'static str;

    fn device(&self) -> Device {
        Device::Cpu
    }

    /// Whether its arenas and tensors lie where the host does not see them.
    fn has_own_memory(&self) -> bool {
        false
    }

    /// Bytes of that memory that can still be had; `None` where it is the host's.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Bytes of that memory that are taken, by whomever; `None` where it is the host's.
    fn used_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The same with products in which activations keep so many bits; `None` where there is no choice.
    fn with_activations(&self, _: ActivationBits) -> Option<Box<dyn Backend>> {
        None
    }

    fn arena(&self, layout: crate::PageLayout, num_pages: usize) -> Result<Arena> {
        Arena::host(layout, num_pages)
    }

    /// Prepares a weight matrix whose rows are those of `parts`, one after the other (QKV and
    /// gate/up run as one). Quantized parts stay quantized.
    fn linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        portable::matmul::linear(parts)
    }

    /// x (T, C), weight (C): x / sqrt(mean(x^2) + eps) * weight.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        portable::activation::rms_norm(x, weight, eps)
    }

    /// x (T, C) + y (T, C), the residual sums. Not candle's: its own threads would wake for each.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        portable::activation::add(x, y)
    }

    /// gate_up (T, 2F), returns (T, F): silu(gate) * up.
    fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        portable::activation::silu_mul(gate_up)
    }

    /// qkv (T, (H + 2G) * D): applies RoPE to q and k, rotates q, k and v, writes k and v to the
    /// plan's F16 slots with attribution 0, and returns q (T, H * D), rotated.
    fn write_kv(
        &self,
        arena: &mut Arena,
        layer: usize,
        qkv: &Tensor,
        rope: &RopeTable,
        plan: &AttentionPlan,
    ) -> Result<Tensor> {
        portable::write_kv::write_kv(arena, layer, qkv, rope, plan)
    }

    /// q (T, H * D) from [`Backend::write_kv`]: softmax attention of each row over all pages of its
    /// sequence, as far as the row's position and the window let it see, scaled by 1/sqrt(D).
    fn attention(
        &self,
        arena: &Arena,
        layer: usize,
        q: &Tensor,
        plan: &AttentionPlan,
    ) -> Result<Attended> {
        portable::attention::attention(arena, layer, q, plan)
    }

    /// Updates the attributions of the spans that ask for it; see [`crate::Scoring`].
    fn attribute(
        &self,
        arena: &mut Arena,
        layer: usize,
        q: &Tensor,
        attended: &Attended,
        plan: &AttentionPlan,
    ) -> Result<()> {
        portable::attribution::attribute(arena, layer, q, attended, plan)
    }

    /// Position and attribution of every token of `pages`, in order.
    fn attributions(&self, arena: &Arena, pages: &[PageRef]) -> Result<Vec<TokenAttribution>> {
        Ok(portable::attribution::attributions(arena, pages))
    }

    /// The attributions of each group of pages, of the tokens whose positions lie in one of `ranges`:
    /// what [`Backend::attributions`] would read token by token.
    fn histograms(
        &self,
        arena: &Arena,
        groups: &[&[PageRef]],
        ranges: &[Range<u32>],
    ) -> Result<Vec<Histogram>> {
        Ok(portable::attribution::histograms(arena, groups, ranges))
    }

    /// Overwrites pages with others, (from, to) each. None of those is overwritten, and none twice.
    fn copy_pages(&self, arena: &mut Arena, pages: &[(PageId, PageId)]) -> Result<()> {
        pages.iter().try_for_each(|(from, to)| arena.copy(*from, *to))
    }

    /// Executes the moves as if all reads came before all writes. A part that keeps its
    /// format is copied bit by bit; one that changes it is decoded and coded anew.
    fn compact(&self, arena: &mut Arena, moves: &[Move]) -> Result<()> {
        portable::compact::compact(arena, moves);
        Ok(())
    }
}

/// A backend, if this machine can run it; an error where its device is there and fails.
type Probe = fn() -> Result<Option<Box<dyn Backend>>>;

fn found(backend: Option<impl Backend + 'static>) -> Result<Option<Box<dyn Backend>>> {
    Ok(backend.map(|backend| Box::new(backend) as Box<dyn Backend>))
}

/// Backends of this build with a device of their own, fastest first.
const DEVICES: &[Probe] = &[
    #[cfg(feature = "cuda")]
    || found(cuda::Driver::first()?),
    #[cfg(feature = "cuda")]
    || found(cuda::Driver::first()?.map(|cuda| cuda.without_tensor_cores("cuda-plain"))),
];

/// Every other backend of this build, fastest first.
const BACKENDS: &[Probe] = &[
    #[cfg(target_arch = "x86_64")]
    || found(x86::Avx512::new()),
    #[cfg(target_arch = "x86_64")]
    || found(x86::Avx2::new()),
    #[cfg(target_arch = "aarch64")]
    || found(aarch64::Neon::new()),
    || found(Some(Portable)),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[0]())),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[1]())),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[2]())),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[3]())),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[4]())),
    #[cfg(feature = "cuda-emu")]
    || found(Some(cuda::Emulator::all()[5]())),
];

/// The backends this machine can run, fastest first; never empty.
///
/// # Panics
/// A device is there and does not open: what is to be tried on it would be tried nowhere.
pub fn available() -> Vec<Box<dyn Backend>> {
    let new = |new: &Probe| new().unwrap_or_else(|error| panic!("{error}"));
    DEVICES.iter().chain(BACKENDS).filter_map(new).collect()
}

/// A device that somebody asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The fastest there is.
    #[default]
    Auto,
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = Error;

    /// `auto`, `cpu`, or `cuda:` and a number.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err(Error::Unsupported(format!(
                "`{text}` is none of auto, cpu, cuda:0, cuda:1 and so on"
            ))),
        }
    }
}

/// `backend` with activations of so many bits.
///
/// # Errors
/// It has no choice.
pub fn keeping(backend: Box<dyn Backend>, bits: ActivationBits) -> Result<Box<dyn Backend>> {
    if bits == ActivationBits::default() {
        return Ok(backend);
    }
    let refused = || format!("{} multiplies activations of 16 bits only", backend.name());
    backend.with_activations(bits).ok_or_else(|| Error::Unsupported(refused()))
}

/// The fastest backend on a device.
///
/// # Errors
/// The device that was asked for is not there; it fails, or this build has no kernels for it.
pub fn open(choice: Choice) -> Result<Box<dyn Backend>> {
    let devices = match choice {
        Choice::Cuda(ordinal) => return open_cuda(ordinal),
        Choice::Auto => DEVICES,
        Choice::Cpu => &[],
    };
    first(devices.iter().chain(BACKENDS))
}

fn first<'a>(mut probes: impl Iterator<Item = &'a Probe>) -> Result<Box<dyn Backend>> {
    probes.find_map(|new| new().transpose()).expect("the portable backend runs anywhere")
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> Result<Box<dyn Backend>> {
    Ok(Box::new(cuda::Driver::open(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Box<dyn Backend>> {
    Err(Error::Unsupported("this build has no CUDA: build it with `--features cuda`".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_auto_the_cpu_or_a_cuda_device_by_its_number() {
        let device = |text: &str| text.parse::<Choice>().ok();
        assert_eq!(device("auto"), Some(Choice::Auto));
        assert_eq!(device("cpu"), Some(Choice::Cpu));
        assert_eq!(device("cuda"), Some(Choice::Cuda(0)));
        assert_eq!(device("cuda:3"), Some(Choice::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert_eq!(device(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_cpu_is_always_there_and_a_device_that_is_not_is_an_error() {
        assert!(!open(Choice::Cpu).unwrap().has_own_memory());
        assert!(open(Choice::Cuda(999)).is_err());
        assert_eq!(open(Choice::Auto).unwrap().name(), available()[0].name());
    }

    #[test]
    fn a_device_that_is_not_there_is_passed_over_and_one_that_fails_is_an_error() {
        let (missing, cpu): (Probe, Probe) = (|| Ok(None), || found(Some(Portable)));
        let failing: Probe = || Err(Error::Unsupported("it fails".to_owned()));
        assert_eq!(first([missing, cpu].iter()).unwrap().name(), "portable");
        assert_eq!(first([missing, failing, cpu].iter()).err().unwrap().to_string(), "it fails");
    }
}
