//! Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split convention: channel `c`
//! turns with channel `c + D/2`.

/// Angular frequency of each channel pair, and the attention factor of scaled variants (yarn).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// (D/2): radians per position.
    pub frequencies: Vec<f32>,
    /// Factor on cos and sin; 1 except for yarn.
    pub attention_factor: f32,
}

/// cos and sin for the rows of one step, (T, D/2) each, row-major.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    pub half_dim: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Rope {
    pub fn table(&self, positions: &[u32]) -> RopeTable {
        let mut table = RopeTable::default();
        self.fill(positions, &mut table);
        table
    }

    /// The same in the memory of another step's.
    pub fn fill(&self, positions: &[u32], RopeTable { half_dim, cos, sin }: &mut RopeTable) {
        *half_dim = self.frequencies.len();
        cos.clear();
        sin.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (s, c) = (*position as f32 * frequency).sin_cos();
                cos.push(c * self.attention_factor);
                sin.push(s * self.attention_factor);
            }
        }
    }
}

impl RopeTable {
    /// Turns one head's vector (D) of row `row` in place.
    #[inline]
    pub fn apply(&self, row: usize, x: &mut [f32]) {
        let range = row * self.half_dim..(row + 1) * self.half_dim;
        let (low, high) = x.split_at_mut(self.half_dim);
        let turns = self.cos[range.clone()].iter().zip(&self.sin[range]);
        for ((a, b), (c, s)) in low.iter_mut().zip(high).zip(turns) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_changes_nothing_and_a_quarter_turn_swaps_the_halves() {
        let rope = Rope { frequencies: vec![std::f32::consts::FRAC_PI_2], attention_factor: 1.0 };
        let table = rope.table(&[0, 1]);
        let mut x = [3.0, 4.0];
        table.apply(0, &mut x);
        assert_eq!(x, [3.0, 4.0]);
        table.apply(1, &mut x);
        assert!((x[0] + 4.0).abs() < 1e-6 && (x[1] - 3.0).abs() < 1e-6);
    }
}
