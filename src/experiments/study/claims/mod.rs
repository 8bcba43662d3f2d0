//! What the paper says, and what our numbers say to it. No state is typed: each follows from committed numbers by a rule that
//! stands beside the claim.

mod measured;
mod trained;

use super::evidence::Evidence;
use measured::{bound_holds, depth, faster, linear, linear_memory, low_rank, moved, smaller, theorems};
use serde_json::Value;
use trained::{beside_convergence, better, comparable, falling, higher, on_par, on_par_at_last, on_real_tasks, FIGURE_3A};

/// Where a claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Confirmed,
    NotConfirmed,
    Contradicted,
    Untestable,
    /// The experiment is there, its numbers are not yet.
    NotRun,
}

impl State {
    pub fn words(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed at small scale",
            Self::NotConfirmed => "not confirmed",
            Self::Contradicted => "contradicted at small scale",
            Self::Untestable => "untestable here",
            Self::NotRun => "not run yet",
        }
    }
}

/// A claim with its state.
pub struct Claim {
    pub place: &'static str,
    pub text: &'static str,
    /// By what the state is decided.
    pub rule: &'static str,
    /// Folder of the evidence, below that of all results.
    pub folder: String,
    pub state: State,
    pub evidence: String,
    /// What would settle it, where this did not or only in small.
    pub would_decide: &'static str,
}

type Judged = Option<(State, String)>;

