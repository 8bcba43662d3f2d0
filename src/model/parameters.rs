//! The weights of a model as an ordered list with names: the order of optimizer state, logs and files.

use super::init::{self, Init};
use tch::{Device, Kind, Tensor};

/// One named fp32 weight.
pub struct Parameter {
    pub name: String,
    pub tensor: Tensor,
    /// false: a constant of the model (a fixed projection), saved but not learned.
    pub trainable: bool,
}

impl Parameter {
    /// Weight decay is for matrices: not for biases, nor for LayerNorm.
    pub fn decays(&self) -> bool {
        !(self.name.ends_with(".bias") || self.name.contains("LayerNorm") || self.name.contains("layer_norm"))
    }
}

/// All weights of a model, in the order of their creation.
pub struct Parameters {
    list: Vec<Parameter>,
    device: Device,
    /// None: leave the memory as it comes (for counting, or for weights that are loaded next).
    seed: Option<u64>,
}

impl Parameters {
    /// Weights drawn from (seed, name) alone: the same whatever else the model has.
    pub fn new(seed: u64, device: Device) -> Self {
        Self { list: Vec::new(), device, seed: Some(seed) }
    }

    /// Weights whose memory is never touched.
    pub fn uninitialised() -> Self {
        Self::to_be_loaded(Device::Cpu)
    }

    /// Weights that a file is about to fill: nothing is drawn.
    pub fn to_be_loaded(device: Device) -> Self {
        Self { list: Vec::new(), device, seed: None }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Makes a trainable weight.
    pub fn create(&mut self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.add(name, shape, init, true)
    }

    /// Makes a weight that is saved with the model but never learned.
    pub fn create_constant(&mut self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.add(name, shape, init, false)
    }

    fn add(&mut self, name: &str, shape: &[i64], init: Init, trainable: bool) -> Tensor {
        debug_assert!(self.get(name).is_none(), "two parameters are named {name}");
        let tensor = match self.seed {
            Some(seed) => init::draw(init, shape, seed, name).to_device(self.device),
            None => Tensor::empty(shape, (Kind::Float, self.device)),
        };
        let tensor = tensor.set_requires_grad(trainable);
        self.list.push(Parameter { name: name.into(), tensor: tensor.shallow_clone(), trainable });
        tensor
    }

    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter()
    }

    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.list.iter().filter(|p| p.trainable)
    }

    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.list.iter().find(|p| p.name == name)
    }

    /// Number of weights, constants included.
    pub fn count(&self) -> i64 {
        self.list.iter().map(|p| p.tensor.numel() as i64).sum()
    }

    /// Forgets all gradients.
    pub fn zero_grad(&self) {
        self.trainable().for_each(|p| p.tensor.shallow_clone().zero_grad());
    }
}
