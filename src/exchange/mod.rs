//! Weights in and out: Hugging Face checkpoints and fairseq's Linformer become models that a run can start from
//! ([`import`](mod@import)), runs become folders that `transformers` loads ([`export`](mod@export)).
//!
//! [`source`] reads the files of a checkpoint, [`hugging_face`] and [`fairseq`] say what model they describe or why it cannot
//! be taken, [`names`] has the names of both sides, [`project`] turns full attention into a Linformer, [`card`] writes the
//! model card.
//!
//! A **model folder**, what an import writes, is a run's folder before its first step: `config.json`, `tokenizer.json`,
//! `import.json` (what was taken, left and missing) and `checkpoints/step-00000000`, whose optimizer state is empty.
//! `run.init_from`, `predict` and `export` take it as they take a run.

pub mod card;
pub mod export;
pub mod fairseq;
pub mod hugging_face;
pub mod import;
pub mod least_squares;
pub mod names;
pub mod project;
pub mod source;

use crate::config::ConfigError;
use crate::data::DataError;
use crate::model::weights::WeightsError;
use crate::native::NativeError;
use crate::train::checkpoint::CheckpointError;
use std::path::{Path, PathBuf};

/// Why a checkpoint was not taken or a model not written; always one line. What was there before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    /// A key of the checkpoint's config that this program would compute wrongly, or cannot make sense of.
    #[error("{path}: {key}: {message}")]
    Key { path: PathBuf, key: String, message: String },
    #[error("{path} is here already; remove it, or choose another --out")]
    Exists { path: PathBuf },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Native(#[from] NativeError),
}

impl ExchangeError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// A model that the rules of `config` refuse, as described by the file `path`.
    pub(crate) fn config(path: &Path, error: ConfigError) -> Self {
        match error {
            ConfigError::Key { key, message, .. } => Self::Key { path: path.into(), key, message },
            other => Self::invalid(path, other.to_string()),
        }
    }

    pub(crate) fn invalid(path: &Path, message: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), message: message.into() }
    }
}

/// What stands on the encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: hidden states only.
    None,
    MaskedLm,
    /// The labels in their order.
    Classification {
        labels: Vec<String>,
    },
    /// One number.
    Regression,
}

impl Head {
    /// Rows of the last matrix of a classification head; 0: there is none.
    pub fn outputs(&self) -> i64 {
        match self {
            Self::None | Self::MaskedLm => 0,
            Self::Classification { labels } => labels.len() as i64,
            Self::Regression => 1,
        }
    }

    pub fn describe(&self) -> String {
        match self {
            Self::None => "no head".into(),
            Self::MaskedLm => "masked-LM head".into(),
            Self::Classification { labels } => format!("classification head ({})", labels.join(", ")),
            Self::Regression => "regression head".into(),
        }
    }
}
