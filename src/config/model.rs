//! Keys of the group `model`: Hugging Face's names, and the choices of the paper (sections 4 and 5).

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Shape and initialisation of an encoder. Defaults are RoBERTa-base's; `attention` is the paper's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Number of token ids; null: what the tokenizer has.
    pub vocab_size: Option<i64>,
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub intermediate_size: i64,
    /// Rows of the position table as Hugging Face counts them: n + pad_token_id + 1; null: from `data.sequence_length`.
    pub max_position_embeddings: Option<i64>,
    pub type_vocab_size: i64,
    pub pad_token_id: i64,
    pub layer_norm_eps: f64,
    pub hidden_act: HiddenAct,
    /// LayerNorm after the residual sum (RoBERTa) or before each block.
    pub norm: Norm,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the two layers of a classification head; null: `hidden_dropout_prob`.
    pub classifier_dropout: Option<f64>,
    pub weight_init: WeightInit,
    /// Standard deviation for `weight_init: normal`, and of word embeddings unless `embedding_init_range` says otherwise.
    pub initializer_range: f64,
    pub embedding_init_range: Option<f64>,
    pub position_init: PositionInit,
    /// Standard deviation (normal) or amplitude (sinusoidal) of the position embeddings; null: `initializer_range`.
    pub position_init_range: Option<f64>,
    /// Longest wavelength of a sinusoidal start, over 2 pi, in positions. Short sequences want less than the usual 10,000.
    pub position_init_base: f64,
    /// Which implementation computes the model: the same function to rounding.
    pub backend: Backend,
    pub attention: Attention,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            vocab_size: None,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            max_position_embeddings: None,
            type_vocab_size: 1,
            pad_token_id: 1,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::Gelu,
            norm: Norm::Post,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            weight_init: WeightInit::Normal,
            initializer_range: 0.02,
            embedding_init_range: None,
            position_init: PositionInit::Normal,
            position_init_range: None,
            position_init_base: 10_000.0,
            backend: Backend::Fused,
            attention: Attention::default(),
        }
    }
}

impl Model {
    /// n: the longest sequence, once `max_position_embeddings` is known.
    pub fn sequence_length(&self) -> i64 {
        self.max_position_embeddings.unwrap_or(0) - self.pad_token_id - 1
    }

    /// Token ids, once known.
    pub fn vocabulary(&self) -> i64 {
        self.vocab_size.unwrap_or(0)
    }
}

/// Self-attention: full, or the paper's (section 4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attention {
    pub kind: AttentionKind,
    /// Projected dimension: a number, one per layer, or (sharing `none`) one per layer and head.
    pub k: KSpec,
    pub sharing: Sharing,
    pub projection: Projection,
    pub order: Order,
    /// Start of the matrices E and F.
    pub init: ProjectionInit,
    /// What a compressed key may hold of padding.
    pub padding: Padding,
    /// Where the key and value biases stand.
    pub bias: BiasOrder,
    pub backend: AttentionBackend,
}

