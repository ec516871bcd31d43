"""Query statistics: what each computes, that its null is exact, and what it refuses."""

import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, ScorerIdentity, Scores, Transcript
from workbench.independence import query_contrast, query_test
from workbench.null import best_of, maximum_null, permutation_null
from workbench.statistics import (
    STATISTICS,
    WEIGHTS,
    PositionWeights,
    RankDesign,
    Sample,
    TokenScores,
    certified_log10,
    find_statistic,
    fit_weights,
)
from workbench.statistics.adaptive import hold_out
from workbench.statistics.features import text_features, token_features
from workbench.statistics.pairs import signed_ranks
from workbench.statistics.residual import content_pieces, fold_of_rows, residual
from workbench.statistics.tokens import keep_informative, weight_by_surprisal

N = 240
PLAIN = [name for name, statistic in STATISTICS.items() if not statistic.family]


def _examples(rng, n=N, memory=0.0, units=None, blocks=None, offsets=True, models=4):
    """A transcript of short examples, and models that agree on what is easy; one may remember."""
    order = rng.permutation(n)
    tokens = [rng.integers(0, 40, int(k)) for k in rng.integers(6, 14, n)]
    transcript = Transcript.from_arrays(
        order, tokens=tokens, units=units, blocks=blocks, shuffle="owner"
    )
    lengths = transcript.lengths
    easy = np.repeat(rng.normal(size=n), lengths)
    place = np.repeat(order / n, lengths)
    made = []
    for number in range(models):
        values = -3 + easy + 0.5 * rng.normal(size=len(easy)) + memory * place * (number == 0)
        rows = np.split(values, np.cumsum(lengths)[:-1])
        made.append(Scores.from_arrays(loglik=rows, name=f"m{number}", transcript=transcript))
    return transcript, made


@pytest.fixture(scope="module")
def data():
    return _examples(np.random.default_rng(5), memory=0.8)


def _references(name, scores):
    return scores[1 : 1 + (STATISTICS[name].most or 3)]


# ---------------------------------------------------------------------- every statistic


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_finds_memory_and_says_what_it_did(name, data):
    """The contract: one name runs everywhere, from scores to evidence."""
    transcript, scores = data
    found = query_test(transcript, scores[0], _references(name, scores), name, n_resamples=999)
    assert found.pvalue <= 0.01
    assert np.isfinite(found.z)
    assert name in found.contrast
    assert -1 <= found.statistic <= 1
    assert found.references_check.smallest_corrected > 1e-3
    if name != "spearman":
        assert found.details["statistic"]["summary"] == STATISTICS[name].summary
    assert type(found).from_json(found.to_json()).details == found.details


@pytest.mark.parametrize("name", STATISTICS)
def test_no_statistic_knows_the_order_of_the_rows(name, data):
    """Rows moved about give the same numbers, to the last bit: ties stay ties."""
    transcript, scores = data
    moved = np.random.default_rng(1).permutation(transcript.n)
    other = transcript.take(moved)
    references = _references(name, scores)
    here = query_contrast(scores[0], references, name, transcript)
    there = query_contrast(scores[0].take(moved), [r.take(moved) for r in references], name, other)
    np.testing.assert_array_equal(there, here[moved])


@pytest.mark.parametrize("name", STATISTICS)
def test_no_contrast_sees_positions(name, data):
    transcript, scores = data
    other = Transcript.from_arrays(transcript.positions[::-1].copy(), tokens=transcript.tokens())
    references = _references(name, scores)
    here = query_contrast(scores[0], references, name, transcript)
    np.testing.assert_array_equal(query_contrast(scores[0], references, name, other), here)


def test_a_new_statistic_is_one_line(data, monkeypatch):
    """Registered, it runs by name: in the test, and put together with weights and in families."""
    from dataclasses import replace

    from workbench.statistics import Contrasted

    mine = replace(
        STATISTICS["spearman"], name="mine", contrast=lambda s: Contrasted(s.suspect - 1.0)
    )
    monkeypatch.setitem(STATISTICS, "mine", mine)
    transcript, scores = data
    raw = query_test(transcript, scores[0], n_resamples=99)
    assert query_test(transcript, scores[0], statistic="mine", n_resamples=99).z == raw.z
    for name in ("mine:late", "max(mine, spearman:late)"):
        assert name in query_test(transcript, scores[0], statistic=name, n_resamples=99).contrast


# ---------------------------------------------------------------------- residuals


def test_distillation_is_numpys_polynomial_of_degree_four():
    rng = np.random.default_rng(2)
    reference = rng.normal(-3, 1, 500)
    suspect = np.sin(reference) + 0.1 * rng.normal(size=500)
    sample = Sample(suspect, (reference,))
    expected = suspect - np.polyval(np.polyfit(reference, suspect, 4), reference)
    found = find_statistic("distillation").apply(sample)
    np.testing.assert_allclose(found.values, expected, atol=1e-10)
    np.testing.assert_allclose(found.subtracted + found.values, suspect, atol=1e-12)


