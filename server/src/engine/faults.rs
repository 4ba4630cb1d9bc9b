//! Faults on purpose, to see what they do to a server: `--faults nan:17,panic:18`, which `--help` does
//! not show. Whoever may send requests to such a server can bring it down.

use std::str::FromStr;

use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::Arena;
use keepwell_models::{Batch, Model, ModelConfig};

/// Token ids that make the model fail when it reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What follows this token is no number.
    nan: Option<u32>,
    /// The step that reads this token panics.
    panic: Option<u32>,
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for fault in text.split(',') {
            let id = fault.split_once(':').and_then(|(_, id)| id.parse().ok());
            match (fault.split_once(':').map(|(kind, _)| kind), id) {
                (Some("nan"), Some(id)) => faults.nan = Some(id),
                (Some("panic"), Some(id)) => faults.panic = Some(id),
                _ => return Err(format!("`{fault}` is neither nan:ID nor panic:ID")),
            }
        }
        Ok(faults)
    }
}

impl Faults {
    /// The model, with these faults.
    pub fn in_model(self, model: Box<dyn Model>) -> Box<dyn Model> {
        tracing::warn!("requests can make this server fail: {self:?}");
        Box::new(Faulty { model, faults: self })
    }
}

struct Faulty {
    model: Box<dyn Model>,
    faults: Faults,
}

impl Model for Faulty {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn hidden(&self, arena: &mut Arena, batch: &Batch) -> Result<Tensor> {
        let meets = |id| batch.tokens.iter().any(|token| Some(*token) == id);
        assert!(!meets(self.faults.panic), "a panic on purpose");
        let states = self.model.hidden(arena, batch)?;
        if !meets(self.faults.nan) {
            return Ok(states);
        }
        let factor = |row: &usize| match Some(batch.tokens[*row]) == self.faults.nan {
            true => f32::NAN,
            false => 1.0,
        };
        let factors: Vec<f32> = batch.logit_rows.iter().map(factor).collect();
        let factors = Tensor::from_vec(factors, (batch.logit_rows.len(), 1), states.device())?;
        Ok(states.broadcast_mul(&factors)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.model.logits(hidden)
    }

    fn bytes(&self) -> usize {
        self.model.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_with_their_tokens() {
        let faults = Faults { nan: Some(17), panic: Some(18) };
        assert_eq!("nan:17,panic:18".parse(), Ok(faults));
        assert_eq!("panic:18".parse(), Ok(Faults { nan: None, ..faults }));
        for wrong in ["", "nan", "nan:", "nan:x", "nan:1,", "hang:1"] {
            assert!(wrong.parse::<Faults>().is_err(), "{wrong}");
        }
    }
}
