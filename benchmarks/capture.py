"""What the capture costs a training run: the same steps with and without it.

A small random Llama is trained on random examples through a PyTorch DataLoader. Runs with and
without the capture alternate, so that a busy machine slows both. The capture's own work is also
timed by itself, for rows of several lengths, which tells what it costs a larger model. Prints a
table and writes ``benchmarks/results/capture.json``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

BATCH = 8


class Rows:
    def __init__(self, n: int, length: int) -> None:
        self.rows = np.random.default_rng(0).integers(0, 4096, (n, length))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        import torch

        return {"input_ids": torch.tensor(self.rows[i])}


def steps_of(data: Rows, folder: Path | None):
    import torch
    from torch.utils.data import DataLoader

    from workbench.capture import Capture

    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator)
    return loader if folder is None else Capture(folder, plans=True).loader(loader)


def trained(data: Rows, folder: Path | None, model, optimiser) -> float:
    """CPU seconds per step: on a shared machine steadier than the clock."""
    began = time.process_time()
    for batch in steps_of(data, folder):
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return (time.process_time() - began) / (len(data) / BATCH)


def alone(length: int, steps: int) -> float:
    """Seconds per step that the capture adds to a loader that does nothing else."""
    data, times = Rows(BATCH * steps, length), []
    for captured in (False, True):
        best = np.inf
        for _ in range(3):
            with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
                began = time.perf_counter()
                for _ in steps_of(data, Path(name) if captured else None):
                    pass
                best = min(best, (time.perf_counter() - began) / steps)
        times.append(best)
    return times[1] - times[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="per run")
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/capture.json")
    parser.add_argument("--smoke", action="store_true", help="few steps, one run of each")
    asked = parser.parse_args()
    if asked.smoke:
        asked.steps, asked.runs = 4, 1
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=4096,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = Rows(BATCH * asked.steps, 64)
    plain, captured = [], []
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
        trained(Rows(BATCH * 2, 64), None, model, optimiser)
        for run in range(asked.runs):
            plain.append(trained(data, None, model, optimiser))
            captured.append(trained(data, Path(name) / str(run), model, optimiser))
    step = statistics.median(plain)
    shares = [c / p - 1 for c, p in zip(captured, plain, strict=True)]
    print(f"{'tokens a row':>12} {'added µs a step':>16} {'of a step of this model':>24}")
    rows = []
    for length in (64, 2048):
        added = alone(length, 8 if asked.smoke else 400)
        rows.append({"tokens": length, "added_seconds_per_step": added})
        # a step of the same model on longer rows takes at least in proportion longer
        share = added / (step * length / 64)
        print(f"{length:>12} {added * 1e6:>16.0f} {share:>23.2%}")
    print(f"a step of 8 rows of 64 tokens: {step * 1e3:.1f} ms")
    print("whole runs, with against without:", ", ".join(f"{share:+.2%}" for share in shares))
    result = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "torch": metadata.version("torch"),
        "steps": asked.steps,
        "batch": BATCH,
        "cpu_seconds_per_step": step,
        "runs_with_against_without": shares,
        "alone": rows,
    }
    out = asked.out or Path(__file__).parent / "results" / "capture.json"
    if not asked.smoke or asked.out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
