//! What a config takes on a cluster, before anyone pays for it: steps, tokens, FLOPs, memory of a GPU, days.
//!
//! Data-parallel: every GPU holds the whole model, its gradients and its optimizer state, and takes a share of each step's
//! sequences. Days are products over (MFU x peak x GPUs): the MFU is yours to state, measure it first.

use super::info::{activation_bytes, resolved, steps};
use crate::config::{AttentionBackend, AttentionKind, Config, Model, Origins};
use crate::log::progress::thousands;
use crate::model::size::{forward_flops_per_token, parameters_by_part, Head};
use crate::table::align;
use anyhow::Result;
use std::str::FromStr;

/// GPUs of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub count: u32,
    pub name: String,
    /// Dense bf16 (V100: fp16) products, by the vendor's data sheet.
    pub peak_tflops: f64,
    pub gib: f64,
}

/// Name, peak in TFLOP/s, GiB.
const GPUS: [(&str, f64, f64); 9] = [
    ("H100", 989.0, 80.0),
    ("H200", 989.0, 141.0),
    ("B200", 2250.0, 180.0),
    ("A100", 312.0, 80.0),
    ("A100-40", 312.0, 40.0),
    ("V100-16", 125.0, 16.0),
    ("V100-32", 125.0, 32.0),
    ("L4", 121.0, 24.0),
    ("RTX4090", 165.0, 24.0),
];

impl FromStr for Cluster {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = GPUS.map(|g| g.0).join(", ");
        let bad = || {
            format!(
                "found {text}, expected a number of GPUs and their kind, such as 8xH100 ({names}), or 4x300:40 for 300 TFLOP/s and 40 GiB"
            )
        };
        let (count, gpu) = text.split_once(['x', 'X']).ok_or_else(bad)?;
        let count: u32 = count.parse().ok().filter(|c| *c > 0).ok_or_else(bad)?;
        if let Some((name, peak_tflops, gib)) = GPUS.iter().find(|g| g.0.eq_ignore_ascii_case(gpu)) {
            return Ok(Self { count, name: name.to_string(), peak_tflops: *peak_tflops, gib: *gib });
        }
        let (peak, gib) = gpu.split_once(':').ok_or_else(bad)?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|v| *v > 0.0 && v.is_finite()).ok_or_else(bad);
        Ok(Self { count, name: "GPU".into(), peak_tflops: number(peak)?, gib: number(gib)? })
    }
}

/// Of a GPU's memory, what libtorch and the context leave to the model.
const USABLE: f64 = 0.92;
const GIB: f64 = 1073741824.0;

/// Attention scores that are kept for the backward pass, of one sequence.
fn score_bytes(config: &Config, model: &Model) -> f64 {
    // Probabilities are tensors where they are dropped out or asked for; else no n x m matrix is kept.
    if model.attention.backend != AttentionBackend::Materialised && model.attention_probs_dropout_prob == 0.0 {
        return 0.0;
    }
    let (n, heads) = (config.data.sequence_length as f64, model.num_attention_heads as usize);
    let keys = |layer: usize, head: usize| match model.attention.kind {
        AttentionKind::Full => n,
        AttentionKind::Linformer => model.attention.k.at(layer, head) as f64,
    };
    let elements: f64 = (0..model.num_hidden_layers as usize).flat_map(|l| (0..heads).map(move |h| keys(l, h) * n)).sum();
    // In bf16 the softmax in fp32, its rounding and what dropout left of it; in fp32 the softmax and what dropout left of it.
    elements * 8.0
}

