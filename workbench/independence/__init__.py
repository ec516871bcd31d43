"""The tests of independence, one readable page each: transcript and scores in, Evidence out."""

from workbench.independence.cases import PairCase, QueryCase
from workbench.independence.corrections import Exploration, explore, holm
from workbench.independence.design import (
    ContentFilter,
    QueryDesign,
    Windows,
    design_queries,
)
from workbench.independence.family import Family, family_test
from workbench.independence.learned import fit_design
from workbench.independence.ledger import Ledger, LedgerEntry
from workbench.independence.noise import NoiseFloor, noise_floor
from workbench.independence.pairs import pair_test
from workbench.independence.partition import partition_test
from workbench.independence.plan import KnownEffect, QueryPlan
from workbench.independence.query import query_contrast, query_test
from workbench.independence.reshuffle import reshuffle_by_tokens, reshuffle_test

__all__ = [
    "ContentFilter",
    "Exploration",
    "Family",
    "KnownEffect",
    "Ledger",
    "LedgerEntry",
    "NoiseFloor",
    "PairCase",
    "QueryCase",
    "QueryDesign",
    "QueryPlan",
    "Windows",
    "design_queries",
    "explore",
    "family_test",
    "fit_design",
    "holm",
    "noise_floor",
    "pair_test",
    "partition_test",
    "query_contrast",
    "query_test",
    "reshuffle_by_tokens",
    "reshuffle_test",
]
