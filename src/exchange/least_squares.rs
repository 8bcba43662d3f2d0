//! E and F fitted to a model that has full attention.
//!
//! For the inputs X that a text causes in each layer, the sum over layers of |A(X) - A_EF(X)|^2 / |A(X)|^2 is made small, where
//! A is the heads' output of full attention and A_EF the Linformer's with the same query, key and value matrices. Keys stand
//! inside a softmax, so the problem is not linear: it is solved by Adam from a mean pool (rows that average a window), with
//! a learning rate that falls to zero. X is full attention's throughout: what a layer sees does not depend on the layers
//! before it being fitted well.

use super::import::Loaded;
use super::project::Fit;
use super::ExchangeError;
use crate::data::readers::lines::Lines;
use crate::data::tokenizer::Tokenizer;
use crate::model::projection::averages;
use crate::model::{Encoder, Input, Parameter, Parameters, Pass};
use crate::native::optim::{adam_step, forget_gradients, AdamItem, AdamSettings};
use crate::random::{Purpose, Stream};
use std::path::Path;
use tch::{Kind, Tensor};

/// Longest line of the text.
const MAX_LINE: usize = 64 << 20;

/// How long is fitted, and on how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Sequences of n tokens that are read, an eighth of which measures the fit.
    pub sequences: usize,
    pub steps: usize,
    pub batch_size: usize,
    /// Times n: how far a row of E can move at a step if all of its entries move together.
    pub learning_rate: f64,
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sequences: 128, steps: 200, batch_size: 4, learning_rate: 0.12, seed: 0 }
    }
}

/// Text that causes activations.
pub struct Text<'a> {
    pub path: &'a Path,
    pub tokenizer: &'a Tokenizer,
}

impl Text<'_> {
    /// Up to `count` sequences `[n]` of whole-length text, documents run together.
    fn sequences(&self, n: usize, count: usize) -> Result<Vec<Vec<i64>>, ExchangeError> {
        let special = self.tokenizer.special;
        let (mut sequences, mut waiting) = (Vec::new(), Vec::new());
        for line in Lines::open(self.path, MAX_LINE)? {
            waiting.extend(self.tokenizer.encode(&line?.text)?);
            while waiting.len() >= n - 2 && sequences.len() < count {
                let body = waiting.drain(..n - 2);
                let ids = std::iter::once(special.cls).chain(body).chain([special.sep]);
                sequences.push(ids.map(i64::from).collect());
            }
            if sequences.len() == count {
                break;
            }
        }
        if sequences.len() < 2 {
            let message = format!("{} sequences of {n} tokens, expected at least 2: give a longer text", sequences.len());
            return Err(ExchangeError::invalid(self.path, message));
        }
        Ok(sequences)
    }
}

/// Both models on the same inputs.
struct Pair<'a> {
    full: &'a Encoder,
    linformer: &'a Encoder,
}

impl Pair<'_> {
    /// Sums of squares by layer of difference and of full attention's output; with gradients, those of E and F are added up.
    fn errors(&self, ids: &Tensor, backward: bool) -> Result<Vec<[f64; 2]>, ExchangeError> {
        let pass = Pass::evaluation(Kind::Float);
        let input = Input { ids: ids.shallow_clone(), attention_mask: None };
        let inputs = {
            let _guard = tch::no_grad_guard();
            self.full.attention_inputs(&input, &pass)?
        };
        let mut errors = Vec::new();
        for (layer, x) in inputs.iter().enumerate() {
            let wanted = {
                let _guard = tch::no_grad_guard();
                self.full.attention(layer).forward(x, None, &pass)?
            };
            let found = self.linformer.attention(layer).forward(x, None, &pass)?;
            let (error, size) = ((found - &wanted).square().sum(Kind::Float), wanted.square().sum(Kind::Float));
            errors.push([error.double_value(&[]), size.double_value(&[])]);
            if backward {
                (error / size / inputs.len() as f64).backward();
            }
        }
        Ok(errors)
    }

    /// Relative squared error of each layer over some sequences.
    fn measure(&self, sequences: &[Vec<i64>]) -> Result<Vec<f64>, ExchangeError> {
        let _guard = tch::no_grad_guard();
        let mut sums: Vec<[f64; 2]> = Vec::new();
        for ids in sequences {
            let errors = self.errors(&tensor(&[ids]), false)?;
            sums.resize(errors.len(), [0.0; 2]);
            sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum = [sum[0] + error[0], sum[1] + error[1]]);
        }
        Ok(sums.into_iter().map(|[error, size]| error / size).collect())
    }
}

