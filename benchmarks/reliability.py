"""What faults of servers, kills and flipped bytes do to results: counts of outcomes.

*Faults*: whole runs against a server that answers wrongly in eighteen ways, each in turn; a run
that stops is started again. *Kills*: ``kill -9`` of a command at a random moment of its work, again
and again, then the same command to its end. *Flips*: one byte of a transcript, a file of scores, a
bundle or a store of answers is changed; half of the files are then made to fit again, checksums and
digests included, as a forger would.

An outcome is right if the result is identical, if one sentence says why there is none, or if the
result has another digest than the one that was published. Prints a table and writes
``benchmarks/results/reliability.json``; with ``--smoke`` a few of each, and writes nothing.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bundles import with_manifest  # noqa: E402
from servers.app import FAULTS, REFUSALS, Server  # noqa: E402
from servers.keys import unpacked, unspelled  # noqa: E402
from servers.models import NgramModel, training_text  # noqa: E402
from test_bundle import SALT, bundled, case  # noqa: E402
from transcripts import make  # noqa: E402

from workbench import InputError, Scores, Transcript  # noqa: E402
from workbench.archive import Archive  # noqa: E402
from workbench.commitment import committed_test  # noqa: E402
from workbench.scorers import CompletionsScorer, score_transcript  # noqa: E402
from workbench.studies import open_study  # noqa: E402
from workbench.verification import verify_bundle  # noqa: E402

KEY = "sk-marked/0123456789+marked"
IDENTICAL, SENTENCE, DIGEST = "identical", "one sentence", "another digest"
RIGHT = {IDENTICAL, SENTENCE, DIGEST}
KILLS_A_PLACE = 5
PATIENCE = 15  # seconds in which processes end with their parent

Found = tuple[Any, str]
Table = dict[str, Counter[str]]


def outcome(result: Callable[[], Found], wanted: Found, said: list[str], where: str = "") -> str:
    """Of a result, which is numbers and the digest published with them; a sentence says where."""
    try:
        numbers, digest = result()
    except InputError as error:
        said.append(str(error))
        return SENTENCE if where in str(error) else "a sentence that names no file"
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
        print(said[-1], file=sys.stderr)
        return "traceback"
    if numbers == wanted[0]:
        return IDENTICAL
    return DIGEST if digest != wanted[1] else "silently other numbers"


# ------------------------------------------------------------------------------- faults


def examples(n: int) -> Transcript:
    rng = np.random.default_rng(4)
    text = training_text()
    texts = [f"{text[s : s + 40].strip()} {s}" for s in rng.permutation(len(text) - 100)[:n]]
    return Transcript.from_arrays(rng.permutation(n), texts=texts, shuffle="owner")


def scored(transcript: Transcript, url: str, place: Path) -> Found:
    scorer = CompletionsScorer(
        url, "m", api_key_env="MARKED_KEY", store=place / "answers.sqlite",
        bundle=8, timeout=1.0, first_wait=0.02, attempts=40,
    )  # fmt: skip
    scores = score_transcript(transcript, scorer, place / "s.parquet")
    return scores.loglik_sum.tolist(), scores.values_sha256


def fault_outcomes(count: int, n: int, folder: Path) -> tuple[Table, dict[str, int]]:
    """Outcomes by kind of fault; runs, stops with a sentence, and files that hold the key."""
    transcript, model = examples(n), NgramModel(order=4)
    table, said = dict[str, Counter[str]](), list[str]()
    counts = Counter[str](faults=0, runs=0, stops=0)
    wanted: Found = ([], "")
    while counts["faults"] < count:
        rate = 0.5 if counts["runs"] else 0.0  # the first is what the others are compared with
        server = Server(
            model, key=KEY, fault_rate=rate, faults=FAULTS + REFUSALS, seed=counts["runs"],
            hang_seconds=2.0,
        )  # fmt: skip
        place = folder / str(counts["runs"])
        place.mkdir()
        with server.running() as url:
            result = partial(scored, transcript, url, place)
            if not rate:
                wanted = result()
            found = SENTENCE
            while found == SENTENCE:
                found = outcome(result, wanted, said)
                counts["stops"] += found == SENTENCE
        for kind, times in server.happened.items():
            table.setdefault(kind, Counter())[found] += times
        counts.update(faults=server.happened.total(), runs=1)
    written = [unpacked(path) for path in folder.rglob("*") if path.is_file()]
    forms = (unspelled(data) for data in [*written, " ".join(said).encode()])
    counts["key found"] = sum(any(KEY in form for form in found) for found in forms)
    return table, dict(counts)


# ------------------------------------------------------------------------------- kills


@dataclass(frozen=True)
class Command:
    """One that can be killed: its words, what it writes once at work, and its result.

    All are of a place, the folder in which it runs; `ready` lays there what it starts from.
    """

    name: str
    words: Callable[[Path], list[object]]
    begun: tuple[str, ...]
    result: Callable[[Path], object]
    ready: Callable[[Path], object] = lambda place: None


def sha256(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def hashes(place: Path, pattern: str) -> list[str]:
    files = sorted(path for path in place.glob(pattern) if ".partial" not in str(path))
    return [sha256(path.name, path.read_bytes()) for path in files]


def lab_result(place: Path) -> object:
    scores = [Scores.read(path) for path in sorted((place / "home/scores").glob("*.parquet"))]
    weights = hashes(place, "home/lab/models/*/model.safetensors")
    return sha256([s.values_sha256 for s in scores], weights)


def study_result(place: Path) -> object:
    found = open_study(place / "study")
    timed = {"seconds", "finished"}
    cells = [{k: v for k, v in cell.items() if k not in timed} for cell in found.cells]
    return sha256(json.dumps(cells, sort_keys=True, default=str), len(found.failed))


def report_result(place: Path) -> object:
    nb = nbformat.read(place / "out/n.ipynb", as_version=4)
    outputs = [cell.outputs for cell in nb.cells if "source" in cell and cell.cell_type == "code"]
    return sha256(hashes(place, "out/evidence/*.json"), json.dumps(outputs))


NOTEBOOK = """output_dir = ""
---
import numpy as np
from workbench import Scores, Transcript, query_test