@pytest.mark.parametrize("name", ["residual", "residual-linear", "residual-boosted"])
def test_residuals_are_of_examples_that_the_fit_did_not_see(name):
    """Fold by fold against an independent computation; a wild example bends only others' fits."""
    rng = np.random.default_rng(3)
    references = tuple(rng.normal(size=(3, 400)))
    suspect = references[0] + references[1] * references[2] + 0.1 * rng.normal(size=400)
    sample = Sample(suspect, references, seed=4)
    fold = fold_of_rows(sample, 5)
    found = find_statistic(name).apply(sample).values
    for number in range(5):
        train, held = fold != number, fold == number
        if name == "residual-boosted":
            expected = suspect[held]  # only that a forest explains something, below
            assert np.var(found[held]) < 0.5 * np.var(expected)
            continue
        a, b, c = references
        columns = [np.ones(400), a, b, c]
        if name == "residual":
            columns += [a * a, a * b, a * c, b * b, b * c, c * c]
        matrix = np.column_stack(columns)
        beta = np.linalg.lstsq(matrix[train], suspect[train], rcond=None)[0]
        np.testing.assert_allclose(found[held], (suspect - matrix @ beta)[held], atol=1e-9)


def test_numbers_in_names_are_settings(data):
    transcript, scores = data

    def left(name, references=scores[1:]):
        return query_contrast(scores[0], references, name, transcript)

    np.testing.assert_array_equal(left("residual-degree2"), left("residual"))
    np.testing.assert_array_equal(left("tokens-top050"), left("tokens-top50"))
    assert not np.array_equal(left("residual-degree3"), left("residual"))
    one = left("residual-degree4", scores[1:2])
    published = left("distillation", scores[1:2])
    assert 0 < np.abs(one - published).max() < 0.5  # the same curve, but cross-fitted
    name = "max(tokens-top30:capped, residual-degree3)"
    assert query_test(transcript, scores[0], scores[1:], name, n_resamples=99).pvalue == 0.01


def test_folds_keep_units_and_repeats_whole_and_follow_content_alone():
    rng = np.random.default_rng(6)
    n = 400
    content = rng.integers(0, 2**63, (n, 2)).astype(np.uint64)
    content[100:150] = content[:50]  # repeats
    units = np.repeat(np.arange(100), 4)
    sample = Sample(rng.normal(size=n), content=content, units=units, seed=1)
    fold = fold_of_rows(sample, 5)
    assert all(len(set(fold[units == u])) == 1 for u in range(100))
    assert (fold[100:150] == fold[:50]).all()
    assert np.bincount(fold).min() > n / 10
    moved = rng.permutation(n)
    relabelled = rng.permutation(1000)[units]  # codes of units may well know the order
    again = Sample(sample.suspect[moved], content=content[moved], units=relabelled[moved], seed=1)
    assert (fold_of_rows(again, 5) == fold[moved]).all()
    other = Sample(sample.suspect, content=content, units=units, seed=2)
    assert (fold_of_rows(other, 5) != fold).any()
    # Without content the scores' values stand in, in any order of references.
    references = tuple(rng.normal(size=(2, n)))
    blind = Sample(sample.suspect, references)
    assert (
        fold_of_rows(blind, 5) == fold_of_rows(Sample(sample.suspect, references[::-1]), 5)
    ).all()
    piece, _, caveats = content_pieces(sample)
    assert piece.max() + 1 < 100
    assert not caveats


def test_boilerplate_in_every_unit_does_not_stop_the_folds():
    """One row that all units share would link them: then units alone stay whole, and it is said."""
    rng = np.random.default_rng(26)
    units = np.repeat(np.arange(80), 4)
    content = rng.integers(0, 2**63, (320, 2)).astype(np.uint64)
    content[::4] = content[0]
    content[4:8] = content[:4]  # two units of the same content
    sample = Sample(rng.normal(size=320), (rng.normal(size=320),), content=content, units=units)
    fold = fold_of_rows(sample, 5)
    assert all(len(set(fold[units == u])) == 1 for u in range(80))
    assert fold[0] == fold[4]
    assert np.bincount(fold).min() > 40
    assert any("link most units" in caveat for caveat in residual(sample).caveats)
    relabelled = Sample(
        sample.suspect, sample.references, content=content, units=rng.permutation(80)[units]
    )
    assert (fold_of_rows(relabelled, 5) == fold).all()


