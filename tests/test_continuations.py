"""Top-k and sampled access: places, floors, agreement, units, and whether memory is found."""

import json
import math

import numpy as np
import pytest
from servers.app import Server
from servers.models import NgramModel, training_text

from workbench.errors import InputError
from workbench.independence import query_test
from workbench.scorers import Scorer, score_transcript
from workbench.scorers.chat import ChatScorer, floor_of
from workbench.scorers.completions import CompletionsScorer
from workbench.scorers.continuations import Prompts, gaps_of, places_of
from workbench.scorers.passages import passages_of
from workbench.scorers.sampled import AGREEMENT, SampledScorer, agreement
from workbench.scores import NATS, Scores
from workbench.transcript import Transcript

FAST = {"first_wait": 0.01, "timeout": 10.0}


@pytest.fixture(scope="module")
def ngrams():
    return NgramModel()


@pytest.fixture
def server(ngrams):
    return Server(ngrams)


def texts_of(n: int, seed: int = 0, length: int = 80) -> list[str]:
    rng = np.random.default_rng(seed)
    text = training_text()
    return [text[s : s + length].strip() for s in rng.integers(0, len(text) - 200, n)]


def transcript_of(n: int = 30, seed: int = 0) -> Transcript:
    return Transcript.from_arrays(
        np.random.default_rng(seed).permutation(n), texts=texts_of(n, seed), shuffle="owner"
    )


# ---------------------------------------------------------------- places


def test_places_depend_on_content_and_seed_alone_and_are_spread():
    texts = texts_of(40, length=200)
    passages = passages_of(Transcript.from_arrays(range(40), texts=texts))
    backwards = passages_of(Transcript.from_arrays(range(40), texts=texts[::-1]))
    other_seed = 0
    for row in range(40):
        places = places_of(passages, row, 4, seed=1)
        np.testing.assert_array_equal(places, places_of(backwards, 39 - row, 4, seed=1))
        other_seed += not np.array_equal(places, places_of(passages, row, 4, seed=2))
        assert (np.diff(places) > 0).all()
        assert set(places.tolist()) <= set(passages.cuts[row].tolist())
        quarter = np.searchsorted(passages.cuts[row], places) * 4 // len(passages.cuts[row])
        assert np.abs(quarter - np.arange(4)).max() <= 1
    assert other_seed > 30


def test_gaps_are_the_text_taken_apart():
    passages = passages_of(Transcript.from_arrays([0, 1], texts=["a bc  d", "one two"]))
    gaps, sizes = gaps_of(passages, np.array([1, 0]), 9, seed=0)
    assert sizes == [1, 2]
    assert [(g.before, g.token, g.after) for g in gaps] == [
        ("one", " two", " two"),
        ("a", " bc", " bc  d"),
        ("a bc", "  d", "  d"),
    ]


def test_an_example_without_a_place_is_named(server):
    t = Transcript.from_arrays([0, 1], texts=["two words", "one-word"])
    with server.running() as url, pytest.raises(InputError, match=r"example 1, .* one word"):
        score_transcript(t, SampledScorer(url, "m", **FAST))


# ---------------------------------------------------------------- top-k


@pytest.mark.parametrize("access", ["chat", "completions"])
@pytest.mark.parametrize("top", [1, 3, 20])
def test_the_listed_token_is_looked_up_and_others_have_the_floor(access, top, server, ngrams):
    t = transcript_of()
    with server.running() as url:
        one = ChatScorer(url, "m", access=access, top=top, places=5, margin=2.0, bundle=4, **FAST)
        assert isinstance(one, Scorer)
        scores = score_transcript(t, one, keep_tokens=True)
    passages = one.encode(t)
    for row in range(t.n):
        gaps, _ = gaps_of(passages, np.array([row]), 5, 0)
        wanted = []
        for gap in gaps:
            # the server's tokens are bytes; in a chat the space before the word is understood
            true, seam = (gap.after.lstrip(), " ") if access == "chat" else (gap.after, "")
            following = ngrams.following(ngrams.encode(gap.before + seam))
            best = np.argsort(-following)[:top]
            if ord(true[0]) in best:
                wanted.append(following[ord(true[0])])
            else:
                listed = following[best]
                left = max(1 - np.exp(listed).sum(), 1e-9)
                wanted.append(min(listed.min(), math.log(left)) - 2.0)
        np.testing.assert_allclose(scores.token_logliks[row], wanted, atol=1e-5)
    assert scores.units == NATS
    assert [c for c in scores.caveats if f"{top} likeliest" in c]
    assert bool([c for c in scores.caveats if "chat" in c]) == (access == "chat")


