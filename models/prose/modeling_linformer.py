"""A Linformer for `transformers`: loaded by `trust_remote_code=True`, it gives the logits of the program that trained it.

    from transformers import AutoModelForMaskedLM, AutoTokenizer
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)

RoBERTa's encoder whose self-attention compresses keys and values along the sequence from n rows to k before the softmax
(Wang et al., 2020, "Linformer: Self-Attention with Linear Complexity", equation 7):

    head = softmax(Q (E X W_k + b_k)^T / sqrt(d)) (F X W_v + b_v)

Biases come after the compression, and rows of padding are zeroed before it, so what is computed for a text does not depend on
how much padding stands behind it. A shorter text uses the first columns of E and F; one longer than n is an error.
Causal use makes no sense: every compressed row mixes all positions.

Weights have the names of Hugging Face's RoBERTa. E and F are `attention.self.key_projection` and `value_projection`, `[k, n]`,
or `[heads, k, n]` with a matrix for each head; one for all layers is `encoder.shared_projection`.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput


class LinformerConfig(PretrainedConfig):
    """RoBERTa's keys, and two more.

    norm: `post` (RoBERTa) or `pre` (LayerNorm before each block).
    attention: `kind` (`linformer`, `full`), `k` (a number, one per layer, or one per layer and head), `sharing` (`none`,
    `headwise`, `key_value`, `layerwise`), `projection` (`learned`, `fixed`, `mean_pool`, `max_pool`, `conv`).
    """

    model_type = "linformer"

    def __init__(
        self,
        vocab_size=50265,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
        norm="post",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        classifier_dropout=None,
        initializer_range=0.02,
        attention=None,
        **kwargs,
    ):
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act
        self.norm = norm
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.initializer_range = initializer_range
        defaults = {"kind": "linformer", "k": 128, "sharing": "headwise", "projection": "learned"}
        self.attention = {**defaults, **(attention or {})}

    @property
    def sequence_length(self):
        """n: the longest text in tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def k(self, layer):
        """The projected dimension of every head of a layer."""
        k = self.attention["k"]
        k = k[layer] if isinstance(k, list) else k
        return k if isinstance(k, list) else [k] * self.num_attention_heads


def activation(config):
    return {"gelu": F.gelu, "relu": F.relu}[config.hidden_act]