def test_features_are_of_the_rows_and_not_of_their_order():
    rows = [[1, 1, 2], [3], [], [2, 1, 1]]
    flat = np.array([t for row in rows for t in row])
    offsets = np.cumsum([0, *map(len, rows)])
    found = token_features([(flat, offsets)])
    assert found["length"].tolist() == [3, 1, 0, 3]
    share = {1: 4 / 7, 2: 2 / 7, 3: 1 / 7}
    expected = [np.mean([np.log(share[t]) for t in row]) if row else 0 for row in rows]
    np.testing.assert_allclose(found["log frequency"], expected)
    assert found["log frequency"][0] == found["log frequency"][3]  # to the last bit
    split = token_features([(flat[:4], offsets[:3]), (flat[4:], offsets[2:] - 4)])
    for name, values in found.items():
        np.testing.assert_array_equal(split[name], values)
    texts = text_features(["a b a", "c " * 200, ""])
    assert texts["length"].tolist() == [3, 200, 0]
    assert texts["zlib ratio"][1] < 0.2


def test_features_explain_what_length_does():
    """A model whose scores follow length alone has nothing left."""
    rng = np.random.default_rng(7)
    transcript, _ = _examples(rng)
    loglik = -0.1 * transcript.lengths + 0.01 * rng.normal(size=N)
    scores = Scores.from_arrays(loglik=loglik, name="m", transcript=transcript)
    left = query_contrast(scores, [], "residual-features", transcript)
    assert left.std() < 0.2 * loglik.std()
    boosted = query_contrast(scores, [], "residual-boosted-features", transcript)
    assert boosted.std() < 0.5 * loglik.std()


def test_features_of_text_are_taken_too_and_constant_ones_named():
    rng = np.random.default_rng(27)
    texts = ["".join(rng.choice(list("abc"), 12)) + f" {i}" for i in range(N)]
    transcript = Transcript.from_arrays(rng.permutation(N), texts=texts)
    zlib = text_features(texts)["zlib ratio"]
    loglik = 5 * zlib + 0.01 * rng.normal(size=N)
    scores = Scores.from_arrays(loglik=loglik, name="m", transcript=transcript)
    found = query_test(transcript, scores, statistic="residual-features", n_resamples=99)
    assert found.details["fit"]["share_explained"] > 0.9
    assert any("without use: length" in caveat for caveat in found.caveats)
    assert "regressed on 3 feature(s)" in found.contrast


def test_nothing_is_left_of_a_model_that_is_its_own_reference(data):
    """A placebo that is also a reference is refused, not cleared."""
    transcript, scores = data
    for name in ("spearman", "residual", "distillation"):
        with pytest.raises(InputError, match="have the same scores"):
            query_test(transcript, scores[0], scores[1:2], name, placebos=scores[1:2])


def test_boosting_without_its_library_is_one_sentence(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match=r"palimpsest-workbench\[statistics\]"):
        query_contrast(data[1][0], data[1][1:3], "residual-boosted")


# ---------------------------------------------------------------------- weights of position


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_against_a_plain_computation(name):
    rng = np.random.default_rng(8)
    order, scores = rng.permutation(100), rng.normal(size=100)
    u = (order + 0.5) / 100
    formula = {
        "capped": np.minimum(u, 0.7),
        "midlate": ((u > 0.65) & (u < 0.85)) / 20 - (u < 0.1) / 10,
        "late": (u > 0.9) / 10 - (u < 0.25) / 25,
        "savage": -np.log(1 - u),
    }[name]
    design = RankDesign(order, weights=WEIGHTS[name])
    expected = np.corrcoef(formula, stats.rankdata(scores))[0, 1]
    assert design.correlation(scores) == pytest.approx(expected, abs=1e-12)


def test_ranks_written_as_weights_are_spearman():
    """Also with ties and units of unequal size: a place's weight is the mean over its rows."""
    rng = np.random.default_rng(9)
    for sizes in ([1] * 40, [3] * 15, list(rng.integers(1, 6, 20))):
        units = np.repeat(np.arange(len(sizes)), sizes)
        positions = (rng.permutation(len(sizes)) // 2)[units]
        scores = rng.normal(size=len(units))
        plain = RankDesign(positions, None, units)
        written = plain.weighted(lambda u: u)
        assert written.statistic(scores) == pytest.approx(plain.statistic(scores), abs=1e-12)
        if written.closed_form:
            assert written.null_sd(scores) == pytest.approx(plain.null_sd(scores), rel=1e-9)
        a, b = (
            permutation_null(d, [scores], 50, seed=3, threads=1)[0].draws for d in (plain, written)
        )
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4], [0, 1, 1, 2, 2], [3, 3, 0, 5, 7]])
def test_variance_of_weights_equals_enumeration(positions):
    rng = np.random.default_rng(10)
    scores = rng.normal(size=10)
    units = np.repeat(np.arange(5), 2)
    for weights in (
        WEIGHTS["savage"],
        WEIGHTS["capped"],
        PositionWeights("t", table=((0, 1), (0.5, 0))),
    ):
        values = [
            RankDesign(
                np.repeat(np.array(positions)[list(order)], 2), None, units, weights
            ).statistic(scores)
            for order in itertools.permutations(range(5))
        ]
        design = RankDesign(np.repeat(positions, 2), None, units, weights)
        assert np.mean(values) == pytest.approx(0, abs=1e-12)
        assert design.null_sd(scores) == pytest.approx(np.std(values), rel=1e-9)


