"""Designs learned, and nulls of a known shuffler, from the command line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from workbench import InputError, Scores, Transcript
from workbench.cli import app
from workbench.commitment import Commitment
from workbench.independence import Ledger
from workbench.independence.design import LearnedDesign
from workbench.pilot import plan_query
from workbench.shufflers import KnownShuffle
from workbench.verification import verify_bundle

N, SEED = 2000, 77123


def table(path, positions, seed):
    """Losses of a suspect that remembers one stretch of training, and of a reference."""
    rng = np.random.default_rng(seed)
    place = (positions + 0.5) / N
    easy = rng.normal(size=N)
    memory = 2.0 * ((place >= 0.6) & (place < 0.8))
    pq.write_table(
        pa.table(
            {
                "index": positions,
                "tokens": list(rng.integers(0, 500, (N, 6))),
                "loss_bob": list((3 + easy - memory + 0.3 * rng.normal(size=N))[:, None]),
                "loss_ref": list((3 + easy + 0.3 * rng.normal(size=N))[:, None]),
            }
        ),
        path,
    )
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("designs")
    lab = np.random.default_rng(1).permutation(N)
    own = KnownShuffle("olmo", SEED, N).places(SEED)[0]
    return table(folder / "lab.parquet", lab, 2), table(folder / "own.parquet", own, 3)


def run(*arguments):
    takes = arguments[0] in ("test", "commit") and "--shuffler" not in arguments
    claim = ["--shuffle", "owner"] if takes else []
    return CliRunner().invoke(app, [*map(str, arguments), *claim, "--quiet"])


def failed(*arguments):
    error = run(*arguments).exception
    assert isinstance(error, InputError), error
    return str(error)


def test_a_design_is_learned_and_used_and_refused_on_its_own_order(tables, tmp_path):
    lab, own = tables
    design, found = tmp_path / "design.json", tmp_path / "e.json"
    models = ("--derivative", "loss:bob", "--reference", "loss:ref")
    result = run("design", "fit", "--transcript", lab, "--under-test", own, *models,
                 "--queries", 100, "--out", design)  # fmt: skip
    assert result.exit_code == 0, result.exception
    learned = LearnedDesign.from_json(design.read_text(encoding="utf-8"))
    assert learned.windows.late == (0.6, 0.8)
    assert "late 0.6-0.8" in result.output
    test = ("test", "pairs", "--suspect", "loss:bob", "--reference", "loss:ref", "--queries", 100,
            "--design", design)  # fmt: skip
    result = run(*test, "--transcript", own, "--json", found)
    assert result.exit_code == 0, result.exception
    assert "learned on another transcript" in found.read_text(encoding="utf-8")
    assert "learned on the order of" in failed(*test, "--transcript", lab)
    assert "learned on the order of" in failed(
        "design", "fit", "--transcript", lab, "--under-test", lab, *models, "--out", design
    )
    missing = [*test[:-1], tmp_path / "none.json", "--transcript", own]
    assert "does not exist or is no file" in failed(*missing)


def test_the_null_of_a_known_shuffler(tables, tmp_path):
    lab, own = tables
    found = tmp_path / "e.json"
    test = ("test", "query", "--suspect", "loss:bob", "--n-resamples", 199, "--shuffler", "olmo",
            "--seed-drawn")  # fmt: skip
    result = run(*test, "--transcript", own, "--shuffle-seed", SEED, "--json", found)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    content = json.loads(found.read_text(encoding="utf-8"))
    assert "olmo" in json.dumps(content["details"])
    assert str(SEED) in json.dumps(content["details"])
    assert "rows differ in rank" in failed(*test, "--transcript", lab, "--shuffle-seed", SEED)
    assert "rows differ in rank" in failed(*test, "--transcript", own, "--shuffle-seed", SEED + 1)
    assert "--shuffle-seed" in failed(*test, "--transcript", own)
    plain = ("test", "query", "--suspect", "loss:bob", "--transcript", own)
    assert "add --shuffler" in failed(*plain, "--seed-drawn")


def test_evidence_says_how_its_rows_were_chosen(tables, tmp_path):
    own, out, planned = tables[1], tmp_path / "e.json", tmp_path / "plan.json"
    transcript, rng = Transcript.read(own), np.random.default_rng(4)
    bob = Scores.from_arrays(loglik=transcript.positions + 900 * rng.normal(size=N))
    plan_query(transcript, bob, pilot=100, seed=6).write(planned)
    test = ("test", "query", "--transcript", own, "--suspect", "loss:bob", "--n-resamples", 99,
            "--json", out)  # fmt: skip
    for options, selection in (
        ((), None),
        (("--subsample", 300, "--seed", 8), {"how": "random sample", "of": N, "seed": 8}),
        (("--plan", planned), {"how": "plan", "of": N, "seed": 6}),
    ):
        assert run(*test, *options).exit_code in (0, 3)
        content = json.loads(out.read_text(encoding="utf-8"))
        assert content["transcript"].get("selection") == selection
        assert not [gate for gate in content["gates"] if gate["name"] == "choices"]


def test_what_a_commitment_does_not_know_is_refused_with_it(tables, tmp_path):
    _, own = tables
    fixed, salt = tmp_path / "c.json", tmp_path / "s.salt"
    made = run("commit", "--transcript", own, "--out", fixed, "--salt-file", salt)
    assert made.exit_code == 0, made.exception
    test = ("test", "query", "--transcript", own, "--suspect", "loss:bob", "--commitment", fixed,
            "--salt-file", salt)  # fmt: skip
    said = failed(*test, "--shuffler", "olmo", "--seed-drawn")
    assert "shuffler is committed as none and given as olmo" in said
    assert "weights is committed as none" in failed(*test, "--weights", tmp_path / "w.json")


# ------------------------------------------------------------------------------- committed designs


@pytest.fixture(scope="module")
def committed(tables, tmp_path_factory):
    """Pairs committed, tested and bundled; a sequential test committed."""
    _, own = tables
    folder = tmp_path_factory.mktemp("committed")
    models = ("--transcript", own, "--reference", "loss:ref")
    designed = ("--design", "midlate-vs-early", "--queries", 160, "--filter", "hardest-50")
    test = (*models, "--suspect", "loss:bob", "--commitment", folder / "c.json", "--salt-file",
            folder / "c.salt")  # fmt: skip
    for command in (
        ("commit", *models, *designed, "--n-resamples", 499, "--seed", 4, "--out",
         folder / "c.json", "--salt-file", folder / "c.salt"),
        ("test", "pairs", *test, "--json", folder / "e.json", "--design-json", folder / "d.json"),
        ("bundle", *test, "--evidence", folder / "e.json", "--out", folder / "b.zip"),
        ("commit", *models, *designed, "--seed", 4, "--sequential", "--batch", 8, "--out",
         folder / "s.json", "--salt-file", folder / "s.salt"),
    ):  # fmt: skip
        done = run(*command)
        assert done.exit_code == 0, (command[:2], done.exception)
    return folder, models, test


def test_pairs_are_committed_tested_bundled_and_verified(committed):
    folder, _, _ = committed
    content = json.loads((folder / "e.json").read_text())
    fixed = Commitment.read(folder / "c.json")
    assert content["commitment"]["sha256"] == fixed.sha256
    assert content["verdict"] == "evidence"
    found = verify_bundle(folder / "b.zip")
    assert found.ok
    status = {f.name: f.status for f in found.findings}
    assert status["chosen pairs"] == status["certified p"] == "matches"
    assert status["filter"] == "cannot be checked"


def test_windows_are_compared_committed_and_kept_to(tables, tmp_path):
    models = ("--transcript", tables[1], "--reference", "loss:ref")
    windows = ("--compare", "windows")
    designed = ("--design", "midlate-vs-early", "--queries", 120, "--seed", 4)
    test = ("test", "pairs", *models, "--suspect", "loss:bob", "--json", tmp_path / "e.json")
    done = run(*test, *designed, *windows, "--design-json", tmp_path / "d.json")
    assert done.exit_code == 0, done.exception
    assert "rank sum of 60 late units against 60 early ones" in done.output
    plain = json.loads((tmp_path / "e.json").read_text())
    paths = ("--out", tmp_path / "c.json", "--salt-file", tmp_path / "c.salt")
    done = run("commit", *models, *designed, *windows, *paths)
    assert done.exit_code == 0, done.exception
    committed = (*test, "--commitment", tmp_path / "c.json", "--salt-file", tmp_path / "c.salt")
    for options in ((), windows):
        done = run(*committed, *options)
        assert done.exit_code == 0, done.exception
        content = json.loads((tmp_path / "e.json").read_text())
        assert content["pvalue"] == plain["pvalue"]
    said = failed(*committed, "--compare", "pairs")
    assert "compare is committed as windows and given as pairs" in said
    paths = ("--out", tmp_path / "f.json", "--salt-file", tmp_path / "f.salt")
    done = run("commit", *models, "--design-file", tmp_path / "d.json", "--seed", 4, *paths)
    assert done.exit_code == 0, done.exception
    fixed = [Commitment.read(tmp_path / name) for name in ("c.json", "f.json")]
    assert fixed[0].design == fixed[1].design
    assert "choose one of pairs, windows" in failed(*test, *designed, "--compare", "all")
    said = failed("commit", *models, *designed, *windows, "--sequential", *paths[:1],
                  tmp_path / "s.json", "--salt-file", tmp_path / "s.salt")  # fmt: skip
    assert "goes pair by pair" in said


PAIR_DEVIATIONS = {
    "--design": ("late-vs-early", "design is committed as midlate-vs-early"),
    "--queries": (200, "queries is committed as 160 and given as 200"),
    "--filter": ("hardest-30", "filter is committed as hardest-50 and given as hardest-30"),
    "--statistic": ("residual", "statistic is committed as spearman and given as residual"),
    "--reference": ("loss:bob", "the number of scores that the filter looks at is committed as 1"),
    "--alpha": (0.01, "alpha is committed as 0.001 and given as 0.01"),
    "--seed": (5, "seed is committed as 4 and given as 5"),
}


@pytest.mark.parametrize("option", list(PAIR_DEVIATIONS))
def test_tests_of_pairs_that_deviate_are_refused(committed, option):
    folder, models, test = committed
    value, message = PAIR_DEVIATIONS[option]
    sequential = (*models, "--suspect", "loss:bob", "--commitment", folder / "s.json")
    for command in (("test", "pairs", *test), ("test", "sequential", *sequential)):
        said = failed(*command, option, value)
        assert message in said
        assert "\n" not in said


def test_a_committed_sequential_test_is_run_as_committed(committed, tmp_path):
    folder, models, test = committed
    sequential = (*models, "--suspect", "loss:bob", "--commitment", folder / "s.json")
    done = run("test", "sequential", *sequential, "--json", tmp_path / "e.json")
    assert done.exit_code == 0, done.exception
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["commitment"]["sha256"] == Commitment.read(folder / "s.json").sha256
    assert content["details"]["anytime"]["queries"][0] == 16
    said = failed("test", "sequential", *sequential, "--batch", 16)
    assert "batch is committed as 8 and given as 16" in said
    assert "committed as pairs and given as sequential" in failed(
        "test", "sequential", *models, "--suspect", "loss:bob", "--commitment", folder / "c.json"
    )
    assert "committed as pairs and given as query" in failed("test", "query", *test)
    assert "when it was stopped" in failed(
        "bundle", *models, "--suspect", "loss:bob", "--commitment", folder / "s.json",
        "--salt-file", folder / "s.salt", "--evidence", tmp_path / "e.json", "--out",
        tmp_path / "b.zip",
    )  # fmt: skip


def test_designs_of_a_file_are_committed(committed, tables, tmp_path):
    folder, models, _ = committed
    out = ("--out", tmp_path / "c.json", "--salt-file", tmp_path / "c.salt")
    done = run("commit", *models, "--design-file", folder / "d.json", *out)
    assert done.exit_code == 0, done.exception
    again = Commitment.read(tmp_path / "c.json")
    assert again.design == Commitment.read(folder / "c.json").design
    lab, own = tables
    learned = tmp_path / "learned.json"
    run("design", "fit", "--transcript", lab, "--under-test", own, "--derivative", "loss:bob",
        "--reference", "loss:ref", "--out", learned)  # fmt: skip
    out = ("--out", tmp_path / "l.json", "--salt-file", tmp_path / "l.salt")
    done = run("commit", *models, "--design", learned, "--queries", 100, *out)
    assert done.exit_code == 0, done.exception
    test = ("test", "pairs", *models, "--suspect", "loss:bob", "--commitment", tmp_path / "l.json",
            "--salt-file", tmp_path / "l.salt", "--design")  # fmt: skip
    done = run(*test, learned)
    assert done.exit_code == 0, done.exception
    learned.write_text(learned.read_text().replace('"learned_on": "', '"learned_on": "0'))
    assert "design is committed as windows and given as the learned one" in failed(*test, learned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--queries", 9), "--queries is of a design"),
        (("--compare", "windows"), "--compare is of a design"),
        (("--design-file", "y", "--compare", "windows"), "brings its own"),
        (("--sequential",), "--sequential is of a design"),
        (("--design", "late-vs-early"), "add --queries"),
        (("--design", "late-vs-early", "--queries", 9, "--batch", 2), "--batch is of a sequential"),
        (("--design", "late-vs-early", "--queries", 9, "--subsample", 2), "leave out --subsample"),
        (("--design", "uniform", "--queries", 9), "has no pairs"),
        (("--design", "x", "--design-file", "y"), "two designs"),
        (("--design-file", "y", "--queries", 9), "brings its own"),
        (("--design-file", "absent.json"), "does not exist or is no file"),
    ],
)
def test_options_of_a_design_that_do_not_fit_are_refused(tables, tmp_path, options, message):
    said = failed("commit", "--transcript", tables[1], *options, "--out", tmp_path / "c.json",
                  "--salt-file", tmp_path / "c.salt")  # fmt: skip
    assert message in said
    assert not (tmp_path / "c.salt").exists()


def test_a_committed_test_is_entered_in_a_ledger(tables, tmp_path):
    _, own = tables
    models, ledger = ("--transcript", own, "--reference", "loss:ref"), tmp_path / "l.jsonl"
    run("test", "query", *models, "--suspect", "loss:bob", "--n-resamples", 499, "--ledger", ledger)
    paths = ("--out", tmp_path / "c.json", "--salt-file", tmp_path / "c.salt")
    run("commit", *models, "--n-resamples", 1999, "--alpha", 0.01, *paths)
    test = (*models, "--suspect", "loss:bob", "--commitment", tmp_path / "c.json", "--salt-file",
            tmp_path / "c.salt")  # fmt: skip
    for _ in range(2):  # the same test again keeps its number
        done = run("test", "query", *test, "--ledger", ledger, "--json", tmp_path / "e.json")
        assert done.exit_code == 0, done.exception
    fixed = Commitment.read(tmp_path / "c.json")
    entries = Ledger(ledger).entries
    assert [entry.settings.get("commitment") for entry in entries] == [None, fixed.sha256]
    assert f"committed {fixed.sha256[:12]}" in Ledger(ledger).summary().splitlines()[3]
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["commitment"]["sha256"] == fixed.sha256
    assert content["correction"]["number"] == 2
    assert content["correction"]["pvalue"] == entries[1].corrected > entries[1].pvalue
    assert "corrected p" in done.stdout
    refused = ("test", "query", *test, "--ledger", ledger)
    assert "alpha is committed as 0.01" in failed(*refused, "--alpha", 0.05)
    assert "number of references" in failed(*refused, "--reference", "loss:ref")
    assert len(Ledger(ledger).entries) == 2, "what was refused was never entered"
    bundle = ("bundle", *test, "--evidence", tmp_path / "e.json", "--out", tmp_path / "b.zip")
    done = run(*bundle)
    assert done.exit_code == 0, done.exception
    found = {f.name: f.status for f in verify_bundle(tmp_path / "b.zip").findings}
    assert found["corrected p"] == "matches"
    assert found["place in the ledger"] == "cannot be checked"
    content["correction"]["pvalue"] /= 2
    (tmp_path / "e.json").write_text(json.dumps(content))
    (tmp_path / "b.zip").unlink()
    assert "would not verify (corrected p" in failed(*bundle)


def test_committed_pairs_are_entered_in_a_ledger(committed, tmp_path):
    folder, models, test = committed
    ledger, out = tmp_path / "l.jsonl", tmp_path / "e.json"
    open_test = (*models, "--suspect", "loss:bob", "--ledger", ledger, "--json", out)
    done = run("test", "pairs", *open_test, "--queries", 200, "--compare", "windows")
    assert done.exit_code in (0, 3), done.exception  # entered, whatever it shows
    for _ in range(2):  # the same test again keeps its number
        done = run("test", "pairs", *test, "--ledger", ledger, "--json", out)
        assert done.exit_code in (0, 3), done.exception
    fixed, content = Commitment.read(folder / "c.json"), json.loads(out.read_text())
    entries = Ledger(ledger).entries
    assert [entry.settings.get("commitment") for entry in entries] == [None, fixed.sha256]
    assert entries[0].settings["design"]["compare"] == "windows"
    assert content["correction"]["number"] == 2
    assert content["correction"]["pvalue"] == entries[1].corrected > entries[1].pvalue
    # What deviates is refused before it is counted.
    wrong = (*test[: test.index("loss:bob")], "loss:ref", *test[test.index("loss:bob") + 1 :])
    failed("test", "pairs", *wrong, "--ledger", ledger, "--alpha", 0.05)
    assert len(Ledger(ledger).entries) == 2
    done = run("bundle", *test, "--evidence", out, "--out", tmp_path / "b.zip")
    assert done.exit_code == 0, done.exception
    assert verify_bundle(tmp_path / "b.zip").ok
