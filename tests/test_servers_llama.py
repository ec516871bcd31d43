"""A real server of somebody else's: llama-cpp-python, with a model of the lab as GGUF.

Opt-in (`make test-servers`), because llama.cpp is compiled for minutes. What the server answers was
recorded, and the tests on that run everywhere.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from servers.app import Server
from servers.llama_process import FULL_PRECISION, NAME, llama_server
from servers.llama_record import FORKED, QUESTIONS, RECORDED, TEXT, ask_all, shape
from servers.models import NgramModel

from workbench import query_test
from workbench.errors import InputError
from workbench.scorers import (
    CausalLMScorer,
    ChatScorer,
    CompletionsScorer,
    SampledScorer,
    score_transcript,
)
from workbench.scorers.chat import floor_of
from workbench.scorers.completions import FORMS, _pairing_fault, _window
from workbench.scorers.continuations import gaps_of
from workbench.scorers.endpoint import BadAnswerError, Endpoint, Item, RefusedError
from workbench.scorers.passages import ids_of
from workbench.scorers.sampled import _said
from workbench.transcript import Transcript

OPT_IN = os.environ.get("PALIMPSEST_TEST_SERVERS")
real = [
    pytest.mark.servers,
    pytest.mark.slow,
    # Without the packages it fails: who opts in wants to know.
    pytest.mark.skipif(not OPT_IN, reason="opt-in: run make test-servers"),
]

# Nats between a token's value over HTTP and by the weights. With attention kept in float32 both
# sides add the same float32 numbers in another order: some 1e-6 of values up to 15, times a few
# layers. llama.cpp's default keeps keys and values in float16, 5e-4 of each: hundredths of a nat
# would still be no error of form. A wrong token, place or order of weights costs tenths and more.
TOLERANCES = {"full": 1e-4, "default": 2e-2}
SETTINGS = {"full": FULL_PRECISION, "default": {}}
# Correlation over HTTP and by the weights: of 768 rows, 3 are cut otherwise by the server's
# tokenizer than they were in training, because they begin inside a word.
APART = 0.02

RECIPE = {
    "hidden_size": 64,
    "heads": 4,
    "intermediate_size": 128,
    "examples": 768,
    "fresh_examples": 8,
    "batch_size": 4,
    "final_fraction": 1.0,
    "checkpoints": (),
}


# ---------------------------------------------------------------- a lab model and its server


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Alice's model and an independent one, trained for seconds on the documentation of Python."""
    from pydoc_data.topics import topics

    from workbench.lab import independent, pretrain, recipe, text_corpus, train_all

    texts = tmp_path_factory.mktemp("texts")
    for name, text in topics.items():
        (texts / f"{name}.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(tmp_path_factory.mktemp("lab")))
        chosen = recipe("smoke", **RECIPE)
        corpus = text_corpus(
            texts, vocab_size=chosen.vocab_size, example_tokens=chosen.example_tokens
        )
        jobs = [pretrain(chosen, corpus), independent(chosen, corpus)]
        train_all(jobs)
        return {job.name: job.folder for job in jobs}


@pytest.fixture(scope="module")
def transcript(models) -> Transcript:
    return Transcript.read(models["alice"] / "transcript.parquet")


@pytest.fixture(scope="module")
def serve(models, tmp_path_factory):
    """Start a server of one of the models."""
    from servers.llama_gguf import write_gguf

    def start(name: str, *, begin: bool = True, precision: str = "full"):
        folder = tmp_path_factory.mktemp("server")
        model = write_gguf(models[name], folder / "model.gguf", begin=begin)
        return llama_server(model, folder / "log", **SETTINGS[precision])

    return start


@pytest.fixture(scope="module")
def alice(serve):
    with serve("alice") as url:
        yield url


def by_weights(folder, rows, **window):
    return score_transcript(rows, CausalLMScorer(folder, bos=True, **window), keep_tokens=True)


def report(line: str) -> None:
    """A figure to be seen: make test-servers shows what passing tests print."""
    print(line)  # noqa: T201


def over_http(url, kind=CompletionsScorer, **options):
    return kind(url, NAME, **({"timeout": 60.0} | options))


@pytest.fixture(scope="module")
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["alice"])


