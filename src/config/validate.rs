//! What a type cannot say: every rule names the key, what was found and what was expected.

use super::load::{ConfigError, Origins};
use super::model::{AttentionKind, BiasOrder, KSpec, Model, Order, Projection, Sharing};
use super::schema::{Config, OwnTask, TaskChoice};
use crate::data::tasks::row;
use crate::eval::Metric;

type Checked = Result<(), ConfigError>;

impl Config {
    /// Checks everything that can be known before data and checkpoint are opened.
    pub fn validate(&self, origins: &Origins) -> Checked {
        // A model that comes from a checkpoint is not known yet.
        if self.run.init_from.is_none() {
            self.model.validate(origins, self.data.sequence_length)?;
        }
        self.validate_data(origins)?;
        self.validate_train(origins)?;
        self.validate_ranks(origins)?;
        at_least(origins, "run.threads", self.run.threads, 0)?;
        at_most(origins, "run.threads", self.run.threads, MOST_THREADS)?;
        parse_device(&self.run.device)
            .map(|_| ())
            .ok_or_else(|| origins.error("run.device", format!("found \"{}\", expected cpu, cuda or cuda:N", self.run.device)))
    }

    fn validate_data(&self, origins: &Origins) -> Checked {
        let data = &self.data;
        if data.corpus.is_some() == data.task.is_some() {
            let what = if data.corpus.is_some() { "both are set, expected one of them" } else { "neither is set, expected one of them" };
            return Err(origins.error("data", format!("data.corpus (pretraining) and data.task (fine-tuning): {what}")));
        }
        at_least(origins, "data.sequence_length", data.sequence_length, 4)?;
        at_most(origins, "data.sequence_length", data.sequence_length, LARGEST_DIMENSION)?;
        at_least(origins, "data.tokenizer_sample_mib", data.tokenizer_sample_mib as i64, 1)?;
        at_most(origins, "data.vocab_size", data.vocab_size.try_into().unwrap_or(i64::MAX), LARGEST_VOCABULARY)?;
        match data.short_sequence_length {
            Some(short) if short < 4 || short > data.sequence_length => {
                return Err(origins.error(
                    "data.short_sequence_length",
                    format!("found {short}, expected 4 to data.sequence_length = {}", data.sequence_length),
                ))
            }
            None if data.short_steps > 0 => return Err(origins.error("data.short_steps", "needs data.short_sequence_length")),
            _ => {}
        }
        for (key, share) in [
            ("data.mask_probability", data.mask_probability),
            ("data.evaluation_mask_probability", data.evaluation_mask_probability),
            ("data.validation_fraction", data.validation_fraction),
        ] {
            if !(share > 0.0 && share < 1.0) {
                return Err(origins.error(key, format!("found {share}, expected a number between 0 and 1")));
            }
        }
        let shares = data.mask_token_share + data.random_token_share;
        if data.mask_token_share < 0.0 || data.random_token_share < 0.0 || shares > 1.0 {
            return Err(origins.error(
                "data.mask_token_share",
                format!("mask_token_share + random_token_share is {shares}, expected both at least 0 and at most 1 together"),
            ));
        }
        match &data.task {
            Some(TaskChoice::Own(task)) => self.validate_task(task, origins),
            Some(TaskChoice::Named(name)) => {
                row(name).map(|_| ()).map_err(|e| origins.error("data.task", e.to_string().trim_start_matches("data.task: ")))
            }
            None => Ok(()),
        }
    }

    /// Kind, labels and metrics of a user's own task have to fit each other.
    fn validate_task(&self, task: &OwnTask, origins: &Origins) -> Checked {
        let classes = task.labels.len();
        if task.is_regression() && classes > 0 {
            return Err(origins.error("data.task.labels", "a regression has no labels, expected none or kind classification"));
        }
        let names = std::iter::once(("data.task.metric", task.metric_name()));
        for (key, name) in names.chain(task.more_metrics.iter().map(|name| ("data.task.more_metrics", name.as_str()))) {
            let metric: Metric =
                name.parse().map_err(|()| origins.error(key, format!("found \"{name}\", expected one of {}", Metric::names())))?;
            // Labels that are still to be read from the files are counted there.
            let (known, regression) = (classes > 0, task.is_regression());
            let fits = match metric {
                Metric::Accuracy | Metric::F1Macro | Metric::Matthews => !regression && (!known || classes >= 2),
                Metric::F1 => !regression && (!known || classes == 2),
                Metric::Pearson | Metric::Spearman => regression,
            };
            if !fits {
                let message = format!("found {name} with {classes} labels, expected accuracy, f1_macro or matthews with 2 or more, f1 with 2, pearson or spearman with none");
                return Err(origins.error(key, message));
            }
        }
        if let Some(label) = task.labels.iter().find(|label| !is_label(label)) {
            return Err(origins.error("data.task.labels", format!("found {label:?}, expected text on one line without tabs")));
        }
        if let Some((_, twice)) = task.labels.iter().enumerate().find(|(i, label)| task.labels[..*i].contains(label)) {
            return Err(origins.error("data.task.labels", format!("found \"{twice}\" twice, expected distinct labels")));
        }
        if task.is_regression() && self.train.label_smoothing > 0.0 {
            return Err(origins.error("train.label_smoothing", "is for classes; this task is a regression, expected 0"));
        }
        Ok(())
    }

