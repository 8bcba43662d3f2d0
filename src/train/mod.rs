//! The training loop and what it stands on.
//!
//! [`trainer`] is the loop, [`schedule`] the learning rate, [`optimizer`] Adam and AdamW, [`loss`] the losses,
//! [`checkpoint`] what is saved, [`run`] the run's folder, [`interrupt`] Ctrl-C and SIGTERM.

pub mod checkpoint;
pub mod interrupt;
pub mod loss;
pub mod optimizer;
pub mod run;
pub mod schedule;
pub mod trainer;

pub use trainer::{train, LossSum, Outcome, Task, TrainError};
