"""The command line: exit codes, clear errors, JSON keys. Scores come from columns, no model."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.statistics import PositionWeights

N = 1500


def palimpsest(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
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


def test_an_undecided_test_exits_with_3(table, tmp_path):
    out = tmp_path / "e.json"
    done = palimpsest(
        "test", "query", "--transcript", table, "--suspect", "loss:other",
        "--reference", "loss:reference", "--json", out,
    )  # fmt: skip
    assert done.returncode == 3
    assert json.loads(out.read_text())["verdict"] == "could not be decided"


def test_a_cleared_model_exits_with_0(table):
    done = palimpsest(
        "test", "query", "--transcript", table, "--suspect", "loss:other",
        "--reference", "loss:reference", "--smallest-effect", "0.2",
    )  # fmt: skip
    assert done.returncode == 0
    assert "no evidence found at this power" in done.stdout


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
    for command in ("lab", "sample", "score", "test", "report"):
        assert command in text


def test_interruption_exits_with_130(monkeypatch, capsys):
    from workbench import cli

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
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
    undecided = palimpsest(
        "test", "partition", "--transcript", texts / "t.parquet", "--texts",
        texts / "else.parquet", "--statistic", "block-likelihood", "--n-blocks", "20", "--quiet",
    )  # fmt: skip
    assert undecided.returncode == 3, undecided.stderr


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
    done = palimpsest("test", *named, "--transcript", texts / "t.parquet", "--quiet")
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
        "--prompts", tmp_path / "prompts.parquet", "--prompt-tokens", "2", "--quiet",
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lab", "siblings", "--recipe", "smoke", "--siblings", "1"), "n_siblings is 1"),
        (("lab", "siblings", "--recipe", "nobody"), "'nobody' is unknown"),
        (("lab", "record", "--observations", "--out", "x.parquet"), "name a folder"),
    ],
    ids=str,
)
def test_lab_commands_refuse_bad_input(arguments, message):
    done = palimpsest(*arguments, "--quiet")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_pairs_and_sequential_on_a_published_table(table, tmp_path):
    common = (
        "--transcript", table, "--reference", "loss:reference", "--queries", 200,
        "--filter", "hardest-50",
    )  # fmt: skip
    out, made = tmp_path / "e.json", tmp_path / "design.json"
    done = palimpsest(
        "test", "pairs", *common, "--suspect", "loss:suspect", "--json", out, "--design-json", made
    )
    assert done.returncode == 0, done.stderr
    assert "certified p" in done.stdout
    content, design = json.loads(out.read_text()), json.loads(made.read_text())
    assert content["details"]["design"]["rows_sha256"] == design["rows_sha256"]
    done = palimpsest("test", "sequential", *common, "--suspect", "loss:suspect", "--json", out)
    assert done.returncode == 0, done.stderr
    assert "queries   wealth 10^" in done.stderr
    content = json.loads(out.read_text())
    assert content["pvalue"] <= 1e-3
    assert content["log10_pvalue"] is None
    done = palimpsest("test", "sequential", *common, "--suspect", "loss:other", "--quiet")
    assert done.returncode == 3
    assert done.stderr == ""
    done = palimpsest(
        "test", "pairs", *common, "--suspect", "loss:other", "--design", "uniform", "--quiet"
    )
    assert done.returncode == 2
    assert "has no pairs" in done.stderr