def test_unequal_units_have_the_exact_null_alone():
    rng = np.random.default_rng(11)
    for sizes, closed in ((rng.integers(1, 5, 60), False), (np.full(60, 3), True)):
        units = np.repeat(np.arange(60), sizes)
        transcript = Transcript.from_arrays(rng.permutation(60)[units] * 10, units=units)
        scores = Scores.from_arrays(loglik=rng.normal(size=len(units)), name="m")
        found = query_test(transcript, scores, statistic="spearman:midlate", n_resamples=199)
        design = transcript.design.weighted(WEIGHTS["midlate"])
        assert design.closed_form == closed
        assert ("units differ in size" in found.asymptotic_text) != closed
        if closed:
            z = design.statistic(scores.loglik_mean) / design.null_sd(scores.loglik_mean)
            assert found.z == pytest.approx(z)
            continue
        assert found.log10_pvalue is None
        draws = found.distribution.draws
        assert found.distribution.sd == pytest.approx(draws.std(), rel=0.05)
        with pytest.raises(InputError, match="no closed-form variance"):
            design.null_sd(scores.loglik_mean)


def test_the_normal_tail_is_given_only_where_no_example_dominates():
    rng = np.random.default_rng(12)
    given = {}
    for n in (60, 4000):
        transcript = Transcript.from_arrays(rng.permutation(n))
        scores = Scores.from_arrays(loglik=rng.normal(size=n), name="m")
        found = query_test(transcript, scores, statistic="spearman:midlate", n_resamples=99)
        given[n] = found.log10_pvalue is not None
    assert given == {60: False, 4000: True}


def test_late_heavy_weights_lose_where_memory_peaks_before_the_end():
    """Savage against ranks, and the window against both, on a curve that peaks at 70 %."""
    rng = np.random.default_rng(13)
    n = 4000
    z = {name: [] for name in ("spearman", "spearman:savage", "spearman:midlate")}
    for _ in range(20):
        order = rng.permutation(n)
        u = order / n
        values = 0.5 * np.minimum(u / 0.7, (1.2 - u) / 0.5) + rng.normal(size=n)
        for name, found in z.items():
            design = RankDesign(order, weights=STATISTICS[name].weights)
            found.append(design.statistic(values) / design.null_sd(values))
    means = {name: np.mean(found) for name, found in z.items()}
    assert means["spearman:savage"] < means["spearman"] < means["spearman:midlate"]


def _learned(transcript, loglik, **settings):
    return fit_weights(
        transcript.design,
        loglik,
        learned_on=transcript.fingerprint,
        digests=transcript.row_digests,
        **settings,
    )


