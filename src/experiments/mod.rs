//! One file per thing that the paper did: [`pretrain`] (Figure 3), [`finetune`] (Table 2), [`sweep`] (both, over a grid), [`efficiency`] (Table 3),
//! [`report`] (their tables and curves), [`spectrum`] (Figure 1), [`theorems`], [`shift`] (both look at a trained model through [`probe`]);
//! [`reuse`] takes runs that another sweep made, [`results`] is what a sweep leaves to be committed, [`study`] the report on the whole paper from it, [`planner`] what a config takes
//! on a cluster, [`scaling`] what more ranks would bring; [`predict`] uses and scores a fine-tuned model ([`classifier`]), [`fill_mask`]
//! and [`embed`] any model, on [`texts`]; [`show`] prints what a model sees, [`replay`] looks into a run that went wrong, [`runs`] lists and
//! compares ([`curves`] as CSV), [`info`] says what a config comes to before it runs, [`parent`] is a model to start from or to use, [`setup`]
//! what all share.

pub mod classifier;
pub mod curves;
mod disturbance;
pub mod efficiency;
pub mod embed;
pub mod fill_mask;
pub mod finetune;
pub mod floor;
pub mod info;
pub mod paper;
pub mod parent;
pub mod planner;
pub mod predict;
pub mod pretrain;
pub mod probe;
pub mod replay;
pub mod report;
pub mod results;
pub mod reuse;
pub mod runs;
pub mod scaling;
pub mod setup;
pub mod shift;
pub mod show;
pub mod spectrum;
pub mod study;
pub mod sweep;
pub mod texts;
pub mod theorems;

use crate::config::{Config, Origins};
use crate::distributed::World;
use crate::native::panics::catch;
use crate::train::interrupt::Interrupt;
use crate::train::run::Resume;
use anyhow::Result;
use serde_json::Value;

/// How a run is started.
pub struct Start {
    pub name: String,
    pub resume: Resume,
    /// The ranks that train together.
    pub world: World,
    pub interrupt: Interrupt,
    /// Steps to be looked at for where their time goes; 0: none.
    pub profile: u64,
}

/// How it ended.
pub enum Finished {
    /// With the run's summary.
    Done(Value),
    /// Stopped by a signal after a checkpoint.
    Interrupted,
}

/// Pretrains or fine-tunes, as the config says.
pub fn run(config: Config, origins: &Origins, start: Start) -> Result<Finished> {
    // A model too large for the memory shows itself where its weights are made.
    catch(|| if config.data.task.is_some() { finetune::run(config, origins, start) } else { pretrain::run(config, origins, start) })
}
