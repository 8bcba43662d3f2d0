//! Texts to vectors: the encoder's last hidden states, averaged or of the first token, in a safetensors or npy file.

use super::parent::Parent;
use super::setup::device;
use super::texts::Texts;
use crate::config::load::usage;
use crate::config::{Config, Origins};
use crate::data::batch::{batches_by_length, TaskBatch};
use crate::data::tasks::layout::{segments, Layout};
use crate::data::tasks::prepared::{sequences, Settings};
use crate::data::tasks::Example;
use crate::data::tokenizer::Tokenizer;
use crate::distributed::World;
use crate::durable::publish;
use crate::model::weights::Select;
use crate::model::{Encoder, Input, Parameters, Pass};
use crate::train::trainer::kind_of;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What of a text's hidden states `[L, d]` becomes its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooling {
    /// The mean over all its tokens, first and last token included, padding not
    Mean,
    /// The first token's
    First,
}

/// An encoder with its tokenizer.
pub struct Embedder {
    encoder: Encoder,
    tokenizer: Tokenizer,
    layout: Layout,
    pooling: Pooling,
    width: i64,
    kind: Kind,
    device: Device,
}

impl Embedder {
    /// Opens any run or one of its checkpoints; `config` is the run's.
    pub fn open(model: &Path, mut config: Config, origins: &Origins, pooling: Pooling) -> Result<Self> {
        let parent = Parent::open(model)?;
        let device = device(&config, origins, &World::default())?;
        let mut parameters = Parameters::uninitialised(device);
        let encoder = Encoder::new(&mut parameters, &parent.model);
        parent.load(&parameters, Select::Encoder)?;
        let tokenizer = Tokenizer::load(&parent.tokenizer)?;
        config.data.sequence_length = parent.model.sequence_length();
        config.model = parent.model.clone();
        let layout = Settings::new(&config, &tokenizer).layout;
        let encoder = encoder.with_segments(segments(&config.model, &tokenizer));
        Ok(Self { encoder, tokenizer, layout, pooling, width: parent.model.hidden_size, kind: kind_of(config.train.precision), device })
    }

    /// Writes the vectors of all texts, in their order; gives how many there were. `out` is whole or absent.
    pub fn embed(&self, texts: &Texts, out: &Path) -> Result<u64> {
        let mut file = VectorFile::create(out, self.width, self.pooling)?;
        texts.chunks(|rows| {
            let sequences = sequences(&rows, &self.tokenizer, self.layout)?.into_iter().map(|(ids, _)| ids).collect();
            file.write(&self.vectors(sequences)?)
        })?;
        file.finish()
    }

    /// One row of `width` numbers a sequence, in their order.
    fn vectors(&self, sequences: Vec<Vec<u32>>) -> Result<Vec<f32>> {
        let _guard = tch::no_grad_guard();
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let width = self.width as usize;
        let mut all = vec![0.0; sequences.len() * width];
        for rows in batches_by_length(&lengths) {
            let examples = rows.iter().map(|row| Example { id: *row, ids: sequences[*row].clone(), label: 0.0 }).collect();
            let pooled = self.pooled(examples)?;
            for (row, vector) in rows.iter().zip(pooled.chunks(width)) {
                all[row * width..(row + 1) * width].copy_from_slice(vector);
            }
        }
        Ok(all)
    }

    fn pooled(&self, examples: Vec<Example>) -> Result<Vec<f32>> {
        let count = examples.len();
        let tensors = TaskBatch::new(examples, self.tokenizer.special.pad).tensors(0..count, true, self.device);
        let mask = tensors.attention_mask.shallow_clone();
        let hidden = self
            .encoder
            .forward(&Input { ids: tensors.ids, attention_mask: Some(tensors.attention_mask) }, &Pass::evaluation(self.kind))?;
        let hidden = hidden.to_kind(Kind::Float);
        let pooled = match self.pooling {
            Pooling::First => hidden.select(1, 0),
            Pooling::Mean => {
                let real = mask.to_kind(Kind::Float).unsqueeze(-1);
                (hidden * &real).sum_dim_intlist(1, false, Kind::Float) / real.sum_dim_intlist(1, false, Kind::Float)
            }
        };
        Ok(Vec::try_from(pooled.to_device(Device::Cpu).contiguous().view(-1))?)
    }
}

/// A matrix `[N, width]` of fp32 whose N is known only at its end.
struct VectorFile {
    out: BufWriter<File>,
    path: PathBuf,
    aside: PathBuf,
    is_npy: bool,
    width: i64,
    pooling: Pooling,
    rows: u64,
}

/// Bytes of either form's header: room for every N, and a multiple of 64 as npy wants it.
const HEADER: usize = 256;

impl VectorFile {
    fn create(path: &Path, width: i64, pooling: Pooling) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if !["npy", "safetensors"].contains(&ending) {
            return Err(usage(format!("--out {}: expected a name that ends in .safetensors or .npy", path.display())).into());
        }
        // A file of the user's may be called .tmp, another process may write beside this one.
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let aside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&aside).with_context(|| aside.display().to_string())?;
        let mut file = Self { out: BufWriter::new(file), path: path.into(), aside, is_npy: ending == "npy", width, pooling, rows: 0 };
        file.out.write_all(&[0; HEADER])?;
        Ok(file)
    }

    fn write(&mut self, values: &[f32]) -> Result<()> {
        self.rows += values.len() as u64 / self.width as u64;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.out.write_all(&bytes).with_context(|| self.aside.display().to_string())
    }

    fn finish(mut self) -> Result<u64> {
        let header = if self.is_npy { self.npy() } else { self.safetensors() };
        let mut write = || {
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&header)?;
            self.out.flush()?;
            self.out.get_ref().sync_all()?;
            publish(&self.aside, &self.path)
        };
        write().with_context(|| self.path.display().to_string())?;
        Ok(self.rows)
    }

    /// Format 1.0 of <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
    fn npy(&self) -> Vec<u8> {
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", self.rows, self.width);
        let magic = b"\x93NUMPY\x01\x00";
        let length = (HEADER - magic.len() - 2) as u16;
        let text = format!("{text:<width$}\n", width = length as usize - 1);
        [&magic[..], &length.to_le_bytes(), text.as_bytes()].concat()
    }

    /// One tensor, `embeddings`.
    fn safetensors(&self) -> Vec<u8> {
        let pooling = if self.pooling == Pooling::Mean { "mean" } else { "first" };
        let end = self.rows * self.width as u64 * 4;
        let text = json!({"__metadata__": {"format": "pt", "pooling": pooling},
            "embeddings": {"dtype": "F32", "shape": [self.rows, self.width], "data_offsets": [0, end]}})
        .to_string();
        let length = HEADER - 8;
        [&(length as u64).to_le_bytes()[..], format!("{text:<length$}").as_bytes()].concat()
    }
}

impl Drop for VectorFile {
    /// What was broken off leaves nothing behind; after [`publish`] there is nothing of this name.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.aside);
    }
}
