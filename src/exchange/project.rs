//! A full-attention model becomes a Linformer that can be trained on: the same weights, with E and F from a chosen start.

use super::import::Loaded;
use super::least_squares::{self, Settings};
use super::{ExchangeError, Head};
use crate::config::{Attention, AttentionKind, KSpec, Model, Origins, Projection, ProjectionInit, Sharing};
use crate::data::tokenizer::Tokenizer;
use crate::model::parameters::{is_projection, Parameters};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use tch::Device;

/// How E and F start.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// As they would in a run: drawn, without looking at the weights.
    Drawn(ProjectionInit),
    /// So that the attention of each layer computes what full attention computes, as nearly as squares of differences say,
    /// on the activations that this text causes.
    LeastSquares { text: PathBuf, settings: Settings },
}

/// What Linformer a model becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct AsLinformer {
    /// The projected dimension.
    pub k: i64,
    pub sharing: Sharing,
    pub start: Start,
    pub seed: u64,
}

/// How near one layer's attention comes to full attention on text that was not fitted: sum of squared differences over the
/// sum of squares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    pub layer: usize,
    /// Of a mean pool, where the fit starts.
    pub mean_pool: f64,
    pub fitted: f64,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}: relative squared error {:.4}, of a mean pool {:.4}", self.layer, self.fitted, self.mean_pool)
    }
}

/// The Linformer and what to say of it.
pub struct Turned {
    pub model: Model,
    pub parameters: Parameters,
    pub note: String,
    pub fit: Vec<Fit>,
}

/// Copies every weight of `full` and adds E and F.
pub fn turn(
    model: &Model,
    head: &Head,
    full: &Loaded,
    wanted: &AsLinformer,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(&str),
) -> Result<Turned, ExchangeError> {
    let option = Path::new("--projected-dimension");
    if model.attention.kind == AttentionKind::Linformer {
        return Err(ExchangeError::invalid(option, "the checkpoint is a Linformer already, expected one with full attention"));
    }
    let init = match wanted.start {
        Start::Drawn(init) => init,
        Start::LeastSquares { .. } => ProjectionInit::MeanPool,
    };
    let attention = Attention {
        kind: AttentionKind::Linformer,
        k: KSpec::One(wanted.k),
        sharing: wanted.sharing,
        projection: Projection::Learned,
        init,
        ..model.attention.clone()
    };
    let linformer = Model { attention, ..model.clone() };
    linformer.validate(&Origins::default(), linformer.sequence_length()).map_err(|e| ExchangeError::config(option, e))?;
    let turned = Loaded::build(&linformer, head, Parameters::drawing(wanted.seed, Device::Cpu, is_projection));
    {
        let _guard = tch::no_grad_guard();
        for parameter in full.parameters.iter() {
            if let Some(target) = turned.parameters.get(&parameter.name) {
                target.tensor.detach().copy_(&parameter.tensor);
            }
        }
    }
    let fit = match &wanted.start {
        Start::Drawn(_) => Vec::new(),
        Start::LeastSquares { text, settings } => {
            let text = least_squares::Text { path: text, tokenizer };
            least_squares::fit(full, &turned, linformer.sequence_length(), &text, settings, progress)?
        }
    };
    let start = match wanted.start {
        Start::Drawn(init) => init.to_string(),
        Start::LeastSquares { .. } => "least squares".into(),
    };
    let note = format!(
        "now a Linformer: k = {}, sharing {}, E and F from {start}; it has to be trained on before it is of use",
        wanted.k, wanted.sharing
    );
    Ok(Turned { model: linformer, parameters: turned.parameters, note, fit })
}
