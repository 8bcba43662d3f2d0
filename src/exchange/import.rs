//! A checkpoint becomes a model folder that `run.init_from`, `predict` and `export` take.

use super::fairseq;
use super::hugging_face::{self, Description};
use super::names::{Family, POSITIONS};
use super::project::{self, AsLinformer, Fit};
use super::source::Source;
use super::{ExchangeError, Head};
use crate::config::{AttentionKind, Config, Model, OneOrMany, OwnTask, TaskChoice, TaskKind};
use crate::data::tasks::layout::segments;
use crate::data::tokenizer::Tokenizer;
use crate::durable;
use crate::model::{ClassificationHead, Encoder, MaskedLmHead, Parameters};
use crate::native::panics::catch;
use crate::train::saver::save_weights;
use serde::Serialize;
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// Where a checkpoint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// A folder that `save_pretrained` wrote
    HuggingFace,
    /// The state dict of a linformer_roberta model, as safetensors
    Fairseq,
}

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: PathBuf,
    pub from: From,
    /// Where the tokenizer is, if not beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// fairseq: its state dict does not say.
    pub num_attention_heads: Option<i64>,
    pub linformer: Option<AsLinformer>,
}

/// A model in memory with all that belongs to it.
pub struct Imported {
    pub model: Model,
    pub head: Head,
    pub parameters: Parameters,
    pub tokenizer: Tokenizer,
    pub report: Report,
    /// Files that say what the tokenizer's special tokens are, to be kept beside it: name and text.
    side_files: Vec<(String, Vec<u8>)>,
    /// Tokens that a classifier's texts are cut to, where its checkpoint says so.
    longest: Option<i64>,
}

/// What became of every tensor.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub source: PathBuf,
    /// `roberta`, `bert`, `linformer` or `fairseq`, and its head.
    pub description: String,
    pub taken: Vec<Taken>,
    pub left: Vec<Left>,
    /// What the model can have and the checkpoint has not.
    pub missing: Vec<String>,
    /// What behaves otherwise here than there.
    pub notes: Vec<String>,
    /// How near the Linformer's attention comes, by layer.
    pub fit: Vec<Fit>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    pub theirs: String,
    pub ours: String,
    pub shape: Vec<i64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Left {
    pub name: String,
    pub shape: Vec<i64>,
    pub why: &'static str,
}

