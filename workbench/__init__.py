"""Palimpsest Workbench: does a language model remember the order of someone's training data?

The query test asks whether the likelihood that a suspect model gives to training examples rises
with their training position, under an exact permutation null. The observational tests ask it of
text alone: n-grams by training position, or siblings retrained on a reshuffled tail. Importing
this package imports neither torch nor matplotlib; scorers, lab, figures and panels are imported
when they are used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names and the modules that hold them, resolved on first use.
_PUBLIC = {
    "Budget": "workbench.scorers",
    "CausalLMScorer": "workbench.scorers",
    "ChatScorer": "workbench.scorers",
    "CompletionsScorer": "workbench.scorers",
    "Evidence": "workbench.evidence",
    "InputError": "workbench.errors",
    "QueryPlan": "workbench.independence",
    "RayScorer": "workbench.scorers",
    "SampledScorer": "workbench.scorers",
    "ScorerIdentity": "workbench.scores",
    "Scores": "workbench.scores",
    "ShuffleClaim": "workbench.transcript",
    "Texts": "workbench.texts",
    "Transcript": "workbench.transcript",
    "match_ngrams": "workbench.ngrams",
    "open_scores": "workbench.scorers",
    "partition_test": "workbench.independence",
    "plan_query": "workbench.pilot",
    "precomputed_scores": "workbench.scorers",
    "queries_needed": "workbench.independence",
    "query_contrast": "workbench.independence",
    "query_test": "workbench.independence",
    "reshuffle_by_tokens": "workbench.independence",
    "reshuffle_test": "workbench.independence",
    "score_models": "workbench.scorers",
    "score_texts": "workbench.scorers",
    "score_transcript": "workbench.scorers",
    "tokenise_texts": "workbench.scorers",
}
_MODULES = (
    "calibration",
    "evidence",
    "figures",
    "lab",
    "panels",
    "reports",
    "scorers",
    "statistics",
)

__all__ = [
    "Budget",
    "CausalLMScorer",
    "ChatScorer",
    "CompletionsScorer",
    "Evidence",
    "InputError",
    "QueryPlan",
    "RayScorer",
    "SampledScorer",
    "ScorerIdentity",
    "Scores",
    "ShuffleClaim",
    "Texts",
    "Transcript",
    "match_ngrams",
    "open_scores",
    "partition_test",
    "plan_query",
    "precomputed_scores",
    "queries_needed",
    "query_contrast",
    "query_test",
    "reshuffle_by_tokens",
    "reshuffle_test",
    "score_models",
    "score_texts",
    "score_transcript",
    "tokenise_texts",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
