//! Numbers of the paper that reports set ours against.

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