def test_the_floor_lies_below_everything_listed_and_grows_less_with_the_mass():
    for listed in ([-0.1], [-1.0, -1.1], [-1e-9], [-0.0, -30.0]):
        assert floor_of(listed, 0.5) <= min(listed) - 0.5
        assert math.isfinite(floor_of(listed, 0.5))
    assert floor_of([-2.0], 1.0) == -3.0


@pytest.mark.parametrize("access", ["chat", "completions"])
def test_a_server_without_likely_tokens_is_refused(access, server):
    server.forms = set()
    server.lie = "nothing"
    with server.running() as url, pytest.raises(InputError, match="lists no likely tokens"):
        score_transcript(transcript_of(3), ChatScorer(url, "m", access=access, attempts=2, **FAST))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda v: 0.0, "all of them are zero"),
        (lambda v: -v, "some are positive"),
        (lambda v: v / 3, "together they have a probability"),
    ],
)
def test_lists_that_cannot_be_log_probabilities_are_refused(spoil, words, server):
    top = server._top
    server._top = lambda *given: {token: spoil(v) for token, v in top(*given).items()}
    with server.running() as url, pytest.raises(InputError, match=words):
        score_transcript(
            transcript_of(3), ChatScorer(url, "m", access="completions", top=5, **FAST)
        )


def test_too_long_a_list_is_said_to_be(server):
    server.refusal = (400, {"error": {"message": "top_logprobs must be at most 5"}})
    with server.running() as url, pytest.raises(InputError, match=r"at most 5.*top=") as caught:
        score_transcript(transcript_of(3), ChatScorer(url, "m", **FAST))
    assert "sampled access" in str(caught.value)


@pytest.mark.slow
def test_with_the_models_own_tokenizer_values_are_those_of_the_weights(tmp_path, one_thread):
    from servers.models import CausalModel, train_small

    train_small(tmp_path, steps=60)
    model = CausalModel(tmp_path)
    t = transcript_of(12)
    with Server(model).running() as url:
        one = ChatScorer(
            url, "m", access="completions", top=600, places=6, tokenizer=tmp_path, **FAST
        )
        scores = score_transcript(t, one, keep_tokens=True)
    passages = one.encode(t)
    for row in range(t.n):
        gaps, _ = gaps_of(passages, np.array([row]), 6, 0)
        wanted = []
        for gap in gaps:
            (token,) = model.encode(gap.token)
            wanted.append(model.following(model.encode(gap.before))[token])
        np.testing.assert_allclose(scores.token_logliks[row], wanted, atol=1e-4)


# ---------------------------------------------------------------- sampled


def test_agreement_is_the_share_up_to_the_first_wrong_character():
    assert agreement("abcd", "abxd", 4) == 0.5
    assert agreement("abcd", "abcdef", 4) == 1.0
    assert agreement("abcd", "ab", 4) == 0.5
    assert agreement("ab", "abcd", 4) == 1.0
    assert agreement("", "x", 4) == 0.0


@pytest.mark.parametrize("access", ["chat", "completions"])
def test_likeliest_continuations_are_compared_as_text(access, server, ngrams):
    t = transcript_of(20)
    with server.running() as url:
        one = SampledScorer(
            url, "m", access=access, match="first", characters=6, new_tokens=7,
            temperature=0, places=4, draws=9, bundle=8, **FAST,
        )  # fmt: skip
        scores = score_transcript(t, one, keep_tokens=True)
    assert one.draws == 1
    passages = one.encode(t)
    for row in range(t.n):
        gaps, _ = gaps_of(passages, np.array([row]), 4, 0)
        wanted = []
        for gap in gaps:
            given = gap.before + (" " if access == "chat" else "")
            ids = ngrams.encode(given)
            for _ in range(7):
                ids.append(int(np.argmax(ngrams.following(ids))))
            said, true = ngrams.text(ids)[len(given) :], gap.after
            if access == "chat":
                said, true = said.lstrip(), true.lstrip()
            true = true[:6]
            same = next((i for i in range(len(true)) if said[i : i + 1] != true[i]), len(true))
            wanted.append(same / len(true))
        np.testing.assert_allclose(scores.token_logliks[row], wanted, atol=1e-6)


