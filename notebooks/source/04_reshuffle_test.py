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
# # The reshuffle test
#
# *Explanation and how-to, with exercises for a class. Twenty-five minutes.*
#
# Text that Bob published, and a stronger question than n-grams can answer. Alice goes back to a
# checkpoint and trains the last part of her run again: once in the original order (the **rerun**),
# and T times on fresh shuffles of the same examples (the **siblings**). If Bob's text likes the
# rerun better than its siblings, it knows her order (Kuditipudi et al. 2025, arXiv 2510.19796,
# observational setting).

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
text = "derivative"
full = False
draws = 4000
seed = 0

# %%
from pathlib import Path

import numpy as np

from workbench import figures, lab, reshuffle_by_tokens, reshuffle_test
from workbench.statistics.reshuffle import compare_with_siblings, normal_z_pvalue

observations = lab.open_observations(source, full=full)
scores = observations.siblings(text)
print(f"retrained: {observations.tail}; {len(scores.siblings)} siblings and one rerun")
print(f"{text}: {scores.rerun.n} documents, {int(scores.rerun.n_tokens.sum()):,} tokens scored")

# %% [markdown]
# ## Why siblings
#
# Rerun and siblings start from one state, optimiser included, see the same examples, and differ in
# the order of the tail alone. If the text is independent of Alice's order, nothing tells the rerun
# from a sibling: each of the T + 1 models is as likely to come first. So the **rank p-value**,
# rank / (T + 1), is exact, whatever the text and however much of it there is.
#
# **Level.** With 19 siblings nothing below .05 can be shown, so this notebook tests at alpha = .05
# instead of the default .001, which would take 999 siblings. *Evidence* below is at .05: one
# innocent text in twenty would get it.
#
# **Prediction.** Three texts: Alice's own, a light fine-tune's, and an independent model's, trained
# on the same examples in another order. In which does the rerun stand apart?

# %%
results = {}
for name in dict.fromkeys(["alice", text, "independent"]):
    s = observations.siblings(name)
    test = {"procedure": s.procedure, "released": s.released, "label": name, "alpha": 0.05}
    results[name] = reshuffle_test(s.rerun, s.siblings, shuffle="owner", **test)
    e = results[name]
    print(f"{name:<12} rank {e.details['rank']:>2}, exact p {e.pvalue:.3f}, t {e.z:5.2f}", end=", ")
    print(f"model-based p {e.pvalue_model:.1e}: {e.verdict}")

# %%
figures.show(figures.sibling_dots(results))

# %% [markdown]
# ## Two p-values, two names
#
# With 19 siblings the rank p-value cannot fall below 1/20. Farther down goes only the
# **model-based** p-value: Student's t law, which assumes that log-likelihoods scatter like a
# Gaussian over reruns. It is reported under its own name and is never evidence alone; one
# independent text in twenty ranks first by chance, too.

# %%
e = results[text]
print("exact      ", e.exact_text)
print("model-based", e.model_text)
print("procedure  ", e.transcript["procedure"])

# %% [markdown]
# ## What the published p-value does
#
# The published code takes (alice − mean) / sd for a standard normal, as if mean and sd were known
# and not estimated from T values. Draw Alice and her siblings from *one* law, so that there is
# nothing to find, and count rejections, for nine siblings and for nineteen.

# %%
laws = {"Gaussian": np.random.Generator.standard_normal, "heavy tails (t, 3 df)": None}
share = {}
rng = np.random.default_rng(seed)
for n_siblings in (9, 19):
    for law, gaussian in laws.items():
        size = (draws, n_siblings + 1)
        drawn = gaussian(rng, size) if gaussian else rng.standard_t(3, size)
        z = np.array([normal_z_pvalue(row[0], row[1:]) for row in drawn])
        found = [compare_with_siblings(row[0], row[1:]) for row in drawn]
        t, rank = (np.array([getattr(c, p) for c in found]) for p in ("pvalue_t", "pvalue_rank"))
        share[n_siblings, law] = {"normal z": z, "Student's t": t, "rank": rank}

