"""A query test that is described before it is run, so that it can be counted.

Whatever can change its p-value is part of the description, and thereby of its key: scores,
references, window, subset, statistic, weights, null, alternative, seed and number of permutations.
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
from workbench.independence.query import query_test
from workbench.scores import Scores
from workbench.transcript import Transcript

__all__ = ["QueryCase"]

_PARAMETERS = inspect.signature(query_test).parameters
_GIVEN_APART = ("transcript", "suspect", "references", "progress")
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
        known = [name for name in _PARAMETERS if name not in _GIVEN_APART]
        unknown = [name for name in self.settings if name not in known]
        if unknown:
            raise InputError(
                f"the query test has no setting {unknown[0]!r}: use {', '.join(known)}"
            )

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
        for name, parameter in _PARAMETERS.items():
            if name not in (*_GIVEN_APART, *_NOT_COUNTED):
                value = self.settings.get(name, parameter.default)
                content[name] = value.as_dict() if hasattr(value, "as_dict") else value
        return content

    @cached_property
    def key(self) -> str:
        """SHA-256 of `described`: the same test has the same key anywhere."""
        return content_key(self.described)

    def run(self) -> Evidence:
        """Run the test."""
        return query_test(self.transcript, self.suspect, self.references, **self.settings)


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
