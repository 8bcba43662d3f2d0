//! Keys of the groups `data`, `train` and `run`, with their defaults.

use super::model::{choice, Model};
use super::ranks::Ranks;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub model: Model,
    pub data: Data,
    pub train: Train,
    pub run: Run,
}

/// One path, or several.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let parsed = match &value {
            Value::String(path) => Some(Self::One(path.into())),
            _ => serde_json::from_value(value.clone()).ok().map(Self::Many),
        };
        parsed.ok_or_else(|| D::Error::custom(format!("found {value}, expected a path or a list of paths")))
    }
}

impl OneOrMany {
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::One(path) => vec![path.clone()],
            Self::Many(paths) => paths.clone(),
        }
    }
}

choice!(
    /// What one document of a text file is: the file, a line, a block of lines between blank lines, or an article of
    /// WikiText (` = Title = ` begins one). A record of a table file is a document always; `record`: there are only such.
    DocumentRule { File = "file", Line = "line", Record = "record", BlankLine = "blank_line", Wikitext = "wikitext" }
);
choice!(
    /// A record or row that cannot be used (not UTF-8, a NUL, malformed, an unknown label): end with its place, or leave it
    /// out and count it.
    OnError { Stop = "stop", Skip = "skip" }
);
choice!(
    /// Unicode normalization of the text.
    Normalization { None = "none", Nfc = "nfc" }
);
choice!(
    /// How sequences are cut from the corpus, by fairseq's names. `packed`: full, across documents with separators;
    /// `complete`: whole lines as many as fit, across documents with separators, the rest padding; `complete_doc`: the
    /// same, but a document ends its sequence.
    Sampling { Packed = "packed", Complete = "complete", CompleteDoc = "complete_doc" }
);

/// A task by its name in the table (`linformer data list`), or a table row of one's own.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum TaskChoice {
    Named(String),
    Own(Box<OwnTask>),
}

impl<'de> Deserialize<'de> for TaskChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Ok(Self::Named(name)),
            // The message of a misspelt key names the right ones.
            object @ Value::Object(_) => serde_json::from_value(object).map(Self::Own).map_err(D::Error::custom),
            other => Err(D::Error::custom(format!("found {other}, expected a task's name or a description {{...}}"))),
        }
    }
}

choice!(
    /// What stays of a single text that is too long: its beginning, or its beginning and (three quarters) its end.
    Truncation { Head = "head", HeadTail = "head_tail" }
);
choice!(
    /// What happens when training rows stand in a scored split too: say so, refuse them all, or leave those rows out.
    OnOverlap { Warn = "warn", Stop = "stop", Drop = "drop" }
);
choice!(TaskKind { Classification = "classification", Regression = "regression" });

/// A user's own task: TSV, CSV, JSON lines or parquet, or a folder with one folder of `.txt` files a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnTask {
    pub name: String,
    pub train: OneOrMany,
    pub dev: OneOrMany,
    /// Rows that `linformer predict` takes when it is given no file; they need no labels.
    #[serde(default)]
    pub test: Option<OneOrMany>,
    /// Column of the text.
    pub text: String,
    /// Column of the second text of a pair.
    #[serde(default)]
    pub text_pair: Option<String>,
    pub label: String,
    #[serde(default = "classification")]
    pub kind: TaskKind,
    /// The labels in their order; empty for a regression, or for those of the training rows, sorted.
    #[serde(default)]
    pub labels: Vec<String>,
    /// accuracy, f1_macro or matthews (any classes), f1 (two classes), pearson or spearman (numbers); empty: accuracy or pearson.
    #[serde(default)]
    pub metric: String,
    /// Metrics that are reported beside it.
    #[serde(default)]
    pub more_metrics: Vec<String>,
    /// false: CSV and TSV files have no header; their columns are called "0", "1", ...
    #[serde(default = "yes")]
    pub header: bool,
    /// `<br />` in the texts is a line break.
    #[serde(default)]
    pub html_breaks: bool,
}

fn classification() -> TaskKind {
    TaskKind::Classification
}

fn yes() -> bool {
    true
}

impl OwnTask {
    pub fn is_regression(&self) -> bool {
        self.kind == TaskKind::Regression
    }

    /// The metric by name, or the usual one.
    pub fn metric_name(&self) -> &str {
        match (self.metric.as_str(), self.is_regression()) {
            ("", true) => "pearson",
            ("", false) => "accuracy",
            (name, _) => name,
        }
    }
}

