"""The reshuffle test: does the owner's order explain a text better than its siblings?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.evidence import Effect, Evidence, histogram_dict
from workbench.gates import (
    closing_caveats,
    gate_tail,
    gate_text,
)
from workbench.independence.account import SMALLEST_FLOAT, software
from workbench.null import NullDistribution
from workbench.ranges import LEVEL
from workbench.scores import Scores
from workbench.statistics.reshuffle import (
    SiblingComparison,
    compare_with_siblings,
    normal_z_pvalue,
)
from workbench.transcript import ShuffleClaim
from workbench.verdicts import conclude

__all__ = ["reshuffle_by_tokens", "reshuffle_test"]

Floats = NDArray[np.float64]

# Said of every test but a committed one, whose commitment names its siblings.
SIBLINGS_OPEN = (
    "The rank p-value is exact if the number of siblings was fixed before the text was scored: "
    "siblings added until the rank suffices make it too small."
)


def reshuffle_test(
    alice: Scores | float,
    siblings: Sequence[Scores] | Sequence[float],
    *,
    procedure: str | None = None,
    released: Scores | float | None = None,
    weighting: str = "tokens",
    shuffle: ShuffleClaim | str | None = None,
    label: str = "the text",
    alpha: float = 1e-3,
    smallest_effect: float | None = None,
) -> Evidence:
    """Does the owner's order explain this text better than fresh shuffles of the same examples?

    The last part of the owner's training is repeated on T fresh shuffles (the siblings) and once
    more in the original order (the rerun), all by one procedure. If the text is independent of
    that order, rerun and siblings are exchangeable, and every rank of the rerun is as likely
    (Kuditipudi et al. 2025, arXiv 2510.19796, observational setting, reshuffle form).

    Two p-values: the rank p-value, exact if T was fixed before the text was scored, at least
    1/(T + 1); and the model-based one from
    Student's t law, which assumes Gaussian log-likelihoods over reruns and alone is never
    evidence. The null concerns the order of the tail only: text from a model that left the
    owner's training before it is missed, not cleared.

    Parameters
    ----------
    alice : Scores or float
        The text's completions under the rerun (`workbench.scorers.score_texts`), or one number in
        nats per token.
    siblings : sequence of Scores or of float
        The same under each sibling; two at least.
    procedure : str, optional
        One sentence that declares how rerun and siblings were made, by one procedure that differs
        in the order of the tail alone. Without it the rank p-value is not exact, and the outcome
        is "not valid".
    released : Scores or float, optional
        The same under the owner's released weights: reported on a line of its own, model-based.
    weighting : {"tokens", "documents"}
        "tokens": total log-likelihood by total tokens, so that each token counts alike (the sum
        and this mean give the same ranks). "documents": mean of the documents' means.
    shuffle : ShuffleClaim or str, optional
        How the owner's order came about, such as "owner" for the owner's claim that it was random.
        Without it the test is not valid.
    label : str
        Name of the text in reports.
    alpha : float
        Level of the rank p-value, .05 at most; 1/(T + 1) or more, or the test is not valid.
    smallest_effect : float, optional
        Smallest difference of interest in nats per token, fixed beforehand.

    Returns
    -------
    Evidence
        `pvalue_exact` is the rank p-value, `pvalue_model` Student's; `details` hold every
        model's value, the released weights' line, and the published code's normal-z p-value.

    Raises
    ------
    InputError
        One sibling; two that are the same model; models scored on other texts or with other
        tokenizers; models of another architecture; numbers that are not finite.

    Examples
    --------
    >>> siblings = np.linspace(-2.3, -2.1, 19)
    >>> found = reshuffle_test(-2.0, siblings, procedure="simulated", alpha=0.05, shuffle="owner")
    >>> found.verdict, found.pvalue_exact, found.pvalue_model < 0.01
    ('evidence', 0.05, True)
    """
    LEVEL.check(alpha, "alpha")
    if smallest_effect is not None and smallest_effect <= 0:
        raise InputError(f"smallest_effect is {smallest_effect}: give nats per token above 0")
    if weighting not in ("tokens", "documents"):
        raise InputError(f"weighting {weighting!r} is unknown: choose tokens or documents")
    models = [alice, *siblings]
    _check_siblings(models, released)
    values = [_mean_loglik(model, weighting) for model in models]
    found = compare_with_siblings(values[0], values[1:])
    claim = ShuffleClaim.of(shuffle)
    gates = [gate_tail(claim, procedure), gate_text(models)]
    draws = NullDistribution(
        found.alice,
        float(found.siblings.mean()),
        float(found.siblings.std(ddof=1)) * float(np.sqrt(1 + 1 / len(siblings))),
        found.siblings,
        approximable=False,
    )
    evidence = Evidence(
        test="reshuffle",
        contrast="owner's order minus mean of its siblings, nats per token",
        statistic=found.difference,
        z=found.t,
        pvalue=found.pvalue_rank,
        pvalue_exact=found.pvalue_rank,
        pvalue_floor=found.floor,
        pvalue_asymptotic=None,
        log10_pvalue=None,
        pvalue_model=max(found.pvalue_t, SMALLEST_FLOAT),
        n=alice.n if isinstance(alice, Scores) else 1,
        n_units=len(siblings),
        effect=Effect(
            found.difference,
            found.low,
            found.high,
            0.95,
            "nats per token, owner's order minus siblings; Student's t",
        ),
        statistic_upper95=found.upper95,
        smallest_effect=smallest_effect,
        alpha=alpha,
        alternative="greater",
        references_check=None,
        gates=tuple(gates),
        caveats=(*_reshuffle_caveats(found, procedure), *closing_caveats(gates, None)),
        suspect=_scored_text(alice, label),
        references=(),
        placebos=(),
        transcript={"shuffle": claim.as_dict(), "procedure": procedure},
        null=histogram_dict(draws, bins=min(60, max(5, len(siblings)))),
        seed=0,
        n_resamples=len(siblings),
        details=_reshuffle_details(found, models, released, weighting),
        software=software(),
        distribution=draws,
    )
    return conclude(evidence)


def reshuffle_by_tokens(
    alice: Scores, siblings: Sequence[Scores], n_tokens: Sequence[int], seed: int = 0
) -> list[tuple[int, SiblingComparison]]:
    """Evidence against the amount of text: the comparison on the first so many tokens.

    Parameters
    ----------
    alice : Scores
    siblings : sequence of Scores
    n_tokens : sequence of int
        Amounts of text, in tokens; whole documents are taken in a seeded order.
    seed : int
        Of the order of documents.

    Returns
    -------
    list of (int, SiblingComparison)
        Tokens in fact used, and the comparison.

    Raises
    ------
    InputError
        More tokens asked for than there are.

    Examples
    --------
    >>> scores = [Scores.from_arrays(loglik=[[v, v], [v]]) for v in (-1.0, -2.0, -2.5)]
    >>> [(n, c.rank) for n, c in reshuffle_by_tokens(scores[0], scores[1:], [1, 3])]
    [(2, 1), (3, 1)]
    """
    models = [alice, *siblings]
    _check_siblings(models, None)
    rows = np.random.default_rng(seed).permutation(alice.n)
    total = np.cumsum(alice.n_tokens[rows].astype(np.int64))
    sums = [np.cumsum(model.loglik_sum[rows]) for model in models]
    found = []
    for wanted in n_tokens:
        if not 1 <= wanted <= total[-1]:
            raise InputError(
                f"{wanted:,} tokens were asked for and the scores cover {total[-1]:,}: ask for "
                "fewer, or score more text"
            )
        at = int(np.searchsorted(total, wanted))
        means = [float(s[at] / total[at]) for s in sums]
        found.append((int(total[at]), compare_with_siblings(means[0], means[1:])))
    return found


def _check_siblings(models: Sequence[Scores | float], released: Scores | float | None) -> None:
    """Rerun, siblings and released weights were measured on one text, and are different models."""
    everyone = [*models, *([] if released is None else [released])]
    scored = [model for model in everyone if isinstance(model, Scores)]
    if scored and len(scored) != len(everyone):
        raise InputError("some models have scores and some a number: give all of them in one form")
    if len(models) < 3:
        raise InputError(
            f"{len(models) - 1} sibling(s) were given and at least 2 are needed: retrain the tail "
            "on more fresh orders"
        )
    for number, model in enumerate(scored):
        first = scored[0]
        name = "the rerun" if number == 0 else f"sibling {number} ({model.label})"
        if number >= len(models):
            name = f"the released model ({model.label})"
        if model.n != first.n or not np.array_equal(model.n_tokens, first.n_tokens):
            raise InputError(
                f"{name} was scored on {int(model.n_tokens.sum()):,} tokens of {model.n:,} "
                f"documents and the rerun on {int(first.n_tokens.sum()):,} of {first.n:,}: score "
                "all of them on the same text with the same tokenizer"
            )
        mine, theirs = model.digests, first.digests
        if mine is not None and theirs is not None and not np.array_equal(mine, theirs):
            raise InputError(f"{name} was scored on another text than the rerun: score it again")
        hashes = {model.identity.tokenizer_sha256, first.identity.tokenizer_sha256} - {None}
        if len(hashes) > 1:
            raise InputError(
                f"{name} has another tokenizer than the rerun: siblings share everything but the "
                "order of the tail"
            )
        shapes = {model.identity.architecture, first.identity.architecture} - {None}
        if len(shapes) > 1:
            raise InputError(
                f"{name} is of another architecture ({model.identity.architecture}) than the rerun "
                f"({first.identity.architecture}): siblings share everything but the order of the "
                "tail"
            )
    seen: dict[str, int] = {}
    for number, model in enumerate(scored[: len(models)]):
        weights = model.identity.weights_sha256
        if weights is not None and weights in seen:
            one, two = ("the rerun" if i == 0 else f"sibling {i}" for i in (seen[weights], number))
            raise InputError(
                f"{one} and {two} are the same weights ({model.label}): each needs a fresh order"
            )
        if weights is not None:
            seen[weights] = number


def _mean_loglik(model: Scores | float, weighting: str) -> float:
    if not isinstance(model, Scores):
        return float(model)
    if weighting == "documents":
        return float(model.loglik_mean.mean())
    return float(model.loglik_sum.sum() / model.n_tokens.sum())


def _reshuffle_caveats(found: SiblingComparison, procedure: str | None) -> list[str]:
    caveats = [
        "The null concerns the order of the retrained tail alone: text from a model that left the "
        "owner's training before it is missed, not cleared.",
        SIBLINGS_OPEN,
    ]
    if found.pvalue_t < found.floor:
        caveats.append(
            "The model-based p-value lies below what ranks can show; it assumes Gaussian "
            "log-likelihoods over reruns, and more text does not make that truer."
        )
    return caveats


def _reshuffle_details(
    found: SiblingComparison,
    models: Sequence[Scores | float],
    released: Scores | float | None,
    weighting: str,
) -> dict[str, Any]:
    details: dict[str, Any] = {
        "weighting": weighting,
        "rank": found.rank,
        "alice": found.alice,
        "siblings": [float(v) for v in found.siblings],
        "pvalue_normal_z_as_published": max(
            normal_z_pvalue(found.alice, found.siblings), SMALLEST_FLOAT
        ),
    }
    first = models[0]
    if isinstance(first, Scores):
        details["scored_tokens"] = int(first.n_tokens.sum())
        details["sum_difference_nats"] = found.difference * details["scored_tokens"]
    if released is not None:
        value = _mean_loglik(released, weighting)
        line = compare_with_siblings(value, found.siblings)
        details["released"] = {
            "value": value,
            "t": line.t,
            "pvalue_model": max(line.pvalue_t, SMALLEST_FLOAT),
            "note": "model-based: released weights are not exchangeable with the siblings",
        }
    return details


def _scored_text(alice: Scores | float, label: str) -> dict[str, Any]:
    if not isinstance(alice, Scores):
        return {"label": label}
    return {
        "label": label,
        "documents": alice.n,
        "tokens": int(alice.n_tokens.sum()),
        "fingerprint": alice.examples_fingerprint,
        "tokenizer_sha256": alice.identity.tokenizer_sha256,
    }
