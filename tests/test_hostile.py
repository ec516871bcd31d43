"""Hostile and broken input, row by row of the table of what once did not hold.

The name of each test begins with its row.
"""

import contextlib
import ctypes
import gzip
import io
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers.keys import spellings, unpacked, unspelled
from test_bundle import bundled, case, edited, rebuilt
from typer.testing import CliRunner

from workbench import InputError, Scores, ShuffleClaim, Transcript
from workbench.archive import Archive
from workbench.cli import app, app_main
from workbench.exhibit import ExhibitFile, exhibit_html
from workbench.lab import open_run, recipe
from workbench.scorers.answers import Budget, Spend
from workbench.scorers.endpoint import Endpoint, Item
from workbench.tables import open_table
from workbench.verification import verify_bundle

KEY = "sk-marked/0123456789+marked"
DEEP = 100_000


def said(*arguments):
    """What a command says of input that it cannot use: one sentence, or a usage error."""
    out = io.StringIO()
    with (
        patch("sys.argv", ["palimpsest", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        pytest.raises(SystemExit) as left,
    ):
        app_main()
    assert left.value.code == 2, out.getvalue()
    return out.getvalue().strip()


def palimpsest(*arguments, **options):
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
        text=True,
        timeout=120,
        check=False,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


# ---------------------------------------------------------------- servers


@contextlib.contextmanager
def serving(*replies):
    """A server that sends these bytes, one reply a request, the last one again and again.

    A reply may be an iterator of pieces.
    """

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            head, _, body = head.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            while len(body) < length:
                body += connection.recv(65536)
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            for piece in [reply] if isinstance(reply, bytes) else reply():
                connection.sendall(piece)

    def listen():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=[server.accept()[0]], daemon=True).start()

    waiting = list(replies)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def reply(body, status="200 OK", *headers):
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chosen(text="b", **more):
    return json.dumps({"choices": [{"index": 0, "text": text}], **more})


def asked(url, tmp_path, **options):
    """The endpoint, and one question put to it; the store is in the folder."""
    options = {"timeout": 5.0, "attempts": 2, "first_wait": 0.01} | options
    endpoint = Endpoint(url, "m", store=tmp_path / "answers.sqlite", **options)
    item = Item({"prompt": "xa", "max_tokens": 1}, lambda choice: choice["text"], 6, 1)
    return endpoint, lambda: endpoint.ask("completions", [item])


def stored(folder):
    """Everything that was written, unpacked; and the number of answers."""
    with contextlib.closing(sqlite3.connect(folder / "answers.sqlite")) as store:
        (count,) = store.execute("SELECT count(*) FROM answers").fetchone()
    return b"".join(unpacked(path) for path in folder.rglob("*") if path.is_file()), count


@pytest.mark.parametrize("spelling", spellings(KEY))
def test_s1_a_key_that_comes_back_is_kept_in_no_spelling(spelling, tmp_path, monkeypatch):
    monkeypatch.setenv("BOB_KEY", KEY)
    inner = spellings(KEY)[spelling]
    assert any(KEY in one for one in unspelled(json.loads(f'"{inner}"').encode()))
    body = f'{{"choices": [{{"index": 0, "text": "b {inner}", "{inner}": [["{inner}"]]}}]}}'
    chunks = [f"{len(c):x}\r\n{c}\r\n" for c in (body[i : i + 7] for i in range(0, len(body), 7))]
    in_pieces = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    packed = reply(gzip.compress(body.encode()), "200 OK", "Content-Encoding: gzip")
    for number, sent in enumerate(
        (reply(body), packed, f"{in_pieces}{''.join(chunks)}0\r\n\r\n".encode())
    ):
        (tmp_path / str(number)).mkdir()
        with serving(sent) as url:
            _, ask = asked(url, tmp_path / str(number), api_key_env="BOB_KEY")
            ask()
        written, kept = stored(tmp_path / str(number))
        assert kept == 1
        assert b"[key]" in written
        assert not [one for one in unspelled(written) if KEY in one]


@pytest.mark.parametrize(
    "sent",
    [
        reply("", f"400 Bearer {KEY}"),
        reply("", "302 Found", f"Location: http://{KEY}/"),
        reply("", "429 slow", f"Retry-After: {KEY}"),
        reply("", "200 OK", f"X-Key: {KEY}"),
        reply(f"<b>{KEY}</b>", "500 out of luck"),
        f"HTTP/1.1 4{KEY} no\r\n\r\n".encode(),
        reply("[" * DEEP + KEY, "401 no"),
    ],
    ids=["status line", "redirect", "pause", "header", "body", "no HTTP", "no JSON"],
)
def test_s2_a_key_that_comes_back_is_not_said(sent, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("BOB_KEY", KEY)
    caplog.set_level(0)
    with serving(sent) as url, pytest.raises(InputError) as caught:
        asked(url, tmp_path, api_key_env="BOB_KEY")[1]()
    assert KEY not in f"{caught.value} {caplog.text} {stored(tmp_path)}"


def test_s5_an_answer_that_is_no_number_is_asked_for_again(tmp_path):
    bad = (chosen().replace('"b"', f'"b", "logprob": {no}') for no in ("NaN", "1e999"))
    with serving(*map(reply, bad), reply(chosen("good"))) as url:
        endpoint, ask = asked(url, tmp_path, attempts=3)
        assert ask() == ["good"]
        assert ask() == ["good"]
        with endpoint.answers() as store:
            assert store.spend.requests == 3


@pytest.mark.parametrize("count", [-12_000_000, 10**15, 10**300, 1.5, "7", True, 1e300, [3]])
def test_s6_a_count_of_tokens_that_cannot_be_is_the_worst_case(count, tmp_path):
    usage = {"prompt_tokens": count, "completion_tokens": count}
    with serving(reply(chosen(usage=usage))) as url:
        endpoint, ask = asked(url, tmp_path, budget=Budget(tokens=100))
        ask()
        with endpoint.answers() as store:
            assert store.spend == Spend(1, 6, 1)


@pytest.mark.parametrize(
    "body",
    [
        "[" * DEEP,
        '{"a":' * DEEP,
        '{"choices": [{"index": 0, "text": "b", "x": ' + "[" * 500 + "]" * 500 + "}]}",
        '{"error": ' + '{"error": ' * 900 + "1" + "}" * 901,
    ],
    ids=["brackets", "objects", "within a choice", "errors of errors"],
)
@pytest.mark.parametrize("status", ["200 OK", "400 no"])
def test_s7_nested_answers_are_one_sentence(body, status, tmp_path):
    with serving(reply(body, status)) as url, pytest.raises(InputError) as caught:
        asked(url, tmp_path)[1]()
    assert "\n" not in str(caught.value)
    assert stored(tmp_path)[1] == 0


@pytest.mark.parametrize("ahead", [b"HTTP/1.1 200 OK\r\n", reply(b"")[:-2]], ids=["head", "body"])
def test_s8_an_answer_that_never_ends_has_a_deadline(ahead, tmp_path):
    def drip():
        yield ahead.replace(b"Content-Length: 0", b"Content-Length: 99999") + (
            b"\r\n" if b"Content" in ahead else b"X: "
        )
        while True:
            time.sleep(0.05)
            yield b" "

    with serving(drip) as url, pytest.raises(InputError, match=r"no whole answer came in 0\.5 sec"):
        asked(url, tmp_path, timeout=0.5)[1]()


def test_s9_what_unpacks_to_a_great_deal_is_not_unpacked(tmp_path):
    packer = zlib.compressobj(1, wbits=31)
    blanks = b" " * 2**20
    bomb = b"".join(packer.compress(blanks) for _ in range(100)) + packer.flush()
    with (
        serving(reply(bomb, "200 OK", "Content-Encoding: gzip")) as url,
        pytest.raises(InputError, match="more than 67,108,864 bytes"),
    ):
        asked(url, tmp_path, attempts=1)[1]()
    with (
        serving(reply(gzip.compress(bomb), "200 OK", "Content-Encoding: gzip, gzip")) as url,
        pytest.raises(InputError, match="packed in a way not asked for"),
    ):
        asked(url, tmp_path / "twice", attempts=1)[1]()


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_given_to_another_request_is_asked_for_again(named, tmp_path):
    """The third repeats the second; where answers have no names of their own, it may be right."""
    texts = ["one", "two", "two", "three"]
    answers = [chosen(text, id=text if named else "same") for text in texts]
    with serving(*map(reply, answers)) as url:
        endpoint, _ = asked(url, tmp_path, concurrency=1)
        items = [Item({"prompt": p}, lambda choice: choice["text"], 6, 1) for p in "abc"]
        assert endpoint.ask("completions", items) == (
            ["one", "two", "three"] if named else ["one", "two", "two"]
        )


def test_s22_a_damaged_answer_is_asked_for_again(tmp_path):
    with serving(reply(chosen("good"))) as url:
        endpoint, ask = asked(url, tmp_path)
        ask()
        with contextlib.closing(sqlite3.connect(endpoint.store_path)) as store, store:
            store.execute("DROP TRIGGER answers_stay")
            store.execute("UPDATE answers SET answer = x'0000'")
        assert ask() == ["good"]
        assert ask() == ["good"]
        with endpoint.answers() as store:
            assert store.spend.requests == 2


# ---------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "b.zip"
    transcript, models = case()
    _, evidence, _ = bundled(path, transcript, models)
    return {
        "path": path, "transcript": transcript, "models": models, "evidence": evidence,
        "members": Archive.open(path).members,
    }  # fmt: skip


def test_s3_sentences_of_a_bundle_are_not_believed(made, tmp_path):
    """Each sentence of the evidence in turn, changed in the last digit of a number."""

    def bent(text):
        digit = max(i for i, c in enumerate(text) if c.isdigit())
        return text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]

    def reason(evidence):
        evidence["verdict_reason"] = bent(evidence["verdict_reason"])

    def detail(evidence):
        gate = next(g for g in evidence["gates"] if any(c.isdigit() for c in g["detail"]))
        gate["detail"] = bent(gate["detail"])

    def caveat(evidence):
        evidence["caveats"].append("The order was certified by a notary.")

    for change in (reason, detail, caveat):
        data = edited(made, "evidence.json", change)
        path = rebuilt(made, tmp_path, {"evidence.json": data})
        assert not verify_bundle(path).ok
        with pytest.raises(InputError, match="does not verify"):
            exhibit_html([ExhibitFile("e.json", data)], bundle=ExhibitFile.read(path))


def test_s18_a_full_disk_is_no_mismatch(made):
    with Path("/dev/full").open("w") as full:
        done = palimpsest("verify", made["path"], stdout=full)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- files


def flipped(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << offset % 8
    target = path.with_name(f"flipped{path.suffix}")
    target.write_bytes(data)
    return target


def pages(path):
    """Offsets within the pages' content, whose checksums are in their heads."""
    footer = pq.read_metadata(path).row_group(0)
    columns = [footer.column(i) for i in range(footer.num_columns)]
    for column in columns:
        start = column.dictionary_page_offset or column.data_page_offset
        yield from range(start + 64, start + column.total_compressed_size, 97)


def test_s10_a_damaged_byte_of_a_transcript_is_found(tmp_path):
    rng = np.random.default_rng(0)
    t = Transcript.from_arrays(rng.permutation(500), tokens=rng.integers(0, 999, (500, 16)))
    path = t.write(tmp_path / "t.parquet")
    offsets = list(pages(path))
    assert len(offsets) > 40
    for offset in offsets:
        damaged = flipped(path, offset)
        with pytest.raises(InputError, match=r"damaged|truncated"):
            list(Transcript.read(damaged).token_chunks())


def test_s20_a_damaged_byte_of_scores_changes_no_score(tmp_path):
    rng = np.random.default_rng(0)
    for plain in (False, True):
        scores = Scores.from_arrays(loglik=rng.normal(size=300), name="m")
        path = scores.write(tmp_path / "s.parquet", plain=plain)
        for offset in range(0, path.stat().st_size, 41):
            with contextlib.suppress(InputError):
                read = Scores.read(flipped(path, offset))
                assert read.values_sha256 == scores.values_sha256
    assert len(list(pages(path))) > 20


def test_s20_numbers_that_were_changed_are_not_read(tmp_path):
    path = Scores.from_arrays(loglik=[-1.0, -2.0], name="m").write(tmp_path / "s.parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "loglik_sum", pa.array([-1.0, -2.5])), path)
    with pytest.raises(InputError, match="not those written"):
        Scores.read(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json"])
def test_s11_nested_lines_are_one_sentence(name, tmp_path):
    """Transcripts, texts and corpora are all opened here."""
    line = b'{"a": "[{", "text": ' + b"[" * DEEP + b"]" * DEEP + b"}\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    program = "import sys; from workbench.tables import open_table; open_table(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, path], stderr=subprocess.PIPE, text=True, check=False
    )
    assert "InputError" in done.stderr
    assert "line 1 is nested more than 100 deep" in done.stderr


def test_s11_brackets_within_texts_are_no_nesting(tmp_path):
    path = tmp_path / "t.jsonl"
    text = "[" * 500 + '\\"' + "{" * 500
    path.write_text(json.dumps({"position": 0, "text": text, "tokens": [[1]] * 300}) + "\n")
    assert open_table(path)["text"].to_pylist() == [text]


def test_s12_text_that_is_not_utf_8_names_file_and_row(tmp_path):
    raw = pa.array([b"good", b"bad \xff\xfe", b"good"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"position": [1, 0, 2], "text": text}), path)
    with pytest.raises(InputError, match=r"t\.parquet: column 'text'.*UTF8.* index 1"):
        Transcript.read(path).texts()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    columns = {"index": rng.permutation(300), "tokens": list(rng.integers(0, 99, (300, 8)))}
    columns |= {f"loss_{name}": rng.normal(size=300) for name in ("bob", "other")}
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def query(table, *more):
    return [
        *("test", "query", "--transcript", table, "--suspect", "loss:bob"),
        *("--reference", "loss:other", "--shuffle", "owner", *more),
    ]


@pytest.mark.parametrize("bits", [-4, 513, 99_999_999])
def test_s4_bits_of_no_seed_are_refused(bits, table):
    assert "bits" in said(*query(table, "--shuffle", "published_shuffler", "--seed-bits", bits))
    with pytest.raises(InputError, match="bits"):
        ShuffleClaim("published_shuffler", seed_bits=bits)


@pytest.mark.parametrize(
    "more",
    [
        ["--seed", -1],
        ["--n-resamples", -5],
        ["--alpha", "nan"],
        ["--alpha", -1],
        ["--smallest-effect", "nan"],
        ["--subsample", -3],
        ["--prefix", -1],
        ["--length", 0],
    ],
    ids=lambda more: "".join(map(str, more)),
)
def test_s13_a_query_test_refuses_numbers_out_of_range(more, table):
    said(*query(table, *more))


@pytest.mark.parametrize(
    "more",
    [
        ["--effect", "1e-300"],
        ["--effect", "nan"],
        ["--effect", ".1", "--pvalue", "nan"],
        ["--effect", ".1", "--pvalue", "0"],
        ["--effect", ".1", "--power", "1"],
        ["--effect", ".1", "--seed", "-1"],
    ],
    ids="".join,
)
def test_s13_a_plan_refuses_numbers_out_of_range(more, table):
    said("plan", "--transcript", table, "--model", "m", *more)


def test_s13_other_commands_refuse_numbers_out_of_range(table, tmp_path):
    salt = ["--out", tmp_path / "c.json", "--salt-file", tmp_path / "salt"]
    said("commit", "--transcript", table, "--shuffle", "owner", *salt, "--seed", "-1")
    said("transcript", "sample", table, "--out", tmp_path / "o.parquet", "--seed", "-1")
    said("lab", "siblings", "--recipe", "smoke", "--fraction", "nan")
    assert "port" in said("demo", "--no-browser", "--port", "-1")


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: t.drop_columns(["n_tokens"]),
        lambda t, m: t.drop_columns(["loglik_sum"]),
        lambda t, m: t.set_column(0, "loglik_sum", pa.array(["a", "b"])),
        lambda t, m: t.set_column(1, "n_tokens", pa.array(["a", "b"])),
        lambda t, m: t.append_column("digest", pa.array([b"a", b"bc"])),
        lambda t, m: t.append_column("token_logliks", pa.array([1, 2])),
        *[lambda t, m, name=name: m.pop(name) and None for name in ("key", "identity", "format")],
        lambda t, m: m.update(identity=[1]),
        lambda t, m: m.update(identity={"scorer": 1, "model": [2]}),
        lambda t, m: m.update(caveats=3),
        lambda t, m: m.update(values_sha256=7),
        lambda t, m: m.clear(),
        lambda t, m: [1, 2],
        lambda t, m: "[" * DEEP,
        lambda t, m: b"\xff",
    ],
)
def test_s14_scores_with_a_part_missing_or_of_another_type(change, tmp_path):
    path = Scores.from_arrays(loglik=[-1.0, -2.0], name="m").write(tmp_path / "s.parquet")
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"palimpsest"])
    changed = change(table, metadata)
    if isinstance(changed, pa.Table):
        table = changed
    elif isinstance(changed, str | bytes) or changed is not None:
        metadata = changed
    raw = metadata if isinstance(metadata, str | bytes) else json.dumps(metadata)
    pq.write_table(table.replace_schema_metadata({b"palimpsest": raw}), path)
    with pytest.raises(InputError) as caught:
        Scores.read(path)
    assert "\n" not in str(caught.value)