fn tensor(sequences: &[&Vec<i64>]) -> Tensor {
    let length = sequences.first().map_or(0, |s| s.len()) as i64;
    let ids: Vec<i64> = sequences.iter().flat_map(|s| s.iter().copied()).collect();
    Tensor::from_slice(&ids).view([-1, length])
}

/// Fits E and F of `linformer` to `full` (sequences of n tokens) and gives the errors by layer on sequences held out.
pub fn fit(
    full: &Loaded,
    linformer: &Loaded,
    n: i64,
    text: &Text,
    settings: &Settings,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Fit>, ExchangeError> {
    let mut sequences = text.sequences(n as usize, settings.sequences.max(2))?;
    let held_out = sequences.split_off(sequences.len() - (sequences.len() / 8).max(1));
    let pair = Pair { full: &full.encoder, linformer: &linformer.encoder };
    let parameters = &linformer.parameters;
    // Only E and F get gradients.
    set_gradients(parameters, |p| p.is_projection());
    start_as_mean_pool(parameters, n);
    let mean_pool = pair.measure(&held_out)?;
    descend(&pair, parameters, &sequences, settings, progress)?;
    let fitted = pair.measure(&held_out)?;
    set_gradients(parameters, |p| p.trainable);
    Ok(mean_pool.into_iter().zip(fitted).enumerate().map(|(layer, (mean_pool, fitted))| Fit { layer, mean_pool, fitted }).collect())
}

fn set_gradients(parameters: &Parameters, learned: impl Fn(&Parameter) -> bool) {
    parameters.iter().for_each(|p| drop(p.tensor.set_requires_grad(learned(p))));
}

/// Rows that average their window: the keys are then means of keys, which a softmax can weigh like keys.
fn start_as_mean_pool(parameters: &Parameters, n: i64) {
    let _guard = tch::no_grad_guard();
    for parameter in parameters.iter().filter(|p| p.is_projection()) {
        let size = parameter.tensor.size();
        parameter.tensor.detach().copy_(&averages(size[size.len() - 2], n));
    }
}

fn descend(
    pair: &Pair,
    parameters: &Parameters,
    sequences: &[Vec<i64>],
    settings: &Settings,
    progress: &mut dyn FnMut(&str),
) -> Result<(), ExchangeError> {
    let learned: Vec<&Parameter> = parameters.iter().filter(|p| p.is_projection()).collect();
    let state = |p: &&Parameter| {
        let zeros = || p.tensor.detach().zeros_like();
        [zeros(), zeros(), Tensor::zeros([], (Kind::Float, p.tensor.device()))]
    };
    let states: Vec<[Tensor; 3]> = learned.iter().map(state).collect();
    for step in 0..settings.steps {
        forget_gradients(&learned.iter().map(|p| &p.tensor).collect::<Vec<_>>())?;
        let mut draws = Stream::new(settings.seed, Purpose::LeastSquares, step as u64).draws();
        let chosen: Vec<&Vec<i64>> = (0..settings.batch_size).map(|_| &sequences[draws.below(sequences.len() as u64) as usize]).collect();
        let ids = tensor(&chosen);
        let n = ids.size()[1];
        let errors = pair.errors(&ids, true)?;
        let gradients: Vec<Tensor> = learned.iter().map(|p| p.tensor.grad()).collect();
        let lr = settings.learning_rate / n as f64 * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / settings.steps as f64).cos());
        let adam = AdamSettings { lr, beta1: 0.9, beta2: 0.99, eps: 1e-10, gradient_divisor: 1.0, decoupled: true.into() };
        let items: Vec<AdamItem> = learned
            .iter()
            .zip(&gradients)
            .zip(&states)
            .map(|((p, gradient), [exp_avg, exp_avg_sq, step])| AdamItem {
                weight: &p.weight,
                gradient,
                exp_avg,
                exp_avg_sq,
                step,
                weight_decay: 0.0,
            })
            .collect();
        adam_step(&items, &adam)?;
        if (step + 1) % 20 == 0 {
            let mean = errors.iter().map(|[error, size]| error / size).sum::<f64>() / errors.len() as f64;
            progress(&format!("least squares: step {} of {}, relative squared error {mean:.4}", step + 1, settings.steps));
        }
    }
    Ok(())
}
