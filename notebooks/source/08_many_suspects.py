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
# # Many suspects, many owners, many tries
#
# *How-to and explanation, with exercises for a class. Twenty minutes.*
#
# One test at alpha = .001 is wrong once in a thousand innocent suspects. Whoever tests a hundred
# models, or one model in a hundred ways, must say so, and pay for it. There are two honest ways: a
# **family** that is closed before its first test, and a **ledger** that stays open and charges each
# test more than the one before.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
queries = 2000
n_resamples = 19999
seed = 0

# %%
import tempfile
from pathlib import Path

import numpy as np

from workbench import Ledger, QueryCase, explore, family_test, figures, lab
from workbench.independence import holm
from workbench.verdicts import decisive_pvalue

observations = lab.open_observations(source)
run = observations.run
rows = run.transcript.subsample(min(queries, run.transcript.n), seed).rows
names = ("alice", "independent", "reference-same")
owners = {name: run.transcript_of(name).drawn(rows, "random sample", seed) for name in names}
print(f"owners: {', '.join(owners)}; {len(rows):,} examples are asked about")

# %% [markdown]
# Three models were trained on the *same* examples, each in an order of its own. So each may play
# the owner, and a suspect can be tested against three orders. A model of other examples is the
# reference throughout: it knows none of these orders.

# %%
suspects = {name: run.scores(name).take(rows) for name in owners}
for name in observations.derivatives:
    suspects[name] = observations.query_scores(name).take(rows)
reference = run.scores("reference-other").take(rows)
for name in suspects:
    derived = name in observations.derivatives
    print(f"{name:<16} {'fine-tuned from alice' if derived else run.roles[name]}")

# %% [markdown]
# **Prediction.** Which cells of the matrix, suspects by owners, will light up? How many of them
# would be false at .05, if none of the suspects had seen any of the orders?
#
# ## A family, closed in advance
#
# The settings of all tests are fixed, and hashed, before the first one runs, the smallest effect of
# interest among them. Holm's correction then bounds the chance of *any* false alarm in the family.
# Another seed, window, subset or statistic would be another test: it cannot be added afterwards.

# %%
folder = Path(tempfile.mkdtemp())
settings = {"n_resamples": n_resamples, "seed": seed, "smallest_effect": 0.08}
cases = {
    (suspect, owner): QueryCase(transcript, scores, [reference], settings)
    for suspect, scores in suspects.items()
    for owner, transcript in owners.items()
}
family = family_test("suspects by owners", cases, closed=folder / "family.json")
print(f"{len(cases)} tests, family {family.key[:12]}, closed before the first of them ran")

# %%
figures.show(figures.matrix(family.evidence, "z"))

# %%
print(f"{'suspect':<16}{'owner':<15}{'z':>5}{'raw p':>8}{'Holm p':>8}  verdict")
for (suspect, owner), e in family.evidence.items():
    raw, corrected = decisive_pvalue(e), family.corrected[suspect, owner]
    print(f"{suspect:<16}{owner:<15}{e.z:>5.1f}{raw:>8.1g}{corrected:>8.1g}  {e.verdict}")

# %% [markdown]
# Is a model loud against its *own* order? Does a fine-tune follow Alice's order, or another owner's
# too? The three owners used the very same examples: whatever tells them apart is the *order*.
#
# The raw p of a test is the one on which its verdict would rest if it stood alone: counted where
# permutations reach what was seen, proven by a theorem where none does, and times the orders that
# the owner could have chosen from. With counted p-values alone, Holm's smallest would be the number
# of tests times the floor: a family would need more permutations than a single test.

# %%
floor = 1 / (n_resamples + 1)
print(f"floor of one test {floor:.4g}, of the family {len(cases) * floor:.4g}")

# %% [markdown]
# ## A ledger that stays open
#
# Nobody knows in January which suspects will turn up in June. A ledger numbers tests as they come,
# and the k-th one pays p · π²k²/6: these prices add up to one test's, however many follow, and none
# is ever revised. Asking the same question again costs nothing; another subset does.

# %%
ledger = Ledger(folder / "ledger.jsonl", run.transcript)
for name in ("derivative", "independent", "derivative-8000", "derivative"):
    if name not in suspects:
        continue
    e = ledger.test(QueryCase(owners["alice"], suspects[name], [reference], settings))
    c = e.correction
    print(
        f"test {c.number}: {name:<16} raw p {decisive_pvalue(e):.2g}, corrected {c.pvalue:.2g}: "
        f"{e.verdict}"
    )

# %% [markdown]
# ## The mistake, made on purpose
#
# Holm's correction, recomputed whenever another test arrives, is not Holm's correction: the first
# few tests are judged as if they were all there will ever be. Twenty tests of innocent suspects,
# one after the other, at 5 %:

# %%
rng = np.random.default_rng(seed)
p = rng.uniform(size=(4000, 20))
k = np.arange(1, 21)
recomputed = np.array([any(holm(row[:n]).min() <= 0.05 for n in k) for row in p])
alarms = {
    "uncorrected": (p <= 0.05).any(axis=1),
    "Holm, recomputed as tests arrive": recomputed,
    "Holm, closed in advance": 20 * p.min(axis=1) <= 0.05,
    "open ledger": (p * np.pi**2 * k**2 / 6 <= 0.05).any(axis=1),
}
for label, found in alarms.items():
    print(f"{label:<34} any false alarm in {found.mean():.3f} of the rounds")

# %% [markdown]
# ## Exploration is something else
#
# Benjamini and Hochberg's procedure, and Benjamini and Yekutieli's for tests that depend on each
# other as these do, bound the *share* of false discoveries. That is for deciding where to look
# next, never for a verdict, and the output says so.

# %%
raw = {
    f"{suspect} / {owner}": decisive_pvalue(e) for (suspect, owner), e in family.evidence.items()
}
print(explore(raw, "benjamini-yekutieli"))

# %%
if output_dir:
    evidence = Path(output_dir) / "evidence"
    for (suspect, owner), e in family.evidence.items():
        e.write(evidence / f"08-{suspect}-{owner}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## Exercises for a class
#
# 1. Add a suspect to the family, now that you have seen it. What does the software say?
# 2. Two suspects are fine-tunes of one model. Are their tests independent? Does Holm mind?
# 3. Which is cheaper for the tenth test, the ledger or a family of ten? And for the first?
# 4. A model owner keeps two ledgers. What can a reader of one of them not see?
# 5. The reference was trained on other examples. Replace it by one of the owners: which cells of
#    the matrix can fail the references' check, and why only those?

# %%
tenth, first = np.pi**2 * 100 / 6, np.pi**2 / 6
print(
    f"exercise 3: the ledger multiplies the tenth p by {tenth:.1f}, a family of ten by 10 at most"
)
print(f"            and the first by {first:.2f}, the family by 10 all the same")
