//! Numbers of the paper that reports set ours against.

/// Figure 1: normalised cumulative singular value at index 128 of 512, read off the figure; RoBERTa-base (12 layers) and large (24).
pub struct Figure1 {
    pub text: &'static str,
    pub base: f64,
    pub large: f64,
}

pub const FIGURE_1: [Figure1; 2] =
    [Figure1 { text: "Wiki103", base: 0.92, large: 0.89 }, Figure1 { text: "IMDB", base: 0.93, large: 0.91 }];

/// Its heat map by layer: base, Wiki103, mean over the heads.
pub const FIGURE_1_LAYERS: [f64; 12] = [0.867, 0.882, 0.886, 0.892, 0.899, 0.907, 0.917, 0.928, 0.938, 0.949, 0.960, 0.969];

/// Validation perplexity at the end of Figure 3 a and b, read off the figure's pixels (about +-0.03).
pub struct Figure3 {
    pub n: i64,
    pub full: f64,
    /// (k, perplexity).
    pub linformer: &'static [(i64, f64)],
}

pub const FIGURE_3: [Figure3; 2] = [
    Figure3 { n: 512, full: 3.26, linformer: &[(64, 3.56), (128, 3.44), (256, 3.32)] },
    Figure3 { n: 1024, full: 3.05, linformer: &[(128, 3.35), (256, 3.21)] },
];

/// Table 3: at n, how many times faster inference is, and how many times larger the largest batch, than full attention, for
/// k = 128, 256, 512, 1024 and 2048.
pub struct Table3 {
    pub n: i64,
    pub time_saved: [Option<f64>; 5],
    pub memory_saved: [Option<f64>; 5],
}

pub const TABLE_3_K: [i64; 5] = [128, 256, 512, 1024, 2048];

pub const TABLE_3: [Table3; 8] = [
    table_3(512, [1.5, 1.3, 0.0, 0.0, 0.0], [1.7, 1.5, 0.0, 0.0, 0.0]),
    table_3(1024, [1.7, 1.6, 1.3, 0.0, 0.0], [3.0, 2.9, 1.8, 0.0, 0.0]),
    table_3(2048, [2.6, 2.4, 2.1, 1.3, 0.0], [6.1, 5.6, 3.6, 2.0, 0.0]),
    table_3(4096, [3.4, 3.2, 2.8, 2.2, 1.3], [14.0, 13.0, 8.3, 4.3, 2.3]),
    table_3(8192, [5.5, 5.0, 4.4, 3.5, 2.1], [28.0, 26.0, 17.0, 8.5, 4.5]),
    table_3(16384, [8.6, 7.8, 7.0, 5.6, 3.3], [56.0, 48.0, 32.0, 16.0, 8.0]),
    table_3(32768, [13.0, 12.0, 11.0, 8.8, 5.0], [56.0, 48.0, 36.0, 18.0, 16.0]),
    table_3(65536, [20.0, 18.0, 16.0, 14.0, 7.9], [60.0, 52.0, 40.0, 20.0, 18.0]),
];

/// 0: a cell that the paper leaves empty.
const fn table_3(n: i64, time: [f64; 5], memory: [f64; 5]) -> Table3 {
    const fn cells(values: [f64; 5]) -> [Option<f64>; 5] {
        let mut cells = [None; 5];
        let mut i = 0;
        while i < 5 {
            if values[i] > 0.0 {
                cells[i] = Some(values[i]);
            }
            i += 1;
        }
        cells
    }
    Table3 { n, time_saved: cells(time), memory_saved: cells(memory) }
}

impl Table3 {
    /// (time saved, memory saved) of a cell.
    pub fn cell(n: i64, k: i64) -> (Option<f64>, Option<f64>) {
        let column = TABLE_3_K.iter().position(|c| *c == k);
        let row = TABLE_3.iter().find(|row| row.n == n);
        match (row, column) {
            (Some(row), Some(column)) => (row.time_saved[column], row.memory_saved[column]),
            _ => (None, None),
        }
    }
}