# What is read by each command; {} is the path.
READERS = {
    "transcript": ("test", "query", "--transcript", "{}.parquet", "--suspect", "loss:a"),
    "scores": ("test", "query", "--transcript", "TABLE", "--suspect", "{}.parquet"),
    "order": ("transcript", "inspect", "{}"),
    "bundle": ("verify", "{}.zip"),
    "evidence": ("exhibit", "{}.json", "--out", "OUT"),
    "ledger": ("ledger", "show", "{}.jsonl"),
    "prompts": ("sample", "--model", "m", "--out", "OUT", "--prompts", "{}.jsonl"),
    "text": ("lab", "train", "--recipe", "smoke", "--text", "{}.jsonl"),
    "model": ("score", "--transcript", "TABLE", "--model", "{}", "--out", "OUT"),
    "notebook": ("report", "{}.ipynb", "--out", "OUT"),
    "design": (
        "test", "pairs", "--transcript", "TABLE", "--suspect", "loss:bob",
        "--reference", "loss:other", "--shuffle", "owner", "--design", "{}.json", "--queries", "9",
    ),
}  # fmt: skip


def reading(reader, path, table, tmp_path):
    """The command that reads the path."""
    known = {"TABLE": table, "OUT": tmp_path / "out"}
    return [known.get(word) or word.replace("{}", str(path)) for word in READERS[reader]]