    fn validate_ranks(&self, origins: &Origins) -> Checked {
        let ranks = &self.run.ranks;
        for (key, seconds) in [
            ("run.ranks.join_timeout", ranks.join_timeout),
            ("run.ranks.peer_timeout", ranks.peer_timeout),
            ("run.ranks.collective_timeout", ranks.collective_timeout),
        ] {
            if !(1.0..1e9).contains(&seconds) {
                return Err(origins.error(key, format!("found {seconds}, expected at least 1 (seconds)")));
            }
        }
        if !(ranks.bucket_mib > 0.0 && ranks.bucket_mib < 1e6) {
            return Err(origins.error("run.ranks.bucket_mib", format!("found {}, expected a number above 0", ranks.bucket_mib)));
        }
        Ok(())
    }

    fn validate_train(&self, origins: &Origins) -> Checked {
        let train = &self.train;
        at_least(origins, "train.batch_size", train.batch_size as i64, 1)?;
        match train.batch_tokens {
            Some(_) if self.data.task.is_none() => {
                return Err(origins.error("train.batch_tokens", "is for fine-tuning; give a pretraining run train.batch_size"))
            }
            Some(tokens) => at_least(origins, "train.batch_tokens", tokens as i64, self.data.sequence_length)?,
            None => {}
        }
        at_least(origins, "train.log_every", train.log_every as i64, 1)?;
        at_least(origins, "train.keep_checkpoints", train.keep_checkpoints as i64, 1)?;
        at_least(origins, "train.keep_best_checkpoints", train.keep_best_checkpoints as i64, 1)?;
        at_least(origins, "train.max_skipped_steps", train.max_skipped_steps as i64, 1)?;
        if let Some(hours) = train.max_hours.filter(|h| !(*h > 0.0 && h.is_finite())) {
            return Err(origins.error("train.max_hours", format!("found {hours}, expected a number above 0")));
        }
        if let Some(micro) = train.micro_batch_size {
            at_least(origins, "train.micro_batch_size", micro as i64, 1)?;
        }
        if train.max_epochs.is_none() {
            at_least(origins, "train.max_steps", train.max_steps as i64, 1)?;
            if train.warmup_steps > train.max_steps {
                return Err(origins.error(
                    "train.warmup_steps",
                    format!("found {}, expected at most train.max_steps = {}", train.warmup_steps, train.max_steps),
                ));
            }
        } else if train.max_epochs.is_some_and(|e| e.is_nan() || e <= 0.0) {
            return Err(origins.error("train.max_epochs", "expected a number above 0"));
        } else if self.data.task.is_none() {
            return Err(origins.error("train.max_epochs", "is for fine-tuning; give a pretraining run train.max_steps"));
        }
        for (key, value) in [("train.learning_rate", train.learning_rate), ("train.adam_epsilon", train.adam_epsilon)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(origins.error(key, format!("found {value}, expected a number above 0")));
            }
        }
        for (key, value) in [
            ("train.adam_beta1", train.adam_beta1),
            ("train.adam_beta2", train.adam_beta2),
            ("train.label_smoothing", train.label_smoothing),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(origins.error(key, format!("found {value}, expected at least 0 and below 1")));
            }
        }
        for (key, value) in [
            ("train.weight_decay", train.weight_decay),
            ("train.clip_grad_norm", train.clip_grad_norm),
            ("train.min_learning_rate_ratio", train.min_learning_rate_ratio),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(origins.error(key, format!("found {value}, expected at least 0")));
            }
        }
        Ok(())
    }
}

