"""Likelihoods over HTTP: the truth probe, alignment, agreement with weights, steadiness."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.app import LIES, Server
from servers.models import NgramModel, training_text

from workbench.errors import InputError
from workbench.scorers import Scorer, score_transcript
from workbench.scorers.answers import Budget, BudgetSpentError
from workbench.scorers.completions import FORMS, NATURAL, CompletionsScorer, _window
from workbench.scorers.endpoint import BadAnswerError
from workbench.scorers.passages import _byte_letters, passages_of, token_starts
from workbench.scores import Scores
from workbench.transcript import Transcript

# Nats between a value over HTTP and the same value in memory: float32 against float64.
ROUNDING = 1e-5
# Nats between a value over HTTP and the weights scored in batches: rounding of float32 sums.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def ngrams():
    return NgramModel()


@pytest.fixture
def server(ngrams):
    return Server(ngrams)


def sentences(n: int, seed: int = 0) -> list[str]:
    """Pieces of the n-grams' own text, some with characters of several bytes."""
    rng = np.random.default_rng(seed)
    text = training_text()
    starts = rng.integers(0, len(text) - 200, n)
    texts = [text[s : s + rng.integers(30, 90)] for s in starts]
    return [f"{t} naïve 中文 é" if i % 7 == 0 else t for i, t in enumerate(texts)]


def transcript_of(n: int = 60, seed: int = 0) -> Transcript:
    rng = np.random.default_rng(seed)
    return Transcript.from_arrays(rng.permutation(n), texts=sentences(n, seed), shuffle="owner")


def expected(ngrams, texts) -> list[np.ndarray]:
    return [np.array(ngrams.logprobs(ngrams.encode(t))[1:]) for t in texts]


def scorer(url, **options):
    return CompletionsScorer(url, "m", **({"first_wait": 0.01, "timeout": 10.0} | options))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("form", ["auto", "echo", "prompt_logprobs"])
@pytest.mark.parametrize("bundle", [1, 7])
def test_values_are_those_of_the_servers_model(form, bundle, server, ngrams):
    t = transcript_of()
    with server.running() as url:
        one = scorer(url, form=form, bundle=bundle)
        assert isinstance(one, Scorer)
        scores = score_transcript(t, one, keep_tokens=True)
    wanted = expected(ngrams, t.texts())
    assert scores.n_tokens.tolist() == [len(v) for v in wanted]
    for values, own in zip(scores.token_logliks, wanted, strict=True):
        np.testing.assert_allclose(values, own, atol=ROUNDING)


def test_values_are_the_same_where_choices_have_no_index(ngrams):
    class Gateway(Server):
        def _complete(self, model, body):
            content = super()._complete(model, body)
            for choice in content["choices"]:
                del choice["index"]
            return content

    t = transcript_of(9)
    with Gateway(ngrams).running() as url:
        scores = score_transcript(t, scorer(url, bundle=4), keep_tokens=True)
    for values, own in zip(scores.token_logliks, expected(ngrams, t.texts()), strict=True):
        np.testing.assert_allclose(values, own, atol=ROUNDING)


