"""Scoring token ids: ours against what one would use otherwise, same sequences, same model.

Competitors: the method's published recipe (padded batches of 16 in the given order, float32, all
logits, log-softmax, gather), the perplexity metric of ``evaluate``, the transformers backend of
lm-evaluation-harness with its automatic and with its best fixed batch size, minicons with its best
batch size, and `workbench.scorers.CausalLMScorer` in every mode it has. The peers are given a
tokenizer that maps ids to words one to one, so that all score the same tokens; a float32 score
that differs from the reference by more than rounding ends the run with status 1.

Every measurement is a process of its own with a limit of time: load, score a few short rows to
warm up, then one timed pass over all sequences. On a GPU the warm-up is the first 300 sequences, so
that kernels are loaded, planned and compiled, and memory is taken from the driver, before the time
counts. Rounds are interleaved, A B C A B C; the figure is the median. lm-evaluation-harness's
search for a batch size is part of its time, as for its user, and also given apart; fixed batch
sizes are chosen beforehand, outside the time.

- tokens/s: scored tokens, padding not counted.
- MiB: highest memory in the pass beyond that of the process with the weights loaded and warm
  (anonymous resident memory on a CPU, ``torch.cuda.max_memory_allocated`` on a GPU). What loading
  took is in the JSON.
- Utilisation: FLOPs of the model × rows per second ÷ the fastest matrix product of that dtype
  measured in the same run on the same threads. A row of n + 1 tokens feeds n:
  n · 2 · (weights of the linear layers + head) + layers · 2 · h · n (n + 1), the last term for
  causal attention (half of the square, scores and values), h being heads × head size. Embedding,
  norms and softmax are not counted.
- Deviation: of per-token scores, and of per-sequence means, from one-at-a-time reference scores,
  in float64 for small models and float32 otherwise; the rank correlation is Spearman's, of
  per-sequence means.

On a machine that others use, ``--clock cpu --threads 1`` counts the seconds of processor time that
a process was given, in every figure and in the ceiling alike; wall time is the default, and the
JSON says which.

Weights are random, scaled so that predictions differ from token to token (logits have a standard
deviation of 3). Peers: ``pip install -c constraints.txt -r benchmarks/requirements.txt``. The
metric's script is fetched from a hub by ``evaluate.load``; without network pass a local copy of
``measurements/perplexity/perplexity.py`` by ``--evaluate-script``.

From a plain checkout, with torch, transformers, scipy, pyarrow, filelock, tqdm and platformdirs
installed (where the project is installed, leave ``PYTHONPATH=.`` out):

    export PYTHONPATH=.
    python benchmarks/scoring.py                      # CPU: Pythia-70M, 512 sequences
    python benchmarks/scoring.py --device cuda        # Pythia-1B, Pythia-6.9B, 7B with 128,256 ids
    python benchmarks/scoring.py --smoke              # every code path, tiny shapes, seconds

A mode such as ``"bfloat16 compiled"`` compiles the workbench's model; on a GPU it is among those
that run by default. ``--skip`` leaves out competitors, or the reference, which is the slowest on a
large model: then nothing is said about deviations.

Prints a table and writes ``benchmarks/results/scoring-<device>.json``, both after each case. A case
is not begun when less than half a minute of ``--total`` is left.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

MIB = 2**20
RECIPE_BATCH = 16
PAD = 0  # never in a sequence, so that no peer takes a token for padding
FIRST_ID = 2
TOLERANCE = 1e-3  # nats per token: float32 scores further from the reference are not the same
FIXED_BATCHES = (1, 4, 16, 64)
TUNING_ROWS = 32
SMALL = 20_000_000  # weights up to which the reference is float64
LOGIT_SD = 3.0
GPU_WARM_UP_ROWS = 300
COMPILED = " compiled"  # ends the name of a mode
SECONDS_FOR_A_CASE = 30  # with fewer left, its model would be made for nothing


@dataclass(frozen=True)
class Shape:
    """A network's form; `groups` key-value heads, 0 for a GPT-NeoX, which has one per head."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    groups: int = 0
    context: int = 2048

    @property
    def linear_weights(self) -> int:
        """Weights that every fed token is multiplied with, the head left out."""
        h, i = self.hidden, self.intermediate
        if not self.groups:
            return self.layers * (4 * h * h + 2 * h * i)
        return self.layers * (2 * h * h + 2 * h * h * self.groups // self.heads + 3 * h * i)

    def flops(self, fed: np.ndarray) -> float:
        """Of rows with so many fed tokens each (formula in the module's docstring)."""
        n = fed.astype(np.float64)
        dense = 2.0 * (self.linear_weights + self.hidden * self.vocabulary) * n
        return float((dense + self.layers * 2.0 * self.hidden * n * (n + 1)).sum())


PYTHIA_70M = Shape(512, 6, 8, 2048, 50_304)
PYTHIA_1B = Shape(2048, 16, 8, 8192, 50_304)
PYTHIA_7B = Shape(4096, 32, 32, 16_384, 50_304)
LLAMA_3 = Shape(4096, 32, 32, 14_336, 128_256, groups=8)


@dataclass(frozen=True)
class Case:
    """One model and one set of sequences, of `shortest` to `longest` tokens."""

    shape: Shape
    shortest: int
    longest: int
    sequences: int

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Case":
        """The case that `asdict` took apart."""
        return cls(**{**content, "shape": Shape(**content["shape"])})


CASES = {
    "cpu": {"pythia-70m, 16 to 256 tokens": Case(PYTHIA_70M, 16, 256, 512)},
    "cuda": {
        "pythia-1b, 127 tokens": Case(PYTHIA_1B, 127, 127, 4096),
        "pythia-1b, 2048 tokens": Case(PYTHIA_1B, 2048, 2048, 256),
        "pythia-6.9b, 127 tokens": Case(PYTHIA_7B, 127, 127, 2048),
        "pythia-6.9b, 2048 tokens": Case(PYTHIA_7B, 2048, 2048, 128),
        "llama-3-8b, 127 tokens": Case(LLAMA_3, 127, 127, 2048),
        "llama-3-8b, 2048 tokens": Case(LLAMA_3, 2048, 2048, 128),
    },
}


def shrunk(case: Case) -> Case:
    """The same kind of case, small enough for a test."""
    shape = replace(
        case.shape, hidden=64, layers=2, heads=4, intermediate=128, groups=min(case.shape.groups, 2)
    )
    shape = replace(shape, vocabulary=case.shape.vocabulary // 256, context=64)
    short = max(4, case.shortest // 32)
    return Case(shape, short, max(short, case.longest // 16 if case.longest < 2048 else 64), 12)


# ------------------------------------------------------------------ model and sequences, made once


def make(folder: Path, case: Case, device: str) -> None:
    """Model, tokenizer and sequences as files; not timed."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        GPTNeoXConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    shape = case.shape
    common: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": PAD,
    }
    if shape.groups:
        config: Any = LlamaConfig(
            **common,
            num_key_value_heads=shape.groups,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    else:
        config = GPTNeoXConfig(
            **common,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.25,
            },
        )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:  # each layer keeps the variance; the head spreads the logits
                weight.normal_(0, (LOGIT_SD if weight is head else 1.0) / weight.shape[1] ** 0.5)
    model.save_pretrained(folder / "model")
    words = {word(i): i for i in range(shape.vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token=word(PAD)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=word(PAD), eos_token=word(1), bos_token=word(1)
    )
    tokenizer.save_pretrained(folder / "model")

    rng = np.random.default_rng(0)
    lengths = rng.integers(case.shortest, case.longest + 1, case.sequences)
    edges = np.cumsum(1 / np.arange(1, shape.vocabulary - FIRST_ID + 1))
    names = rng.permutation(shape.vocabulary - FIRST_ID) + FIRST_ID
    flat = names[np.searchsorted(edges / edges[-1], rng.random(int(lengths.sum())))]
    np.savez(folder / "sequences.npz", flat=flat.astype(np.int64), lengths=lengths)


def word(token: int) -> str:
    return f"t{token:06d}"  # of one width, so that none is a part of another


def rows_of(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "sequences.npz", allow_pickle=False) as saved:
        return np.split(saved["flat"], np.cumsum(saved["lengths"])[:-1])


def as_texts(rows: list[np.ndarray], tokenizer: Any) -> list[str]:
    """Texts that the tokenizer turns into exactly these rows; checked."""
    texts = [" ".join(word(int(i)) for i in row) for row in rows]
    back = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if any(ids != row.tolist() for ids, row in zip(back, rows, strict=True)):
        raise RuntimeError("the tokenizer does not give back the token ids")
    return texts


# ------------------------------------------------------------------ competitors, in own processes
#
# Each is made from a task and gives a function from rows to their scores: one array of per-token
# scores per row, or, where a peer gives no more, the mean per row as an array of one.

Score = Callable[[list[np.ndarray]], list[np.ndarray]]


def load_model(task: dict[str, Any], dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, dtype))
    return model.to(task["device"]).eval()


def reference(task: dict[str, Any]) -> Score:
    """One row at a time, no padding, softmax in float64."""
    import torch

    model = load_model(task, task["dtype"])

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        values = []
        for row in rows:
            ids = torch.from_numpy(row).to(task["device"])
            with torch.inference_mode():
                logits = model(ids[None, :-1], use_cache=False).logits[0]
                found = [  # a few hundred positions at a time: float64 of all would not fit
                    part.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
                    for part, targets in zip(logits.split(256), ids[1:].split(256), strict=True)
                ]
            values.append(torch.cat(found).cpu().numpy())
        return values

    return score


def recipe(task: dict[str, Any]) -> Score:
    import torch

    model = load_model(task, task["dtype"])

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        values = []
        for start in range(0, len(rows), RECIPE_BATCH):
            batch = rows[start : start + RECIPE_BATCH]
            ids = torch.full((len(batch), max(map(len, batch))), PAD, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(batch):
                ids[number, : len(row)] = torch.from_numpy(row)
                mask[number, : len(row)] = 1
            ids, mask = ids.to(task["device"]), mask.to(task["device"])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits
                logliks = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            found = logliks.float().cpu().numpy()
            values += [found[number, : len(row) - 1] for number, row in enumerate(batch)]
        return values

    return score


def evaluate_metric(task: dict[str, Any]) -> Score:
    """The metric loads its model in every call; `task["loading"]` takes the seconds of that."""
    import evaluate
    from transformers import AutoModelForCausalLM, AutoTokenizer

    evaluate.utils.logging.disable_progress_bar()
    if ":" in task["device"]:  # the metric takes no number: its GPU is the current one
        import torch

        torch.cuda.set_device(task["device"])
    metric = evaluate.load(
        task["script"],
        module_type="measurement",
        cache_dir=f"{task['folder']}/evaluate",
        keep_in_memory=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    load = AutoModelForCausalLM.from_pretrained
    kept: list[Any] = []

    def timed(*given: Any, **options: Any) -> Any:
        task["loading"] = 0.0
        if not kept:
            task["loading"] = seconds_of(
                lambda: kept.append(load(*given, **options).to(task["device"])), task
            )
        return kept[0]

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        with patch.object(AutoModelForCausalLM, "from_pretrained", timed):
            found = metric.compute(
                data=as_texts(rows, tokenizer),
                model_id=task["model"],
                batch_size=RECIPE_BATCH,
                add_start_token=False,
                device=task["device"].split(":")[0],
            )
        return [np.array([-np.log(p)]) for p in found["perplexities"]]

    return score


def lm_eval(task: dict[str, Any]) -> Score:
    import logging

    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    longest = max(len(row) for row in rows_of(Path(task["folder"])))
    model = HFLM(
        pretrained=task["model"],
        tokenizer=task["model"],
        device=task["device"],
        dtype=task["dtype"],
        batch_size=task["batch"],
        max_length=longest,
    )
    if task["batch"] == "auto":
        search = model._detect_batch_size

        def timed(*given: Any, **options: Any) -> Any:
            def find() -> None:
                task["found_batch"] = search(*given, **options)

            task["search_seconds"] = seconds_of(find, task)
            return task["found_batch"]

        model._detect_batch_size = timed

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        # what loglikelihood_rolling calls for each window; given whole, it sorts all of them
        requests = [(None, [int(row[0])], row[1:].tolist()) for row in rows]
        with redirect_stdout(StringIO()):  # it prints the batch size that it found
            sums = model._loglikelihood_tokens(requests, disable_tqdm=True)
        return [
            np.array([total / (len(row) - 1)]) for (total, _), row in zip(sums, rows, strict=True)
        ]

    return score


def minicons(task: dict[str, Any]) -> Score:
    import torch
    from minicons.scorer import IncrementalLMScorer

    model = IncrementalLMScorer(
        task["model"], device=task["device"], dtype=getattr(torch, task["dtype"])
    )

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        texts, values = as_texts(rows, model.tokenizer), []
        for start in range(0, len(texts), task["batch"]):
            values += model.sequence_score(
                texts[start : start + task["batch"]],
                reduction=lambda found: found.float().cpu().numpy(),
            )
        return values

    return score


def workbench(task: dict[str, Any]) -> Score:
    from workbench.scorers import CausalLMScorer
    from workbench.transcript import Transcript

    options = {"compile": True} if task.get("compiled") else {}
    scorer = CausalLMScorer(task["model"], dtype=task["dtype"], device=task["device"], **options)

    def score(rows: list[np.ndarray]) -> list[np.ndarray]:
        encoded = scorer.encode(Transcript.from_arrays(np.arange(len(rows)), tokens=rows))
        return list(scorer.score(encoded, np.arange(len(rows))))

    return score


COMPETITORS = {
    "reference": reference,
    "recipe": recipe,
    "evaluate": evaluate_metric,
    "lm_eval": lm_eval,
    "minicons": minicons,
    "workbench": workbench,
}
PACKAGES = {"evaluate": "evaluate", "lm_eval": "lm_eval", "minicons": "minicons"}


def worker(task: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, score; or make what is scored, or try several batch sizes on a few rows."""
    import torch

    quiet()
    torch.set_num_threads(task["threads"])
    if task["name"] == "ceiling":
        return ceiling(task)
    folder = Path(task["folder"])
    if task["name"] == "make":
        make(folder, Case.of(task["case"]), task["device"])
        return {}
    rows = rows_of(folder)
    os.environ["PALIMPSEST_HOME"] = str(folder / "home")
    before = resident()
    score = COMPETITORS[task["name"]](task)
    if task.get("tune"):
        longest_first = sorted(rows, key=len)[:: -max(1, len(rows) // TUNING_ROWS)]
        some = longest_first if task["name"] == "lm_eval" else rows[:TUNING_ROWS]
        return {"seconds_of_batch": tuned(task, score, some)}
    on_gpu = "cuda" in task["device"] and task["name"] != "reference"  # which is not timed
    score(rows[:GPU_WARM_UP_ROWS] if on_gpu else sorted(rows, key=len)[:2])
    gc.collect()
    loaded = resident() - before
    values: list[np.ndarray] = []
    with peak_memory(task["device"]) as peak:
        seconds = seconds_of(lambda: values.extend(score(rows)), task)
    np.savez(
        folder / f"{task['key']}.npz",
        flat=np.concatenate(values).astype(np.float64),
        counts=np.array([len(v) for v in values]),
    )
    return {
        "seconds": seconds - task.get("loading", 0.0),
        "peak_mib": peak["mib"],
        "loading_took_mib": loaded,
        **{k: task[k] for k in ("found_batch", "search_seconds") if k in task},
    }


def tuned(task: dict[str, Any], score: Score, rows: list[np.ndarray]) -> dict[int, float | None]:
    """Seconds of a few rows at each fixed batch size; None where memory ran out."""
    found: dict[int, float | None] = {}
    for batch in FIXED_BATCHES:
        if batch > len(rows) or (task["smoke"] and len(found) == 2):
            break
        task["batch"] = batch
        attempt = COMPETITORS[task["name"]](task) if task["name"] == "lm_eval" else score
        try:
            attempt(rows if "cuda" in task["device"] else rows[:2])
            found[batch] = seconds_of(lambda attempt=attempt: attempt(rows), task)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error):
                raise
            found[batch] = None
    return found


def quiet() -> None:
    """No progress bars and advice of the peers; this process does nothing else."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def resident() -> float:
    """Anonymous resident memory in MiB; files mapped into memory are not counted."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float]]:
    """Most memory above that at the beginning, in MiB, in the dictionary it gives."""
    import torch

    result = {"mib": float("nan")}
    if "cuda" in device:
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield result
        result["mib"] = (torch.cuda.max_memory_allocated(device) - start) / MIB
        return
    start, highest, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.004):
            highest[0] = max(highest[0], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()
        result["mib"] = max(highest[0], resident()) - start


def seconds_of(call: Callable[[], Any], task: dict[str, Any]) -> float:
    """Of one call: wall time, or processor time shared by the threads."""
    cpu, cuda = task["clock"] == "cpu", "cuda" in task["device"]
    clock = time.process_time if cpu else time.perf_counter
    if cuda:
        import torch

        torch.cuda.synchronize(task["device"])
    start = clock()
    call()
    if cuda:
        torch.cuda.synchronize(task["device"])
    return (clock() - start) / (task["threads"] if cpu else 1)


def ceiling(task: dict[str, Any]) -> dict[str, Any]:
    """FLOP/s of the fastest matrix product of each dtype: several large shapes, two libraries."""
    import torch

    dtypes, device, smoke = task["dtypes"], task["device"], task["smoke"]
    sides = [(64, 64, 64)] if smoke else [(1024, 1024, 1024), (2048, 512, 2048), (2048, 2048, 2048)]
    if "cuda" in device and not smoke:
        sides = [(4096, 4096, 4096), (8192, 8192, 8192), (16_384, 4096, 16_384)]
    found: dict[str, Any] = {}
    for name in dtypes:
        dtype, rates = getattr(torch, name), {}
        for m, k, n in sides:
            x = torch.randn(m, k, device=device).to(dtype)
            w = torch.randn(n, k, device=device).to(dtype)
            ways: dict[str, Callable[[], Any]] = {
                "torch": lambda x=x, w=w: torch.nn.functional.linear(x, w)
            }
            if device == "cpu" and torch.backends.mkldnn.is_available():
                ways["onednn"] = lambda x=x, w=w: torch.ops.mkldnn._linear_pointwise(
                    x, w, None, "none", [], ""
                )
            for way, product in ways.items():
                try:
                    with torch.inference_mode():
                        product()
                        seconds = min(seconds_of(product, task) for _ in range(5))
                except (RuntimeError, AttributeError):
                    continue
                rates[f"{way} {m}x{k}x{n}"] = 2.0 * m * k * n / seconds
        found[name] = rates
    return {"flops_per_second": found}


# ------------------------------------------------------------------ the whole


class Run:
    """Settings of one run, and the time left."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.until = time.monotonic() + asked.total

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def task(self, **task: Any) -> dict[str, Any]:
        """What one process measured, or why it did not run."""
        name = task["name"]
        if name in self.asked.skip:
            return {"not_run": "left out by --skip"}
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            return {"not_run": f"{name} is not installed"}
        limit = min(self.asked.limit, self.left)
        if limit < 5:
            return {"not_run": "no time left"}
        given = {
            **task,
            "device": self.asked.device,
            "threads": self.asked.threads,
            "clock": self.asked.clock,
            "smoke": self.asked.smoke,
        }
        if self.asked.smoke and name != "ceiling":
            return worker(given)  # importing the libraries anew each time would take minutes
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.asked.threads),
            "PYTHONWARNINGS": "ignore",
        }
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--task", json.dumps(given)],
                capture_output=True,
                text=True,
                timeout=limit,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return {"not_run": f"over the limit of {limit:.0f} s"}
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
            return {"not_run": said[-1][:300]}
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def entrants(run: Run, folder: Path, modes: list[str]) -> list[dict[str, Any]]:
    """Who runs; fixed batch sizes are tried here."""
    asked = run.asked
    common = {"folder": str(folder), "model": str(folder / "model")}
    entries: list[dict[str, Any]] = [
        {"label": "recipe", "name": "recipe", "dtype": "float32"},
        {
            "label": "evaluate",
            "name": "evaluate",
            # the metric takes no dtype: the checkpoint's own
            "dtype": "float32" if asked.device == "cpu" else "bfloat16",
            "script": None if asked.evaluate_script is None else str(asked.evaluate_script),
        },
    ]
    for dtype in asked.peer_dtypes:
        entries.append(
            {"label": "lm-eval auto", "name": "lm_eval", "dtype": dtype, "batch": "auto"}
        )
        for name, label in (("lm_eval", "lm-eval"), ("minicons", "minicons")):
            first = {"name": name, "dtype": dtype, "batch": FIXED_BATCHES[0]}
            tried = run.task(**common, **first, tune=True, key="tune")
            times = {int(b): s for b, s in tried.get("seconds_of_batch", {}).items() if s}
            entry = {**first, "label": label, "seconds_of_batch": times}
            if times:
                entry["batch"] = min(times, key=lambda b: times[b])
                entry["label"] = f"{label} {entry['batch']}"
            elif "not_run" in tried:
                entry["not_run"] = tried["not_run"]
            else:
                entry["not_run"] = "memory ran out at every batch size"
            entries.append(entry)
    for mode in modes:
        entry = {"label": "workbench", "name": "workbench", "dtype": mode.removesuffix(COMPILED)}
        if mode.endswith(COMPILED):
            entry |= {"label": "workbench" + COMPILED, "compiled": True}
        entries.append(entry)
    for number, entry in enumerate(entries):
        entry.update(common, key=f"scores-{number}", results=[])
        if entry["name"] == "evaluate" and asked.evaluate_script is None:
            entry["not_run"] = (
                "the metric is fetched from the hub"
                if importlib.util.find_spec("evaluate")
                else "evaluate is not installed"
            )
    return entries


def compare(name: str, case: Case, run: Run, modes: list[str], folder: Path) -> dict[str, Any]:
    """All competitors on one case: rounds, medians, deviations, ratios."""
    asked = run.asked
    if run.left < SECONDS_FOR_A_CASE:
        return {"case": name, "rows": [], "not_run": "no time left"}
    # in a process of its own, as all that takes memory of a GPU: it gives back what it took
    made = run.task(name="make", case=asdict(case), folder=str(folder))
    if "not_run" in made:
        return {"case": name, "rows": [], "not_run": f"no model: {made['not_run']}"}
    rows = rows_of(folder)
    fed = np.array([len(row) - 1 for row in rows])
    wide = case.shape.linear_weights + 2 * case.shape.hidden * case.shape.vocabulary <= SMALL
    truth = {"name": "reference", "dtype": "float64" if wide else "float32", "key": "reference"}
    truth["folder"], truth["model"] = str(folder), str(folder / "model")
    measured = run.task(**truth)
    entries = entrants(run, folder, modes)
    dtypes = sorted({d for e in entries if (d := multiplied(e["dtype"])) is not None})
    rates: dict[str, dict[str, float]] = {}
    loads = []
    for number in range(asked.rounds):
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        loads.append(load)
        best = run.task(name="ceiling", dtypes=dtypes).get("flops_per_second", {})
        for dtype, found in best.items():
            for way, rate in found.items():
                kept = rates.setdefault(dtype, {})
                kept[way] = max(rate, kept.get(way, 0.0))
        for entry in entries:
            if "not_run" in entry:
                continue
            settings = {k: v for k, v in entry.items() if k not in ("results", "seconds_of_batch")}
            result = run.task(**settings)
            if "not_run" not in result:
                entry["results"].append(result)
            elif not entry["results"]:
                entry["not_run"] = result["not_run"]
            else:
                entry.setdefault("rounds_lost", []).append(f"{number + 1}: {result['not_run']}")
    table = [summary(entry, case, fed, rates, folder, measured.get("not_run")) for entry in entries]
    add_ratios(table)
    return {
        "case": name,
        "shape": asdict(case.shape),
        "sequences": len(rows),
        "scored_tokens": int(fed.sum()),
        "fed_per_row": [int(fed.min()), int(fed.max())],
        "flops_per_token": case.shape.flops(fed) / float(fed.sum()),
        "reference": {"dtype": truth["dtype"], **measured},
        "matrix_product_flops_per_second": rates,
        "load_average_before_each_round": loads,
        "rows": table,
    }


def multiplied(mode: str) -> str | None:
    """Dtype whose matrix products a mode can be measured against; None if it names none."""
    known = ("float32", "bfloat16", "float16")
    return "bfloat16" if mode == "mixed" else mode if mode in known else None


def summary(
    entry: dict[str, Any],
    case: Case,
    fed: np.ndarray,
    rates: dict[str, dict[str, float]],
    folder: Path,
    no_reference: str | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {k: entry[k] for k in ("label", "name", "dtype")}
    for key in ("compiled", "batch", "seconds_of_batch", "rounds_lost"):
        if key in entry:
            row[key] = entry[key]
    if "not_run" in entry:
        return {**row, "not_run": entry["not_run"]}
    results = entry["results"]
    seconds = statistics.median(r["seconds"] for r in results)
    row |= {
        "rounds": len(results),
        "seconds_each": [r["seconds"] for r in results],
        "tokens_per_second": float(fed.sum()) / seconds,
        "peak_mib_beyond_weights": statistics.median(r["peak_mib"] for r in results),
        "peak_mib_each": [r["peak_mib"] for r in results],
        "loading_took_mib": statistics.median(r["loading_took_mib"] for r in results),
    }
    if "search_seconds" in results[0]:
        search = statistics.median(r["search_seconds"] for r in results)
        row["found_batch"] = results[0]["found_batch"]
        row["search_seconds"] = search
        row["tokens_per_second_without_search"] = float(fed.sum()) / (seconds - search)
    dtype = multiplied(entry["dtype"])
    top = max(rates.get(dtype, {}).values(), default=None) if dtype else None
    if top is None:
        row["utilisation"] = None
        row["utilisation_reason"] = f"no matrix product of {entry['dtype']} was measured"
    else:
        row["utilisation"] = case.shape.flops(fed) / seconds / top
    if no_reference is not None:
        missing = ("max_deviation", "mean_deviation", "max_deviation_of_means", "rank_correlation")
        return row | dict.fromkeys(missing) | {"deviation_reason": f"no reference: {no_reference}"}
    return row | deviations(folder / f"{entry['key']}.npz", folder / "reference.npz")


def deviations(path: Path, truth: Path) -> dict[str, Any]:
    """From the reference: per token where the competitor gives tokens, and of row means."""
    from scipy.stats import spearmanr

    (flat, counts), (true, true_counts) = read_scores(path), read_scores(truth)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    true_starts = np.concatenate([[0], np.cumsum(true_counts)[:-1]])
    means = np.add.reduceat(flat, starts) / counts
    true_means = np.add.reduceat(true, true_starts) / true_counts
    found: dict[str, Any] = {
        "max_deviation_of_means": float(np.abs(means - true_means).max()),
        "rank_correlation": float(spearmanr(means, true_means).statistic),
    }
    if np.array_equal(counts, true_counts):
        found["max_deviation"] = float(np.abs(flat - true).max())
        found["mean_deviation"] = float(np.abs(flat - true).mean())
    else:
        found |= {"max_deviation": None, "mean_deviation": None}
        found["deviation_reason"] = "it gives one number a sequence, not one a token"
    return found


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as saved:
        return saved["flat"], saved["counts"]


def add_ratios(table: list[dict[str, Any]]) -> None:
    """Against the recipe, and against the fastest peer of the same dtype and of any."""
    ran = [row for row in table if "not_run" not in row]
    peers = [row for row in ran if row["name"] in PACKAGES]
    base = next((row["tokens_per_second"] for row in ran if row["name"] == "recipe"), None)
    for row in ran:
        rate = row["tokens_per_second"]
        row["times_recipe"] = rate / base if base else None
        for key, among in (
            ("times_fastest_peer", peers),
            ("times_fastest_peer_of_dtype", [p for p in peers if p["dtype"] == row["dtype"]]),
        ):
            best = max((p["tokens_per_second"] for p in among), default=None)
            row[key] = rate / best if best else None
        if not peers:
            row["times_fastest_peer_reason"] = "no peer ran"


def show(result: dict[str, Any]) -> None:
    if "not_run" in result:
        print(f"\n{result['case']}: not run: {result['not_run']}", flush=True)
        return
    truth = result["reference"]
    print(
        f"\n{result['case']}: {result['sequences']} sequences, {result['scored_tokens']:,} scored "
        f"tokens, {result['flops_per_token'] / 1e9:.3g} GFLOP a token, reference "
        f"{'not run: ' + truth['not_run'] if 'not_run' in truth else truth['dtype']}"
    )
    for dtype, found in result["matrix_product_flops_per_second"].items():
        if found:
            way = max(found, key=lambda w: found[w])
            print(f"  ceiling {dtype}: {found[way] / 1e9:,.0f} GFLOP/s ({way})")
    print(
        f"{'':18} {'dtype':>9} {'tokens/s':>10} {'× recipe':>8} {'× peer':>7} {'same dtype':>10} "
        f"{'utilis.':>7} {'MiB':>7} {'max |Δ|':>8} {'mean |Δ|':>8} {'of means':>8} {'rank ρ':>9}"
    )
    for row in result["rows"]:
        start = f"{row['label']:18} {row['dtype']:>9}"
        if "not_run" in row:
            print(f"{start} not run: {row['not_run']}")
            continue
        print(
            f"{start} {row['tokens_per_second']:>10,.0f} {shown(row['times_recipe'], '.2f'):>8} "
            f"{shown(row['times_fastest_peer'], '.2f'):>7} "
            f"{shown(row['times_fastest_peer_of_dtype'], '.2f'):>10} "
            f"{shown(row['utilisation'], '.0%'):>7} {row['peak_mib_beyond_weights']:>7,.0f} "
            f"{shown(row['max_deviation'], '.1e'):>8} {shown(row['mean_deviation'], '.1e'):>8} "
            f"{shown(row['max_deviation_of_means'], '.1e'):>8} "
            f"{shown(row['rank_correlation'], '.6f'):>9}",
            flush=True,
        )
        if "search_seconds" in row:
            print(
                f"{'':18} batches of {row['found_batch']} found in {row['search_seconds']:.1f} s; "
                f"without the search {row['tokens_per_second_without_search']:,.0f} tokens/s"
            )


def shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def wrong(results: list[dict[str, Any]]) -> list[str]:
    """Competitors in float32 whose scores are not those of the reference."""
    return [
        f"{result['case']}: {row['label']} differs by {row['max_deviation_of_means']:.2g} nats"
        for result in results
        for row in result["rows"]
        if row["dtype"] == "float32" and (row.get("max_deviation_of_means") or 0) > TOLERANCE
    ]


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    versions = {}
    for name in ("torch", "transformers", "numpy", "lm_eval", "minicons", "evaluate", "accelerate"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = platform.machine()
    if asked.device == "cpu":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            device = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
        except (OSError, StopIteration):
            device = platform.processor() or device
    else:
        import torch

        device = torch.cuda.get_device_name(asked.device)
    return {
        "device": asked.device,
        "device_name": device,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": asked.threads,
        "clock": asked.clock,
        "python": platform.python_version(),
        **versions,
        "limit_seconds": asked.limit,
        "smoke": asked.smoke,
    }


def own_modes(device: str, parser: argparse.ArgumentParser) -> list[str]:
    """The workbench's, which must be there to be measured."""
    try:
        from workbench.scorers.causal_lm import DTYPES
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        remedy = f"pip install {missing}"
        if missing == "workbench":
            remedy = "run it in the checkout with PYTHONPATH=., or pip install -e ."
        parser.error(f"the workbench cannot be imported, {missing} is not there: {remedy}")
    return [*DTYPES, *(["bfloat16" + COMPILED] if "cuda" in device else [])]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--cases", nargs="+", help="parts of names of cases; all by default")
    parser.add_argument("--sequences", type=int, help="instead of each case's own number")
    parser.add_argument("--modes", nargs="+", help="of the workbench; all that it has by default")
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=COMPETITORS, help="competitors, or the reference"
    )
    parser.add_argument(
        "--peer-dtypes", nargs="+", default=["float32", "bfloat16"], help="of lm-eval and minicons"
    )
    parser.add_argument("--evaluate-script", type=Path, help="local copy of perplexity.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one process")
    parser.add_argument("--total", type=float, default=3600, help="seconds for the whole")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/scoring-DEVICE")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes of every case")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models are made here
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if asked.task:
        print(json.dumps(worker(json.loads(asked.task))))
        return 0
    own = own_modes(asked.device, parser)
    from workbench.home import atomic_write

    modes = asked.modes or own
    known = {mode.removesuffix(COMPILED) for mode in own}
    odd = [mode for mode in modes if mode.removesuffix(COMPILED) not in known]
    if odd:
        parser.error(f"mode {odd[0]!r} is unknown: use {', '.join(sorted(known))}, or one of them "
                     f"followed by{COMPILED!r}")  # fmt: skip
    kind = asked.device.split(":")[0]
    cases = {**CASES["cpu"], **CASES["cuda"]} if asked.smoke else dict(CASES[kind])
    if asked.cases:
        cases = {n: c for n, c in cases.items() if any(part in n for part in asked.cases)}
    if asked.smoke:
        # one case of each kind of network: unequal rows on the CPU's, long ones on a GPU's
        kept = ("pythia-70m, 16 to 256 tokens", "llama-3-8b, 2048 tokens")
        cases = {n: shrunk(c) for n, c in cases.items() if n in kept}
        # two threads that wait for each other on a busy machine cost more than these shapes do
        asked.rounds, asked.peer_dtypes, asked.threads = 1, ["float32"], 1
    if asked.sequences:
        cases = {n: replace(c, sequences=asked.sequences) for n, c in cases.items()}
    if asked.clock == "cpu" and kind != "cpu":
        parser.error("--clock cpu measures nothing of a GPU: leave it out")
    out = asked.out or Path(__file__).parent / f"results/scoring-{kind}.json"
    run, results = Run(asked), []
    for name, case in cases.items():
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
            results.append(compare(name, case, run, modes, Path(folder)))
        show(results[-1])
        if asked.out or not asked.smoke:  # after each case: whoever stops it keeps what there is
            text = json.dumps({**machine(asked), "cases": results}, indent=1) + "\n"
            atomic_write(out, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    faults = wrong(results)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
