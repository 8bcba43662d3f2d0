//! Weights in safetensors files under Hugging Face's names, checked by name, shape and type before anything is copied.

use super::parameters::Parameters;
use crate::native::mapped::MappedFile;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Why a weights file was refused; nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not a safetensors file: {message}")]
    Format { path: PathBuf, message: String },
    #[error("{path}: {name} is missing; the file has {count} tensors")]
    Missing { path: PathBuf, name: String, count: usize },
    #[error("{path}: {name} is in the file but not in the model")]
    Unexpected { path: PathBuf, name: String },
    #[error("{path}: {name} has shape {found:?}, expected {expected:?}")]
    Shape { path: PathBuf, name: String, found: Vec<i64>, expected: Vec<i64> },
    #[error("{path}: {name} has type {found}, expected {expected}")]
    Type { path: PathBuf, name: String, found: String, expected: &'static str },
}

/// Which names of a file a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// All of the model's, and nothing else may be in the file.
    All,
    /// The encoder (`roberta.`); heads keep their start, and the file's other names are ignored.
    Encoder,
}

impl Select {
    fn takes(self, name: &str) -> bool {
        self == Self::All || name.starts_with("roberta.")
    }
}

/// Writes named CPU or device tensors.
pub fn save<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, &'a Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<(), WeightsError> {
    let owned: Vec<(String, Bytes)> = tensors.map(|(name, tensor)| (name, Bytes::of(tensor))).collect();
    safetensors::serialize_to_file(owned, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => WeightsError::Io { path: path.into(), source },
        other => WeightsError::Format { path: path.into(), message: other.to_string() },
    })
}

/// A safetensors file, mapped.
pub struct WeightsFile {
    path: PathBuf,
    map: MappedFile,
}

