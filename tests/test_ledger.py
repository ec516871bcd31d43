"""The open ledger: numbers that stay, many writers, crashes, hostile files."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from workbench import Evidence, InputError, Scores, Transcript
from workbench.independence import Ledger, PairCase, QueryCase, design_queries, pair_test
from workbench.independence.corrections import open_ledger_factor
from workbench.verdicts import decisive_pvalue

N = 200


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(5)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(order, tokens=rng.integers(0, 99, (N, 6)), shuffle="owner")
    easy = rng.normal(size=N)
    models = {
        name: Scores.from_arrays(
            loglik=easy + memory * order / N + 0.3 * rng.normal(size=N),
            name=name,
            transcript=transcript,
        )
        for name, memory in (("suspect", 2.0), ("stranger", 0.0), ("reference", 0.0))
    }
    return transcript, models


def _case(run, suspect="suspect", rows=None, **settings):
    transcript, models = run
    settings = {"n_resamples": 1999, "alpha": 0.05, **settings}
    scores, reference = models[suspect], models["reference"]
    if rows is not None:
        transcript = transcript.take(rows)
        scores, reference = scores.take(rows), reference.take(rows)
    return QueryCase(transcript, scores, [reference], settings)


def test_numbers_count_up_and_stay(run, tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl", run[0])
    first = ledger.test(_case(run))
    others = [
        _case(run, seed=1),
        _case(run, alternative="two-sided"),
        _case(run, statistic="residual"),
        _case(run, n_resamples=999),
        _case(run, "stranger"),
        _case(run, rows=np.arange(150)),
    ]
    found = [ledger.test(case) for case in others]
    assert [e.correction.number for e in (first, *found)] == [1, 2, 3, 4, 5, 6, 7]
    for evidence in (first, *found):
        factor = open_ledger_factor(evidence.correction.number)
        assert evidence.correction.pvalue == min(1.0, decisive_pvalue(evidence) * factor)
        assert evidence.correction.method == "open ledger"
    again = ledger.test(_case(run, alpha=0.01, smallest_effect=0.2))
    assert again.correction.pvalue == first.correction.pvalue
    assert len(ledger.entries) == 7
    assert ledger.entries[0].corrected == first.correction.pvalue


def test_designed_pairs_are_counted_with_the_others(run, tmp_path):
    transcript, models = run
    ledger = Ledger(tmp_path / "l.jsonl", transcript)
    ledger.test(_case(run))
    settings = {"n_resamples": 1999, "alpha": 0.05}

    def pairs(seed=0, design="late-vs-early", **changed):
        made = design_queries(transcript, 40, design, seed=seed)
        return PairCase(made, models["suspect"], [models["reference"]], {**settings, **changed})

    cases = [pairs(), pairs(seed=1), pairs(design="midlate-vs-early")]
    cases.append(PairCase(cases[0].design, models["suspect"], (), settings))
    found = [ledger.test(case) for case in cases]
    assert [e.correction.number for e in found] == [2, 3, 4, 5]
    alone = pair_test(
        transcript, models["suspect"], [models["reference"]], cases[0].design, **settings
    )
    assert found[0].pvalue == alone.pvalue
    assert found[0].correction.pvalue == min(1.0, alone.pvalue * open_ledger_factor(2))
    assert ledger.test(pairs(alpha=0.01)).correction.number == 2  # a threshold is no other test
    # Scores of what was asked are the same measurement as scores of everything.
    rows = cases[0].design.rows
    few = PairCase(
        cases[0].design, models["suspect"].take(rows), [models["reference"].take(rows)], settings
    )
    assert few.key == cases[0].key
    assert "design=late-vs-early" in ledger.summary()
    with pytest.raises(InputError, match="no setting 'null'"):
        PairCase(cases[0].design, models["suspect"], (), {"null": "permutation"})


@pytest.mark.parametrize("compare", ["pairs", "windows"])
def test_a_certified_p_has_no_floor_in_a_ledger(compare, tmp_path):
    """A certified p of 1e-9 is evidence as the third test, however few flips stand beside it."""
    rng = np.random.default_rng(7)
    order = rng.permutation(400)
    transcript = Transcript.from_arrays(order, shuffle="owner")
    suspect = Scores.from_arrays(loglik=6 * order / 400 + rng.normal(size=400), name="suspect")
    ledger = Ledger(tmp_path / "l.jsonl", transcript)
    for seed in range(3):
        design = design_queries(transcript, 120, seed=seed, compare=compare)
        found = ledger.test(PairCase(design, suspect, (), {"n_resamples": 999}))
    assert found.pvalue < 1e-8
    assert found.pvalue_floor * open_ledger_factor(3) > found.alpha
    assert found.correction.pvalue == found.pvalue * open_ledger_factor(3)
    assert (found.correction.floor, found.verdict) == (0, "evidence")
    stranger = Scores.from_arrays(loglik=rng.normal(size=400), name="stranger")
    missed = ledger.test(PairCase(design, stranger, (), {"n_resamples": 999}))
    assert missed.verdict == "no evidence"
    words = {"pairs": "pairs would find", "windows": "queries would find"}[compare]
    assert (words in missed.verdict_reason) == (missed.z > 0)
    assert "permutations" not in missed.verdict_reason


def test_what_no_ledger_can_show_is_said(run, tmp_path):
    found = Ledger(tmp_path / "l.jsonl", run[0]).test(_case(run))
    gate = next(gate for gate in found.gates if gate.name == "many tests")
    assert gate.status == "declared"
    for said in (gate.detail, " ".join(found.caveats)):
        assert "if each test was chosen without a look at scores against positions" in said
        assert "is as many tests as it could have become" in said


def test_another_measurement_of_the_same_model_is_another_test(run, tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl", run[0])
    case = _case(run)
    ledger.test(case)
    moved = replace(case.suspect, loglik_sum=case.suspect.loglik_sum + 1e-9)
    assert ledger.test(replace(case, suspect=moved)).correction.number == 2


def test_the_verdict_rests_on_the_corrected_p(run, tmp_path):
    """What is evidence alone, at twice its p-value, is none as the fifth test."""
    alpha = 2 * decisive_pvalue(_case(run).run())
    alone = _case(run, alpha=alpha).run()
    assert alone.verdict == "evidence"
    ledger = Ledger(tmp_path / "l.jsonl", run[0])
    for seed in range(4):
        ledger.test(_case(run, "stranger", seed=seed))
    fifth = ledger.test(_case(run, alpha=alpha))
    assert fifth.pvalue == alone.pvalue
    assert fifth.correction.pvalue == decisive_pvalue(alone) * open_ledger_factor(5)
    assert fifth.verdict == "no evidence"
    assert "test 5 of the open ledger" in fifth.summary()
    assert any("no other ledger" in caveat for caveat in fifth.caveats)
    assert Evidence.from_json(fifth.to_json()) == replace(fifth, distribution=None)


def test_evidence_without_a_correction_is_written_as_before(run):
    content = json.loads(_case(run).run().to_json())
    assert "correction" not in content
    assert Evidence.from_json(json.dumps(content)).correction is None
    content["colour"] = "red"
    with pytest.raises(InputError, match="colour"):
        Evidence.from_json(json.dumps(content))


def test_false_alarms_of_twenty_tests_that_arrive_one_after_another(run, tmp_path):
    """Whole ledgers of strangers: at most α of them ever hold a verdict of evidence."""
    rng = np.random.default_rng(6)
    trials, alpha, alarms = 15, 0.2, 0
    one = replace(_case(run, "stranger", n_resamples=9999).run(), alpha=alpha, details={})
    for trial in range(trials):
        ledger = Ledger(tmp_path / f"{trial}.jsonl", run[0])
        verdicts = [
            # a p-value as it is under the null, in evidence whose gates pass
            ledger.run({"k": k}, lambda: replace(one, pvalue=rng.integers(1, 10001) / 10000))
            for k in range(20)
        ]
        alarms += any(evidence.verdict == "evidence" for evidence in verdicts)
    assert stats.binomtest(alarms, trials, alpha, "greater").pvalue > 0.001


def test_a_test_counts_from_before_it_is_run(run, tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl", run[0])

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run({"test": "looked at, then broken off"}, killed)
    assert ledger.entries[0].pvalue is None
    assert "open" in ledger.summary()
    assert ledger.test(_case(run)).correction.number == 2


def test_a_result_is_never_revised(run, tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl", run[0])
    case = _case(run, "stranger")
    ledger.test(case)
    better = replace(case.run(), pvalue=0.0005)
    with pytest.raises(InputError, match="never revised"):
        ledger.run(case.described, lambda: better)
    assert ledger.test(case).correction.number == 1


WRITER = """
import sys
import numpy as np
from workbench import Transcript
from workbench.independence import Ledger
path, name = sys.argv[1:]
ledger = Ledger(path, Transcript.from_arrays(np.arange(10)[::-1]))
print("ready", flush=True)
for k in range(1_000_000 if name == "endless" else 12):
    ledger.register({"who": name, "k": k})
