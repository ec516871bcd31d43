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
# # The query test
#
# *Explanation and how-to, with exercises for a class. Thirty minutes.*
#
# Alice scores her training examples under a suspect and correlates the scores with her training
# order (Kuditipudi et al. 2025, arXiv 2510.19796). This notebook builds the test from its null
# hypothesis up.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
suspect = "derivative"
n_resamples = 9999
seed = 0

# %%
from pathlib import Path

import numpy as np

from workbench import Transcript, figures, lab, plan_query, query_contrast, query_test
from workbench.null import permutation_null

run = lab.open_run(source)
transcript = run.transcript
scores = {name: run.scores(name) for name in run.scorable}
print("suspect:", suspect, "|", run.roles[suspect])

# %% [markdown]
# ## The null hypothesis
#
# **H0:** the suspect is independent of Alice's training *order*, given the examples.
#
# It says nothing about the examples themselves: the suspect may have been trained on all of them.
# Alice shuffled at random, so under H0 the order she used and any other order of the same examples
# are equally likely given the suspect. Exchange them, recompute the statistic, and you have seen a
# draw from the null. No model of the data is needed.

# %%
reference = scores["reference-same"]
contrast = query_contrast(scores[suspect], [reference])
null = permutation_null(transcript.design, [contrast], n_resamples, seed)[0]
beyond = int((null.draws >= null.observed).sum())
print(f"{beyond} of {n_resamples:,} permuted orders reach the observed statistic")
print(f"exact p = (1 + {beyond}) / ({n_resamples:,} + 1) = {null.pvalue():.4g}")

# %% [markdown]
# ## Three p-values, three names
#
# The **exact** p-value is counted. It cannot fall below its floor, 1 / (m + 1): with m permutations
# nothing smaller can be seen.
#
# Where nothing smaller can be counted, a theorem goes on. [Pairs of places are fair
# coins](01_memorisation_and_order.ipynb) under H0, and what fair coins add up to with which
# probability is bounded at any distance. Averaged over the order that was seen and 99 fresh ones,
# that bound is the **proven** p-value: valid at any size of sample, without a normal curve. "Proven
# 1e-50" says that *were the order independent, a p-value as small as this would come up with a
# probability of at most 1e-50*.
#
# The **asymptotic** one takes the null for a normal curve, and computes its tail far beyond where
# any permutation will ever land. Past 1e-12 we say *extrapolated*. No verdict rests on it.

# %%
evidence = query_test(transcript, scores[suspect], [reference], n_resamples=n_resamples, seed=seed)
print("exact p     ", evidence.exact_text)
print("proven p    ", evidence.proven_text)
print("asymptotic p", evidence.asymptotic_text)

# %%
figures.show(figures.null_histogram(evidence))

# %% [markdown]
# ## Is it really uniform when there is nothing to find?
#
# Take the *independent* model, whose scores know nothing of Alice's order, and shuffle afresh many
# times. Under H0 every p-value is equally likely, so a tenth of them should fall below 0.1. (Of 200
# draws, shares within .05 ± .03, .1 ± .04 and .5 ± .07 are what chance gives in 95 % of runs.)

# %%
rng = np.random.default_rng(seed)
control = query_contrast(scores["independent"], [reference])
pvalues, few = [], min(1000, transcript.n)
for trial in range(200):
    redrawn = Transcript.from_arrays(rng.permutation(few))
    rows = rng.choice(transcript.n, few, replace=False)
    fresh = permutation_null(redrawn.design, [control[rows]], 199, trial)[0]
    pvalues.append(fresh.pvalue_randomised(rng))
below = [np.mean(np.array(pvalues) <= level) for level in (0.05, 0.1, 0.5)]
print("share of p-values at or below .05, .1, .5:", [f"{share:.3f}" for share in below])

# %% [markdown]
# ## Why a reference helps
#
# **Prediction.** Order these by evidence: no reference; a reference trained on *other* examples; a
# reference trained on the *same* examples in another order.

# %%
choices = {
    "none": [],
    "reference-other": [scores["reference-other"]],
    "reference-same": [reference],
    "both": [scores["reference-other"], reference],
}
by_reference = {}
for label, references in choices.items():
    by_reference[label] = query_test(transcript, scores[suspect], references, seed=seed)
    e = by_reference[label]
    numbers = f"rho {e.statistic:+.4f}  z {e.z:6.2f}  exact p {e.pvalue:.4g}"
    print(f"{label:<16} {numbers}  log10 p {e.log10_pvalue:.1f}")