def tell():
    """What each command of a list on standard input says; this process may not read everything."""
    told = {}
    for name, arguments in json.load(sys.stdin).items():
        try:
            told[name] = said(*arguments)
        except BaseException as error:
            told[name] = f"Traceback: {type(error).__name__} {error}"
    sys.stdout.write(json.dumps(told))


def without_rights():
    """No process, not even an administrator's, reads what is closed to it from here on."""
    for override in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 takes one away for good
        ctypes.CDLL(None).prctl(24, override, 0, 0, 0)


@pytest.fixture(scope="module")
def closed(table, tmp_path_factory):
    """What each reader says of a file, or of weights, that it may not read."""
    folder = tmp_path_factory.mktemp("closed")
    commands = {}
    for reader in READERS:
        commands[reader] = [*map(str, reading(reader, folder / reader, table, folder))]
        Path(next(w for w in commands[reader] if str(folder / reader) in w)).touch(mode=0)
    model = folder / "weights"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt_neox", "vocab_size": 9}')
    (model / "model.safetensors").touch(mode=0)
    commands["weights"] = [
        *map(str, reading("model", model, table, folder)),
    ]
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_hostile"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; test_hostile.tell()"],
        input=json.dumps(commands),
        text=True,
        stdout=subprocess.PIPE,
        preexec_fn=without_rights,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("reader", READERS)
