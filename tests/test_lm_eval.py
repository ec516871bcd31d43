"""Samples that lm-evaluation-harness 0.4.13 wrote, in lm_eval_samples/, against our own scorer."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_causal_lm import COMMON, CONTEXT, TOLERANCE, add_tokenizer  # noqa: E402

from workbench.errors import InputError  # noqa: E402
from workbench.gates import gate_measurement  # noqa: E402
from workbench.scorers import lm_eval_scores, score_transcript, tokenise_transcript  # noqa: E402
from workbench.scorers.causal_lm import CausalLMScorer  # noqa: E402
from workbench.transcript import Transcript  # noqa: E402

FOLDER = Path(__file__).parent / "lm_eval_samples"
(ROLLING,) = FOLDER.glob("samples_rolling_*.jsonl")
(CONTINUATION,) = FOLDER.glob("samples_continuation_*.jsonl")
CONTEXT_CHARACTERS = 14  # of continuation.yaml
LONG = 2  # this text is longer than the model's context


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Weights from NumPy's stream, which is the same everywhere, so that the samples stay true."""
    folder = tmp_path_factory.mktemp("lm_eval") / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig(**COMMON, tie_word_embeddings=True)
        network = transformers.LlamaForCausalLM(config)
        rng = np.random.default_rng(5)
        with torch.no_grad():
            for _, weights in sorted(network.named_parameters()):
                values = 0.5 * rng.standard_normal(tuple(weights.shape))
                weights.copy_(torch.from_numpy(values.astype(np.float32)))
        network.save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def transcript() -> Transcript:
    return Transcript.read(FOLDER / "texts.jsonl")


def test_whole_texts_are_what_our_scorer_gives(model, transcript):
    scores = lm_eval_scores(ROLLING, transcript, tokenizer=model, name="tiny")
    assert scores.examples_fingerprint == transcript.examples_fingerprint
    assert (scores.label, scores.identity.bos, scores.caveats) == ("tiny", "prepended", ())
    assert gate_measurement([scores]).status == "declared"
    fit = [row for row in range(transcript.n) if row != LONG]
    ours = score_transcript(
        transcript.take(fit), CausalLMScorer(model, device="cpu", bos=True), progress=False
    )
    np.testing.assert_allclose(scores.take(fit).loglik_mean, ours.loglik_mean, atol=TOLERANCE)
    assert scores.take(fit).n_tokens.tolist() == ours.n_tokens.tolist()


def test_a_text_longer_than_the_context_has_every_token_scored_once(model, transcript):
    """By the tool's windows: the last one reaches back as far as the context allows."""
    scores = lm_eval_scores(ROLLING, transcript, tokenizer=model)
    ids = tokenise_transcript(transcript, model).tokens()[LONG]
    assert scores.n_tokens[LONG] == len(ids) > CONTEXT
    network = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    whole = torch.tensor([COMMON["bos_token_id"], *ids])
    total = 0.0
    rest = len(ids) - CONTEXT
    for window, scored in ((whole[: CONTEXT + 1], CONTEXT), (whole[-CONTEXT - 1 :], rest)):
        with torch.no_grad():
            logits = torch.log_softmax(network(window[None, :-1]).logits[0].double(), dim=-1)
        total += logits.gather(1, window[1:, None])[-scored:].sum().item()
    assert scores.loglik_sum[LONG] == pytest.approx(total, abs=TOLERANCE * len(ids))


def test_texts_given_a_context_are_windows_of_our_scorer(model, transcript):
    scores = lm_eval_scores(CONTINUATION, transcript, tokenizer=model)
    assert scores.identity.bos == "unknown"
    contexts = [text[:CONTEXT_CHARACTERS].rstrip() for text in transcript.texts()]
    before = Transcript.from_arrays(transcript.positions, texts=contexts)
    prefixes = tokenise_transcript(before, model).lengths
    lengths = tokenise_transcript(transcript, model).lengths
    assert scores.n_tokens.tolist() == (lengths - prefixes).tolist()
    for row in set(range(transcript.n)) - {LONG}:
        scorer = CausalLMScorer(model, device="cpu", prefix=int(prefixes[row]))
        ours = score_transcript(transcript.take([row]), scorer, progress=False)
        np.testing.assert_allclose(scores.loglik_mean[row], ours.loglik_mean[0], atol=TOLERANCE)


