"""Presets hold only what their sources say, refuse what shares an order, and run without a hub."""

import json
import re
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from workbench import presets
from workbench.cli import app
from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.presets import PRESETS, Preset, open_preset, parse_suite
from workbench.shufflers import KnownShuffle
from workbench.transcript import ShuffleClaim, Transcript

LAB = """
suite = "lab"
title = "made by a test"
source = "this test"
[order]
about = "positions of a permutation"
shuffle = "owner"
source = "this test"
[transcript]
dataset = "nobody/nothing"
subset = "rows"
revision = "unknown"
source = "this test"
[window]
prefix = 2
length = 9
source = "this test"
[tokenizer]
id = "unknown"
source = "this test"
[[models]]
id = "lab/alice"
revision = "main"
source = "this test"
[[references]]
id = "lab/other"
revision = "main"
independent = "yes"
same_tokenizer = true
reason = "trained in another order"
source = "this test"
[[references]]
id = "lab/sister*"
revision = "main"
independent = "no"
same_tokenizer = true
reason = "it was made with Alice"
source = "this test"
[[references]]
id = "lab/foreign"
revision = "main"
independent = "yes"
same_tokenizer = false
reason = "it cuts text otherwise"
source = "this test"
[[cases]]
name = "lab-alice"
model = "lab/alice"
references = ["lab/other"]
source = "this test"
[[cases.published]]
n = 100
reference = "other"
p = 1e-5
source = "this test"
"""


