//! Time and memory of a forward pass, or of one with its backward pass, against the sequence length (paper, Table 3 and Figure 2).
//!
//! Time at a fixed number of tokens, as the paper's figure has it: n grows, the batch shrinks. Memory of one sequence, and
//! from it the largest batch in a budget, which is the paper's "memory saved". Against attention with its scores stored, as
//! in the paper, against libtorch's fused attention that never stores them, which the paper did not have, and against the
//! layer's matrix products alone ([`super::floor`]). Beside our Linformer stands one that stores its scores: the paper's own
//! comparison is that with full attention that stores them too.
//!
//! Rows that the results' file has already, by the same program under the same settings, are not measured again: a long
//! table can be made in pieces, `n=[512,1024]` first, and goes on where it was broken off.

mod table;

use super::disturbance::{undisturbed, Measured};
use super::floor;
use super::setup::only_gpu;
use super::Finished;
use crate::config::json_schema::with_extra;
use crate::config::load::Raw;
use crate::config::validate::parse_device;
use crate::config::{AttentionBackend, AttentionKind, KSpec, Model, Precision, Sharing};
use crate::durable::replace;
use crate::eval::median;
use crate::log::plot::Chart;
use crate::model::{memory, Encoder, Input, Parameters, Pass};
use crate::native::runtime;
use crate::table::align;
use crate::train::run::{environment, environment_at_end};
use crate::train::trainer::kind_of;
use anyhow::{anyhow, bail, Context, Result};
use schemars::{schema_for, JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use table::{extrapolated, table, NOTE};
use tch::{Device, Kind, Tensor};

pub use table::{is_training, pass, time_by_n};

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Efficiency {
    /// The encoder; `attention.k` and `max_position_embeddings` come from below.
    pub model: Model,
    pub n: Vec<i64>,
    pub k: Vec<i64>,
    /// Whether each k is measured with its scores stored as well.
    pub stored: bool,
    /// Tokens of a timed pass; the batch is that over n, at least 1. Fewer where stored scores need more than `largest_gib`.
    pub tokens: i64,
    pub precision: Precision,
    /// `cpu`, `cuda` or `cuda:1`.
    pub device: String,
    pub pass: Timed,
    /// Timed passes of each cell, in turns with the others of the same n.
    pub rounds: usize,
    /// For the largest batch.
    pub memory_gib: f64,
    /// Cells of stored scores are left out where one sequence needs more than this.
    pub largest_gib: f64,
    /// Whether memory is measured, in a process a cell; what is missing is measured by a later call.
    pub measure_memory: bool,
    /// libtorch's threads; 0: its own choice.
    pub threads: i64,
    /// How long it takes, and where: for a reader.
    pub minutes: Option<f64>,
    pub machine: String,
    pub out: PathBuf,
}

impl Default for Efficiency {
    fn default() -> Self {
        let mut model = Model {
            num_hidden_layers: 1,
            vocab_size: Some(1000),
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            ..Model::default()
        };
        // As in the paper's table.
        model.attention.sharing = Sharing::Layerwise;
        Self {
            model,
            n: vec![512, 1024, 2048, 4096, 8192, 16384],
            k: vec![128, 256],
            stored: true,
            tokens: 16384,
            precision: Precision::Fp32,
            device: "cpu".into(),
            pass: Timed::Forward,
            rounds: 5,
            memory_gib: 16.0,
            largest_gib: 8.0,
            measure_memory: true,
            threads: 0,
            minutes: None,
            machine: String::new(),
            out: "runs/efficiency".into(),
        }
    }
}

/// What a timed pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Timed {
    /// Inference, as in the paper's table.
    Forward,
    /// Training without the optimizer: activations are kept, and gradients are made.
    ForwardBackward,
}

/// Seconds from which a pass needs none before it to warm up: starting is no part of it.
const LONG: f64 = 10.0;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// Full attention, its scores stored.
    Materialised,
    /// Full attention, its scores never stored: libtorch's kernel.
    Fused,
    Linformer(i64),
    /// A Linformer with its scores stored.
    Stored(i64),
}

impl Variant {
    /// Keys whose scores a query has stored, of n; None: it stores none.
    fn keys(self, n: i64) -> Option<i64> {
        match self {
            Self::Materialised => Some(n),
            Self::Stored(k) => Some(k),
            Self::Fused | Self::Linformer(_) => None,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Materialised => "materialised".into(),
            Self::Fused => "fused".into(),
            Self::Linformer(k) => format!("k={k}"),
            Self::Stored(k) => format!("k={k} stored"),
        }
    }
}

