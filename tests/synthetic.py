"""A run, observations and plans from formulas, so that every panel can be opened at once."""

from typing import Any

import numpy as np

from workbench.costs import QueryCost
from workbench.independence import KnownEffect, QueryPlan
from workbench.lab.observations import Observations, SiblingScores
from workbench.lab.runs import Run
from workbench.ngrams import CountSettings, NgramCounts
from workbench.panels import PANELS, Panel
from workbench.scores import ScorerIdentity, Scores
from workbench.transcript import Transcript

N = 400
MODELS = {
    "alice": "the owner's model",
    "derivative": "the owner's model <b>fine-tuned</b>",
    "independent": "control",
    "reference-same": "reference",
    "reference-other": "reference",
}
# Settings that act only on what the button computes, by panel.
AFTER_THE_BUTTON = {
    "query": {"alternative", "permutations", "smallest_effect"},
    "report": {"alpha", "smallest_effect", "references"},
    "partition": {"permutations", "smallest_effect"},
}


class SyntheticRun(Run):
    """Scores from a formula: memory for the owner's models, noise for the others."""

    def _scores(self, name: str, prefix: int, length: int | None, progress: bool) -> Scores:
        rng = np.random.default_rng([prefix, *name.encode()])
        shared = np.random.default_rng(1).normal(size=self.transcript.n)
        memory = 1.0 if name.startswith(("alice", "derivative")) else 0.0
        loglik = -3 + shared + memory * self.transcript.positions / self.transcript.n
        return Scores.from_arrays(
            loglik=loglik + 0.3 * rng.normal(size=len(loglik)),
            transcript=self.transcript,
            identity=ScorerIdentity("arrays", name, prefix=prefix, length=length),
        )


def make_run(roles: dict[str, str] | None = None, kind: type[Run] = SyntheticRun) -> Run:
    order = np.random.default_rng(0).permutation(N)
    return kind(
        name="synthetic",
        transcript=Transcript.from_arrays(order, texts=[f"example {i}" for i in range(N)]),
        roles=MODELS if roles is None else roles,
        checkpoints=[0.5],
        windows=[(0, None), (32, 32)],
        provenance={},
        folders={},
        loss_curves={},
    )


class SyntheticObservations(Observations):
    """Counts and likelihoods from a formula: memory for the owner's texts, noise for others."""

    def counts(
        self,
        text: str,
        weight: str = "inverse",
        min_n: int = 1,
        unique: bool = False,
        n_tokens: int | None = None,
    ) -> NgramCounts:
        settings, total = CountSettings(weight, min_n, unique), n_tokens or self.token_steps[-1]
        rng = np.random.default_rng([total, min_n, len(weight), unique, *text.encode()])
        memory = 0.0 if text == "independent" else 4.0
        late = self.run.transcript.positions / N
        values = rng.poisson(2 + memory * late).astype(np.float64)
        matched = total // (1 + min_n)
        return NgramCounts(values, settings, 8, total, matched, {"label": text}, None, "join")

    def siblings(self, text: str, fine_tuned: bool = False) -> SiblingScores:
        rng = np.random.default_rng([7, *text.encode()])
        lengths = rng.integers(4, 9, 20)
        shared = [rng.normal(-3, 1, n) for n in lengths]
        memory = 0.0 if text == "independent" else 0.05
        everyone = [
            Scores.from_arrays(
                loglik=[s + rng.normal(gain, 0.05, len(s)) for s in shared], name=f"m{i}"
            )
            for i, gain in enumerate([memory, *[0.0] * 6, memory])
        ]
        return SiblingScores(everyone[0], everyone[1:7], everyone[7], "simulated")


def make_observations(names: tuple[str, ...] = ("alice", "derivative", "independent")) -> Any:
    return SyntheticObservations(
        run=make_run(),
        texts=dict.fromkeys(names, "text <b>sampled</b> from a model"),
        token_steps=[1000, 2000],
        sibling_texts=list(names),
        temperatures={},
        derivatives={},
        tail="the last part",
        fine_tuned=False,
        provenance={},
    )


def make_plans(names: tuple[str, ...] = ("echo", "sampled")) -> dict[str, QueryPlan]:
    effects = (KnownEffect(0.3, 0.2, 0.4, 0.9, 300, "pilot"), KnownEffect.known(-0.01))
    cost = QueryCost(requests=0.1, prompt_tokens=7000, completion_tokens=4000)
    return {
        name: QueryPlan(name, "spearman", (), 1e-8, 0.9, effect, cost)
        for name, effect in zip(names, effects, strict=False)
    }


def make(name: str) -> Panel:
    """The panel of that name, on what it is opened on."""
    maker, opened = PANELS[name]
    given = {"run": make_run, "observations": make_observations, "plans": make_plans}
    return maker(given[opened]()) if opened else maker()
