# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own transcript, models and scores
#
# *How-to. Fifteen minutes.*
#
# Three things go into a test: the **transcript** (examples and positions), the **suspect's** scores
# and, if you have any, the **references'**. Each can come from a file, from arrays, or from a model
# that is scored here.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""

# %%
import json
import tempfile
from pathlib import Path

import numpy as np

from workbench import InputError, Scores, ShuffleClaim, Transcript, lab, plan_query, query_test

folder = Path(tempfile.mkdtemp())
print("a temporary folder holds what this notebook writes")

# %% [markdown]
# ## Your transcript
#
# A table with one row per example: Parquet, JSON lines (also gzipped), Arrow, a folder of them, or
# a Hugging Face data set. It needs a position (`position` or `index`) and the content (`tokens` or
# `text`); `block`, `unit` and `exposures` say what was shuffled.

# %%
rng = np.random.default_rng(7)
n = 1200
order = np.repeat(3 * rng.permutation(n // 3), 3) + np.tile(np.arange(3), n // 3)
words = ["wax", "stylus", "parchment", "vellum", "ink", "margin", "gloss", "folio", "quire", "<b>"]
rows = [
    {"position": int(p), "text": " ".join(rng.choice(words, 12)), "unit": i // 3}
    for i, p in enumerate(order)
]
path = folder / "transcript.jsonl"
path.write_text("".join(json.dumps(row) + "\n" for row in rows))
print(json.dumps(rows[0]))

# %%
transcript = Transcript.read(path, shuffle="owner")
transcript.describe()

# %% [markdown]
# The column `unit` says that three examples moved as one (a packed chunk, a document): they lie
# side by side in training, wherever that was. The test will permute 400 units, not 1,200 rows.
#
# `shuffle="owner"` says how the order came about: its owner declares that it was shuffled
# at random. The evidence rests on that, so it is never assumed: without a claim no test is valid.
#
# If you have arrays already, no file is needed. A claim may say more, such as the seed.

# %%
claim = ShuffleClaim("owner", seed=987654321)
from_arrays = Transcript.from_arrays(order, texts=[row["text"] for row in rows], shuffle=claim)
print(from_arrays.n, "examples,", from_arrays.kind, "| shuffle:", from_arrays.shuffle.kind)

# %% [markdown]
# ## Your scores
#
# From arrays, the **keyword declares the sign**: `loglik=` (higher = likelier) or `loss=` (lower =
# likelier). It is never guessed, because a wrong sign turns evidence into its opposite.

# %%
easy = rng.normal(size=n)
remembers = -3 + easy + 0.6 * order / n + 0.3 * rng.normal(size=n)
other = -3 + easy + 0.3 * rng.normal(size=n)
suspect = Scores.from_arrays(loglik=remembers, name="my suspect", transcript=from_arrays)
reference = Scores.from_arrays(loss=-other, name="my reference", transcript=from_arrays)
result = query_test(from_arrays, suspect, [reference], smallest_effect=0.1)
print(result.verdict, "| exact p", result.pvalue, "| z", round(result.z, 1))

# %% [markdown]
# Scores given with `transcript=` are bound to its examples by a hash of their content, so a mix-up
# is found:

# %%
try:
    query_test(from_arrays.take(np.arange(n)[::-1]), suspect, [reference])
except InputError as error:
    print(str(error).split(" (fingerprint")[0])

# %% [markdown]
# ## Errors are sentences
#
# What was wrong, where, and what to do.

# %%
attempts = {
    "two signs": {"loglik": [0.0, 1.0], "loss": [1.0, 2.0]},
    "not finite": {"loglik": [0.0, float("nan")]},
    "too short": {"loglik": [0.0, 1.0], "transcript": from_arrays},
}
for label, arguments in attempts.items():
    try:
        Scores.from_arrays(**arguments)
    except InputError as error:
        print(f"{label:<11} {error}")

# %%
bad = folder / "bad.jsonl"
bad.write_text('{"position": 0, "text": "a"}\n{"position": null, "text": "b"}\n')
try:
    Transcript.read(bad)
except InputError as error:
    print(str(error).replace(f"{folder}/", ""))

# %% [markdown]
# ## Columns of losses that somebody published
#
# Published transcripts often carry losses, one list per row. `loss:NAME` and `loglik:NAME` use them
# as they are, here from the run behind these notebooks:
#
# ```
# palimpsest test query --transcript data/recorded/tiny.parquet \
#     --suspect loglik:derivative --reference loglik:reference-same
# ```

# %%
run = lab.open_run(source)
print("models with scores:", ", ".join(run.scorable))
evidence = query_test(run.transcript, run.scores("derivative"), [run.scores("reference-same")])
print(f"derivative: {evidence.verdict}, exact p {evidence.pvalue:.4g}, z {evidence.z:.1f}")

# %% [markdown]
# ## I trained with …
#
# You may not have a table of positions. The order of a real run lies in its trainer's files, and is
# read where it lies, row by row, at any size:
#
# | I trained with | What is read | In the shell |
# |---|---|---|
# | Megatron, GPT-NeoX, Pythia | `.bin`, `.idx`, shuffle index | `transcript inspect run/` |
# | OLMo, OLMo-2 | token memmaps, `global_indices.npy` or seed | `… -o dtype=uint32` |
# | OLMo-core | the same, and what its configuration says | see below |
# | MosaicML Streaming | shards, `index.json`, order of samples | `… -o order=ids.npy` |
# | `datasets`, shuffled with a seed | the saved data set, the seed | `… -o seed=42` |
# | something else, with a log | step → example ids, the examples | `… -o examples=examples.arrow` |
#
# The loader of OLMo-core (OLMo-2 32B) has two sizes more, in tokens; without them the order is
# another: `-o max_target_sequence_length=8192 -o global_batch_size=8388608`.
#
# Here one small order is written in four of these formats and read back.

# %%
from workbench import Capture, open_order
from workbench.transcripts.writing import write_transcript

rng = np.random.default_rng(0)
tokens = rng.integers(5, 900, (400, 33))
owned = Transcript.from_arrays(rng.permutation(400), tokens=tokens)
told = {"megatron": {}, "mds": {}, "olmo": {"dtype": "uint16", "sequence_length": 33},
        "trainer-log": {"examples": folder / "trainer-log" / "examples.arrow"}}  # fmt: skip

# %%
for form, options in told.items():
    where = write_transcript(owned, folder / form, form)
    order = open_order(where, form, **options)
    sample = order.sample(100, seed=0)
    seen = {int(p): row.tolist() for p, row in zip(sample.positions, sample.tokens(), strict=True)}
    right = all(tokens[owned.positions == p][0].tolist() == row for p, row in seen.items())
    print(f"{form:<12} {order.n} places; claim: {order.claim.kind:<8} same examples: {right}")

# %% [markdown]
# `palimpsest transcript check` looks for natural order and near-duplicates, and suggests unit,
# block and sample size. A sample touches only the rows that it draws: a run of 300 billion tokens
# is audited from the same laptop (measured growth in [docs/scaling.md](../docs/scaling.md)).
#
# ## I am going to train
#
# Then note it while it happens. A **capture** writes down which examples each step saw, and can
# commit to each epoch's order *before* the epoch is trained: evidence with a date, ahead of any
# dispute. What it claims of the order is what the loader shows. The same works for a transformers
# `Trainer` (`capture.follow(trainer)`) and for Lightning (`callbacks=[capture.lightning()]`).

# %%
from torch import Generator
from torch.utils.data import DataLoader

published = []
capture = Capture(folder / "capture", plans=True, on_plan=published.append)
examples = list(tokens)
loader = DataLoader(examples, batch_size=8, shuffle=True, generator=Generator().manual_seed(7))
steps = 0
for batch in capture.loader(loader):
    steps += len(batch) > 0  # in its place: loss(batch).backward(), and so on
print(f"committed before the first batch: {published[0].rows} examples, epoch {published[0].epoch}")
captured = capture.finish(folder / "captured.parquet", examples=examples)
print(f"captured: {captured.n} examples, {steps} steps of 8; claim: {captured.shuffle.kind}")

# %% [markdown]
# ## I have text and no model
#
# `palimpsest lab train --text FOLDER` is the shortest way to a model of your own: it trains an
# owner's model, a derivative and controls on your text and scores them all.
#
# ## Score a model
#
# Any causal language model that transformers loads, from the hub or a folder, is scored on token
# ids as they are; text is tokenised once. Scores are cached by everything that can change them
# (weights, tokenizer, precision, window, versions), and an interrupted run continues where it
# stopped.

# %%
if run.live:
    from workbench import CausalLMScorer, score_transcript

    few = run.transcript.subsample(500, seed=0)
    scorer = CausalLMScorer(run.folders["derivative"], prefix=16, length=32)
    windowed = score_transcript(few, scorer)
    print(f"{windowed.n} examples scored on {windowed.identity.window}")
else:
    print("recorded scores: set source = 'tiny' to score the models here")

# %% [markdown]
# The same from the command line, in five lines:
#
# ```
# palimpsest score --model my/model     --transcript t.parquet --out suspect.parquet
# palimpsest score --model my/reference --transcript t.parquet --out reference.parquet
# palimpsest test query --transcript t.parquet --suspect suspect.parquet \
#     --reference reference.parquet --smallest-effect 0.02 --shuffle owner --json evidence.json
# palimpsest report notebooks/90_report.ipynb -p source=tiny
# ```
#
# Exit status: 0 the test was valid, whatever it found; 1 a notebook failed, or a bundle does not
# match; 2 bad input; 3 the test was not valid; 130 interrupted.

# %% [markdown]
# ## From a laptop to a cluster
#
# Scoring is where the hours go. Three lines move a run from this machine to many: install
# `palimpsest-workbench[ray]` on every node, wrap the scorer, and run the same call.
#
# ```
# from workbench import CausalLMScorer, RayScorer, score_transcript
# scorer = RayScorer(CausalLMScorer("bob/model"), "ray://head:10001")
# scores = score_transcript(transcript, scorer, progress=True)
# ```
#
# What would an audit of ten million examples under a model of 12 billion parameters cost? A
# forward pass takes two operations per parameter and token, so the bill is that, divided by what
# the chip does per second and by the share of it that a program uses. The published code states
# three A100-hours for 100,000 examples of 127 tokens under 6.9 billion parameters.

# %%
published = 100_000 * 127 * 2 * 6.9e9 / (3 * 3600 * 312e12)
operations = 10_000_000 * 127 * 2 * 12e9
chips = {"A100, 312 TFLOP/s": 312e12, "H100, 989 TFLOP/s": 989e12}
for chip, per_second in chips.items():
    hours = [operations / (per_second * share) / 3600 for share in (published, 0.5)]
    print(f"{chip}: {hours[0]:4.0f} GPU-hours at {published:.1%} of it, {hours[1]:3.0f} at 50 %")
needed = plan_query(effect=evidence, pvalue=1e-8, power=0.9).needed
print(f"rarely needed: examples for p = 1e-8 on the lab's derivative, {needed}")

# %% [markdown]
# Which precision to score in, and what it does to a verdict, is measured in `docs/scaling.md`.
# Float32 is the default on a CPU; a GPU takes the checkpoint's own.

# %% [markdown]
# ## Windows
#
# A prefix gives the model context that is not scored; published work excludes a 32-token prefix and
# scores what follows.

# %%
for prefix, length in run.windows:
    pair = [run.scores(name, prefix, length) for name in ("derivative", "reference-same")]
    e = query_test(run.transcript, pair[0], [pair[1]], n_resamples=999)
    print(f"{pair[0].identity.window:<18} rho {e.statistic:+.4f}, z {e.z:.1f}")

# %% [markdown] tags=["panel"]
# ## Shape your own
#
# Blocks, ties, the size of the effect: see what each does to the p-value when it is declared, and
# when it is not.

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.design_panel()

# %%
if output_dir:
    result.write(Path(output_dir) / "evidence" / "06-my-suspect.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## Exercises
#
# 1. Declare `units=` in `from_arrays` as the file does. By how much does z change, and why?
# 2. Give the reference's losses as `loglik=`. What does the verdict say?
# 3. Write a transcript whose positions follow the length of the text. What does `describe()` say?

# %%
lengths = np.sort(rng.integers(5, 60, 400))
curriculum = Transcript.from_arrays(np.arange(400), texts=["x" * int(k) for k in lengths])
print("exercise 3: looks unshuffled:", curriculum.describe().looks_unshuffled)
