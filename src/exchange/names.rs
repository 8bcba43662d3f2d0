//! Names of weights, ours and theirs.
//!
//! Ours are RoBERTa's (`roberta.encoder.layer.0.attention.self.query.weight`). BERT differs in the prefix, the masked-LM head
//! (`cls.predictions`), the classification head (a pooler and one matrix, which together compute what RoBERTa's head does)
//! and the position table, whose first rows RoBERTa leaves to padding.

/// How a checkpoint names its weights and counts its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Roberta,
    Bert,
    /// This program's own export, which has `modeling_linformer.py` beside it: names and positions are RoBERTa's.
    Linformer,
}

/// Our name with the end of theirs: (ours, BERT's).
const BERT_NAMES: [(&str, &str); 5] = [
    ("lm_head.bias", "cls.predictions.bias"),
    ("lm_head.dense.", "cls.predictions.transform.dense."),
    ("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm."),
    ("classifier.dense.", "bert.pooler.dense."),
    ("classifier.out_proj.", "classifier."),
];
const OUR_PREFIX: &str = "roberta.";
pub const POSITIONS: &str = "roberta.embeddings.position_embeddings.weight";
pub const WORDS: &str = "roberta.embeddings.word_embeddings.weight";

impl Family {
    /// What stands before the names of the encoder, but for files of the encoder alone.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::Roberta | Self::Linformer => OUR_PREFIX,
        }
    }

    /// Their name of one of our weights.
    pub fn theirs(self, ours: &str) -> String {
        if self != Self::Bert {
            return ours.into();
        }
        if let Some(rest) = ours.strip_prefix(OUR_PREFIX) {
            return format!("bert.{rest}");
        }
        let found = BERT_NAMES.iter().find_map(|(from, to)| Some(format!("{to}{}", ours.strip_prefix(from)?)));
        found.unwrap_or_else(|| ours.into())
    }

    /// Every name under which one of our weights may stand: with and without the encoder's prefix, and with the names that
    /// the first BERT files gave to LayerNorm's weight (gamma) and bias (beta).
    pub fn candidates(self, ours: &str) -> Vec<String> {
        let theirs = self.theirs(ours);
        let bare = theirs.strip_prefix(self.prefix()).map(str::to_string);
        let names: Vec<String> = std::iter::once(theirs).chain(bare).collect();
        let old = names.iter().filter_map(|name| {
            let (stem, part) = name.rsplit_once('.')?;
            let old = match part {
                "weight" => "gamma",
                "bias" => "beta",
                _ => return None,
            };
            stem.ends_with("LayerNorm").then(|| format!("{stem}.{old}"))
        });
        let old: Vec<String> = old.collect();
        names.into_iter().chain(old).collect()
    }

    /// Names under which the output matrix and its bias may stand a second time, with the weight of ours that they repeat.
    pub fn tied(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Bert => [("cls.predictions.decoder.weight", WORDS), ("cls.predictions.decoder.bias", "lm_head.bias")],
            _ => [("lm_head.decoder.weight", WORDS), ("lm_head.decoder.bias", "lm_head.bias")],
        }
    }

    /// Rows of their position table before the first position.
    pub fn first_position(self, pad: i64) -> i64 {
        match self {
            Self::Bert => 0,
            _ => pad + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bert_names_are_found_in_their_old_and_new_forms() {
        let b = Family::Bert;
        assert_eq!(b.theirs("roberta.encoder.layer.3.output.LayerNorm.bias"), "bert.encoder.layer.3.output.LayerNorm.bias");
        assert_eq!(b.theirs("lm_head.bias"), "cls.predictions.bias");
        assert_eq!(b.theirs("lm_head.layer_norm.weight"), "cls.predictions.transform.LayerNorm.weight");
        assert_eq!(b.theirs("classifier.dense.bias"), "bert.pooler.dense.bias");
        assert_eq!(b.theirs("classifier.out_proj.weight"), "classifier.weight");
        assert_eq!(
            b.candidates("roberta.embeddings.LayerNorm.weight"),
            [
                "bert.embeddings.LayerNorm.weight",
                "embeddings.LayerNorm.weight",
                "bert.embeddings.LayerNorm.gamma",
                "embeddings.LayerNorm.gamma"
            ]
        );
        assert_eq!(b.candidates("lm_head.layer_norm.bias")[1], "cls.predictions.transform.LayerNorm.beta");
        assert_eq!(Family::Roberta.candidates("lm_head.bias"), ["lm_head.bias"]);
    }
}
