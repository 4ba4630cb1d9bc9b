//! Latency of one sequence as its client sees it, into histograms.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use metrics::Histogram;

use super::table::{
    E2E_LATENCY, INTER_TOKEN_LATENCY, REQUEST_MAX_GENERATION_TOKENS, REQUEST_PARAMS_N,
    TIME_TO_FIRST_TOKEN,
};

/// Follows one sequence from its request's arrival to its end.
#[derive(Clone)]
pub struct Stopwatch {
    arrived: Instant,
    last_token: Option<Instant>,
    /// Looked up once: it is told of every token.
    inter_token: Histogram,
    choices: Arc<Choices>,
}

/// The choices of one prompt, which are one request to vLLM. It is recorded when the last one is
/// gone: one that was refused generated nothing.
#[derive(Default)]
struct Choices {
    num: usize,
    /// Tokens of the longest that ended.
    longest: AtomicUsize,
}

impl Drop for Choices {
    fn drop(&mut self) {
        let longest = *self.longest.get_mut();
        if longest > 0 {
            REQUEST_PARAMS_N.histogram(vec![]).record(self.num as f64);
            REQUEST_MAX_GENERATION_TOKENS.histogram(vec![]).record(longest as f64);
        }
    }
}

impl Stopwatch {
    pub fn start() -> Self {
        let inter_token = INTER_TOKEN_LATENCY.histogram(vec![]);
        let choices = Arc::default();
        Self { arrived: Instant::now(), last_token: None, inter_token, choices }
    }

    /// One for each of the `num` choices of a prompt.
    pub fn choices(&self, num: usize) -> impl Iterator<Item = Self> {
        let choices = Arc::new(Choices { num, longest: AtomicUsize::new(0) });
        let stopwatch = Self { choices, ..self.clone() };
        iter::repeat_n(stopwatch, num)
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => TIME_TO_FIRST_TOKEN.histogram(vec![]).record(now - self.arrived),
            Some(last) => self.inter_token.record(now - last),
        }
    }

    pub fn finished(&self, num_generated: usize) {
        E2E_LATENCY.histogram(vec![]).record(self.arrived.elapsed());
        self.choices.longest.fetch_max(num_generated, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{parse::parse, recorder};

    #[test]
    fn the_choices_of_a_prompt_are_one_request_once_the_last_is_gone() {
        let recorder = recorder("m").unwrap().build_recorder();
        let _local = metrics::set_default_local_recorder(&recorder);
        let sum = |name: &str| {
            let samples = parse(&recorder.handle().render());
            samples.iter().filter(|s| s.name == name).map(|s| s.value).sum::<f64>()
        };
        let arrival = Stopwatch::start();
        let mut choices: Vec<_> = arrival.choices(3).collect();
        choices.iter().zip([4, 9, 7]).for_each(|(choice, num)| choice.finished(num));
        let last = choices.pop();
        drop(choices);
        assert_eq!(sum("vllm:request_params_n_count"), 0.0);
        drop(last);
        // Refused.
        drop(arrival.choices(2).collect::<Vec<_>>());
        drop(arrival);
        for (name, value) in [("params_n", 3.0), ("max_num_generation_tokens", 9.0)] {
            assert_eq!(sum(&format!("vllm:request_{name}_count")), 1.0, "{name}");
            assert_eq!(sum(&format!("vllm:request_{name}_sum")), value, "{name}");
        }
    }
}