/// One cell of the table.
#[derive(Clone, Debug)]
struct Cell {
    n: i64,
    variant: Variant,
    /// Of a pass over `tokens` tokens, each round's.
    seconds: Vec<f64>,
    /// How many of them other processes slowed down however often they were made again.
    disturbed: usize,
    tokens: i64,
    /// Beyond the weights and what the program keeps for itself, for one sequence; None: not measured.
    bytes: Option<f64>,
    computed_bytes: f64,
    /// Of the matrix products of a pass alone, each round's; Linformers only.
    floor_seconds: Vec<f64>,
}

impl Cell {
    fn microseconds_per_token(&self) -> Option<f64> {
        median(&self.seconds).map(|s| s * 1e6 / self.tokens as f64)
    }

    /// Time over that of the products alone.
    fn over_floor(&self) -> Option<f64> {
        Some(median(&self.seconds)? / median(&self.floor_seconds)?)
    }
}

/// The keys of the file, for editors.
pub fn schema() -> Value {
    with_extra(schema_for!(Efficiency).to_value(), "linformer: time and memory", &[])
}

/// Ids below it are padding, a mask and the like.
const FIRST_WORD: i64 = 5;

impl Efficiency {
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let Value::Object(schema) = serde_json::to_value(Self::default())? else { bail!("the defaults are no object") };
        let mut raw = Raw { value: schema.clone(), ..Raw::default() };
        raw.merge(Raw::read(path)?.value, &path.display().to_string());
        overrides.iter().try_for_each(|text| raw.apply(text))?;
        let mut file: Self = raw.parse(&schema)?;
        file.precision = file.precision.resolved(&file.device);
        if parse_device(&file.device).is_none() {
            bail!("{}: device: found \"{}\", expected cpu, cuda or cuda:N", path.display(), file.device);
        }
        if file.n.is_empty() || file.n.iter().chain(&file.k).any(|x| *x < 1) || file.rounds == 0 || file.tokens < 1 {
            bail!("{}: n, k, tokens and rounds: expected numbers of at least 1", path.display());
        }
        if file.model.vocabulary() <= FIRST_WORD {
            let message = format!("found {}, expected more than the {FIRST_WORD} that are no words", file.model.vocabulary());
            return Err(raw.origins.error("model.vocab_size", message).into());
        }
        for n in &file.n {
            file.variants(*n).into_iter().try_for_each(|variant| file.model(*n, variant).validate(&raw.origins, *n))?;
        }
        Ok(file)
    }

    fn on(&self) -> Device {
        parse_device(&self.device).unwrap_or(Device::Cpu)
    }

    /// Makes the device ready for use.
    fn prepare_device(&self) -> Result<()> {
        runtime::use_threads(self.threads);
        if let Device::Cuda(index) = self.on() {
            let (visible, reason) = runtime::visible_gpus();
            only_gpu("device", &self.device, index, visible, reason).map_err(|message| anyhow!("device: {message}"))?;
        }
        Ok(())
    }

    fn variants(&self, n: i64) -> Vec<Variant> {
        let linformers = self.k.iter().filter(|k| **k < n).flat_map(|k| {
            let stored = self.stored.then_some(Variant::Stored(*k));
            [Variant::Linformer(*k)].into_iter().chain(stored)
        });
        [Variant::Materialised, Variant::Fused].into_iter().chain(linformers).collect()
    }

    fn model(&self, n: i64, variant: Variant) -> Model {
        let mut model = self.model.clone();
        model.max_position_embeddings = Some(n + model.pad_token_id + 1);
        let attention = &mut model.attention;
        match variant {
            Variant::Linformer(k) => {
                attention.kind = AttentionKind::Linformer;
                attention.k = KSpec::One(k);
            }
            Variant::Stored(k) => {
                attention.kind = AttentionKind::Linformer;
                attention.k = KSpec::One(k);
                attention.backend = AttentionBackend::Materialised;
            }
            Variant::Fused => {
                attention.kind = AttentionKind::Full;
                attention.backend = AttentionBackend::Libtorch;
            }
            Variant::Materialised => {
                attention.kind = AttentionKind::Full;
                attention.backend = AttentionBackend::Materialised;
            }
        }
        model
    }

    /// What one sequence needs beyond the weights: the widest moment of a layer.
    fn computed_bytes(&self, n: i64, variant: Variant) -> f64 {
        if self.pass == Timed::ForwardBackward {
            let (model, h) = (self.model(n, variant), self.model.num_attention_heads as f64);
            // The softmax of each layer is kept; in the backward pass its gradient and that of the scores stand beside it.
            let scores = variant.keys(n).map_or(0.0, |keys| h * (n * keys) as f64);
            return memory::of_encoder(&model, self.precision, n) + 4.0 * (model.num_hidden_layers as f64 + 2.0) * scores;
        }
        memory::of_inference(&self.model(n, variant), self.precision, n)
    }

    /// Times a pass over so many sequences of so many tokens, at most n, through a model made for n.
    fn passes(&self, n: i64, variant: Variant) -> impl Fn(i64, i64) -> Result<f64> {
        let config = self.model(n, variant);
        let device = self.on();
        let mut parameters = Parameters::new(0, device);
        let encoder = Encoder::new(&mut parameters, &config);
        let vocabulary = config.vocabulary();
        let (kind, timed) = (kind_of(self.precision), self.pass);
        move |batch, length| {
            let numbers = Tensor::arange(batch * length, (Kind::Int64, device)) * 7919;
            let ids = numbers.remainder(vocabulary - FIRST_WORD).view([batch, length]) + FIRST_WORD;
            runtime::wait_for(device)?;
            let started = Instant::now();
            let input = Input { ids, attention_mask: None };
            let hidden = match timed {
                Timed::Forward => {
                    let _guard = tch::no_grad_guard();
                    encoder.forward(&input, &Pass::evaluation(kind))?
                }
                Timed::ForwardBackward => {
                    let hidden = encoder.forward(&input, &Pass::training(kind, 0, 0, 0))?;
                    hidden.sum(Kind::Float).f_backward()?;
                    hidden.detach()
                }
            };
            runtime::wait_for(device)?;
            let seconds = started.elapsed().as_secs_f64();
            if !hidden.sum(Kind::Float).double_value(&[]).is_finite() {
                bail!("the hidden states are not finite");
            }
            Ok(seconds)
        }
    }

    /// Sequences of a timed pass; 0: not even one has its scores stored within `largest_gib`.
    fn batch(&self, n: i64, variant: Variant) -> i64 {
        let wanted = (self.tokens / n).max(1);
        let largest = (self.largest_gib * 1073741824.0 / self.computed_bytes(n, variant)) as i64;
        match variant.keys(n) {
            Some(_) => wanted.min(largest),
            None => wanted,
        }
    }

    /// All variants of one n, in turns; the first pass of each is not counted, unless it is so long that starting up is no
    /// part of it.
    fn measure(&self, n: i64) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        let mut passes = Vec::new();
        for variant in self.variants(n) {
            let computed_bytes = self.computed_bytes(n, variant);
            let batch = self.batch(n, variant);
            cells.push(Cell {
                n,
                variant,
                seconds: Vec::new(),
                disturbed: 0,
                tokens: batch * n,
                bytes: None,
                computed_bytes,
                floor_seconds: Vec::new(),
            });
            passes.push((batch > 0).then(|| self.passes(n, variant)));
        }
        for round in 0..=self.rounds {
            for (cell, pass) in cells.iter_mut().zip(&passes) {
                let Some(pass) = pass else { continue };
                if cell.seconds.len() >= self.rounds {
                    continue;
                }
                let Measured { value: seconds, is_disturbed } = undisturbed(|| pass(cell.tokens / n, n))?;
                if round == 0 && seconds <= LONG {
                    continue;
                }
                cell.seconds.push(seconds);
                cell.disturbed += usize::from(is_disturbed);
                // The blocks of rows are those of a CPU.
                if let (Variant::Linformer(k), Timed::Forward, Device::Cpu) = (cell.variant, self.pass, self.on()) {
                    let products = || Ok(floor::pass(&self.model, kind_of(self.precision), n, cell.tokens / n, k));
                    cell.floor_seconds.push(undisturbed(products)?.value);
                }
            }
        }
        Ok(cells)
    }

    /// The cells of one n that an earlier call has measured.
    fn measured(&self, n: i64, record: &Value) -> Option<Vec<Cell>> {
        let without_n = |e: &Value| {
            let mut e = e.clone();
            e.as_object_mut().map(|o| ["n", "out", "measure_memory", "minutes", "machine"].map(|key| o.shift_remove(key)));
            e
        };
        // Times of another processor or program do not belong beside this one's.
        let here = environment(&self.device, 0.0);
        let is_here = ["cpu", "gpus", "program_sha256"].iter().all(|key| record["environment"][*key] == here[*key]);
        if !is_here || without_n(&record["efficiency"]) != without_n(&serde_json::to_value(self).ok()?) {
            return None;
        }
        let numbers = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let cell = |variant: Variant| {
            let found = record["cells"].as_array()?.iter().find(|c| c["n"] == n && c["attention"] == variant.name())?;
            Some(Cell {
                n,
                variant,
                seconds: numbers(&found["seconds"]),
                disturbed: found["disturbed_passes"].as_u64().unwrap_or(0) as usize,
                tokens: found["tokens"].as_i64()?,
                bytes: found["bytes"].as_f64(),
                computed_bytes: self.computed_bytes(n, variant),
                floor_seconds: numbers(&found["floor_seconds"]),
            })
        };
        self.variants(n).into_iter().map(cell).collect()
    }

    /// Peak memory of a pass over one sequence beyond what was there before, in this process (which must be fresh).
    pub fn measure_memory(&self, n: i64, variant: usize) -> Result<f64> {
        let Some(variant) = self.variants(n).get(variant).copied() else { bail!("no such cell") };
        self.prepare_device()?;
        let pass = self.passes(n, variant);
        // A pass like it first: the buffers that libtorch keeps for its products, and copies of the weights, are no sequence's.
        pass(1, n)?;
        let before = runtime::start_peak_of(self.on())?;
        pass(1, n)?;
        Ok(runtime::peak_of(self.on())?.saturating_sub(before) as f64)
    }

    /// In a process of its own for each cell: memory once used is kept for later.
    fn memory_of(&self, file: &Path, overrides: &[String], cell: &Cell, index: usize) -> Option<f64> {
        if cell.seconds.is_empty() {
            return None;
        }
        let output = Command::new(std::env::current_exe().ok()?)
            .arg("efficiency")
            .arg(file)
            .args(overrides)
            .args(["--cell".to_string(), format!("{},{index}", cell.n)])
            .output()
            .ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    }
}