rng = np.random.default_rng(0)
transcript = Transcript.from_arrays(rng.permutation(2000), shuffle="owner")
scores = Scores.from_arrays(loglik=rng.normal(size=2000), name="bob")
evidence = query_test(transcript, scores, n_resamples=99_999)
---
sum(range(10**8))
---
evidence.write(f"{output_dir}/evidence/bob.json")
print(evidence.summary())"""


def commands(base: Path, small: bool) -> list[Command]:
    """Each on inputs that are made here, in the folder `base`."""
    rng = np.random.default_rng(0)
    (base / "texts").mkdir()
    words = rng.choice(["shuffle", "order", "token", "model", "weight", "memory"], (1500, 60))
    text = "\n\n".join(" ".join(line) for line in words)
    (base / "texts" / "text.txt").write_text(text)
    make(base, 200_000 if small else 10_000_000)
    rows = 1_000 if small else 30_000
    transcript = Transcript.from_arrays(
        rng.permutation(rows), tokens=rng.integers(0, 300, (rows, 32)), shuffle="owner"
    ).write(base / "t.parquet")
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK.split("\n---\n")]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), base / "n.ipynb")
    train = ["lab", "train", "--recipe", "smoke", "--text", base / "texts", "--quiet"]
    launch(train, base).wait()  # its models are scored
    weights = next((base / "home/lab/models").glob("*/model.safetensors")).parent
    corpora = base / "corpora"

    def with_corpus(place: Path) -> None:
        if corpora.exists():
            shutil.copytree(corpora, place / "home/lab/corpora")

    def study_with_corpus(place: Path) -> object:
        if not corpora.exists():
            shutil.copytree(place / "home/lab/corpora", corpora)
        return study_result(place)

    score = ["score", "--model", weights, "--transcript", transcript, "--quiet", "--out"]
    study = ["study", "run", "branch-point", "--recipe", "smoke", "--quiet", "--out"]
    convert = ["transcript", "convert", base / "run", "--quiet", "--out"]
    report = ["report", base / "n.ipynb", "--quiet", "--out"]
    trained = ("home/lab/models/*.partial/*", "study/parts/cells/*")
    return [
        Command(
            "score",
            lambda place: [*score, place / "s.parquet"],
            ("**/*",),
            lambda place: Scores.read(place / "s.parquet").values_sha256,
        ),
        Command(
            "study run",
            lambda place: [*study, place / "study"],
            trained,
            study_with_corpus,
            with_corpus,
        ),
        Command("report", lambda place: [*report, place / "out"], ("out/**/*",), report_result),
        Command("lab train", lambda place: list(train), trained, lab_result),
        Command(
            "transcript convert",
            lambda place: [*convert, place / "out"],
            ("out/**/*",),
            lambda place: Transcript.read(place / "out").fingerprint,
        ),
    ]


def launch(words: list[object], place: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", *map(str, words)],
        env={
            **os.environ,
            "PALIMPSEST_HOME": str(place / "home"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=(place / "stderr").open("ab"),
    )


def at_work(command: Command, place: Path, since: float) -> bool:
    def changed(path: Path) -> bool:
        with contextlib.suppress(OSError):  # gone meanwhile
            return path.is_file() and path.stat().st_mtime > since
        return False

    return any(changed(path) for pattern in command.begun for path in place.glob(pattern))


def working(command: Command, place: Path) -> subprocess.Popen[bytes]:
    """Started, and at work, or at its end."""
    since = time.time()
    process = launch(command.words(place), place)
    while process.poll() is None and not at_work(command, place, since):
        time.sleep(0.02)
    return process


def left_after_kill(process: subprocess.Popen[bytes]) -> int:
    """Kill -9; how many of the processes that it had started do not end by themselves."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=PATIENCE)
    return sum(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in alive)