/// The plan as text.
pub fn plan(config: &Config, origins: &Origins, cluster: &Cluster, mfu: f64) -> Result<String> {
    let model = resolved(config, origins)?;
    let config = &config.in_whole_sequences();
    let train = &config.train;
    let n = config.data.sequence_length;
    let of_task = config.data.task.is_some();
    let parts = parameters_by_part(&model, if of_task { Head::Classification } else { Head::MaskedLm });
    let parameters: f64 = parts.iter().map(|(_, count)| *count as f64).sum();
    let flops_per_token = 3.0 * forward_flops_per_token(&model, n, if of_task { 0.0 } else { config.data.mask_probability }, 1.0);
    let (batch, gpus) = (train.batch_size as f64, f64::from(cluster.count));
    let (steps, steps_in_words) = steps(train);
    let tokens = steps.map(|steps| batch * n as f64 * steps as f64);
    // Weights, gradients and two moments in fp32.
    let fixed = parameters * 16.0;
    let per_sequence = activation_bytes(config, &model, 1.0) + score_bytes(config, &model);
    let share = (batch / gpus).ceil();
    let room = ((cluster.gib * GIB * USABLE - fixed) / per_sequence).floor();
    let micro = room.min(share);
    let speed = gpus * cluster.peak_tflops * 1e12 * mfu;
    let mut rows = vec![vec!["quantity".to_string(), "value".into()]];
    let mut add = |name: &str, value: String| rows.push(vec![name.into(), value]);
    add("cluster", format!("{} x {} ({} TFLOP/s, {} GiB)", cluster.count, cluster.name, cluster.peak_tflops, cluster.gib));
    add("parameters", thousands(parameters));
    add("steps", steps_in_words);
    add("sequences a step", thousands(batch));
    add("tokens a step", thousands(batch * n as f64));
    if let Some(tokens) = tokens {
        add("tokens in all", thousands(tokens));
        add("training FLOPs in all", format!("{:.3e}", tokens * flops_per_token));
    }
    add("sequences a GPU and step", thousands(share));
    add("weights, gradients and Adam state a GPU", gibibytes(fixed));
    add("activations of one sequence, about", gibibytes(per_sequence));
    if micro >= 1.0 {
        add("train.micro_batch_size that fits, about", thousands(micro * gpus) + &format!(" ({} a GPU)", thousands(micro)));
        add("accumulation", thousands((share / micro).ceil()));
        add("memory used a GPU, about", gibibytes(fixed + micro * per_sequence));
    } else {
        add("train.micro_batch_size that fits", "out of memory: not one sequence".into());
    }
    add(&format!("tokens/s at MFU {mfu}"), thousands(speed / flops_per_token));
    if let Some(tokens) = tokens {
        let seconds = tokens * flops_per_token / speed;
        add(&format!("days at MFU {mfu}"), format!("{:.2}", seconds / 86400.0));
        add("GPU-hours", thousands(seconds * gpus / 3600.0));
    }
    Ok(align(rows))
}

fn gibibytes(bytes: f64) -> String {
    format!("{:.2} GiB", bytes / GIB)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::KSpec;

    #[test]
    fn clusters_by_name_and_by_numbers() {
        let cluster: Cluster = "64xv100-16".parse().unwrap();
        assert_eq!((cluster.count, cluster.peak_tflops, cluster.gib), (64, 125.0, 16.0));
        let own: Cluster = "4x300:40".parse().unwrap();
        assert_eq!((own.count, own.peak_tflops, own.gib), (4, 300.0, 40.0));
        for bad in ["H100", "0xH100", "8xK80", "8x300", "x", "8x-1:5"] {
            assert!(bad.parse::<Cluster>().unwrap_err().contains("8xH100"), "{bad}");
        }
    }

    /// RoBERTa-base on the paper's 64 V100: 6 x parameters x tokens is the usual estimate; ours counts attention and leaves
    /// out embeddings, so it has to be near and not below the part without embeddings.
    #[test]
    fn the_paper_s_scale() {
        let mut config = Config::default();
        (config.train.max_steps, config.train.batch_size) = (250_000, 2048);
        config.model.vocab_size = Some(50_265);
        config.model.attention.k = KSpec::One(128);
        config.data.corpus = Some(crate::config::OneOrMany::One("x".into()));
        let text = plan(&config, &Origins::default(), &"64xV100-16".parse().unwrap(), 0.4).unwrap();
        let value = |name: &str| text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}")).to_string();
        let flops: f64 = value("training FLOPs").split_whitespace().last().unwrap().parse().unwrap();
        let tokens = 250_000.0 * 2048.0 * 512.0;
        assert!(value("tokens in all").contains("262,144,000,000"), "{text}");
        assert!(flops > 6.0 * 60e6 * tokens && flops < 6.0 * 125e6 * tokens, "{flops}");
        let days: f64 = value("days at").split_whitespace().last().unwrap().parse().unwrap();
        assert!((days - flops / (64.0 * 125e12 * 0.4) / 86400.0).abs() < 0.01);
        assert!(value("sequences a GPU").ends_with("32"), "{text}");
    }

    #[test]
    fn a_model_that_does_not_fit_is_said_to_not_fit() {
        let mut config = Config::default();
        config.model.vocab_size = Some(50_265);
        config.data.sequence_length = 65_536;
        config.model.attention.kind = AttentionKind::Full;
        let text = plan(&config, &Origins::default(), &"1xV100-16".parse().unwrap(), 0.4).unwrap();
        assert!(text.contains("out of memory"), "{text}");
    }
}