def test_s15_what_may_not_be_read_is_one_sentence(reader, closed):
    assert "Traceback" not in closed[reader]
    assert "\n" not in closed[reader]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["long", "loop"])
def test_s16_names_too_long_and_loops_are_one_sentence(reader, kind, table, tmp_path):
    path = tmp_path / ("x" * 300 if kind == "long" else "loop")
    arguments = reading(reader, path, table, tmp_path)
    if kind == "loop":
        named = Path(next(w for w in arguments if str(path) in str(w)))
        named.symlink_to(named)
    assert "\n" not in said(*arguments).strip()


@pytest.mark.parametrize("reader", ["evidence", "design", "notebook"])
def test_s23_nested_files_are_one_sentence(reader, table, tmp_path):
    arguments = reading(reader, tmp_path / "deep", table, tmp_path)
    Path(next(w for w in arguments if "deep" in str(w))).write_text('{"a":' * DEEP)
    assert "\n" not in said(*arguments)


def test_s23_a_nested_configuration_is_one_sentence(table, tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * DEEP)
    (tmp_path / "model.safetensors").touch()
    out = tmp_path / "s.parquet"
    said("score", "--transcript", table, "--model", tmp_path, "--out", out)


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_s17_what_is_no_file_is_not_replaced_by_one(kind, table, tmp_path):
    out = tmp_path / "out.json"
    if kind == "fifo":
        os.mkfifo(out)
        threading.Thread(target=out.read_text, daemon=True).start()
    else:
        out.symlink_to(tmp_path / "target.json")
    CliRunner().invoke(app, [*map(str, query(table, "--json", out))])
    assert out.is_symlink() if kind == "link" else out.is_fifo()


