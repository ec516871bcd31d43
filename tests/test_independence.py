"""The query test end to end on arrays: verdicts, gates, references, bad input."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import Evidence, InputError, ScorerIdentity, Scores, ShuffleClaim, Transcript
from workbench.independence import query_contrast, query_test, reshuffle_test
from workbench.power import queries_needed
from workbench.statistics import STATISTICS

N = 3000
WAYS = ("greater", "less", "two-sided")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(
        order, tokens=rng.integers(0, 500, (N, 8)), shuffle=ShuffleClaim("owner", seed=98123)
    )
    easy = rng.normal(size=N)

    def model(name, memory=0.0, noise=0.3):
        values = -3 + easy + memory * order / N + noise * rng.normal(size=N)
        return Scores.from_arrays(loglik=values, name=name, transcript=transcript)

    return {
        "transcript": transcript,
        "order": order,
        "derivative": model("derivative", 0.5),
        "independent": model("independent"),
        "reference": model("reference"),
        "reference2": model("reference2"),
        "leaky": model("leaky", 0.4),
    }


def _test(data, suspect="derivative", references=("reference",), **settings):
    settings.setdefault("n_resamples", 1999)
    settings.setdefault("smallest_effect", 0.1)
    return query_test(
        data["transcript"], data[suspect], [data[name] for name in references], **settings
    )


def test_a_derivative_is_evidence(data):
    evidence = _test(data)
    assert evidence.verdict == "evidence"
    assert evidence.pvalue == evidence.pvalue_exact == evidence.pvalue_floor == 1 / 2000
    assert evidence.log10_pvalue < -20
    assert repr(evidence) == evidence.summary()
    assert evidence.pvalue_asymptotic == pytest.approx(10**evidence.log10_pvalue)
    expected = stats.spearmanr(
        data["order"], data["derivative"].loglik_mean - data["reference"].loglik_mean
    )
    assert evidence.statistic == pytest.approx(expected.statistic, abs=1e-12)
    assert evidence.z == pytest.approx(evidence.statistic * np.sqrt(N - 1), rel=1e-6)
    scipy_p = stats.spearmanr(
        data["order"],
        data["derivative"].loglik_mean - data["reference"].loglik_mean,
        alternative="greater",
    ).pvalue
    assert evidence.details["pvalue_scipy_t"] == pytest.approx(scipy_p, rel=1e-6)


def choices_gate(evidence):
    return next((gate for gate in evidence.gates if gate.name == "choices"), None)


def test_rows_taken_by_hand_are_a_caveat_and_rows_drawn_by_a_seed_are_not(data):
    """Late and likely ones, early and unlikely ones, of a model that knows nothing."""
    transcript, scores = data["transcript"], data["independent"]
    late, likely = data["order"] > N / 2, scores.loglik_mean > np.median(scores.loglik_mean)
    rows = np.flatnonzero(late == likely)
    found = query_test(transcript.take(rows), scores.take(rows), n_resamples=999)
    assert found.verdict == "evidence"
    assert found.transcript["selection"] == {"how": "by hand", "of": N, "seed": None}
    assert choices_gate(found).status == "declared"
    assert choices_gate(found).detail == (
        f"{len(rows):,} of 3,000 examples were taken by hand: that they were chosen without a look "
        "at scores against positions rests on the caller's word."
    )
    assert choices_gate(found).detail in found.caveats
    # What a test holds out itself it says elsewhere, and of what: that was taken all the same.
    reference = data["reference"]
    held = query_test(transcript.take(rows), scores.take(rows), [reference.take(rows)],
                      "adaptive-held-out", n_resamples=99)  # fmt: skip
    assert held.transcript["selection"] == found.transcript["selection"]
    assert choices_gate(held).detail == choices_gate(found).detail
    whole = query_test(transcript, scores, [reference], "adaptive-held-out", n_resamples=99)
    assert "selection" not in whole.transcript
    assert choices_gate(whole).status == "verified"
    part = transcript.subsample(300, seed=7)
    drawn = query_test(part, scores.take(part.rows), n_resamples=99)
    assert drawn.transcript["selection"] == {"how": "random sample", "of": N, "seed": 7}
    assert choices_gate(drawn) is None


def test_effect_is_the_planted_one(data):
    effect = _test(data).effect
    assert effect.low < 0.45 < effect.high  # .5 nats over the run; tenths are .9 of it apart
    assert effect.low < effect.difference < effect.high


def test_an_independent_model_is_cleared_at_this_power(data):
    evidence = _test(data, "independent")
    assert evidence.verdict == "no evidence"
    assert evidence.pvalue > 0.001
    assert evidence.statistic_upper95 < 0.1
    limit = f"correlations above {evidence.statistic_upper95:+.4f} are excluded at 95 %"
    assert limit in evidence.verdict_reason
    assert "the smallest of interest, 0.1000, is excluded" in evidence.verdict_reason
    assert "had a power of 0.99 or more" in evidence.verdict_reason


def test_a_large_p_says_what_is_excluded_and_how_many_queries_would_show_what_was_measured(data):
    evidence = _test(data, "independent", smallest_effect=None)
    assert evidence.verdict == "no evidence"
    limit = f"correlations above {evidence.statistic_upper95:+.4f} are excluded at 95 %"
    assert limit in evidence.verdict_reason
    ways = {way: _test(data, "independent", smallest_effect=None, alternative=way) for way in WAYS}
    for way, found in ways.items():
        z = {"greater": 1, "less": -1}.get(way, np.sign(found.z)) * found.z
        told = re.search(r"about ([\d,]+) queries would find", found.verdict_reason)
        if z <= 0:
            assert told is None
            assert "fix a smallest effect of interest (smallest_effect)" in found.verdict_reason
            continue
        level = 0.001 / (2 if way == "two-sided" else 1)
        needed = queries_needed(z / np.sqrt(N), level, 0.9)
        assert needed <= int(told[1].replace(",", "")) < 1.11 * needed
    assert f"below {-ways['less'].statistic_upper95:+.4f}" in ways["less"].verdict_reason
    assert f"beyond ±{ways['two-sided'].statistic_upper95:.4f}" in ways["two-sided"].verdict_reason


def test_too_few_queries_say_how_many_would_see_the_smallest_effect(data):
    few = data["transcript"].subsample(60, 0)
    evidence = query_test(
        few,
        data["independent"].take(few.rows),
        [data["reference"].take(few.rows)],
        n_resamples=1999,
        smallest_effect=0.05,
    )
    assert evidence.verdict == "no evidence"
    assert "the smallest of interest, 0.0500, is not excluded" in evidence.verdict_reason
    assert "had a power of 0.01 or less to find it" in evidence.verdict_reason
    told = re.search(r"about ([\d,]+) queries would find it with a power", evidence.verdict_reason)
    assert int(told[1].replace(",", "")) == pytest.approx(
        queries_needed(0.05, 0.001, 0.9), rel=0.1
    )  # the null sd of 60 ranks is 1/√59
    assert evidence.log10_pvalue is None
    assert "exact p-value stands alone" in evidence.summary()


def test_where_permutations_are_too_few_a_theorem_goes_on(data):
    evidence = _test(data, n_resamples=99)
    assert (evidence.verdict, evidence.pvalue) == ("evidence", 0.01)
    assert "exact p 0.01 (proven " in evidence.verdict_reason
    assert "99 resamples instead of 9,999" in " ".join(evidence.caveats)


def test_no_reference_runs_and_is_weaker(data):
    """Fault 2 of the published code: the mode without a reference crashes."""
    with_reference, without = _test(data), _test(data, references=())
    assert without.references_check is None
    assert 0 < without.z < with_reference.z


def test_references_are_averaged(data):
    both = query_contrast(data["derivative"], [data["reference"], data["reference2"]])
    mean = (data["reference"].loglik_mean + data["reference2"].loglik_mean) / 2
    np.testing.assert_allclose(both, data["derivative"].loglik_mean - mean)
    evidence = _test(data, references=("reference", "reference2"))
    assert len(evidence.references_check.tests) == 5
    assert evidence.z > _test(data).z


def test_losses_and_logliks_agree(data):
    """Faults 4 and 5: a sign error cannot hide behind a two-sided p."""
    as_loss = Scores.from_arrays(
        loss=-data["derivative"].loglik_mean, name="derivative", transcript=data["transcript"]
    )
    right = query_test(data["transcript"], as_loss, [data["reference"]], n_resamples=999)
    assert right.statistic == _test(data).statistic > 0
    flipped = Scores.from_arrays(
        loglik=-data["derivative"].loglik_mean, name="flipped", transcript=data["transcript"]
    )
    wrong = query_test(data["transcript"], flipped, [], n_resamples=999)
    assert wrong.statistic < 0
    assert wrong.pvalue > 0.9


def test_scores_are_never_recomputed(data, monkeypatch):
    """Fault 3: the permutations see arrays; nothing scores."""
    calls = []
    published = STATISTICS["spearman"]

    def counted(sample):
        calls.append(1)
        return published.contrast(sample)

    monkeypatch.setitem(STATISTICS, "spearman", replace(published, contrast=counted))
    _test(data)
    assert len(calls) == 1


def test_a_reference_that_knows_the_order_is_not_valid(data):
    evidence = _test(data, "independent", references=("leaky",), alternative="less")
    assert evidence.verdict == "not valid"
    assert "leaky" in evidence.verdict_reason
    assert evidence.references_check.smallest_corrected < 0.001
    hidden = _test(data, references=("reference", "leaky"))
    assert hidden.verdict == "not valid"


def test_an_early_checkpoint_of_the_owner_is_no_reference():
    """It remembers a part in the middle: its rank correlation is small, and yet fakes a signal."""
    rng = np.random.default_rng(5)
    order = rng.permutation(4 * N)
    transcript = Transcript.from_arrays(order, shuffle=ShuffleClaim("owner", seed=98123))
    easy = rng.normal(size=4 * N)
    before = 0.5 - order / (4 * N)  # it left half way, and remembers what came just before
    peak = np.where(before > 0, 0.3 * np.exp(-np.abs(before) / 0.1), 0)
    stranger, checkpoint = (
        Scores.from_arrays(loglik=easy + memory + 0.05 * rng.normal(size=4 * N), name=name)
        for name, memory in (("stranger", 0.0), ("checkpoint", peak))
    )
    found = query_test(transcript, stranger, [checkpoint], n_resamples=999)
    assert found.pvalue == found.pvalue_floor  # the false signal is there
    assert found.verdict == "not valid"
    assert "checkpoint is related to the order" in found.verdict_reason
    ranks_alone = stats.spearmanr(order, checkpoint.loglik_mean).pvalue
    assert ranks_alone > 1e-3  # which ranks alone would have let pass


def test_a_few_units_in_blocks_are_checked_by_the_waves_that_they_can_show():
    rng = np.random.default_rng(6)
    blocks = np.repeat(np.arange(40), 3)
    transcript = Transcript.from_arrays(rng.permutation(120), blocks=blocks)
    one, two = (Scores.from_arrays(loglik=rng.normal(size=120), name=n) for n in "ab")
    check = query_test(transcript, one, [two], n_resamples=999).references_check
    assert 0 < check.smallest_corrected <= 1


def test_reference_check_is_calibrated():
    """Sound references fail at most one time in a thousand, and get a caveat one time in twenty."""
    rng = np.random.default_rng(0)
    smallest = []
    for j in range(100):
        transcript = Transcript.from_arrays(rng.permutation(80))
        easy = rng.normal(size=80)
        scores = [
            Scores.from_arrays(loglik=easy + rng.normal(size=80), name=f"m{k}") for k in range(3)
        ]
        check = query_test(
            transcript, scores[0], scores[1:], n_resamples=999, seed=j
        ).references_check
        smallest.append(check.smallest_corrected)
    rejected = int((np.array(smallest) <= 0.05).sum())
    assert stats.binomtest(rejected, 100, 0.05, "greater").pvalue > 0.001


def test_unshuffled_orders_are_refused(data):
    rng = np.random.default_rng(0)
    tokens = [[1] * int(k) for k in np.sort(rng.integers(1, 60, 500))]
    transcript = Transcript.from_arrays(np.arange(500), tokens=tokens)
    scores = Scores.from_arrays(loglik=rng.normal(size=500), transcript=transcript)
    evidence = query_test(transcript, scores, n_resamples=999)
    assert evidence.verdict == "not valid"
    assert "looks unshuffled" in evidence.verdict_reason
    for kind in ("unknown", "natural"):
        claimed = Transcript.from_arrays(
            data["order"], tokens=data["transcript"].tokens(), shuffle=kind
        )
        evidence = query_test(claimed, data["derivative"], n_resamples=999)
        assert evidence.verdict == "not valid"
        assert "without a random shuffle no p-value is valid" in evidence.verdict_reason


def test_an_order_of_which_nothing_is_said_is_not_valid_until_its_owner_declares_it(data, tmp_path):
    content = {"tokens": data["transcript"].tokens()}
    silent = Transcript.from_arrays(data["order"], **content)
    assert (silent.shuffle.kind, str(silent.shuffle)) == ("not_stated", "not stated")
    assert "not stated" in str(silent.describe())
    evidence = query_test(silent, data["derivative"], n_resamples=1999)
    assert evidence.verdict == "not valid"
    assert evidence.pvalue == 1 / 2000  # its numbers are shown
    assert evidence.verdict_reason.count('shuffle="owner"') == 1
    for said in (
        Transcript.from_arrays(data["order"], **content, shuffle="owner"),
        Transcript.read(silent.write(tmp_path / "t.parquet"), shuffle="owner"),
    ):
        found = query_test(said, data["derivative"], n_resamples=1999)
        assert (found.verdict, found.pvalue) == ("evidence", evidence.pvalue)
        assert any("declared by the owner and not verified here" in c for c in found.caveats)
    with pytest.raises(InputError, match="shuffle claim 'trust me' is unknown"):
        Transcript.from_arrays(data["order"], shuffle="trust me")


def test_owners_word_habitual_seed_and_published_shuffler_are_said(data):
    assert any("declared by the owner" in caveat for caveat in _test(data).caveats)
    tokens = data["transcript"].tokens()
    habitual = Transcript.from_arrays(
        data["order"], tokens=tokens, shuffle=ShuffleClaim("owner", seed=42)
    )
    evidence = query_test(habitual, data["derivative"], n_resamples=999)
    assert any("seed 42" in caveat for caveat in evidence.caveats)
    published = Transcript.from_arrays(
        data["order"],
        tokens=tokens,
        shuffle=ShuffleClaim("published_shuffler", seed=7123, seed_bits=32, source="a shuffler"),
    )
    gate = query_test(published, data["derivative"], n_resamples=999).gates[0]
    assert gate.status == "declared"
    assert "(a shuffler) and not verified here, for the claim lacks shuffler" in gate.detail
    assert "p counts times the 4.29e+09 orders" in gate.detail


def test_placebos_guard_the_order(data):
    sound = _test(data, placebos=[data["independent"]])
    assert sound.verdict == "evidence"
    assert "1 placebo model(s), smallest corrected p 0." in sound.gates[0].detail
    evidence = _test(data, placebos=[data["leaky"]])
    assert evidence.verdict == "not valid"
    assert "placebo" in evidence.verdict_reason


@pytest.mark.parametrize("statistic", ["spearman", "max(spearman, spearman:late)"])
def test_a_placebo_fails_also_where_few_permutations_were_asked_for(data, statistic):
    """The placebos' own permutations decide, and leave the suspect's as they are."""
    found = _test(data, statistic=statistic, n_resamples=99, placebos=[data["leaky"]])
    assert "tested as a placebo" in found.verdict_reason
    plain = _test(data, statistic=statistic, n_resamples=99)
    assert found.null == plain.null
    several = [data["independent"], data["reference2"], data["leaky"]]
    found = _test(data, statistic=statistic, n_resamples=999, placebos=several)
    assert found.gates[0].status == "failed"
    assert "the independent model leaky" in found.gates[0].detail


def test_an_order_by_a_seed_that_could_have_been_chosen(data):
    """The p-value that decides is the corrected one."""
    few = data["transcript"].subsample(1000, 0)
    verdicts = {}
    for bits in (1, 32, 512):
        claim = ShuffleClaim("published_shuffler", seed=7, seed_bits=bits, source="a shuffler")
        transcript = Transcript.from_arrays(few.positions, digests=few.row_digests, shuffle=claim)
        found = query_test(
            transcript,
            data["derivative"].take(few.rows),
            [data["reference"].take(few.rows)],
            n_resamples=1999,
        )
        assert found.pvalue == 0.0005
        assert found.gates[0].detail in found.caveats
        verdicts[bits] = found.verdict_reason
    assert "for the 2 orders to choose from, is at most alpha 0.001" in verdicts[1]
    assert "for the 4.29e+09 orders to choose from, is at most alpha 0.001" in verdicts[32]
    assert "no choice among 1.34e+154 orders" in verdicts[512]


def test_no_p_value_is_printed_as_zero():
    """SciPy's own underflows where z is large."""
    order = np.random.default_rng(3).permutation(8000)
    loglik = order + np.random.default_rng(4).normal(size=8000)
    found = query_test(
        Transcript.from_arrays(order), Scores.from_arrays(loglik=loglik), n_resamples=19
    )
    assert found.details["pvalue_scipy_t"] == np.nextafter(0, 1)


