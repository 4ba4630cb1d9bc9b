//! Products with packed weights: how the work is cut, and who may write where.

use std::{cell::Cell, ops::Range};

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    OP, check_ids, check_input,
    ggml::BLOCK,
    packed::{ActivationBits, Activations, Block, GROUP_ROWS, LANES, Packed},
};
use crate::{
    Linear, Result,
    team::each_task,
    tensor::{MOST_ROWS_KEPT, output, unread_output, with_slice},
};

/// The two inner loops of a quantized product, for one instruction set.
pub trait Kernel: Copy + Send + Sync + 'static {
    /// The same with activations of so many bits, where there is a choice.
    fn with_activations(self, _: ActivationBits) -> Self {
        self
    }

    /// Codes up to 8 rows of whole blocks as [`super::packed::quantize_group`] does.
    fn quantize(self, x: &[[f32; BLOCK]], out: &mut [Activations]);

    /// The products of the first `y.len()` rows of `x`, 1 to 8, with one panel of as many blocks.
    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &[Activations],
        y: &mut [[f32; LANES]],
    );
}

/// Groups of rows that pass over a panel together: their codes stay in L2, the panel in L1.
const GROUPS_PER_TASK: usize = 8;
/// Multiplications that pay for handing work to another thread, which takes some microseconds.
const MIN_TASK_WORK: usize = 1 << 17;
/// More tasks than threads, so that one delayed thread does not hold up all.
const TASKS_PER_THREAD: usize = 4;

thread_local!(
    /// The codes of x.
    static CODED: Cell<Vec<Activations>> = const { Cell::new(Vec::new()) }
);

/// Packed weights and the kernel that multiplies with them.
pub struct Quantized<K, const LINES: usize> {
    pub kernel: K,
    pub weights: Packed<LINES>,
}

impl<K: Kernel, const LINES: usize> Linear for Quantized<K, LINES> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let num_rows = check_input(x, self.weights.cols)?;
        let mut coded = CODED.take();
        with_slice(OP, x, |x| self.quantize(x, num_rows, &mut coded))?;
        let (rows, cols) = (num_rows, self.weights.rows);
        let multiply = |start| self.product(&coded, Tiles { start, rows, cols });
        // SAFETY: a product writes all of y and reads none of it.
        let y = unsafe { unread_output(OP, (rows, cols), multiply) };
        if num_rows <= MOST_ROWS_KEPT {
            CODED.set(coded);
        }
        y
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.weights.rows)?;
        let cols = self.weights.cols;
        output(OP, (ids.len(), cols), |out| {
            for (&id, out) in ids.iter().zip(out.chunks_exact_mut(cols)) {
                self.weights.dequantize(id as usize, out);
            }
            Ok(())
        })
    }

    fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

impl<K: Kernel, const LINES: usize> Quantized<K, LINES> {
    /// Rows that are not there hold anything.
    fn quantize(&self, x: &[f32], num_rows: usize, out: &mut Vec<Activations>) {
        let num_blocks = self.weights.cols / BLOCK;
        out.resize(num_rows.div_ceil(GROUP_ROWS) * num_blocks, Activations::ZERO);
        let (x, _) = x.as_chunks::<BLOCK>();
        out.par_chunks_exact_mut(num_blocks)
            .zip(x.par_chunks(GROUP_ROWS * num_blocks))
            .with_min_len(GROUPS_PER_TASK)
            .for_each(|(out, x)| self.kernel.quantize(x, out));
    }

    /// Writes y (M, out): the tasks of the grid cover every row and panel.
    fn product(&self, x: &[Activations], y: Tiles) {
        let grid = Grid::new(y.rows, self.weights.num_panels(), self.weights.cols);
        each_task(grid.num_tasks(), |i| self.task(x, grid.task(i), &y));
    }

    fn task(&self, x: &[Activations], (groups, panels): Task, y: &Tiles) {
        let num_blocks = self.weights.cols / BLOCK;
        let mut tile = [[0f32; LANES]; GROUP_ROWS];
        for panel in panels {
            let weights = self.weights.panel(panel);
            for group in groups.clone() {
                let x = &x[group * num_blocks..(group + 1) * num_blocks];
                let tile = &mut tile[..GROUP_ROWS.min(y.rows - group * GROUP_ROWS)];
                self.kernel.panel(weights, x, tile);
                // SAFETY: the tasks of a grid share no group and panel.
                unsafe { y.write(group * GROUP_ROWS, panel * LANES, tile) };
            }
        }
    }
}

/// The result of a product, written by several threads.
struct Tiles {
    /// Of room for rows * cols values.
    start: *mut f32,
    rows: usize,
    cols: usize,
}

// SAFETY: the only access is `write`, whose callers write disjoint places.
unsafe impl Sync for Tiles {}

impl Tiles {
    /// Writes what of a tile is inside the result.
    ///
    /// # Safety
    /// Nobody else reads or writes the tile's place meanwhile.
    unsafe fn write(&self, row: usize, col: usize, tile: &[[f32; LANES]]) {
        assert!(row + tile.len() <= self.rows && col < self.cols);
        let width = LANES.min(self.cols - col);
        for (i, values) in tile.iter().enumerate() {
            // SAFETY: row + i < rows and col + width <= cols were just seen; the result has room
            // for rows * cols values.
            unsafe {
                let to = self.start.add((row + i) * self.cols + col);
                to.copy_from_nonoverlapping(values.as_ptr(), width);
            }
        }
    }
}

/// Groups of rows of x, and panels of W.
type Task = (Range<usize>, Range<usize>);

/// The groups and the panels, cut into tasks.
struct Grid {
    num_groups: usize,
    num_panels: usize,
    group_parts: usize,
    panel_parts: usize,
}

impl Grid {
    fn new(num_rows: usize, num_panels: usize, cols: usize) -> Self {
        let num_groups = num_rows.div_ceil(GROUP_ROWS);
        let group_parts = num_groups.div_ceil(GROUPS_PER_TASK);
        let most = rayon::current_num_threads() * TASKS_PER_THREAD;
        let wanted = (num_rows * num_panels * LANES * cols / MIN_TASK_WORK).clamp(1, most);
        let panel_parts = wanted.div_ceil(group_parts.max(1)).min(num_panels);
        Self { num_groups, num_panels, group_parts, panel_parts }
    }

    fn num_tasks(&self) -> usize {
        self.group_parts * self.panel_parts
    }

    fn task(&self, index: usize) -> Task {
        (
            part(self.num_groups, self.group_parts, index / self.panel_parts),
            part(self.num_panels, self.panel_parts, index % self.panel_parts),
        )
    }
}

/// Part `index` of `0..len`, cut into `parts` that differ by one at most.
fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}