impl Model {
    /// Checks the shape; `sequence_length` is what the data asks for.
    pub fn validate(&self, origins: &Origins, sequence_length: i64) -> Checked {
        for (key, value) in [
            ("model.hidden_size", self.hidden_size),
            ("model.num_hidden_layers", self.num_hidden_layers),
            ("model.num_attention_heads", self.num_attention_heads),
            ("model.intermediate_size", self.intermediate_size),
            ("model.type_vocab_size", self.type_vocab_size),
        ] {
            at_least(origins, key, value, 1)?;
            at_most(origins, key, value, LARGEST_DIMENSION)?;
        }
        at_most(origins, "model.num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        let optional = [("model.vocab_size", self.vocab_size), ("model.max_position_embeddings", self.max_position_embeddings)];
        for (key, value) in optional.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            at_least(origins, key, value, 1)?;
            at_most(origins, key, value, LARGEST_DIMENSION)?;
        }
        at_least(origins, "model.pad_token_id", self.pad_token_id, 0)?;
        at_most(origins, "model.pad_token_id", self.pad_token_id, LARGEST_DIMENSION)?;
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(origins.error(
                "model.num_attention_heads",
                format!("found {}, expected a divisor of model.hidden_size = {}", self.num_attention_heads, self.hidden_size),
            ));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(origins.error("model.layer_norm_eps", format!("found {}, expected a number above 0", self.layer_norm_eps)));
        }
        if self.position_init_base.is_nan() || self.position_init_base <= 1.0 {
            return Err(origins.error("model.position_init_base", format!("found {}, expected a number above 1", self.position_init_base)));
        }
        for (key, p) in [
            ("model.hidden_dropout_prob", self.hidden_dropout_prob),
            ("model.attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ("model.classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ] {
            if !(0.0..1.0).contains(&p) {
                return Err(origins.error(key, format!("found {p}, expected at least 0 and below 1")));
            }
        }
        let n = match self.max_position_embeddings {
            Some(_) => self.sequence_length(),
            None => sequence_length,
        };
        if sequence_length > n {
            return Err(origins.error(
                "data.sequence_length",
                format!(
                    "found {sequence_length}, expected at most n = {n} (model.max_position_embeddings = {} less pad_token_id + 1)",
                    n + self.pad_token_id + 1
                ),
            ));
        }
        match self.attention.kind {
            AttentionKind::Full => Ok(()),
            AttentionKind::Linformer => self.validate_projection(origins, n),
        }
    }

    fn validate_projection(&self, origins: &Origins, n: i64) -> Checked {
        let key = "model.attention.k";
        let attention = &self.attention;
        let (layers, heads) = (self.num_hidden_layers as usize, self.num_attention_heads as usize);
        match &attention.k {
            KSpec::One(_) => {}
            KSpec::PerLayer(list) if list.len() != layers => {
                return Err(origins.error(key, format!("found a list of {}, expected one k for each of the {layers} layers", list.len())))
            }
            KSpec::PerLayer(list) if attention.sharing == Sharing::Layerwise && list.iter().any(|k| k != &list[0]) => {
                return Err(origins.error(key, "layers differ, expected one k: sharing layerwise has one matrix for all layers"))
            }
            KSpec::PerLayer(_) => {}
            KSpec::PerHead(list) if list.is_empty() => return Err(origins.error(key, "found an empty list, expected one k for each layer")),
            KSpec::PerHead(_) if attention.sharing != Sharing::None => {
                return Err(
                    origins.error(key, format!("found one k per head, expected model.attention.sharing none, found {}", attention.sharing))
                )
            }
            KSpec::PerHead(list) => {
                if list.len() != layers || list.iter().any(|row| row.len() != heads) {
                    return Err(origins.error(key, format!("expected {layers} lists (layers) of {heads} (heads)")));
                }
            }
        }
        let every = match &attention.k {
            KSpec::One(k) => vec![*k],
            KSpec::PerLayer(list) => list.clone(),
            KSpec::PerHead(lists) => lists.concat(),
        };
        for k in every {
            if k < 1 || k > n {
                return Err(origins.error(key, format!("found {k}, expected 1 to n = {n}")));
            }
        }
        if attention.sharing == Sharing::None && attention.order == Order::CompressFirst {
            return Err(origins.error(
                "model.attention.order",
                "found compress_first, expected auto or project_first: with sharing none every head compresses its own keys",
            ));
        }
        if attention.bias == BiasOrder::Before && (attention.order == Order::CompressFirst || attention.projection == Projection::MaxPool) {
            return Err(origins.error(
                "model.attention.bias",
                "found before_compression, expected after_compression with order compress_first and with max_pool: they compress the layer's input",
            ));
        }
        if attention.projection == Projection::MaxPool && attention.sharing != Sharing::None && attention.order == Order::ProjectFirst {
            return Err(origins.error("model.attention.order", "found project_first, expected auto or compress_first: a maximum does not commute with the key matrix, and with shared projections it is taken on the layer's input"));
        }
        Ok(())
    }
}

fn at_least(origins: &Origins, key: &str, found: i64, least: i64) -> Checked {
    if found < least {
        return Err(origins.error(key, format!("found {found}, expected at least {least}")));
    }
    Ok(())
}

/// What no model has and no machine holds: a mistake in the file, found before anything is counted or allocated.
const LARGEST_DIMENSION: i64 = 1 << 26;
const MOST_LAYERS: i64 = 10_000;
/// A tokenizer's trainer takes memory for all of it before it begins.
const LARGEST_VOCABULARY: i64 = 1 << 24;
const MOST_THREADS: i64 = 1024;

fn at_most(origins: &Origins, key: &str, found: i64, most: i64) -> Checked {
    if found > most {
        return Err(origins.error(key, format!("found {found}, expected at most {most}")));
    }
    Ok(())
}

/// `cpu`, `cuda` or `cuda:N`.
pub fn parse_device(text: &str) -> Option<tch::Device> {
    match text {
        "cpu" => Some(tch::Device::Cpu),
        "cuda" => Some(tch::Device::Cuda(0)),
        _ => text.strip_prefix("cuda:")?.parse().ok().map(tch::Device::Cuda),
    }
}

/// Whether a label can stand in a cell of a TSV file.
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}