def test_blocks_are_stratified():
    """Scores that differ by block give nothing; memory within blocks is found."""
    rng = np.random.default_rng(4)
    strata = np.repeat(np.arange(4), 400)
    order = np.concatenate([b * 400 + rng.permutation(400) for b in range(4)])
    noise = strata * 2.0 + rng.normal(size=1600)
    flat = Scores.from_arrays(loglik=noise, name="flat")
    pooled = Transcript.from_arrays(order)
    blocked = Transcript.from_arrays(order, blocks=strata)
    assert query_test(pooled, flat, n_resamples=999).pvalue == 0.001
    assert query_test(blocked, flat, n_resamples=999).pvalue > 0.01
    memory = Scores.from_arrays(loglik=noise + (order % 400) / 400, name="memory")
    assert query_test(blocked, memory, n_resamples=999).pvalue == 0.001


def test_repeated_examples_need_their_exposure_counts():
    """Gate 2: repeats are seen last late; permuting all rejects, within counts does not."""
    rng = np.random.default_rng(9)
    pooled, stratified = [], []
    for j in range(60):
        exposures = 1 + (rng.random(300) < 0.5)
        first, second = rng.permutation(300), 300 + rng.permutation(300)
        last = np.where(exposures == 2, second, first)
        scores = Scores.from_arrays(loglik=exposures + rng.normal(size=300), name="m")
        for kept, counts in ((pooled, None), (stratified, exposures)):
            transcript = Transcript.from_arrays(last, exposures=counts)
            kept.append(query_test(transcript, scores, n_resamples=99, seed=j).pvalue)
    assert np.mean(np.array(pooled) <= 0.05) > 0.9
    assert stats.binomtest(int((np.array(stratified) <= 0.05).sum()), 60, 0.05).pvalue > 0.001


