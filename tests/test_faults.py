"""Whole runs against a server that fails, with a client that is killed and a key that is marked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from servers.app import FAULTS, REFUSALS, Server
from servers.keys import spellings, unpacked, unspelled
from servers.models import NgramModel, training_text

from workbench import cli
from workbench.errors import InputError
from workbench.scorers import Budget, ChatScorer, CompletionsScorer, SampledScorer, score_transcript
from workbench.scorers.answers import BudgetSpentError
from workbench.scores import Scores
from workbench.transcript import Transcript

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = 1000
BUNDLE = 8
CONCURRENCY = 4
KINDS = {
    "completions": (CompletionsScorer, {}),
    "chat": (ChatScorer, {"access": "completions", "places": 2, "top": 5}),
    "sampled": (SampledScorer, {"places": 2, "draws": 1, "new_tokens": 2}),
}
# Faults after which an answer that the server gave is lost; the others never were answers.
WASTEFUL = ("hang", "truncated", "dropped", "wrong count", "duplicate", "stale", "no number")


def transcript_of(n: int) -> Transcript:
    rng = np.random.default_rng(4)
    text = training_text()
    starts = rng.permutation(len(text) - 100)[:n]
    return Transcript.from_arrays(
        rng.permutation(n),
        texts=[text[s : s + 40].strip() + f" {s}" for s in starts],
        shuffle="owner",
    )


def scorer_of(kind: str, url: str, **options):
    made, own = KINDS[kind]
    settings = {
        "bundle": BUNDLE,
        "concurrency": CONCURRENCY,
        "timeout": 1.0,
        "first_wait": 0.02,
        "attempts": 10,
    }
    return made(url, "m", **(settings | own | options))


def run_client(kind: str, url: str, out: str, n: str, most: str) -> None:
    """What the client's process does; exit status 7 if the budget is spent."""
    budget = Budget(requests=int(most)) if most else None
    try:
        score_transcript(transcript_of(int(n)), scorer_of(kind, url, budget=budget), out)
    except BudgetSpentError as error:
        sys.stderr.write(str(error))
        sys.exit(7)


def start_client(*arguments) -> subprocess.Popen:
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import test_faults; "
        "test_faults.run_client(*sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT / "tests"), *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(client: subprocess.Popen, server: Server, prompts: int) -> None:
    """Kill the client (-9) once the server has answered so many prompts."""
    until = server.prompts + prompts
    while server.prompts < until:
        assert client.poll() is None, client.communicate()[1]
        time.sleep(0.002)
    client.kill()
    client.communicate()


