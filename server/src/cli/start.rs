//! From flags to a running engine: what `serve` and `chat` have in common.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use keepwell_kernels::{ActivationBits, Backend, Choice, PageLayout, Tier};
use keepwell_models::{LoadOptions, ModelConfig, WeightFormat};

use super::args::{ModelArgs, OnEnginePanic, Switch, Weights};
use super::memory::{default_kv_memory, free_memory};
use super::text::ModelText;
use crate::calibrate::{Calibration, obtain};
use crate::compress::Protection;
use crate::engine::{Engine, EngineHandle, EngineInfo, EngineOptions, OnPanic};
use crate::http::{ServedModel, Text};
use crate::metrics::memory::MemoryMeter;
use crate::sched::SchedulerLimits;

/// A model that takes requests.
pub struct Started {
    pub engine: EngineHandle,
    pub text: Arc<dyn Text>,
    pub model: ServedModel,
    pub layout: PageLayout,
    pub memory: MemoryMeter,
    /// For the terminal: model, weights, memory, policy.
    pub summary: String,
}

/// Loads the model, calibrates the cache and starts the engine.
///
/// # Errors
/// An unknown or damaged model, too little memory for it, or a calibration file that is no text.
pub fn start(args: &ModelArgs, served_name: String) -> Result<Started> {
    // Before the model: a wrong path should not cost a minute to find out.
    let text = args.calibration.read()?;
    let backend = backend(args.device, args.activation_bits)?;
    let options = LoadOptions { weights: args.weights.into(), ..LoadOptions::default() };
    let loaded = keepwell_models::load(&args.model, &options, backend.clone())?;
    let config = loaded.model.config().clone();
    let weight_bytes = loaded.model.bytes();
    let calibration = obtain(text.as_deref(), &loaded, &*backend).calibration;
    let options = engine_options(args, &config, (calibration, &*backend))?;
    let model = match args.faults {
        Some(faults) => faults.in_model(loaded.model),
        None => loaded.model,
    };
    let (engine, info) = Engine::spawn(model, backend.clone(), options)?;
    let model =
        ServedModel::new(served_name, config.context_len, loaded.eos_token_ids, config.hidden_size);
    let summary = [
        format!("keepwell  {}", env!("CARGO_PKG_VERSION")),
        describe_model(&model.name, &config),
        describe_weights(weight_bytes, args.weights, &*backend),
        describe_cache(&info),
        describe_policy(args),
    ];
    Ok(Started {
        engine,
        text: Arc::new(ModelText::new(loaded.tokenizer, loaded.template)),
        model,
        layout: info.layout,
        memory: MemoryMeter { backend, weight_bytes },
        summary: summary.join("\n"),
    })
}

fn backend(choice: Choice, bits: ActivationBits) -> Result<Arc<dyn Backend>> {
    let backend = match keepwell_kernels::open(choice) {
        Err(error) if choice == Choice::Auto => {
            // There is one: its owner should learn why it idles.
            tracing::error!("{error}: serving on the CPU");
            keepwell_kernels::open(Choice::Cpu)?
        }
        opened => opened.context("cannot open the device")?,
    };
    if cfg!(feature = "cuda") && choice == Choice::Auto && !backend.has_own_memory() {
        tracing::info!("no CUDA device is there: serving on the CPU");
    }
    Ok(keepwell_kernels::keeping(backend, bits).context("--activation-bits")?.into())
}

fn engine_options(
    args: &ModelArgs,
    config: &ModelConfig,
    (calibration, backend): (Calibration, &dyn Backend),
) -> Result<EngineOptions> {
    let kv_memory = match args.kv_memory {
        Some(size) => size.as_u64(),
        None => {
            let full_context = full_context_bytes(config) as u64;
            let free = backend.free_memory()?.map_or_else(free_memory, Ok)?;
            default_kv_memory(free, full_context, args.max_sequences.into())
        }
    };
    Ok(EngineOptions {
        kv_memory: usize::try_from(kv_memory)?,
        limits: SchedulerLimits {
            max_step_tokens: args.max_batch_tokens as usize,
            max_running: args.max_sequences as usize,
            max_waiting: args.max_waiting as usize,
            max_waiting_tokens: args.max_waiting_tokens as usize,
        },
        protection: Protection::default(),
        calibration,
        on_panic: args.on_engine_panic.into(),
        prefix_cache: args.prefix_cache == Switch::On,
    })
}

/// Bytes of a full context without compression, in whole pages.
fn full_context_bytes(config: &ModelConfig) -> usize {
    let layout = PageLayout::new(config.head_dim);
    let pages = config.context_len.div_ceil(layout.capacity(Tier::F16));
    pages * layout.page_bytes * config.num_layers * config.num_kv_heads
}

fn describe_model(name: &str, config: &ModelConfig) -> String {
    let ModelConfig { architecture, num_layers, num_kv_heads, head_dim, context_len, .. } = config;
    format!(
        "model     {name}: {architecture}, {num_layers} layers, {num_kv_heads} KV heads of size \
         {head_dim}, context {context_len} tokens"
    )
}

fn describe_weights(bytes: usize, weights: Weights, backend: &dyn Backend) -> String {
    let format = match weights {
        Weights::AsFile => "as in the file",
        Weights::F32 => "in f32",
    };
    format!("weights   {} {format}; kernels: {}", size(bytes), backend.name())
}

fn describe_cache(info: &EngineInfo) -> String {
    let EngineInfo { layout, num_pages, f16_token_bytes, .. } = info;
    let num_bytes = num_pages * layout.page_bytes;
    let num_heads = f16_token_bytes / layout.f16_token_bytes();
    let num_tokens = num_pages * layout.capacity(Tier::F16) / num_heads;
    format!(
        "KV cache  {}: {num_pages} pages of {} bytes, {num_tokens} tokens uncompressed",
        size(num_bytes),
        layout.page_bytes
    )
}

fn describe_policy(args: &ModelArgs) -> String {
    let floor = args.kv_min_budget.unwrap_or(args.kv_budget);
    format!(
        "policy    {}, budget {} (under pressure {floor}), unless a request says otherwise",
        args.policy.policy().name(),
        args.kv_budget
    )
}

fn size(bytes: usize) -> String {
    ByteSize(bytes as u64).display().iec().to_string()
}

impl From<Weights> for WeightFormat {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::AsFile => Self::AsFile,
            Weights::F32 => Self::F32,
        }
    }
}

impl From<OnEnginePanic> for OnPanic {
    fn from(on_panic: OnEnginePanic) -> Self {
        match on_panic {
            OnEnginePanic::Exit => Self::Exit,
            OnEnginePanic::Restart => Self::Restart,
        }
    }
}