def test_rows_are_found_by_number_and_content(model, transcript):
    whole = lm_eval_scores(ROLLING, transcript, tokenizer=model)
    part = lm_eval_scores(ROLLING, transcript.take([3, 0]), tokenizer=model)
    assert part.loglik_sum.tolist() == whole.loglik_sum[[3, 0]].tolist()
    tokens = tokenise_transcript(transcript, model)
    assert lm_eval_scores(ROLLING, tokens, tokenizer=model).loglik_sum.tolist() == (
        whole.loglik_sum.tolist()
    )
    assert whole.key != lm_eval_scores(CONTINUATION, transcript, tokenizer=model).key


def test_tokens_that_a_tokenizer_adds_are_counted_as_the_tool_scores_them(
    model, transcript, tmp_path
):
    from tokenizers import processors

    cut = transformers.AutoTokenizer.from_pretrained(model)
    cut.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", 1)]
    )
    cut.save_pretrained(tmp_path)
    plain, more = (
        lm_eval_scores(ROLLING, transcript, tokenizer=folder) for folder in (model, tmp_path)
    )
    assert (more.n_tokens - plain.n_tokens).tolist() == [1, 1, 1, 1]
    assert "puts 1 token(s) of its own into a text" in more.caveats[0]
    same = lm_eval_scores(CONTINUATION, transcript, tokenizer=tmp_path)
    expected = lm_eval_scores(CONTINUATION, transcript, tokenizer=model)
    assert (same.n_tokens.tolist(), same.caveats) == (expected.n_tokens.tolist(), ())


def test_what_does_not_fit_is_one_sentence(model, transcript, tmp_path):
    rows = [json.loads(line) for line in ROLLING.read_text().splitlines()]

    def refused(message, changed=rows, given=transcript, tokenizer=model):
        path = tmp_path / "samples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(InputError, match=message):
            lm_eval_scores(path, given, tokenizer=tokenizer)

    def with_first(**changes):
        return [rows[0] | changes, *rows[1:]]

    refused("holds sums, .*name the model's tokenizer", tokenizer=None)
    refused("no document with doc_id 3 for row 3 .*without --limit", rows[:3])
    refused("line 5 has doc_id 0 again", [*rows, rows[0]])
    refused("row 0 has the score nan", with_first(resps=[["nan"]]))
    swapped = [row | {"doc_id": place} for row, place in zip(rows, (0, 2, 1, 3), strict=True)]
    refused("doc_id 1 is not row 1 of .*texts.jsonl, nor are 1 more", swapped)
    refused("doc_id 0 is not row 0", given=Transcript.from_arrays([0, 1], texts=["a", "b"]))
    refused("no token ids and no text", given=Transcript.from_arrays([0, 1]))
    asked = {"arg_0": "a", "arg_1": "b"}
    generated = {"arg_0": "a", "arg_1": {"until": ["b"]}}
    for fault in (
        {"resps": [["not a number"]]},  # generated text
        {"resps": [["-1.5", "-1.5"]]},  # asked twice
        {"resps": []},
        {"arguments": {"gen_args_0": asked, "gen_args_1": asked}, "resps": [["-1"], ["-2"]]},
        {"arguments": {"gen_args_0": generated}, "resps": [["42"]]},
        {"arguments": {"gen_args_0": asked}},  # one value, where a sum and a flag belong
        {"arguments": [["a"]]},
        {"doc_id": "0"},
    ):
        refused("line 1 is no document with one sum of log-likelihoods", with_first(**fault))
    with pytest.raises(InputError, match="cannot be read"):
        lm_eval_scores(tmp_path / "absent.jsonl", transcript, tokenizer=model)