@pytest.fixture(scope="module")
def ngrams():
    return NgramModel(order=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_faults_and_kills_change_nothing(kind, ngrams, tmp_path, own_home, monkeypatch):
    n = EXAMPLES if kind == "completions" else 300
    t = transcript_of(n)
    with Server(ngrams).running() as url:
        clean = score_transcript(t, scorer_of(kind, url, timeout=30), tmp_path / "clean.parquet")
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    server = Server(ngrams, fault_rate=0.2, hang_seconds=2.0, delay=0.01, seed=11)
    out = tmp_path / "s.parquet"
    with server.running() as url:
        for _ in range(3):
            kill_after(start_client(kind, url, out, n, ""), server, n // 5)
        last = start_client(kind, url, out, n, "")
        _, said = last.communicate()
    assert last.returncode == 0, said
    scores = Scores.read(out)
    np.testing.assert_array_equal(scores.loglik_sum, clean.loglik_sum)
    np.testing.assert_array_equal(scores.n_tokens, clean.n_tokens)
    assert set(server.happened) == set(FAULTS)
    # what was answered and kept is never asked again: only lost answers are, and the probes
    lost = sum(server.happened[fault] for fault in WASTEFUL) + 3 * CONCURRENCY
    questions = n if kind == "completions" else 2 * n
    canaries = 4 * 5 + 3 * 20
    assert server.prompts <= questions + lost * BUNDLE + canaries


@pytest.mark.slow
def test_the_budget_holds_through_faults_and_kills_and_what_came_is_kept(ngrams, tmp_path):
    server = Server(ngrams, fault_rate=0.1, hang_seconds=2.0, delay=0.01, seed=5)
    out = tmp_path / "s.parquet"
    with server.running() as url:
        for _ in range(2):
            kill_after(start_client("completions", url, out, 600, "50"), server, 80)
        last = start_client("completions", url, out, 600, "50")
        _, said = last.communicate()
        assert last.returncode == 7, said
        assert "the budget of 50 requests" in said
        assert server.received <= 50
        again = start_client("completions", url, out, 600, "50")
        assert again.wait() == 7
        assert server.received <= 50
        answered = server.prompts
        server.fault_rate = 0.0
        rich = start_client("completions", url, out, 600, "1000")
        _, said = rich.communicate()
        assert rich.returncode == 0, said
    assert server.prompts - answered < 600  # what the small budget had bought was not bought again
    assert Scores.read(out).n == 600


def test_nothing_but_faults_stops_with_the_reason(ngrams, tmp_path):
    server = Server(ngrams, fault_rate=1.0, faults=("500", "truncated"))
    with server.running() as url, pytest.raises(InputError, match="failed 2 times in a row"):
        score_transcript(
            transcript_of(10), scorer_of("completions", url, attempts=2), tmp_path / "s.parquet"
        )
    assert server.received >= 2


# ---------------------------------------------------------------- the key

KEY = "sk-MARKED-7f3a9c-MARKED"


def palimpsest(*arguments, home) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PALIMPSEST_HOME": str(home), "BOB_KEY": KEY, "NO_COLOR": "1"},
        check=False,
    )


def a_notebook(folder, url, transcript):
    """As a user would write it who asks an endpoint from a notebook."""
    cells = [
        'output_dir = ""',
        "from pathlib import Path\n\n"
        "from workbench import CompletionsScorer, Transcript, query_test, score_transcript\n\n"
        f"transcript = Transcript.read({str(transcript)!r}, shuffle='owner')\n"
        f"scorer = CompletionsScorer({url!r}, 'bob', api_key_env='BOB_KEY')\n"
        "scores = score_transcript(transcript, scorer, progress=True)\n"
        "evidence = query_test(transcript, scores)\n"
        "evidence.write(Path(output_dir) / 'evidence' / 'bob.json')\n"
        "print(scorer, scorer.endpoint, scores.caveats)\n"
        "evidence",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(nb, str(folder / "own.ipynb"))
    return folder / "own.ipynb"


@pytest.mark.slow
def test_the_command_line_asks_an_endpoint_and_no_key_is_written_in_any_form(ngrams, tmp_path):
    home, results = tmp_path / "home", tmp_path / "results"
    results.mkdir()
    transcript = transcript_of(40).write(results / "t.parquet")
    faults = ("429", "500", "stale", *["key"] * 7)
    server = Server(ngrams, key=KEY, fault_rate=0.5, faults=faults)
    said = ""
    with server.running() as url:
        for access, more in (
            ("completions", ["--max-requests", "500"]),
            ("chat", ["--through", "completions", "--top", "5", "--places", "2"]),
            ("chat", ["--places", "1"]),
            ("sampled", ["--through", "chat", "--temperature", "0", "--places", "1"]),
        ):
            out = results / f"{access}{len(said)}.parquet"
            done = palimpsest(
                "score", "--endpoint", url, "--model", "bob", "--access", access,
                "--transcript", transcript, "--out", out, "--api-key-env", "BOB_KEY", *more,
                home=home,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert ("agreement" if access == "sampled" else "nats per token") in done.stdout
            assert "owner's word" in done.stdout
            said += done.stdout + done.stderr
        tested = palimpsest(
            "test", "query", "--transcript", transcript, "--suspect", out,
            "--json", results / "evidence.json", home=home,
        )  # fmt: skip
        assert tested.returncode in (0, 3), tested.stderr
        said += tested.stdout + tested.stderr
        evidence = json.loads((results / "evidence.json").read_text())
        assert any("owner's word" in caveat for caveat in evidence["caveats"])
        planned = palimpsest(
            "plan", "--endpoint", url, "--model", "bob", "--transcript", transcript,
            "--api-key-env", "BOB_KEY", "--pilot", 30, "--out", results / "plan.json", home=home,
        )  # fmt: skip
        assert planned.returncode == 0, planned.stderr
        reported = palimpsest(
            "report", a_notebook(results, url, transcript), "--out", results / "reports", home=home
        )
        assert reported.returncode == 0, reported.stderr
        assert list((results / "reports").rglob("*.html"))
        said += planned.stdout + planned.stderr + reported.stdout + reported.stderr
        server.fault_rate = 1.0
        for refusal in REFUSALS:
            server.faults = (refusal,)
            stopped = palimpsest(
                "score", "--endpoint", url, "--model", "eve", "--transcript", transcript,
                "--out", results / "no.parquet", "--api-key-env", "BOB_KEY", home=home,
            )  # fmt: skip
            assert stopped.returncode == 2, stopped.stderr
            said += stopped.stdout + stopped.stderr
        server.key = "somebody else's"  # and the server repeats what it was given
        refused = palimpsest(
            "score", "--endpoint", url, "--model", "eve", "--transcript", transcript,
            "--out", results / "no.parquet", "--api-key-env", "BOB_KEY", home=home,
        )  # fmt: skip
    assert refused.returncode == 2
    assert "answers 401" in refused.stderr
    assert "check the key in BOB_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr
    said += refused.stdout + refused.stderr
    assert server.happened["key"] > len(spellings(KEY))
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len([p for p in written if p.suffix == ".sqlite"]) == 2
    assert not [form for form in unspelled(said.encode()) if KEY in form]
    for path in written:
        assert not [form for form in unspelled(unpacked(path)) if KEY in form], path
    assert any(b"[key]" in unpacked(path) for path in written)


BAD = {
    "access": (["--access", "telepathy"], "access 'telepathy' is unknown"),
    "address": (["--endpoint", "https://me:pw@a.org/v1"], "carries credentials"),
    "bos": (["--bos"], "the server's business"),
    "through": (["--through", "chat"], "leave it out"),
    "form": (["--form", "hope"], "form 'hope' is unknown"),
    "money": (["--max-money", "3"], "needs price_per_million"),
    "key": (["--api-key-env", "NO_SUCH_KEY_HERE"], "NO_SUCH_KEY_HERE is not set"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_sentence_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[name]
    if "--endpoint" not in arguments:
        arguments = ["--endpoint", "http://127.0.0.1:9/v1", *arguments]
    transcript = transcript_of(5).write(tmp_path / "t.parquet")
    command = ["palimpsest", "score", "--model", "bob", "--transcript", str(transcript)]
    command += ["--out", str(tmp_path / "s.parquet"), "--quiet", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        cli.app_main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
