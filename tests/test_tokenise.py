"""Texts before a model: the seam between prompt and completion, and which tokens are scored."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from workbench import InputError, Texts, Transcript, score_texts, tokenise_texts  # noqa: E402
from workbench.scorers import CausalLMScorer, tokenise_transcript  # noqa: E402
from workbench.transcript import Selection  # noqa: E402

LETTERS = "ĠabcdefghijklmnopqrstuvwxyzÃ©"


def save_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<s>": 0, "<unk>": 1}
    for piece in [*LETTERS, *("".join(pair) for pair in merges)]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(made)
    save_tokenizer(made, [("a", "b"), ("Ġ", "c")])
    return made


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("other")
    save_tokenizer(made, [("b", "c")])
    return made


def by_hand(folder: Path, prompt, completion) -> np.ndarray:
    """Full logits of one document: the completion's tokens, each given all before it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([*prompt, *completion])
    with torch.no_grad():
        logs = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
    own = logs[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    return own[max(0, len(prompt) - 1) :]


def test_the_seam_is_found_from_characters(folder):
    """Fault 10 of the published code: prompt length from a tokenisation of its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cut = tokenise_texts(Texts.from_strings(["b c", "ab"], ["xa", "x "]), folder)
    pieces = [[tokenizer.convert_ids_to_tokens(i.tolist()) for i in part]
              for part in (cut.prompts, cut.completions)]  # fmt: skip
    # "xab c": the token "ab" spans the seam and belongs to the completion; nothing is stripped.
    assert pieces == [[["x"], ["x", "Ġ"]], [["ab", "Ġc"], ["ab"]]]
    alone = tokenizer("xa", add_special_tokens=False)["input_ids"]
    assert len(alone) == 2 != len(cut.prompts[0])
    assert cut.tokenizer_sha256


def test_the_first_completion_token_is_scored_and_the_prompt_is_not(folder):
    """Fault 10 again: the published code skips the completion's first token."""
    texts = Texts.from_tokens([[5, 6, 7], [9], [4, 5]], [[2, 3], [8], []])
    scores = score_texts(texts, CausalLMScorer(str(folder), device="cpu"))
    assert scores.n_tokens.tolist() == [3, 1, 1]  # without a prompt the first has no score
    for values, prompt, completion in zip(
        scores.token_logliks, texts.prompts, texts.completions, strict=True
    ):
        expected = by_hand(folder, prompt, completion)
        np.testing.assert_allclose(values, expected, atol=2e-4, rtol=0)
    np.testing.assert_allclose(scores.loglik_sum, [v.sum() for v in scores.token_logliks])


def test_a_bos_gives_the_first_token_a_score(folder):
    texts = Texts.from_tokens([[5, 6], [7]], [[], [4]])
    scores = score_texts(texts, CausalLMScorer(str(folder), device="cpu", bos=True))
    assert scores.n_tokens.tolist() == [2, 1]
    np.testing.assert_allclose(scores.token_logliks[0], by_hand(folder, [0], [5, 6]), atol=2e-4)
    np.testing.assert_allclose(scores.token_logliks[1], by_hand(folder, [0, 4], [7]), atol=2e-4)


def test_token_ids_are_scored_as_they_are(folder):
    """Fault 9: decoding and encoding again changes them ("a", "b" would become "ab")."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    a, b, ab = tokenizer.convert_tokens_to_ids(["a", "b", "ab"])
    apart = score_texts(Texts.from_tokens([[a, b]], [[5]]), str(folder))
    joined = score_texts(Texts.from_strings(["ab"], ["d"]), str(folder))
    assert apart.n_tokens.tolist() == [2]
    assert joined.n_tokens.tolist() == [1]
    assert ab in tokenise_texts(Texts.from_strings(["ab"]), folder).completions[0]


def test_neighbours_and_padding_do_not_matter(folder):
    """Fault 8: in company and alone, short and long, the same values."""
    rng = np.random.default_rng(4)
    completions = [rng.integers(2, 60, n) for n in (2, 9, 20, 3)]
    prompts = [rng.integers(2, 60, n) for n in (3, 1, 2, 20)]
    scorer = CausalLMScorer(str(folder), device="cpu")
    together = score_texts(Texts.from_tokens(completions, prompts), scorer)
    for i, (c, p) in enumerate(zip(completions, prompts, strict=True)):
        alone = score_texts(Texts.from_tokens([c], [p]), scorer)
        np.testing.assert_allclose(alone.token_logliks[0], together.token_logliks[i], atol=2e-4)


def test_scores_are_bound_to_the_seam(folder):
    one = score_texts(Texts.from_tokens([[5, 6]], [[4]]), str(folder))
    other_seam = score_texts(Texts.from_tokens([[6]], [[4, 5]]), str(folder))
    assert one.examples_fingerprint != other_seam.examples_fingerprint


def test_a_transcript_of_text_becomes_token_ids_with_its_order(folder):
    transcript = Transcript.from_arrays(
        [3, 1, 2, 0], texts=["ab", "c", "ab c", "a"], blocks=[0, 0, 1, 1]
    )
    cut = tokenise_transcript(transcript, folder)
    assert cut.kind == "tokens"
    assert cut.lengths.tolist() == [1, 1, 2, 1]
    assert np.array_equal(cut.positions, transcript.positions)
    assert (cut.blocks, cut.strata.tolist()) == (2, transcript.strata.tolist())
    assert cut.selection is None
    part = tokenise_transcript(transcript.take([1, 2]), folder)
    assert part.selection == Selection("by hand", 4)
    assert tokenise_transcript(cut, folder) is cut


def test_bad_input_is_one_sentence(folder, other, tmp_path):
    scorer = CausalLMScorer(str(folder), device="cpu")
    strings = Texts.from_strings(["ab"])
    foreign = tokenise_texts(strings, other)
    cases = [
        (lambda: tokenise_texts(strings, tmp_path), "has no tokenizer|holds no"),
        (lambda: tokenise_texts(foreign, folder), "token ids of another tokenizer than"),
        (lambda: score_texts(foreign, scorer), "token ids of another tokenizer than"),
        (lambda: score_texts(strings, scorer), "holds strings, and token ids are needed"),
        (lambda: score_texts(Texts.from_tokens([[5]]), scorer), "has 1 tokens"),
        (lambda: score_texts(Texts.from_tokens([[99]], [[1]]), scorer), "token id 99, outside the"),
        (
            lambda: score_texts(Texts.from_tokens([[5] * 20], [[1] * 20]), scorer),
            "has 40 tokens and .* takes 24",
        ),
        (
            lambda: score_texts(
                Texts.from_tokens([[5]], [[1]]), CausalLMScorer(str(folder), prefix=1)
            ),
            "is set to score a window: the completion is the window here",
        ),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
