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
# # Memorisation and order
#
# *Explanation, with exercises. Twenty minutes.*
#
# Where does the signal come from? We look at one training run from the inside: its loss, the
# likelihood of its examples by position, and what each checkpoint still remembers.

# %% tags=["parameters"]
source = "recorded"
output_dir = ""
bins = 10

# %%
import numpy as np

from workbench import figures, lab, query_contrast

run = lab.open_run(source)
positions = run.transcript.positions
print(f"{run.transcript.n:,} examples, positions {positions.min():,} to {positions.max():,}")

# %% [markdown]
# ## A training order
#
# The order is a random permutation of the examples. In the table, rows stay in the order of the
# *corpus*, so that nothing but the column `position` knows the shuffle.

# %%
print("first rows of the table were trained at", positions[:8].tolist())
print(
    "correlation of row number with position:",
    round(np.corrcoef(np.arange(len(positions)), positions)[0, 1], 3),
)

# %% [markdown]
# ## The loss hides it
#
# The training loss falls because the model learns the language. Each batch is new to the model when
# its loss is computed, so this curve says nothing about memory. Can you tell Alice from the
# independent model here?

# %%
curves = {name: run.loss_curve(name) for name in ("alice", "independent")}
figures.show(figures.loss_curves(curves))

# %% [markdown]
# ## Likelihood by position, raw
#
# Now score all examples under the *finished* model. Some examples are easy for any model and some
# are hard, so the raw curve is noisy.
#
# **Prediction.** Alice's model, her derivative and the independent model have nearly the same text
# to read. Which of the three curves can rise with *Alice's* positions?

# %%
raw = {name: run.scores(name).loglik_mean for name in ("alice", "derivative", "independent")}
centred = {name: values - values.mean() for name, values in raw.items()}
figures.show(
    figures.memorisation_curve(
        positions, centred, bins, "log-likelihood, centred\n(nats per token)"
    )
)

# %% [markdown]
# ## Minus a reference
#
# A reference model reads the same examples without knowing the order. Subtracting its score takes
# out what is easy or hard for any model. Does the spread between examples shrink, and with it the
# intervals of the figure?

# %%
reference = run.scores("reference-same")
for name in ("alice", "derivative", "independent"):
    spread = raw[name].std()
    left = query_contrast(run.scores(name), [reference]).std()
    print(f"{name:<12} spread between examples {spread:.3f}, minus the reference {left:.3f} nats")

# %%
contrasts = {name: query_contrast(run.scores(name), [reference]) for name in raw}
figures.show(figures.memorisation_curve(positions, contrasts, bins))

# %% [markdown]
# ## Could it be chance?
#
# Pair the example that was trained first with the one that was trained last, the second with the
# last but one, and so on. Alice shuffled at random. So for a model that knows nothing of her order,
# which of the two examples of a pair came *later* is the flip of a fair coin: heads if the later
# one is the likelier of the two. Coins differ in size: one of places far apart, and of examples
# that differ much against the reference, counts for more. Add them up, and compare the sum with
# what coins can do.
#
# **Prediction.** Which walks stay inside the grey fan, where all coins were flipped anew?

# %%
figures.show(figures.coin_walks(positions, contrasts))

# %% [markdown]
# How far fair coins can carry a sum is a theorem, at any distance: no order has to be shuffled, and
# no curve extrapolated. [The query test](02_query_test.ipynb) makes a p-value of it.

# %% [markdown]
# ## Where is the memory strongest?
#
# It depends on the schedule. What was written late is overwritten less, but a learning rate that
# has decayed far also writes faintly, and fine-tuning overwrites. So the peak can lie well before
# the end. Where is each curve highest here? (Without any memory, that is an accident.)

# %%
for name in ("alice", "derivative"):
    centre, mean, _ = figures.binned(positions, contrasts[name], bins)
    best = int(np.argmax(mean))
    rise = mean[best] - mean[0]
    print(
        f"{name:<12} highest around {centre[best]:.0%} of training, {rise:.3f} nats above its start"
    )

# %% [markdown]
# ## The palimpsest
#
# The checkpoints of Alice's run that were kept, and her finished model, each scored on *all*
# examples. The shaded part is what a checkpoint had seen.
#
# **Prediction.** What should the unshaded part look like, and where is each curve highest?

# %%
layers = {
    fraction: query_contrast(run.checkpoint_scores(fraction), [reference])
    for fraction in [*run.checkpoints, 1.0]
}
figures.show(figures.checkpoint_curves(positions, layers))

# %%
for fraction, values in layers.items():
    seen = positions < fraction * len(positions)
    line = f"after {fraction:.0%} of training: seen examples {values[seen].mean():+.3f}"
    line += "" if seen.all() else f", unseen {values[~seen].mean():+.3f}"
    print(line + " nats per token against the reference")

# %% [markdown]
# Does each checkpoint know what it has seen better than what it has not, and what it saw late
# better than what it saw early? Then it is a palimpsest: later layers cover the older ones without
# erasing them.

# %% tags=["panel", "nbval-ignore-output"]
from workbench import panels

panels.curve_panel(run)

# %% [markdown]
# And the coins: with how few examples does the walk of the derivative still leave the fan?

# %% tags=["panel", "nbval-ignore-output"]
panels.coin_panel(run)

# %% [markdown]
# ## Exercises
#
# 1. Set `bins` to 40 and run all cells again. What grows faster, the detail or the intervals?
# 2. Replace `reference-same` by `reference-other`, which was trained on *other* examples. Which
#    curve changes its level, and which its shape?
# 3. The unseen part of a checkpoint's curve should be flat. Test it: keep only the rows that the
#    first checkpoint had not seen, and correlate position with its contrast.
# 4. A model that was trained for a second epoch in another order sees every example twice. Sketch
#    the curve by first position, and by second.

# %%
earliest = min(layers)
unseen = positions >= earliest * len(positions)
if unseen.any():
    rho = np.corrcoef(positions[unseen], layers[earliest][unseen])[0, 1]
    flat = bool(abs(rho) < 4 / np.sqrt(unseen.sum()))
    print("exercise 3: unseen part flat within four standard errors:", flat)
else:
    print("exercise 3: no checkpoint was kept, so every example was seen")