def test_s19_a_full_disk_leaves_no_half_of_a_salt(table, tmp_path):
    """No file may grow beyond 20 bytes, which is as if the disk were full."""
    salt = tmp_path / "salt"
    done = palimpsest(
        *("commit", "--transcript", table, "--shuffle", "owner"),
        *("--out", tmp_path / "c.json", "--salt-file", salt),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not salt.exists()


def test_s24_more_resamples_than_can_be_drawn_are_refused(table):
    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 3)
    try:
        assert "resamples" in said(*query(table, "--n-resamples", 10**20))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_s24_a_network_that_no_machine_holds_is_refused():
    with pytest.raises(InputError, match="layers"):
        replace(recipe("smoke"), layers=10**7)


def test_s24_texts_of_a_whole_disk_are_refused(tmp_path):
    for number in range(20):
        with (tmp_path / f"{number}.txt").open("wb") as file:
            file.truncate(2**40)
    arguments = ("lab", "train", "--recipe", "smoke", "--text", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it was read"))
        patch.setattr(Path, "read_bytes", lambda *_, **__: pytest.fail("it was read"))
        said(*arguments)


TITLE = "\x1b]0;mine\x07"


def test_s25_a_label_sets_no_title_of_a_window(table, tmp_path):
    values = pq.read_table(table)
    values = values.append_column(f"loss_{TITLE}", values["loss_bob"])
    path = tmp_path / "t.parquet"
    pq.write_table(values, path)
    found = query(path, "--json", tmp_path / "e.json")
    found[found.index("loss:bob")] = f"loss:{TITLE}"
    done = CliRunner().invoke(app, [*map(str, found)])
    assert done.exit_code in (0, 3)
    assert "\x1b" not in done.output
    assert "\x1b" not in said(*query(tmp_path / f"{TITLE}.parquet"))


def descendants(pid):
    """Processes that a process has started, and those that they have."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(word) for word in listed.read_text().split()] if listed.exists() else []
    return found + [further for child in found for further in descendants(child)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["demo", "report"])
def test_s26_what_a_killed_command_started_ends_with_it(command, tmp_path):
    """The server of a demo; the worker of a report, and its kernel at work."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at_work = tmp_path / "at_work"
    cell = f"import pathlib, time; pathlib.Path({str(at_work)!r}).touch(); time.sleep(600)"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "n.ipynb"
    )
    arguments = {
        "demo": ["--no-browser", "--port", str(port)],
        "report": [tmp_path / "n.ipynb", "--out", tmp_path / "out"],
    }[command]
    running = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = []
    try:
        while not started or (command == "report" and not at_work.exists()):
            assert running.poll() is None
            time.sleep(0.05)
            started = descendants(running.pid)
        assert len(started) >= (2 if command == "report" else 1)
        running.kill()
        running.wait()
        for _ in range(100):
            left = [pid for pid in started if Path(f"/proc/{pid}").exists()]
            if not left:
                break
            time.sleep(0.1)
        assert not left
    finally:
        running.kill()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_s29_a_suspect_that_is_none_is_answered_with_those_that_are():
    with pytest.raises(InputError, match=r"'nope' is no model of this run.* derivative"):
        open_run("recorded").scores("nope")


def test_s30_weights_that_cannot_be_read_are_not_called_damaged(closed):
    assert "save" not in closed["weights"]
    assert "Permission denied" in closed["weights"]


def test_s32_nothing_that_processes_exchange_is_pickled():
    package = Path(__file__).parents[1] / "workbench"
    assert [p.name for p in package.rglob("*.py") if "import pickle" in p.read_text()] == []
