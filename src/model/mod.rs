//! The encoder of RoBERTa with full attention or the Linformer's (paper, section 4), in libtorch operations.
//!
//! [`parameters`] and [`init`] make the weights, [`projection`] maps n positions to k rows, [`attention`] uses it,
//! [`encoder`] stacks it, [`heads`] turn hidden states into predictions, [`loss`] holds the losses, [`weights`] is the file format, [`size`] counts,
//! [`watch`] looks for numbers that are not finite.
//! Shapes: B sequences, L <= n positions, d hidden size, h heads, k projected rows.

pub mod attention;
pub mod encoder;
pub mod heads;
pub mod init;
pub mod layers;
pub mod loss;
pub mod memory;
pub mod parameters;
pub mod projection;
pub mod size;
pub mod watch;
pub mod weights;

pub use encoder::{Encoder, Input};
pub use heads::{ClassificationHead, MaskedLmHead};
pub use layers::Pass;
pub(crate) use layers::ROW_BLOCK;
pub use parameters::{Parameter, Parameters};