def kill_outcomes(command: Command, count: int, base: Path, seed: int) -> dict[str, Any]:
    """Kills, places whose last run gave the identical result, and processes left."""
    rng, counts = np.random.default_rng(seed), Counter[str](kills=0, identical=0, other=0, left=0)

    def place() -> Iterator[Path]:
        for number in range(count + 1):
            folder = base / f"{command.name.replace(' ', '-')}-{number}"
            folder.mkdir()
            command.ready(folder)
            yield folder

    places = place()
    first = next(places)
    process, began = working(command, first), time.monotonic()
    assert process.wait() == 0, (first / "stderr").read_text()[-2000:]
    seconds, wanted = time.monotonic() - began, command.result(first)
    for folder in places:
        killed = 0
        while killed < KILLS_A_PLACE and counts["kills"] < count:
            process = working(command, folder)
            try:
                process.wait(rng.uniform(0, seconds))
                break  # at its end before the moment came
            except subprocess.TimeoutExpired:
                counts["left"] += left_after_kill(process)
                counts["kills"] += 1
                killed += 1
        launch(command.words(folder), folder).wait()
        try:
            same = command.result(folder) == wanted
        except (InputError, OSError):
            same = False
        if not same:
            print(command.name, (folder / "stderr").read_text()[-2000:], file=sys.stderr)
        counts["identical" if same else "other"] += killed
        if counts["kills"] >= count:
            break
    return {**counts, "seconds of work": round(seconds, 1)}


# ------------------------------------------------------------------------------- flips


@dataclass(frozen=True)
class Kind:
    """A kind of file: one of it, what is made of it, and how a forger changes it."""

    path: Path
    result: Callable[[Path], Found]
    forge: Callable[[Path, np.random.Generator], object]


def kinds(folder: Path, url: str) -> dict[str, Kind]:
    transcript, models = case()
    suspect, reference, placebo = models.values()
    bundle = folder / "b.zip"
    commitment, _, _ = bundled(bundle, transcript, models, reveal=[3, 17])
    texts = examples(40)
    (folder / "store").mkdir()
    scored(texts, url, folder / "store")

    def tested(of: Transcript, scores: Scores) -> list[object]:
        evidence = committed_test(commitment, SALT, of, scores, [reference], [placebo])
        return [evidence.pvalue_exact, evidence.statistic, *scores.loglik_sum]

    def of_transcript(path: Path) -> Found:
        found = Transcript.read(path)
        return [*tested(found, suspect), *np.concatenate(found.tokens())], found.fingerprint

    def of_scores(path: Path) -> Found:
        scores = Scores.read(path)
        return tested(transcript, scores), scores.values_sha256

    def of_bundle(path: Path) -> Found:
        found = verify_bundle(path)
        if not found.ok:
            raise InputError(f"{path}: {found.mismatches[0]}")
        return found.evidence.to_json(), found.sha256

    def of_store(path: Path) -> Found:
        place = Path(tempfile.mkdtemp(dir=folder))
        return scored(texts, url, Path(shutil.move(path, place / "answers.sqlite")).parent)

    def forge_transcript(path: Path, rng: np.random.Generator) -> None:
        tokens = np.array(transcript.tokens())
        tokens[rng.integers(len(tokens)), rng.integers(tokens.shape[1])] ^= 1
        shuffle, positions = transcript.shuffle, transcript.positions
        Transcript.from_arrays(positions, tokens=tokens, shuffle=shuffle).write(path)

    def forge_scores(path: Path, rng: np.random.Generator) -> None:
        values = suspect.loglik_sum.copy()
        values.view(np.uint8)[rng.integers(values.nbytes)] ^= 1
        replace(suspect, loglik_sum=values).write(path)

    def forge_bundle(path: Path, rng: np.random.Generator) -> None:
        members = {k: bytearray(v) for k, v in Archive.open(bundle).members.items()}
        name = rng.choice([k for k in sorted(members) if members[k] and k != "manifest.json"])
        members[name][rng.integers(len(members[name]))] ^= 1 << int(rng.integers(8))
        path.write_bytes(with_manifest({k: bytes(v) for k, v in members.items()}))

    def forge_store(path: Path, rng: np.random.Generator) -> None:
        shutil.copy(folder / "store/answers.sqlite", path)
        with contextlib.closing(sqlite3.connect(path)) as store, store:
            store.execute("DROP TRIGGER answers_stay")
            rows = store.execute("SELECT rowid, answer FROM answers").fetchall()
            row, packed = rows[rng.integers(len(rows))]
            answer = bytearray(zlib.decompress(packed))
            at = rng.choice([i for i, byte in enumerate(answer) if chr(byte).isdigit()])
            answer[at] = ord("0") + (answer[at] - ord("0") + 1) % 10
            forged = (zlib.compress(bytes(answer)), row)
            store.execute("UPDATE answers SET answer = ? WHERE rowid = ?", forged)

    return {
        "transcript": Kind(transcript.write(folder / "t.parquet"), of_transcript, forge_transcript),
        "scores": Kind(suspect.write(folder / "s.parquet"), of_scores, forge_scores),
        "bundle": Kind(bundle, of_bundle, forge_bundle),
        "store of answers": Kind(folder / "store/answers.sqlite", of_store, forge_store),
    }