@pytest.fixture
def lab(monkeypatch):
    suite = parse_suite(LAB, "lab.toml")
    monkeypatch.setitem(PRESETS, "lab", Preset("lab", suite, None))
    monkeypatch.setitem(PRESETS, "lab-alice", Preset("lab-alice", suite, suite.cases[0]))
    return PRESETS["lab-alice"]


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory, one_thread):
    """Two models of random weights, and a table of the published schema with a loss that knows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hand")
    for seed, name in enumerate(("alice", "other")):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            vocab_size=40, max_position_embeddings=16,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
    rng = np.random.default_rng(2)
    index, tokens = rng.permutation(400), rng.integers(0, 40, (400, 12))
    loss = 3 - 0.002 * index + rng.normal(0, 0.1, 400)
    table = {"index": index, "tokens": pa.array(tokens.tolist()), "loss_knows": loss}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def refusal(*arguments) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    message = str(result.exception)
    assert "\n" not in message
    return message


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No network, and nothing in the cache."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_suite_is_there_and_names_its_sources():
    wanted = {"pythia", "pythia-deduped", "olmo", "olmo-1.7", "olmo-2", "hubble"}
    assert wanted <= set(PRESETS)
    written = [path for path in files(presets).iterdir() if path.name.endswith(".toml")]
    assert len(written) == len(wanted)
    for path in written:
        for table in re.split(r"^\[", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            assert re.search(r'^source = "[^"]+"$', table, flags=re.M), (path.name, table)


def test_what_published_work_reports_is_a_preset():
    case = open_preset("pythia-6.9b-deduped")
    by_reference = {f.reference: f.p for f in case.published if f.n == 10_000}
    # the further a reference is from the model in size, the less it explains
    order = ["Pythia-6.9b", "Pythia-2.8b", "Pythia-1.4b", "Pythia-1b", "Pythia-410m"]
    values = [by_reference[name] for name in order]
    assert values == sorted(values)
    for name in case.default_references:
        assert case.admit(name).independent == "yes"


def test_the_order_of_a_suite_is_no_reference_for_it():
    deduped, standard = open_preset("pythia-6.9b-deduped"), open_preset("pythia")
    with pytest.raises(InputError, match="share one order"):
        deduped.admit("EleutherAI/pythia-410m-deduped")
    with pytest.raises(InputError, match=r"trained in this very order.*take EleutherAI/pythia-"):
        standard.admit("EleutherAI/Pythia-410M")
    for preset in (deduped, standard):
        with pytest.raises(InputError, match="an audit found"):
            preset.admit("EleutherAI/pythia-2.8b-deduped")
    assert standard.admit("EleutherAI/pythia-410m-deduped").independent == "yes"
    with pytest.raises(InputError, match="cannot score the token ids"):
        deduped.admit("someone/Llama-3-8b")
    assert deduped.admit("someone/else") is None


def test_what_no_source_says_is_said_to_be_unknown():
    with pytest.raises(InputError, match=r"does not know where its transcript is.*--transcript"):
        open_preset("hubble").transcript()
    with pytest.raises(InputError, match="does not know which part of hij/sequence_samples"):
        open_preset("olmo").transcript()
    with pytest.raises(InputError, match="which revision of EleutherAI/pythia-1b is meant"):
        open_preset("pythia-deduped").revision("EleutherAI/pythia-1b")
    with pytest.raises(InputError, match="there is no preset 'gpt': choose one of hubble"):
        open_preset("gpt")


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("prefix = 2", 'prefix = 2\nguess = "x"', "window.guess"),
        ("length = 9", "length = 0", "window.length"),
        ('source = "this test"\n[window]', "[window]", "transcript.source"),
        ('independent = "yes"', 'independent = "maybe"', "references.0.independent"),
        ("suite =", "suite", "no TOML"),
    ],
)
def test_a_damaged_preset_is_refused_with_its_field(old, new, names):
    assert old in LAB
    with pytest.raises(InputError, match=names):
        parse_suite(LAB.replace(old, new, 1), "lab.toml")


def test_the_list_shows_every_preset():
    result = run("--list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(PRESETS)


def test_without_a_hub_one_sentence_comes_before_any_work(no_hub, lab, at_hand):
    lacks = r"HF_HUB_OFFLINE is set.*its cache here lacks the "
    suspect = ("--suspect", at_hand / "alice")
    other = ("--model-folder", f"EleutherAI/pythia-6.9b={at_hand / 'other'}")
    assert re.search(lacks + "model a/b:", refusal("lab", "--suspect", "a/b"))
    rows = ("--transcript", at_hand / "rows.parquet")
    assert re.search(lacks + "model lab/other:", refusal("lab-alice", *suspect, *rows))
    whole = refusal("pythia-6.9b-deduped", *suspect, *other)
    assert re.search(lacks + "data set hij/sequence_samples:", whole)


def test_what_is_asked_for_wrongly_is_refused(lab, at_hand):
    rows = ("--transcript", at_hand / "rows.parquet", "--suspect", at_hand / "alice")
    assert "made with Alice" in refusal("lab", *rows, "--reference", "lab/sister-2")
    assert "very order" in refusal("lab", *rows, "--reference", "lab/alice@step5")
    assert "cuts text otherwise" in refusal("lab", *rows, "--reference", "lab/foreign")
    assert "which model it is" in refusal("lab", *rows, "--reference", at_hand / "other")
    assert "not of the form ID=PATH" in refusal("lab", *rows, "--model-folder", "lab/other")
    assert "check the path" in refusal("lab", *rows, "--model-folder", "lab/other=nowhere")
    assert "needs a preset and --suspect" in refusal("lab")
    wrong = ("--suspect", "a", "--transcript", at_hand / "none.parquet")
    assert "does not exist" in refusal("lab", *wrong)
    assert "cannot draw 10000 of 400" in refusal("lab", *rows)


def test_a_whole_audit_with_files_at_hand(lab, at_hand, tmp_path, no_hub):
    common = (
        "lab-alice", "--transcript", at_hand / "rows.parquet", "--n", 300, "--n-resamples", 1999,
        "--model-folder", f"lab/other={at_hand / 'other'}", "--quiet", "--device", "cpu",
    )  # fmt: skip
    out = tmp_path / "e.json"
    result = run(*common, "--suspect", "mine", "--model-folder", "mine=loss:knows", "--json", out)
    assert "window" in str(result.exception)  # a column has no window, and the preset has one
    result = run(*common, "--suspect", at_hand / "alice", "--json", out)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "published, lab-alice itself, 100 examples, reference other: p 1e-05" in result.output
    evidence = Evidence.read(out)
    assert evidence.n == 300
    assert "other" in json.dumps(json.loads(out.read_text()))
    vouched = run(
        *common, "--suspect", at_hand / "alice", "--reference", "her/own",
        "--model-folder", f"her/own={at_hand / 'other'}",
    )  # fmt: skip
    assert "that her/own is independent of this order is your word" in vouched.output


def test_a_suspect_that_knows_the_order_is_found(lab, at_hand, monkeypatch):
    whole = parse_suite(
        LAB.replace("prefix = 2", "prefix = 0").replace("length = 9", 'length = "all"'), "l"
    )
    monkeypatch.setitem(PRESETS, "lab", Preset("lab", whole, None))
    result = run(
        "lab", "--transcript", at_hand / "rows.parquet", "--n", 300, "--n-resamples", 1999,
        "--suspect", "loss:knows", "--quiet",
    )  # fmt: skip
    assert result.exception is None, result.exception
    assert "evidence" in result.output.lower()


def test_a_preset_with_a_published_shuffler_ends_verified(lab, at_hand, monkeypatch, tmp_path):
    """Its rule is in the file of the sample, which says how the order is made again."""
    whole = LAB.replace("prefix = 2", "prefix = 0").replace("length = 9", 'length = "all"')
    suite = parse_suite(whole.replace('shuffle = "owner"', 'shuffle = "published_shuffler"'), "l")
    monkeypatch.setitem(PRESETS, "lab", Preset("lab", suite, None))
    table = pq.read_table(at_hand / "rows.parquet")
    tokens = table["tokens"].to_pylist()
    plain = Transcript.from_arrays(np.arange(400), tokens=tokens)
    places = KnownShuffle("olmo", 77123, 400).places(77123)[0]
    loss = 3 - 0.002 * places + np.random.default_rng(3).normal(0, 0.1, 400)
    made = {"index": places, "tokens": pa.array(tokens), "loss_knows": loss}
    claim = ShuffleClaim(
        "published_shuffler", seed=77123, shuffler="olmo", size=400,
        data_sha256=str(plain.examples_fingerprint),
    )  # fmt: skip
    rows = Transcript.read(pa.table(made), shuffle=claim).write(tmp_path / "rows.parquet")
    out = tmp_path / "e.json"
    run(
        "lab", "--transcript", rows, "--n", 400, "--suspect", "loss:knows", "--json", out, "--quiet"
    )
    found = Evidence.read(out)
    assert (found.verdict, found.gates[0].status) == ("evidence", "verified")
    pq.write_table(pa.table(made), tmp_path / "silent.parquet")  # a file that says nothing
    silent = ("--transcript", tmp_path / "silent.parquet", "--n", 400)
    assert run("lab", *silent, "--suspect", "loss:knows", "--quiet").exit_code == 3