@pytest.fixture(scope="module")
def sentences(tokenizer, transcript) -> Transcript:
    """Examples as text, some with characters of several bytes."""
    texts = [tokenizer.decode(row.tolist()) for row in transcript.tokens(np.arange(60))]
    texts = [f"{t} naïve 中文 é" if i % 5 == 0 else t for i, t in enumerate(texts)]
    return Transcript.from_arrays(np.arange(60), texts=texts)


# ---------------------------------------------------------------- the real server


class TestServer:
    pytestmark = real

    # The first token has a value after the mark of beginning, which the server leaves out.
    @pytest.mark.parametrize("precision", ["full", "default"])
    @pytest.mark.parametrize("window", [{"prefix": 1}, {"prefix": 8, "length": 12}])
    def test_scores_are_those_of_the_weights(
        self, window, precision, serve, models, sentences, tokenizer
    ):
        folder = models["alice"]
        passages = over_http("http://localhost/v1", tokenizer=folder, **window).encode(sentences)
        again = ids_of([passages.text(row) for row in range(passages.n)], folder)
        assert passages.ids is not None
        # A text that ends with its window may be cut otherwise at its end than within the whole;
        # and where a window begins inside a character, all of that character's tokens are in it.
        alike = [
            np.array_equal(ids, others) and "�" not in tokenizer.decode(ids[: window["prefix"]])
            for ids, others in zip(passages.ids, again, strict=True)
        ]
        assert np.mean(alike) > 0.8
        rows = sentences.take(np.flatnonzero(alike))
        own = by_weights(folder, rows, **window)
        with serve("alice", precision=precision) as url:
            scorer = over_http(url, tokenizer=folder, **window)
            scores = score_transcript(rows, scorer, keep_tokens=True)
        assert scores.n_tokens.tolist() == own.n_tokens.tolist()
        apart = [
            float(np.abs(a - b).max())
            for a, b in zip(scores.token_logliks, own.token_logliks, strict=True)
        ]
        report(f"{precision}, {window}: {max(apart):.2g} nats apart at most")
        assert max(apart) < TOLERANCES[precision]

    @pytest.mark.parametrize("suspect", ["alice", "independent"])
    def test_the_verdict_is_the_same_over_http(self, suspect, serve, models, transcript):
        """Alice owns the reference, so that is scored by its weights in both cases."""
        window = {"prefix": 1}
        references = (
            [by_weights(models["independent"], transcript, **window)] if suspect == "alice" else []
        )
        own = by_weights(models[suspect], transcript, **window)
        with serve(suspect) as url:
            scorer = over_http(url, tokenizer=models["alice"], **window)
            scores = score_transcript(transcript, scorer)
            with scorer.endpoint.answers() as store:
                spent = store.spend
        weights, http = (
            query_test(transcript, s, references, smallest_effect=0.05) for s in (own, scores)
        )
        for way, evidence in (("by weights", weights), ("over HTTP", http)):
            report(f"{suspect} {way}: {evidence.statistic:+.4f}, p {evidence.pvalue_exact:.4g}")
        report(f"{suspect} over HTTP: {spent.requests} requests for {transcript.n} examples")
        assert http.verdict == weights.verdict
        assert abs(http.statistic - weights.statistic) < APART
        assert (http.verdict == "evidence") == (suspect == "alice")

    def test_the_probe_trusts_the_echo_and_finds_what_is_not_there(self, alice, models):
        truth = over_http(alice, tokenizer=models["alice"]).probe()
        assert truth.form == FORMS[2]
        ids = over_http(alice, tokenizer=models["alice"], form="token_ids").probe()
        assert not ids.trusted
        assert ids.line.count("does not take requests of this form") == 2
        prompt = over_http(alice, form="prompt_logprobs").probe()
        assert not prompt.trusted
        assert "has no prompt_logprobs" in prompt.line

    def test_without_a_mark_of_beginning_its_values_are_refused(self, serve, sentences):
        """The numbers look well, and are of other tokens."""
        with serve("alice", begin=False) as url:
            truth = over_http(url).probe()
            assert not truth.trusted
            assert "'echo': its values are of what comes after each token" in truth.line
            with pytest.raises(InputError, match="other likeliest tokens"):
                score_transcript(sentences, over_http(url))
            # the likeliest next tokens are told honestly even so
            scores = score_transcript(sentences, over_http(url, ChatScorer, access="completions"))
            assert (scores.loglik_mean < 0).all()

    def test_an_example_longer_than_the_context_stops_with_the_servers_words(self, alice):
        rows = Transcript.from_arrays([0], texts=["to be or not to be, " * 60])
        with pytest.raises(InputError, match="maximum context length is 256 tokens"):
            score_transcript(rows, over_http(alice))

    @pytest.mark.parametrize("begin", [True, False])
    def test_listed_tokens_have_the_values_of_the_weights(self, begin, serve, models, sentences):
        import torch
        from servers.models import CausalModel

        model = CausalModel(models["alice"])
        with serve("alice", begin=begin) as url:
            scorer = over_http(
                url, ChatScorer, access="completions", tokenizer=models["alice"], top=20, places=3
            )
            scores = score_transcript(sentences, scorer, keep_tokens=True)
        gaps, sizes = gaps_of(
            scorer.encode(sentences), np.arange(sentences.n), scorer.places, scorer.seed
        )
        wanted, plain = [], []
        for gap in gaps:
            ids = ([model.tokenizer.bos_token_id] if begin else []) + model.encode(gap.before)
            following = torch.from_numpy(model.following(ids))
            top = following.topk(20)
            shown = {
                model.shown([i])[0]: v for v, i in zip(*map(torch.Tensor.tolist, top), strict=True)
            }
            # pieces of characters have no name of their own in the server's list
            plain.append(not any("�" in name for name in [*shown, gap.token]))
            wanted.append(shown.get(gap.token, floor_of(top.values.tolist(), scorer.margin)))
        given = np.concatenate(scores.token_logliks)
        assert len(given) == sum(sizes)
        assert np.mean(plain) > 0.8
        np.testing.assert_allclose(
            given[plain], np.array(wanted)[plain], atol=TOLERANCES["full"], rtol=1e-3
        )

    def test_the_likeliest_continuation_is_that_of_the_weights(self, alice, models, sentences):
        from servers.models import CausalModel

        model = CausalModel(models["alice"])
        scorer = over_http(
            alice, SampledScorer, tokenizer=models["alice"], temperature=0, new_tokens=1, places=4
        )
        scores = score_transcript(sentences, scorer, keep_tokens=True)
        gaps, _ = gaps_of(
            scorer.encode(sentences), np.arange(sentences.n), scorer.places, scorer.seed
        )
        wanted = []
        for gap in gaps:
            following = model.following([model.tokenizer.bos_token_id, *model.encode(gap.before)])
            wanted.append(model.shown([int(following.argmax())])[0].startswith(gap.token))
        assert 0 < sum(wanted) < len(wanted)
        assert np.concatenate(scores.token_logliks).tolist() == wanted

    def test_chats_are_answered(self, alice, models, sentences):
        few = sentences.take(np.arange(12))
        options = {"places": 2, "tokenizer": models["alice"]}
        listed = score_transcript(few, over_http(alice, ChatScorer, **options))
        assert np.isfinite(listed.loglik_mean).all()
        assert np.ptp(listed.loglik_mean) > 0.1
        sampled = over_http(alice, SampledScorer, access="chat", match="first", **options)
        shares = score_transcript(few, sampled)
        assert ((shares.loglik_mean >= 0) & (shares.loglik_mean <= 1)).all()
        assert not [line for line in shares.caveats if "not deterministic" in line]

    def test_the_record_is_of_this_version_and_shape(self, serve):
        with serve("alice") as url:
            now = {"llama-cpp-python": version("llama-cpp-python"), "begin": ask_all(url, NAME)}
        with serve("alice", begin=False) as url:
            now["no begin"] = ask_all(url, NAME)
        if OPT_IN == "record":
            RECORDED.write_text(
                json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
        assert recorded["llama-cpp-python"] == now["llama-cpp-python"]
        assert shape(now) == shape(recorded)


# ---------------------------------------------------------------- what it answered, everywhere


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text(encoding="utf-8"))


