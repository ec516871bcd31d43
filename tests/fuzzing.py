"""Bad values for every option of every command: ``python tests/fuzzing.py N`` counts what they do.

The commands and their options are those of the command line itself, so a new one is covered without
a line here. An input is a command with small good arguments, some of them replaced by bad ones. It
ends well if its status is 0 to 3 and it says a result, or one sentence; if no control character
reaches the terminal; if no file given is changed, and nothing is left of one refused.

Training, notebooks and servers are not fuzzed but the way to them: they begin at one door, a
process of their own, and here that door is shut.
"""

import contextlib
import ctypes
import io
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
import typer.main

from workbench import InputError, Scores, Transcript
from workbench.cli import app, app_main
from workbench.home import shipped
from workbench.statistics import PositionWeights

DEADLINE = 10  # seconds of an input
CORES = 2
SLOW = (
    *("huggingface_hub", "transformers.models.llama.modeling_llama", "torch", "sympy.printing"),
    *("workbench.scorers.causal_lm", "workbench.reports", "workbench.lab", "workbench.studies"),
    *("workbench.presets", "workbench.verification", "workbench.exhibit", "datasets", "voila"),
    *("workbench.lab.corpus", "workbench.lab.siblings", "workbench.lab.training", "httpx"),
    *("workbench.independence.plan", "workbench.studies.reproduction", "workbench.panels"),
)
APART = 51  # one input of so many runs in a process of its own
MEMORY = 12 * 2**30  # bytes of address space: what would fill the machine is a fault that is told
LETTERS = "\n\r\t"  # control characters that a terminal may get
Choose = Callable[[Sequence[Any]], Any]

# ------------------------------------------------------------------------------- the commands


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command that does something, by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(path): command}
    return {k: v for n, c in inner.items() for k, v in leaves(c, (*path, n)).items()}


COMMANDS = leaves(typer.main.get_command(app))


def named(parameter: Any) -> str:
    """The longest spelling of an option; of an argument, its name."""
    return max((o for o in parameter.opts), key=len)


# Good values by the name of the option; a command's own come first. What every command gets that
# has the option is in ALWAYS.
ALWAYS = {
    "--n-resamples": "99", "--shuffle": "owner", "--recipe": "smoke", "--queries": "40",
    "--reference": "loss:other", "--max-work": "10000000", "--siblings": "2", "--alpha": "0.05",
    "--pilot": "30", "--procedure": "as declared", "--format": "auto", "--tokens": "3",
    "--n": "40", "sample --texts": "5", "folder": "study", "--option": "examples=ids.arrow",
}  # fmt: skip
GOOD = {
    "--transcript": "t.parquet", "--suspect": "loss:bob", "--model": "model",
    "--out": "OUT.parquet", "--texts": "texts.parquet", "--alice": "model", "--sibling": "sibling",
    "--sibling again": "second", "--commitment": "c.json", "--salt-file": "salt", "--rows": "3,5-7",
    "--evidence": "ec.json", "--under-test": "u.parquet", "--derivative": "loss:bob",
    "--json": "OUT.json", "--placebo": "loss:else", "--plan": "plan.json",
    "--ledger": "ledger.jsonl", "--weights": "weights.json", "--design-json": "OUT.json",
    "--statistic": "spearman", "--seed": "1", "--column": "position=index", "--shuffle-seed": "7",
    "--seed-bits": "32", "--shuffler": "numpy", "--design": "late-vs-early",
    "--design-file": "pairs.json", "--prefix": "1", "--length": "2", "--effect": "0.1",
    "--tokenizer": "model", "--released": "sibling", "--label": "m", "--subsample": "50",
    "--n": "40", "--parameter": "a=1", "--time-stamp": "c.ots", "--reveal": "3",
    "--rescore": "model", "--pdf": "OUT.pdf", "--bundle": "b.zip", "--port": "8",
    "--model-folder": "EleutherAI/pythia-70m=model", "--prompts": "texts.parquet",
    "path": "log.csv", "bundle": "b.zip", "evidence": "e.json", "notebook": "n.ipynb",
    "name": "laptop", "folder": "study", "keys": "nope", "score --out": "OUT.parquet",
    "plan --out": "OUT.json", "commit --out": "OUT.json", "commit --salt-file": "OUT.salt",
    "reveal --out": "OUT.json", "bundle --out": "OUT.zip", "bundle --placebo": "loss:else",
    "exhibit --out": "OUT.html", "design fit --out": "OUT.json",
    "siblings commit --out": "OUT.json", "siblings bundle --out": "OUT.zip",
    "siblings bundle --commitment": "rc.json", "siblings bundle --evidence": "re.json",
    "test reshuffle --commitment": "rc.json", "report --out": "OUT", "lab record --out": "OUT",
    "transcript convert --out": "OUT", "study run --out": "OUT", "ledger show path": "ledger.jsonl",
    "notebooks copy folder": "OUT", "verify --reveal": "reveal.json",
    "audit name": "pythia-deduped", "audit --suspect": "loss:bob",
    "study reproduce --out": "OUT.md", "plan --effect": "0.1", "transcript check path": "t.parquet",
    "transcript check --option": "tokens=tokens",
}  # fmt: skip


