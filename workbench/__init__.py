"""Palimpsest Workbench: does a language model remember the order of someone's training data?

The query test asks whether the likelihood that a suspect model gives to training examples rises
with their training position, under an exact permutation null. The observational tests ask it of
text alone: n-grams by training position, or siblings retrained on a reshuffled tail. Importing
this package imports neither torch nor matplotlib; scorers, lab, figures and panels are imported
when they are used.
"""

from importlib import import_module
from typing import Any

from workbench.errors import optional_libraries

__version__ = "0.3.2"

# Public names and the modules that hold them, resolved on first use.
_PUBLIC = {
    "Budget": "workbench.scorers",
    "Capture": "workbench.capture",
    "CausalLMScorer": "workbench.scorers",
    "ChatScorer": "workbench.scorers",
    "Commitment": "workbench.commitment",
    "CommittedModel": "workbench.commitment",
    "CompletionsScorer": "workbench.scorers",
    "ContentFilter": "workbench.independence",
    "Correction": "workbench.evidence",
    "Evidence": "workbench.evidence",
    "Family": "workbench.independence",
    "InputError": "workbench.errors",
    "KnownShuffle": "workbench.shufflers",
    "Ledger": "workbench.independence",
    "MasterSalt": "workbench.merkle",
    "NoiseFloor": "workbench.independence",
    "PRESETS": "workbench.presets",
    "PairCase": "workbench.independence",
    "PositionWeights": "workbench.statistics",
    "QueryCase": "workbench.independence",
    "QueryDesign": "workbench.independence",
    "QueryPlan": "workbench.independence",
    "RayScorer": "workbench.scorers",
    "Reveal": "workbench.verification",
    "SampledScorer": "workbench.scorers",
    "ScorerIdentity": "workbench.scores",
    "Scores": "workbench.scores",
    "ShuffleClaim": "workbench.transcript",
    "Shuffler": "workbench.shufflers",
    "Texts": "workbench.texts",
    "TimeStamp": "workbench.commitment",
    "TrainingOrder": "workbench.transcripts",
    "Transcript": "workbench.transcript",
    "Verification": "workbench.verification",
    "Windows": "workbench.independence",
    "committed_test": "workbench.commitment",
    "design_queries": "workbench.independence",
    "explore": "workbench.independence",
    "family_test": "workbench.independence",
    "fit_design": "workbench.independence",
    "fit_weights": "workbench.statistics",
    "match_ngrams": "workbench.ngrams",
    "noise_floor": "workbench.independence",
    "open_order": "workbench.transcripts",
    "open_preset": "workbench.presets",
    "open_scores": "workbench.scorers",
    "open_study": "workbench.studies",
    "pair_test": "workbench.independence",
    "partition_test": "workbench.independence",
    "plan_query": "workbench.pilot",
    "precomputed_scores": "workbench.scorers",
    "queries_needed": "workbench.power",
    "query_contrast": "workbench.independence",
    "query_test": "workbench.independence",
    "reshuffle_by_tokens": "workbench.independence",
    "reshuffle_test": "workbench.independence",
    "reveal_rows": "workbench.bundle",
    "run_study": "workbench.studies",
    "score_models": "workbench.scorers",
    "score_texts": "workbench.scorers",
    "score_transcript": "workbench.scorers",
    "sequential_test": "workbench.sequential",
    "tokenise_texts": "workbench.scorers",
    "verify_bundle": "workbench.verification",
    "verify_study": "workbench.studies",
    "write_bundle": "workbench.bundle",
    "write_exhibit": "workbench.exhibit",
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
    "PRESETS",
    "Budget",
    "Capture",
    "CausalLMScorer",
    "ChatScorer",
    "Commitment",
    "CommittedModel",
    "CompletionsScorer",
    "ContentFilter",
    "Correction",
    "Evidence",
    "Family",
    "InputError",
    "KnownShuffle",
    "Ledger",
    "MasterSalt",
    "NoiseFloor",
    "PairCase",
    "PositionWeights",
    "QueryCase",
    "QueryDesign",
    "QueryPlan",
    "RayScorer",
    "Reveal",
    "SampledScorer",
    "ScorerIdentity",
    "Scores",
    "ShuffleClaim",
    "Shuffler",
    "Texts",
    "TimeStamp",
    "TrainingOrder",
    "Transcript",
    "Verification",
    "Windows",
    "committed_test",
    "design_queries",
    "explore",
    "family_test",
    "fit_design",
    "fit_weights",
    "match_ngrams",
    "noise_floor",
    "open_order",
    "open_preset",
    "open_scores",
    "open_study",
    "pair_test",
    "partition_test",
    "plan_query",
    "precomputed_scores",
    "queries_needed",
    "query_contrast",
    "query_test",
    "reshuffle_by_tokens",
    "reshuffle_test",
    "reveal_rows",
    "run_study",
    "score_models",
    "score_texts",
    "score_transcript",
    "sequential_test",
    "tokenise_texts",
    "verify_bundle",
    "verify_study",
    "write_bundle",
    "write_exhibit",
]


def __getattr__(name: str) -> Any:
    with optional_libraries():
        if name in _PUBLIC:
            return getattr(import_module(_PUBLIC[name]), name)
        if name in _MODULES:
            return import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