# %%
for level in (0.05, 0.01):
    for (n_siblings, law), values in share.items():
        rates = "  ".join(f"{name} {np.mean(p <= level):.4f}" for name, p in values.items())
        print(f"level {level:.2f}, T = {n_siblings:>2}, {law:<22} {rates}")

# %%
nine = {f"{kind}, {law}": p for (n, law), v in share.items() if n == 9 for kind, p in v.items()}
rates = {name: (int((p <= 0.01).sum()), draws) for name, p in nine.items()}
valid = [name for name in rates if name.startswith(("rank", "Student's t, Gaussian"))]
figures.show(figures.rejection_rates(rates, 0.01, valid))

# %% [markdown]
# Filled: valid at that level. With nine siblings the normal z rejects about four times too often at
# .01, and the smaller the level the worse. Student's law is right for Gaussian scatter, and rejects
# about twice too often at .01 under these heavy tails: that is what "model-based" means. The rank
# is never wrong (with nine siblings it cannot reach .01 at all, so it never rejects there).
#
# ## How much text is needed
#
# Whole documents in a random order, twenty orders: how far the rerun stands apart, and how often
# it comes first.

# %%
amounts = [250, 500, 1000, 2500, 4900, 10000, 20000]
amounts = [n for n in amounts if n <= scores.rerun.n_tokens.sum()]
lines, first = {}, {}
for name in results:
    s = observations.siblings(name)
    found = [reshuffle_by_tokens(s.rerun, s.siblings, amounts, k) for k in range(20)]
    lines[name] = (amounts, np.median([[c.t for _, c in run] for run in found], axis=0))
    first[name] = np.mean([[c.rank == 1 for _, c in run] for run in found], axis=0)
    print(f"{name:<12}", "  ".join(f"{n:,}: {v:.1f}" for n, v in zip(*lines[name], strict=True)))

# %%
axis = "median t\n(siblings' standard deviations)"
figures.show(figures.evidence_lines(lines, "tokens of text", axis, log_x=True))

# %%
print("share of orders of documents in which the rerun ranks first")
for name, values in first.items():
    row = "  ".join(f"{n:,}: {v:.2f}" for n, v in zip(amounts, values, strict=True))
    print(f"{name:<12} {row}")

# %% [markdown]
# Documents of one text are not independent draws of the whole experiment. All these subsets share
# one set of siblings, and the independent text shares it too: that it ranks first (or does not) in
# many subsets is one event, not many. Notebook 05 repeats the *whole* experiment, which is what
# shows the rank to be uniform.
#
# ## Temperature
#
# Bob may sample more sharply or more loosely. The same number of tokens at each temperature:

# %%
by_temperature = {}
for temperature, name in observations.temperatures.items():
    s = observations.siblings(name)
    rows = np.arange(min(observations.siblings(t).rerun.n for t in observations.sibling_texts))
    siblings = [sibling.take(rows) for sibling in s.siblings]
    test = {"procedure": s.procedure, "label": f"temperature {temperature:g}", "alpha": 0.05}
    by_temperature[temperature] = reshuffle_test(
        s.rerun.take(rows), siblings, shuffle="owner", **test
    )
    e = by_temperature[temperature]
    print(f"temperature {temperature:<4g} rank {e.details['rank']:>2}  t {e.z:5.2f}", end="  ")
    print(f"{e.details['scored_tokens']:,} tokens")

# %%
figures.show(figures.sibling_dots({f"temperature {t:g}": e for t, e in by_temperature.items()}))

# %% [markdown]
# t is the rerun's lead divided by the scatter of the siblings. Which of the two changes with the
# temperature? Siblings also differ in how sharp their distributions are, and text that is sharper
# or looser rewards the sharper or the flatter of them, order or no order. If that drives the
# scatter, the siblings' likelihoods of sharp and of loose text go against each other, and their
# correlation is negative:

# %%
for temperature, e in by_temperature.items():
    scatter = np.std(e.details["siblings"], ddof=1)
    print(f"temperature {temperature:<4g} lead {e.statistic:+.4f}, scatter {scatter:.4f} nats")
sharp, loose = min(by_temperature), max(by_temperature)
pair = [by_temperature[t].details["siblings"] for t in (sharp, loose)]
between = np.corrcoef(*pair)[0, 1]
print(f"correlation over siblings, temperature {sharp:g} against {loose:g}: {between:+.2f}")

# %% [markdown]
# ## Fine-tuning the siblings as Bob did
#
# Bob's fine-tune moved his model away from Alice's. If rerun and siblings are first fine-tuned on
# one half of Bob's text, all alike, they should come closer to it, and the other half is the test.

# %%
if observations.fine_tuned:
    s = observations.siblings("derivative", fine_tuned=True)
    test = {"procedure": s.procedure, "label": "derivative, fine-tuned", "alpha": 0.05}
    results["derivative, fine-tuned"] = reshuffle_test(s.rerun, s.siblings, shuffle="owner", **test)
    half = np.arange(s.rerun.n, 2 * s.rerun.n)  # the documents that were not fine-tuned on
    plain = observations.siblings("derivative")
    siblings = [sibling.take(half) for sibling in plain.siblings]
    test = {"procedure": plain.procedure, "label": "same half, as they are", "alpha": 0.05}
    results["same half, as they are"] = reshuffle_test(
        plain.rerun.take(half), siblings, shuffle="owner", **test
    )
    for name in list(results)[-2:]:
        print(f"{name:<24} rank {results[name].details['rank']}, t {results[name].z:.2f}")
print("fine-tuned siblings:", "at hand" if observations.fine_tuned else "full=True makes them")

# %% [markdown]
# ## The released weights are no sibling
#
# Alice's released weights came from her *first* run, perhaps on other machines. Only the rerun
# went through the siblings' own code path, so only the rerun is exchangeable with them. The
# released weights get a line of their own, model-based. (Where both runs were made on one machine,
# the lab's rerun repeats hers exactly, and the two agree.)

# %%
line = results[text].details["released"]
print(f"released weights: t {line['t']:.2f} (rerun {results[text].z:.2f}), {line['note']}")

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.reshuffle_panel(observations)

# %% [markdown]
# ## With your own models
#
# ```python
# siblings = [score_texts(texts, folder) for folder in sibling_folders]
# reshuffle_test(score_texts(texts, rerun_folder), siblings, procedure="how they were made",
#                shuffle="owner")
# ```
#
# or `palimpsest test reshuffle --texts bob.jsonl --alice RERUN --sibling S1 --sibling S2 …
# --procedure "how they were made" --alpha 0.05 --shuffle owner`. T siblings give no p below
# 1 / (T + 1). The `procedure` is a declaration: without it the test is "not valid". `palimpsest lab
# siblings` makes a set on this machine and prints these options.
#
# ## The evidence, whole

# %%
results[text]

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    for name, e in results.items():
        e.write(folder / f"04-{name.replace(', ', '-').replace(' ', '-')}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## What it does not show
#
# The null concerns the order of the *tail*: a model that left Alice's training before it is
# missed, not cleared. Nor does it show direction or breach of a licence, and that Alice's order
# was random is her word.
#
# ## Exercises for a class
#
# 1. How many siblings make an exact p of .001 possible?
# 2. A set of siblings is at hand. Let each in turn play Alice and look at the ranks. Why are they
#    uniform whatever the text, and why does that prove nothing?
# 3. Bob's text is a thousand times longer. Which of the two p-values gets more reliable?
# 4. The siblings have one learning rate and the rerun another. Which gate can catch it, and which
#    declaration was false?
# 5. Why is the mean over tokens the default, and not over documents?

# %%
alone = [compare_with_siblings(0.0, np.delete(np.arange(20.0), k) - k) for k in range(20)]
print("exercise 2, ranks with each of twenty in turn:", sorted(c.rank for c in alone))
