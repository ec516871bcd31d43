"""Every path to the hub, by the real clients against a stand-in: what opens, and what is said."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers.hub import Client, Fault, Hub

from workbench.errors import InputError
from workbench.hub import parse_name

transformers = pytest.importorskip("transformers")
pytest.importorskip("datasets")

CARD = """---
configs:
- config_name: pythia_deduped_100k
  data_files: pythia_deduped_100k/train-*
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: test, path: small/test-*}
---
"""
SAMPLES = "hij/sequence_samples"
TOKEN = "hf_secret"


def rows(n: int, folder) -> None:
    rng = np.random.default_rng(n)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokens = pa.array(rng.integers(0, 40, (n, 12)).tolist())
    texts = [f"text {i} of {n}" * 3 for i in range(n)]
    pq.write_table(pa.table({"index": rng.permutation(n), "tokens": tokens, "body": texts}), folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, one_thread):
    torch = pytest.importorskip("torch")
    made = tmp_path_factory.mktemp("made")
    hub = Hub(tmp_path_factory.mktemp("hub"))
    for seed, name in enumerate(("alice", "other")):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
            vocab_size=40, max_position_embeddings=16,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(made / name)
    transformers.LlamaForCausalLM(config).save_pretrained(made / "parts", max_shard_size="2KB")
    hub.add("models", "EleutherAI/pythia-6.9b-deduped", made / "alice")
    hub.add("models", "EleutherAI/pythia-6.9b", made / "other")
    for name in ("alice", "gated", "private", "busy", "again", "late", "cut", "unread", "first"):
        hub.add("models", f"lab/{name}", made / "alice")
    hub.add("models", "lab/alice", made / "other", "step7")
    hub.add("models", "lab/parts", made / "parts")
    hub.close("lab/gated", "gated", TOKEN)
    hub.close("lab/private", "private", TOKEN)
    config = (made / "alice/config.json").read_text()
    adapter = json.dumps({"base_model_name_or_path": "lab/alice"})
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    for name, files in {
        "pickled": {"config.json": config, "pytorch_model.bin": "x"},
        "gguf": {"README.md": "x", "q4.gguf": "x"},
        "adapter": {"adapter_config.json": adapter, "adapter_model.safetensors": "x"},
        "empty": {"config.json": config},
        "shard": {"config.json": config, "model.safetensors.index.json": index},
        "tokenizer": {"tokenizer.json": "{}"},
    }.items():
        (made / name).mkdir()
        for file, text in files.items():
            (made / name / file).write_text(text)
        hub.add("models", f"lab/{name}", made / name)
    hub.add("models", "lab/converted", made / "pickled")
    hub.add("models", "lab/converted", made / "alice", "refs/pr/3")
    hub.add("models", "lab/converted", made / "pickled", "refs/pr/4")
    data = made / "data"
    rows(400, data / "pythia_deduped_100k/train-00000-of-00002.parquet")
    rows(100, data / "pythia_deduped_100k/train-00001-of-00002.parquet")
    rows(50, data / "small/train-00000-of-00001.parquet")
    rows(20, data / "small/test-00000-of-00001.parquet")
    rows(30, data / "loose.parquet")
    hub.add("datasets", "lab/plain", data)
    (data / "README.md").write_text(CARD)
    for name in (SAMPLES, "lab/gated", "lab/cached", "lab/unread"):
        hub.add("datasets", name, data)
    kinds = made / "files"
    kinds.mkdir()
    table = 'index,tokens,body\n0,"[1, 2]",one two three four\n1,"[3]",five six seven eight\n'
    (kinds / "t.csv").write_text(table)
    lines = [{"index": i, "tokens": [i], "body": f"line {i} of a file"} for i in (0, 1)]
    (kinds / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (kinds / "t.json").write_text(json.dumps(lines))
    hub.add("datasets", "lab/files", kinds)
    rows(60, data / "small/train-00000-of-00001.parquet")
    hub.add("datasets", SAMPLES, data, "v2")
    return hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with hub.running() as endpoint:
        client = Client(endpoint, tmp_path_factory.mktemp("client"))
        yield client
        client.close()


@pytest.fixture(autouse=True)
def whole(hub):
    yield
    hub.faults.clear()
    hub.asked.clear()


def asked(hub, beginning: str) -> list[str]:
    return [p for method, p in hub.asked if method == "GET" and p.startswith(beginning)]


# ---------------------------------------------------------------------- what opens


@pytest.mark.parametrize(
    ("source", "options", "n"),
    [
        (f"{SAMPLES}/pythia_deduped_100k", {}, 500),
        (f"{SAMPLES}/small", {}, 50),
        (SAMPLES, {"subset": "small"}, 50),
        (SAMPLES, {"subset": "small", "split": "test"}, 20),
        (f"{SAMPLES}@v2", {"subset": "small"}, 60),
        (f"{SAMPLES}@v2/small", {}, 60),
        (f"{SAMPLES}/small@v2", {}, 60),
        (f"{SAMPLES}/loose", {}, 30),
        (f"hf://datasets/{SAMPLES}/small", {"split": "test"}, 20),
        (f"hf://datasets/{SAMPLES}@v2/small/train-00000-of-00001.parquet", {}, 60),
        (f"hf://datasets/{SAMPLES}/pythia_deduped_100k/train-00001-of-00002.parquet", {}, 100),
        ("lab/plain/pythia_deduped_100k", {}, 500),
        ("lab/plain/loose", {}, 30),
        ("hf://datasets/lab/files/t.csv", {}, 2),
        ("hf://datasets/lab/files/t.jsonl", {}, 2),
        ("hf://datasets/lab/files/t.json", {}, 2),
    ],
)
def test_a_data_set_opens_by_every_name(client, source, options, n):
    assert client.ask("read", source, options).get("found") == n
    texts = client.ask("corpus", source, {**options, "column": "body"})
    assert texts.get("found") == n, texts


def test_a_revision_is_part_of_every_name(client, hub):
    main = client.ask("model", "lab/alice", None)["found"]
    step = client.ask("model", "lab/alice@step7", None)["found"]
    assert re.fullmatch("[0-9a-f]{40}", step)
    assert main != step == client.ask("model", "lab/alice", "step7")["found"]
    assert step == client.ask("model", f"lab/alice@{step}", None)["found"]
    assert "found" in client.ask("model", "lab/converted@refs/pr/3", None)
    assert "found" in client.ask("tokenizer", "lab/tokenizer@main")


def test_names_are_taken_apart():
    assert parse_name("a/b@refs/pr/3", "model") == ("a/b", "refs/pr/3", None)
    assert parse_name("a/b@refs/pr/3/c/d", "dataset") == ("a/b", "refs/pr/3", "c/d")
    assert parse_name("gpt2", "model") == ("gpt2", None, None)
    assert parse_name("lab/pile-6.9b", "dataset").part is None
    for name in ("./a", "/a/b", "~/a", "a/b/c.parquet", "runs/t.jsonl"):
        with pytest.raises(InputError, match="does not exist: check the path"):
            parse_name(name, "dataset")
    with pytest.raises(InputError, match="the revisions x and y: leave one out"):
        parse_name("a/b@x", "model", "y")


# ---------------------------------------------------------------------- what does not, and why

OFFLINE = {"HF_HUB_OFFLINE": True}
HIDDEN = "the hub shows no model lab/{} to your token: check the name, and whether the token may"
LACKS = r"HF_HUB_OFFLINE is set.*its cache here lacks {}: fetch it with HF_HUB_OFFLINE=0"


@pytest.mark.parametrize(
    ("call", "args", "settings", "faults", "message"),
    [
        ("model", ["lab/gated"], {}, {}, "is gated: accept its terms at http.*/lab/gated, .*HF_TO"),
        ("model", ["lab/gated"], {"token": "hf_bad"}, {}, "has not been let in: ask for access at"),
        ("model", ["lab/private"], {}, {}, "shows no model lab/private: check.*if it is private"),
        ("model", ["lab/private"], {"token": "hf_bad"}, {}, HIDDEN.format("private")),
        ("model", ["lab/nobody"], {"token": TOKEN}, {}, HIDDEN.format("nobody")),
        ("model", ["lab/never"], {"token": "hf_bad"}, {"status": 401}, "does not take your token"),
        ("model", ["lab/alice@step8"], {}, {}, r"no revision 'step8' \(it has main, step7\)"),
        ("model", ["lab/pickled"], {}, {}, "lab/pickled has pickled weights only, .*save it again"),
        ("model", ["lab/converted"], {}, {}, "pickled weights only.*take lab/converted@refs/pr/3,"),
        ("model", ["lab/gguf"], {}, {}, "has GGUF weights only: .*--endpoint"),
        ("model", ["lab/adapter"], {}, {}, "holds an adapter of 'lab/alice'.*merge it"),
        ("model", ["lab/empty"], {}, {}, r"has no weights \(model.safetensors\)"),
        ("model", ["lab/shard"], {}, {}, "lacks model-00001-of-00001.safetensors, a part of"),
        ("model", ["lab/tokenizer"], {}, {}, "has no config.json"),
        ("model", ["not a name"], {}, {}, "not a name does not exist: check the path"),
        ("model", ["a--b/c"], {}, {}, "is no file or folder here, and no name of the hub"),
        ("model", ["lab/busy"], {}, {"status": 429}, r"\(429, too many requests\).*with a token"),
        ("model", ["lab/busy"], {}, {"status": 429, "retry_after": 900}, r"\(429.*try in 900 s"),
        ("model", ["lab/busy"], {}, {"status": 503}, r"\(503, Service Unavailable\).*try later"),
        (
            "model", ["lab/late"], {"HF_HUB_ETAG_TIMEOUT": 1}, {"delay": 20},
            r"took too long.*raise HF_HUB_ETAG_TIMEOUT \(1 s\)",
        ),
        (
            "model", ["lab/never"], {"ENDPOINT": "http://127.0.0.1:9"}, {},
            r"could not be had from the hub \(ConnectError: .*: check the network",
        ),
        ("model", ["lab/never"], OFFLINE, {}, LACKS.format("the model lab/never")),
        ("tokenizer", ["lab/alice"], {}, {}, "lab/alice has no tokenizer"),
        ("read", ["lab/gated/small", {}], {}, {}, "data set lab/gated is gated: .*/datasets/lab"),
        ("read", ["lab/none/x", {}], {}, {}, "the hub shows no data set lab/none: check the name"),
        ("read", [SAMPLES, {}], {}, {}, r"several configurations \(py.*, small\): name one"),
        ("read", [f"{SAMPLES}/big", {}], {}, {}, r"no conf.* named .big. \(configurations: py"),
        ("read", [f"{SAMPLES}/small", {"split": "dev"}], {}, {}, r"'dev' \(splits: train, test\)"),
        ("read", [f"{SAMPLES}@v3/small", {}], {}, {}, r"no revision 'v3' \(it has main, v2\)"),
        ("read", [f"{SAMPLES}/small", {"subset": "x"}], {}, {}, "part small, and subset 'x'"),
        ("read", ["lab/nothing.parquet", {}], {}, {}, "does not exist: check the path"),
        ("read", ["lab/plain/small", {}], OFFLINE, {}, LACKS.format(".*data set lab/plain")),
        ("corpus", [SAMPLES, {}], {}, {}, r"several configurations \(py.*, small\): name one"),
    ],
)  # fmt: skip
def test_each_refusal_is_one_sentence_with_its_remedy(
    client, hub, call, args, settings, faults, message
):
    if faults:
        hub.faults.append(Fault(f"*/{args[0]}*", **faults))
    said = client.ask(call, *args, *([None] if call == "model" else []), **settings)
    assert re.search(message, said.get("refused", "")), said
    assert "\n" not in said["refused"]
    assert "hf_" not in said["refused"]
    if faults.get("retry_after"):
        assert said["slept"] == []  # a quarter of an hour is not waited for in silence


def test_a_busy_hub_is_asked_again_when_it_says(client, hub):
    hub.faults.append(Fault("*/lab/again*", status=503, retry_after=7, times=2))
    said = client.ask("model", "lab/again", None)
    assert "found" in said
    assert said["slept"][:2] == [7, 7]


def test_a_slow_hub_has_the_time_that_the_client_gives_it(client, hub):
    hub.faults.append(Fault("/api/models/lab/late*", delay=4, times=1))
    assert "found" in client.ask("model", "lab/late", None)


def test_a_connection_that_breaks_is_taken_up_again(client, hub):
    hub.faults.append(Fault("/cdn/*", cut=100, times=2))
    assert "found" in client.ask("model", "lab/cut", None)


def test_the_cache_does_without_the_hub_or_says_what_it_lacks(client):
    parts = {"small": 50, "loose": 30}
    commit = client.ask("model", "lab/parts", None)["found"]
    for part, n in parts.items():
        assert client.ask("read", f"lab/cached/{part}", {})["found"] == n
    for settings in ({"HF_HUB_OFFLINE": True}, {"ENDPOINT": "http://127.0.0.1:9"}):
        assert client.ask("model", "lab/parts", None, **settings).get("found") == commit
        for part, n in parts.items():
            said = client.ask("read", f"lab/cached/{part}", {}, **settings)
            assert said.get("found") == n, said
    shard = next(client.home.glob("hf/hub/models--lab--parts/snapshots/*/model-00002*"))
    shard.unlink()
    said = client.ask("model", "lab/parts", None, HF_HUB_OFFLINE=True)
    assert re.search(LACKS.format(f"{shard.name} of the model lab/parts"), said["refused"])


def test_tokens_open_doors_and_are_written_nowhere(client):
    assert "found" in client.ask("model", "lab/gated", None, token=TOKEN)
    assert "found" in client.ask("model", "lab/private", None, token=TOKEN)
    assert client.ask("read", "lab/gated/small", {}, token=TOKEN).get("found") == 50
    kept = [path for path in client.home.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]


# ---------------------------------------------------------------------- commands

WINDOW = ("--device", "cpu")


def test_a_published_audit_runs_from_the_hub_to_the_verdict(client, hub):
    for kept in (client.home / "hf" / "hub").glob("*--pythia-6.9b*"):
        shutil.rmtree(kept)
    shutil.rmtree(client.home / "hf/hub/datasets--hij--sequence_samples", ignore_errors=True)
    status, output = client.ask(
        "cli", "audit", "pythia-6.9b-deduped", "--suspect", "EleutherAI/pythia-6.9b-deduped",
        "--n", "300", "--n-resamples", "199", "--alpha", "0.05", *WINDOW,
    )["found"]  # fmt: skip
    assert status in (0, 3), output
    assert re.search(r"EleutherAI/pythia-6.9b: [\d.]+kB to fetch \(.*model.safetensors", output)
    assert "pythia-6.9b-deduped itself, 100,000 examples" in output
    fetched = [hub.large[path[5:]].suffix for path in asked(hub, "/cdn/")]
    assert fetched == [".safetensors", ".safetensors", ".parquet", ".parquet"]


DATA = ("--transcript", "lab/unread", "--subset", "pythia_deduped_100k")
MODEL, LACKING = "lab/unread", "lab/pickled"


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "pythia-6.9b-deduped", "--suspect", LACKING),
        ("score", *DATA, "--model", LACKING, "--out", "s.parquet"),
        ("plan", *DATA, "--model", MODEL, "--reference", LACKING),
        ("sample", "--model", LACKING, "--prompts", "none.jsonl", "--out", "t.parquet"),
        ("commit", *DATA, "--placebo", LACKING, "--out", "c.json", "--salt-file", "c.salt"),
        ("test", "query", *DATA, "--suspect", MODEL, "--reference", LACKING),
        ("test", "pairs", *DATA, "--suspect", MODEL, "--placebo", LACKING, "--queries", "9"),
        ("test", "sequential", *DATA, "--suspect", MODEL, "--reference", LACKING, "--queries", "9"),
        ("test", "reshuffle", "--texts", "none.txt", "--alice", MODEL, "--sibling", LACKING),
        (
            "design", "fit", *DATA, "--under-test", "lab/unread/small", "--derivative", MODEL,
            "--reference", LACKING, "--out", "d.json",
        ),
        (
            "siblings", "commit", "--texts", "none.txt", "--alice", MODEL, "--sibling", LACKING,
            "--procedure", "retrained", "--out", "c.json",
        ),
    ],
    ids=lambda arguments: " ".join(a for a in arguments[:2] if a[0] != "-"),
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_fetched(client, hub, arguments):
    assert "pickled weights only" in client.ask("cli", *arguments)["refused"]
    assert not asked(hub, "/cdn/")


@pytest.mark.parametrize(
    "arguments",
    [
        ("test", "partition", *DATA, "--texts", "none.txt", "--tokenizer", "lab/alice"),
        (
            "score", *DATA, "--model", "bob", "--endpoint", "http://127.0.0.1:9/v1",
            "--tokenizer", "lab/alice", "--out", "s.parquet",
        ),
    ],
)  # fmt: skip
def test_a_missing_tokenizer_too(client, hub, arguments):
    assert "lab/alice has no tokenizer" in client.ask("cli", *arguments)["refused"]
    assert not asked(hub, "/cdn/")


def test_no_weights_are_fetched_for_a_data_set_that_is_not_there(client, hub):
    said = client.ask(
        "cli", "score", "--model", "lab/converted@refs/pr/3", "--transcript", SAMPLES,
        "--subset", "none", "--out", "s.parquet",
    )  # fmt: skip
    assert "no configuration, folder or file named 'none'" in said["refused"]
    assert not asked(hub, "/cdn/")


def test_score_and_query_take_every_name(client):
    for model in ("lab/alice@step7", "lab/alice"):
        out = model[-5:] + ".parquet"
        done = client.ask(
            "cli", "score", "--model", model, "--transcript", SAMPLES, "--subset", "small",
            "--split", "test", "--out", out, "--quiet", *WINDOW,
        )  # fmt: skip
        assert done.get("found", [1])[0] == 0, done
    done = client.ask(
        "cli", "test", "query", "--transcript", f"hf://datasets/{SAMPLES}/small", "--split", "test",
        "--suspect", "step7.parquet", "--reference", "lab/alice@main", "--n-resamples", "99",
        "--alpha", "0.05", *WINDOW,
    )  # fmt: skip
    assert done.get("found", [1])[0] in (0, 3), done


def test_other_commands_take_every_name_and_say_what_they_fetch(client):
    small, there = ("--transcript", SAMPLES, "--subset", "small"), "lab/alice@step7"
    done = client.ask("cli", "plan", *small, "--model", there, "--effect", "0.1", "--quiet")
    assert done.get("found", [1])[0] == 0, done
    done = client.ask(
        "cli", "test", "pairs", *small, "--suspect", there, "--reference", "lab/first", "--queries",
        "20", "--shuffle", "owner", "--alpha", "0.05", "--prefix", "1", *WINDOW,
    )  # fmt: skip
    assert done.get("found", [1])[0] in (0, 3), done
    assert re.search(r"lab/first: [\d.]+kB to fetch \(.*model.safetensors\)", done["found"][1])
    rows(8, client.home / "prompts.parquet")
    done = client.ask(
        "cli", "sample", "--model", "lab/alice", "--prompts", "prompts.parquet", "--prompt-tokens",
        "4", "--tokens", "2", "--texts", "3", "--out", "sampled.parquet", *WINDOW,
    )  # fmt: skip
    assert done.get("found", [1])[0] == 0, done


def test_the_lab_is_told_the_splits_of_a_data_set(client):
    said = client.ask("cli", "lab", "train", "--text", f"{SAMPLES}/small", "--split", "dev")
    assert "(splits: train, test)" in said["refused"]