"""


def _writer(path, name):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


def test_concurrent_writers_and_one_that_is_killed(tmp_path):
    path = tmp_path / "l.jsonl"
    writers = [_writer(path, name) for name in ("a", "b", "endless")]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            path.exists() and b'"endless"' in path.read_bytes()
        ):
            time.sleep(0.01)
        writers[2].send_signal(signal.SIGKILL)
        for writer in writers[:2]:
            assert writer.wait(60) == 0, writer.stderr.read()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    entries = Ledger(path).entries
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    for name in "ab":
        assert [e.settings["k"] for e in entries if e.settings["who"] == name] == list(range(12))
    assert any(entry.settings["who"] == "endless" for entry in entries)


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_last_line_cut_off_by_a_crash_is_dropped(run, tmp_path, cut):
    path = tmp_path / "l.jsonl"
    ledger = Ledger(path, run[0])
    for k in range(3):
        ledger.register({"k": k})
    path.write_bytes(path.read_bytes()[:-cut])
    assert [entry.settings["k"] for entry in Ledger(path).entries] == [0, 1]
    assert ledger.register({"k": 7}) == 3
    assert [entry.settings["k"] for entry in ledger.entries] == [0, 1, 7]


def test_another_transcript_is_refused(run, tmp_path):
    transcript, models = run
    path = tmp_path / "l.jsonl"
    Ledger(path, transcript).register({"k": 0})
    rng = np.random.default_rng(0)
    other = Transcript.from_arrays(rng.permutation(N))
    with pytest.raises(InputError, match="ledger of another transcript"):
        Ledger(path, other)
    stray = QueryCase(other, Scores.from_arrays(loglik=models["suspect"].loglik_mean))
    with pytest.raises(InputError, match="are not rows of"):
        Ledger(path, transcript).test(stray)
    with pytest.raises(InputError, match="opened to be read"):
        Ledger(path).register({"k": 1})
    with pytest.raises(InputError, match="are not JSON"):
        Ledger(path, transcript).register({"k": float("nan")})


def _lines(run, tmp_path):
    path = tmp_path / "l.jsonl"
    ledger = Ledger(path, run[0])
    for seed in range(3):
        ledger.test(_case(run, "stranger", seed=seed, n_resamples=99))
    return path, path.read_bytes().splitlines(keepends=True)


HOSTILE = {
    "a smaller p": lambda lines: [
        lines[0],
        *(line.replace(b'"pvalue":0.', b'"pvalue":0.00', 1) for line in lines[1:]),
    ],
    "a test removed": lambda lines: lines[:2] + lines[4:],
    "the first removed": lambda lines: lines[2:],
    "lines exchanged": lambda lines: [lines[2], lines[3], *lines[:2], *lines[4:]],
    "a line twice": lambda lines: [lines[0], *lines],
    "not JSON": lambda lines: [b"hello\n"],
    "binary": lambda lines: [bytes(range(256)), b"\n"],
    "nested": lambda lines: [b"[" * 100_000 + b"\n"],
    "another JSON": lambda lines: [b'{"event": "registered"}\n'],
    "not a number": lambda lines: [lines[0], lines[1].replace(b'"pvalue":0.', b'"pvalue":NaN0.')],
    "an escape": lambda lines: [b'{"event":"\\u001b[2J","number":1}\n'],
    "a long line": lambda lines: [b'{"a":"' + b"x" * 2**19 + b'"}\n'],
    "an empty line": lambda lines: [lines[0], b"\n", *lines[1:]],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_ledgers_are_refused_in_one_sentence(run, tmp_path, name):
    path, lines = _lines(run, tmp_path)
    assert len(lines) == 6
    path.write_bytes(b"".join(HOSTILE[name](lines)))
    with pytest.raises(InputError, match="only ever appended to") as caught:
        Ledger(path, run[0])
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.isprintable()
    assert len(said) < 500 + len(str(path))


def test_a_rebuilt_chain_still_has_to_add_up(run, tmp_path):
    """Hashes made anew do not help a result whose corrected p is not its number's."""
    import hashlib

    path, lines = _lines(run, tmp_path)
    content = json.loads(lines[-1])
    content["corrected"] = content["pvalue"]
    path.write_bytes(b"".join(lines[:-1]) + json.dumps(content).encode() + b"\n")
    with pytest.raises(InputError, match="its number does not give"):
        Ledger(path)
    content = json.loads(lines[2])
    content["settings"]["seed"] = 77
    content["previous"] = hashlib.sha256(lines[1].rstrip(b"\n")).hexdigest()
    path.write_bytes(b"".join(lines[:2]) + json.dumps(content).encode() + b"\n")
    with pytest.raises(InputError, match="not its settings'"):
        Ledger(path)


