//! What `train.histogram_every` asks for: the spread of E and F and of every gradient.

use crate::log::histogram::Histogram;
use crate::model::Parameters;
use tch::{Device, Kind, Tensor};

/// E and F under `weights/NAME` as they were in the step's passes, gradients of the whole batch, before clipping, under
/// `gradients/NAME`; names are those of the weights file.
pub fn histograms(parameters: &Parameters) -> Vec<(String, Histogram)> {
    let projections = parameters.iter().filter(|p| p.is_projection()).map(|p| ("weights", p, p.tensor.detach()));
    let gradients = parameters.trainable().map(|p| ("gradients", p, p.tensor.grad())).filter(|(_, _, gradient)| gradient.defined());
    projections.chain(gradients).filter_map(|(group, p, tensor)| Some((format!("{group}/{}", p.name), of(&tensor)?))).collect()
}

fn of(tensor: &Tensor) -> Option<Histogram> {
    let flat = tensor.to_kind(Kind::Float).to_device(Device::Cpu).contiguous().view(-1);
    Histogram::of(&Vec::<f32>::try_from(flat).ok()?)
}
