"""Reads a run's event file with TensorBoard's own reader and holds it against metrics.jsonl."""
import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
events.Reload()
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
groups = dict.fromkeys(["lr", "grad_norm", "grad_norm_max", "grad_norm_spikes", "skipped_steps"], "optim")
groups |= dict.fromkeys(["tokens_per_second", "mfu", "data_wait", "padding", "checkpoint_stall", "peak_memory"], "speed")
compared = 0
for line in lines:
    for name, value in line.items():
        if name in ("step", "split", "time", "tokens") or value is None:
            continue
        tag = f"{groups.get(name, line['split'])}/{name}"
        found = [e for e in events.Scalars(tag) if e.step == line["step"]]
        assert len(found) == 1, f"{tag} at step {line['step']}: {len(found)} events"
        assert math.isclose(found[0].value, value, rel_tol=1e-6, abs_tol=1e-12), f"{tag}: {found[0].value}, expected {value}"
        assert math.isclose(found[0].wall_time, line["time"], abs_tol=1e-3)
        compared += 1
assert compared > 30, compared
print(f"tensorboard_check: {compared} values under {len(events.Tags()['scalars'])} tags agree with metrics.jsonl")
