//! Flags that every subcommand shares, each also a variable of the environment.

use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, value_parser};

use keepwell_kernels::{ActivationBits, Choice};

use crate::calibrate::CalibrationText;
use crate::compress::{POLICIES, PolicyId};
use crate::engine::Faults;
use crate::http::KvDefaults;
use crate::threads::ThreadArgs;

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A local folder or GGUF file, `org/name` on the Hugging Face hub, or `smollm2`
    #[arg(long, env = "KEEPWELL_MODEL", default_value = "smollm2")]
    pub model: String,

    /// What computes: `auto` is the first CUDA device, or the CPU where there is none
    #[arg(long, env = "KEEPWELL_DEVICE", value_name = "auto|cpu|cuda:N", default_value = "auto")]
    pub device: Choice,

    /// Bits that activations keep where they meet quantized weights: with 8 prompts are computed faster on
    /// a CPU, and predictions are about as far from exact as llama.cpp's
    #[arg(long, env = "KEEPWELL_ACTIVATION_BITS", value_name = "8|16", default_value = "16")]
    pub activation_bits: ActivationBits,

    /// How weights are kept in memory
    #[arg(long, env = "KEEPWELL_WEIGHTS", value_enum, default_value_t = Weights::AsFile)]
    pub weights: Weights,

    /// Memory of the KV cache, such as 512MiB [default: half of the free memory, at most what
    /// --max-sequences full contexts take]
    #[arg(long, env = "KEEPWELL_KV_MEMORY", value_parser = memory)]
    pub kv_memory: Option<ByteSize>,

    /// Share of its F16 bytes that a request's cache may take, unless the request says otherwise;
    /// 1 is no compression
    #[arg(long, env = "KEEPWELL_KV_BUDGET", default_value = "1.0", value_parser = share)]
    pub kv_budget: f32,

    /// Share that memory pressure may push a request down to [default: its budget]
    #[arg(long, env = "KEEPWELL_KV_MIN_BUDGET", value_parser = share)]
    pub kv_min_budget: Option<f32>,

    /// What decides which tokens matter
    #[arg(long, env = "KEEPWELL_POLICY", default_value = POLICIES[0].name(), value_parser = policy())]
    pub policy: PolicyId,

    /// Whether requests begin with the KV cache that earlier ones left of the same beginning. It
    /// takes memory that no running request needs
    #[arg(long, env = "KEEPWELL_PREFIX_CACHE", value_enum, default_value_t = Switch::On)]
    pub prefix_cache: Switch,

    /// Text that the KV cache is calibrated on, once per model: `auto` is built in, `off` does
    /// without, else a file [default: auto]
    #[arg(
        long,
        env = "KEEPWELL_CALIBRATION",
        value_name = "auto|off|FILE",
        default_value = "auto",
        hide_default_value = true
    )]
    pub calibration: CalibrationText,

    /// Tokens computed per step, over all sequences: more is throughput, fewer is latency
    #[arg(
        long,
        env = "KEEPWELL_MAX_BATCH_TOKENS",
        default_value_t = 512,
        value_parser = value_parser!(u32).range(1..=1 << 18)
    )]
    pub max_batch_tokens: u32,

    /// Sequences that run at the same time
    #[arg(
        long,
        env = "KEEPWELL_MAX_SEQUENCES",
        default_value_t = 64,
        value_parser = value_parser!(u32).range(1..=1 << 16)
    )]
    pub max_sequences: u32,

    /// Sequences that wait for their turn; more are refused with 429
    #[arg(
        long,
        env = "KEEPWELL_MAX_WAITING",
        default_value_t = 256,
        value_parser = value_parser!(u32).range(1..=1 << 20)
    )]
    pub max_waiting: u32,

    /// Tokens of the sequences that wait for their turn; more are refused with 429
    #[arg(
        long,
        env = "KEEPWELL_MAX_WAITING_TOKENS",
        default_value_t = 1 << 20,
        value_parser = value_parser!(u32).range(1..)
    )]
    pub max_waiting_tokens: u32,

    /// What follows a panic of the engine, once the requests it had were told: the process ends with
    /// an error, or the engine goes on with an empty cache
    #[arg(long, env = "KEEPWELL_ON_ENGINE_PANIC", value_enum, default_value_t = OnEnginePanic::Exit)]
    pub on_engine_panic: OnEnginePanic,

    /// To test what the server does when the model fails: see `engine::Faults`
    #[arg(long, env = "KEEPWELL_FAULTS", hide = true)]
    pub faults: Option<Faults>,

    #[command(flatten)]
    pub threads: ThreadArgs,

    /// How log lines look: for people, or one JSON object each
    #[arg(long, env = "KEEPWELL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,

    /// An OpenTelemetry collector that gets the spans of requests, such as http://localhost:4318
    #[cfg(feature = "otlp")]
    #[arg(long, env = "KEEPWELL_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// What is logged, to stderr: error, warn, info, debug, or directives of tracing-subscriber
    #[arg(long, env = "KEEPWELL_LOG", default_value = "warn,keepwell_server=info")]
    pub log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// As the file has them: quantized ones stay quantized
    AsFile,
    /// Dequantized to 32 bits, to compare with other implementations
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnEnginePanic {
    Exit,
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

impl ModelArgs {
    /// What clap cannot check flag by flag.
    ///
    /// # Errors
    /// What to change.
    pub fn check(&self) -> Result<(), String> {
        match self.kv_min_budget {
            Some(min) if min > self.kv_budget => {
                Err(format!("--kv-min-budget {min} must be at most --kv-budget {}", self.kv_budget))
            }
            _ => Ok(()),
        }
    }

    pub fn kv_defaults(&self) -> KvDefaults {
        let (budget, min_budget) = (self.kv_budget, self.kv_min_budget);
        KvDefaults { budget, min_budget, policy: self.policy }
    }
}

/// A share in (0, 1].
pub fn share(text: &str) -> Result<f32, String> {
    let share: f32 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    match share > 0.0 && share <= 1.0 {
        true => Ok(share),
        false => Err("it must be above 0 and at most 1".into()),
    }
}

/// A temperature in [0, 2].
pub fn temperature(text: &str) -> Result<f32, String> {
    let temperature: f32 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    match (0.0..=2.0).contains(&temperature) {
        true => Ok(temperature),
        false => Err("a temperature is from 0 to 2".into()),
    }
}

/// Bytes, with or without a unit.
pub fn memory(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>()? {
        ByteSize(0) => Err("must be above 0".into()),
        size => Ok(size),
    }
}

/// `30`, `30s`, `500ms` or `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u32 =
        number.parse().map_err(|_| format!("`{text}` is not a duration such as 30s"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "" | "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(60 * u64::from(number))),
        _ => Err(format!("`{unit}` is no unit of time: 30s, 500ms or 2m")),
    }
}

fn policy() -> impl TypedValueParser<Value = PolicyId> {
    let names = PossibleValuesParser::new(POLICIES.iter().map(|policy| policy.name()));
    names.map(|name| PolicyId::from_name(&name).expect("clap checked the name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "-1s", "1.5s", "1h", "99999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_above_zero_and_at_most_one() {
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("1"), Ok(1.0));
        for bad in ["0", "-0.5", "1.01", "NaN", "inf", "25%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
