//! The JSON that a run is: four groups (`model`, `data`, `train`, `run`), inheritance by `"extends"`, overrides
//! `key=value`, and errors that name the file, the key and the nearest right one.
//!
//! [`load`] merges files and overrides, [`schema`] holds the keys with their defaults ([`ranks`] those of many processes),
//! [`validate`] refuses what cannot be trained, [`strict`] reads JSON in which no key stands twice, [`precision`] knows what
//! this machine is good at, [`sweep`] expands a grid, [`json_schema`] tells editors the keys.

pub mod json_schema;
pub mod load;
pub mod model;
pub mod precision;
pub mod ranks;
pub mod schema;
pub mod strict;
pub mod sweep;
pub mod validate;

pub use load::{ConfigError, Origins};
pub use model::{
    Attention, AttentionBackend, AttentionKind, Backend, BiasOrder, HiddenAct, KSpec, Model, Norm, Order, Padding, PositionInit,
    Projection, ProjectionInit, Sharing, WeightInit,
};
pub use ranks::Ranks;
pub use schema::{
    Config, Data, DocumentRule, Normalization, OnError, OnOverlap, OneOrMany, OptimizerKind, OwnTask, Precision, Run, Sampling,
    ScheduleKind, TaskChoice, TaskKind, Train, Truncation,
};