def test_weights_learned_on_another_order_find_the_curve(tmp_path):
    rng = np.random.default_rng(14)
    n = 2000
    tokens = rng.integers(0, 400, (n, 8))

    def run():
        order = rng.permutation(n)
        bump = 0.6 * np.exp(-(((order / n - 0.7) / 0.12) ** 2))
        transcript = Transcript.from_arrays(order, tokens=tokens)
        values = bump + rng.normal(size=n)
        return transcript, Scores.from_arrays(loglik=values, name="m", transcript=transcript)

    lab_run, lab_scores = run()
    weights = _learned(lab_run, lab_scores.loglik_mean)
    assert max(weights.table, key=lambda row: row[1])[0] == pytest.approx(0.7, abs=0.1)
    path = weights.write(tmp_path / "weights.json")
    assert PositionWeights.read(path) == weights
    transcript, scores = run()
    plain = query_test(transcript, scores, n_resamples=999)
    found = query_test(transcript, scores, n_resamples=999, weights=weights)
    assert found.z > plain.z + 1
    assert found.details["weights"]["learned_on"] == lab_run.fingerprint
    assert "remembered" not in found.details["weights"]
    gate = next(gate for gate in found.gates if gate.name == "choices")
    assert gate.status == "declared"
    assert "lie elsewhere there" in gate.detail
    with pytest.raises(InputError, match="learned on the order of"):
        query_test(lab_run, lab_scores, weights=weights)
    # Other cuts of the same order are known again.
    part = lab_run.take(np.sort(rng.permutation(n)[:300]))
    with pytest.raises(InputError, match="learned on the order of"):
        query_test(part, lab_scores.take(part.rows), weights=weights)
    # Two runs that take the same blocks in the same turn are not one order.
    block = np.repeat([0, 1], n // 2)
    shuffles = [np.concatenate([rng.permutation(1000), 1000 + rng.permutation(1000)]) for _ in "ab"]
    one, two = (Transcript.from_arrays(s, tokens=tokens, blocks=block) for s in shuffles)
    in_blocks = _learned(one, lab_scores.loglik_mean)
    query_test(two, scores, weights=in_blocks, n_resamples=9)
    blind = fit_weights(lab_run.design, lab_scores.loglik_mean, learned_on=lab_run.fingerprint)
    found = query_test(transcript, scores, weights=blind, n_resamples=99)
    gate = next(gate for gate in found.gates if gate.name == "choices")
    assert "could not be checked" in gate.detail
    assert gate.detail in found.caveats
    typed = PositionWeights("typed", table=((0.0, 0.0), (1.0, 1.0)))
    gate = next(
        g for g in query_test(transcript, scores, weights=typed).gates if g.name == "choices"
    )
    assert gate.status == "declared"


def test_a_formula_made_after_a_look_at_the_scores_is_said_to_rest_on_the_callers_word():
    rng = np.random.default_rng(16)
    n = 400
    order, values = rng.permutation(n), rng.normal(size=n)
    transcript, independent = Transcript.from_arrays(order), Scores.from_arrays(loglik=values)
    seen = stats.rankdata(values)[np.argsort(order)].reshape(40, 10).mean(axis=1)
    curve = PositionWeights("curve", formula=lambda u: seen[np.minimum(u * 40, 39).astype(int)])
    found = query_test(transcript, independent, weights=curve, n_resamples=999)
    assert found.pvalue == found.pvalue_floor
    gate = next(gate for gate in found.gates if gate.name == "choices")
    assert gate.status == "declared"
    assert "weights of position 'curve' come from is not known here" in gate.detail
    assert gate.detail in found.caveats
    # A copy of named weights is these weights; another formula by their name is not.
    named = replace(WEIGHTS["late"])
    for weights, caveat in ((named, False), (replace(named, formula=curve.formula), True)):
        found = query_test(transcript, independent, weights=weights, n_resamples=9)
        assert any(gate.name == "choices" for gate in found.gates) == caveat


def test_weights_learned_on_the_order_under_test_raise_false_alarms():
    """The wrong way that the refusal above stops."""
    rng = np.random.default_rng(15)
    n, alarms, right = 200, 0, 0
    for trial in range(200):
        order, values = rng.permutation(n), rng.normal(size=n)
        own = fit_weights(RankDesign(order), values, learned_on="x")
        other = fit_weights(RankDesign(rng.permutation(n)), rng.normal(size=n), learned_on="y")
        for weights, careless in ((own, True), (other, False)):
            design = RankDesign(order, weights=weights)
            p = permutation_null(design, [values], 99, seed=trial, threads=1)[0].pvalue()
            alarms += careless and p <= 0.05
            right += (not careless) and p <= 0.05
    assert stats.binomtest(alarms, 200, 0.05, "greater").pvalue < 1e-9
    assert stats.binomtest(right, 200, 0.05, "greater").pvalue > 0.001


# ---------------------------------------------------------------------- families


def test_maximum_against_a_plain_computation():
    """Members share their permutations, and each standardised member can win."""
    rng = np.random.default_rng(16)
    order, scores = rng.permutation(60), rng.normal(size=60)
    designs = [RankDesign(order, weights=w) for w in (None, *WEIGHTS.values())]
    found = maximum_null(designs, [[scores] * 5], 4000, seed=1, threads=1)[0]
    for design, member in zip(designs, found.members, strict=True):
        assert member.observed == pytest.approx(design.statistic(scores))
        assert member.draws.std() == pytest.approx(design.null_sd(scores), rel=0.06)
    drawn = np.array([m.draws / m.sd for m in found.members])
    np.testing.assert_allclose(found.distribution.draws, drawn.max(axis=0))
    assert len(set(np.argmax(drawn, axis=0))) == 5
    low = best_of(found.members, "less").distribution
    np.testing.assert_allclose(low.draws, drawn.min(axis=0))
    both = best_of(found.members, "two-sided").distribution
    np.testing.assert_allclose(both.draws, np.abs(drawn).max(axis=0))
    # The first member's draws have the law of its own null: correlated through shared orders only.
    alone = permutation_null(designs[1], [scores], 4000, seed=2)[0]
    assert stats.ks_2samp(alone.draws, found.members[1].draws).pvalue > 1e-4


def test_reporting_the_best_of_a_family_raises_false_alarms():
    """The wrong way, and the maximum inside every permutation on the same experiments."""
    rng = np.random.default_rng(17)
    designs_of = [None, *WEIGHTS.values()]
    careless = right = 0
    trials = 300
    for trial in range(trials):
        order, scores = rng.permutation(80), rng.normal(size=80)
        designs = [RankDesign(order, weights=w) for w in designs_of]
        found = maximum_null(designs, [[scores] * len(designs)], 99, seed=trial, threads=1)[0]
        careless += min(member.pvalue() for member in found.members) <= 0.05
        right += found.distribution.pvalue() <= 0.05
    assert stats.binomtest(careless, trials, 0.05, "greater").pvalue < 1e-4
    assert stats.binomtest(right, trials, 0.05, "greater").pvalue > 0.001


def test_the_maximum_withholds_the_normal_tail_and_corrects_the_exact_p(data):
    transcript, scores = data
    found = query_test(transcript, scores[0], scores[1:], "adaptive", n_resamples=999)
    assert found.log10_pvalue is None
    assert "no normal tail" in found.asymptotic_text
    assert found.details["choice"]["taken"] in found.details["choice"]["among"]
    gate = next(gate for gate in found.gates if gate.name == "choices")
    assert "anew in every permutation" in gate.detail


def test_held_out_units_are_never_tested(data, monkeypatch):
    """What was chosen on is gone: other scores there change the choice at most."""
    transcript, scores = data
    name = "adaptive-held-out"
    found = query_test(transcript, scores[0], scores[1:], name, n_resamples=199, seed=0)
    held = found.details["choice"]["examples_held_out"]
    assert held == round(0.2 * N)
    assert found.n == N - held
    rows, rest = hold_out(
        Sample(
            scores[0].loglik_mean,
            content=transcript.row_digests.view("<u8").astype(np.uint64),
            seed=0,
        )
    )
    assert len(rows) == held
    assert sorted([*rows, *rest]) == list(range(N))
    # The same statistic on the rest alone, asked for by name, has the same value.
    taken = found.details["choice"]["taken"]
    from workbench.independence.sample import Gatherer

    chosen = find_statistic(name)
    sample = Gatherer(chosen, transcript, 0).sample(scores[0], scores[1:])
    _, rest = hold_out(sample)
    others = [s.take(rest) for s in scores[1:]]
    alone = query_test(transcript.take(rest), scores[0].take(rest), others, taken, seed=0)
    assert found.statistic == alone.statistic
    assert found.z == alone.z
    assert found.transcript["fingerprint"] == transcript.take(rest).fingerprint
    assert found.details["choice"]["fingerprint_before"] == transcript.fingerprint


def test_choosing_on_the_rows_under_test_raises_false_alarms():
    """The wrong way of holding out, and the right one on the same experiments."""
    rng = np.random.default_rng(18)
    weights = [None, *WEIGHTS.values()]
    careless = right = 0
    trials, n = 300, 100
    for trial in range(trials):
        order, scores = rng.permutation(n), rng.normal(size=n)
        held, rest = hold_out(Sample(scores, seed=trial))

        def best(rows, order=order, scores=scores):
            designs = [RankDesign(order[rows], weights=w) for w in weights]
            values = scores[rows]
            return int(np.argmax([d.statistic(values) / d.null_sd(values) for d in designs]))

        for rows, choice in ((np.arange(n), best(np.arange(n))), (rest, best(held))):
            design = RankDesign(order[rows], weights=weights[choice])
            p = permutation_null(design, [scores[rows]], 99, seed=trial, threads=1)[0].pvalue()
            careless += len(rows) == n and p <= 0.05
            right += len(rows) < n and p <= 0.05
    assert stats.binomtest(careless, trials, 0.05, "greater").pvalue < 1e-4
    assert stats.binomtest(right, trials, 0.05, "greater").pvalue > 0.001


# ---------------------------------------------------------------------- tokens


def test_token_statistics_against_loops():
    rng = np.random.default_rng(19)
    lengths = rng.integers(1, 9, 30)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    suspect, *references = -rng.exponential(size=(3, lengths.sum()))
    tokens = TokenScores(suspect, tuple(references), starts)
    sample = Sample(np.zeros(30), tuple(np.zeros((2, 30))), tokens=tokens)
    mean = (references[0] + references[1]) / 2
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = slice(start, start + length)
        gap, weight = suspect[here] - mean[here], -mean[here]
        expected = (gap * weight).sum() / weight.sum()
        assert weight_by_surprisal(sample).values[row] == pytest.approx(expected)
        kept = np.argsort(mean[here])[: int(np.ceil(0.3 * length))]
        assert keep_informative(30)(sample).values[row] == pytest.approx(gap[kept].mean())
    np.testing.assert_allclose(keep_informative(100)(sample).values,
                               np.add.reduceat(suspect - mean, starts) / lengths)  # fmt: skip


def test_surprising_tokens_tell_more_where_memory_sits_there():
    rng = np.random.default_rng(20)
    n, length = 1500, 12
    order = rng.permutation(n)
    surprisal = rng.exponential(2.0, (n, length))
    suspect = -surprisal + rng.normal(size=(n, length))
    suspect += 0.6 * (order / n)[:, None] * (surprisal > 4)
    transcript = Transcript.from_arrays(order)
    bob, other = (
        Scores.from_arrays(loglik=v, name=k) for k, v in (("bob", suspect), ("other", -surprisal))
    )
    z = {
        name: query_test(transcript, bob, [other], name, n_resamples=99).z
        for name in ("spearman", "tokens-weighted", "tokens-top20")
    }
    assert z["tokens-weighted"] > z["spearman"] + 1
    assert z["tokens-top20"] > z["spearman"] + 1


def test_token_statistics_refuse_other_tokens(data):
    _, scores = data
    means = Scores.from_arrays(loglik=scores[1].loglik_mean, name="means")
    with pytest.raises(InputError, match="means: values per token were not kept"):
        query_contrast(scores[0], [means], "tokens-weighted")
    shorter = Scores.from_arrays(loglik=[row[:-1] for row in scores[1].token_logliks], name="cut")
    with pytest.raises(InputError, match="scored on different tokens"):
        query_contrast(scores[0], [shorter], "tokens-top20")
    two = [
        Scores.from_arrays(
            loglik=scores[k].token_logliks,
            identity=ScorerIdentity("causal_lm", f"m{k}", tokenizer_sha256=str(k)),
        )
        for k in (0, 1)
    ]
    with pytest.raises(InputError, match="with one tokeniser"):
        query_contrast(two[0], [two[1]], "tokens-weighted")
    served = Scores.from_arrays(
        loglik=scores[1].token_logliks,
        identity=ScorerIdentity("completions", "m", endpoint="https://example.org"),
    )
    with pytest.raises(InputError, match="scored on different tokens"):
        query_contrast(scores[0], [served], "tokens-weighted")


# ---------------------------------------------------------------------- certified p


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_certified_p_is_never_below_the_exact_sign_flip_p(n):
    rng = np.random.default_rng(n)
    flips = np.array(list(itertools.product([-1, 1], repeat=n)))
    for trial in range(40):
        d = rng.normal(rng.choice([0, 0.5, 2]), 1, n)
        if trial % 2:
            d = np.round(d, 0)  # ties and zeros
        scores = np.abs(signed_ranks(d))
        if len(scores) < n:
            continue
        total = signed_ranks(d).sum()
        exact = np.mean(flips @ scores >= total - 1e-9)
        assert certified_log10(d) >= np.log10(exact) - 1e-12
        assert certified_log10(-d, "less") == pytest.approx(certified_log10(d))


def test_certified_p_is_valid_and_close_to_the_normal_tail():
    rng = np.random.default_rng(21)
    draws = np.array([certified_log10(rng.standard_t(1.2, 60)) for _ in range(2000)])
    for level in (0.2, 0.05, 0.01):
        rejected = int((draws <= np.log10(level)).sum())
        assert stats.binomtest(rejected, 2000, level, "greater").pvalue > 0.001
    d = rng.normal(0.55, 1, 1000)
    signed = signed_ranks(d)
    z = signed.sum() / np.sqrt((signed**2).sum())
    normal = stats.norm.logsf(z) / np.log(10)
    assert -40 > normal > certified_log10(d) * 1.25
    assert normal < certified_log10(d) + 4 * 2
    assert certified_log10(np.arange(1.0, 2001)) == pytest.approx(-2000 * np.log10(2))


def test_certified_p_ignores_zeros_and_scale():
    d = np.array([1.0, -0.5, 0.0, 2.0, 3.0])
    assert certified_log10(d) == certified_log10(7 * d[d != 0])
    assert certified_log10(np.zeros(3)) == 0.0
    assert certified_log10(d, "two-sided") == pytest.approx(
        min(0.0, certified_log10(d) + np.log10(2))
    )
    with pytest.raises(InputError, match="one finite number per pair"):
        certified_log10([1.0, np.nan])
    with pytest.raises(InputError, match="alternative"):
        certified_log10([1.0], "up")


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "references", "message"),
    [
        ("residual", 0, "takes 1 reference"),
        ("adaptive", 0, "takes 1 reference"),
        ("distillation", 2, "takes 1 reference.* at most"),
        ("residual:nowhere", 1, "statistic 'residual:nowhere' is unknown"),
        ("max(residual)", 1, "at least two different members"),
        ("max(residual, residual)", 1, "at least two different members"),
        ("max(adaptive, residual)", 1, "not another family"),
        ("adaptive:late", 1, "is unknown"),
        ("tokens-top0", 1, "0 % of the tokens"),
        ("tokens-top", 1, "is unknown"),
        ("residual-degree12", 1, "degree 12 is not offered"),
        ("spearman3", 1, "is unknown"),
    ],
)
def test_bad_choices_are_one_sentence(data, name, references, message):
    transcript, scores = data
    with pytest.raises(InputError, match=message):
        query_test(transcript, scores[0], scores[1 : 1 + references], name, n_resamples=9)