def flip_outcomes(count: int, folder: Path) -> Table:
    """Outcomes by kind of file, as the disk damages it and as a forger does."""
    table, rng = dict[str, Counter[str]](), np.random.default_rng(0)
    with Server(NgramModel(order=4), key=KEY).running() as url:
        for name, kind in kinds(folder, url).items():
            data = kind.path.read_bytes()
            changed = folder / f"changed{kind.path.suffix}"
            changed.write_bytes(data)
            wanted = kind.result(changed)
            for forged in (False, True):
                row = table.setdefault(f"{name}, {'forged' if forged else 'damaged'}", Counter())
                for _ in range(count // 8):
                    if forged:
                        kind.forge(changed, rng)
                    else:
                        damaged = bytearray(data)
                        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
                        changed.write_bytes(damaged)
                    where = "" if forged else str(folder)
                    row[outcome(partial(kind.result, changed), wanted, [], where)] += 1
    return table


# ------------------------------------------------------------------------------- all


def shown(title: str, table: Table) -> None:
    print(f"\n{title:<32}{'times':>6}  outcomes")
    for name, row in sorted(table.items()):
        words = ", ".join(f"{count} {found}" for found, count in row.most_common())
        print(f"{name:<32}{row.total():>6}  {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/reliability.json")
    parser.add_argument("--smoke", action="store_true", help="a few of each")
    parser.add_argument("--only", choices=("faults", "kills", "flips"), help="this part")
    asked = parser.parse_args()
    os.environ["MARKED_KEY"] = KEY
    numbers = (40, 60, 1, 16) if asked.smoke else (1000, 300, 10, 400)
    n_faults, n_examples, n_kills, n_flips = numbers
    began = time.monotonic()
    out = asked.out or Path(__file__).parent / "results" / "reliability.json"
    # A part that is run alone takes its place among the others.
    result: dict[str, Any] = json.loads(out.read_text()) if asked.only and out.exists() else {}
    result["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory(prefix="palimpsest-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("faults", "flips", "kills"):
            (folder / part).mkdir()
        if asked.only in (None, "faults"):
            table, counts = fault_outcomes(n_faults, n_examples, folder / "faults")
            shown("fault of a server", table)
            print(", ".join(f"{name}: {count}" for name, count in counts.items()))
            result["faults"] = {"outcomes": table, "counts": counts}
        if asked.only in (None, "flips"):
            result["flips"] = table = flip_outcomes(n_flips, folder / "flips")
            shown("one byte of a file", table)
        if asked.only in (None, "kills"):
            listed = commands(folder / "kills", asked.smoke)
            if asked.smoke:
                listed = [c for c in listed if c.name in ("score", "transcript convert")]
            with ThreadPoolExecutor(2) as pool:
                tallies = pool.map(
                    lambda pair: kill_outcomes(pair[1], n_kills, folder / "kills", pair[0]),
                    enumerate(listed),
                )
                result["kills"] = dict(zip([c.name for c in listed], tallies, strict=True))
            print()
            for command, tally in result["kills"].items():
                print(f"{command:<20}", ", ".join(f"{k}: {v}" for k, v in tally.items()))
    minutes = round((time.monotonic() - began) / 60, 1)
    result.setdefault("minutes", {})[asked.only or "all"] = minutes
    if asked.out or not asked.smoke:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
