//! What the loop has to know to go on, beside weights and optimizer: `state.json` of a checkpoint.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised when the files of a checkpoint change their meaning; [`State::read`] knows the earlier forms.
pub const FORMAT: u32 = 2;

/// The loop's own state. There is no generator among it: all randomness is a function of (seed, purpose, step).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Optimizer steps made, skipped ones included.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training, over all starts.
    pub seconds: f64,
    /// The best evaluations, best first.
    pub best: Vec<Best>,
    /// Evaluations since the best.
    pub evaluations_since_best: u64,
    /// The evaluation that is due after `step` was broken off: it comes before the next step.
    pub evaluation_pending: bool,
    pub health: Health,
    /// Sums since the last line of metrics.jsonl.
    pub window: Window,
}

/// One evaluation among the best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Higher is better; None: the metric was not defined.
    pub score: Option<f64>,
    pub step: u64,
}

/// What went wrong so far, and what a usual gradient is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Steps without an update, because loss or gradients were not finite.
    pub skipped: u64,
    /// ... since the last step that was made.
    pub skipped_in_a_row: u64,
    /// Running mean of the gradient norm.
    pub mean_norm: f64,
    /// Norms in it.
    pub norms: u64,
}

/// Sums over the steps since the last report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    pub loss: f64,
    pub targets: u64,
    pub tokens: u64,
    /// Tokens and padding.
    pub positions: u64,
    pub seconds: f64,
    /// Seconds spent on waiting for data.
    pub waited: f64,
    /// Seconds that training stood still for checkpoints.
    pub stalled: f64,
    /// Seconds that gradients were on the way between ranks ...
    pub communication: f64,
    /// ... and of these, those after the last gradient was known.
    pub exposed_communication: f64,
    pub largest_norm: f64,
    pub spikes: u64,
    pub skipped: u64,
}

impl State {
    /// From `state.json` of a checkpoint of any format up to [`FORMAT`].
    pub fn read(text: &str, format: u32) -> Result<Self, String> {
        let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if let (true, Value::Object(object)) = (format < 2, &mut value) {
            // Format 1 kept one best evaluation, or null.
            let best = object.remove("best").unwrap_or_default();
            object.insert("best".into(), if best.is_null() { Value::Array(Vec::new()) } else { Value::Array(vec![best]) });
        }
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    pub fn best(&self) -> Option<Best> {
        self.best.first().copied()
    }

    /// Takes the evaluation of the current step among the best `keep`. An undefined score never beats a defined one, but
    /// the first evaluation is kept whatever it says.
    pub fn evaluated(&mut self, score: Option<f64>, keep: usize) -> Rank {
        let score = score.filter(|s| s.is_finite());
        let beats = |other: &Best| match (score, other.score) {
            (Some(score), Some(other)) => score > other,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let place = self.best.iter().position(beats).unwrap_or(self.best.len());
        self.best.insert(place, Best { score, step: self.step });
        self.best.truncate(keep.max(1));
        self.evaluations_since_best = if place == 0 { 0 } else { self.evaluations_since_best + 1 };
        if place < self.best.len() {
            Rank::Kept
        } else {
            Rank::Worse
        }
    }
}

/// Whether an evaluation is among the best that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    Kept,
    Worse,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_ordered_and_the_earlier_of_two_equals_stands_first() {
        let mut state = State::default();
        let mut add = |step: u64, score: Option<f64>| {
            state.step = step;
            let rank = state.evaluated(score, 2);
            (rank, state.best.iter().map(|b| b.step).collect::<Vec<_>>(), state.evaluations_since_best)
        };
        assert_eq!(add(1, None), (Rank::Kept, vec![1], 0));
        assert_eq!(add(2, Some(0.5)), (Rank::Kept, vec![2, 1], 0));
        assert_eq!(add(3, Some(0.5)), (Rank::Kept, vec![2, 3], 1));
        assert_eq!(add(4, Some(f64::NAN)), (Rank::Worse, vec![2, 3], 2));
        assert_eq!(add(5, Some(0.4)), (Rank::Worse, vec![2, 3], 3));
        assert_eq!(add(6, Some(0.6)), (Rank::Kept, vec![6, 2], 0));
    }

    #[test]
    fn the_first_format_is_read() {
        let old = r#"{"step":3,"tokens":192,"seconds":0.5,"best":{"score":-5.5,"step":3},"evaluations_since_best":1,
            "window":{"loss":1.0,"targets":30,"tokens":192,"seconds":0.2,"waited":0.1}}"#;
        let state = State::read(old, 1).unwrap();
        assert_eq!((state.best(), state.window.targets), (Some(Best { score: Some(-5.5), step: 3 }), 30));
        let none = State::read(r#"{"step":3,"best":null}"#, 1).unwrap();
        assert_eq!(none.best(), None);
        assert!(State::read("{\"step\":-1}", FORMAT).is_err());
    }
}