/// What is learned from. Paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Pretraining text: files, folders (with all below them) or globs of .txt, .jsonl, .csv, .tsv (each also .gz, .zst,
    /// .bz2, .xz) and .parquet.
    pub corpus: Option<OneOrMany>,
    pub document: DocumentRule,
    /// Column of table files that holds the text.
    pub text_column: String,
    /// Leave out documents whose text was there before, to the letter.
    pub deduplicate: bool,
    /// Leave out documents of fewer characters.
    pub min_document_characters: usize,
    pub normalization: Normalization,
    pub on_error: OnError,
    /// `byte_bpe`, `wordpiece` or `unigram` (trained on the corpus), `bytes`, or a path: a `tokenizer.json`, a BERT
    /// `vocab.txt`, or a folder with one of them or with GPT-2's `vocab.json` and `merges.txt`.
    pub tokenizer: String,
    /// Entries of a tokenizer that is trained, special tokens and bytes included.
    pub vocab_size: usize,
    /// A tokenizer is trained on documents chosen by their hash, about this many MiB of text.
    pub tokenizer_sample_mib: u64,
    /// Prepared token files and derived tasks stand here, each in a folder named after what it was made from.
    pub cache_dir: PathBuf,
    /// n: tokens in a sequence, special tokens included.
    pub sequence_length: i64,
    /// The first `short_steps` steps use sequences of this length (the first columns of E), as many as make the same
    /// number of tokens a step: what takes a short run off the unigram plateau.
    pub short_sequence_length: Option<i64>,
    pub short_steps: u64,
    /// Share of documents held out, chosen by a hash: of the file's name where a file is a document, else of the text.
    pub validation_fraction: f64,
    /// Validation sequences used by an evaluation; 0: all.
    pub max_validation_sequences: usize,
    pub sampling: Sampling,
    /// Mask all tokens of a word together (words end at white space).
    pub whole_word_masking: bool,
    pub mask_probability: f64,
    /// Masking in evaluation; 0.15 keeps perplexities comparable with the literature, whatever the training uses.
    pub evaluation_mask_probability: f64,
    /// Of the chosen tokens: the share replaced by the mask token ...
    pub mask_token_share: f64,
    /// ... and by a random token; the rest stay as they are.
    pub random_token_share: f64,
    /// Fine-tuning task.
    pub task: Option<TaskChoice>,
    /// Folder with one folder per GLUE task as downloaded.
    pub task_dir: PathBuf,
    /// Training rows used, for trials; 0: all.
    pub max_train_examples: usize,
    /// The best checkpoint is chosen on one half of the scored rows (by a hash of the row's number), and the other half,
    /// which chose nothing, is reported beside it.
    pub dev_halves: bool,
    pub truncation: Truncation,
    pub on_overlap: OnOverlap,
    /// Fine-tuning: rows of this many batches are sorted by length before they are cut into batches, so that little of a
    /// batch is padding; the batches are shuffled. 0: no sorting.
    pub bucket_batches: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            corpus: None,
            document: DocumentRule::File,
            text_column: "text".into(),
            deduplicate: false,
            min_document_characters: 0,
            normalization: Normalization::None,
            on_error: OnError::Stop,
            tokenizer: "byte_bpe".into(),
            vocab_size: 8192,
            tokenizer_sample_mib: 512,
            cache_dir: "runs/cache".into(),
            sequence_length: 512,
            short_sequence_length: None,
            short_steps: 0,
            validation_fraction: 0.05,
            max_validation_sequences: 0,
            sampling: Sampling::Packed,
            whole_word_masking: false,
            mask_probability: 0.15,
            evaluation_mask_probability: 0.15,
            mask_token_share: 0.8,
            random_token_share: 0.1,
            task: None,
            task_dir: "data/glue".into(),
            max_train_examples: 0,
            dev_halves: false,
            truncation: Truncation::Head,
            on_overlap: OnOverlap::Warn,
            bucket_batches: 50,
        }
    }
}

choice!(ScheduleKind { Linear = "linear", Cosine = "cosine", Constant = "constant", InverseSqrt = "inverse_sqrt" });
choice!(OptimizerKind { AdamW = "adamw", Adam = "adam" });
choice!(
    /// Arithmetic of the forward and backward pass; weights and optimizer state are fp32 either way.
    Precision {
        Fp32 = "fp32",
        Bf16 = "bf16",
        /// bf16 on a GPU and on processors that multiply it, fp32 on others; a run's folder holds what it came to.
        Auto = "auto",
    }
);

