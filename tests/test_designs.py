"""Designed queries and their pairs: what is asked, that the test is exact, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import Evidence, InputError, Scores, Transcript
from workbench.independence import (
    ContentFilter,
    QueryDesign,
    Windows,
    design_queries,
    fit_design,
    pair_test,
    query_test,
)
from workbench.independence.design import DESIGNS, FILTERS, DesignSettings, LearnedDesign
from workbench.lab import open_run
from workbench.null import permutation_null, sign_flip_null
from workbench.statistics import certified_log10
from workbench.statistics.weighted import remember_order

WITH_PAIRS = [name for name, windows in DESIGNS.items() if windows is not None]


def unequal(rng, units, spread=6):
    """Unit of each row: units of one to `spread` rows."""
    return np.repeat(np.arange(units), rng.integers(1, spread + 1, units))


def transcript_of(ordinal, unit=None, blocks=None):
    """Unit (or row) u holds place ordinal[u]; rows in unit order."""
    if unit is None:
        return Transcript.from_arrays(ordinal, blocks=blocks, shuffle="owner")
    return Transcript.from_arrays(ordinal[unit], units=unit, blocks=blocks, shuffle="owner")


def scores_of(values, name="m", transcript=None):
    return Scores.from_arrays(loglik=values, name=name, transcript=transcript)


# ---------------------------------------------------------------------- what is asked


@pytest.mark.parametrize("name", WITH_PAIRS)
@pytest.mark.parametrize("chosen", [None, "hardest-30"])
def test_windows_filter_budget_and_whole_units(name, chosen):
    rng = np.random.default_rng(1)
    unit = unequal(rng, 900)
    ordinal = rng.permutation(900)
    transcript = transcript_of(ordinal, unit)
    reference = scores_of(rng.normal(size=len(unit)))
    design = design_queries(transcript, 200, name, filter=chosen, references=[reference], seed=3)
    assert design.queries <= 200
    assert (np.diff(design.rows) > 0).all()
    asked = unit[design.rows]
    assert set(np.flatnonzero(np.isin(unit, asked))) == set(design.rows)  # whole units
    windows = DESIGNS[name]
    for side, (low, high) in ((design.late, windows.late), (~design.late, windows.early)):
        place = (ordinal[asked[side]] + 0.5) / 900
        assert ((place >= low) & (place < high)).all()
        # one unit on this side of every pair, of no other pair
        found = np.unique(np.column_stack([design.pair[side], asked[side]]), axis=0)
        np.testing.assert_array_equal(found[:, 0], np.arange(design.pairs))
        assert len(np.unique(found[:, 1])) == design.pairs
    if chosen is not None:
        hardness = np.bincount(unit, reference.loglik_mean) / np.bincount(unit)
        assert (hardness[asked] < np.quantile(hardness, 0.31)).all()


def test_designs_without_pairs_go_to_the_query_test():
    rng = np.random.default_rng(2)
    transcript = transcript_of(rng.permutation(1000))
    spread = design_queries(transcript, 100, "stratified", seed=1)
    assert spread.queries == 100
    np.testing.assert_array_equal(np.sort(transcript.positions[spread.rows]) // 10, np.arange(100))
    uniform = design_queries(transcript, 100, "uniform", seed=1)
    assert uniform.queries == 100
    assert uniform.pairs == 0
    assert query_test(uniform.examples, scores_of(rng.normal(size=100)), n_resamples=99).n == 100
    with pytest.raises(InputError, match="has no pairs"):
        pair_test(transcript, scores_of(rng.normal(size=1000)), [], uniform)


@pytest.mark.parametrize("name", DESIGNS)
def test_row_order_plays_no_part(name):
    rng = np.random.default_rng(4)
    order, hardness = rng.permutation(600), rng.normal(size=600)
    found = []
    for rows in (np.arange(600), np.argsort(order), np.argsort(hardness)):
        transcript = transcript_of(order[rows])
        design = design_queries(
            transcript, 80, name, filter="hardest-50", references=[scores_of(hardness[rows])]
        )
        found.append(set(rows[design.rows]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", WITH_PAIRS)
def test_exchanging_the_two_sides_of_a_pair_asks_about_the_same_pairs(name):
    """The symmetry on which the test rests, exactly: with units of unequal size, filter, budget."""
    rng = np.random.default_rng(5)
    unit = unequal(rng, 300)
    ordinal = rng.permutation(300)
    reference = scores_of(rng.normal(size=len(unit)))

    def design_of(places):
        return design_queries(
            transcript_of(places, unit), 60, name, filter="hardest-50", references=[reference]
        )

    design = design_of(ordinal)
    assert design.pairs >= 5
    for number in range(design.pairs):
        late, early = (
            unit[design.rows[(design.pair == number) & (design.late == side)]][0]
            for side in (True, False)
        )
        swapped = ordinal.copy()
        swapped[[late, early]] = ordinal[[early, late]]
        other = design_of(swapped)
        np.testing.assert_array_equal(other.rows, design.rows)
        np.testing.assert_array_equal(other.pair, design.pair)
        np.testing.assert_array_equal(other.late != design.late, design.pair == number)


def test_equal_positions_are_not_parted_by_a_window():
    step = np.repeat(np.arange(20), 10)  # a step shared by a batch of ten
    transcript = Transcript.from_arrays(np.random.default_rng(6).permutation(step))
    design = design_queries(transcript, 400, Windows(late=(0.62, 0.88), early=(0.0, 0.12)))
    assert set(transcript.positions[design.rows[design.late]]) == {12, 13, 14, 15, 16, 17}
    assert set(transcript.positions[design.rows[~design.late]]) == {0, 1}


def test_within_a_pair_a_coin_decides_who_is_asked_first():
    transcript = transcript_of(np.random.default_rng(7).permutation(20_000))
    design = design_queries(transcript, 2000)
    asked = design.batch(0, design.pairs)
    np.testing.assert_array_equal(design.pair[asked], np.repeat(np.arange(1000), 2))
    late_first = int(design.late[asked][::2].sum())
    assert stats.binomtest(late_first, 1000).pvalue > 1e-4
    pieces = [design.batch(first, first + 100) for first in range(0, 1000, 100)]
    np.testing.assert_array_equal(np.concatenate(pieces), asked)


# ---------------------------------------------------------------------- refusals, files


def test_joint_rules_of_position_and_content_are_refused():
    rng = np.random.default_rng(8)
    transcript = transcript_of(rng.permutation(500))
    reference = scores_of(rng.normal(size=500))
    hard, easy = ContentFilter(high=0.3), ContentFilter(low=0.7)
    for match, arguments in {
        "sees or may see position and content together": {"filter": lambda place, text: True},
        "different ones for different windows": {"filter": {"late": easy, "early": hard}},
        "several filters were given": {"filter": [easy, hard]},
        "a design of type function": {"design": lambda place, score: place > score},
        "a design of type ndarray": {"design": np.arange(10)},
    }.items():
        with pytest.raises(InputError, match=match):
            design_queries(transcript, 100, references=[reference], **arguments)
    with pytest.raises(InputError, match="per window join position to content"):
        ContentFilter(high={"late": 0.3, "early": 0.5})
    with pytest.raises(InputError, match="sees nothing of the examples"):
        Windows(late=lambda text: (0.6, 0.9), early=(0.0, 0.1))
    with pytest.raises(InputError, match="cannot look at 'position'"):
        ContentFilter("position")
    # no rows of one's own: they follow from the settings
    design = design_queries(transcript, 100)
    with pytest.raises((TypeError, ValueError)):
        replace(design, rows=np.arange(10), references=())
    with pytest.raises(TypeError):
        QueryDesign(design.settings, transcript, rows=np.arange(10))
    with pytest.raises(ValueError, match="read-only"):
        design.late[:] = True


def test_what_cannot_be_is_one_sentence():
    rng = np.random.default_rng(9)
    transcript = transcript_of(rng.permutation(100))
    scores = scores_of(rng.normal(size=100))
    design = design_queries(transcript, 20)
    two = transcript_of(rng.permutation(100), blocks=np.repeat([0, 1], 50))
    for match, call in {
        "design 'best' is unknown": lambda: design_queries(transcript, 20, "best"),
        "filter 'best' is unknown": lambda: design_queries(transcript, 20, filter="best"),
        "there are none: give references": lambda: design_queries(
            transcript, 20, filter="hardest-30"
        ),
        "holds no examples": lambda: design_queries(
            transcript, 20, filter=ContentFilter("length", 0.5)
        ),
        "budget is 1:": lambda: design_queries(transcript, 1),
        "seed is -1": lambda: design_queries(transcript, 20, seed=-1),
        "buys nothing": lambda: design_queries(
            transcript, 20, Windows((0.9, 1.0), (0, 0.004)), seed=1
        ),
        "has 2 blocks and a design asks within one": lambda: design_queries(two, 20),
        "has no block 7": lambda: design_queries(two, 20, block=7),
        "overlap or are the wrong way round": lambda: Windows((0.0, 0.1), (0.5, 0.7)),
        "runs from one place to a later": lambda: Windows((0.9, 0.8), (0.0, 0.1)),
        "give two numbers that rise": lambda: ContentFilter(low=0.5, high=0.5),
        "made for another transcript": lambda: pair_test(two, scores, [], design),
        "weighs positions or chooses": lambda: pair_test(
            transcript, scores, [], design, "residual:midlate"
        ),
        "has 7 scores": lambda: pair_test(transcript, scores_of(np.arange(7.0)), [], design),
        "every pair's difference is zero": lambda: pair_test(
            transcript, scores_of(np.zeros(100)), [], design
        ),
        "does not have the windows": lambda: DesignSettings("uniform", design.settings.windows,
            None, 20, 0, None, transcript.fingerprint),
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=match):
            call()


def test_a_block_is_named():
    rng = np.random.default_rng(10)
    transcript = transcript_of(rng.permutation(400), blocks=np.repeat([0, 1], 200))
    design = design_queries(transcript, 40, block=1)
    assert (design.rows >= 200).all()
    assert design.pairs == 20


def test_json_chooses_the_same_again_and_nothing_else():
    rng = np.random.default_rng(11)
    transcript = transcript_of(rng.permutation(800))
    reference = scores_of(rng.normal(size=800), transcript=transcript)
    design = design_queries(transcript, 40, filter="hardest-30", references=[reference], seed=5)
    text = design.to_json()
    again = QueryDesign.from_json(text, transcript, [reference])
    np.testing.assert_array_equal(again.rows, design.rows)
    assert again.settings == design.settings
    assert again.to_json() == text
    content = json.loads(text)

    def changed(**settings):
        return json.dumps({**content, "settings": {**content["settings"], **settings}})

    for match, bad in {
        "chooses other examples": changed(seed=6),
        "chooses other examples than": changed(budget=38),
        "Unexpected keyword": changed(rule="late and hard"),
        "does not have the windows": changed(windows={"late": [0.5, 0.9], "early": [0, 0.1]}),
        "this holds no design": "{",
        "not of the format": json.dumps({**content, "format": "x"}),
        "rows_sha256": json.dumps({k: v for k, v in content.items() if k != "rows_sha256"}),
    }.items():
        with pytest.raises(InputError, match=match):
            QueryDesign.from_json(bad, transcript, [reference])
    with pytest.raises(InputError, match="learned on the order of arrays itself"):
        QueryDesign.from_json(
            changed(origin="learned", learned_on=transcript.fingerprint), transcript, [reference]
        )
    with pytest.raises(InputError, match="another transcript"):
        QueryDesign.from_json(text, transcript_of(rng.permutation(800)), [reference])
    other = Scores.from_arrays(loglik=reference.loglik_mean, name="other")
    with pytest.raises(InputError, match="other references"):
        QueryDesign.from_json(text, transcript, [other])


# ---------------------------------------------------------------------- learned elsewhere


def remembering(rng, n=4000, where=(0.6, 0.8), memory=0.6):
    tokens = rng.integers(0, 500, (n, 6))
    transcript = Transcript.from_arrays(rng.permutation(n), tokens=tokens, shuffle="owner")
    place = (transcript.positions + 0.5) / n
    easy = rng.normal(size=n)
    bump = memory * ((place >= where[0]) & (place < where[1]))
    suspect = easy + 0.3 * rng.normal(size=n) + bump
    reference = easy + 0.3 * rng.normal(size=n)
    return transcript, *(
        scores_of(values, name, transcript)
        for values, name in ((suspect, "suspect"), (reference, "reference"))
    )


def choices_gate(evidence):
    return next((gate for gate in evidence.gates if gate.name == "choices"), None)


@pytest.mark.parametrize("known", [False, True])
def test_a_learned_design_that_could_not_be_compared_is_a_caveat(known):
    """Learned on half of the very order: known again by digests, and by nothing else."""
    rng = np.random.default_rng(13)
    n = 600
    order = rng.permutation(n)
    content = {"tokens": rng.integers(0, 500, (n, 6))} if known else {}
    transcript = Transcript.from_arrays(order, **content, shuffle="owner")
    scores = scores_of(rng.normal(size=n))
    half = transcript.take(np.arange(0, n, 2))
    learned = LearnedDesign(DESIGNS["late-vs-early"], None, half.fingerprint)
    if known:  # nothing is remembered of the half, but of another order it is
        other = Transcript.from_arrays(rng.permutation(n), **content)
        places = other.design.position_ranks() + 0.5
        remembered = remember_order(other.row_digests, places)
        sound = replace(learned, learned_on=other.fingerprint, remembered=remembered)
        design = design_queries(transcript, 120, sound)
        assert "order_unchecked" not in design.settings.as_dict()
        gate = choices_gate(pair_test(transcript, scores, [], design, n_resamples=99))
        assert gate.status == "declared"
        assert "lie elsewhere there" in gate.detail
        assert choices_gate(query_test(design.examples, scores.take(design.rows))) is None
    design = design_queries(transcript, 120, learned)
    found = pair_test(transcript, scores, [], design, n_resamples=99)
    assert choices_gate(found).status == "declared"
    assert "could not be checked without digests" in choices_gate(found).detail
    assert choices_gate(found).detail in found.caveats
    assert found.details["design"]["order_unchecked"]
    assert QueryDesign.from_json(design.to_json(), transcript).settings == design.settings


def test_examples_of_a_design_were_not_taken_by_hand():
    rng = np.random.default_rng(14)
    n = 500
    transcript = Transcript.from_arrays(
        rng.permutation(n), texts=["ab" * (k % 9 + 1) for k in range(n)], shuffle="owner"
    )
    scores = scores_of(rng.normal(size=n))
    named = design_queries(transcript, 100, "uniform", seed=4)
    found = query_test(named.examples, scores.take(named.rows), n_resamples=99)
    assert found.transcript["selection"] == {"how": "design", "of": n, "seed": 4}
    assert choices_gate(found) is None
    own = design_queries(transcript, 100, "uniform", filter=ContentFilter("length", 0.4), seed=4)
    found = query_test(own.examples, scores.take(own.rows), n_resamples=99)
    assert found.transcript["selection"]["how"] == "own design"
    assert "a design whose windows or filter go by no name" in choices_gate(found).detail
    # A test of pairs speaks of all that the design chooses from.
    part = transcript.take(np.arange(400))
    paired = pair_test(part, scores.take(part.rows), [], design_queries(part, 100), n_resamples=99)
    assert paired.transcript["selection"]["how"] == "by hand"
    assert "400 of 500 examples were taken by hand" in choices_gate(paired).detail


def test_a_design_is_learned_on_another_order_and_never_on_the_one_under_test():
    rng = np.random.default_rng(12)
    lab, derivative, reference = remembering(rng)
    transcript, suspect, own = remembering(rng)
    learned = fit_design(
        lab, [derivative], [reference], under_test=transcript, statistic="residual", budget=200
    )
    assert learned.windows.late == (0.6, 0.8)
    assert len(learned.table) > 20
    design = design_queries(transcript, 200, learned, references=[own])
    assert design.settings.learned_on == lab.fingerprint
    found = pair_test(transcript, suspect, [own], design, n_resamples=199)
    assert found.verdict == "evidence"
    assert any("learned on another transcript" in gate.detail for gate in found.gates)
    part = np.sort(rng.permutation(lab.n)[:3000])
    for cut in (lab, lab.take(part)):
        with pytest.raises(InputError, match="learned on the order of"):
            fit_design(lab, [derivative], [reference], under_test=cut)
        with pytest.raises(InputError, match="learned on the order of"):
            design_queries(cut, 200, learned, references=[reference.take(part)])
    assert LearnedDesign.from_json(learned.to_json()) == learned
    with pytest.raises(InputError, match="this holds no learned design"):
        LearnedDesign.from_json(design.to_json())
    with pytest.raises(InputError, match="brings its own filter"):
        design_queries(transcript, 200, learned, filter=ContentFilter("length"))
    with pytest.raises(InputError, match="no derivative"):
        fit_design(lab, [], under_test=transcript)
    with pytest.raises(InputError, match="no windows and filter of the grid"):
        fit_design(lab, [derivative], [reference], under_test=transcript, budget=100_000)


def test_windows_of_ones_own_are_a_caveat():
    rng = np.random.default_rng(13)
    transcript, suspect, _ = remembering(rng, n=500)
    for design, status in (
        ("late-vs-early", "verified"),
        (Windows((0.9, 1.0), (0, 0.25)), "declared"),
    ):
        found = pair_test(transcript, suspect, [], design_queries(transcript, 60, design))
        assert next(gate for gate in found.gates if gate.name == "choices").status == status


# ---------------------------------------------------------------------- the pair test


def null_case(rng, number):
    """A fresh order that nobody remembers: heavy tails, units, ties and filters in turn."""
    units = int(rng.integers(150, 250))
    unit = unequal(rng, units) if number % 2 else None
    n = units if unit is None else len(unit)
    transcript = transcript_of(rng.permutation(units), unit)
    easy = rng.standard_t(2, size=units)
    if unit is not None:  # rows of a unit are alike, and long units are harder
        easy = easy[unit] - np.bincount(unit)[unit]
    suspect, reference = (easy + rng.standard_cauchy(n) for _ in range(2))
    if number % 3 == 0:
        suspect, reference = np.round(suspect), np.round(reference)  # ties, zero differences
    budget = (16, 40, 100)[number % 3]
    design = design_queries(
        transcript,
        budget,
        "late-vs-early",
        filter=("hardest-50", None)[number % 4 // 2],
        references=[scores_of(reference)],
        seed=int(rng.integers(2**31)),
    )
    return transcript, scores_of(suspect), [scores_of(reference, "r")], design


def at_most(rejections, trials, level):
    return stats.binomtest(int(rejections), trials, level, "greater").pvalue > 1e-4


def test_pvalues_of_pairs_are_valid_whatever_the_scores():
    """2,000 orders that nobody remembers: certified and exact p reject no more than they say."""
    rng = np.random.default_rng(14)
    trials, certified, exact = 2000, [], []
    for number in range(trials):
        _, suspect, references, design = null_case(rng, number)
        values = suspect.loglik_mean - references[0].loglik_mean
        differences = design.differences(values[design.rows])
        if not differences.any():
            certified.append(0.0)
            continue
        certified.append(certified_log10(differences))
        null = sign_flip_null([differences], 99, number, threads=1)[0]
        exact.append((null.pvalue(), null.pvalue_randomised(rng)))
    for level in (0.05, 0.01):
        assert at_most((np.array(certified) <= np.log10(level)).sum(), trials, level)
        assert at_most((np.array(exact)[:, 0] <= level).sum(), trials, level)
    assert stats.kstest(np.array(exact)[:, 1], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "stratified"])
def test_designs_without_pairs_leave_places_exchangeable(name):
    """Units of unequal size, long ones harder, a filter, and a budget that cuts by size."""
    rng = np.random.default_rng(21)
    pvalues = []
    for seed in range(500):
        unit = unequal(rng, 80)
        size = np.bincount(unit)[unit]
        transcript = transcript_of(rng.permutation(80), unit)
        values = rng.standard_t(2, size=len(unit)) - size
        design = design_queries(
            transcript, 60, name, filter="hardest-50", references=[scores_of(values)], seed=seed
        )
        assert design.queries <= 60
        null = permutation_null(design.examples.design, [values[design.rows]], 99, seed, threads=1)[
            0
        ]
        pvalues.append(null.pvalue_randomised(rng))
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3
    assert at_most((np.array(pvalues) <= 0.05).sum(), 500, 0.05)


def test_the_whole_test_agrees_with_its_parts_and_raises_few_false_alarms():
    rng = np.random.default_rng(15)
    alarms = 0
    for number in range(150):
        transcript, suspect, references, design = null_case(rng, 3 * number + 1)
        found = pair_test(
            transcript, suspect, references, design, n_resamples=19, alpha=0.05, seed=number
        )
        values = suspect.loglik_mean - references[0].loglik_mean
        log10 = certified_log10(design.differences(values[design.rows]))
        assert found.details["certified"]["log10_pvalue"] == pytest.approx(log10, abs=1e-12)
        assert found.pvalue == pytest.approx(10**log10)
        alarms += found.verdict == "evidence"
    assert at_most(alarms, 150, 0.05)


@pytest.mark.parametrize("statistic", ["spearman", "residual"])
def test_memory_is_found_and_the_evidence_says_how(statistic, tmp_path):
    rng = np.random.default_rng(16)
    transcript, suspect, reference = remembering(rng)
    design = design_queries(
        transcript, 400, "midlate-vs-early", filter="hardest-50", references=[reference]
    )
    found = pair_test(transcript, suspect, [reference], design, statistic, n_resamples=999)
    assert found.verdict == "evidence"
    assert found.verdict_reason.startswith("certified p")
    assert found.pvalue < 1e-8 < found.pvalue_floor == found.pvalue_exact == 1e-3
    assert found.references_check.smallest_corrected > 1e-3
    assert found.details["design"]["rows_sha256"] == design.rows_sha256
    assert "certified p" in str(found)
    assert "999 flips of sign" in str(found)
    part = pair_test(
        transcript, suspect.take(design.rows), [reference.take(design.rows)], design, statistic,
        n_resamples=999,
    )  # fmt: skip
    assert part.to_json() == found.to_json()
    found.write(tmp_path / "e.json")
    again = Evidence.read(tmp_path / "e.json")
    assert again.to_json() == found.to_json()
    assert str(again) == str(found)


def test_a_reference_that_knows_the_order_is_not_valid():
    rng = np.random.default_rng(17)
    transcript, suspect, _ = remembering(rng)
    _, other, _ = remembering(rng, memory=0.0)
    knows = scores_of(suspect.loglik_mean + 0.1 * rng.normal(size=transcript.n), "sibling")
    design = design_queries(transcript, 800, "midlate-vs-early")  # where this memory lies
    found = pair_test(transcript, scores_of(other.loglik_mean), [knows], design)
    assert found.verdict == "not valid"
    assert "references" in found.verdict_reason
    placebo = scores_of(suspect.loglik_mean, "placebo")
    found = pair_test(
        transcript,
        scores_of(other.loglik_mean, "o"),
        [],
        design,
        placebos=[placebo],
        n_resamples=1999,
    )
    assert "tested as a placebo" in found.verdict_reason


def test_power_limits_speak_for_pairs():
    rng = np.random.default_rng(18)
    transcript = transcript_of(rng.permutation(8000))
    nothing = scores_of(rng.normal(size=8000))
    found = pair_test(
        transcript, nothing, [], design_queries(transcript, 1600), smallest_effect=0.25
    )
    assert found.verdict == "no evidence"
    few = pair_test(transcript, nothing, [], design_queries(transcript, 24), smallest_effect=0.25)
    assert few.verdict == "no evidence"
    assert "0.2500, is not excluded" in few.verdict_reason
    assert "pairs would find it with a power of 0.9" in few.verdict_reason
    assert few.log10_pvalue is None  # twelve pairs have no normal tail


def test_few_units_put_alpha_out_of_reach():
    rng = np.random.default_rng(18)
    transcript = transcript_of(rng.permutation(8000))
    scores = scores_of(1.0 * transcript.positions)
    for compare, queries, told in (
        ("pairs", 16, "this many pairs cannot give a p-value below 0.00391, and alpha is 0.001: "
         "use at least 10 pairs"),
        ("windows", 10, "this many units in each window cannot give a p-value below 0.00397, and "
         "alpha is 0.001: use at least 7 units in each window"),
    ):  # fmt: skip
        design = design_queries(transcript, queries, "late-vs-early", compare=compare)
        found = pair_test(transcript, scores, [], design)
        assert found.verdict == "not valid"
        assert told in found.verdict_reason


# ---------------------------------------------------------------------- wrong ways


def sign_flip_alarm(differences, seed):
    return sign_flip_null([differences], 99, seed, threads=1)[0].pvalue() <= 0.05


def test_the_first_rows_of_each_window_raise_false_alarms():
    """Rows sorted by content, and the first 50 of each window: the larger window's are extremer."""
    rng = np.random.default_rng(19)
    careless = right = 0
    trials, n = 200, 1000
    for seed in range(trials):
        values = np.sort(rng.normal(size=n))[::-1].copy()  # the easiest come first
        transcript = transcript_of(rng.permutation(n))
        place = transcript.positions / n
        late, early = (
            np.flatnonzero(inside)[:50]
            for inside in ((place >= 0.65) & (place < 0.85), place < 0.1)
        )
        careless += sign_flip_alarm(values[late] - rng.permutation(values[early]), seed)
        design = design_queries(transcript, 100, seed=seed)
        right += sign_flip_alarm(design.differences(values[design.rows]), seed)
    assert careless > 0.9 * trials
    assert at_most(right, trials, 0.05)


