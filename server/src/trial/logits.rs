/// Logits (rows, vocab).
#[derive(Clone, Debug)]
pub struct Logits {
    pub(super) vocab_size: usize,
    pub(super) data: Vec<f32>,
}

impl Logits {
    pub fn num_rows(&self) -> usize {
        self.data.len() / self.vocab_size
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.vocab_size..(row + 1) * self.vocab_size]
    }

    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.vocab_size)
    }

    /// The likeliest token of a row.
    pub fn argmax(&self, row: usize) -> u32 {
        let best = self.row(row).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(id, _)| id as u32)
    }
}