def test_what_a_statistic_lacks_is_one_sentence(data):
    _, scores = data
    rng = np.random.default_rng(22)
    bare = Transcript.from_arrays(rng.permutation(N))
    loose = [Scores.from_arrays(loglik=s.loglik_mean, name="m") for s in scores]
    with pytest.raises(InputError, match="takes features of the examples, and arrays holds none"):
        query_test(bare, loose[0], loose[1:], "residual-features", n_resamples=9)
    found = query_test(bare, loose[0], loose[1:], "residual", n_resamples=9)
    assert any("Folds of the regression come from the scores' values" in c for c in found.caveats)
    few = bare.take(np.arange(12))
    with pytest.raises(InputError, match="too few to fit 10 coefficients"):
        query_test(few, loose[0].take(few.rows), [s.take(few.rows) for s in loose[1:]], "residual")
    one = Transcript.from_arrays(rng.permutation(60), texts=["same"] * 60)
    same = [
        Scores.from_arrays(loglik=rng.normal(size=60), name=f"m{k}", transcript=one)
        for k in range(2)
    ]
    with pytest.raises(InputError, match=r"1 piece\(s\) of whole units"):
        query_test(one, same[0], same[1:], "residual")
    with pytest.raises(InputError, match="too few to hold some out"):
        query_test(one, same[0], same[1:], "held-out(spearman, spearman:late)")
    with pytest.raises(InputError, match="all equal"):
        RankDesign(np.array([0, 1]), weights=lambda u: (u > 0.9) * 1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (((0.2, 1.0), (0.1, 2.0)), "must rise"),
        (((0.2, 1.0), (0.4, 1.0)), "all equal"),
        (((0.2, np.nan), (0.4, 1.0)), "finite"),
        ((0.2, 0.4), "pairs"),
        ((), "formula or a table"),
    ],
)
def test_bad_tables_of_weights(table, message):
    with pytest.raises(InputError, match=message):
        PositionWeights("bad", table=table)