def good(command: str, parameter: Any) -> str | None:
    """A value that the command can use, or None where only its default is known."""
    known = ALWAYS | GOOD
    name = named(parameter)
    return known.get(f"{command} {name}", known.get(name))


# ------------------------------------------------------------------------------- good files


def world(folder: Path) -> Path:
    """A folder of small files, each as some command wrote it, made in another."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    folder = folder / "world"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("t", "u"):
        columns = {"index": rng.permutation(120), "tokens": list(rng.integers(0, 90, (120, 8)))}
        columns |= {f"loss_{m}": 3 + rng.normal(size=120) for m in ("bob", "other", "else")}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    texts = pa.table({"tokens": list(rng.integers(0, 90, (30, 8)))})
    pq.write_table(texts, folder / "texts.parquet")
    t = Transcript.read(folder / "t.parquet")
    Scores.from_arrays(loglik=-rng.random(120), name="m", transcript=t).write(folder / "s.parquet")
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({str(i): i for i in range(99)}, unk_token="0"))
    cuts = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="1", eos_token="2"
    )
    for seed, name in enumerate(("model", "sibling", "second")):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        cuts.save_pretrained(folder / name)
    (folder / "c.ots").write_bytes(b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84")
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "a = 1\n",
            "id": "a", "execution_count": None, "outputs": []}  # fmt: skip
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "n.ipynb").write_text(json.dumps(book))
    (folder / "n.csv").write_text("index,loss_bob\n1,2.5\n0,3\n2,1\n")
    (folder / "n.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "closed.json").touch(mode=0)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "link.parquet").symlink_to(folder / "t.parquet")
    (folder / "empty").mkdir()
    (folder / "log.csv").write_text("\n".join(["step,id", *(f"{i // 4},{i}" for i in range(99))]))
    ids = pa.table({"id": range(99), "tokens": [[i % 90, 1, 2] for i in range(99)]})
    with pa.ipc.new_file(folder / "ids.arrow", ids.schema) as file:
        file.write_table(ids)
    recorded = shipped("data/recorded/studies/epochs")
    (folder / "study").mkdir()
    pq.write_table(pq.read_table(recorded / "cells.parquet")[:1], folder / "study/cells.parquet")
    shutil.copy(recorded / "scores.parquet", folder / "study/scores.parquet")
    PositionWeights("late", table=((0.1, 0.0), (0.9, 1.0))).write(folder / "weights.json")
    owner = ("--transcript", "t.parquet", "--reference", "loss:other")
    fixed = (*owner, "--suspect", "loss:bob", "--commitment", "c.json", "--salt-file", "salt")
    models = ("--texts", "texts.parquet", "--alice", "model", "--sibling", "second")
    models = (*models, "--sibling", "sibling")
    for line in (
        (
            *("test", "query", *owner, "--suspect", "loss:bob", "--shuffle", "owner"),
            *("--n-resamples", "99", "--json", "e.json", "--ledger", "ledger.jsonl"),
        ),
        (
            *("commit", *owner, "--shuffle", "owner", "--n-resamples", "99"),
            *("--out", "c.json", "--salt-file", "salt"),
        ),
        ("test", "query", *fixed, "--json", "ec.json"),
        ("bundle", *fixed, "--evidence", "ec.json", "--out", "b.zip", "--reveal", "3"),
        (
            *("reveal", "--transcript", "t.parquet", "--commitment", "c.json"),
            *("--salt-file", "salt", "--rows", "5", "--out", "reveal.json"),
        ),
        (
            *("test", "pairs", *owner, "--suspect", "loss:bob", "--shuffle", "owner"),
            *("--queries", "40", "--design-json", "pairs.json"),
        ),
        (
            *("design", "fit", *owner, "--under-test", "u.parquet", "--derivative", "loss:bob"),
            *("--out", "learned.json"),
        ),
        (
            *("plan", "--transcript", "t.parquet", "--model", "model", "--effect", "0.3"),
            *("--out", "plan.json"),
        ),
        ("siblings", "commit", *models, "--procedure", "as declared", "--out", "rc.json"),
        ("test", "reshuffle", *models, "--commitment", "rc.json", "--json", "re.json"),
    ):
        with contextlib.chdir(folder):
            done = ended(line)
        if done.status not in (0, 3):
            warnings.warn(f"{' '.join(line)}: {done.status} {done.said}", stacklevel=1)
    return folder


# ------------------------------------------------------------------------------- bad values

DEEP = 100_000
NUMBERS = [
    *("nan", "inf", "-inf", "-0", "0", "-1", "1", "1e-300", "1e300", str(10**20), str(-(10**20))),
    *("", " ", "seven", "1.5", "0.5", "0x10", "1_0", "٣", "9" * 5000, "1e999", str(2**31)),
    *(str(2**63), "2", "7", "0.05", "1000"),
]
WORDS = [
    *("", " ", "nope", "\x1b]0;mine\x07", "\x1b[2Jx", "x\ny", "x" * 300, "\u202ex", "\udcff", "-"),
    *("loss:", "loss:nope", "loss:\x1b[2J", "loglik:bob", "a=b", "a=", "=b", "{}", "1,2,", "9-1"),
    *("0-99999999999999999999", "http://[", "http://x:99999/v1", "ftp://x/v1", "http://", "hf://"),
    *("hf://datasets/", "hf://datasets/\x1b[2J", "a/b@", "a/b/c@d@e"),
    *("max(spearman", "max(" * 2000, "spearman:nope", "tokens-top0", "tokens-top9" + "9" * 20),
    *("residual-degree99", "a@\x1b[2J", "../../x", "x/" * 2000, "cuda:99", "8bit", "mixed", "chat"),
    *("position=nope", "tokens=loss_bob", "position=tokens", "sequence_length=0", "dtype=nope"),
    *("completions", "seed=-1", "ray://nope:1", "two-sided", "natural", "published_shuffler"),
    *("position=\x1b[2J", "epochs=-1", "files=/", "max(spearman, spearman)", "unknown"),
]
PATHS = [
    *("missing", "missing.json", "missing.parquet", "empty", ".", "/", "/dev/full", "/dev/null"),
    *("closed.json", "loop", "dangling", "link.parquet", "t.parquet/x", "x" * 300, "\x1b[2J.json"),
    *("x" * 300 + ".parquet", "~nobody/x", "model", "\udcff.json", "missing/missing.json", "/proc"),
]
VALUES = [
    *(None, True, -1, 0, 10**20, 10**400, 1e300, float("nan"), float("inf"), "", "x", [], {}),
    *([1], {"a": 1}, "\x1b[2J", "\ud800", "0" * 64, 0.5, "1e999", [[[]]], 2**63),
]


def bad_json(choose: Choose, text: str) -> str:
    """One value of a JSON text replaced or taken away, wherever it is."""
    content = json.loads(text)
    holder: Any = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return json.dumps(choose(VALUES))
        key = choose(keys)
        inner = isinstance(holder[key], dict | list) and len(holder[key])
        if not inner or choose([True, False, False]):
            break
        holder = holder[key]
    if choose([True, False, False]):
        del holder[key]
    else:
        holder[key] = choose(VALUES)
    return json.dumps(content)


def bad_table(choose: Choose, table: pa.Table) -> pa.Table:
    """A table without a column, with one of another type or odd values, or without rows."""
    name = choose(table.column_names)
    n = table.num_rows
    columns = [
        pa.array(["x"] * n), pa.array([None] * n, pa.float64()), pa.array([float("nan")] * n),
        pa.array([1e300] * n), pa.array([-1] * n), pa.array([2**62] * n), pa.array([[]] * n),
        pa.array([[-1, 2**31 - 1]] * n), pa.array([b"\xff"] * n), pa.array([True] * n), None,
        pa.array([{"a": 1}] * n), pa.array([0] * n), pa.array([[None]] * n, pa.list_(pa.int64())),
    ]  # fmt: skip
    values = choose([*columns, "rename", "none"])
    if isinstance(values, pa.Array):
        return table.set_column(table.column_names.index(name), name, values)
    if values == "rename":
        return table.rename_columns(["\x1b[2J" if c == name else c for c in table.column_names])
    return table.slice(0, 0) if values == "none" else table.drop_columns([name])


def bad_file(choose: Choose, here: Path, scratch: Path, like: str | None) -> str:
    """A file of wrong content, mostly of the kind that is expected."""
    files = sorted(p.name for p in here.iterdir() if p.is_file() and p.stat().st_size)
    if like is not None and (here / like).is_dir() and choose([True, True, False]):
        path = Path(shutil.copytree(here / like, scratch / like))
        one = choose(sorted(path.iterdir()))
        one.write_bytes(bad_bytes(choose, one.read_bytes(), one.suffix == ".json"))
        return str(path)
    name = like if like in files and choose([True, True, False]) else choose(files)
    source = here / name
    path = scratch / name
    data = source.read_bytes()
    way = choose(["flip", "cut", "content", "value", "value", "value", "other"])
    if way == "other":
        path = path.with_suffix(Path(choose(files)).suffix)
        path.write_bytes(data)
    elif way == "value" and path.suffix == ".parquet":
        pq.write_table(bad_table(choose, pq.read_table(source)), path)
    else:
        is_json = way == "value" and path.suffix in (".json", ".ipynb", ".jsonl")
        path.write_bytes(bad_bytes(choose, data, is_json, way))
    return str(path)


def bad_bytes(choose: Choose, data: bytes, is_json: bool, way: str = "") -> bytes:
    way = way or choose(["flip", "cut", "content", "value"])
    if is_json and way == "value":
        *lines, last = data.decode().splitlines() if b"\n{" in data else [data.decode()]
        return "\n".join([*lines, bad_json(choose, last)]).encode(errors="surrogatepass")
    if way == "flip" and data:
        at = choose(range(len(data)))
        return data[:at] + bytes([data[at] ^ 1 << choose(range(8))]) + data[at + 1 :]
    if way == "cut":
        return data[: choose(range(len(data) + 1))]
    return choose(
        [
            *(b"", b"\xff\xfe\x00", b"\x00" * 500, b"[" * DEEP, b'{"a":' * DEEP, b"{}", b"[]"),
            *(
                b"null",
                b'{"a": NaN}',
                b'{"a": 1e999}',
                b'{"a": 1, "a": 2}',
                b'{"a": ' + b"9" * 5000,
            ),
            *(b"a,b\n1\n", b"\x1f\x8bxx", b"PK\x03\x04", b"PAR1PAR1", b"\n\n", b"x" * 10**6),
        ]
    )


def bad_value(choose: Choose, parameter: Any, here: Path, scratch: Path, like: str | None) -> str:
    """A bad value, mostly of the kind that the option has."""
    kind = choose(["own"] * 6 + ["number", "word", "path", "file"])
    if kind == "own":
        declared = str(parameter.type_descriptor.annotation)
        is_number = "int" in declared or "float" in declared
        is_path = "Path" in declared or (like is not None and (here / like).exists())
        kind = "number" if is_number else choose(["path", "file", "file"]) if is_path else "word"
    if kind == "file":
        return bad_file(choose, here, scratch, like)
    value = choose({"number": NUMBERS, "word": WORDS, "path": PATHS}[kind])
    entry = here / value.partition("/")[0]
    if like is not None and like.startswith("OUT") and entry.name in os.listdir(here):
        mine = scratch / entry.name  # what may be written to is not shared with other inputs
        if entry.is_symlink():
            mine.symlink_to(scratch / "nowhere" if entry.name != "loop" else mine)
        else:
            mine.mkdir() if entry.is_dir() else mine.touch()
        return str(scratch / value)
    return value


def placed(value: str, here: Path, out: Path) -> str:
    """A value with the name of a good file as its path, and OUT in the folder to write to."""
    before, sign, name = value.rpartition("=")
    if name.startswith("OUT"):
        name = str(out / name)
    elif name.partition("/")[0] in os.listdir(here):
        name = str(here / name)
    return f"{before}{sign}{name}"


def bad_input(
    choose: Choose, command: str, here: Path, out: Path, scratch: Path
) -> tuple[list[str], list[str]]:
    """A command with good arguments, one to three of them replaced by bad ones; what it writes."""
    parameters = [p for p in COMMANDS[command].params if named(p) != "--help"]
    usual = [p for p in parameters if p.required or {named(p), f"{command} {named(p)}"} & {*ALWAYS}]
    others = [p for p in parameters if p not in usual]
    more = [choose(others) for _ in range(choose([0, 1, 1, 2]))] if others else []
    given = {named(p): p for p in [*usual, *more]}
    worse = {choose(list(given)) for _ in range(choose([1, 1, 1, 2, 3]))} if given else set()
    words, last, outputs = command.split(), ["--"], []
    for name, parameter in given.items():
        if getattr(parameter, "is_flag", False):
            words.append(name)
            continue
        known = good(command, parameter)
        if parameter.required and parameter.multiple:
            words.append(f"{name}={placed(GOOD.get(f'{name} again', known), here, out)}")
        bad = known is None or name in worse
        value = bad_value(choose, parameter, here, scratch, known) if bad else known
        value = placed(value, here, out)
        if (known or "").startswith("OUT") or name == "--ledger":
            outputs.append(value)
        if name.startswith("-"):
            words.append(f"{name}={value}")
        else:
            last.append(value)
    return words + last if len(last) > 1 else words, [o for o in outputs if o]


# ------------------------------------------------------------------------------- what comes of it


class Late(BaseException):
    pass


@dataclass
class Ended:
    """How a command ended: its status, what it said, and a traceback if there was one."""

    status: int | None
    out: str
    said: str
    trace: str = ""

    @property
    def fault(self) -> str | None:
        """What is wrong with this end, if anything."""
        if self.trace:
            return self.trace
        if self.status not in (0, 1, 2, 3):
            return f"status {self.status}"
        odd = [c for c in self.out + self.said if not (c.isprintable() or c in LETTERS)]
        if odd:
            return f"control character {odd[0]!r}"
        if "Traceback" in self.said:
            return "Traceback"
        errors = self.said.partition("error: ")[2].strip().splitlines()
        if self.status == 2 and len(errors) != 1:
            return f"{len(errors)} lines of error"
        return None

    @property
    def outcome(self) -> str:
        if self.fault:
            return "fault"
        if "Try --help" in self.said or "Usage:" in self.said:
            return "usage"
        if DOOR in self.said:
            return "work would begin"
        return ("ended well", "status 1", "one sentence", "not valid")[self.status or 0]


OUTCOMES = (
    *("ended well", "status 1", "one sentence", "usage", "not valid", "work would begin", "fault"),
)
DOOR = "here work in a process of its own would begin"


class Shut(subprocess.Popen):
    """The door of all work in processes of its own; a class, since libraries derive from it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.returncode = 0  # there is nothing to wait for
        raise InputError(f"{DOOR}: it is not fuzzed")


