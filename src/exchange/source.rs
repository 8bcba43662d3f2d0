//! The tensors of a checkpoint: one safetensors file, or shards and their index.

use super::ExchangeError;
use crate::model::weights::WeightsFile;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Weights in forms that run code when they are opened, or that need another library.
const OTHER_FORMS: [&str; 5] = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "tf_model.h5", "flax_model.msgpack"];

/// Every tensor by name, in files that are mapped and not yet read.
pub struct Source {
    /// What was given: for messages.
    pub path: PathBuf,
    files: Vec<WeightsFile>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    shape: Vec<i64>,
}

impl Source {
    /// Whether a folder holds such files.
    pub fn is_in(folder: &Path) -> bool {
        [SINGLE, INDEX].iter().any(|name| folder.join(name).exists())
    }

    /// Its files, in the order of their names' first use.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(WeightsFile::path)
    }

    /// A folder with `model.safetensors` or `model.safetensors.index.json` and its shards, or a file that ends in `.safetensors`.
    pub fn open(path: &Path) -> Result<Self, ExchangeError> {
        if path.is_file() {
            return Self::single(path, path);
        }
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if single.exists() {
            return Self::single(path, &single);
        }
        if index.exists() {
            return Self::sharded(path, &index);
        }
        let found = OTHER_FORMS.iter().find(|name| path.join(name).exists());
        let message = match (path.is_dir(), found) {
            (false, _) => "no such folder; expected a checkpoint's folder or a .safetensors file".to_string(),
            (true, Some(name)) => format!("found {name}, expected {SINGLE}: convert it first (in Python: from_pretrained(...).save_pretrained(FOLDER, safe_serialization=True))"),
            (true, None) => format!("found neither {SINGLE} nor {INDEX}"),
        };
        Err(ExchangeError::invalid(path, message))
    }

    fn single(path: &Path, file: &Path) -> Result<Self, ExchangeError> {
        let file = WeightsFile::open(file)?;
        let tensors = file.shapes()?.into_iter().map(|(name, shape)| (name, Entry { file: 0, shape })).collect();
        Ok(Self { path: path.into(), files: vec![file], tensors })
    }

    fn sharded(folder: &Path, index: &Path) -> Result<Self, ExchangeError> {
        let bad = |message: String| ExchangeError::invalid(index, message);
        let json: Value = serde_json::from_value(Value::Object(read_json(index)?)).unwrap_or_default();
        let map = json["weight_map"].as_object().ok_or_else(|| bad("no weight_map, expected {\"weight_map\": {NAME: SHARD}}".into()))?;
        let (mut names, mut files, mut shapes) = (Vec::<String>::new(), Vec::new(), Vec::new());
        let mut tensors = BTreeMap::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().filter(|s| !s.contains(['/', '\\']) && *s != ".." && s.ends_with(".safetensors"));
            let shard = shard.ok_or_else(|| {
                bad(format!("weight_map: {tensor}: found {}, expected the name of a shard beside the index", map[tensor]))
            })?;
            let file = match names.iter().position(|n| n == shard) {
                Some(file) => file,
                None => {
                    let path = folder.join(shard);
                    if !path.exists() {
                        let wanted = map.values().filter(|s| *s == shard).count();
                        return Err(bad(format!(
                            "shard {shard} is missing, which holds {wanted} tensors, {tensor} among them; fetch it again"
                        )));
                    }
                    let opened = WeightsFile::open(&path)?;
                    shapes.push(opened.shapes()?);
                    files.push(opened);
                    names.push(shard.into());
                    files.len() - 1
                }
            };
            let shape = shapes[file].get(tensor).ok_or_else(|| bad(format!("says that {tensor} is in {shard}, which does not have it")))?;
            tensors.insert(tensor.clone(), Entry { file, shape: shape.clone() });
        }
        Ok(Self { path: folder.into(), files, tensors })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// One tensor (fp32, fp16 or bf16 in the file) as fp32; every value is finite.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ExchangeError> {
        let missing = || ExchangeError::invalid(&self.path, format!("{name} is missing; it has {} tensors", self.tensors.len()));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let tensor = self.files[entry.file].tensor_as_fp32(name)?;
        match is_finite(&tensor) {
            true => Ok(tensor),
            false => {
                Err(ExchangeError::invalid(&self.path, format!("{name} holds values that are not finite: the checkpoint is of no use")))
            }
        }
    }
}

/// Whether no value is infinite or not a number.
pub fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// A JSON object from a file.
pub fn read_json(path: &Path) -> Result<Map<String, Value>, ExchangeError> {
    let text = std::fs::read_to_string(path).map_err(ExchangeError::io(path))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| ExchangeError::invalid(path, format!("not valid JSON: {e}")))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(ExchangeError::invalid(path, "found no JSON object {...}")),
    }
}