impl Default for Attention {
    fn default() -> Self {
        Self {
            kind: AttentionKind::Linformer,
            k: KSpec::One(128),
            sharing: Sharing::Headwise,
            projection: Projection::Learned,
            order: Order::Auto,
            init: ProjectionInit::Normal,
            padding: Padding::Zeroed,
            bias: BiasOrder::After,
            backend: AttentionBackend::Fused,
        }
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The word in the config.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use choice;

choice!(AttentionKind { Linformer = "linformer", Full = "full" });
choice!(HiddenAct { Gelu = "gelu", Relu = "relu" });
choice!(Norm { Post = "post", Pre = "pre" });
choice!(WeightInit {
    /// N(0, `initializer_range`), RoBERTa's.
    Normal = "normal",
    /// N(0, 1/d) with d the width that the matrix reads: what short runs need.
    InverseSqrtWidth = "inverse_sqrt_width",
});
choice!(PositionInit { Normal = "normal", Sinusoidal = "sinusoidal" });
choice!(
    /// Which matrices are one and the same (paper, section 4): own per head, one E and F per layer, E = F, one for all layers.
    Sharing { None = "none", Headwise = "headwise", KeyValue = "key_value", Layerwise = "layerwise" }
);
choice!(
    /// What maps n positions to k rows (paper, section 4, "General projections").
    Projection { Learned = "learned", Fixed = "fixed", MeanPool = "mean_pool", MaxPool = "max_pool", Conv = "conv" }
);
choice!(
    /// (E X) W or E (X W): the same function for every linear projection. `auto` takes the cheaper: compress first
    /// unless every head has its own E.
    Order { Auto = "auto", CompressFirst = "compress_first", ProjectFirst = "project_first" }
);
choice!(ProjectionInit {
    /// N(0, 0.02), what fairseq's Linformer ends up with.
    Normal = "normal_0.02",
    Xavier = "xavier",
    /// N(0, 1/k): the Johnson-Lindenstrauss matrix of the paper's theorems.
    Jl = "jl",
    /// A mean-pooling matrix with rows of unit length plus N(0, 0.02), learned from there.
    MeanPool = "mean_pool",
});
choice!(
    /// E (X W) + b, for which both orders are one function; or E (X W + b), the formula taken to the letter of a linear layer:
    /// every compressed row then has its own multiple of b.
    BiasOrder { After = "after_compression", Before = "before_compression" }
);
choice!(
    /// `zeroed`: padding is zero before every compression, so that outputs do not depend on how much of it there is. `blind`:
    /// it is zeroed once, after the embeddings, and then treated like text, as the paper's released code does; for
    /// comparison only.
    Padding { Zeroed = "zeroed", Blind = "blind" }
);
choice!(
    /// `fused`: blocks of our own in one pass over memory where this device and kind have them; `reference`: libtorch's
    /// operations, what the blocks are held against.
    Backend { Fused = "fused", Reference = "reference" }
);
choice!(
    /// How scores are computed. `fused`: never stored, by our kernel, or libtorch's where there is none of ours; `libtorch`:
    /// always by libtorch's; `materialised`: softmax(Q K^T) as a tensor (Table 3's baseline).
    AttentionBackend { Fused = "fused", Libtorch = "libtorch", Materialised = "materialised" }
);

/// k as the config gives it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum KSpec {
    One(i64),
    PerLayer(Vec<i64>),
    PerHead(Vec<Vec<i64>>),
}

impl<'de> Deserialize<'de> for KSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let parsed = match &value {
            Value::Number(_) => serde_json::from_value(value.clone()).map(KSpec::One),
            Value::Array(rows) if rows.iter().all(Value::is_array) => serde_json::from_value(value.clone()).map(KSpec::PerHead),
            _ => serde_json::from_value(value.clone()).map(KSpec::PerLayer),
        };
        parsed.map_err(|_| {
            D::Error::custom(format!(
                "found {value}, expected a whole number, a list with one per layer, or a list of lists with one per layer and head"
            ))
        })
    }
}

impl KSpec {
    /// k of one head in one layer; the config has been validated.
    pub fn at(&self, layer: usize, head: usize) -> i64 {
        match self {
            KSpec::One(k) => *k,
            KSpec::PerLayer(layers) => layers[layer],
            KSpec::PerHead(layers) => layers[layer][head],
        }
    }

    /// For tables: `64` or `64..128`.
    pub fn summary(&self) -> String {
        let all: Vec<i64> = match self {
            KSpec::One(k) => vec![*k],
            KSpec::PerLayer(layers) => layers.clone(),
            KSpec::PerHead(layers) => layers.concat(),
        };
        match (all.iter().min(), all.iter().max()) {
            (Some(low), Some(high)) if low == high => low.to_string(),
            (Some(low), Some(high)) => format!("{low}..{high}"),
            _ => String::new(),
        }
    }
}