impl WeightsFile {
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let map = MappedFile::open(path).map_err(|source| WeightsError::Io { path: path.into(), source })?;
        let file = Self { path: path.into(), map };
        file.parsed()?;
        Ok(file)
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, WeightsError> {
        SafeTensors::deserialize(&self.map).map_err(|e| WeightsError::Format { path: self.path.clone(), message: e.to_string() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One fp32 tensor of the expected shape (`None`: any).
    pub fn tensor(&self, name: &str, expected: Option<&[i64]>) -> Result<Tensor, WeightsError> {
        read(&self.parsed()?, &self.path, name, expected)
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> Result<BTreeMap<String, Vec<i64>>, WeightsError> {
        let parsed = self.parsed()?;
        let shapes = parsed.tensors().into_iter().map(|(name, view)| (name, view.shape().iter().map(|d| *d as i64).collect()));
        Ok(shapes.collect())
    }

    /// One tensor of type F32, F16 or BF16, as fp32.
    pub fn tensor_as_fp32(&self, name: &str) -> Result<Tensor, WeightsError> {
        let parsed = self.parsed()?;
        let view = find(&parsed, &self.path, name)?;
        let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(self.wrong_type(name, other, "F32, F16 or BF16")),
        };
        Ok(Tensor::from_data_size(view.data(), &shape, kind).to_kind(Kind::Float))
    }

    fn wrong_type(&self, name: &str, found: Dtype, expected: &'static str) -> WeightsError {
        WeightsError::Type { path: self.path.clone(), name: name.into(), found: format!("{found:?}"), expected }
    }

    /// Copies the file's weights into the model's, after all of them have been checked.
    pub fn load_into(&self, parameters: &Parameters, select: Select) -> Result<usize, WeightsError> {
        let parsed = self.parsed()?;
        if select == Select::All {
            if let Some(name) = parsed.names().into_iter().find(|name| parameters.get(name).is_none()) {
                return Err(WeightsError::Unexpected { path: self.path.clone(), name: name.to_string() });
            }
        }
        let pairs: Vec<(&Tensor, Tensor)> = parameters
            .iter()
            .filter(|p| select.takes(&p.name))
            .map(|p| Ok((&p.tensor, read(&parsed, &self.path, &p.name, Some(&p.tensor.size()))?)))
            .collect::<Result<_, WeightsError>>()?;
        tch::no_grad(|| pairs.iter().for_each(|(to, from)| to.shallow_clone().copy_(from)));
        Ok(pairs.len())
    }
}

impl Parameters {
    /// Copies these weights into those of another model, after all of them have been checked; `path` is where they came from.
    pub fn copy_into(&self, to: &Parameters, select: Select, path: &Path) -> Result<usize, WeightsError> {
        if select == Select::All {
            if let Some(extra) = self.iter().find(|p| to.get(&p.name).is_none()) {
                return Err(WeightsError::Unexpected { path: path.into(), name: extra.name.clone() });
            }
        }
        let pairs: Vec<(&Tensor, &Tensor)> = to
            .iter()
            .filter(|p| select.takes(&p.name))
            .map(|p| {
                let missing = || WeightsError::Missing { path: path.into(), name: p.name.clone(), count: self.iter().count() };
                let (found, expected) = (&self.get(&p.name).ok_or_else(missing)?.tensor, p.tensor.size());
                match found.size() == expected {
                    true => Ok((&p.tensor, found)),
                    false => Err(WeightsError::Shape { path: path.into(), name: p.name.clone(), found: found.size(), expected }),
                }
            })
            .collect::<Result<_, WeightsError>>()?;
        tch::no_grad(|| pairs.iter().for_each(|(to, from)| to.shallow_clone().copy_(from)));
        Ok(pairs.len())
    }
}

impl WeightsFile {
    /// Copies matrices into every projection of the model, E and F alike; those of one head stand for all heads that have
    /// matrices of their own. All of them have to be in the file.
    pub fn load_projections(&self, parameters: &Parameters) -> Result<usize, WeightsError> {
        let parsed = self.parsed()?;
        let pairs: Vec<(&Tensor, Tensor)> = parameters
            .iter()
            .filter(|p| p.is_projection())
            .map(|p| {
                let size = p.tensor.size();
                let matrix = read(&parsed, &self.path, &p.name, Some(&size[size.len().saturating_sub(2)..]))?;
                Ok((&p.tensor, matrix.expand_as(&p.tensor)))
            })
            .collect::<Result<_, WeightsError>>()?;
        tch::no_grad(|| pairs.iter().for_each(|(to, from)| to.shallow_clone().copy_(from)));
        Ok(pairs.len())
    }
}

fn find<'a>(parsed: &SafeTensors<'a>, path: &Path, name: &str) -> Result<TensorView<'a>, WeightsError> {
    parsed.tensor(name).map_err(|_| WeightsError::Missing { path: path.into(), name: name.into(), count: parsed.len() })
}

fn read(parsed: &SafeTensors, path: &Path, name: &str, expected: Option<&[i64]>) -> Result<Tensor, WeightsError> {
    let view = find(parsed, path, name)?;
    let found: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
    if let Some(expected) = expected.filter(|e| *e != found) {
        return Err(WeightsError::Shape { path: path.into(), name: name.into(), found, expected: expected.to_vec() });
    }
    if view.dtype() != Dtype::F32 {
        let found = format!("{:?}", view.dtype());
        return Err(WeightsError::Type { path: path.into(), name: name.into(), found, expected: "F32" });
    }
    Ok(Tensor::from_data_size(view.data(), &found, Kind::Float))
}

/// A tensor as a file has it: row-major. Its bytes are copied one tensor at a time, when they are written.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Of an element.
    size: usize,
    tensor: Tensor,
}

impl Bytes {
    fn of(tensor: &Tensor) -> Self {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        let (dtype, size) = match tensor.kind() {
            Kind::Int64 => (Dtype::I64, 8),
            Kind::BFloat16 => (Dtype::BF16, 2),
            Kind::Half => (Dtype::F16, 2),
            _ => (Dtype::F32, 4),
        };
        Self { dtype, shape: tensor.size().iter().map(|d| *d as usize).collect(), size, tensor }
    }
}

impl safetensors::View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        let mut data = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut data, self.tensor.numel());
        data.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.size
    }
}