/// Measures what is not measured yet, writes table, JSON and plots after each n, and gives the table as text.
pub fn run(efficiency: &Efficiency, file: &Path, overrides: &[String]) -> Result<(String, Finished)> {
    efficiency.prepare_device()?;
    let out = &efficiency.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let earlier = std::fs::read_to_string(out.join("efficiency.json")).ok().and_then(|text| serde_json::from_str(&text).ok());
    let earlier: Value = earlier.unwrap_or_default();
    let lengths: BTreeSet<i64> = earlier["cells"].as_array().into_iter().flatten().filter_map(|c| c["n"].as_i64()).collect();
    let (mut rows, mut foreign) = (BTreeMap::new(), BTreeSet::new());
    for n in lengths {
        match efficiency.measured(n, &earlier) {
            Some(row) => drop(rows.insert(n, row)),
            None => drop(foreign.insert(n)),
        }
    }
    foreign.retain(|n| !efficiency.n.contains(n));
    if !foreign.is_empty() {
        let message = "are of another program, processor or settings and are left out; give their n to measure them again";
        let _ = writeln!(std::io::stderr(), "{}: rows of n = {foreign:?} {message}", out.join("efficiency.json").display());
    }
    for n in &efficiency.n {
        let is_new = !rows.contains_key(n);
        let row = match rows.entry(*n) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => place.insert(efficiency.measure(*n)?),
        };
        // A cell's memory is measured in a process of its own, which may need what this one has kept.
        runtime::give_back_memory_of(efficiency.on())?;
        for (index, cell) in row.iter_mut().enumerate().filter(|(_, cell)| efficiency.measure_memory && cell.bytes.is_none()) {
            cell.bytes = efficiency.memory_of(file, overrides, cell, index);
        }
        if is_new {
            // A reader that went away is no reason to stop.
            let _ = writeln!(std::io::stderr(), "n = {n}: measured");
            write(efficiency, &rows)?;
        }
    }
    write(efficiency, &rows)
}

fn write(efficiency: &Efficiency, rows: &BTreeMap<i64, Vec<Cell>>) -> Result<(String, Finished)> {
    let all = Efficiency { n: rows.keys().copied().collect(), ..efficiency.clone() };
    let cells: Vec<&Cell> = rows.values().flatten().collect();
    let out = &efficiency.out;
    let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
    let text = align(table(&cells, efficiency.pass)) + NOTE;
    save("table.txt", &text)?;
    let json_of = |c: &&Cell| c.json(&all, extrapolated(&cells, c));
    let record = json!({"efficiency": all, "environment": environment_at_end(&efficiency.device), "cells": cells.iter().map(json_of).collect::<Vec<_>>()});
    save("efficiency.json", &(serde_json::to_string_pretty(&record)? + "\n"))?;
    time_by_n(&record).render(&out.join("time_by_n"))?;
    Ok((text, Finished::Done(record)))
}