def test_a_joint_rule_of_position_and_content_raises_false_alarms():
    """Easy examples among the late, hard ones among the early; one filter for both does no harm."""
    rng = np.random.default_rng(20)
    careless = right = 0
    trials, n = 200, 1000
    for seed in range(trials):
        easy = rng.normal(size=n)
        values = easy + rng.normal(size=n)
        transcript = transcript_of(rng.permutation(n))
        place = transcript.positions / n
        late = np.flatnonzero((place >= 0.65) & (place < 0.85) & (easy > np.quantile(easy, 0.7)))
        early = np.flatnonzero((place < 0.1) & (easy < np.quantile(easy, 0.3)))
        k = min(len(late), len(early))
        careless += sign_flip_alarm(values[late[:k]] - values[early[:k]], seed)
        design = design_queries(
            transcript, 2 * k, filter="hardest-30", references=[scores_of(easy)], seed=seed
        )
        right += sign_flip_alarm(design.differences(values[design.rows]), seed)
    assert careless > 0.9 * trials
    assert at_most(right, trials, 0.05)


# ---------------------------------------------------------------------- the recorded run


def test_recorded_derivative_is_found_and_the_independent_model_is_not():
    run = open_run("recorded")
    reference = run.scores("reference-same")
    for name in WITH_PAIRS:
        design = design_queries(
            run.transcript, 800, name, filter="hardest-50", references=[reference]
        )
        found = {
            who: pair_test(run.transcript, run.scores(who), [reference], design, n_resamples=999)
            for who in ("derivative", "independent")
        }
        assert found["derivative"].pvalue < 1e-8
        assert found["derivative"].verdict == "evidence"
        assert found["independent"].pvalue > 1e-3
    assert set(FILTERS) == {"hardest-20", "hardest-30", "hardest-50"}
