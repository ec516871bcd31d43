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
# # Black-box access
#
# *How-to and explanation, with exercises for a class. Twenty-five minutes.*
#
# In the method's own story Alice cannot load Bob's weights: she can only send prompts (Kuditipudi
# et al. 2025, arXiv 2510.19796). What she gets back decides what she can measure, and what it
# costs. Here the lab's models stand behind an address of their own, and are asked in every way that
# real endpoints offer.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
full = False
pvalue = 1e-8
power = 0.9
smallest = 0.1
seed = 0

# %%
from pathlib import Path

import numpy as np

from workbench import figures, lab, plan_query, query_test
from workbench.independence import KnownEffect
from workbench.independence.plan import Pilot

access = lab.open_access(source, full=full)
for name, form in access.forms.items():
    print(f"{name:<16} {form.gives}")

# %% [markdown]
# ## What an endpoint gives
#
# - **Likelihoods of prompts.** As good as the weights. Servers that are asked for them answer with
#   zeros, with nulls, with the wrong tokens or shifted by one, and raise no error; so
#   `CompletionsScorer` first asks about *canaries*, whose likelihoods are known to be ordered, and
#   refuses a server whose numbers do not pass.
# - **Likely next tokens.** `ChatScorer` asks at a few places of an example what comes next, and
#   looks the true token up in the list; a token that is not listed gets a floor.
# - **Text.** `SampledScorer` counts how often the sampled continuation is the true one.
#
# **Prediction.** For the same evidence, how many more prompts does text need than likelihoods: ten
# times, a hundred, a thousand?

# %% [markdown]
# ## One suspect, every form of access
#
# The reference is Alice's own, of the same examples in another order, asked in the same way on her
# machine. Where only text comes back, its expectation is worked out from its weights.

# %%
evidence = {}
for form in access.forms:
    references = [access.scores(form, "reference-same")]
    for model in access.suspects:
        suspect = access.scores(form, model)
        evidence[form, model] = query_test(access.transcript(form), suspect, references, seed=seed)

# %%
print(f"{'access':<16}{'suspect':<13}{'queries':>8}{'z':>8}   asymptotic p")
for (form, model), e in evidence.items():
    shown = "-" if e.log10_pvalue is None else f"1e{e.log10_pvalue:.1f}"
    print(f"{form:<16}{model:<13}{e.n:>8,}{e.z:>8.2f}   {shown}")

# %% [markdown]
# Exact p-values end at the floor of their permutations; where there are queries enough for them,
# the asymptotic ones go on. The *independent* model was trained on the same examples in another
# order.
#
# ## What it cost
#
# Requests carry up to 64 prompts where the endpoint takes several; a chat takes one. Prompts count
# every question that a form poses; one that was answered before is not sent again, so the columns
# do not divide evenly.

# %%
print(f"{'access':<16}{'queries':>8}{'prompts':>10}{'requests':>10}{'tokens':>12}")
for form in access.forms:
    n, cost = access.transcript(form).n, access.cost(form, "derivative")
    tokens = n * (cost.prompt_tokens + cost.completion_tokens)
    print(f"{form:<16}{n:>8,}{n * cost.prompts:>10,.0f}{n * cost.requests:>10,.0f}{tokens:>12,.0f}")

# %% [markdown]
# ## Plan before you pay
#
# How many queries will it take? A **pilot** of a few hundred answers, at a price: its examples may
# not be tested afterwards. Whoever looks at 300 examples, decides on the number of queries, and
# then tests all of them together rejects true nulls too often. A plan keeps its pilot apart, and
# hands out as many of the other examples as it needs, or all where they do not suffice.

# %%
form = "token ids"
transcript = access.transcript(form)
suspect, reference = (access.scores(form, m) for m in ("derivative", "reference-same"))
options = {"pilot": 300, "cost": access.cost(form, "derivative"), "seed": seed, "label": form}
plan = plan_query(
    transcript,
    suspect,
    [reference],
    pvalue=pvalue,
    power=power,
    prices=(0.5, 1.5),  # per million prompt and completion tokens
    **options,
)
print(plan)

# %%
pilot, rest = plan.pilot.split(transcript)
tested = plan.test_examples(transcript, plan.queries or rest.n)
both = len(np.intersect1d(pilot.rows, tested.rows))
print(f"{pilot.n} in the pilot, {tested.n} of the other {rest.n} to be tested, in both: {both}")
number = {int(row): i for i, row in enumerate(transcript.rows)}
rows = [number[int(row)] for row in tested.rows]
kept = query_test(tested, suspect.take(rows), [reference.take(rows)], seed=seed)
print(f"z {plan.expected_z(tested.n):.2f} expected, {kept.z:.2f} found; exact p {kept.exact_text}")

# %% [markdown]
# ### The mistake, made on purpose
#
# Nothing is remembered here: z is standard normal. The pilot decides whether few or many queries
# follow. Pooled with the test, it makes false alarms; left out, it does not.

# %%
rng = np.random.default_rng(seed)
z_pilot, z_test = rng.normal(size=(2, 200_000))
n = np.where(z_pilot > 1, 100, 3000)
pooled = (np.sqrt(300) * z_pilot + np.sqrt(n) * z_test) / np.sqrt(300 + n)
for label, z in (("pilot pooled (wrong)", pooled), ("pilot left out", z_test)):
    print(f"{label:<22} rejects {np.mean(z >= 2.3263):.4f} of true nulls at .01")

