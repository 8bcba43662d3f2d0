//! The weights of a model as an ordered list with names: the order of optimizer state, logs and files.

use super::init::{self, Init};
use crate::native::optim::forget_gradients;
use crate::native::weight::Weight;
use crate::native::NativeError;
use tch::{Device, Kind, Tensor};

/// One named fp32 weight.
pub struct Parameter {
    pub name: String,
    pub tensor: Tensor,
    /// The same tensor with its bf16 copy.
    pub weight: Weight,
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
    /// Which weights are drawn, by name.
    draws: fn(&str) -> bool,
}

impl Parameters {
    /// Weights drawn from (seed, name) alone: the same whatever else the model has.
    pub fn new(seed: u64, device: Device) -> Self {
        Self::drawing(seed, device, |_| true)
    }

    /// The same for the weights that `draws` names; the memory of the others is left as it comes, to be filled next.
    pub fn drawing(seed: u64, device: Device, draws: fn(&str) -> bool) -> Self {
        Self { list: Vec::new(), device, seed: Some(seed), draws }
    }

    /// Weights whose memory is never touched.
    pub fn uninitialised() -> Self {
        Self::to_be_loaded(Device::Cpu)
    }

    /// Weights that a file is about to fill: nothing is drawn.
    pub fn to_be_loaded(device: Device) -> Self {
        Self { list: Vec::new(), device, seed: None, draws: |_| false }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Makes a trainable weight.
    pub fn create(&mut self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.add(name, shape, init, true).tensor().shallow_clone()
    }

    /// Makes a trainable weight that is multiplied with activations: it gets a copy in their type.
    pub fn create_weight(&mut self, name: &str, shape: &[i64], init: Init) -> Weight {
        self.add(name, shape, init, true)
    }

    /// Makes a weight that is saved with the model but never learned.
    pub fn create_constant(&mut self, name: &str, shape: &[i64], init: Init) -> Weight {
        self.add(name, shape, init, false)
    }

    fn add(&mut self, name: &str, shape: &[i64], init: Init, trainable: bool) -> Weight {
        debug_assert!(self.get(name).is_none(), "two parameters are named {name}");
        let tensor = match self.seed.filter(|_| (self.draws)(name)) {
            Some(seed) => init::draw(init, shape, seed, name).to_device(self.device),
            None => Tensor::empty(shape, (Kind::Float, self.device)),
        };
        let weight = Weight::new(tensor.set_requires_grad(trainable));
        let tensor = weight.tensor().shallow_clone();
        self.list.push(Parameter { name: name.into(), tensor, weight: weight.shallow_clone(), trainable });
        weight
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

    /// Leaves no gradients: the next backward pass makes them anew.
    pub fn forget_gradients(&self) -> Result<(), NativeError> {
        forget_gradients(&self.trainable().map(|p| &p.tensor).collect::<Vec<_>>())
    }
}