def test_the_next_word_must_end_where_the_true_one_ends():
    one = SampledScorer("http://a/v1", "m")
    passages = passages_of(Transcript.from_arrays([0], texts=["go in time"]))
    gaps, _ = gaps_of(passages, np.array([0]), 9, 0)
    gap = gaps[0]
    assert gap.token == " in"
    for said, right in ((" in", 1), (" in the", 1), (" in, ", 1), (" into", 0), ("in", 0), ("", 0)):
        assert one._agreement(gap, said) == right
    chat = SampledScorer("http://a/v1", "m", access="chat")
    assert chat._agreement(gap, "in time") == 1.0


def test_samples_are_averaged_over_draws_and_come_once(server, ngrams):
    t = transcript_of(6)
    with server.running() as url:
        one = SampledScorer(url, "m", draws=200, places=2, new_tokens=1, match="first",
                            characters=1, bundle=64, **FAST)  # fmt: skip
        scores = score_transcript(t, one, keep_tokens=True)
        prompts = server.prompts
        assert one.score(one.encode(t), np.arange(6))[0].size == 2
        assert server.prompts - prompts <= 3  # steadiness alone is asked anew
    passages = one.encode(t)
    for row in range(t.n):
        gaps, _ = gaps_of(passages, np.array([row]), 2, 0)
        p = [math.exp(ngrams.following(ngrams.encode(g.before))[ord(g.after[0])]) for g in gaps]
        # five standard deviations of a share of 200
        np.testing.assert_allclose(scores.token_logliks[row], p, atol=5 * 0.5 / math.sqrt(200))
    assert {b for v in scores.token_logliks for b in np.round(v * 200) / 200 - v} <= {0.0}


def test_settings_of_the_servers_sampler_are_sent_and_part_of_who_scored(server):
    server.keep_requests = True
    t = Transcript.from_arrays([0, 1], texts=["one two three four", "five six seven eight"])
    with server.running() as url:
        one = SampledScorer(url, "m", sampling={"top_k": 0}, places=2, **FAST)
        score_transcript(t, one)
    drawn = [body for body in server.asked if body["temperature"] > 0]
    assert drawn
    assert all(body["top_p"] == 1 and body["top_k"] == 0 for body in drawn)
    assert one.identity().settings["sampling"] == '{"top_k": 0}'
    assert not any("server's own" in line for line in one.remarks())
    plain = SampledScorer("http://a/v1", "m", places=2)
    assert any("server's own" in line for line in plain.remarks())


@pytest.mark.parametrize("kind", [ChatScorer, SampledScorer])
def test_a_chat_that_wants_the_newer_name_of_the_limit_is_understood(kind, server):
    t = transcript_of(6)
    options = {"access": "chat", "places": 2}
    with server.running() as url:
        plain = score_transcript(t, kind(url, "m", **options, **FAST))
    newer = Server(server.model, newer_limit=True)
    with newer.running() as url:
        other = score_transcript(t, kind(url, "m", **options, **FAST))
    np.testing.assert_array_equal(plain.loglik_sum, other.loglik_sum)
    assert newer.received - server.received <= 2  # what was refused


def test_options_out_of_range():
    for kind, options in (
        (SampledScorer, {"match": "most"}),
        (SampledScorer, {"draws": 0}),
        (SampledScorer, {"temperature": -1}),
        (SampledScorer, {"sampling": {"seed": 3}}),
        (SampledScorer, {"access": "telepathy"}),
        (SampledScorer, {"prefill": True}),
        (ChatScorer, {"top": 0}),
        (ChatScorer, {"margin": -1}),
        (ChatScorer, {"places": 0}),
    ):
        with pytest.raises(InputError):
            kind("http://a/v1", "m", **options)