# %% [markdown]
# ## Evidence against spend
#
# The same question for every form: the effect per query that was seen above, and its interval. Few
# queries leave it wide. (Read backwards, the effects are these tests' own; a plan for a suspect of
# yours needs a pilot of its own.)

# %%
plans = {}
for form in access.forms:
    e = evidence[form, "derivative"]
    effect = KnownEffect.from_z(e.z, e.n_units, confidence=0.9, source="the test above")
    cost = access.cost(form, "derivative")
    plans[form] = plan_query(
        effect=effect, cost=cost, label=form, pvalue=pvalue, power=power, prices=(0.5, 1.5)
    )
    print(f"{form:<16} asked {e.n:>6,}, needed: {plans[form].needed}")

# %% [markdown]
# A test that points the other way leaves nothing to plan on. Then plan for the smallest effect that
# would matter, chosen before anything is asked: so many queries would find it, with that power.

# %%
least = plan_query(effect=smallest, pvalue=pvalue, power=power)
print(f"to see an effect of {smallest:g} per query, through any form: {least.needed} queries")

# %% [markdown]
# What the forms with an effect cost for the same evidence; tokens are what a provider bills.

# %%
seen = {form: planned for form, planned in plans.items() if planned.queries}
prompts = {form: planned.queries * planned.cost.prompts for form, planned in seen.items()}
for form, planned in seen.items():
    tokens, times = planned.totals(planned.queries)["tokens"], prompts[form] / min(prompts.values())
    print(f"{form:<16} {tokens:>14,.0f} tokens, {times:>9,.0f} times the fewest prompts")
print("no effect seen through:", ", ".join(form for form in plans if form not in seen) or "none")

# %%
shown = {form: plans[form] for form in ("token ids", "top 20", "sampled, T = 1", "sampled, T = 0")}
figures.show(figures.evidence_vs_spend(shown, "tokens"))

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.plan_panel(plans)

# %% [markdown]
# ## How many samples buy how much evidence
#
# A sample is a coin whose odds moved a little where something is remembered. Places where the true
# token is certain or hopeless teach nothing, so a reference chooses the places (largest p(1 − p));
# it must be independent of the order, as every reference. More draws at a place help until its own
# probability is known; after that, only other places do.

# %%
print(f"{'access':<16}{'samples':>10}{'z':>8}{'z per root of 10,000 samples':>32}")
for form in ("sampled once", "sampled, T = 1", "sampled, T = 0"):
    e, cost = evidence[form, "derivative"], access.cost(form, "derivative")
    samples = e.n * cost.prompts
    print(f"{form:<16}{samples:>10,.0f}{e.z:>8.2f}{e.z / np.sqrt(samples / 10_000):>32.2f}")

# %% [markdown]
# ## On your own endpoint
#
# From Python, or as two commands. The key stays in the environment; the budget is checked before
# each request; every answer is stored as it arrives, so that nothing is paid for twice.
#
# ```python
# from workbench import Budget, CompletionsScorer, score_transcript
#
# scorer = CompletionsScorer(
#     "https://api.example.org/v1", "bob", api_key_env="BOB_KEY", budget=Budget(requests=2000)
# )
# scores = score_transcript(transcript, scorer, progress=True)
# ```
#
# ```
# palimpsest plan  --transcript alice.parquet --model bob --endpoint https://api.example.org/v1 \
#                  --api-key-env BOB_KEY --reference my-reference --out plan.json
# palimpsest score --transcript alice.parquet --model bob --endpoint https://api.example.org/v1 \
#                  --api-key-env BOB_KEY --plan plan.json --out bob.parquet
# ```
#
# To try it without a provider: `palimpsest lab serve --model derivative`.
#
# ## What black-box access cannot rule out
#
# That the endpoint serves one model, and answers honestly, rests on its owner's word; a consistency
# probe at the start, in the middle and at the end finds a model that was exchanged meanwhile. A
# server that knows the canaries and lies about the rest is beyond it. None of this can *make*
# evidence: lies that do not know Alice's order are noise under the null.

# %%
if output_dir:
    folder = Path(output_dir) / "evidence"
    for (form, model), e in evidence.items():
        e.write(folder / f"07-{model}-{form.replace(', ', '-').replace(' ', '')}.json")
print("evidence written" if output_dir else "no output folder: evidence not written")

# %% [markdown]
# ## Exercises for a class
#
# 1. Halve the effect. By how much does the number of queries grow?
# 2. Which gate or caveat would tell you that the reference was asked through another form?
# 3. The pilot pointed the other way. May you try another pilot? What does the second one cost?
# 4. Bob rounds likelihoods to one digit. Does the null suffer, or the power?
# 5. Draw another pilot from the same transcript: are the two plans' tests independent?

# %%
other = Pilot(transcript.fingerprint, 300, seed + 1).split(transcript)[0]
print("exercise 5: examples in both pilots", len(np.intersect1d(other.rows, pilot.rows)))
half = plan_query(effect=smallest / 2, pvalue=pvalue, power=power)
print("exercise 1: queries", least.needed, "->", half.needed)
print("exercise 4: the null permutes positions; rounded values are scores like any other")
