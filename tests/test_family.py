"""A family closed in advance: Holm over evidence, and no way to let it grow."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, Scores, Transcript
from workbench.evidence import Evidence
from workbench.independence import QueryCase, design_queries, family_test, holm, pair_test
from workbench.verdicts import decisive_pvalue

N = 300


@pytest.fixture(scope="module")
def cases():
    """Two suspects, two orders: a derivative of the first order, and a stranger."""
    rng = np.random.default_rng(8)
    orders = [rng.permutation(N) for _ in range(2)]
    easy = rng.normal(size=N)
    memory = {"derivative": 2.0, "stranger": 0.0}
    scores = {
        name: Scores.from_arrays(
            loglik=easy + m * orders[0] / N + 0.3 * rng.normal(size=N), name=name
        )
        for name, m in memory.items()
    }
    reference = Scores.from_arrays(loglik=easy + 0.3 * rng.normal(size=N), name="reference")
    return {
        (name, f"run {k}"): QueryCase(
            Transcript.from_arrays(order, shuffle="owner"),
            scores[name],
            [reference],
            {"n_resamples": 3999},
        )
        for k, order in enumerate(orders)
        for name in scores
    }


def test_holm_decides_over_the_whole_family(cases):
    done = []
    family = family_test("audit", cases, progress=done.append)
    raw = [decisive_pvalue(case.run()) for case in cases.values()]
    assert list(family.corrected.values()) == pytest.approx(holm(raw).tolist())
    assert done == [1, 1, 1, 1]
    verdicts = {name: found.verdict for name, found in family.evidence.items()}
    assert verdicts.pop(("derivative", "run 0")) == "evidence"
    assert set(verdicts.values()) == {"no evidence"}
    hit = family.evidence["derivative", "run 0"]
    assert hit.pvalue == 1 / 4000
    assert hit.correction.pvalue == 4 * decisive_pvalue(hit) < 1e-20
    assert "raw 0.00025 (proven " in hit.verdict_reason
    assert "closed in advance" in hit.summary()
    assert Evidence.from_json(hit.to_json()).correction == hit.correction
    assert "derivative × run 0" in repr(family)
    assert "exploratory" in str(family.explore())


def test_false_alarms_of_families_of_strangers():
    """Families of four tests of one order by query_test itself; any alarm in at most α of them."""
    rng = np.random.default_rng(9)
    trials, alpha, alarms = 30, 0.05, 0
    for _ in range(trials):
        transcript = Transcript.from_arrays(rng.permutation(30), shuffle="owner")
        family = family_test(
            "strangers",
            {
                f"m{k}": QueryCase(
                    transcript,
                    Scores.from_arrays(loglik=rng.normal(size=30), name=f"m{k}"),
                    settings={"n_resamples": 99, "alpha": alpha},
                )
                for k in range(4)
            },
        )
        alarms += any(found.verdict == "evidence" for found in family.evidence.values())
    assert stats.binomtest(alarms, trials, alpha, "greater").pvalue > 0.001


def _gate(found):
    return next(gate for gate in found.gates if gate.name == "many tests")


def test_a_family_is_fixed_by_a_file_that_was_there_before(cases, tmp_path):
    """Without one nothing says that its tests were not picked from many."""
    path, few = tmp_path / "family.json", dict(list(cases.items())[:2])
    for closed in (None, path):  # the second call writes the file
        for found in family_test("audit", few, closed=closed).evidence.values():
            assert _gate(found).status == "declared"
            assert _gate(found).detail in found.caveats
            assert "rests on the caller's word" in _gate(found).detail
    for found in family_test("audit", few, closed=path).evidence.values():
        assert _gate(found).status == "verified"
        assert "which a file fixed before this run" in _gate(found).detail


def test_each_test_of_a_family_has_its_own_floor(cases):
    """A certified p has none, and lends none to the others."""
    rng = np.random.default_rng(10)
    order = rng.permutation(400)
    transcript = Transcript.from_arrays(order, shuffle="owner")
    suspect = Scores.from_arrays(loglik=6 * order / 400 + rng.normal(size=400), name="suspect")
    pairs = pair_test(transcript, suspect, [], design_queries(transcript, 120), n_resamples=999)
    query = replace(cases["derivative", "run 0"], settings={"n_resamples": 999})
    stranger = replace(cases["stranger", "run 0"], settings={"n_resamples": 999})
    family = family_test("audit", {"pairs": pairs, "query": query, "stranger": stranger})
    floors = {name: found.correction.floor for name, found in family.evidence.items()}
    # the certified p is the smallest, so that the others count twice at most
    assert floors["pairs"] == 0
    assert 0 < floors["query"] < 1e-40  # 150 coins, and twice at most
    assert {name: found.verdict for name, found in family.evidence.items()} == {
        "pairs": "evidence", "query": "evidence", "stranger": "no evidence"
    }  # fmt: skip


def test_a_closed_family_takes_no_more_tests(cases, tmp_path):
    """The gate that stops Holm from being recomputed as tests arrive."""
    path = tmp_path / "family.json"
    two = dict(list(cases.items())[:2])
    family = family_test("audit", two, closed=path)
    with pytest.raises(InputError, match="is closed, so derivative × run 1 cannot be added"):
        family.add(("derivative", "run 1"), cases["derivative", "run 1"])
    with pytest.raises(InputError, match=r"with 2 test\(s\).* open ledger"):
        family_test("audit", cases, closed=path)
    one = dict(list(cases.items())[:1])
    with pytest.raises(InputError, match="is not as it was"):
        family_test("audit", one, closed=path)
    with pytest.raises(InputError, match="a file of its own"):
        family_test("other", two, closed=path)
    assert family_test("audit", two, closed=path).corrected == family.corrected


def test_a_family_is_closed_before_its_first_test(cases, tmp_path, monkeypatch):
    path = tmp_path / "family.json"

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(QueryCase, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        family_test("audit", cases, closed=path)
    assert len(json.loads(path.read_text())["tests"]) == 4


def test_evidence_at_hand_carries_a_caveat(cases):
    made = {name: case.run() for name, case in cases.items()}
    family = family_test("audit", made)
    for found in family.evidence.values():
        assert any("rests on the caller's word" in c and "closed" in c for c in found.caveats)
    with pytest.raises(InputError, match="corrected already"):
        family_test("again", family.evidence)


def test_bad_families_are_one_sentence(cases, tmp_path):
    name, case = next(iter(cases.items()))
    with pytest.raises(InputError, match="has no tests"):
        family_test("audit", {})
    with pytest.raises(InputError, match="one and the same test"):
        family_test("audit", {name: case, "again": case})
    low = QueryCase(case.transcript, case.suspect, settings={"alpha": 0.01})
    with pytest.raises(InputError, match="a family has one alpha"):
        family_test("audit", {name: case, "low": low})
    for number, text in enumerate(("no json", "[]", '{"format": 3}', "[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(InputError, match="closed family"):
            family_test("audit", {name: case}, closed=path)