def choice_of(recorded, part: str, name: str):
    assert recorded[part][name]["status"] == 200
    (choice,) = recorded[part][name]["response"]["choices"]
    return choice


def test_the_record_holds_what_we_ask(recorded):
    for part in ("begin", "no begin"):
        assert recorded[part].keys() == QUESTIONS.keys()
        for name, (_, body) in QUESTIONS.items():
            assert recorded[part][name]["request"] == {"model": NAME, **body}
    assert FORMS[2].ask == {k: v for k, v in QUESTIONS["echo"][1].items() if k != "prompt"}
    assert f"llama_cpp_python=={recorded['llama-cpp-python']}" in (
        RECORDED.parent.parent.parent / "constraints.txt"
    ).read_text(encoding="utf-8")


def test_the_recorded_echo_is_aligned_though_characters_are_not_shown(recorded):
    choice = choice_of(recorded, "begin", "echo")
    said = choice["logprobs"]
    assert "".join(said["tokens"]).startswith("The value of   is")
    made = _window(FORMS[2], choice, TEXT, None, 0)
    # all tokens of the prompt but the first, and not the one that was generated
    np.testing.assert_allclose(made, said["token_logprobs"][1:-1])
    after = TEXT.index("é")
    shown = len(TEXT[:after].split()) + 1  # and the space by itself
    np.testing.assert_array_equal(_window(FORMS[2], choice, TEXT, None, after), made[shown - 1 :])
    np.testing.assert_array_equal(
        _window(FORMS[2], choice, TEXT, None, TEXT.index(" is")), made[-1:]
    )