def test_chats_are_asked_to_continue_or_are_begun():
    plain = Prompts().body("To be")
    assert [m["role"] for m in plain["messages"]] == ["system", "user"]
    assert plain["messages"][-1]["content"] == "To be"
    begun = Prompts(prefill=True).body("To be")
    assert begun["messages"][-1] == {"role": "assistant", "content": "To be"}
    assert begun["continue_final_message"] is True
    assert Prompts(prefill=True).settings != Prompts().settings


# ---------------------------------------------------------------- memory and units


class Remembering(NgramModel):
    """Knows some texts by heart, the better the later it saw them."""

    def __init__(self, texts, strength):
        super().__init__(order=3)
        self.known = {
            t.encode()[:12]: (t.encode(), s) for t, s in zip(texts, strength, strict=True)
        }

    def following(self, ids):
        base = super().following(ids)
        text, strength = self.known.get(bytes(ids[:12]), (b"", 0))
        if len(ids) < len(text) and text[: len(ids)] == bytes(ids):
            p = np.exp(base) * (1 - strength)
            p[text[len(ids)]] += strength
            return np.log(p)
        return base

    def logprobs(self, ids):
        return [None] + [float(self.following(ids[:at])[ids[at]]) for at in range(1, len(ids))]


KINDS = {
    "completions": (CompletionsScorer, {}),
    "chat": (ChatScorer, {"access": "chat", "top": 5, "places": 4}),
    "top of completions": (ChatScorer, {"access": "completions", "top": 5, "places": 4}),
    "sampled": (SampledScorer, {"places": 4, "draws": 2, "new_tokens": 3, "match": "first",
                                "characters": 3}),
    "greedy": (SampledScorer, {"places": 6, "temperature": 0, "new_tokens": 3, "match": "first",
                               "characters": 3}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_memory_of_the_order_is_found_through_every_form_of_access(kind, ngrams, tmp_path):
    n = 500
    texts = list(dict.fromkeys(texts_of(n + 50, seed=7, length=60)))[:n]
    order = np.random.default_rng(1).permutation(n)
    t = Transcript.from_arrays(order, texts=texts, shuffle="owner")
    scorer, options = KINDS[kind]
    found = {}
    for name, model in (
        ("derivative", Remembering(texts, 0.4 * order / n)),
        ("independent", ngrams),
    ):
        with Server(model).running() as url:
            one = scorer(url, name, bundle=32, **options, **FAST)
            scores = score_transcript(t, one, tmp_path / f"{name}.parquet")
        found[name] = query_test(t, scores, smallest_effect=0.2)
    assert found["derivative"].verdict == "evidence"
    assert found["derivative"].z > 5.6  # the normal tail there is 1e-8
    assert found["independent"].pvalue > 1e-3
    evidence = found["derivative"]
    said = evidence.summary() + json.dumps(evidence.to_dict(), ensure_ascii=False)
    read = Scores.read(tmp_path / "derivative.parquet")
    if scorer is SampledScorer:
        assert read.units == AGREEMENT
        assert AGREEMENT in evidence.effect.quantity
        assert "agreement" in evidence.contrast
        assert "nats" not in said
        assert "no log-likelihoods" in said
    else:
        assert "nats per token" in said
    assert "owner's word" in said


def test_agreement_and_log_likelihood_are_not_mixed():
    t = Transcript.from_arrays(np.arange(50), texts=texts_of(50))
    rng = np.random.default_rng(0)
    identity = SampledScorer("http://a/v1", "bob").identity()
    sampled = Scores.from_arrays(loglik=rng.random(50), transcript=t, identity=identity)
    nats = Scores.from_arrays(loglik=-rng.random(50), transcript=t)
    with pytest.raises(InputError, match=r"bob was scored in agreement.*nats per token"):
        query_test(t, sampled, [nats])
    with pytest.raises(InputError, match="score both the same way"):
        query_test(t, nats, placebos=[sampled])
    assert query_test(t, sampled).contrast == f"spearman, {AGREEMENT}"


def test_figures_say_what_is_drawn():
    figures = pytest.importorskip("workbench.figures")
    drawn = figures.memorisation_curve(
        np.arange(50), {"a": np.linspace(0, 1, 50)}, bins=5, units=AGREEMENT
    )
    assert AGREEMENT in drawn.axes[0].get_ylabel()
    assert "nats" not in drawn.axes[0].get_ylabel() + drawn.alt_text