/// How it is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps.
    pub max_steps: u64,
    /// Fine-tuning: passes over the training rows instead of `max_steps`.
    pub max_epochs: Option<f64>,
    /// Sequences per optimizer step.
    pub batch_size: usize,
    /// Fine-tuning: positions of a batch, padding included, instead of `batch_size`: as many sequences as fit.
    pub batch_tokens: Option<usize>,
    /// Sequences taken at once; null: all of `batch_size`.
    pub micro_batch_size: Option<usize>,
    /// Layers keep their input alone and are run forward once more in the backward pass: the same numbers bit for bit, less
    /// memory, about a third more work.
    pub recompute: bool,
    pub learning_rate: f64,
    pub warmup_steps: u64,
    pub schedule: ScheduleKind,
    /// Length of the decay at the end (linear, cosine); null: from the warm-up on.
    pub decay_steps: Option<u64>,
    /// The decay ends at this share of `learning_rate`.
    pub min_learning_rate_ratio: f64,
    pub optimizer: OptimizerKind,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// Not applied to biases and LayerNorm.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_grad_norm: f64,
    /// PyTorch's definition: the target gets 1 - e + e/V, every other class e/V. (fairseq spreads e over the V - 1 others:
    /// its e equals ours times (V - 1)/V.)
    pub label_smoothing: f64,
    pub precision: Precision,
    pub seed: u64,
    pub log_every: u64,
    /// Steps after which TensorBoard gets histograms of E and F and of all gradients; 0: none.
    pub histogram_every: u64,
    /// 0: only at the end.
    pub eval_every: u64,
    /// 0: only at the end.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept ...
    pub keep_checkpoints: usize,
    /// ... and, besides, those of the best evaluations. Fine-tuning makes one at each; pretraining keeps them where a
    /// checkpoint was due.
    pub keep_best_checkpoints: usize,
    /// Hours after which the run stops with a checkpoint, counted from its start; null: no limit.
    pub max_hours: Option<f64>,
    /// Steps in a row that are skipped, because loss or gradient is not finite, before the run ends.
    pub max_skipped_steps: u64,
    /// Fine-tuning: evaluations without improvement after which training ends; 0: never.
    pub early_stopping_patience: u64,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            max_steps: 10_000,
            max_epochs: None,
            batch_size: 32,
            batch_tokens: None,
            micro_batch_size: None,
            recompute: false,
            learning_rate: 5e-4,
            warmup_steps: 500,
            schedule: ScheduleKind::Linear,
            decay_steps: None,
            min_learning_rate_ratio: 0.0,
            optimizer: OptimizerKind::AdamW,
            adam_beta1: 0.9,
            adam_beta2: 0.98,
            adam_epsilon: 1e-6,
            weight_decay: 0.01,
            clip_grad_norm: 1.0,
            label_smoothing: 0.0,
            precision: Precision::Fp32,
            seed: 0,
            log_every: 50,
            histogram_every: 0,
            eval_every: 500,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            keep_best_checkpoints: 1,
            max_hours: None,
            max_skipped_steps: 5,
            early_stopping_patience: 0,
        }
    }
}

impl Train {
    pub fn micro_batch(&self) -> usize {
        self.micro_batch_size.unwrap_or(self.batch_size).min(self.batch_size)
    }
}

impl Config {
    /// With `train.batch_tokens` as the sequences of the whole length that it holds, in as many micro-batches. (Shorter ones are
    /// more, each with its k rows in a Linformer.)
    pub fn in_whole_sequences(&self) -> Self {
        let mut config = self.clone();
        let train = &mut config.train;
        if let Some(tokens) = train.batch_tokens.take() {
            let micro_batches = train.batch_size.div_ceil(train.micro_batch());
            train.batch_size = (tokens / config.data.sequence_length.max(1) as usize).max(1);
            train.micro_batch_size = train.micro_batch_size.map(|_| train.batch_size.div_ceil(micro_batches));
        }
        config
    }
}

/// Where it runs and what it starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run's folder; null: `runs/` and the config's name.
    pub dir: Option<PathBuf>,
    /// `cpu`, `cuda` or `cuda:1`.
    pub device: String,
    /// libtorch's threads; 0: its own choice.
    pub threads: i64,
    /// A run's folder: its newest checkpoint gives the model's shape, the tokenizer and the weights to start from.
    pub init_from: Option<PathBuf>,
    /// false: take shape and tokenizer of `init_from`, but start from random weights.
    pub init_weights: bool,
    /// A safetensors file of `[k, n]` matrices under the names of the model's projections (`linformer spectrum
    /// --projections` writes one): where E and F start instead of `model.attention.init`.
    pub projections_from: Option<PathBuf>,
    /// Several processes, on one machine or many.
    pub ranks: Ranks,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            dir: None,
            device: "cpu".into(),
            threads: 0,
            init_from: None,
            init_weights: true,
            projections_from: None,
            ranks: Ranks::default(),
        }
    }
}