def test_a_result_and_its_correction_changed_together_break_the_chain(run, tmp_path):
    path, lines = _lines(run, tmp_path)
    for place, change in ((1, {"pvalue": 1e-4}), (0, {"when": "2020-01-01T00:00:00+00:00"})):
        content = {**json.loads(lines[place]), **change}
        if "pvalue" in change:
            content["corrected"] = content["pvalue"] * open_ledger_factor(content["number"])
        altered = json.dumps(content, separators=(",", ":")).encode() + b"\n"
        path.write_bytes(b"".join([*lines[:place], altered, *lines[place + 1 :]]))
        with pytest.raises(InputError, match=f"line {place + 2} does not follow"):
            Ledger(path)


def test_the_head_tells_one_history_from_another(run, tmp_path):
    """Lines missing at the end are found by whoever kept the head."""
    path, lines = _lines(run, tmp_path)
    head = Ledger(path).head
    path.write_bytes(b"".join(lines[:-1]))
    assert Ledger(path).head != head
    assert Ledger(path).entries[-1].pvalue is None


def test_no_file_and_no_place_to_write(run, tmp_path):
    with pytest.raises(InputError, match="is no file"):
        Ledger(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        Ledger("/proc/none/ledger.jsonl", run[0]).register({"k": 0})
    assert "no tests are entered" in Ledger(tmp_path / "new.jsonl").summary()


def test_unknown_settings_are_refused(run):
    with pytest.raises(InputError, match="no setting 'colour'"):
        _case(run, colour="red")
