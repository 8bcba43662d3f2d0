//! placeholder
pub mod loss;