# %% [markdown]
# A reference explains why some examples are easy for everyone. Did it matter whether it saw the
# same examples or others of the same corpus? Did two explain more than one? Queries needed: about
# $((z_\alpha + z_{power}) / \rho)^2$; where ρ is not above zero, no number suffices.

# %%
print("queries needed to reach p = 1e-8 with 90 % power")
for label, e in by_reference.items():
    print(f"{label:<16} {plan_query(effect=e, pvalue=1e-8, power=0.9).needed}")

# %% [markdown]
# ## References are checked, too
#
# A reference that knows Alice's order (a checkpoint of hers, a sibling of the same suite) would
# cancel real signal or fake it. So each reference, each difference of references and what is
# subtracted are tested against the same null, two-sided, with Holm's correction. Below .001 the
# test is not valid. Passing is not proof: the check prints what it would have found.

# %%
check = by_reference["both"].references_check
for test in check.tests:
    print(f"{test['name']:<38} rho {test['correlation']:+.4f}", end=", ")
    print(f"corrected p {test['corrected']:.3f}")
print(check)

# %% [markdown]
# What if Alice's own model is used as a reference by mistake?

# %%
mistake = query_test(transcript, scores["independent"], [scores["alice"]], n_resamples=1999)
print(mistake.verdict)
print(mistake.verdict_reason)

# %% [markdown]
# ## Three independent models
#
# The control and both references never saw Alice's order. Each is put on trial, measured against
# the other two, so their contrasts add up to zero: three curves, two independent comparisons. The
# smallest effect of interest is a quarter of what the same queries show on Alice's own model, if
# they show anything there.

# %%
own = query_test(transcript, scores["alice"], [reference], seed=seed)
smallest = max(round(own.statistic / 4, 4), 0) or None
print("smallest effect of interest:", smallest or "not fixed, for Alice's own model shows none")
trials = {
    "independent": [reference, scores["reference-other"]],
    "reference-same": [scores["reference-other"], scores["independent"]],
    "reference-other": [reference, scores["independent"]],
}
cleared = {}
for name, references in trials.items():
    cleared[name] = query_test(transcript, scores[name], references, smallest_effect=smallest)
    print(f"{name:<16} exact p {cleared[name].pvalue:.4f}: {cleared[name].verdict}")

# %%
curves = {suspect: contrast}
curves.update({name: query_contrast(scores[name], refs) for name, refs in trials.items()})
centred = {name: values - values.mean() for name, values in curves.items()}
ylabel = "contrast, centred\n(nats per token)"
figures.show(figures.memorisation_curve(transcript.positions, centred, ylabel=ylabel))

# %% [markdown]
# ## Evidence against queries
#
# Every query costs. Random subsets show what fewer would have bought: the middle line is the median
# over subsets, the band holds half of them.

# %%
series = {
    f"{suspect}, with reference": (scores[suspect], [reference]),
    f"{suspect}, none": (scores[suspect], []),
    "independent, with reference": (scores["independent"], [reference]),
}
figures.show(figures.evidence_vs_queries(transcript, series, repeats=20, seed=seed))

# %% [markdown]
# ## Fewer queries: pairs by design
#
# What rises through training differs most between late and early examples: ask about those alone.
# A **design** chooses places of training (if it also filters by content, it must do so alike in
# every window) and forms pairs, one late and one early
# example each, at random. If nothing is remembered the sign of each difference is a fair coin. The
# **certified p** of those signs holds for any number of pairs. A fixed number of queries needs no
# pairs: whichever of the units were the late ones, all choices were equally likely, so the late may
# as well be compared with the early ones all with all (`compare="windows"`, a rank sum).
#
# **Prediction.** The same number of queries, at random and by design: which p is smaller?

# %%
from workbench import design_queries, pair_test, sequential_test
from workbench.statistics.betting import SignMartingale

