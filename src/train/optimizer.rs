//! Adam and AdamW, with state that can be saved.

use crate::config::{OptimizerKind, Train};
use crate::model::weights::{WeightsError, WeightsFile};
use crate::model::Parameters;
use crate::native::optim::{adam_step, norms, AdamItem, AdamSettings};
use crate::native::weight::Weight;
use crate::native::NativeError;
use tch::{Kind, Tensor};

/// The optimizer and its state for every trainable weight.
pub struct Optimizer {
    settings: Train,
    members: Vec<Member>,
}

struct Member {
    name: String,
    weight: Weight,
    decays: bool,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    /// false: another rank has its state and updates it.
    owned: bool,
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
        let members = parameters
            .trainable()
            .map(|p| Member {
                name: p.name.clone(),
                weight: p.weight.shallow_clone(),
                decays: p.decays(),
                exp_avg: p.tensor.detach().zeros_like(),
                exp_avg_sq: p.tensor.detach().zeros_like(),
                step: Tensor::zeros([], (Kind::Float, p.tensor.device())),
                owned: true,
            })
            .collect();
        Self { settings: settings.clone(), members }
    }

    /// Gives up the state of the weights that other ranks update.
    pub fn keep_only(&mut self, owns: impl Fn(usize) -> bool) {
        for (_, member) in self.members.iter_mut().enumerate().filter(|(i, _)| !owns(*i)) {
            let none = || Tensor::empty([0], (Kind::Float, member.exp_avg.device()));
            (member.exp_avg, member.exp_avg_sq) = (none(), none());
            member.owned = false;
        }
    }

    /// Measures the gradients of the last backward pass; a weight that got none counts as 0.
    pub fn gradients(&self) -> Result<Gradients, NativeError> {
        let (members, gradients): (Vec<&Member>, Vec<Tensor>) =
            self.members.iter().map(|m| (m, m.weight.tensor().grad())).filter(|(_, g)| g.defined()).unzip();
        let norms = norms(&gradients)?;
        let first_bad = norms.iter().position(|norm| !norm.is_finite()).map(|i| members[i].name.clone());
        Ok(Gradients { norm: norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt(), first_bad })
    }

    /// One step with the gradients in the weights, clipped to `clip_grad_norm`. `norm` is theirs and finite.
    pub fn step(&mut self, lr: f64, norm: f64) -> Result<(), NativeError> {
        let s = &self.settings;
        let clips = s.clip_grad_norm > 0.0 && norm + 1e-6 > s.clip_grad_norm;
        let settings = AdamSettings {
            lr,
            beta1: s.adam_beta1,
            beta2: s.adam_beta2,
            eps: s.adam_epsilon,
            gradient_divisor: if clips { (norm + 1e-6) / s.clip_grad_norm } else { 1.0 },
            decoupled: (s.optimizer == OptimizerKind::AdamW).into(),
        };
        let gradient = |weight: &Tensor| if weight.grad().defined() { weight.grad() } else { weight.detach().zeros_like() };
        let owned = || self.members.iter().filter(|m| m.owned);
        let gradients: Vec<Tensor> = owned().map(|m| gradient(m.weight.tensor())).collect();
        let items: Vec<AdamItem> = owned()
            .zip(&gradients)
            .map(|(m, gradient)| {
                let Member { weight, exp_avg, exp_avg_sq, step, decays, .. } = m;
                AdamItem { weight, gradient, exp_avg, exp_avg_sq, step, weight_decay: if *decays { s.weight_decay } else { 0.0 } }
            })
            .collect();
        adam_step(&items, &settings)
    }

    /// State of the weights that are updated here, by name: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`, as PyTorch calls them.
    pub fn state(&self) -> Vec<(String, &Tensor)> {
        let state = |m: &'_ Member| ["exp_avg", "exp_avg_sq", "step"].map(|part| format!("{part}.{}", m.name));
        self.members.iter().filter(|m| m.owned).flat_map(|m| state(m).into_iter().zip([&m.exp_avg, &m.exp_avg_sq, &m.step])).collect()
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
