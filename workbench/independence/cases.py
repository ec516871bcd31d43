"""A query test, or one on designed pairs, described before it is run, so that it can be counted.

Whatever can change its p-value is part of the description, and thereby of its key: scores,
references, window, subset or design, statistic, weights, null, alternative, seed and number of
permutations.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.home import content_key
from workbench.independence.design import QueryDesign
from workbench.independence.pairs import asked_scores, pair_test
from workbench.independence.query import query_test
from workbench.scores import Scores
from workbench.transcript import Transcript

__all__ = ["PairCase", "QueryCase"]

_PARAMETERS = inspect.signature(query_test).parameters
_OF_PAIRS = inspect.signature(pair_test).parameters
_GIVEN_APART = ("transcript", "suspect", "references", "design", "progress")
# What changes no p-value: thresholds, and models that are tested beside the suspect.
_NOT_COUNTED = ("alpha", "smallest_effect", "placebos")


@dataclass(frozen=True)
class QueryCase:
    """One query test, not yet run.

    Attributes
    ----------
    transcript : Transcript
    suspect : Scores
    references : sequence of Scores
    settings : mapping
        Further arguments of `query_test`: statistic, n_resamples, alternative, seed, alpha, …

    Raises
    ------
    InputError
        A setting that `query_test` does not have.

    Examples
    --------
    >>> t = Transcript.from_arrays(np.arange(4)[::-1])
    >>> s = Scores.from_arrays(loglik=[0.1, 0.3, 0.2, 0.4])
    >>> one, other = QueryCase(t, s), QueryCase(t, s, settings={"seed": 1})
    >>> one.key == QueryCase(t, s, settings={"alpha": 0.01}).key, one.key == other.key
    (True, False)
    """

    transcript: Transcript
    suspect: Scores
    references: Sequence[Scores] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_known("query test", self.settings, _PARAMETERS)

    @property
    def alpha(self) -> float:
        """Level of the test."""
        return float(self.settings.get("alpha", _PARAMETERS["alpha"].default))

    @cached_property
    def described(self) -> dict[str, Any]:
        """What can change the p-value, JSON-ready."""
        content: dict[str, Any] = {
            "test": "query",
            "tested": self.transcript.fingerprint,
            "n": self.transcript.n,
            "suspect": _account(self.suspect),
            "references": [_account(reference) for reference in self.references],
        }
        return content | _counted(self.settings, _PARAMETERS)

    @cached_property
    def key(self) -> str:
        """SHA-256 of `described`: the same test has the same key anywhere."""
        return content_key(self.described)

    def run(self) -> Evidence:
        """Run the test."""
        return query_test(self.transcript, self.suspect, self.references, **self.settings)


@dataclass(frozen=True)
class PairCase:
    """One test on designed pairs, not yet run.

    Attributes
    ----------
    design : QueryDesign
    suspect : Scores
        Of the whole transcript, or of the design's examples.
    references : sequence of Scores
        Likewise.
    settings : mapping
        Further arguments of `pair_test`: statistic, n_resamples, alternative, seed, alpha, …

    Raises
    ------
    InputError
        A setting that `pair_test` does not have; scores of other examples.

    Examples
    --------
    >>> from workbench.independence.design import design_queries
    >>> t = Transcript.from_arrays(np.arange(100))
    >>> s = Scores.from_arrays(loglik=np.arange(100.0))
    >>> one, other = (PairCase(design_queries(t, 8, seed=seed), s) for seed in (0, 1))
    >>> one.key == other.key
    False
    """

    design: QueryDesign
    suspect: Scores
    references: Sequence[Scores] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_known("test on designed pairs", self.settings, _OF_PAIRS)

    @property
    def transcript(self) -> Transcript:
        """The whole transcript."""
        return self.design.transcript

    @cached_property
    def described(self) -> dict[str, Any]:
        """What can change the p-value, JSON-ready."""
        content: dict[str, Any] = {
            "test": "pairs",
            "tested": self.design.examples.fingerprint,
            "n": self.design.queries,
            "design": {**self.design.settings.as_dict(), "rows_sha256": self.design.rows_sha256},
            "suspect": _account(asked_scores(self.suspect, self.design)),
            "references": [_account(asked_scores(r, self.design)) for r in self.references],
        }
        return content | _counted(self.settings, _OF_PAIRS)

    @cached_property
    def key(self) -> str:
        """SHA-256 of `described`: the same test has the same key anywhere."""
        return content_key(self.described)

    def run(self) -> Evidence:
        """Run the test."""
        return pair_test(
            self.transcript, self.suspect, self.references, self.design, **self.settings
        )


def _check_known(
    what: str, settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> None:
    known = [name for name in parameters if name not in _GIVEN_APART]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise InputError(f"the {what} has no setting {unknown[0]!r}: use {', '.join(known)}")


def _counted(
    settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Settings that can change the p-value, those left out by their defaults."""
    content = {}
    for name, parameter in parameters.items():
        if name not in (*_GIVEN_APART, *_NOT_COUNTED):
            value = settings.get(name, parameter.default)
            content[name] = value.as_dict() if hasattr(value, "as_dict") else value
    return content


def _account(scores: Scores) -> dict[str, Any]:
    """Who scored with what, and a digest of the values: another measurement is another test."""
    values = hashlib.sha256(scores.loglik_sum.astype("<f8").tobytes())
    values.update(np.ascontiguousarray(scores.n_tokens, dtype="<i4").tobytes())
    if scores.token_logliks is not None:
        for row in scores.token_logliks:
            values.update(np.ascontiguousarray(row, dtype="<f4").tobytes())
    return {
        "label": scores.label,
        "window": scores.identity.window,
        "scores_key": scores.key,
        "values": values.hexdigest(),
    }