asked = min(300, transcript.n // 2)
uniform = transcript.subsample(asked, seed, stratify=False)
plain = query_test(uniform, scores[suspect].take(uniform.rows), [reference.take(uniform.rows)])
design = design_queries(transcript, asked, "late-vs-early", seed=seed)
paired = pair_test(transcript, scores[suspect], [reference], design, seed=seed)
cleared_pairs = pair_test(transcript, scores["independent"], [reference], design, seed=seed)
windows = design_queries(transcript, asked, "late-vs-early", compare="windows", seed=seed)
compared = pair_test(transcript, scores[suspect], [reference], windows, seed=seed)
print(f"{asked} queries at random: z {plain.z:.1f}, exact p {plain.exact_text}")
print(f"{asked} queries by design: certified p {paired.pvalue:.1e} in pairs, ", end="")
print(f"{compared.pvalue:.1e} all with all")
print(f"independent, same design: certified p {cleared_pairs.pvalue:.2g}")

# %% [markdown]
# ## Watch it, and stop when you like
#
# Looking at a p-value after every query, and stopping once it is small, rejects true nulls far too
# often. A gambler may stop at any time: starting from 1, she bets on the sign of each pair before
# she sees it. Under the null the game is fair, so her wealth reaches 1/α with a chance of at most α
# (Ville's inequality), however long and however often she looks. In a case, choose one beforehand:
# a fixed number of queries or a watched test. Here one design shows both.

# %%
watched = {}
for name in (suspect, "independent"):
    watched[name] = sequential_test(
        transcript, scores[name], [reference], design, seed=seed, alpha=1e-3, batch=8
    )
    for step in watched[name]:
        if step.reached:
            break
    print(f"{name:<12} wealth {step.wealth:.3g} after {step.queries} queries, ", end="")
    print(f"anytime p {step.pvalue:.2g}")

# %%
figures.show(figures.wealth_curve(watched))

# %% [markdown]
# The peeker, for comparison: 300 null runs of forty batches of pairs. She looks after each batch,
# and stops at the first p below .05; the gambler stops at the first wealth of 20.

# %%
peeked = gambled = 0
for trial in range(300):
    differences = np.random.default_rng([seed, trial]).standard_normal(320)
    looks = np.arange(8, 321, 8)
    sums = np.cumsum(np.sign(differences))[looks - 1]
    peeked += bool((sums / np.sqrt(looks) >= 1.645).any())
    wealth = SignMartingale()
    wealth.extend(differences)
    gambled += wealth.pvalue <= 0.05
print(f"false alarms at .05: peeking {peeked / 300:.3f}, betting {gambled / 300:.3f}")

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.sequential_panel(run)

# %% [markdown]
# ## What may be permuted
#
# Exactly what was shuffled. If documents were shuffled whole, the document is the **unit**. If each
# epoch was shuffled on its own, the epoch is the **block**. Equal positions are **ties**. Getting
# it wrong is not a detail: here scores differ between two blocks and there is no memory at all.

# %%
order = np.concatenate([rng.permutation(500), 500 + rng.permutation(500)])
block = np.repeat(["first", "second"], 500)
drifting = np.where(block == "second", 0.5, 0.0) + rng.normal(size=1000)
for label, blocks in (("pooled (wrong)", None), ("within blocks", block)):
    design = Transcript.from_arrays(order, blocks=blocks).design
    p = permutation_null(design, [drifting], 999, seed)[0].pvalue()
    print(f"{label:<16} exact p {p:.3f}")

# %% tags=["panel", "nbval-ignore-output"]
panels.query_panel(run)

# %% [markdown]
# ## The evidence, whole
#
# Every result carries its gates, its caveats, and one of three verdicts: *evidence*, *no evidence*
# (with the effect that is excluded, and how many queries would show one), *not valid* (with the
# remedy). A gate is *verified* (computed here), *declared* (somebody said so: evidence rests on it,
# and its sentence says so after "if") or *failed*.

# %%
query_test(transcript, scores[suspect], [reference], smallest_effect=smallest, seed=seed)

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    for label, e in by_reference.items():
        e.write(folder / f"02-{suspect}-{label}.json")
    for name, e in cleared.items():
        e.write(folder / f"02-{name}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## What a small p does not show
#
# Direction (who derived from whom), breach of a licence, which checkpoint, or which sibling of a
# suite that shares one order. And all of it rests on the shuffle having been random: Alice's word,
# unless the seed came from public randomness or a published shuffler.
#
# ## Exercises for a class
#
# 1. Use losses in place of log-likelihoods by mistake (test `-contrast`). What does the one-sided
#    test say? What would a two-sided test have said?
# 2. With `source = "tiny"`: sort the transcript by its tokens and number it 0, 1, 2, … Which gate
#    stops you?
# 3. With 99 permutations and alpha = .001, can anything be evidence? What does the verdict say?
# 4. Halve the number of queries. By how much does z fall? Compare with the square root of two.
# 5. In the sequential test, let the gambler see the sign before she bets. What is her wealth worth?
# 6. Draw two suspects from one independent model by adding noise. Are their p-values independent?

# %%
wrong_sign = permutation_null(transcript.design, [-contrast], 999, seed)[0]
print("exercise 1: one-sided p with the wrong sign", wrong_sign.pvalue("greater"))
print("            two-sided p, for either sign   ", wrong_sign.pvalue("two-sided"))
