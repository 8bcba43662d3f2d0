//! Reproduce the experiments of "Linformer: Self-Attention with Linear Complexity" (Wang et al., 2020, arXiv 2006.04768).
//!
//! Data flows one way: text -> tokens -> batch -> model -> loss -> step -> log -> report. The floors, each using only
//! those below it and its own:
//!
//! | floor | modules | what is there |
//! |---|---|---|
//! | 5 | [`cli`] and `main.rs` | what a person types: one thin call a command |
//! | 4 | [`experiments`], [`exchange`] | one file per thing the paper did: pretrain, finetune, sweep, report; weights in and out of Hugging Face |
//! | 3 | [`train`], [`distributed`] | the loop, optimizer, schedule, losses, checkpoints, the run's folder; several processes as one run |
//! | 2 | [`model`], [`data`], [`log`] | the encoder; text to batches; metrics, TensorBoard, progress, plots |
//! | 1 | [`config`], [`eval`], [`native`], [`random`], [`digest`], [`durable`], [`table`] | the JSON that a run is; metrics; the C++ shim on libtorch; stateless randomness; hashes; files that are whole or absent; text tables |
//!
//! Where to add what: an attention variant in [`model::projection`] or [`model::attention`], a task as one row in
//! [`data::tasks::TASKS`], an experiment as one JSON file under `experiments/`.
//!
//! Nothing here draws from a global random state: every number is a function of (seed, purpose, index), see [`random`].

pub mod cli;
pub mod config;
pub mod data;
pub mod digest;
pub mod distributed;
pub mod durable;
pub mod eval;
pub mod exchange;
pub mod experiments;
pub mod log;
pub mod model;
pub mod native;
pub mod random;
pub mod table;
pub mod train;