def test_position_never_reaches_the_contrast(data):
    """The contrast is the same whatever the positions are."""
    other = Transcript.from_arrays(data["order"][::-1], tokens=data["transcript"].tokens())
    a, b = _test(data), query_test(other, data["derivative"], [data["reference"]], n_resamples=99)
    assert a.statistic != b.statistic
    assert a.suspect["scores_key"] == b.suspect["scores_key"]


def test_same_seed_same_evidence(data):
    assert _test(data, seed=3).to_json() == _test(data, seed=3).to_json()
    assert _test(data, "independent", seed=3).null != _test(data, "independent", seed=4).null


def test_json_round_trips_with_attribute_names(data, tmp_path):
    evidence = _test(data)
    path = evidence.write(tmp_path / "e.json")
    again = Evidence.read(path)
    assert again == evidence
    assert again.summary() == evidence.summary()
    content = json.loads(path.read_text())
    for key in ("statistic", "z", "pvalue", "pvalue_exact", "pvalue_floor", "pvalue_asymptotic",
                "log10_pvalue", "verdict", "n",
                "effect", "references_check", "caveats", "gates"):  # fmt: skip
        assert key in content
        assert hasattr(evidence, key)
    for broken in ("{", "[]", json.dumps({**content, "extra": 1})):
        with pytest.raises(InputError):
            Evidence.from_json(broken)
    with pytest.raises(InputError, match="does not exist or is no file"):
        Evidence.read(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot write"):
        evidence.write(path / "below-a-file.json")


def test_many_tests_are_one_table(data):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    rerun, *siblings = (
        Scores.from_arrays(loglik=rng.normal(-2, 0.1, (3, 5)), name=f"m{i}") for i in range(4)
    )
    found = [
        _test(data),
        _test(data, "independent"),
        reshuffle_test(rerun, siblings, procedure="only the order differs", alpha=0.05),
    ]
    table = pd.concat([one.to_frame() for one in found], ignore_index=True)
    assert len(table) == len(found)
    for name in ("test", "verdict", "statistic", "z", "pvalue", "pvalue_exact", "n", "seed"):
        assert table[name].tolist() == [getattr(one, name) for one in found], name
    assert table.effect.tolist() == [one.effect.difference for one in found]
    assert table.suspect.tolist() == [one.suspect["label"] for one in found]
    assert table.smallest_effect.isna().tolist() == [False, False, True]
    assert table.pvalue_model.isna().tolist() == [True, True, False]
    assert table.transcript[2] is None or pd.isna(table.transcript[2])


def test_names_are_escaped_in_html(data):
    hostile = "<script>alert(1)</script>"
    suspect = Scores.from_arrays(
        loglik=data["derivative"].loglik_mean, name=hostile, transcript=data["transcript"]
    )
    evidence = query_test(data["transcript"], suspect, n_resamples=99)
    assert "<script" not in evidence._repr_html_()
    assert "&lt;/script&gt;" in evidence._repr_html_() or "script&gt;" in evidence._repr_html_()


def test_gates_of_the_query_test_are_printed(data):
    evidence = _test(data)
    assert {gate.number for gate in evidence.gates} == {1, 2, 3, 4, 5, 6}
    text = evidence.summary()
    for words in ("gate 1", "gate 2", "gate 4", "gate 6", "floor", "asymptotic p", "extrapolated"):
        assert words in text
    assert "who derived from whom" in text


def test_scores_from_elsewhere_may_have_been_measured_in_training_order(data):
    gates = {gate.number: gate for gate in _test(data).gates}
    assert gates[3].status == "declared"
    assert "scored the examples is not known" in gates[3].detail


def test_unbound_scores_and_duplicates_get_a_caveat(data):
    loose = Scores.from_arrays(loglik=data["derivative"].loglik_mean, name="loose")
    evidence = query_test(data["transcript"], loose, n_resamples=99)
    assert any("row number only" in caveat for caveat in evidence.caveats)
    doubled = Transcript.from_arrays(np.arange(40), texts=["same", *map(str, range(38)), "same"])
    scores = Scores.from_arrays(loglik=np.random.default_rng(0).normal(size=40), transcript=doubled)
    evidence = query_test(doubled, scores, n_resamples=99)
    assert any("1 of 40 examples repeat" in caveat for caveat in evidence.caveats)


BAD_SETTINGS = [
    ({"statistic": "pearson"}, "statistic 'pearson' is unknown"),
    ({"null": "bootstrap"}, "null 'bootstrap' is unknown"),
    ({"alternative": "up"}, "alternative 'up' is unknown"),
    ({"n_resamples": 0}, "from 1 and up to"),
    ({"alpha": 0}, "alpha is 0"),
    ({"smallest_effect": 2}, "smallest_effect is 2"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings(data, settings, message):
    with pytest.raises(InputError, match=message):
        _test(data, **settings)


def test_bad_company(data):
    with pytest.raises(InputError, match="have the same scores"):
        _test(data, references=("derivative",))
    window = Scores.from_arrays(
        loglik=data["reference"].loglik_mean,
        transcript=data["transcript"],
        identity=ScorerIdentity("arrays", "windowed", prefix=32, length=32),
    )
    with pytest.raises(InputError, match=r"scored on tokens 32 to 63"):
        query_test(data["transcript"], data["derivative"], [window])
    constant = Scores.from_arrays(loglik=np.ones(N), name="flat", transcript=data["transcript"])
    with pytest.raises(InputError, match="constant"):
        query_test(data["transcript"], constant, n_resamples=9)


def test_queries_needed_is_the_published_rule():
    assert queries_needed(0.1, 0.05, 0.8) == int(np.ceil((2.4865 / 0.1) ** 2))
    with pytest.raises(InputError):
        queries_needed(0, 0.05, 0.8)