def test_the_recorded_values_are_of_the_token_only_after_a_mark_of_beginning(recorded):
    for part, faulty in (("begin", False), ("no begin", True)):
        choices = [choice_of(recorded, part, name) for name in ("fork one", "fork two")]
        names = [
            choice["logprobs"]["tokens"][: len(text.split())]
            for choice, text in zip(choices, FORKED, strict=True)
        ]
        values = [choice["logprobs"]["token_logprobs"][:4] for choice in choices]
        reason = _pairing_fault(FORMS[2], names, values, choices)
        assert (reason is not None) == faulty
        assert not faulty or "other likeliest tokens" in reason
        # it lists at this place what it lists after the prompt without its last token, or not
        likeliest = choice_of(recorded, part, "likeliest")["logprobs"]["top_logprobs"][0]
        best = max(likeliest.values())
        here = [max(choice["logprobs"]["top_logprobs"][3].values()) for choice in choices]
        assert np.allclose(here, best, atol=1e-4) != faulty


def test_the_recorded_lists_and_texts_are_read(recorded):
    for name, access in (("likeliest", "completions"), ("chat", "chat")):
        scorer = ChatScorer("http://localhost/v1", NAME, access=access, top=5)
        choice = choice_of(recorded, "begin", name)
        listed = scorer._listed(choice)
        assert len(listed) == 5
        assert max(listed, key=listed.__getitem__) == _said(choice)
    with pytest.raises(BadAnswerError, match="no log-probabilities"):
        _window(FORMS[2], choice_of(recorded, "begin", "prompt_logprobs"), TEXT, None, 0)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("token ids", 422, "answers 500, .*valid string.*does not take requests of this form"),
        ("too long", 400, "answers 400, .*maximum context length"),
    ],
)
def test_the_recorded_refusals_are_not_asked_again(name, status, words, recorded):
    answer = recorded["begin"][name]
    server = Server(None, refusal=(answer["status"], answer["response"]))
    with server.running() as url:
        endpoint = Endpoint(url, NAME, first_wait=0.01)
        with pytest.raises(RefusedError, match=words) as refused:
            endpoint.ask("completions", [Item(answer["request"], dict, 4, 1)])
    assert refused.value.status == status
    assert server.received == 1


def test_a_server_of_one_prompt_a_request_is_found_out(recorded):
    """As recorded: an error without a word to several, and a failed check of token ids."""
    model = NgramModel()
    server = Server(
        model,
        forms={"echo", "logprobs"},
        most_prompts=1,
        complaint=(
            recorded["begin"]["several prompts"]["status"],
            recorded["begin"]["several prompts"]["response"]["error"]["message"],
        ),
    )
    rows = Transcript.from_arrays(
        range(40), texts=[f"the value of {n} is a number" for n in range(40)]
    )
    with server.running() as url:
        scorer = CompletionsScorer(url, NAME, form="echo", first_wait=0.01, concurrency=1)
        scores = score_transcript(rows, scorer)
        before = server.received
        assert server.prompts == 20 + 4 + 40  # canaries, steadiness, rows: each answered once
        # three failures, one answer, and the failure that tells a habit from an accident
        assert before == server.prompts + 4
        assert scorer.endpoint.one_at_a_time
    wanted = [np.mean(model.logprobs(model.encode(text))[1:]) for text in rows.texts()]
    np.testing.assert_allclose(scores.loglik_mean, wanted, atol=1e-5)
