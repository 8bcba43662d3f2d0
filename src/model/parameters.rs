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
    /// Multiplied with activations: it has a bf16 copy where they are bf16.
    pub is_multiplied: bool,
    /// false: a constant of the model (a fixed projection), saved but not learned.
    pub trainable: bool,
}

impl Parameter {
    /// Whether it is E or F: one matrix, or one for each head.
    pub fn is_projection(&self) -> bool {
        is_projection(&self.name)
    }

    /// Weight decay is for matrices: not for biases, nor for LayerNorm.
    pub fn decays(&self) -> bool {
        !(self.name.ends_with(".bias") || self.name.contains("LayerNorm") || self.name.contains("layer_norm"))
    }
}

/// Whether this is the name of an E or F.
pub fn is_projection(name: &str) -> bool {
    name.ends_with("_projection")
}

/// All weights of a model, in the order of their creation.
pub struct Parameters {
    list: Vec<Parameter>,
    device: Device,
    seed: u64,
    /// Which weights are drawn, by name; the memory of the others is left as it comes.
    draws: fn(&str) -> bool,
}

impl Parameters {
    /// Weights drawn from (seed, name) alone: the same whatever else the model has.
    pub fn new(seed: u64, device: Device) -> Self {
        Self::drawing(seed, device, |_| true)
    }

    /// The same for the weights that `draws` names; the memory of the others is left as it comes, to be filled next.
    pub fn drawing(seed: u64, device: Device, draws: fn(&str) -> bool) -> Self {
        Self { list: Vec::new(), device, seed, draws }
    }

    /// Nothing is drawn: for counting, or for a file to fill.
    pub fn uninitialised(device: Device) -> Self {
        Self::drawing(0, device, |_| false)
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Makes a trainable weight.
    pub fn create(&mut self, name: &str, shape: &[i64], init: Init) -> Tensor {
        self.add(name, shape, init, true, false).tensor().shallow_clone()
    }

    /// Makes a trainable weight that is multiplied with activations: it gets a copy in their type.
    pub fn create_weight(&mut self, name: &str, shape: &[i64], init: Init) -> Weight {
        self.add(name, shape, init, true, true)
    }

    /// Makes a weight that is saved with the model but never learned.
    pub fn create_constant(&mut self, name: &str, shape: &[i64], init: Init) -> Weight {
        self.add(name, shape, init, false, true)
    }

    fn add(&mut self, name: &str, shape: &[i64], init: Init, trainable: bool, is_multiplied: bool) -> Weight {
        debug_assert!(self.get(name).is_none(), "two parameters are named {name}");
        let tensor = if (self.draws)(name) {
            init::draw(init, shape, self.seed, name).to_device(self.device)
        } else {
            Tensor::empty(shape, (Kind::Float, self.device))
        };
        let weight = Weight::new(tensor.set_requires_grad(trainable));
        let tensor = weight.tensor().shallow_clone();
        self.list.push(Parameter { name: name.into(), tensor, weight: weight.shallow_clone(), is_multiplied, trainable });
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

    /// Makes the copies that a pass in `kind` needs, before its activations.
    pub fn make_copies(&self, kind: Kind) -> Result<(), NativeError> {
        let mut wanted = self.list.iter().filter(|p| p.is_multiplied && kind == Kind::BFloat16 && self.device == Device::Cpu);
        wanted.try_for_each(|p| p.weight.make_copy())
    }

    /// Leaves no gradients: the next backward pass makes them anew.
    pub fn forget_gradients(&self) -> Result<(), NativeError> {
        forget_gradients(&self.trainable().map(|p| &p.tensor).collect::<Vec<_>>())
    }
}