/// Reads a checkpoint. `progress` is told what takes long.
pub fn import(request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Imported, ExchangeError> {
    let source = Source::open(&request.source)?;
    let (Description { model, head, .. }, loaded, mut report) = catch(|| match request.from {
        From::HuggingFace => {
            let description = hugging_face::describe(&request.source, &source)?;
            let (loaded, report) = take(&source, &description)?;
            Ok((description, loaded, report))
        }
        From::Fairseq => fairseq::take(&source, request.num_attention_heads),
    })?;
    let (tokenizer, side_files) = find_tokenizer(request, &model)?;
    if model.type_vocab_size > 1 {
        let second = if segments(&model, &tokenizer).is_some() {
            "the second text of a pair has type 1"
        } else {
            "every token has type 0, as this tokenizer gives no other"
        };
        report.notes.push(format!("token types: all {} rows are kept; {second}", model.type_vocab_size));
    }
    let (model, parameters) = match &request.linformer {
        None => (model, loaded.parameters),
        Some(wanted) => {
            let turned = catch(|| project::turn(&model, &head, &loaded, wanted, &tokenizer, progress))?;
            report.notes.push(turned.note);
            report.fit = turned.fit;
            (turned.model, turned.parameters)
        }
    };
    Ok(Imported { model, head, parameters, tokenizer, report, side_files, longest: longest(&request.source) })
}

/// An encoder and all weights of its model.
pub struct Loaded {
    pub encoder: Encoder,
    pub parameters: Parameters,
}

impl Loaded {
    /// Makes the weights of a model and its head as `parameters` makes them.
    pub fn build(model: &Model, head: &Head, mut parameters: Parameters) -> Self {
        let encoder = Encoder::new(&mut parameters, model);
        match head {
            Head::None => {}
            Head::MaskedLm => drop(MaskedLmHead::new(&mut parameters, model, encoder.word_embeddings())),
            Head::Classification { .. } | Head::Regression => drop(ClassificationHead::new(&mut parameters, model, head.outputs())),
        }
        Self { encoder, parameters }
    }
}

/// Fills a model's weights from a checkpoint under the family's names.
fn take(source: &Source, description: &Description) -> Result<(Loaded, Report), ExchangeError> {
    let Description { family, model, head, .. } = description;
    let loaded = Loaded::build(model, head, Parameters::uninitialised(Device::Cpu));
    let parameters = &loaded.parameters;
    let pairs = pair(source, *family, parameters)?;
    let mut report = Report { source: source.path.clone(), ..Report::default() };
    let _guard = tch::no_grad_guard();
    for (parameter, name) in parameters.iter().zip(&pairs) {
        let shape = source.shape(name).unwrap_or_default().to_vec();
        let first =
            if parameter.name == POSITIONS { description.model.pad_token_id + 1 - family.first_position(model.pad_token_id) } else { 0 };
        let mut expected = parameter.tensor.size();
        expected[0] -= first;
        if shape != expected {
            let message = format!("{name} has shape {shape:?}, expected {expected:?} by config.json");
            return Err(ExchangeError::invalid(&source.path, message));
        }
        let mut target = parameter.tensor.detach();
        let value = source.tensor(name)?;
        if first > 0 {
            let _ = target.zero_();
        }
        target.narrow(0, first, expected[0]).copy_(&value);
        report.taken.push(Taken { theirs: name.clone(), ours: parameter.name.clone(), shape });
    }
    verify_ties(source, *family, parameters, head)?;
    leave_the_rest(source, *family, &mut report);
    describe(description, &mut report);
    Ok((loaded, report))
}

/// The name in the file of each parameter, in their order; those that have none are named together.
fn pair(source: &Source, family: Family, parameters: &Parameters) -> Result<Vec<String>, ExchangeError> {
    let found: Vec<(String, Option<String>)> = parameters
        .iter()
        .map(|p| {
            let candidates = family.candidates(&p.name);
            let found = candidates.iter().find(|name| source.has(name)).cloned();
            (candidates.into_iter().next().unwrap_or_default(), found)
        })
        .collect();
    let absent: Vec<&str> = found.iter().filter(|(_, found)| found.is_none()).map(|(name, _)| name.as_str()).collect();
    match absent.as_slice() {
        [] => Ok(found.into_iter().filter_map(|(_, name)| name).collect()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more tensors", rest.len()) };
            let message = format!(
                "{first}{more} missing; the checkpoint has {} tensors: is config.json that of these weights?",
                source.names().count()
            );
            Err(ExchangeError::invalid(&source.path, message))
        }
    }
}

/// A second copy of a tied weight has to be a copy.
fn verify_ties(source: &Source, family: Family, parameters: &Parameters, head: &Head) -> Result<(), ExchangeError> {
    if *head != Head::MaskedLm {
        return Ok(());
    }
    for (name, ours) in family.tied() {
        let (true, Some(parameter)) = (source.has(name), parameters.get(ours)) else { continue };
        if !source.tensor(name)?.equal(&parameter.tensor) {
            let message = format!(
                "{name} is not equal to {}: its output matrix is not tied to its word embeddings, ours always is",
                family.theirs(ours)
            );
            return Err(ExchangeError::invalid(&source.path, message));
        }
    }
    Ok(())
}

/// Every tensor that has no place here, with the reason.
fn leave_the_rest(source: &Source, family: Family, report: &mut Report) {
    let taken: BTreeSet<&str> = report.taken.iter().map(|t| t.theirs.as_str()).collect();
    let tied = family.tied().map(|(name, _)| name);
    let why = |name: &str| match name {
        _ if tied.contains(&name) => "a copy of a tied weight",
        _ if name.ends_with("position_ids") || name.ends_with("token_type_ids") => "a constant",
        _ if name.contains("pooler.") => "the pooler: a classification head has one of its own",
        _ if name.starts_with("cls.seq_relationship.") => "next-sentence prediction has no place here",
        _ if name.starts_with("lm_head.") || name.starts_with("cls.") || name.starts_with("classifier.") => {
            "a head that the architecture in config.json does not have"
        }
        _ => "no place here",
    };
    let rest = source.names().filter(|name| !taken.contains(name));
    report.left =
        rest.map(|name| Left { name: name.into(), shape: source.shape(name).unwrap_or_default().to_vec(), why: why(name) }).collect();
}

fn describe(description: &Description, report: &mut Report) {
    let Description { family, architecture, model, head } = description;
    let attention = match model.attention.kind {
        AttentionKind::Full => "full attention".to_string(),
        AttentionKind::Linformer => format!("Linformer k = {}", model.attention.k.summary()),
    };
    report.description = format!(
        "{architecture}: {} layers, {} heads, d = {}, n = {}, vocabulary {}, {attention}; {}",
        model.num_hidden_layers,
        model.num_attention_heads,
        model.hidden_size,
        model.sequence_length(),
        model.vocabulary(),
        head.describe()
    );
    if *head != Head::MaskedLm {
        report.missing.push("a masked-LM head: pretraining from it starts one at random".into());
    }
    if head.outputs() == 0 {
        report.missing.push("a classification head: fine-tuning starts one at random, as it always does".into());
    }
    if *family == Family::Bert {
        let first = model.pad_token_id + 1;
        report.notes.push(format!(
            "positions: BERT counts from 0, this encoder from pad_token_id + 1 = {first}: its rows are moved down by as many"
        ));
    }
}

type SideFiles = Vec<(String, Vec<u8>)>;

/// The tokenizer, which has to fit the embeddings, and the files to keep beside it.
fn find_tokenizer(request: &Request, model: &Model) -> Result<(Tokenizer, SideFiles), ExchangeError> {
    let beside = if request.source.is_dir() { request.source.as_path() } else { request.source.parent().unwrap_or(Path::new(".")) };
    let path = request.tokenizer.as_deref().unwrap_or(beside);
    let has = |name: &str| path.join(name).exists();
    if path.is_dir() && !["tokenizer.json", "vocab.json", "vocab.txt"].iter().any(|name| has(name)) {
        return Err(ExchangeError::invalid(path, "no tokenizer.json, vocab.json or vocab.txt; give the tokenizer with --tokenizer PATH"));
    }
    let tokenizer = Tokenizer::load(path)?;
    let wrong = |message: String| Err(ExchangeError::invalid(path, message));
    if tokenizer.vocab_size() as i64 > model.vocabulary() {
        return wrong(format!("its largest id needs {} rows, but the word embeddings have {}", tokenizer.vocab_size(), model.vocabulary()));
    }
    if i64::from(tokenizer.special.pad) != model.pad_token_id {
        return wrong(format!(
            "its padding token has id {}, but the model's pad_token_id is {}",
            tokenizer.special.pad, model.pad_token_id
        ));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let read = |name: &&str| Some((name.to_string(), std::fs::read(folder.join(name)).ok()?));
    Ok((tokenizer, ["special_tokens_map.json", "tokenizer_config.json"].iter().filter_map(read).collect()))
}

/// What a model is called: by its folder.
pub fn name_of(folder: &Path) -> String {
    folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "model".into())
}

/// The run that the Hugging Face checkpoint in `folder` would be before its first step; no weight is read.
pub fn described(folder: &Path) -> Result<Config, ExchangeError> {
    let Description { model, head, .. } = hugging_face::describe(folder, &Source::open(folder)?)?;
    Ok(config(&model, &head, &name_of(folder), longest(folder)))
}

/// To how many tokens the tokenizer beside the weights cuts texts, if it says so.
fn longest(folder: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(folder.join("tokenizer_config.json")).ok()?;
    let length = serde_json::from_str::<Value>(&text).ok()?["model_max_length"].as_f64()?;
    // Without a limit transformers writes 1e30.
    (4.0..1e9).contains(&length).then_some(length as i64)
}

fn config(model: &Model, head: &Head, name: &str, longest: Option<i64>) -> Config {
    let mut config = Config { model: model.clone(), ..Config::default() };
    config.data.sequence_length = model.sequence_length();
    let none = || OneOrMany::Many(Vec::new());
    match head {
        Head::None | Head::MaskedLm => config.data.corpus = Some(none()),
        head => {
            config.data.sequence_length = model.sequence_length().min(longest.unwrap_or(i64::MAX));
            let (kind, labels) = match head {
                Head::Classification { labels } => (TaskKind::Classification, labels.clone()),
                _ => (TaskKind::Regression, Vec::new()),
            };
            config.data.task = Some(TaskChoice::Own(Box::new(OwnTask {
                name: name.into(),
                train: none(),
                dev: none(),
                test: None,
                text: "text".into(),
                text_pair: None,
                label: "label".into(),
                kind,
                labels,
                metric: String::new(),
                more_metrics: Vec::new(),
                header: true,
                html_breaks: false,
            })));
        }
    }
    config
}

impl Imported {
    /// The run that this model would be before its first step.
    pub fn config(&self, name: &str) -> Config {
        config(&self.model, &self.head, name, self.longest)
    }

    /// Writes the model folder: whole, or not at all. `out` must not exist.
    pub fn write(&self, out: &Path) -> Result<(), ExchangeError> {
        let name = name_of(out);
        whole_folder(out, |aside| {
            let weights: Vec<(String, Tensor)> =
                self.parameters.iter().map(|p| (p.name.clone(), p.tensor.detach().to_device(Device::Cpu).contiguous())).collect();
            save_weights(&aside.join("checkpoints"), weights)?;
            for (name, bytes) in &self.side_files {
                write_file(&aside.join(name), bytes)?;
            }
            write_file(&aside.join("tokenizer.json"), self.tokenizer.to_json()?.as_bytes())?;
            write_json(&aside.join("import.json"), &json!(self.report))?;
            write_json(&aside.join("config.json"), &json!(self.config(&name)))
        })
    }
}

/// An error if `out` is there already: known before anything long is done.
pub fn must_be_new(out: &Path) -> Result<(), ExchangeError> {
    match out.exists() {
        true => Err(ExchangeError::Exists { path: out.into() }),
        false => Ok(()),
    }
}

/// Fills a new folder beside `out` and renames it; what was begun is removed when it fails.
pub fn whole_folder(out: &Path, fill: impl FnOnce(&Path) -> Result<(), ExchangeError>) -> Result<(), ExchangeError> {
    must_be_new(out)?;
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".partial-{}", std::process::id()));
    let aside = out.with_file_name(name);
    std::fs::create_dir_all(&aside).map_err(ExchangeError::io(&aside))?;
    let made = fill(&aside).and_then(|()| durable::publish(&aside, out).map_err(ExchangeError::io(out)));
    made.inspect_err(|_| drop(std::fs::remove_dir_all(&aside)))
}

pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ExchangeError> {
    durable::replace(path, bytes).map_err(ExchangeError::io(path))
}

pub fn write_json(path: &Path, value: &Value) -> Result<(), ExchangeError> {
    write_file(path, (serde_json::to_string_pretty(value).unwrap_or_default() + "\n").as_bytes())
}

impl Report {
    /// What was taken, left and missing, in lines.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let weights: i64 = self.taken.iter().map(|t| t.shape.iter().product::<i64>()).sum();
        let _ = writeln!(out, "source   {}", self.description);
        let _ = writeln!(out, "taken    {} tensors, {weights} weights, as fp32", self.taken.len());
        for left in &self.left {
            let _ = writeln!(out, "left     {} {:?}: {}", left.name, left.shape, left.why);
        }
        let fit: Vec<String> = self.fit.iter().map(ToString::to_string).collect();
        for (word, lines) in [("missing", &self.missing), ("note   ", &self.notes), ("fit    ", &fit)] {
            for line in lines {
                let _ = writeln!(out, "{word}  {line}");
            }
        }
        out
    }
}
