#!/usr/bin/env python3
"""One peer of `make bench` as a process: builds its model, warms up, then makes as many steps as each line of stdin says
and answers with the seconds.

    peers.py PEER MODEL(json) PRECISION TOKENS.bin THREADS

Peers: `hugging-face` and `hugging-face-compile` (RobertaForMaskedLM, SDPA), `lucidrains` (LinformerLM, shared keys and
values), `floor` (no model: the matrix products of one step, one after the other, by torch.mm and torch.bmm), `floor-chosen` (the same with the
last layer's rows that are predicted alone, which is what ours computes). `shapes`: those products once by shape, as JSON, and no steps.
All train on the same tokens, 15 % of them masked, with fused AdamW and the gradient norm clipped to 1.
"""
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

peer, model, precision, tokens, threads = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
torch.set_num_threads(threads)
torch.manual_seed(0)
bf16 = precision == "bf16"
V, n, d, h, layers, k, batch, f = (model[key] for key in ["V", "n", "d", "h", "layers", "k", "batch", "f"])
ids = np.fromfile(tokens, dtype=np.uint16, offset=128).astype(np.int64)


def batches():
    rng, at = np.random.default_rng(0), 0
    while True:
        at = at if at + batch * n <= len(ids) else 0
        block = torch.from_numpy(ids[at : at + batch * n].reshape(batch, n).copy())
        at += batch * n
        masked = torch.from_numpy(rng.random((batch, n)) < 0.15)
        labels = block.masked_fill(~masked, -100)
        draw = torch.from_numpy(rng.random((batch, n)))
        block = torch.where(masked & (draw < 0.8), torch.tensor(4), block)
        yield torch.where(masked & (draw >= 0.9), torch.from_numpy(rng.integers(5, V, (batch, n))), block), labels


def trainer(net, loss_of):
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    weights, data = list(net.parameters()), batches()

    def step():
        inputs, labels = next(data)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    return step


def hugging_face(compiled):
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(vocab_size=V, hidden_size=d, num_hidden_layers=layers, num_attention_heads=h, intermediate_size=f,
                           max_position_embeddings=n + 2, attention_probs_dropout_prob=0.1)
    net = RobertaForMaskedLM(config).train()
    call = torch.compile(net) if compiled else net
    return trainer(net, lambda inputs, labels: call(input_ids=inputs, labels=labels).loss)


def lucidrains():
    from linformer import LinformerLM

    net = LinformerLM(num_tokens=V, dim=d, seq_len=n, depth=layers, heads=h, k=k, one_kv_head=False, share_kv=True, dropout=0.1).train()
    return trainer(net, lambda inputs, labels: F.cross_entropy(net(inputs).view(-1, V).float(), labels.view(-1), ignore_index=-100))


def floor(chosen):
    """The products of a step; `chosen`: with the last layer's rows that are predicted alone, as ours makes them."""
    kind = torch.bfloat16 if bf16 else torch.float32
    rows, short, masked, head = batch * n, batch * k, round(0.15 * batch * n), d // h
    calls = []  # (shape in words, product)

    def product(m, inner, out):
        """y = x W^T with both gradients."""
        x, w, dy = torch.randn(m, inner, dtype=kind), torch.randn(out, inner, dtype=kind), torch.randn(m, out, dtype=kind)
        name = f"[{m}, {inner}] [{inner}, {out}]"
        calls.extend([(name, lambda: torch.mm(x, w.t())), (name, lambda: torch.mm(dy, w)), (name, lambda: torch.mm(dy.t(), x))])

    def batched(count, m, inner, out):
        """y = a b with both gradients."""
        a, b, dy = (torch.randn(count, *shape, dtype=kind) for shape in [(m, inner), (inner, out), (m, out)])
        name = f"{count} x [{m}, {inner}] [{inner}, {out}]"
        calls.extend([(name, lambda: torch.bmm(a, b)), (name, lambda: torch.bmm(dy, b.transpose(1, 2))), (name, lambda: torch.bmm(a.transpose(1, 2), dy))])

    for made in [rows] * (layers - 1) + [masked // batch * batch if chosen else rows]:
        product(made, d, d), product(short, d, d), product(short, d, d), product(made, d, d)
        batched(batch, k, n, d), batched(batch * h, made // batch, head, k), batched(batch * h, made // batch, k, head)
        product(made, d, f), product(made, f, d)
    product(masked, d, d), product(masked, d, V)

    return calls


def all_of(calls):
    def step():
        for _, call in calls:
            call()

    return step


def by_shape(calls, rounds=5):
    """Of every shape, forward and both gradients: how many products, and milliseconds a step, the median of some rounds."""
    seconds = {}
    for _ in range(rounds):
        spent = {}
        for name, call in calls:
            start = time.perf_counter()
            call()
            spent.setdefault(name, []).append(time.perf_counter() - start)
        for name, each in spent.items():
            seconds.setdefault(name, []).append(sum(each))
    counts = {name: sum(other == name for other, _ in calls) for name in seconds}
    return {name: {"count": counts[name], "milliseconds": 1e3 * sorted(all_rounds)[rounds // 2]} for name, all_rounds in seconds.items()}


if peer == "shapes":
    print(json.dumps(by_shape(floor(True))))
    sys.exit()
step = {"hugging-face": lambda: hugging_face(False), "hugging-face-compile": lambda: hugging_face(True), "lucidrains": lucidrains, "floor": lambda: all_of(floor(False)),
        "floor-chosen": lambda: all_of(floor(True))}[peer]()
step(), step()
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        step()
    print(time.perf_counter() - start, flush=True)
