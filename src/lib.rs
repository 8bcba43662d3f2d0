
pub mod cli;
pub mod config;
pub mod data;
pub mod eval;
pub mod experiments;
pub mod log;
pub mod model;
pub mod native;
pub mod random;
pub mod train;