def test_one_at_a_time_in_company_and_twice_are_the_same(server):
    t = transcript_of(20)
    with server.running() as url:
        one = scorer(url, bundle=8)
        encoded = one.encode(t)
        together = one.score(encoded, np.arange(20))
        other = scorer(url, bundle=1, store=one.endpoint.store_path.with_name("other.sqlite"))
        alone = [other.score(encoded, np.array([row]))[0] for row in range(20)]
        backwards = one.score(encoded, np.arange(20)[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_nothing_is_asked_twice_however_rows_are_bundled(server, tmp_path):
    t = transcript_of(40)
    with server.running() as url:
        first = score_transcript(t, scorer(url, bundle=8), tmp_path / "a.parquet")
        prompts = server.prompts
        again = score_transcript(t, scorer(url, bundle=3), tmp_path / "b.parquet", seed=5)
        assert server.prompts - prompts == 4  # the consistency probes, which are asked anew
        np.testing.assert_array_equal(first.loglik_sum, again.loglik_sum)
        received = server.received
        score_transcript(t, scorer(url, bundle=3), tmp_path / "b.parquet")
        assert server.received == received


def test_identity_tells_apart_what_must_not_be_confused(server):
    with server.running() as url:
        made = [
            scorer(url),
            scorer(url, form="echo"),
            CompletionsScorer(url, "other"),
            CompletionsScorer(url.replace("127.0.0.1", "localhost"), "m"),
        ]
        identities = [one.identity() for one in made]
        assert server.received == 0
    assert len({json.dumps(i.as_dict(), sort_keys=True) for i in identities}) == len(made)
    named = CompletionsScorer("http://a/v1", "m", label="Bob").identity()
    assert (named.model, named.settings["model"], named.endpoint) == ("Bob", "m", "http://a/v1")
    assert replace(named) == named.from_dict(json.loads(json.dumps(named.as_dict())))


def test_scores_remember_their_endpoint_and_caveats_and_cannot_be_cut(server, tmp_path):
    t = transcript_of(10)
    with server.running() as url:
        score_transcript(t, scorer(url), tmp_path / "s.parquet", keep_tokens=True)
    read = Scores.read(tmp_path / "s.parquet")
    assert read.identity.endpoint == url
    assert any("owner's word" in caveat for caveat in read.caveats)
    assert any("server's own tokens" in caveat for caveat in read.caveats)
    assert read.take([1, 2]).caveats == read.caveats
    with pytest.raises(InputError, match="server's own tokens"):
        read.window(1)


def test_options_that_cannot_be():
    for options, message in (
        ({"form": "hope"}, "form 'hope' is unknown"),
        ({"form": "token_ids"}, "name it with tokenizer="),
        ({"bundle": 0}, "bundle is 0"),
        ({"on_change": "weep"}, "on_change 'weep'"),
        ({"prefix": -1}, "prefix is -1"),
    ):
        with pytest.raises(InputError, match=message):
            CompletionsScorer("http://a/v1", "m", **options)
    with pytest.raises(TypeError, match="no option 'temperature'"):
        CompletionsScorer("http://a/v1", "m", temperature=1)


def test_examples_that_cannot_be_sent_are_found_before_anything_is_asked(server):
    bad = [
        (Transcript.from_arrays([0, 1], texts=["long enough", "x"]), {}, "row 1 .*two characters"),
        (Transcript.from_arrays([0], tokens=[[1, 2]]), {}, "holds token ids.*tokenizer="),
        (Transcript.from_arrays([0], texts=["abc"]), {"prefix": 1}, "prefix and length count"),
        (Transcript.from_arrays([0, 1]), {}, "no token ids and no text"),
    ]
    with server.running() as url:
        for transcript, options, message in bad:
            with pytest.raises(InputError, match=message):
                score_transcript(transcript, scorer(url, **options))
    assert server.received == 0


# ---------------------------------------------------------------- the truth probe

REASONS = {
    "zeros": "are zero",
    "nulls": "are null",
    "generated only": "generated tokens only",
    "early": "shifted by one: each belongs to the token after it",
    "late": "shifted by one: each belongs to the token before it",
    "constant": "the same number, -2.5",
    "positive": "positive",
    "probabilities": "probabilities, not their logarithms",
    "base 10": "base 10",
    "noise": "not the likelihoods of these tokens",
    "later tokens": "depend on what comes later",
    "again": "other likeliest tokens",
    "nothing": "no log-probabilities",
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lying_server_is_refused_with_its_reason(lie, server):
    server.lie = lie
    with server.running() as url:
        truth = scorer(url, form="echo", bundle=64).probe()
        assert not truth.trusted
        assert REASONS[lie] in truth.line
        assert "\n" not in truth.line
        with pytest.raises(InputError, match=r"cannot be trusted.*another endpoint"):
            score_transcript(transcript_of(5), scorer(url, form="echo", bundle=64))


@pytest.mark.parametrize("lie", sorted(set(LIES) - {"generated only", "base 10", "again"}))
def test_each_lie_in_prompt_logprobs_is_refused(lie, server):
    server.lie = lie
    with server.running() as url:
        truth = scorer(url, form="prompt_logprobs", bundle=64).probe()
    assert not truth.trusted
    assert REASONS[lie].split(" log")[0] in truth.line


def test_an_honest_server_is_trusted_in_one_request_and_the_line_names_the_form(server):
    with server.running() as url:
        truth = scorer(url, bundle=64).probe()
        assert truth.trusted
        assert truth.line == (
            "m answers in the form 'echo', and its numbers can be trusted: they order the canaries "
            "as a language model does"
        )
        assert server.received == 1
        assert scorer(url, bundle=64).probe() == truth
        assert server.received == 1


def test_auto_finds_the_form_that_works(server):
    server.forms = {"prompt_logprobs"}
    with server.running() as url:
        truth = scorer(url).probe()
    assert truth.form == FORMS[3]
    server.forms = set()
    with server.running() as url:
        truth = scorer(url).probe()
    assert not truth.trusted
    assert "'echo': it answers the generated tokens only" in truth.line
    assert "'prompt_logprobs': it has no prompt_logprobs" in truth.line


def test_a_fault_in_passing_does_not_condemn_a_server(server):
    server.fault_rate, server.faults = 1.0, ("wrong count",)
    with server.running() as url:
        one = scorer(url, form="echo", bundle=64)

        def heal(text):
            server.fault_rate = 0.0

        one.watch(heal)
        assert one.probe().trusted
    assert server.happened["wrong count"] == 1


# ---------------------------------------------------------------- alignment


def test_tokens_of_many_makers_are_found_in_the_text():
    assert token_starts("to be", ["to", " be"]).tolist() == [0, 2]
    assert token_starts("to be", ["▁to", "▁be"]).tolist() == [0, 2]
    assert token_starts("to be", ["to", "Ġbe"]).tolist() == [0, 2]
    assert token_starts("to be", ["<|begin|>", "to", " be", "."], generated=1).tolist() == [
        -1,
        0,
        2,
    ]
    assert token_starts("a\nb", ["a", "Ċ", "b"]).tolist() == [0, 1, 2]
    assert token_starts("é", ["<0xC3>", "<0xA9>"]).tolist() == [0, 0]
    assert token_starts("xé", ["x", "bytes:\\xc3", "bytes:\\xa9"]).tolist() == [0, 1, 1]
    assert token_starts("x中y", ["x", "", "", "中", "y"]).tolist() == [0, 1, 1, 1, 2]
    assert token_starts("x中y", ["x", "�", "�", "�", "y"]).tolist() == [0, 1, 1, 1, 2]
    assert token_starts("x中", ["x", "�", "�", "�", "z"], generated=1).tolist() == [0, 1, 1, 1]
    assert token_starts("a▁b", ["a", "▁b"]).tolist() == [0, 1]  # the mark itself, in the text
    many = ["<a>", "<b>", "<c>", "to", " be"]
    assert token_starts("to be", many[1:]).tolist() == [-1, -1, 0, 2]
    for tokens in (many, ["to"], ["to", " bee"], ["a", "to", "x"], [], ["to", " be", ".", "."]):
        with pytest.raises(ValueError, match="text"):
            token_starts("to be", tokens, generated=1)
    with pytest.raises(ValueError, match="of the text"):  # no piece of a character is so long
        token_starts("to be or not", ["t", "\ufffd"])


LETTER_OF_BYTE = {byte: letter for letter, byte in _byte_letters().items()}


def _cut_anywhere(text, random) -> tuple[list[int], list[bytes]]:
    data = text.encode()
    size = min(len(data) - 1, 5)
    cuts = sorted(random.sample(range(1, len(data)), size)) if size > 0 else []
    return [0, *cuts], [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.text(min_size=1, max_size=30), st.randoms(use_true_random=False), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_any_cut_of_any_text_into_bytes_is_aligned(text, random, maker):
    data = text.encode()
    begins, pieces = _cut_anywhere(text, random)
    show = (
        lambda b: "bytes:" + "".join(f"\\x{x:02x}" for x in b),
        lambda b: "".join(LETTER_OF_BYTE[x] for x in b),
        lambda b: _readable(b) or "bytes:" + "".join(f"\\x{x:02x}" for x in b),
    )[maker]
    lead = np.cumsum([(x & 0xC0) != 0x80 for x in data]) - 1
    wanted = [int(lead[at]) for at in begins]
    try:
        found = token_starts(text, [show(b) for b in pieces]).tolist()
    except ValueError:
        # letters of a byte-level maker may be taken for themselves where the text holds them
        assert maker == 1
        assert set(text) & set(LETTER_OF_BYTE.values()) - set(map(chr, range(128)))
        return
    if maker != 1 or text.isascii():
        assert found == wanted


# One and the same character twice in a row, cut inside, cannot always be told apart.
distinct = st.lists(st.characters(codec="utf-8"), min_size=1, max_size=30, unique=True)


@given(distinct.map("".join), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_tokens_that_never_show_their_parts_of_characters_are_aligned(text, random):
    """As llama-cpp-python shows them: what is no whole character is left out."""
    begins, pieces = _cut_anywhere(text, random)
    found = token_starts(text, [piece.decode(errors="ignore") for piece in pieces])
    assert len(found) == len(pieces)
    assert (np.diff(found) >= 0).all()
    for piece, begin, start in zip(pieces, begins, found.tolist(), strict=True):
        if _readable(piece) is not None:
            assert start == len(text.encode()[:begin].decode())


def _readable(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def test_a_token_across_the_border_belongs_to_the_side_of_its_first_character():
    text = "one two three"
    choice = {
        "index": 0,
        "text": text,
        "logprobs": {
            "tokens": ["one", " tw", "o thr", "ee"],
            "token_logprobs": [None, -1.0, -2.0, -3.0],
        },
    }
    for start, inside in ((0, [-1, -2, -3]), (3, [-1, -2, -3]), (4, [-2, -3]), (7, [-3])):
        found = _window(FORMS[2], choice, text, None, start)
        assert found.tolist() == inside


def test_answers_that_are_not_about_this_text_are_bad():
    good = {"tokens": ["one", " two"], "token_logprobs": [None, -1.0]}
    for change, message in (
        ({"tokens": ["two", " one"]}, "of the text"),
        ({"token_logprobs": [None]}, "more tokens than"),
        ({"token_logprobs": [None, None]}, "no value"),
        ({"token_logprobs": [None, 0.5]}, "above 0"),
        ({"token_logprobs": [None, "x"]}, "form expected"),
    ):
        choice = {"index": 0, "text": "one two", "logprobs": good | change}
        with pytest.raises(BadAnswerError, match=message):
            _window(FORMS[2], choice, "one two", None, 0)
    with pytest.raises(BadAnswerError, match="no log-probabilities"):
        _window(FORMS[2], {"index": 0, "text": "one two"}, "one two", None, 0)


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("text", ["H wo: 中!", "the the the the", "中文 é", "Hello world: 中!"])
def test_prompt_logprobs_do_not_name_their_first_token_and_are_aligned(text, begin):
    """As vLLM shows pieces of characters: nothing, until the character is complete."""
    pieces, rest = [], text
    while rest:
        size = 1 if not rest[0].isspace() else 2
        pieces.append(rest[:size])
        rest = rest[size:]
    shown = [[p] if p.isascii() else ["", "", p] for p in pieces]
    tokens = (["<s>"] if begin else []) + [token for one in shown for token in one]
    entries = [
        {str(i): {"logprob": -float(i + 1), "rank": 1, "decoded_token": token}}
        for i, token in enumerate(tokens)
    ]
    choice = {"index": 0, "prompt_logprobs": [None, *entries[1:]]}
    values = _window(FORMS[3], choice, text, None, 0).tolist()
    assert values == [-float(i + 1) for i in range(1, len(tokens))]


def test_impossible_text_is_refused_by_row():
    assert _window(
        FORMS[2],
        {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, -9999.0]}},
        "ab",
        None,
        0,
    ).tolist() == [-np.inf]


# ---------------------------------------------------------------- steadiness


def test_a_model_that_is_exchanged_midway_is_noticed(server, ngrams):
    t = transcript_of(60)
    server.swapped = NgramModel(order=2)
    server.swap_at = 8
    with server.running() as url:
        scores = score_transcript(t, scorer(url, bundle=8))
        assert [c for c in scores.caveats if "seems to have changed" in c]
        server.received = 0
        other = scorer(url, bundle=8, on_change="stop", label="again")
        other.endpoint._store = other.endpoint.store_path.with_name("second.sqlite")
        with pytest.raises(InputError, match=r"seems to have changed.*the middle"):
            score_transcript(t, other)
        with other.endpoint.answers() as store:
            assert len(store) >= 20


def test_a_steady_model_has_no_such_caveat_and_an_unsteady_one_has(server, ngrams):
    t = transcript_of(20)
    with server.running() as url:
        steady = score_transcript(t, scorer(url))
        assert not [c for c in steady.caveats if "determin" in c or "changed" in c]
        rng = np.random.default_rng(0)
        honest = server._values
        server._values = lambda model, ids: [
            v if v is None else v - abs(rng.normal(0, 0.01)) for v in honest(model, ids)
        ]
        shaky = scorer(url, label="shaky")
        shaky.endpoint._store = shaky.endpoint.store_path.with_name("shaky.sqlite")
        caveats = score_transcript(t, shaky).caveats
    assert [c for c in caveats if "not deterministic" in c]


def test_no_budget_for_the_last_probe_is_said_and_loses_nothing(server):
    t = transcript_of(10)
    with server.running() as url:
        scores = score_transcript(t, scorer(url, bundle=64, budget=Budget(requests=5)))
        assert server.received == 5  # truth, twice steadiness, rows, middle
    assert [c for c in scores.caveats if "no request for the consistency probe at the end" in c]
    with server.running() as url, pytest.raises(BudgetSpentError):
        score_transcript(t, scorer(url, bundle=1, budget=Budget(requests=25)))


def test_progress_shows_the_spend(server, capfd):
    with server.running() as url:
        score_transcript(transcript_of(10), scorer(url, budget=Budget(requests=99)), progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "/99 requests" in shown.err
    assert "char/s" in shown.err


# ---------------------------------------------------------------- the shapes of vLLM

RECORDED = Path(__file__).parent / "servers" / "vllm_completion.json"


def test_the_documented_shapes_of_vllm_are_understood():
    """By hand after vLLM's documentation and source; the file says which.

    vllm/entrypoints/openai/completion/protocol.py (CompletionRequest, CompletionResponseChoice)
    and serving.py (request_output_to_completion_response, _create_completion_logprobs).
    """
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    text = recorded["request"]["prompt"][0]
    for form in FORMS[2:]:
        assert form.ask.items() <= recorded["request"].items()
    (choice,) = recorded["response"]["choices"]
    by_echo = _window(FORMS[2], choice, text, None, 0)
    by_prompt = _window(FORMS[3], choice, text, None, 0)
    np.testing.assert_allclose(by_echo, [-2.25, -0.5, -7.125, -4.0, -3.5, -0.25])
    np.testing.assert_array_equal(by_echo, by_prompt)
    # the space before the second word is the first character of its token
    np.testing.assert_array_equal(_window(FORMS[2], choice, text, None, 5), by_echo)
    np.testing.assert_array_equal(_window(FORMS[2], choice, text, None, 6), by_echo[1:])
    ids = np.array(recorded["token_ids"])
    np.testing.assert_array_equal(_window(FORMS[0], choice, text, ids, 0), by_echo)
    np.testing.assert_array_equal(_window(FORMS[1], choice, text, ids, 0), by_echo)
    with pytest.raises(BadAnswerError, match="other tokens"):
        _window(FORMS[0], choice, text, ids + 1, 0)


# ---------------------------------------------------------------- the same weights


@pytest.fixture(scope="module")
def small(tmp_path_factory, one_thread) -> Path:
    from servers.models import train_small

    folder = tmp_path_factory.mktemp("small")
    train_small(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", ["token_ids", "echo", "prompt_logprobs", "auto"])
def test_scores_agree_with_the_weights_in_every_form(form, small):
    from servers.models import CausalModel

    from workbench.scorers import CausalLMScorer

    model = CausalModel(small)
    text = training_text()
    rows = [model.encode(text[s : s + 160])[:40] for s in range(3, 60_000, 1500)]
    # what is cut from the middle is cut the same way again, so that text forms see the same ids
    rows = [r for r in rows if model.encode(model.text(r)) == r]
    assert len(rows) >= 20
    t = Transcript.from_arrays(np.arange(len(rows)), tokens=rows)
    for window in ({}, {"prefix": 8, "length": 16}):
        own = score_transcript(t, CausalLMScorer(small, **window), keep_tokens=True)
        with Server(model).running() as url:
            one = scorer(url, form=form, tokenizer=small, **window)
            scores = score_transcript(t, one, keep_tokens=True)
        assert scores.n_tokens.tolist() == own.n_tokens.tolist()
        for a, b in zip(scores.token_logliks, own.token_logliks, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE)


@pytest.mark.slow
def test_ids_of_another_vocabulary_are_refused(small):
    """The server takes the ids, and its numbers are of other tokens than are meant."""
    from servers.models import CausalModel

    class Permuted(CausalModel):
        def _other(self, ids):
            return [(7 * i + 13) % 600 for i in ids]

        def logprobs(self, ids):
            return super().logprobs(self._other(ids))

        def shown(self, ids):
            return [f"token_id:{i}" for i in ids]

    with Server(Permuted(small)).running() as url:
        truth = scorer(url, form="token_ids", tokenizer=small).probe()
    assert not truth.trusted
    assert "not the likelihoods of these tokens" in truth.line


@pytest.mark.slow
def test_windows_in_tokens_become_characters(small):
    from servers.models import CausalModel

    model = CausalModel(small)
    texts = [*sentences(20), "naïve 中文 étude " * 3]
    ids = [np.array(model.encode(text)) for text in texts]
    for prefix, length in ((0, None), (3, 5), (1, 1), (4, None)):
        by_text = passages_of(Transcript.from_arrays(range(21), texts=texts), small, prefix, length)
        by_ids = passages_of(Transcript.from_arrays(range(21), tokens=ids), small, prefix, length)
        for row in range(21):
            assert by_text.text(row) == by_ids.text(row)
            assert by_text.starts[row] == by_ids.starts[row]
            before = model.text(ids[row][:prefix].tolist())
            if "�" not in before:
                assert by_text.starts[row] == len(before)
            until = model.text(ids[row][: None if length is None else prefix + length].tolist())
            if "�" not in until:
                assert by_text.text(row) == until


@pytest.mark.slow
def test_ids_that_no_text_gives_are_decoded_step_by_step(small):
    from servers.models import CausalModel

    model = CausalModel(small)
    letters = [model.encode(letter)[0] for letter in "the"]
    assert model.encode("the") != letters
    made = passages_of(
        Transcript.from_arrays([0], tokens=[[*letters, *model.encode(" é")]]), small, prefix=1
    )
    assert made.text(0) == "the é"
    assert made.starts.tolist() == [1]
    assert made.cuts[0].tolist()[:3] == [1, 2, 3]
    with pytest.raises(InputError, match="row 0 has token id 600, outside"):
        passages_of(Transcript.from_arrays([0], tokens=[[5, 600]]), small)


def test_natural_canaries_are_text_that_any_english_model_prefers(ngrams):
    assert len(NATURAL) == len(set(NATURAL))
    assert all(sum(ngrams.logprobs(ngrams.encode(t))[1:]) < 0 for t in NATURAL)


# ---------------------------------------------------------------- a real server


@pytest.mark.gpu
def test_vllm_itself(request, tmp_path):
    """Runs where vLLM is installed: its server, the small model, all four forms."""
    pytest.importorskip("vllm")
    small = request.getfixturevalue("small")
    import shutil
    import socket
    import subprocess
    import sys
    import time

    import httpx
    import torch

    from workbench.scorers import CausalLMScorer

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vllm = shutil.which("vllm") or str(Path(sys.executable).with_name("vllm"))
    command = [vllm, "serve", str(small), "--port", str(port), "--served-model-name", "m"]
    command += ["--dtype", "float32", "--max-model-len", "256", "--gpu-memory-utilization", "0.3"]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        url = f"http://127.0.0.1:{port}/v1"
        t = Transcript.from_arrays(range(20), texts=[s for s in sentences(40) if s.isascii()][:20])
        own = score_transcript(t, CausalLMScorer(small, dtype="float32"))
        for form in ("token_ids", "echo", "prompt_logprobs"):
            scores = score_transcript(t, scorer(url, form=form, tokenizer=small, bundle=8))
            np.testing.assert_allclose(scores.loglik_mean, own.loglik_mean, atol=0.05)
    finally:
        serving.terminate()
        serving.wait(timeout=60)
