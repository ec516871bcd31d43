"""The tests of independence, one readable page each: transcript and scores in, Evidence out."""

from workbench.independence.cases import QueryCase
from workbench.independence.corrections import Exploration, explore, holm
from workbench.independence.family import Family, family_test
from workbench.independence.ledger import Ledger, LedgerEntry
from workbench.independence.noise import NoiseFloor, noise_floor
from workbench.independence.partition import partition_test
from workbench.independence.plan import KnownEffect, QueryPlan
from workbench.independence.query import queries_needed, query_contrast, query_test
from workbench.independence.reshuffle import reshuffle_by_tokens, reshuffle_test

__all__ = [
    "Exploration",
    "Family",
    "KnownEffect",
    "Ledger",
    "LedgerEntry",
    "NoiseFloor",
    "QueryCase",
    "QueryPlan",
    "explore",
    "family_test",
    "holm",
    "noise_floor",
    "partition_test",
    "queries_needed",
    "query_contrast",
    "query_test",
    "reshuffle_by_tokens",
    "reshuffle_test",
]
