"""What the precision of scoring does to the test: the same query test in every mode.

The lab's models (recipe ``tiny`` by default; trained first if the cache has none, or
``palimpsest lab train``) score the owner's transcript in each mode, suspect and reference alike.
Float32 is the yardstick. Printed for each suspect and mode: Spearman's correlation with float32
of the scores and of suspect − reference, the largest deviation of a score in nats per token, z and
log10 p of the query test, and its verdict. Scores are made anew in each run, never taken from the
cache.

    python benchmarks/precision.py
    python benchmarks/precision.py --smoke        # random models, seconds

Prints a table and writes ``benchmarks/results/precision.json``.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from workbench import InputError, Transcript, lab, query_test, score_transcript
from workbench.scorers import CausalLMScorer
from workbench.scorers.causal_lm import DTYPES

YARDSTICK = "float32"
SUSPECTS = ("alice", "derivative", "independent")
REFERENCE = "reference-same"
SMALLEST_EFFECT = 0.02


def random_models(folder: Path) -> tuple[Transcript, dict[str, Path]]:
    """Four models that remember nothing, and rows of random tokens: the code path, no result."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=256,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    folders = {}
    for number, name in enumerate((*SUSPECTS, REFERENCE)):
        torch.manual_seed(number)
        folders[name] = folder / name
        LlamaForCausalLM(config).save_pretrained(folders[name])
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (64, 16))
    return Transcript.from_arrays(rng.permutation(len(rows)), tokens=rows, shuffle="owner"), folders


def scored(
    transcript: Transcript, folder: Path, name: str, mode: str, device: str
) -> tuple[Any, float]:
    """Scores by one model in one mode, and the seconds they took, loading included."""
    scorer = CausalLMScorer(str(folder), label=name, device=device, dtype=mode)
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as temporary:
        start = time.perf_counter()
        scores = score_transcript(transcript, scorer, Path(temporary) / "scores.parquet")
        return scores, time.perf_counter() - start


def measure(
    transcript: Transcript, folders: dict[str, Path], device: str, resamples: int, modes: list[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    exact: dict[str, np.ndarray] = {}
    names = (*SUSPECTS, REFERENCE)
    for mode in (YARDSTICK, *(m for m in modes if m != YARDSTICK)):
        try:
            both = {n: scored(transcript, folders[n], n, mode, device) for n in names}
        except (InputError, RuntimeError, ImportError) as error:
            rows.append({"mode": mode, "not_run": str(error).splitlines()[0][:300]})
            show(rows[-1])
            continue
        means = {n: scores.loglik_mean for n, (scores, _) in both.items()}
        if mode == YARDSTICK:
            exact = means
        for name in SUSPECTS:
            evidence = query_test(
                transcript,
                both[name][0],
                [both[REFERENCE][0]],
                n_resamples=resamples,
                smallest_effect=SMALLEST_EFFECT,
            )
            difference = means[name] - means[REFERENCE]
            plain = exact[name] - exact[REFERENCE]
            rows.append(
                {
                    "mode": mode,
                    "suspect": name,
                    "rank_correlation_of_scores": correlation(means[name], exact[name]),
                    "rank_correlation_of_difference": correlation(difference, plain),
                    "max_deviation": float(np.abs(means[name] - exact[name]).max()),
                    "max_deviation_of_difference": float(np.abs(difference - plain).max()),
                    "sd_of_difference": float(plain.std()),
                    "statistic": evidence.statistic,
                    "z": evidence.z,
                    "log10_pvalue": evidence.log10_pvalue,
                    "pvalue_exact": evidence.pvalue_exact,
                    "verdict": evidence.verdict,
                    "verdict_reason": evidence.verdict_reason,
                    "seconds": both[name][1],
                }
            )
            show(rows[-1])
    return rows


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic)


def show(row: dict[str, Any]) -> None:
    if "not_run" in row:
        print(f"{row['mode']:>9} not run: {row['not_run']}")
        return
    p = row["log10_pvalue"]
    print(
        f"{row['mode']:>9} {row['suspect']:>12} {row['rank_correlation_of_scores']:>10.7f} "
        f"{row['rank_correlation_of_difference']:>10.6f} {row['max_deviation']:>8.1e} "
        f"{row['z']:>7.2f} {'–' if p is None else format(p, '.1f'):>7} {row['seconds']:>6.1f} "
        f"{row['verdict']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="tiny", choices=sorted(lab.RECIPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--resamples", type=int, default=9999)
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/precision.json")
    parser.add_argument("--smoke", action="store_true", help="random models, nothing written")
    asked = parser.parse_args()
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(
        f"{'mode':>9} {'suspect':>12} {'ρ scores':>10} {'ρ differ.':>10} {'max |Δ|':>8} "
        f"{'z':>7} {'log10 p':>7} {'s':>6}"
    )
    if asked.smoke:
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as name:
            transcript, folders = random_models(Path(name))
            rows = measure(transcript, folders, asked.device, 99, asked.modes)
    else:
        run = lab.open_run(asked.recipe, progress=True)
        transcript = run.transcript
        rows = measure(transcript, run.folders, asked.device, asked.resamples, asked.modes)
    if asked.smoke and asked.out is None:
        return
    out = asked.out or Path(__file__).parent / "results" / "precision.json"
    out.parent.mkdir(exist_ok=True)
    result = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "device": asked.device,
        "recipe": "none (random models)" if asked.smoke else asked.recipe,
        "reference": REFERENCE,
        "examples": transcript.n,
        "load_average_before": before,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