def test_bad_files_of_weights(tmp_path):
    path = tmp_path / "w.json"
    with pytest.raises(InputError, match="cannot be read"):
        PositionWeights.read(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="no table of weights"):
        PositionWeights.read(path)
    sound = {"format": "palimpsest weights 1", "name": "x", "summary": "", "learned_on": None,
             "table": [[0.1, 0.0], [0.9, 1.0]], "remembered": [["0" * 16, 0.5]]}  # fmt: skip
    path.write_text(json.dumps(sound))
    assert PositionWeights.read(path).table == ((0.1, 0.0), (0.9, 1.0))
    for broken in (
        {"table": None},
        {"table": [["a", 1]]},
        {"learned_on": 3},
        {"remembered": [["xyz", 0.5]]},
        {"remembered": [["0" * 16, float("nan")]]},
    ):
        path.write_text(json.dumps({**sound, **broken}))
        with pytest.raises(InputError, match="damaged"):
            PositionWeights.read(path)
    with pytest.raises(InputError, match="are a formula"):
        WEIGHTS["late"].write(path)
    with pytest.raises(InputError, match="holds no example: use fewer bins"):
        fit_weights(RankDesign(np.arange(5)), np.arange(5.0), learned_on="x", bins=20)


def test_references_that_know_the_order_are_found_as_residuals_too(data):
    transcript, scores = data
    rng = np.random.default_rng(23)
    knows = Scores.from_arrays(
        loglik=scores[1].loglik_mean + 0.7 * transcript.positions / N + 0.1 * rng.normal(size=N),
        name="knows",
        transcript=transcript,
    )
    for name in ("residual", "residual:midlate", "adaptive"):
        found = query_test(transcript, scores[2], [knows, scores[3]], name, n_resamples=199)
        names = [test["name"] for test in found.references_check.tests]
        assert names == [
            "1: knows",
            "2: m3",
            "1: knows residual on the others",
            "2: m3 residual on the others",
            "the part subtracted",
        ]
        assert found.verdict == "not valid"
        assert found.references_check.smallest_corrected < 1e-3
    single = query_test(transcript, scores[2], [scores[3]], "residual", n_resamples=199)
    assert [t["name"] for t in single.references_check.tests] == ["1: m3", "the part subtracted"]


def test_residual_folds_are_whole_units_in_a_test():
    rng = np.random.default_rng(24)
    units = np.repeat(np.arange(60), 4)
    transcript, scores = _examples(rng, units=units)
    from workbench.independence.sample import Gatherer

    sample = Gatherer(STATISTICS["residual"], transcript).sample(scores[0], scores[1:])
    fold = fold_of_rows(sample, 5)
    assert all(len(set(fold[units == u])) == 1 for u in range(60))
    assert residual(sample).account["folds"] == 5
