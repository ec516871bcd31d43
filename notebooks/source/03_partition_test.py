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
# # The partition test
#
# *Explanation and how-to, with exercises for a class. Twenty-five minutes.*
#
# Alice cannot query Bob's model. She has only text that Bob published. If that text came from a
# model derived from hers, it may repeat phrases of her training data, and more of what the model
# saw *late*. The test looks up the text's n-grams in her transcript and asks whether they lie late
# (Kuditipudi et al. 2025, arXiv 2510.19796, observational setting). No model is run, none
# retrained.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
text = "derivative"
full = False
n_resamples = 9999
seed = 0

# %%
from pathlib import Path

import numpy as np

from workbench import Texts, Transcript, figures, lab, match_ngrams, partition_test
from workbench.null import permutation_null
from workbench.statistics.rank import RankDesign

observations = lab.open_observations(source, full=full)
transcript = observations.run.transcript
for name, about in observations.texts.items():
    print(f"{name:<16} {about}")

# %% [markdown]
# ## A match, by hand
#
# For every position of the text: the longest n-gram that starts there and occurs in the
# transcript. An n-gram never crosses from one example into the next. Each occurrence adds to its
# example; by default, 1 divided by the n-gram's number of occurrences, so that "of the" does not
# drown a phrase that was seen once.

# %%
examples = [[5, 6, 7, 8], [6, 7, 9, 9], [1, 2, 3, 4]]
toy = Transcript.from_arrays([0, 1, 2], tokens=examples)
matches = match_ngrams(toy, Texts.from_tokens([[5, 6, 7, 2, 3, 4]]), max_ngram=4)
for at, longest in enumerate(matches.longest):
    times = matches.occurrences[matches.ngram[at]]
    print(f"text position {at}: longest n-gram {longest}, occurs {times} time(s)")
print("counts per example:", np.round(matches.counts().values, 2))

# %% [markdown]
# ## Where a text's n-grams lie
#
# **Prediction.** Three texts, sampled from Alice's own model, from a light fine-tune of it, and
# from an independent model trained on the same examples in another order. Which curves rise?

# %%
shown = list(dict.fromkeys(["alice", text, "independent"]))
curves = {name: observations.counts(name).values for name in shown}
figures.show(figures.count_curve(transcript.positions, curves))

# %% [markdown]
# Are the last examples of training matched most? Single examples are noisy: that is why the test
# needs all of them.
#
# ## The test
#
# **H0:** the text is independent of Alice's training *order*, given her examples. Counts depend on
# the text and the *set* of examples alone, so under H0 every order of the counts was as likely as
# hers. Permuting what she shuffled gives the **exact** p-value; the statistic is Spearman's
# correlation of count and position.

# %%
evidence = partition_test(transcript, observations.counts(text), n_resamples=n_resamples, seed=seed)
print(f"{text}: rho {evidence.statistic:+.4f}, z {evidence.z:.1f}")
print("exact p     ", evidence.exact_text)
print("asymptotic p", evidence.asymptotic_text)

# %%
figures.show(figures.null_histogram(evidence))

# %% [markdown]
# ## Every text on trial
#
# The independent text is the control: the same amount, the same prompts, another order.

# %%
results = {}
for name in observations.texts:
    results[name] = partition_test(transcript, observations.counts(name), seed=seed)
    e = results[name]
    print(f"{name:<16} rho {e.statistic:+.4f}  exact p {e.pvalue:.4g}", end="  ")
    print(f"log10 p {e.log10_pvalue:6.1f}  {e.verdict}")

# %% [markdown]
# A large p clears nobody by itself: what matters is which effect it excludes. Fix the smallest one
# of interest beforehand, here a quarter of what Alice's own text shows, and the verdict says
# whether it is excluded and whether the test had the power to see it.

# %%
smallest = max(round(results["alice"].statistic / 4, 4), 0) or None
control = observations.counts("independent")
cleared = partition_test(transcript, control, smallest_effect=smallest, seed=seed)
print("smallest effect:", smallest or "not fixed, for Alice's own text shows none")
print(f"independent: {cleared.verdict}")
print(cleared.verdict_reason)

# %% [markdown]
# ## What counts as a match
#
# The published statistic adds *one* per occurrence, so that the most frequent n-grams decide.
# Dividing by the number of occurrences is the default here, chosen on the lab's models by power.
# All variants are exact: choose one before you look, for a choice made by looking at p is one more
# test.

# %%
variants = {
    "1/occurrences (default)": {},
    "one per occurrence (published)": {"weight": "occurrences"},
    "only n-grams of 4 tokens and more": {"min_n": 4},
    "only n-grams that occur once": {"unique": True},
}
for label, options in variants.items():
    e = partition_test(transcript, observations.counts(text, **options), seed=seed)
    print(f"{label:<34} exact p {e.pvalue:<7.4g} log10 p {e.log10_pvalue:6.1f}")

