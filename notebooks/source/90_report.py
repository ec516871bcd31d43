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
# # Report: is the suspect independent of the owner's training order?
#
# *The exhibit. Every number is computed in this document from stored scores.*

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
suspect = "derivative"
references = "reference-same,reference-other"
statistic = "spearman"
n_resamples = 9999
alpha = 0.001
smallest_effect = 0.0
seed = 0

# %%
from pathlib import Path

from workbench import figures, lab, query_contrast, query_test

run = lab.open_run(source)
reference_names = [name.strip() for name in references.split(",") if name.strip()]
chosen = [run.scores(name) for name in reference_names]
placebos = [name for name in ("independent",) if name not in (suspect, *reference_names)]
print(f"suspect: {suspect}; references: {', '.join(reference_names) or 'none'}")
print(f"independent models tested as placebos: {', '.join(placebos) or 'none'}")

# %% [markdown]
# ## Question
#
# Does the likelihood that the suspect gives to the owner's training examples rise with the position
# at which the owner trained on them, more than chance allows?
#
# ## Assumption
#
# The owner shuffled the examples at random and could not choose the order. Under the null
# hypothesis the suspect is independent of that order, given the examples and the references. Then
# every order was equally likely, and the permutation p-value is exact.

# %% [markdown]
# ## Answer
#
# `smallest_effect` is the smallest correlation of interest. Left at 0, it is set by a rule that is
# fixed beforehand: a quarter of what the same queries show on the owner's own model, and none if
# they show nothing there.

# %%
own = query_test(run.transcript, run.scores("alice"), chosen, statistic, seed=seed)
smallest = smallest_effect or max(round(own.statistic / 4, 4), 0) or None
evidence = query_test(
    run.transcript,
    run.scores(suspect),
    chosen,
    statistic,
    n_resamples=n_resamples,
    seed=seed,
    alpha=alpha,
    smallest_effect=smallest,
    placebos=[run.scores(name) for name in placebos],
)
print(f"{suspect}: {evidence.verdict}")

# %%
curves = {}
for name in (suspect, *placebos):
    curves[name] = query_contrast(run.scores(name), chosen, statistic, run.transcript, seed)
figures.show(figures.memorisation_curve(run.transcript.positions, curves))

# %%
evidence

# %% [markdown]
# Two p-values are printed. The **exact** one comes from permuted orders; it is valid whatever the
# data are and cannot fall below its floor. The **asymptotic** one is the tail of a normal curve
# with the null's own mean and standard deviation: an approximation, and an extrapolation where it
# says so.

# %%
figures.show(figures.null_histogram(evidence))

# %% [markdown]
# ## The same suspect without references
#
# References sharpen the test; the conclusion should not hang on the choice of one.

# %%
alone = query_test(
    run.transcript, run.scores(suspect), n_resamples=n_resamples, seed=seed, alpha=alpha
)
print(f"without references: z {alone.z:.2f}, exact p {alone.exact_text}")
print(f"                    asymptotic p {alone.asymptotic_text}")

# %% [markdown]
# ## Controls: independent models
#
# Trained without knowledge of the owner's order, tested the same way. A control is measured without
# itself among the references, and with the other independent models in its place. So the contrasts
# of three models add up to zero: three controls are two independent comparisons.

# %%
controls = {}
pool = dict.fromkeys([*reference_names, *placebos])
for name in ("independent", "reference-same", "reference-other"):
    refs = [run.scores(r) for r in pool if r != name]
    controls[name] = query_test(
        run.transcript, run.scores(name), refs, statistic, seed=seed, smallest_effect=smallest
    )
    e = controls[name]
    print(f"{name:<16} exact p {e.pvalue:.4f}, z {e.z:+.2f}: {e.verdict}")

# %% [markdown]
# ## Validity gates
#
# What the software checked, each with one of three outcomes. *Verified*: computed here, from what
# is here. *Declared*: somebody said so, or it could not be compared; whoever reads the verdict has
# to believe it. *Failed*: the test is *not valid*, whatever the p-value.

# %%
for gate in evidence.gates:
    print(f"gate {gate.number} {gate.name}: {gate.status}")
    print(f"    {gate.detail}")

# %% [markdown]
# ## What this does not show

# %%
for caveat in evidence.caveats:
    print(f"- {caveat}")

# %% [markdown]
# ## Identity of what was tested
#
# Scores are stored with everything that can change them. Hashes differ between machines that train
# their own models.

# %% tags=["nbval-ignore-output"]
print("transcript", evidence.transcript["fingerprint"])
for identity in (evidence.suspect, *evidence.references, *evidence.placebos):
    weights = str(identity["weights_sha256"])[:16]
    print(f"{identity['label']:<16} weights {weights}, {identity['dtype']}")
print(", ".join(f"{name} {version}" for name, version in evidence.software.items()))

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.report_panel(run)

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    evidence.write(folder / f"90-{suspect}.json")
    alone.write(folder / f"90-{suspect}-no-reference.json")
    for name, control in controls.items():
        control.write(folder / f"90-{name}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## How to verify
#
# Read an `evidence/*.json` file back with `workbench.Evidence.read`; its keys are the names used
# here. Given the transcript and the stored scores, `workbench.query_test` with the same seed gives
# the same exact p-value. Rescore any example with `palimpsest score` to check the scores
# themselves: until somebody does, they are the owner's claim, and this report is self-dated unless
# its digest was published or time-stamped by a third party.
