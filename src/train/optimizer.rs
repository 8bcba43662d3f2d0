//! Adam and AdamW through libtorch's fused kernel, with state that is ours: it can be saved.

use crate::config::{OptimizerKind, Train};
use crate::model::weights::{WeightsError, WeightsFile};
use crate::model::Parameters;
use crate::native::optim::{adam_step, norms, AdamSettings, AdamTensors};
use crate::native::NativeError;
use tch::{Kind, Tensor};

/// The optimizer and its state for every trainable weight.
pub struct Optimizer {
    settings: Train,
    names: Vec<String>,
    /// With weight decay and without.
    groups: [Group; 2],
}

struct Group {
    /// Index of each member in `names`.
    members: Vec<usize>,
    decays: bool,
    weights: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    steps: Vec<Tensor>,
}

/// The gradients of one step, checked and measured.
pub struct Gradients {
    /// Global Euclidean norm before clipping; not finite if any gradient is not.
    pub norm: f64,
    /// The first weight whose gradient is not finite.
    pub first_bad: Option<String>,
}

impl Optimizer {
    pub fn new(parameters: &Parameters, settings: &Train) -> Self {
        let all: Vec<(usize, &crate::model::Parameter)> = parameters.trainable().enumerate().collect();
        let group = |decays: bool| {
            let members: Vec<&(usize, &crate::model::Parameter)> = all.iter().filter(|(_, p)| p.decays() == decays).collect();
            let zeros = || members.iter().map(|(_, p)| p.tensor.detach().zeros_like()).collect::<Vec<_>>();
            Group {
                members: members.iter().map(|(i, _)| *i).collect(),
                decays,
                weights: members.iter().map(|(_, p)| p.tensor.shallow_clone()).collect(),
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
                steps: members.iter().map(|(_, p)| Tensor::zeros([], (Kind::Float, p.tensor.device()))).collect(),
            }
        };
        Self { settings: settings.clone(), names: all.iter().map(|(_, p)| p.name.clone()).collect(), groups: [group(true), group(false)] }
    }

    /// Measures the gradients of the last backward pass; a weight that got none counts as 0.
    pub fn gradients(&self) -> Result<Gradients, NativeError> {
        let (mut squares, mut bad) = (0.0, Vec::new());
        for group in &self.groups {
            let (gradients, members): (Vec<Tensor>, Vec<usize>) = group.defined().unzip();
            if gradients.is_empty() {
                continue;
            }
            for (norm, member) in norms(&gradients)?.into_iter().zip(members) {
                squares += norm * norm;
                if !norm.is_finite() {
                    bad.push(member);
                }
            }
        }
        Ok(Gradients { norm: f64::sqrt(squares), first_bad: bad.into_iter().min().map(|i| self.names[i].clone()) })
    }

    /// One step with the gradients in the weights, clipped to `clip_grad_norm`. `norm` is theirs and finite.
    pub fn step(&mut self, lr: f64, norm: f64) -> Result<(), NativeError> {
        let s = &self.settings;
        let clips = s.clip_grad_norm > 0.0 && norm + 1e-6 > s.clip_grad_norm;
        let divisor = if clips { (norm + 1e-6) / s.clip_grad_norm } else { 1.0 };
        for group in &self.groups {
            let gradients: Vec<Tensor> =
                group.weights.iter().map(|w| if w.grad().defined() { w.grad() } else { w.detach().zeros_like() }).collect();
            let settings = AdamSettings {
                lr,
                beta1: s.adam_beta1,
                beta2: s.adam_beta2,
                eps: s.adam_epsilon,
                weight_decay: if group.decays { s.weight_decay } else { 0.0 },
                gradient_divisor: divisor,
                decoupled: (s.optimizer == OptimizerKind::AdamW).into(),
            };
            let tensors = AdamTensors {
                parameters: &group.weights,
                gradients: &gradients,
                exp_avg: &group.exp_avg,
                exp_avg_sq: &group.exp_avg_sq,
                steps: &group.steps,
            };
            adam_step(tensors, &settings)?;
        }
        Ok(())
    }

    /// State by name: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`, as PyTorch calls them.
    pub fn state(&self) -> Vec<(String, &Tensor)> {
        let named = |(group, i): (&'_ Group, usize)| self.names[group.members[i]].clone();
        self.groups
            .iter()
            .flat_map(|group| (0..group.members.len()).map(move |i| (group, i)))
            .flat_map(|(group, i)| {
                let name = named((group, i));
                [
                    (format!("exp_avg.{name}"), &group.exp_avg[i]),
                    (format!("exp_avg_sq.{name}"), &group.exp_avg_sq[i]),
                    (format!("step.{name}"), &group.steps[i]),
                ]
            })
            .collect()
    }

    /// Takes the state of a file, after all of it has been checked.
    pub fn load(&mut self, file: &WeightsFile) -> Result<(), WeightsError> {
        let pairs: Vec<(&Tensor, Tensor)> = self
            .state()
            .into_iter()
            .map(|(name, tensor)| Ok((tensor, file.tensor(&name, Some(&tensor.size()))?)))
            .collect::<Result<_, WeightsError>>()?;
        tch::no_grad(|| pairs.iter().for_each(|(to, from)| to.shallow_clone().copy_(from)));
        Ok(())
    }
}

impl Group {
    fn defined(&self) -> impl Iterator<Item = (Tensor, usize)> + '_ {
        self.weights.iter().map(Tensor::grad).zip(self.members.iter().copied()).filter(|(g, _)| g.defined())
    }
}