# %% [markdown]
# ## How much text is needed
#
# Text is the budget here, as queries are in the query test. Counts of the first so many tokens:

# %%
steps = observations.token_steps
lines = {}
for name in observations.texts:
    counts = [observations.counts(name, n_tokens=n) for n in steps]
    found = [partition_test(transcript, c, n_resamples=199, seed=seed) for c in counts]
    lines[name] = (steps, [-e.log10_pvalue for e in found])
    print(f"{name:<16}", "  ".join(f"{n:,}: {v:.1f}" for n, v in zip(*lines[name], strict=True)))

# %%
axis = "−log10 p (asymptotic)"
goal = {"threshold": 6, "threshold_label": "p = 1e-6"}
figures.show(figures.evidence_lines(lines, "tokens of text", axis, log_x=True, **goal))

# %% [markdown]
# Asymptotic p-values below the floor of the permutations are a tail of the normal curve, not
# something that was counted. Which texts reach the dotted line, and which would need more tokens?
#
# ## Is p uniform when there is nothing to find?
#
# Reshuffle the order many times, count against each fresh order, and look at all p-values. The
# text is Bob's, with all its matches: they just cannot know a shuffle that was drawn after it.
# (Of 200 draws, .05 ± .03, .1 ± .04 and .5 ± .07 hold 95 %.)

# %%
rng = np.random.default_rng(seed)
counts = observations.counts(text).values
pvalues = []
for trial in range(200):
    redrawn = RankDesign(rng.permutation(transcript.n))
    fresh = permutation_null(redrawn, [counts], 99, trial)[0]
    pvalues.append(fresh.pvalue_randomised(rng))
below = [np.mean(np.array(pvalues) <= level) for level in (0.05, 0.1, 0.5)]
print("share of p-values at or below .05, .1, .5:", [f"{share:.3f}" for share in below])

# %%
figures.show(figures.pvalue_uniformity({"reshuffled orders": pvalues}, columns=1))

# %% [markdown]
# ## The general form: blocks
#
# Cut the transcript into equal blocks in training order, fit a small n-gram model to each, and ask
# whether later blocks make the text likelier. Whole blocks are permuted; with few of them their
# orders, and not the number of permutations, would limit the smallest p. With a text it is
# `partition_test(…, statistic="block-likelihood")`.

# %%
logliks = observations.block_logliks(text)
block_null = permutation_null(RankDesign(np.arange(len(logliks))), [logliks], n_resamples, seed)[0]
rho = np.corrcoef(np.arange(len(logliks)), np.argsort(np.argsort(logliks)))[0, 1]
print(f"{len(logliks)} blocks: rho {rho:+.2f}, exact p {block_null.pvalue():.4g}")

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.partition_panel(observations)

# %% [markdown]
# ## With your own text
#
# ```python
# transcript = Transcript.read("transcript.parquet", shuffle="owner")  # columns: position, tokens
# texts = Texts.read("bob.jsonl")  # column: text, or tokens
# partition_test(transcript, tokenise_texts(texts, "my/tokenizer"))
# ```
#
# or `palimpsest test partition --transcript transcript.parquet --texts bob.jsonl --tokenizer
# my/tokenizer --shuffle owner`. `palimpsest sample --model …` makes text to rehearse with. Prompts
# are kept apart and never counted: whoever wrote them, it was not the model.
#
# ## The evidence, whole

# %%
evidence

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    for name, e in {**results, "independent-cleared": cleared}.items():
        e.write(folder / f"03-{name}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## What a small p does not show
#
# That Bob's *model* derives from Alice's: the text might have been written by people who used her
# model. Nor direction, nor breach of a licence. A large p does not clear: a model that was
# fine-tuned long, or little text, hides the order.
#
# ## Exercises for a class
#
# 1. Credit only the *first* occurrence of each n-gram. Why is p no longer exact? (Notebook 05 shows
#    how often it is wrong.)
# 2. Bob pastes Alice's last training batch into his text by hand. What does the test say, and is it
#    wrong?
# 3. Bob's text quotes her most recent documentation, and her data were *not* shuffled but sorted by
#    date. Which gate stops you?
# 4. Half as much text: what becomes of z?
# 5. Choose the best of the four variants by its p. What is the false-positive rate of that?

# %%
null = np.random.default_rng(seed).random((20_000, 4))
print(f"exercise 5, if the four were independent: {np.mean(null.min(axis=1) <= 0.05):.3f} at .05")