def ended(words: Sequence[str]) -> Ended:
    """Run a command in this process, under the deadline."""

    def late(*_: Any) -> None:
        raise Late

    out, err, status, trace = io.StringIO(), io.StringIO(), None, ""
    before = signal.signal(signal.SIGALRM, late), signal.getsignal(signal.SIGTERM)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE, 1)
    try:
        with (
            patch("sys.argv", ["palimpsest", *words]),
            patch("subprocess.Popen", Shut),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            app_main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else None
    except Late as error:
        trace = "past the deadline: " + where(error)
    except BaseException as error:
        trace = where(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGTERM, before[1])
    return Ended(status, out.getvalue(), err.getvalue(), trace)


def where(error: BaseException) -> str:
    """Kind of an error, and where in the project it left."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/workbench/" in f.filename]
    at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {at}: {str(error)[:200]!r}"


def apart(words: Sequence[str], full: bool) -> Ended:
    """Run a command in a process of its own; its output may be a full disk."""
    program = "import sys; sys.path.insert(0, {!r}); import fuzzing; fuzzing.alone()"
    with Path("/dev/full" if full else os.devnull).open("wb") as sink:
        try:
            done = subprocess.run(
                [sys.executable, "-c", program.format(str(Path(__file__).parent)), *words],
                stdout=sink if full else subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", timeout=6 * DEADLINE, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Ended(None, "", "", "past the deadline in a process of its own")
    trace = f"signal {-done.returncode}" if done.returncode < 0 else ""
    return Ended(done.returncode, done.stdout or "", done.stderr, trace)


def alone() -> None:
    subprocess.Popen = Shut  # type: ignore[misc, assignment]
    warnings.simplefilter("ignore")
    app_main()


def seen(folder: Path, but: Sequence[str]) -> dict[str, Any]:
    """What would differ if a file of the folder had been touched."""
    files = [p for p in folder.rglob("*") if not p.is_symlink() and p.is_file()]
    files = [p for p in files if not str(p).startswith((*but,))]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def tried(choose: Choose, command: str, here: Path, run: Any = ended) -> tuple[list[str], Ended]:
    """One bad input, in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
        out, scratch = Path(made, "out"), Path(made, "in")
        for folder in (out, scratch):
            folder.mkdir()
        words, outputs = bad_input(choose, command, here, out, scratch)
        before = seen(scratch, outputs), seen(here, outputs)
        with contextlib.chdir(out):
            done = run(words)
        left = [p for p in out.rglob("*") if p.is_file() and not p.is_symlink()]
        if not done.fault:
            if before != (seen(scratch, outputs), seen(here, outputs)):
                done.trace = "a file given was changed"
            elif [p for p in left if p.name.startswith(".")]:
                done.trace = "something half-written was left"
            # a design is written before its test is made, and stays
            elif (
                done.outcome in ("one sentence", "usage")
                and left
                and "--design-json" not in str(words)
                and "No space left" not in done.said  # of the output: the file is whole
            ):
                done.trace = f"left behind: {left[0].relative_to(out)}"
    return words, done


# ------------------------------------------------------------------------------- many of them


def work(seed: int, first: int, n: int, here: Path, log: Path) -> None:
    """Every CORES-th input, each told before and after, so that none is lost in a crash."""
    for name in SLOW:  # so that no deadline falls within an import, which would leave half of it
        import_module(name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with log.open("a") as told:
        for number in range(first, n, CORES):
            choose = random.Random(f"{seed} {number}").choice
            command = choose(sorted(COMMANDS))
            run = partial(apart, full=choose([True, False])) if number % APART == 0 else ended
            told.write(json.dumps([number, command]) + "\n")
            told.flush()
            started = time.monotonic()
            words, done = tried(choose, command, here, run)
            took = round(time.monotonic() - started, 3)
            row = [number, command, done.outcome, took, words, done.fault, done.said[-300:]]
            told.write(json.dumps(row) + "\n")
            told.flush()


def without_rights() -> None:
    """What is closed is closed to an administrator too: CAP_DAC_OVERRIDE and _READ_SEARCH go."""
    for right in (1, 2):
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)


def share(seed: int, first: int, n: int, here: Path) -> list[Any]:
    """One core's inputs, in a process that is started again after an input that ended it."""
    log = here.with_name(f"{first}.jsonl")
    told: list[Any] = []
    while first < n:
        words = ["work", *map(str, (seed, first, n, here, log))]
        done = subprocess.run(
            [sys.executable, __file__, *words], preexec_fn=without_rights, check=False
        )
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        if done.returncode == 0:
            return [row for row in rows if len(row) > 2] + told
        first = rows[-1][0] + CORES
        told.append([*rows[-1], "fault", 0, [], f"its process ended with {done.returncode}", ""])
    return [row for row in rows if len(row) > 2] + told


def main(n: int, seed: int) -> int:
    """Run inputs 0 to n - 1, print how they ended, and return 1 if one ended wrong."""
    with tempfile.TemporaryDirectory(prefix="fuzz-world-") as made:
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PALIMPSEST_HOME": f"{made}/home",
        }
        here = world(Path(made))
        with ThreadPoolExecutor(CORES) as pool:
            shares = pool.map(lambda first: share(seed, first, n, here), range(CORES))
            rows = sorted(chain(*shares))
    counts = Counter((row[1], row[2]) for row in rows) + Counter(("all", row[2]) for row in rows)
    typer.echo(" ".join(["command".ljust(20), *(f"{kind:>16}" for kind in OUTCOMES)]))
    for command in [*sorted(COMMANDS), "all"]:
        numbers = (f"{counts[command, kind]:>16,}" for kind in OUTCOMES)
        typer.echo(" ".join([command.ljust(20), *numbers]))
    typer.echo(f"{len(rows):,} inputs, the longest {max(row[3] for row in rows):.1f} s")
    faults = [row for row in rows if row[2] == "fault"]
    for number, _, _, _, words, fault, _ in faults:
        typer.echo(f"\n{number}: {fault}\n  palimpsest {shlex.join(words)[:500]}")
    return 1 if faults or len(rows) < n else 0


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(*map(int, sys.argv[2:5]), *map(Path, sys.argv[5:]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
