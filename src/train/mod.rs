//! The training loop and what it stands on.
//!
//! [`trainer`] is the loop, [`schedule`] the learning rate, [`optimizer`] Adam and AdamW,
//! [`health`] steps that are not finite, [`state`] what the loop knows, [`saver`] how a checkpoint is written and
//! [`checkpoint`] how it is read, [`run`] the run's folder, [`ranks`] the loop among several processes ([`shard`]: the optimizer's state among them), [`interrupt`] signals and the time limit, [`profile`] where the time goes.

pub mod checkpoint;
pub mod health;
mod histograms;
pub mod interrupt;
pub mod optimizer;
pub mod profile;
pub mod ranks;
pub mod run;
pub mod saver;
pub mod schedule;
pub mod shard;
pub mod state;
pub mod trainer;

pub use trainer::{train, LossSum, Outcome, Task, TrainError};
