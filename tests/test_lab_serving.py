"""The lab's own server: its likelihoods are the model's, and every scorer reaches the model."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from servers.models import train_small, training_text

from workbench import InputError, Transcript
from workbench.lab.serving import ServedModel, answer_completions, serving
from workbench.scorers import (
    CausalLMScorer,
    ChatScorer,
    CompletionsScorer,
    SampledScorer,
    score_transcript,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("torch")
    made = tmp_path_factory.mktemp("model")
    train_small(made)
    return made


@pytest.fixture(scope="module")
def transcript():
    text = training_text()
    rows = [text[s : s + 60].strip() for s in range(0, 60 * 70, 70)]
    return Transcript.from_arrays(np.random.default_rng(0).permutation(len(rows)), texts=rows)


@pytest.fixture(scope="module")
def served(folder):
    return ServedModel(folder)


@pytest.fixture(scope="module")
def address(served):
    with serving(served) as url:
        yield url


def by_weights(folder, transcript):
    return score_transcript(transcript, CausalLMScorer(folder), keep_tokens=True)


@pytest.mark.parametrize("form", ["echo", "prompt_logprobs", "token_ids"])
def test_likelihoods_are_the_model_s(form, folder, transcript, address, tmp_path):
    scorer = CompletionsScorer(
        address, "lab", form=form, tokenizer=folder, store=tmp_path / "answers.sqlite"
    )
    through = score_transcript(transcript, scorer)
    here = by_weights(folder, transcript)
    np.testing.assert_array_equal(through.n_tokens, here.n_tokens)
    np.testing.assert_allclose(through.loglik_mean, here.loglik_mean, atol=2e-4)


def test_top_k_lists_the_likeliest(served):
    body = {"model": "lab", "prompt": "The value of", "max_tokens": 2, "logprobs": 5}
    (choice,) = answer_completions(served, {**body, "temperature": 0})["choices"]
    first = choice["logprobs"]["top_logprobs"][0]
    values = served.following([served.encode("The value of")])[0]
    assert sorted(first.values(), reverse=True) == pytest.approx(sorted(values, reverse=True)[:5])
    assert choice["logprobs"]["tokens"][0] == max(first, key=first.get)


def test_draws_have_the_model_s_probabilities(served):
    ids = served.encode("The value of")
    p = np.exp(served.following([ids])[0])
    body = {"model": "lab", "prompt": ["The value of"] * 2000, "max_tokens": 1, "seed": 3}
    said = [c["text"] for c in answer_completions(served, body)["choices"]]
    best = int(p.argmax())
    share = np.mean([text == served.text([best]) for text in said])
    assert abs(share - p[best]) < 5 * np.sqrt(p[best] * (1 - p[best]) / 2000)
    again = [c["text"] for c in answer_completions(served, body)["choices"]]
    assert again == said


def test_top_k_and_sampled_access_reach_it(folder, transcript, address, tmp_path):
    here = by_weights(folder, transcript)
    top = ChatScorer(
        address,
        "lab",
        access="completions",
        top=20,
        places=99,  # all of them
        tokenizer=folder,
        store=tmp_path / "a.sqlite",
    )
    assert np.corrcoef(score_transcript(transcript, top).loglik_mean, here.loglik_mean)[0, 1] > 0.7
    sampled = SampledScorer(
        address,
        "lab",
        places=4,
        draws=256,
        new_tokens=1,
        tokenizer=folder,
        bundle=64,
        store=tmp_path / "b.sqlite",
    )
    few = transcript.take(np.arange(20))
    drawn = score_transcript(few, sampled)
    expected = sampled.expected(few, here)  # scores of more examples than are asked for
    assert expected.units == drawn.units
    # a mean of 4 places and 256 draws has a standard deviation below 1/64
    np.testing.assert_allclose(drawn.loglik_mean, expected.loglik_mean, atol=5 / 64)
    assert np.corrcoef(drawn.loglik_mean, expected.loglik_mean)[0, 1] > 0.8


def test_a_guide_chooses_the_places_where_most_is_to_be_learnt(folder, transcript):
    here = by_weights(folder, transcript)
    options = {"tokenizer": folder, "places": 3, "new_tokens": 1}
    guided = SampledScorer("http://localhost:1/v1", "lab", guide=here, **options)
    plain = SampledScorer("http://localhost:1/v1", "lab", **options)
    told = [guided.expected(transcript, here), plain.expected(transcript, here)]
    spread = [np.mean(s.loglik_mean * (1 - s.loglik_mean)) for s in told]
    assert spread[0] > 1.2 * spread[1]
    # by hand, for one row
    passages = guided.encode(transcript)
    p = np.exp(here.token_logliks[0].astype(float))
    at = passages.cut_ids[0] - 1  # the first token has no value
    best = np.sort(np.argsort(-(p[at] * (1 - p[at])), kind="stable")[:3])
    assert told[0].loglik_mean[0] == pytest.approx(p[at][best].mean())
    # the same for an example wherever it stands, and part of who scored
    turned = transcript.take(np.arange(transcript.n)[::-1])
    again = guided.expected(turned, here.take(np.arange(transcript.n)[::-1]))
    np.testing.assert_array_equal(again.loglik_mean[::-1], told[0].loglik_mean)
    assert guided.identity().settings["guide"].startswith(here.label)
    assert any("must be independent of the order" in line for line in guided.remarks())


def test_guides_that_do_not_fit_are_refused(folder, transcript, tmp_path):
    here = by_weights(folder, transcript)
    whole = score_transcript(transcript, CausalLMScorer(folder), tmp_path / "whole.parquet")
    address = "http://localhost:1/v1"
    few = here.take(np.arange(5))
    for match, call in {
        "name the tokenizer": lambda: SampledScorer(address, "lab", guide=here),
        "no values of single tokens": lambda: SampledScorer(
            address, "lab", guide=whole, tokenizer=folder
        ),
        "holds no values for 55 of the 60 examples": lambda: SampledScorer(
            address, "lab", guide=few, tokenizer=folder
        ).encode(transcript),
        "match='next' and new_tokens=1 only": lambda: SampledScorer(
            address, "lab", match="first", tokenizer=folder
        ).expected(transcript, here),
        "score both on the same window": lambda: SampledScorer(
            address, "lab", guide=here, tokenizer=folder, length=3
        ).encode(transcript),
    }.items():
        with pytest.raises(InputError, match=match):
            call()


def test_bad_requests_are_answered(address):
    for body in ({}, {"prompt": ""}, {"prompt": [""]}, {"prompt": "x", "max_tokens": "many"}):
        request = urllib.request.Request(
            f"{address}/completions", json.dumps(body).encode(), {"Content-Type": "text/json"}
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)


def test_no_server_without_a_model_or_a_port(tmp_path, served, address):
    with pytest.raises(InputError, match="is no folder of a model"):
        ServedModel(tmp_path / "nothing")
    taken = int(address.rsplit(":", 1)[1].split("/")[0])
    with pytest.raises(InputError, match=f"port {taken}"), serving(served, port=taken):
        pass
