"""Windows compared all with all: the same units asked about, an exact null, and what it says."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace
from math import comb, log10

import numpy as np
import pytest
from scipy import stats

from workbench import Evidence, InputError, Scores, Transcript, figures
from workbench.independence import QueryDesign, Windows, design_queries, pair_test
from workbench.independence.comparisons import ComparedWindows
from workbench.independence.design import DESIGNS, DesignSettings
from workbench.null import rejection_limit
from workbench.sequential import sequential_test
from workbench.statistics import certified_rank_sum_log10

N = 3000


def scores_of(values, name="m"):
    return Scores.from_arrays(loglik=values, name=name)


@pytest.fixture(scope="module")
def case():
    """An order, a model that remembers it, and two that do not."""
    rng = np.random.default_rng(1)
    order = rng.permutation(N)
    easy = rng.normal(size=N)
    models = {
        name: scores_of(-3 + easy + memory * order / N + 0.3 * rng.normal(size=N), name)
        for name, memory in (("bob", 0.5), ("other", 0.0), ("else", 0.0))
    }
    return Transcript.from_arrays(order, shuffle="owner"), models


# ---------------------------------------------------------------------- designs


def test_the_same_units_are_asked_about_and_the_file_says_what_is_compared(case):
    transcript, models = case
    arguments = {"filter": "hardest-50", "references": [models["other"]], "seed": 3}
    pairs = design_queries(transcript, 200, **arguments)
    windows = design_queries(transcript, 200, **arguments, compare="windows")
    assert windows.rows_sha256 == pairs.rows_sha256
    assert windows.permutable == "which of the units asked about are the late ones"
    assert "on 100 late and 100 early units" in windows.summary()
    assert "compare" not in json.loads(pairs.to_json())["settings"]
    assert json.loads(windows.to_json())["settings"]["compare"] == "windows"
    for design in (pairs, windows):
        again = QueryDesign.from_json(design.to_json(), transcript, [models["other"]])
        assert again.settings == design.settings
        assert again.to_json() == design.to_json()
    late, early = windows.sides(models["bob"].loglik_mean[windows.rows])
    np.testing.assert_array_equal(
        late - early, pairs.differences(models["bob"].loglik_mean[pairs.rows])
    )


def test_what_cannot_be_compared_is_refused_in_one_sentence(case):
    transcript, models = case
    made = design_queries(transcript, 40, compare="windows")
    for match, call in {
        "compare is 'all'": lambda: design_queries(transcript, 40, compare="all"),
        "'uniform' has no windows to compare": lambda: design_queries(
            transcript, 40, "uniform", compare="windows"
        ),
        "make it with compare='pairs'": lambda: sequential_test(
            transcript, models["bob"], [], made
        ),
        "all units asked about have the same score": lambda: pair_test(
            transcript, scores_of(np.zeros(N)), [], made
        ),
        "this holds no design": lambda: QueryDesign.from_json(
            made.to_json().replace('"compare": "windows"', '"compare": "all"'), transcript
        ),
        "no windows": lambda: DesignSettings(
            "uniform", None, None, 20, 0, None, transcript.fingerprint, compare="windows"
        ),
    }.items():
        with pytest.raises(InputError, match=match) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, 2, [1, 3, 1, 2, 4, 1]])
def test_given_who_is_asked_every_choice_of_the_late_ones_is_as_likely(size):
    """All 720 orders of six units, by enumeration: the symmetry on which the test rests."""
    unit = np.repeat(np.arange(6), size)
    hardness = scores_of(np.random.default_rng(3).normal(size=len(unit)))
    mean = len(unit) // 6
    for budget, chosen in ((2 * mean, None), (4 * mean, "hardest-50"), (6 * mean, None)):
        late_of = defaultdict(Counter)
        for order in itertools.permutations(range(6)):
            transcript = Transcript.from_arrays(np.array(order)[unit], units=unit)
            try:
                design = design_queries(
                    transcript,
                    budget,
                    Windows((0.5, 1), (0, 0.5)),
                    filter=chosen,
                    references=[hardness],
                    compare="windows",
                )
            except InputError:  # no unit that passes in one of the windows
                continue
            asked, late = (
                tuple(np.unique(unit[design.rows[mask]]))
                for mask in (design.late >= 0, design.late)
            )
            late_of[asked][late] += 1
        assert late_of
        for asked, counts in late_of.items():
            assert len(counts) == comb(len(asked), len(asked) // 2)
            assert len(set(counts.values())) == 1


# ---------------------------------------------------------------------- the test


def test_memory_is_found_with_fewer_queries_and_the_evidence_says_how(case, tmp_path):
    transcript, models = case
    design = design_queries(transcript, 200, compare="windows")
    arguments = {"statistic": "residual", "n_resamples": 999, "placebos": [models["else"]]}
    found = pair_test(transcript, models["bob"], [models["other"]], design, **arguments)
    assert found.verdict == "evidence"
    assert found.verdict_reason.startswith("certified p")
    assert found.pvalue < 1e-6 < found.pvalue_exact == found.pvalue_floor == 1e-3
    pairs = design_queries(transcript, 200)
    theirs = pair_test(transcript, models["bob"], [models["other"]], pairs, **arguments)
    assert found.pvalue < theirs.pvalue / 10
    certified = found.details["certified"]
    assert (certified["compare"], certified["how"]) == ("windows", "exact")
    assert (certified["late"], certified["early"], certified["ties"]) == (100, 100, 0)
    u = certified["above"] / 10_000
    assert found.statistic == pytest.approx(2 * u - 1)
    assert found.details["design"]["permuted"] == design.permutable
    assert found.references_check.smallest_corrected > 1e-3
    assert found.compared == "windows"
    assert theirs.compared == "pairs"
    text = str(found)
    for words in (
        "rank sum of 100 late units against 100 early ones, by counting, ties against the claim",
        "999 choices of the late units",
        "permutes which of the units asked about are the late ones",
        "200 in 200 units of two windows",
        "all units with all",
        "bootstrap over the units of each",
    ):
        assert words in text
    for words in ("pairs", "flip"):
        assert words not in text
    assert "choices of the late units" in [
        t.get_text() for t in figures.null_histogram(found).axes[0].get_legend().get_texts()
    ]
    found.write(tmp_path / "e.json")
    again = Evidence.read(tmp_path / "e.json")
    assert again.to_json() == found.to_json()
    assert str(again) == text
    part = pair_test(
        transcript, *(models[n].take(design.rows) if n == "bob" else [models[n].take(design.rows)]
        for n in ("bob", "other")), design,
        **{**arguments, "placebos": [models["else"].take(design.rows)]},
    )  # fmt: skip
    assert part.to_json() == found.to_json()


def test_numbers_of_the_null_agree_with_scipy_and_with_its_draws(case):
    transcript, models = case
    design = design_queries(transcript, 700, compare="windows")
    rounded = scores_of(np.round(models["else"].loglik_mean, 1))
    found = pair_test(transcript, rounded, [], design, n_resamples=4999)
    sides = design.sides(rounded.loglik_mean[design.rows])
    theirs = stats.mannwhitneyu(
        *sides, alternative="greater", method="asymptotic", use_continuity=False
    )
    assert found.pvalue_asymptotic == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.pvalue_exact == pytest.approx(theirs.pvalue, abs=0.03)
    compared = ComparedWindows(*sides)
    assert found.statistic == pytest.approx(2 * theirs.statistic / sides[0].size ** 2 - 1)
    assert found.z == pytest.approx(compared.correlation / compared.correlation_sd)
    assert found.effect.difference == pytest.approx(sides[0].mean() - sides[1].mean())
    assert found.effect.low < found.effect.difference < found.effect.high
    assert found.pvalue > theirs.pvalue  # ties count against the claim
    assert found.details["certified"]["how"] == "bound"
    assert "Chernoff's bound" in str(found)
    few = pair_test(transcript, rounded, [], design_queries(transcript, 200, compare="windows"))
    assert few.log10_pvalue is None


def test_a_reference_that_knows_the_order_is_not_valid(case):
    transcript, models = case
    noise = 0.1 * np.random.default_rng(4).normal(size=N)
    knows = scores_of(models["bob"].loglik_mean + noise, "sibling")
    design = design_queries(transcript, 400, compare="windows")
    found = pair_test(transcript, models["else"], [knows], design)
    assert found.verdict == "not valid"
    assert "references" in found.verdict_reason
    for flips in (99, 9999):  # the placebo's own decide
        found = pair_test(
            transcript,
            models["else"],
            [models["other"]],
            design,
            n_resamples=flips,
            placebos=[knows],
        )
        assert "tested as a placebo" in found.verdict_reason
    nothing = pair_test(
        transcript, models["else"], [models["other"]], design, smallest_effect=0.3, alpha=1e-4
    )
    assert nothing.verdict == "no evidence"


def test_pvalues_are_valid_over_fresh_orders_of_fixed_scores():
    """Fixed heavy-tailed scores with ties, units of three rows, filters, both named windows."""
    rng = np.random.default_rng(5)
    units, draws, levels = 120, 5000, (0.05, 0.01, 0.001)
    unit = np.repeat(np.arange(units), 3)
    easy = rng.standard_t(2, units)[unit]
    values = np.round(easy + rng.standard_cauchy(3 * units))
    reference = scores_of(easy + rng.normal(size=3 * units), "r")
    names = [name for name, windows in DESIGNS.items() if windows is not None]
    certified = np.empty(draws)
    for number in range(draws):
        order = rng.permutation(units)
        design = design_queries(
            Transcript.from_arrays(order[unit], units=unit),
            (36, 60)[number % 2],
            names[number % 4 // 2],
            filter=("hardest-50", None)[number % 8 // 4],
            references=[reference],
            seed=int(rng.integers(2**31)),
            compare="windows",
        )
        certified[number] = certified_rank_sum_log10(*design.sides(values[design.rows]))
    for level in levels:
        rejected = int((certified <= log10(level) + 1e-12).sum())
        assert rejected <= rejection_limit(draws, level, len(levels))
    assert (certified <= log10(0.05)).mean() > 0.01  # and it does reject


def test_the_whole_test_agrees_with_its_parts_and_raises_few_false_alarms():
    rng = np.random.default_rng(6)
    alarms, exact = 0, []
    for number in range(150):
        transcript = Transcript.from_arrays(rng.permutation(300))
        suspect, other = (scores_of(rng.standard_t(2, 300), name) for name in "so")
        design = design_queries(transcript, 50, seed=number, compare="windows")
        found = pair_test(
            transcript, suspect, [other], design, n_resamples=99, alpha=0.05, seed=number
        )
        values = suspect.loglik_mean - other.loglik_mean
        log10_p = certified_rank_sum_log10(*design.sides(values[design.rows]))
        assert found.pvalue == pytest.approx(10**log10_p)
        alarms += found.verdict == "evidence"
        exact.append(found.distribution.pvalue_randomised(rng))
    assert alarms <= rejection_limit(150, 0.05, 1, 0.001)
    assert stats.kstest(exact, "uniform").pvalue > 1e-3


def test_other_settings_are_another_design(case):
    transcript, _ = case
    design = design_queries(transcript, 40)
    changed = replace(design.settings, compare="windows")
    assert changed != design.settings
    assert QueryDesign(changed, transcript).rows_sha256 == design.rows_sha256