/// Every claim, in the order of the paper.
pub fn all(evidence: &Evidence) -> Vec<Claim> {
    let claim = |place, text, rule, would_decide, folder: &str, judged: Judged| {
        let (state, words) = judged.unwrap_or((State::NotRun, "no numbers are committed yet".to_string()));
        let measured = match folder {
            "theorems" => theorems(evidence).into_iter().next(),
            _ => evidence.of_kind(folder).find(|(_, v)| folder != "spectrum" || !v["checkpoint"].is_null()),
        };
        let folder = measured.map_or(folder, |(folder, _)| folder).to_string();
        Claim { place, text, rule, folder, state, evidence: words, would_decide }
    };
    let untestable = |why: &str| Some((State::Untestable, why.to_string()));
    let fig3 = evidence.sweep("figure3ab");
    let (longest, on_par_at_longest) = on_par_at_last(evidence, &FIGURE_3A, 0.1);
    vec![
        claim(
            "Section 3, Figure 1",
            "Attention of a trained model is low rank: a quarter of the singular values holds 0.89 to 0.93 of their sum.",
            "confirmed if the share at n/4 of every trained full model is at least 0.85 and above that of the untrained one (two standard errors); contradicted if every one is below 0.85 and below the untrained one",
            "the same of a RoBERTa-base that was trained on masked tokens, at n = 512: linformer import, then linformer spectrum on it and on --untrained 1",
            "spectrum",
            low_rank(evidence),
        ),
        claim(
            "Section 3, Figure 1",
            "Higher layers are of lower rank.",
            "confirmed if in every trained full model the share rises at every layer and from the first to the last (paired over sequences, p < 0.05: a test for each model, not over models); contradicted if in every one the last is below the first",
            "the twelve layers of a RoBERTa-base, over several pretrainings: layers of one model are no sample",
            "spectrum",
            depth(evidence),
        ),
        claim(
            "Theorem 1",
            "P can be replaced by P R^T R with an error eps where k = 5 ln n / (eps^2 - eps^3).",
            "confirmed if the measured error of 95 % of the columns stays below eps |P w| at every k where the bound gives one, contradicted if in every model it does not; untestable if it gives none at k <= n. The lemma that the proof takes up bounds |x R^T R y - x y| by eps |x| |y|; the proof writes eps |x y|, which is less",
            "nothing measured: the step of the proof that writes |x y| where the lemma has |x| |y|",
            "theorems",
            bound_holds(evidence, 1),
        ),
        claim(
            "Theorem 2",
            "softmax(s E^T) F V with E and F of the proof's form has an error of at most eps |softmax(s)| |V|.",
            "confirmed if the measured error of 95 % of the rows stays below eps at every k where the bound gives one, contradicted if in every model it does not; untestable if it gives none at k <= n",
            "an n at which k = 5 ln n / (eps^2 - eps^3) is a small part of n: at n = 65,536 and eps = 1/2 it is 444, with a model trained at that length",
            "theorems",
            bound_holds(evidence, 2),
        ),
        claim(
            "Theorem 2",
            "A k of 9 d ln d / eps^2, which does not grow with n, is enough, d the width of a head.",
            "needs n above that k: else E has as many rows as there are positions",
            "an n of some thousands, with a model trained at that length: 9 d ln d / eps^2 is 9,582 at d = 64 and eps = 1/2",
            "theorems",
            untestable("at eps = 1/2 it is 3,993 for the heads of 32 here (9,582 for the 64 of BERT), and no model here is longer than 512"),
        ),
        claim(
            "Section 5.1, Figure 3 a",
            "k = 128 at n = 512 is nearly on par with the Transformer.",
            "confirmed if the 95 % interval of the loss difference at k/n = 1/4, after the longest training there is, lies below 0.1 nats (the paper's is about 0.054: perplexities read off its figure, +-0.013 nats); a wider gap after so short a training does not contradict it",
            "experiments/paper/figure3ab.json: 250,000 updates at n = 512 on 3.3 billion words; before that, longer runs in small: whether the gap goes on falling",
            longest,
            on_par_at_longest,
        ),
        claim(
            "Section 5.1, Figure 3 b",
            "k = 256 at n = 1024 is nearly on par with the Transformer.",
            "confirmed if the 95 % interval of the loss difference at k/n = 1/4 lies below 0.1 nats (the paper's is about 0.051, read off its figure); a wider gap after so short a training does not contradict it",
            "experiments/paper/figure3ab.json, its n1024 rows",
            "figure3ab",
            fig3.and_then(|r| on_par(r, "n128-k32", "n128-full", 0.1)),
        ),
        claim(
            "Section 5.1, Figure 3 a",
            "A larger k has a lower perplexity.",
            "confirmed if k/n = 1/8, 1/4, 1/2 each lower the loss (paired, p < 0.05); contradicted if one raises it",
            "experiments/paper/figure3ab.json",
            "figure3ab",
            fig3.and_then(|r| falling(r, &["n64-k8", "n64-k16", "n64-k32"])),
        ),
        claim(
            "Section 5.1, Figure 3 c",
            "Sharing one projection among all layers almost matches no sharing.",
            "confirmed if the 95 % interval of the loss difference to no sharing lies below 0.03 nats",
            "more seeds, and training that leaves the plateau long before its end; experiments/paper/figure3c.json",
            "figure3c",
            evidence.sweep("figure3c").and_then(|r| on_par(r, "layerwise", "none", 0.03)),
        ),
        claim(
            "Section 5.1, Figure 3 d",
            "With k fixed, the perplexity after convergence is about the same for n = 512 to 4096: quality depends on k, not on n/k.",
            "confirmed if the loss at 8 times the length is at most 0.1 nats higher (95 % interval); the paper's own curves stop about 0.121 nats apart; a wider gap before convergence does not contradict it",
            "training until no n falls any more, longer than experiments/paper/figure3d.json (250,000 updates)",
            "figure3d",
            evidence.sweep("figure3d").and_then(|r| Some(beside_convergence(r, &["n256", "n32"], on_par(r, "n256", "n32", 0.1)?))),
        ),
        claim(
            "Section 5.2, Table 2",
            "Fine-tuned, k = 128 is comparable to RoBERTa.",
            "confirmed if on every task the 95 % interval of the score difference to full attention lies above -0.02",
            "experiments/paper/table2-*.json, from pretraining at the paper's scale",
            "table2",
            evidence.sweep("table2").and_then(|r| comparable(r, "k16", "full", 0.02)),
        ),
        claim(
            "Section 5.2, Table 2",
            "Fine-tuned, k = 128 is comparable to RoBERTa: on rows of SST-2, IMDB and QNLI (the last two in splits of our own), after a small pretraining.",
            "confirmed if on each of them pretraining raises full attention's score (paired, p < 0.05) and the 95 % interval of the score difference to it lies above -0.02",
            "experiments/paper/table2-*.json, from pretraining at the paper's scale; in small, a pretraining that full attention gains from on every one of the three tasks",
            "table2-sst2",
            on_real_tasks(evidence, 0.02),
        ),
        claim(
            "Section 5.2, Table 2",
            "Sharing among layers costs nothing in fine-tuning.",
            "confirmed if on every task the 95 % interval of the score difference to the model shared within each layer lies above -0.02",
            "more seeds in small, until the interval is narrower than the margin; experiments/paper/table2-*.json",
            "table2",
            evidence.sweep("table2").and_then(|r| comparable(r, "k16-layerwise", "k16", 0.02)),
        ),
        claim(
            "Section 5.2, Table 2",
            "Shared among layers, a Linformer has the highest average of the sharing modes.",
            "confirmed if on every task its score is above those of the models with headwise and key_value sharing (paired, p < 0.05), contradicted if it is below them on every one",
            "experiments/paper/table2-*.json, with seeds enough for tenths of a point",
            "table2",
            evidence.sweep("table2").and_then(|r| higher(r, "k16-layerwise", &["k16", "k16-key_value"])),
        ),
        claim(
            "Section 5.2, Table 2",
            "Fine-tuned, quality depends on k, not on n/k: k = 256 at n = 1024 has about the average of n = 512.",
            "needs the same tasks fine-tuned from models of two n",
            "experiments/paper/table2-*.json, from pretraining at n = 512 and 1,024",
            "paper-table2-sst2",
            untestable("the paper has no full attention at its longer n, and no task here was fine-tuned from models of two n"),
        ),
        claim(
            "Section 5.2, Table 2",
            "Shared among layers, k = 256 has a slightly higher average than RoBERTa: 92.30 and 92.25.",
            "confirmed if the score difference to full attention is above 0 (paired, p < 0.05) in the mean of the four tasks",
            "fine-tunings of either model at the paper's scale, so many that the interval of their difference is narrower than 0.05 points",
            "paper-table2-sst2",
            untestable("the paper gives no error bars, and its 0.05 points are below what five seeds of ours can tell (their intervals are wider than a point)"),
        ),
        claim(
            "Section 5.2, Table 2",
            "The scores on SST-2, IMDB, QNLI and QQP are those of RoBERTa-base to within a point.",
            "needs pretraining at the paper's scale (experiments/paper/)",
            "experiments/paper/table2-*.json: linformer info --cluster 8xH100 says what that takes",
            "paper-table2-sst2",
            untestable("3.3 billion words and 250K updates are beyond this machine; linformer info --cluster says what they take"),
        ),
        claim(
            "Section 5.3, Table 3",
            "Inference is faster: 3.4 times at n = 4096, k = 128.",
            "confirmed if a pass takes at most half the time of full attention, both with their scores stored, as in the paper",
            "the same on a GPU of 16 GB, the paper's machine",
            "efficiency",
            faster(evidence, 4096, 2.0),
        ),
        claim(
            "Section 5.3, Table 3",
            "Inference is faster: 20 times at n = 65,536, k = 128.",
            "confirmed if a pass takes at most a tenth of the time of full attention, both with their scores stored; untestable if those of full attention do not fit",
            "a machine with 400 GiB of memory",
            "efficiency",
            faster(evidence, 65536, 10.0),
        ),
        claim(
            "Section 5.3, Table 3",
            "Memory is saved: 14 times at n = 4096, k = 128.",
            "confirmed if the largest batch at n = 4096, k = 128 is at least 7 times that of full attention, both with their scores stored",
            "the same on a GPU of 16 GB, the paper's machine",
            "efficiency",
            smaller(evidence, 4096, 7.0),
        ),
        claim(
            "Section 5.3, Table 3",
            "Memory is saved: 60 times at n = 65,536, k = 128.",
            "confirmed if the largest batch is at least 30 times that of full attention, both with their scores stored; untestable if those of full attention do not fit",
            "a machine with 400 GiB of memory; on the paper's GPU of 16 GB full attention with 12 heads does not fit at n = 32,768 or 65,536, so that its own figures there are in doubt",
            "efficiency",
            smaller(evidence, 65536, 30.0),
        ),
        claim(
            "Section 4, Table 1",
            "Time is linear in n.",
            "confirmed if a token at the longest measured n takes at most 1.5 times what it takes at n = 512 or 1024, at k = 128",
            "a GPU, which short sequences may leave half idle",
            "efficiency",
            linear(evidence),
        ),
        claim(
            "Section 4, Table 1",
            "Memory is linear in n.",
            "confirmed if a sequence at the longest measured n takes at most 1.5 times the bytes a token that one takes at the shortest, at k = 128",
            "nothing more at this scale: memory depends on the program, not on the weights",
            "efficiency",
            linear_memory(evidence),
        ),
        claim(
            "Section 4, \"Nonuniform projected dimension\"",
            "A smaller k in higher layers is the better use of the same sum.",
            "confirmed if k falling with depth has a lower loss than an even k (paired, p < 0.05); contradicted if a higher one",
            "more seeds, and training that leaves the plateau long before its end; experiments/paper/k-by-depth.json",
            "k-by-depth",
            evidence.sweep("k-by-depth").and_then(|r| better(r, "falling", "even")),
        ),
        claim(
            "Long Range Arena (Xiong et al., 2021)",
            "On ListOps Linformer does as well as the Transformer (37.25 and 37.10).",
            "confirmed if the 95 % interval of the score difference at k/n = 1/4 lies above -0.02",
            "experiments/paper/listops.json: the published size, n = 2,048",
            "listops",
            evidence.sweep("listops").and_then(|r| comparable(r, "k32", "full", 0.02)),
        ),
    ]
}

/// Findings of a single measurement, for its page.
pub fn of_record(kind: &str, value: &Value) -> Vec<String> {
    let mut only = Evidence::default();
    only.records.insert(kind.into(), (kind.into(), value.clone()));
    let sentences = match kind {
        "spectrum" if value["attention"] == "full" => vec![depth(&only)],
        "theorems" => vec![bound_holds(&only, 1), bound_holds(&only, 2)],
        "efficiency" => vec![faster(&only, 4096, 2.0), smaller(&only, 4096, 7.0), linear(&only)],
        "shift" => return moved(value),
        _ => Vec::new(),
    };
    sentences.into_iter().flatten().map(|(_, words)| words + ".").collect()
}