def layer_norm(config):
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def projection_weight(config, ks, per_head):
    """The parameter of one projection: a matrix [k, n], a kernel [w], with a dimension for heads if each has its own; a
    list of them if heads have different k; None for pooling."""
    n, projection = config.sequence_length, config.attention["projection"]
    if projection in ("mean_pool", "max_pool"):
        return None
    learned = projection != "fixed"
    shape = (lambda k: [-(-n // k)]) if projection == "conv" else (lambda k: [k, n])
    new = lambda size: nn.Parameter(torch.empty(size), requires_grad=learned)
    if not per_head:
        return new(shape(ks[0]))
    if len(set(ks)) == 1:
        return new([len(ks), *shape(ks[0])])
    return nn.ParameterList([new(shape(k)) for k in ks])


def windows(x, w):
    """[.., L, c] as [.., ceil(L / w), w, c], filled up with zeros."""
    rows = -(-x.shape[-2] // w)
    x = F.pad(x, (0, 0, 0, rows * w - x.shape[-2]))
    return x.reshape(*x.shape[:-2], rows, w, x.shape[-1])


def compress(config, x, weight, k, keep):
    """x [B, L, c] or [B, h, L, c], zero at padding; keep [B, L] bool. Gives the rows and a mask [B, 1, 1, rows] of those
    that have real tokens (None: all take part)."""
    projection = config.attention["projection"]
    if projection in ("learned", "fixed"):
        return weight[..., : x.shape[-2]] @ x, None
    w = -(-config.sequence_length // k)
    real = windows(keep.unsqueeze(-1), w)  # [B, rows, w, 1]
    real = real.unsqueeze(1) if x.dim() == 4 else real
    mask = windows(keep.unsqueeze(-1), w).any(-2).squeeze(-1)[:, None, None, :]
    parts = windows(x, w)
    if projection == "conv":
        kernel = weight[:, None, None, :] if weight.dim() == 2 else weight[None, :]
        return (kernel @ parts).squeeze(-2), mask
    if projection == "mean_pool":
        return parts.sum(-2) / real.sum(-2).clamp_min(1), mask
    highest = parts.masked_fill(~real, -1e30).amax(-2)
    return highest.masked_fill(~real.any(-2), 0.0), mask


class LinformerSelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        d, sharing = config.hidden_size, config.attention["sharing"]
        self.config, self.heads, self.ks = config, config.num_attention_heads, config.k(layer)
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.full = config.attention["kind"] == "full"
        self.per_head = sharing == "none"
        if not self.full and sharing != "layerwise":
            self.key_projection = projection_weight(config, self.ks, self.per_head)
            if sharing != "key_value":
                self.value_projection = projection_weight(config, self.ks, self.per_head)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def compressed(self, x, linear, weight, keep):
        """Keys or values [B, h, rows, d/h] and the mask of their rows."""
        if not self.per_head:
            rows, mask = compress(self.config, x, weight, self.ks[0], keep)
            return self.split(linear(rows)), mask
        heads = self.split(F.linear(x, linear.weight))
        bias = linear.bias.view(1, self.heads, 1, -1)
        if len(set(self.ks)) == 1:
            rows, mask = compress(self.config, heads, weight, self.ks[0], keep)
            return rows + bias, mask
        parts = [
            compress(self.config, heads[:, h : h + 1], None if weight is None else weight[h], k, keep)
            for h, k in enumerate(self.ks)
        ]
        longest = max(rows.shape[2] for rows, _ in parts)
        rows = torch.cat([F.pad(rows, (0, 0, 0, longest - rows.shape[2])) for rows, _ in parts], 1)
        masks = []
        for part, mask in parts:
            size = (x.shape[0], 1, 1, part.shape[2])
            mask = torch.ones(size, dtype=torch.bool, device=x.device) if mask is None else mask.expand(size)
            masks.append(F.pad(mask, (0, longest - part.shape[2])))
        return rows + bias, torch.cat(masks, 1)

    def forward(self, x, keep, shared):
        q = self.split(self.query(x))
        if self.full:
            k, v, mask = self.split(self.key(x)), self.split(self.value(x)), keep[:, None, None, :]
        else:
            e = shared if shared is not None else getattr(self, "key_projection", None)
            f = getattr(self, "value_projection", e)
            zeroed = x * keep.unsqueeze(-1)
            k, mask = self.compressed(zeroed, self.key, e, keep)
            v, _ = self.compressed(zeroed, self.value, f, keep)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = self.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype)) @ v
        return out.transpose(1, 2).reshape(x.shape)


class Output(nn.Module):
    """The matrix at the end of a block, and the LayerNorm that goes with the block."""

    def __init__(self, config, inputs):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = layer_norm(config)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.self = LinformerSelfAttention(config, layer)
        self.output = Output(config, config.hidden_size)


class Intermediate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.pre, self.act = config.norm == "pre", activation(config)
        self.attention = Attention(config, layer)
        self.intermediate = Intermediate(config)
        self.output = Output(config, config.intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def attend(self, x, keep, shared):
        return self.dropout(self.attention.output.dense(self.attention.self(x, keep, shared)))

    def feed_forward(self, x):
        return self.dropout(self.output.dense(self.act(self.intermediate.dense(x))))

    def forward(self, x, keep, shared):
        first, second = self.attention.output.LayerNorm, self.output.LayerNorm
        if self.pre:
            x = x + self.attend(first(x), keep, shared)
            return x + self.feed_forward(second(x))
        x = first(x + self.attend(x, keep, shared))
        return second(x + self.feed_forward(x))


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList([Layer(config, i) for i in range(config.num_hidden_layers)])
        layerwise = config.attention["kind"] != "full" and config.attention["sharing"] == "layerwise"
        self.shared_projection = projection_weight(config, config.k(0), False) if layerwise else None
        self.LayerNorm = layer_norm(config) if config.norm == "pre" else nn.Identity()

    def forward(self, x, keep):
        states = [x]
        for layer in self.layer:
            states.append(layer(states[-1], keep, self.shared_projection))
        return self.LayerNorm(states[-1]), states


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, self.pad = config.hidden_size, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, d, padding_idx=self.pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, d, padding_idx=self.pad)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.LayerNorm = layer_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids, keep, types):
        positions = keep.long().cumsum(1) * keep + self.pad
        types = self.token_type_embeddings.weight[0] if types is None else self.token_type_embeddings(types)
        x = self.word_embeddings(ids) + self.position_embeddings(positions) + types
        return self.dropout(self.LayerNorm(x))


class LinformerPreTrainedModel(PreTrainedModel):
    config_class = LinformerConfig
    base_model_prefix = "roberta"

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (LinformerSelfAttention, Encoder)):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, 0.0, std)


class LinformerModel(LinformerPreTrainedModel):
    """Token ids [B, L] to hidden states [B, L, d]."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, output_hidden_states=None, return_dict=None, **_):
        if input_ids.shape[1] > self.config.sequence_length:
            raise ValueError(f"{input_ids.shape[1]} tokens, expected at most n = {self.config.sequence_length}")
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        hidden, states = self.encoder(self.embeddings(input_ids, keep, token_type_ids), keep)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None)


class LMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.act = activation(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = layer_norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, words):
        return F.linear(self.layer_norm(self.act(self.dense(x))), words, self.bias)


class LinformerForMaskedLM(LinformerPreTrainedModel):
    """The output matrix is the matrix of word embeddings."""

    def __init__(self, config):
        super().__init__(config)
        self.roberta = LinformerModel(config)
        self.lm_head = LMHead(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        out = self.roberta(input_ids, attention_mask, **kwargs)
        logits = self.lm_head(out.last_hidden_state, self.roberta.embeddings.word_embeddings.weight)
        loss = None if labels is None else F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), labels.view(-1))
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class ClassificationHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        p = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if p is None else p)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x):
        x = torch.tanh(self.dense(self.dropout(x[:, 0])))
        return self.out_proj(self.dropout(x))


class LinformerForSequenceClassification(LinformerPreTrainedModel):
    """Classes from the first token; one label is a regression."""

    def __init__(self, config):
        super().__init__(config)
        self.roberta = LinformerModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        out = self.roberta(input_ids, attention_mask, **kwargs)
        logits = self.classifier(out.last_hidden_state)
        loss = None
        if labels is not None:
            regression = logits.shape[-1] == 1
            loss = F.mse_loss(logits.view(-1), labels.float()) if regression else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)
