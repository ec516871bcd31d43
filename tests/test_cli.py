"""The command line: exit codes, clear errors, JSON keys. Scores come from columns, no model."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from typer.testing import CliRunner

import workbench
from workbench.cli import app
from workbench.scores import Scores
from workbench.statistics import PositionWeights

N = 1500


def declared(arguments):
    """With the claim that the tables here were shuffled at random, where a command takes one."""
    takes = arguments[0] in ("test", "commit") and "--shuffle" not in arguments
    return [*map(str, arguments), *(["--shuffle", "owner"] if takes else [])]


def palimpsest(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *declared(arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A published-style table: index, tokens, losses of three models."""
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    easy = rng.normal(size=(N, 7))
    memory = 0.6 * (order / N)[:, None]

    def losses(remembers):
        return list(3 + easy - remembers * memory + 0.2 * rng.normal(size=(N, 7)))

    path = tmp_path_factory.mktemp("table") / "t.parquet"
    pq.write_table(
        pa.table(
            {
                "index": order,
                "tokens": list(rng.integers(0, 99, (N, 8))),
                "loss_suspect": losses(1),
                "loss_other": losses(0),
                "loss_reference": losses(0),
            }
        ),
        path,
    )
    return path


def test_a_published_table_is_audited_in_one_line(table, tmp_path):
    out = tmp_path / "e.json"
    done = palimpsest(
        "test", "query", "--transcript", table, "--suspect", "loss:suspect",
        "--reference", "loss:reference", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "verdict                evidence" in done.stdout
    content = json.loads(out.read_text())
    assert content["verdict"] == "evidence"
    assert content["pvalue"] == content["pvalue_floor"] == 1e-4
    assert content["log10_pvalue"] < -8


def test_a_large_p_exits_with_0(table, tmp_path):
    out = tmp_path / "e.json"
    done = palimpsest(
        "test", "query", "--transcript", table, "--suspect", "loss:other",
        "--reference", "loss:reference", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(out.read_text())["verdict"] == "no evidence"


def test_a_table_that_says_nothing_of_its_order_is_not_valid_until_somebody_does(table, tmp_path):
    from workbench.cli.main import app

    out = tmp_path / "e.json"
    silent = ["test", "query", "--transcript", str(table), "--suspect", "loss:suspect",
              "--reference", "loss:reference", "--json", str(out), "--quiet"]  # fmt: skip
    done = CliRunner().invoke(app, silent)
    assert done.exit_code == 3
    content = json.loads(out.read_text())
    assert content["verdict"] == "not valid"
    assert content["pvalue"] == content["pvalue_floor"] == 1e-4  # its numbers are shown
    assert content["verdict_reason"].count("--shuffle owner") == 1
    for claim, status in (("owner", 0), ("natural", 3), ("unknown", 3)):
        assert CliRunner().invoke(app, [*silent, "--shuffle", claim]).exit_code == status


def test_a_cleared_model_exits_with_0(table):
    done = palimpsest(
        "test", "query", "--transcript", table, "--suspect", "loss:other",
        "--reference", "loss:reference", "--smallest-effect", "0.2",
    )  # fmt: skip
    assert done.returncode == 0
    assert "no evidence" in done.stdout


def test_statistics_and_weights_are_chosen_by_name(table, tmp_path):
    weights, out = tmp_path / "weights.json", tmp_path / "e.json"
    PositionWeights("rising", table=((0.0, 0.0), (1.0, 1.0))).write(weights)
    base = ["test", "query", "--transcript", table, "--suspect", "loss:suspect",
            "--reference", "loss:reference", "--json", out]  # fmt: skip
    done = palimpsest(*base, "--statistic", "max(residual, residual:capped)")
    assert done.returncode == 0, done.stderr
    choice = json.loads(out.read_text())["details"]["choice"]
    assert choice["among"] == ["residual", "residual:capped"]
    done = palimpsest(*base, "--statistic", "residual", "--weights", weights)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["details"]["weights"]["name"] == "rising"


BAD = {
    "bad statistic": (["--suspect", "loss:suspect", "--statistic", "best"], "'best' is unknown"),
    "bad weights": (["--suspect", "loss:suspect", "--weights", "absent.json"], "cannot be read"),
    "no file": (["--transcript", "absent.parquet", "--suspect", "loss:a"], "does not exist"),
    "no column": (["--suspect", "loss:nobody"], "nobody"),
    "bad role": (["--suspect", "loss:suspect", "--column", "colour=red"], "role=NAME"),
    "bad column": (["--suspect", "loss:suspect", "--column", "position=red"], "'red'"),
    "bad alpha": (["--suspect", "loss:suspect", "--alpha", "7"], "alpha is 7"),
    "bad alternative": (["--suspect", "loss:suspect", "--alternative", "up"], "'up' is unknown"),
    "natural seeds": (
        ["--suspect", "loss:suspect", "--shuffle", "published_shuffler"],
        "seed_bits",
    ),
    "subsample": (["--suspect", "loss:suspect", "--subsample", "9999"], "cannot draw 9999"),
    "unwritable": (["--suspect", "loss:suspect", "--json", "/proc/none/e.json"], "cannot write"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_sentence_and_exit_code_2(name, table):
    arguments, message = BAD[name]
    if "--transcript" not in arguments:
        arguments = ["--transcript", table, *arguments]
    done = palimpsest("test", "query", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_unknown_options_exit_with_2():
    done = palimpsest("test", "query", "--nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_names_every_command():
    text = palimpsest("--help", NO_COLOR="1", COLUMNS="120").stdout
    for command in (
        "lab",
        "sample",
        "score",
        "commit",
        "test",
        "bundle",
        "reveal",
        "verify",
        "report",
        "demo",
    ):
        assert command in text


def _commands(command, name="palimpsest"):
    yield name, command
    for inner, found in getattr(command, "commands", {}).items():
        yield from _commands(found, f"{name} {inner}")


def test_a_configuration_can_be_named_wherever_a_split_can():
    for name, command in _commands(typer.main.get_command(app)):
        options = {option.name for option in command.params}
        assert ("split" in options) == ("subset" in options), name


@pytest.mark.parametrize(("name", "command"), _commands(typer.main.get_command(app)))
def test_no_box_of_a_help_page_is_long(name, command):
    boxes = Counter(
        getattr(option, "rich_help_panel", None)
        for option in command.params
        if option.param_type_name == "option"
    )
    assert boxes.pop("Model behind an endpoint", 0) <= 17
    assert all(count <= 12 for count in boxes.values()), boxes
    inner = getattr(command, "commands", {}).values()
    assert len(inner) <= 10 or all(found.rich_help_panel for found in inner)


def test_the_version_is_said():
    done = here("--version")
    assert (done.returncode, done.stdout) == (0, f"palimpsest {workbench.__version__}\n")


def test_a_shell_can_complete():
    asked = {
        "_PALIMPSEST_COMPLETE": "complete_bash",
        "COMP_WORDS": "palimpsest sc",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'palimpsest'; from workbench.cli import app_main; app_main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | asked,
        check=True,
    )
    assert done.stdout.split() == ["score"]


def test_interruption_exits_with_130(monkeypatch, capsys):
    from workbench import cli

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.main, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.app_main()
    assert stopped.value.code == 130
    assert "finished work is kept" in capsys.readouterr().err


def test_lab_clean_needs_a_target():
    done = palimpsest("lab", "clean")
    assert done.returncode == 2
    assert "nothing to remove" in done.stderr


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A transcript of token ids, and texts that repeat its last part or nothing of it."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("texts")
    order = rng.permutation(800)
    rows = rng.integers(0, 300, (800, 12))
    pq.write_table(pa.table({"position": order, "tokens": list(rows)}), folder / "t.parquet")
    late = np.argsort(order)[500:]
    documents = {"bob": rows[late][:, 2:10], "else": rng.integers(0, 300, (100, 8))}
    for name, tokens in documents.items():
        pq.write_table(pa.table({"tokens": list(tokens)}), folder / f"{name}.parquet")
    (folder / "strings.jsonl").write_text('{"text": "some words"}\n')
    return folder


def test_partition_test_of_files(texts, tmp_path):
    out = tmp_path / "e.json"
    done = palimpsest(
        "test", "partition", "--transcript", texts / "t.parquet", "--texts", texts / "bob.parquet",
        "--placebo", texts / "else.parquet", "--json", out, "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert (content["test"], content["verdict"]) == ("partition", "evidence")
    assert content["details"]["engine"] == "join"
    ledger = tmp_path / "ledger.jsonl"
    for weight, number in (("inverse", 1), ("occurrences", 2), ("inverse", 1)):
        counted = here(
            "test", "partition", "--transcript", texts / "t.parquet", "--texts",
            texts / "bob.parquet", "--weight", weight, "--ledger", ledger, "--json", out, "--quiet",
        )  # fmt: skip
        assert counted.returncode == 0, counted.stderr
        assert json.loads(out.read_text())["correction"]["number"] == number
    other = here(
        "test", "partition", "--transcript", texts / "t.parquet", "--texts",
        texts / "else.parquet", "--statistic", "block-likelihood", "--n-blocks", "20", "--quiet",
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert "no evidence" in other.stdout


BAD_TEXTS = {
    "strings": (["partition", "--texts", "strings.jsonl"], "name the tokenizer|token ids"),
    "no texts": (["partition", "--texts", "absent.parquet"], "absent.parquet"),
    "weight": (["partition", "--texts", "bob.parquet", "--weight", "heavy"], "'heavy' is unknown"),
    "engine": (["partition", "--texts", "bob.parquet", "--engine", "steam"], "'steam' is unknown"),
    "too long": (["partition", "--texts", "bob.parquet", "--max-ngram", "99"], "max_ngram = 99"),
}


@pytest.mark.parametrize("name", list(BAD_TEXTS))
def test_bad_texts_are_one_sentence_and_exit_code_2(name, texts):
    import re

    arguments, message = BAD_TEXTS[name]
    named = [texts / a if a.endswith((".parquet", ".jsonl")) else a for a in arguments]
    done = here("test", *named, "--transcript", texts / "t.parquet", "--quiet")
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_sampling_twice_is_answered_from_the_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    out = tmp_path / "bob.parquet"
    pq.write_table(pa.table({"tokens": [[3, 4], [5, 6, 7]]}), tmp_path / "prompts.parquet")
    arguments = [
        "sample", "--model", tmp_path / "model", "--out", out, "--texts", "6", "--tokens", "8",
        "--prompts", tmp_path / "prompts.parquet", "--prompt-tokens", "2",
    ]  # fmt: skip
    done = palimpsest(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 documents, 48 tokens" in done.stdout
    before = out.stat().st_mtime_ns
    assert palimpsest(*arguments).returncode == 0
    assert out.stat().st_mtime_ns == before
    other = palimpsest(*arguments, "--seed", "1")
    assert other.returncode == 2
    assert "holds other texts" in other.stderr


def test_a_folder_s_model_has_the_name_that_is_given_and_quiet_is_quiet(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    tokens = list(rng.integers(0, 40, (60, 8)))
    pq.write_table(
        pa.table({"position": rng.permutation(60), "tokens": tokens}), tmp_path / "t.parquet"
    )
    named = ["--transcript", tmp_path / "t.parquet", "--label", "Bob's second", "--quiet"]
    done = palimpsest(
        "score", "--model", tmp_path / "model", "--out", tmp_path / "s.parquet", *named
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Scores.read(tmp_path / "s.parquet").label == "Bob's second"
    test = ["test", "query", *named, "--n-resamples", "99", "--json", tmp_path / "e.json"]
    done = palimpsest(*test, "--suspect", tmp_path / "model")
    assert done.returncode in (0, 3)
    assert done.stderr == ""
    assert json.loads((tmp_path / "e.json").read_text())["suspect"]["label"] == "Bob's second"
    done = here(*test, "--suspect", tmp_path / "s.parquet")
    assert (done.returncode, "label cannot apply" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lab", "siblings", "--recipe", "smoke", "--siblings", "1"), "--siblings is 1"),
        (("lab", "siblings", "--recipe", "nobody"), "'nobody' is unknown"),
        (("lab", "record", "--observations", "--out", "x.parquet"), "name a folder"),
    ],
    ids=str,
)
def test_lab_commands_refuse_bad_input(arguments, message):
    done = here(*arguments, "--quiet")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def here(*arguments):
    """The same command inside this process, which need not start anew each time."""
    from workbench import cli

    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["palimpsest", *declared(arguments)]),
        pytest.raises(SystemExit) as ended,
    ):
        cli.app_main()
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def committed(table, tmp_path_factory):
    """The walk of an audit: commit, test, bundle, reveal."""
    folder = tmp_path_factory.mktemp("committed")
    done = {
        "commit": here(
            "commit", "--transcript", table, "--reference", "loss:reference", "--seed", "5",
            "--n-resamples", "1999", "--smallest-effect", "0.1", "--out", folder / "c.json",
            "--salt-file", folder / "secret.salt", "--quiet",
        ),
        "test": here(
            "test", "query", "--transcript", table, "--suspect", "loss:suspect", "--reference",
            "loss:reference", "--commitment", folder / "c.json", "--salt-file",
            folder / "secret.salt", "--json", folder / "e.json",
        ),
        "bundle": here(
            "bundle", "--transcript", table, "--suspect", "loss:suspect", "--reference",
            "loss:reference", "--commitment", folder / "c.json", "--salt-file",
            folder / "secret.salt", "--evidence", folder / "e.json", "--out", folder / "b.zip",
            "--reveal", "3,10-12", "--quiet",
        ),
        "reveal": here(
            "reveal", "--transcript", table, "--commitment", folder / "c.json", "--salt-file",
            folder / "secret.salt", "--rows", "7", "--out", folder / "r.json", "--quiet",
        ),
    }  # fmt: skip
    for name, command in done.items():
        assert command.returncode == 0, (name, command.stderr)
    return folder, {name: command.stdout for name, command in done.items()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_commit_test_bundle_verify(committed):
    folder, said = committed
    assert said["commit"].startswith(sha256(folder / "c.json"))
    assert "self-dated" in said["commit"]
    content = json.loads((folder / "e.json").read_text())
    assert (content["seed"], content["n_resamples"], content["verdict"]) == (5, 1999, "evidence")
    assert content["commitment"]["sha256"] == sha256(folder / "c.json")
    assert said["bundle"].startswith(sha256(folder / "b.zip"))
    verified = here(
        "verify", folder / "b.zip", "--digest", sha256(folder / "b.zip"), "--reveal",
        folder / "r.json",
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("matches           revealed rows") == 2
    assert verified.stdout.endswith("nothing mismatches\n")
    other = here("verify", folder / "b.zip", "--digest", "0" * 64)
    assert other.returncode == 1
    assert "does not match    whole file" in other.stdout


def test_the_salt_stays_with_its_owner(committed):
    folder, said = committed
    path = folder / "secret.salt"
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text().splitlines()[1]
    for name in ("c.json", "e.json", "b.zip", "r.json"):
        data = (folder / name).read_bytes()
        assert secret.encode() not in data
        assert bytes.fromhex(secret) not in data
    assert not [name for name, text in said.items() if secret in text]


DEVIATIONS = {
    "seed": (["--seed", "6"], "seed is committed as 5 and given as 6"),
    "two": (["--alpha", "0.01", "--alternative", "less"],
            "alternative is committed as greater and given as less; alpha is committed as 0.001"),
    "a default": (["--n-resamples", "9999"], "n-resamples is committed as 1999"),
    "claim": (["--shuffle", "public_randomness"], "shuffle is committed as owner"),
    "subset": (["--subsample", "100"], "subsample is committed as none and given as 100"),
    "reference": (["--reference", "loss:other"], "number of references is committed as 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DEVIATIONS))
def test_deviations_from_a_commitment_are_refused(name, committed, table):
    folder, _ = committed
    options, message = DEVIATIONS[name]
    done = here(
        "test", "query", "--transcript", table, "--suspect", "loss:suspect", "--reference",
        "loss:reference", "--commitment", folder / "c.json", "--salt-file", folder / "secret.salt",
        *options,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_committed_subsample_is_drawn_again(table, tmp_path):
    paths = {name: tmp_path / name for name in ("c.json", "s.salt", "e.json", "b.zip")}
    models = ["--transcript", table, "--reference", "loss:reference"]
    committing = ["--commitment", paths["c.json"], "--salt-file", paths["s.salt"], "--suspect",
                  "loss:suspect", *models]  # fmt: skip
    for arguments in (
        ["commit", *models, "--subsample", "300", "--seed", "9", "--n-resamples", "999", "--out",
         paths["c.json"], "--salt-file", paths["s.salt"], "--quiet"],
        ["test", "query", *committing, "--json", paths["e.json"]],
        ["bundle", *committing, "--evidence", paths["e.json"],
         "--out", paths["b.zip"], "--quiet"],
        ["verify", paths["b.zip"]],
    ):  # fmt: skip
        done = here(*arguments)
        assert done.returncode == 0, done.stderr
    assert "300 as committed (subsample)" in done.stdout
    assert "committed over 1,500" in done.stdout


BAD_EVIDENCE = {
    "commit again": (["commit", "--out", "c.json", "--salt-file", "new.salt"], "never replaced"),
    "same salt": (["commit", "--out", "n.json", "--salt-file", "secret.salt"], "never replaced"),
    "no commitment": (["reveal", "--commitment", "e.json", "--salt-file", "secret.salt", "--rows",
                       "1", "--out", "x.json"], "e.json"),
    "no salt": (["reveal", "--commitment", "c.json", "--salt-file", "c.json", "--rows", "1",
                 "--out", "x.json"], "no file of a secret salt"),
    "rows": (["reveal", "--commitment", "c.json", "--salt-file", "secret.salt", "--rows", "1;2",
              "--out", "x.json"], "not of the form 3,17,40-49"),
    "verify what": (["verify", "e.json"], "is no archive"),
    "verify nothing": (["verify", "absent.zip"], "does not exist"),
    "verify by": (["verify", "b.zip", "--rows", "3"], "are of --rescore"),
    "stamp": (["test", "query", "--suspect", "loss:suspect", "--time-stamp", "e.json"],
              "add --commitment"),
    "not a stamp": (["test", "query", "--suspect", "loss:suspect", "--reference", "loss:reference",
                     "--commitment", "c.json", "--salt-file", "secret.salt", "--time-stamp",
                     "e.json"], "no time-stamp"),
    "test without salt": (["test", "query", "--suspect", "loss:suspect", "--commitment", "c.json"],
                          "add --salt-file"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_EVIDENCE))
def test_bad_evidence_is_one_sentence_and_exit_code_2(name, committed, table):
    folder, _ = committed
    arguments, message = BAD_EVIDENCE[name]
    named = [folder / a if a.endswith((".json", ".salt", ".zip")) else a for a in arguments]
    if arguments[0] != "verify":
        named += ["--transcript", table]
    done = here(*named)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_ledger_numbers_the_tests_of_a_table(table, tmp_path):
    out, ledger = tmp_path / "e.json", tmp_path / "ledger.jsonl"
    base = ["test", "query", "--transcript", table, "--suspect", "loss:suspect",
            "--ledger", ledger, "--json", out, "--n-resamples", "4999"]  # fmt: skip
    for number, extra in enumerate(([], ["--subsample", "1000"], []), 1):
        done = here(*base, *extra)
        assert done.returncode in (0, 3), done.stderr
        correction = json.loads(out.read_text())["correction"]
        assert correction["number"] == (2 if number == 2 else 1)
    shown = here("ledger", "show", ledger)
    assert shown.returncode == 0
    assert "2 test(s)" in shown.stdout
    assert "suspect" in shown.stdout
    absent = here("ledger", "show", tmp_path / "absent.jsonl")
    assert absent.returncode == 2
    assert len(absent.stderr.strip().splitlines()) == 1


def test_pairs_and_sequential_on_a_published_table(table, tmp_path):
    common = (
        "--transcript", table, "--reference", "loss:reference", "--queries", 200,
        "--filter", "hardest-50",
    )  # fmt: skip
    out, made = tmp_path / "e.json", tmp_path / "design.json"
    done = here(
        "test", "pairs", *common, "--suspect", "loss:suspect", "--json", out, "--design-json", made
    )
    assert done.returncode == 0, done.stderr
    assert "certified p" in done.stdout
    content, design = json.loads(out.read_text()), json.loads(made.read_text())
    assert content["details"]["design"]["rows_sha256"] == design["rows_sha256"]
    done = here("test", "sequential", *common, "--suspect", "loss:suspect", "--json", out)
    assert done.returncode == 0, done.stderr
    assert "queries   wealth 10^" in done.stderr
    content = json.loads(out.read_text())
    assert content["pvalue"] <= 1e-3
    assert content["log10_pvalue"] is None
    done = here("test", "sequential", *common, "--suspect", "loss:other", "--quiet")
    assert (done.returncode, "no evidence" in done.stdout) == (0, True)
    assert done.stderr == ""
    done = here(
        "test", "pairs", *common, "--suspect", "loss:other", "--design", "uniform", "--quiet"
    )
    assert done.returncode == 2
    assert "has no pairs" in done.stderr
