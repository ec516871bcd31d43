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
# # Start here: a model remembers the order of its training
#
# *Tutorial, ten minutes.*
#
# Alice trained a language model. Bob serves one that may be derived from hers. Alice can only ask
# Bob's model how likely it finds a piece of text. Can she prove anything?
#
# Language models are **palimpsests**: what was written last is read best. Alice shuffled her
# training examples at random before training. So if the likelihood that Bob's model gives to her
# examples rises with *the position at which she trained on them*, Bob's model knows something that
# only her training run knew: her order.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""

# %% [markdown]
# `source = "recorded"` uses scores that were recorded from a real training run; `"tiny"` trains the
# same small models on your own machine (once) and scores them afresh. What you read below holds for
# either: where the numbers decide, the sentence is made from them.

# %%
from pathlib import Path

import workbench
from workbench import figures, lab, query_contrast, query_test

run = lab.open_run(source)
for name, role in run.roles.items():
    print(f"{name:<16} {role}")

# %% [markdown]
# ## 1. The transcript
#
# The transcript is the list of training examples with their positions. It is all that Alice needs
# to keep. Row order plays no part; `position` does.

# %%
print(run.transcript.describe())

# %% [markdown]
# ## 2. One picture
#
# Every example gets two scores: its log-likelihood per token under the suspect, and under a
# **reference model** that is independent of Alice's order. The difference removes what makes an
# example easy or hard for any model. Then we average by position in Alice's training. Likelihoods
# are in nats (natural logarithms); bars are 95 % intervals.
#
# **Before you look:** the derivative was fine-tuned on fresh text after leaving Alice. The
# independent model saw the *same examples* as Alice, in another order. Which curve do you expect to
# rise?

# %% tags=["hero"]
reference = run.scores("reference-same")
derivative, independent = run.scores("derivative"), run.scores("independent")
curves = {
    "derivative": query_contrast(derivative, [reference]),
    "independent": query_contrast(independent, [reference]),
}
figures.show(figures.memorisation_curve(run.transcript.positions, curves))

# %% [markdown]
# ## 3. A number with a guarantee
#
# The correlation of position with score is compared with what it would be had Alice shuffled
# otherwise. Under the hypothesis that Bob's model is independent of her order, every order was
# equally likely, so the p-value from permuted orders is **exact**, whatever the data are. z counts
# standard deviations of the permuted statistic.
#
# How small an effect would matter is fixed beforehand: here, a quarter of what the same queries
# show on Alice's own model, if they show anything there. Without such a number a large p-value
# could not be told from too few queries.

# %%
own = query_test(run.transcript, run.scores("alice"), [reference])
smallest = max(round(own.statistic / 4, 4), 0) or None
print(f"Alice's own model: correlation {own.statistic:.4f}")
print("smallest of interest:", smallest or "not fixed, for these queries show no memory even there")

# %%
found = query_test(run.transcript, derivative, [reference], smallest_effect=smallest)
found

# %%
figures.show(figures.null_histogram(found))

# %%
cleared = query_test(run.transcript, independent, [reference], smallest_effect=smallest)
print(f"{cleared.suspect['label']}: {cleared.verdict}")
print(cleared.verdict_reason)

# %% [markdown] tags=["panel"]
# ## 4. Try it
#
# Change the suspect, the number of bins, the number of queries. The curve follows at once; the test
# runs when you press the button.

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.query_panel(run)

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    found.write(folder / "00-derivative.json")
    cleared.write(folder / "00-independent.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## Where to go next
#
# - [01 Memorisation and order](01_memorisation_and_order.ipynb): what the curves are made of,
#   checkpoint by checkpoint.
# - [02 The query test](02_query_test.ipynb): why the p-value is exact, why references help, how to
#   ask less, what a small p does not show.
# - [03 The partition test](03_partition_test.ipynb) and
#   [04 The reshuffle test](04_reshuffle_test.ipynb): when all you have is text that Bob published.
# - [05 Calibration and power](05_calibration_and_power.ipynb): are the p-values right, how many
#   queries does it take, and what can go wrong?
# - [06 Bring your own](06_bring_your_own.ipynb): your transcript, your models, your scores.
# - [07 Black box](07_black_box.ipynb): Bob behind an endpoint, and what it costs.
# - [08 Many suspects](08_many_suspects.ipynb): many models, owners and tests, corrected.
# - [09 Robustness](09_robustness.ipynb): what survives fine-tuning, merging, distillation.
# - [90 Report](90_report.ipynb): the exhibit, with gates and caveats.
#
# **What this does not show.** A small p-value rejects independence of the training order. It does
# not say who derived from whom, that a licence was broken, which checkpoint was used, or which
# sibling of a suite that shares one order.

# %%
print(f"Palimpsest Workbench: {len(workbench.__all__)} public names, see help(workbench)")
