"""The transformers scorer: small random models against one-at-a-time scoring by full logits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM  # noqa: E402

from workbench.errors import InputError  # noqa: E402
from workbench.models import attention, network  # noqa: E402
from workbench.models.batches import TokenBudget  # noqa: E402
from workbench.scorers import open_scores, score_models, score_transcript  # noqa: E402
from workbench.scorers.causal_lm import CausalLMScorer  # noqa: E402
from workbench.scorers.scorer import Encoded, Scorer  # noqa: E402
from workbench.transcript import Transcript  # noqa: E402

VOCABULARY = 61
CONTEXT = 24
# Largest difference in nats from one-at-a-time float32 scoring: rounding, at logits of about 10.
TOLERANCE = 2e-4

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,  # spread-out predictions, so that a wrong token shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
# Other rotary frequencies for rows longer than this.
SWITCH = 9
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 4.0, 16.0, 40.0],
    "original_max_position_embeddings": SWITCH,
}
KINDS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gemma2": (
        "Gemma2Config",
        GROUPED
        | {
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
        },
    ),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 1}),
    "olmo2": ("Olmo2Config", {}),
    "mixtral": (
        "MixtralConfig",
        {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "num_key_value_heads": 1}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": CONTEXT}),
    "opt": ("OPTConfig", {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.5}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 1, "sliding_window": 5}),
    "gemma3": (
        "Gemma3TextConfig",
        GROUPED | {"sliding_window": 6, "query_pre_attn_scalar": 8, "layer_types": None},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt_oss": (
        "GptOssConfig",
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    ),
    "phi3": (
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH},
    ),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 2}),
    "mamba": ("MambaConfig", {"state_size": 4, "conv_kernel": 3, "expand": 2}),
}
# Attention that cannot be replaced: biases by distance, states, sinks.
PADDED = {"bloom", "mamba", "gpt_oss"}


def save_model(folder: Path, kind: str, **changes) -> Path:
    name, own = KINDS[kind]
    settings = COMMON | own | changes
    if kind == "gpt2":
        settings = {
            k: v for k, v in settings.items() if not k.startswith(("hidden", "num_", "max"))
        }
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, name)(**settings)
        model = AutoModelForCausalLM.from_config(config)
        transformers.utils.logging.disable_progress_bar()
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are fastest on one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_model(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return get


@pytest.fixture
def llama(models) -> Path:
    return models("llama")


@pytest.fixture
def own_llama(llama, tmp_path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def add_tokenizer(folder: Path, bos: bool = True) -> Path:
    """A byte-level tokenizer without merges: one id per byte it knows, spaces marked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = "Ġabcdefghijklmnopqrstuvwxyzé".replace("é", "Ã©")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    vocabulary["ab"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if bos:
        special["bos_token"] = "<s>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        folder
    )
    return folder


def transcript_of(rows) -> Transcript:
    return Transcript.from_arrays(np.arange(len(rows))[::-1], tokens=rows, shuffle="owner")


def mixed_rows(n: int = 13, seed: int = 0, longest: int = CONTEXT) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCABULARY, size) for size in rng.integers(2, longest + 1, n)]


@cache
def plain_model(folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def one_at_a_time(folder: Path, row, first: int = 1, last: int | None = None) -> np.ndarray:
    """Log-likelihoods of tokens first..last-1 of one row: full logits, no batch, no padding."""
    ids = torch.as_tensor(np.asarray(row))
    with torch.no_grad():
        logits = plain_model(folder)(ids[None]).logits[0].double()
    own = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[1:, None])[:, 0].numpy()
    return own[first - 1 : None if last is None else last - 1]


def score_all(scorer: CausalLMScorer, transcript: Transcript) -> list[np.ndarray]:
    return scorer.score(scorer.encode(transcript), np.arange(transcript.n))


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_shape_equals_one_at_a_time(models, kind):
    rows = mixed_rows()
    transcript = transcript_of(rows)
    expected = [one_at_a_time(models(kind), row) for row in rows]
    scorer = CausalLMScorer(models(kind), device="cpu")
    for budget in (1, 7, 40, 64, 10**6):
        scorer._budget = TokenBudget(budget)  # as if memory had run out, or had not
        values = score_all(scorer, transcript)
        for got, want in zip(values, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)
    assert scorer._network.in_two_steps
    assert scorer._network.packs is (kind not in PADDED)


def test_rows_come_back_in_the_order_asked_for_and_twice_if_asked_twice(llama):
    transcript = transcript_of(mixed_rows())
    scorer = CausalLMScorer(llama, device="cpu")
    encoded = scorer.encode(transcript)
    straight = scorer.score(encoded, np.arange(transcript.n))
    asked = np.array([7, 0, 12, 7, 3])
    for row, got in zip(asked, scorer.score(encoded, asked), strict=True):
        np.testing.assert_allclose(got, straight[row], atol=TOLERANCE)


def test_logits_exist_for_a_part_of_positions_and_vocabulary_only(llama, monkeypatch):
    rows = [np.arange(4, 24) + i for i in range(30)]
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    monkeypatch.setattr(network, "CPU_HEAD_COLUMNS", 7)
    monkeypatch.setattr(network, "CPU_HEAD_ROWS", 16)
    scorer = CausalLMScorer(llama, device="cpu")
    multiply, sizes = scorer._network._multiply, []

    def counted(x, weight):
        sizes.append((len(x), len(weight)))
        return multiply(x, weight)

    monkeypatch.setattr(scorer._network, "_multiply", counted)
    parts = score_all(scorer, transcript_of(rows))
    assert {a for a, _ in sizes} == {16, 10}  # 570 positions
    assert {b for _, b in sizes} == {7, 5}  # 61 words
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(whole), atol=TOLERANCE)


def test_a_head_that_cannot_be_cut_gives_whole_rows(llama, monkeypatch):
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(mixed_rows()))
    monkeypatch.setattr(network, "_is_plain_linear", lambda head: False)
    monkeypatch.setattr(network, "FEWEST_HEAD_ROWS", 16)
    monkeypatch.setattr(network, "CPU_HEAD_ROWS", 1)
    scorer = CausalLMScorer(llama, device="cpu")
    sizes = []
    scorer._network.head.register_forward_hook(lambda m, i, output: sizes.append(output.numel()))
    parts = score_all(scorer, transcript_of(mixed_rows()))
    assert max(sizes) == 16 * VOCABULARY
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(whole), atol=TOLERANCE)


def test_models_whose_logits_are_not_understood_run_in_micro_batches(models, monkeypatch):
    rows = mixed_rows()
    whole = score_all(CausalLMScorer(models("gemma2"), device="cpu"), transcript_of(rows))
    monkeypatch.setattr(network, "_caps", lambda config: [None])
    monkeypatch.setattr(network, "CPU_FULL_LOGITS", 1)
    scorer = CausalLMScorer(models("gemma2"), device="cpu")
    assert not scorer._network.in_two_steps
    sizes = []
    scorer._network.model.register_forward_hook(
        lambda m, i, output: sizes.append(output.logits.shape[:2].numel())
    )
    alone = score_all(scorer, transcript_of(rows))
    assert sorted(sizes) == sorted(len(row) - 1 for row in rows)
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(whole), atol=TOLERANCE)


def test_capping_is_noticed_when_the_probe_sees_small_logits(tmp_path, monkeypatch):
    folder = save_model(
        tmp_path / "flat", "gemma2", initializer_range=0.001, final_logit_softcapping=30.0
    )
    own = CausalLMScorer(folder, device="cpu")._network
    assert own.in_two_steps
    assert own.cap is not None
    monkeypatch.setattr(network, "_caps", lambda config: [None])
    assert CausalLMScorer(folder, device="cpu")._network.in_two_steps is False


def test_without_onednn_the_scores_are_the_same(llama, monkeypatch):
    transcript = transcript_of(mixed_rows())
    fast = score_all(CausalLMScorer(llama, device="cpu"), transcript)
    monkeypatch.setattr(network, "_onednn", lambda: None)
    plain = score_all(CausalLMScorer(llama, device="cpu"), transcript)
    np.testing.assert_allclose(np.concatenate(fast), np.concatenate(plain), atol=TOLERANCE)


# ---------------------------------------------------------------- no padding, nothing twice


def fed_tokens(scorer: CausalLMScorer) -> list[int]:
    """Filled with the number of token ids of every later forward pass."""
    seen: list[int] = []
    embeddings = scorer._network.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0].numel()))
    return seen


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_no_token_is_padding_where_rows_can_be_packed(models, kind):
    rows = mixed_rows(40)
    scorer = CausalLMScorer(models(kind), device="cpu")
    seen = fed_tokens(scorer)
    score_all(scorer, transcript_of(rows))
    real = sum(len(row) - 1 for row in rows)
    assert sum(seen) == real if kind == "llama" else sum(seen) > real


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral", "gemma3"])
def test_a_shared_prefix_is_computed_once(models, kind):
    prefix = np.arange(4, 21)
    rows = [np.concatenate([prefix, row]) for row in mixed_rows(12, longest=7)]
    scorer = CausalLMScorer(models(kind), device="cpu")
    seen = fed_tokens(scorer)
    values = score_all(scorer, transcript_of(rows))
    for row, got in zip(rows, values, strict=True):
        np.testing.assert_allclose(got, one_at_a_time(models(kind), row), atol=TOLERANCE)
    own = sum(len(row) - 1 - len(prefix) for row in rows)
    assert seen == [len(prefix) + own]


def test_equal_rows_are_scored_once(llama):
    rows = mixed_rows(5)
    scorer = CausalLMScorer(llama, device="cpu")
    seen = fed_tokens(scorer)
    values = score_all(scorer, transcript_of(rows * 3))
    assert sum(seen) == sum(len(row) - 1 for row in rows)
    for i, got in enumerate(values):
        np.testing.assert_array_equal(got, values[i % 5])


def test_the_same_tokens_with_another_window_are_other_rows(llama):
    scorer = CausalLMScorer(llama, device="cpu")
    ids = np.array([5, 6, 7, 8, 5, 6, 7, 8])
    encoded = Encoded(ids, np.array([0, 4, 8]), np.array([1, 3]))
    long, short = scorer.score(encoded, np.arange(2))
    assert (long.size, short.size) == (3, 1)
    np.testing.assert_allclose(long[2:], short, atol=TOLERANCE)


def test_an_unknown_attention_is_padded_and_right(llama, monkeypatch):
    """Where packed likelihoods differ from the model's own, the model is asked as it is."""
    rows = mixed_rows()
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    before = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *a: before(*a) * 1.5)
    scorer = CausalLMScorer(llama, device="cpu")
    padded = score_all(scorer, transcript_of(rows))
    assert not scorer._network.packs
    assert scorer._network.model.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(np.concatenate(padded), np.concatenate(whole), atol=TOLERANCE)


def test_the_loaded_model_is_its_own_and_scores_stay(llama):
    rows = mixed_rows()
    scorer = CausalLMScorer(llama, device="cpu")
    packed = score_all(scorer, transcript_of(rows))
    model = scorer.loaded_model()
    ids = torch.as_tensor(np.stack([rows[0][:2], rows[1][:2]]))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain_model(llama)(ids).logits)
    padded = score_all(scorer, transcript_of(rows))
    np.testing.assert_allclose(np.concatenate(padded), np.concatenate(packed), atol=TOLERANCE)


def test_a_variable_length_kernel_is_called_for_many_lengths(llama, monkeypatch):
    """On a CPU in place of a GPU, whose kernel is not here: what it is given, what it gives."""
    calls = []

    def kernel(query, key, value, layout, scaling, window):
        calls.append(len(layout.runs))
        parts = zip(layout.offsets(), layout.offsets()[1:], strict=False)
        rows = [slice(a, b) for a, b in parts]
        found = [
            attention._attend(query[:, :, r], key[:, :, r], value[:, :, r], scaling, window, None)
            for r in rows
        ]
        return torch.cat(found, dim=2).transpose(1, 2)

    rows = mixed_rows(30)
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    monkeypatch.setattr(attention, "_VARLEN", kernel)
    monkeypatch.setattr(attention, "_wants_kernel", lambda query, value, layout: True)
    got = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    assert calls[:2] == [5, 5]  # the two layers of the comparison at loading
    assert len(calls) > 2
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(whole), atol=TOLERANCE)


def test_a_kernel_that_refuses_is_left_out_and_rows_stay_packed(llama, monkeypatch):
    def refuses(*_):
        raise RuntimeError("head size 4 is not supported")

    def asked(query, value, layout):
        return attention._current.kernel

    rows = mixed_rows(30)
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    monkeypatch.setattr(attention, "_VARLEN", refuses)
    monkeypatch.setattr(attention, "_wants_kernel", asked)
    scorer = CausalLMScorer(llama, device="cpu")
    got = score_all(scorer, transcript_of(rows))
    assert scorer._network.packs
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(whole), atol=TOLERANCE)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_variable_length_function_of_older_and_newer_torch(grouped, monkeypatch):
    """In place of a GPU's: rows by their offsets, keys and values repeated where it must be."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def rows_of(q, k, v, begins, scale, window):
        assert window == (3, 0)
        found = []
        for a, b in zip(begins.tolist(), begins.tolist()[1:], strict=False):
            row = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
            found.append(attention._attend(*row, scale, window[0] + 1, None)[0].transpose(0, 1))
        return torch.cat(found)

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
        assert query.shape == key.shape == value.shape
        assert max_q == max_k == 5
        return rows_of(query, key, value, cu_seq_q, scale, window_size)

    def newer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size,
              enable_gqa, num_splits=None):  # fmt: skip
        assert enable_gqa
        assert num_splits is None  # some versions refuse any number
        return rows_of(query, key, value, cu_seq_q, scale, window_size)

    monkeypatch.setattr(varlen, "varlen_attn", newer if grouped else older)
    attend = attention._variable_length()
    layout = attention.Layout.of([5, 4, 4, 2])
    query = torch.randn(1, 4, 15, 8, generator=torch.Generator().manual_seed(0))
    key, value = (query[:, :2].cos(), query[:, :2].sin())
    with attention.laid_out(layout):
        want, _ = attention.packed_attention(
            torch.nn.Identity(), query, key, value, None, sliding_window=4
        )
    torch.testing.assert_close(attend(query, key, value, layout, None, 4), want)


def test_a_budget_is_found_within_one_call(llama, monkeypatch):
    """As on a GPU: batches are timed, and what is left is planned anew with the budget found."""
    rows = [np.random.default_rng(i).integers(0, 61, 8) for i in range(200)]
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    scorer = CausalLMScorer(llama, device="cpu")
    scorer._budget = TokenBudget(32, search=True, most=128)
    sizes, true_values, clock = [], network.Network._values, iter(range(10**6))

    def values(self, batch):
        sizes.append(sum(row.ids.size for row in batch))
        return true_values(self, batch)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scorer._network  # noqa: B018  the comparisons at loading are not counted
        monkeypatch.setattr(network.Network, "_values", values)
        # every batch takes one second, so twice the tokens are twice as fast
        monkeypatch.setattr(network.time, "perf_counter", lambda: float(next(clock)))
        got = score_all(scorer, transcript_of(rows))
    finally:
        torch.set_num_threads(before)
    assert sizes[:9] == [32] * 3 + [64] * 3 + [128] * 3
    assert (scorer._budget.tokens, scorer._budget.searching) == (128, False)
    assert sum(sizes) == 1600
    for one, other in zip(got, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)


def test_a_gpu_s_budget_keeps_activations_within_three_gibibytes(llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    scorer = CausalLMScorer(llama, dtype="bfloat16")
    scorer._device = torch.device("cuda")
    wide = type(scorer._config)(hidden_size=4096, intermediate_size=14336)
    scorer._config = wide
    assert scorer._budget.searching
    assert scorer._budget.most == 3 * 2**30 // (3 * (4096 + 14336) * 2)


def test_one_kernel_for_a_norm_only_where_it_does_the_same(models):
    for kind, fused in (("llama", True), ("gemma2", False)):
        model = AutoModelForCausalLM.from_pretrained(models(kind), dtype=torch.bfloat16).eval()
        norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
        with torch.no_grad():
            for norm in norms:
                norm.weight.copy_(torch.linspace(0.5, 1.5, norm.weight.numel()))
        ids = torch.arange(24)[None]
        with torch.inference_mode():
            before = model(ids).logits.float()
            network.use_fused_norms(model)
            made = ["forward" in vars(norm) for norm in norms]
            after = model(ids).logits.float()
            for norm in norms:
                vars(norm).pop("forward", None)
            exact = model.float()(ids).logits
        assert made == [fused] * len(norms)
        assert (after - exact).abs().mean() <= 1.1 * (before - exact).abs().mean()


def test_logits_that_overflow_are_named_as_such(own_llama):
    model = AutoModelForCausalLM.from_pretrained(own_llama)
    with torch.no_grad():
        model.model.norm.weight.fill_(60_000.0)
    model.save_pretrained(own_llama)
    scorer = CausalLMScorer(own_llama, dtype="float16", device="cpu")
    with pytest.raises(InputError, match="not finite numbers in float16") as caught:
        score_all(scorer, transcript_of(mixed_rows()))
    assert "causal model" not in str(caught.value)


def test_compiled_layers_give_the_same(llama):
    rows = mixed_rows(30)
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    scorer = CausalLMScorer(llama, device="cpu")
    assert scorer._network.compile("eager")  # traced as always, and not translated
    got = score_all(scorer, transcript_of(rows))
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(whole), atol=TOLERANCE)


def test_what_cannot_be_compiled_is_scored_without(llama, monkeypatch):
    rows = mixed_rows()
    whole = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    true_compile = network.Network.compile
    monkeypatch.setattr(network.Network, "compile", lambda self: true_compile(self, "no such"))
    scorer = CausalLMScorer(llama, device="cpu", compile=True)
    with pytest.warns(UserWarning, match="cannot be compiled here"):
        got = score_all(scorer, transcript_of(rows))
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(whole), atol=TOLERANCE)


# ---------------------------------------------------------------- cores


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_batches_on_cores_of_their_own_give_the_same(llama, three_threads):
    rows = mixed_rows(60)
    scorer = CausalLMScorer(llama, device="cpu", batch_tokens=50)
    many = score_all(scorer, transcript_of(rows))
    assert scorer.forward_passes > 6
    assert torch.get_num_threads() == 3
    in_another: list[int] = []
    thread = threading.Thread(target=lambda: in_another.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert in_another == [3]
    for row, got in zip(rows, many, strict=True):
        np.testing.assert_allclose(got, one_at_a_time(llama, row), atol=TOLERANCE)


def test_memory_that_ends_on_several_cores_is_found_on_one(llama, three_threads, monkeypatch):
    rows = mixed_rows(30)
    calm = score_all(CausalLMScorer(llama, device="cpu"), transcript_of(rows))
    true_pass, main = network.Network._pass, threading.current_thread()

    def tight(self, rows):
        if threading.current_thread() is not main:
            raise MemoryError
        return true_pass(self, rows)

    monkeypatch.setattr(network.Network, "_pass", tight)
    scorer = CausalLMScorer(llama, device="cpu", batch_tokens=40)
    values = score_all(scorer, transcript_of(rows))
    np.testing.assert_allclose(np.concatenate(values), np.concatenate(calm), atol=TOLERANCE)


def test_an_error_on_one_core_is_raised(llama, three_threads, monkeypatch):
    def broken(self, rows):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(network.Network, "_pass", broken)
    scorer = CausalLMScorer(llama, device="cpu", batch_tokens=20)
    monkeypatch.setattr(network.Network, "_probe_packing", lambda self: False)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        score_all(scorer, transcript_of(mixed_rows(30)))
    assert torch.get_num_threads() == 3


# ---------------------------------------------------------------- frequencies by length


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
BY_LENGTH = {
    "longrope": ("phi3", {}),
    "padded longrope": ("gpt_oss", {"rope_parameters": LONGROPE}),
    "longrope in one kind of layer": (
        "gemma3",
        {
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": LONGROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": SWITCH}),
}


@pytest.mark.parametrize("case", BY_LENGTH)
def test_frequencies_are_those_of_each_rows_own_length(case, tmp_path, three_threads):
    kind, changes = BY_LENGTH[case]
    folder = save_model(tmp_path / kind, kind, **changes)
    rng = np.random.default_rng(3)
    lengths = [20, 12, 7, SWITCH + 1, SWITCH, 20, SWITCH - 1, 15, SWITCH, SWITCH + 1]
    rows = [rng.integers(4, VOCABULARY, n) for n in lengths]
    expected = []
    for row in rows:
        plain_model.cache_clear()  # a dynamic model remembers the longest row that it saw
        expected.append(one_at_a_time(folder, row))
    plain_model.cache_clear()
    asked = [network.Row(row, 1) for row in rows]
    loaded = network.Network(plain_model(folder))
    together = loaded.run([asked])
    apart = loaded.run([[row] for row in asked] * 5)  # on three cores at once
    values = [*together[0], *(value for (value,) in apart)]
    for got, want in zip(values, expected * 6, strict=True):
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


def test_scores_from_before_frequencies_were_each_rows_own_are_not_used_again(models):
    assert CausalLMScorer(models("phi3"), device="cpu").identity().settings == {
        "rotary": "of each row"
    }
    assert "settings" not in CausalLMScorer(models("llama"), device="cpu").identity().as_dict()


# ---------------------------------------------------------------- precision


def test_mixed_precision_is_nearer_than_half(models):
    for kind in ("llama", "gpt_neox", "gemma2"):
        rows = mixed_rows(30)
        exact = np.concatenate([one_at_a_time(models(kind), row) for row in rows])
        error = {}
        for dtype in ("mixed", "bfloat16"):
            scorer = CausalLMScorer(models(kind), device="cpu", dtype=dtype)
            assert scorer.identity().dtype == dtype
            error[dtype] = np.abs(np.concatenate(score_all(scorer, transcript_of(rows))) - exact)
        assert error["mixed"].mean() < error["bfloat16"].mean() < 0.5


def test_rounded_weights(tmp_path, capfd):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    rows = mixed_rows(20)
    # widths that the library's blocks divide
    folder = save_model(tmp_path / "wide", "llama", hidden_size=64, intermediate_size=128)
    exact = np.concatenate([one_at_a_time(folder, row) for row in rows])
    error = {}
    for dtype in ("bfloat16", "8bit", "4bit"):
        scorer = CausalLMScorer(folder, device="cpu", dtype=dtype)
        values = np.concatenate(score_all(scorer, transcript_of(rows)))
        error[dtype] = float(np.abs(values - exact).mean())
        versions = scorer.identity().library_versions
        assert ("bitsandbytes" in versions) is (dtype != "bfloat16")
    assert 0 < error["bfloat16"] < error["8bit"] < error["4bit"] < 2
    assert capfd.readouterr() == ("", "")


def rounded_by_hand(folder: Path, rows) -> np.ndarray:
    """Log-likelihoods under float32 products of the weights that 4 bits can hold."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rounded = quantize_4bit(module.weight.data.bfloat16(), quant_type="nf4")
            module.weight.data = dequantize_4bit(*rounded).float()
    with torch.no_grad():
        logits = [model(torch.as_tensor(row)[None]).logits[0, :-1] for row in rows]
    values = [torch.log_softmax(found, dim=-1) for found in logits]
    return np.concatenate(
        [v.numpy()[np.arange(len(v)), row[1:]] for v, row in zip(values, rows, strict=True)]
    )


def test_rounding_is_a_right_score_or_one_sentence(models):
    """Which narrow products bitsandbytes can do depends on the processor."""
    pytest.importorskip("bitsandbytes")
    folder, rows = models("llama"), mixed_rows(20)  # 16 wide
    scorer = CausalLMScorer(folder, device="cpu", dtype="4bit")
    said = ""
    try:
        values = np.concatenate(score_all(scorer, transcript_of(rows)))
    except InputError as error:
        said = str(error)
    if said:
        assert "bitsandbytes cannot multiply 4bit weights of this model" in said
    else:
        # products in bfloat16 move a score by less than a tenth of what the rounding moves it by
        assert np.abs(values - rounded_by_hand(folder, rows)).mean() < 0.07


def test_rounding_that_its_library_cannot_do_is_one_sentence(models, monkeypatch):
    pytest.importorskip("bitsandbytes")

    def narrow(self, rows):
        raise RuntimeError("blocks of 64 do not divide 16\nand more")

    monkeypatch.setattr(network.Network, "_values", narrow)
    scorer = CausalLMScorer(models("llama"), device="cpu", dtype="4bit")
    # where the processor has products in bfloat16 the library refuses such narrow blocks by itself
    why = "blocks of 64 do not divide 16|N must be divisible by block_n"
    said = rf"bitsandbytes cannot multiply 4bit weights of this model on cpu \(({why})\): choose"
    with pytest.raises(InputError, match=said):
        score_all(scorer, transcript_of(mixed_rows(3)))


def test_rounding_without_its_library_is_one_sentence(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    scorer = CausalLMScorer(llama, device="cpu", dtype="8bit")
    with pytest.raises(InputError, match=r"this needs bitsandbytes.*pip install.*\[large\]"):
        score_all(scorer, transcript_of(mixed_rows(3)))


def test_a_model_spread_over_devices_scores_alike(llama, monkeypatch):
    pytest.importorskip("accelerate")
    rows = mixed_rows()
    scorer = CausalLMScorer(llama, device_map="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = score_all(scorer, transcript_of(rows))
    for row, got in zip(rows, values, strict=True):
        np.testing.assert_allclose(got, one_at_a_time(llama, row), atol=TOLERANCE)
    with pytest.raises(InputError, match="chooses the devices itself"):
        CausalLMScorer(llama, device_map="auto", device="cpu")
    with pytest.raises(InputError, match="device_map 'all' is unknown"):
        CausalLMScorer(llama, device_map="all")


@pytest.mark.parametrize(("prefix", "length"), [(0, None), (1, None), (3, 4), (0, 5), (2, 1)])
@pytest.mark.parametrize("bos", [False, True])
def test_window_is_these_tokens_each_given_all_before(llama, tmp_path, prefix, length, bos):
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    rows = mixed_rows(6, longest=CONTEXT - 1)
    rows = [np.concatenate([r, [9, 8, 7]])[: CONTEXT - 1] for r in rows]
    scorer = CausalLMScorer(folder, device="cpu", prefix=prefix, length=length, bos=bos)
    for row, got in zip(rows, score_all(scorer, transcript_of(rows)), strict=True):
        begin = int(bos)
        full = np.concatenate([[1], row]) if bos else row
        first = max(begin + prefix, 1)
        last = None if length is None else begin + prefix + length
        want = one_at_a_time(folder, full, first, last)
        np.testing.assert_allclose(got, want, atol=TOLERANCE)
    stored = score_transcript(transcript_of(rows), scorer)
    assert stored.identity.bos == ("prepended" if bos else "none")
    expected = [min(len(r), prefix + (length or 99)) - max(prefix, 1 - begin) for r in rows]
    assert stored.n_tokens.tolist() == expected


def test_bos_is_prepended_once_and_not_counted_in_the_window(llama, tmp_path):
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    rows = [[5, 6, 7, 8], [1, 5, 6, 7, 8]]
    scorer = CausalLMScorer(folder, device="cpu", bos=True, prefix=1, length=2)
    values = score_all(scorer, transcript_of(rows))
    np.testing.assert_allclose(values[0], values[1], atol=TOLERANCE)
    np.testing.assert_allclose(values[0], one_at_a_time(folder, rows[1], 2, 4), atol=TOLERANCE)


def test_examples_longer_than_the_context_can_be_scored_in_a_window(llama):
    rows = [np.arange(4, 50), np.arange(5, 51)]
    with pytest.raises(InputError, match=r"row 0 has 46 tokens and llama takes 24.*length=24"):
        CausalLMScorer(llama, device="cpu").encode(transcript_of(rows))
    values = score_all(CausalLMScorer(llama, device="cpu", length=24), transcript_of(rows))
    np.testing.assert_allclose(values[0], one_at_a_time(llama, rows[0][:24]), atol=TOLERANCE)


# ---------------------------------------------------------------- faults of the published code


def test_fault_8_padding_is_never_scored(llama):
    """Left padding with the first n values kept scores the wrong tokens of short rows."""
    rows = [np.array([5, 6, 7]), np.arange(10, 30)]
    scorer = CausalLMScorer(llama, device="cpu", batch_tokens=10**6)
    short, _ = score_all(scorer, transcript_of(rows))
    assert scorer.forward_passes == 1  # both rows in one padded batch
    right = one_at_a_time(llama, rows[0])
    np.testing.assert_allclose(short, right, atol=TOLERANCE)
    padded = np.concatenate([np.zeros(17, dtype=np.int64), rows[0]])
    assert np.abs(one_at_a_time(llama, padded)[:2] - right).max() > 0.1  # the fault would show


def test_fault_9_token_ids_are_scored_as_they_are(llama, tmp_path):
    """Decoding and encoding again merges 'a', 'b' into 'ab': other tokens, another score."""
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    row = [c, a, b, c]
    again = tokenizer(tokenizer.decode(row), add_special_tokens=False)["input_ids"]
    assert len(again) == 3
    scorer = CausalLMScorer(folder, device="cpu")
    assert scorer.encode(transcript_of([row, row])).row(0).tolist() == row
    values = score_all(scorer, transcript_of([row, row]))
    np.testing.assert_allclose(values[0], one_at_a_time(folder, row), atol=TOLERANCE)


def test_fault_10_context_and_window_come_from_one_tokenisation(llama, tmp_path):
    """Tokenising 'ca' alone to find where 'b' begins counts two tokens; 'cab' is c + ab."""
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("cabc", add_special_tokens=False)["input_ids"]
    assert len(tokenizer("ca", add_special_tokens=False)["input_ids"]) == 2
    texts = Transcript.from_arrays([0, 1], texts=["cabc", " cabc "])
    scorer = CausalLMScorer(folder, device="cpu", prefix=1)
    encoded = scorer.encode(texts)
    assert encoded.row(0).tolist() == ids
    assert len(ids) == 3
    spaced = encoded.row(1).tolist()  # nothing is stripped
    assert spaced[1:4] == ids
    assert len(spaced) == 5
    values = scorer.score(encoded, np.array([0]))
    # the first token after the prefix is scored, not skipped
    np.testing.assert_allclose(values[0], one_at_a_time(folder, ids, 1), atol=TOLERANCE)


# ---------------------------------------------------------------- text


def test_text_is_tokenised_once_without_special_tokens(llama, tmp_path):
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    texts = ["abc é", "<script>x", "日本 \u202e ab", "e\u0301 \U0001f600"]
    transcript = Transcript.from_arrays(np.arange(4), texts=texts)
    scorer = CausalLMScorer(folder, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = scorer.encode(transcript)
    for number, text in enumerate(texts):
        want = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encoded.row(number).tolist() == want
    assert score_transcript(transcript, scorer).n == 4


def test_tokenizer_may_come_from_another_folder(llama, tmp_path):
    (tmp_path / "tok").mkdir()
    other = add_tokenizer(tmp_path / "tok")
    transcript = Transcript.from_arrays([0, 1], texts=["abc", "def"])
    with pytest.raises(InputError, match=r"llama has no tokenizer.*pass tokenizer="):
        CausalLMScorer(llama, device="cpu").encode(transcript)
    scorer = CausalLMScorer(llama, device="cpu", tokenizer=other)
    assert scorer.encode(transcript).n == 2
    assert scorer.identity().tokenizer_sha256 is not None


def test_models_that_cut_alike_say_so(llama, models, tmp_path):
    folders = [
        add_tokenizer(Path(shutil.copytree(models(kind), tmp_path / kind)), bos)
        for kind, bos in (("llama", True), ("olmo2", True), ("qwen2", False))
    ]
    one, alike, other = (CausalLMScorer(f, device="cpu").encoding_key() for f in folders)
    assert one == alike != other
    assert CausalLMScorer(folders[0], device="cpu", prefix=1).encoding_key() != one
    texts = Transcript.from_arrays([0, 1], texts=["abc", "def"])
    scorers = [CausalLMScorer(f, device="cpu") for f in folders]
    together = score_models(texts, scorers)
    for folder, scores in zip(folders, together, strict=True):
        alone = CausalLMScorer(folder, device="cpu")
        np.testing.assert_allclose(
            [v.sum() for v in score_all(alone, texts)], scores.loglik_sum, atol=TOLERANCE
        )
    assert all("_network" not in vars(s) for s in scorers)  # one at a time in memory


# ---------------------------------------------------------------- bad examples


def test_each_bad_example_is_named_with_its_row(llama, tmp_path):
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")))
    scorer = CausalLMScorer(folder, device="cpu")
    with pytest.raises(InputError, match=r"row 1 has token id 61, outside the vocabulary of m"):
        scorer.encode(transcript_of([[5, 6], [5, 61], [7, 8]]))
    with pytest.raises(InputError, match=r"row 2 has 1 tokens .*bos=True.* none to score"):
        scorer.encode(transcript_of([[5, 6], [5, 6], [7]]))
    with pytest.raises(InputError, match="row 0 has 2 tokens"):
        CausalLMScorer(folder, prefix=2, device="cpu").encode(transcript_of([[5, 6], [5, 6, 7]]))
    with pytest.raises(InputError, match=r"row 1 has 24 tokens and m takes 23 after a beginning"):
        CausalLMScorer(folder, bos=True, device="cpu").encode(
            transcript_of([[5, 6], np.arange(5, 29)])
        )
    with pytest.raises(InputError, match="row 1 is empty text"):
        scorer.encode(Transcript.from_arrays([0, 1], texts=["ab", ""]))
    with pytest.raises(InputError, match="no token ids and no text"):
        scorer.encode(Transcript.from_arrays([0, 1]))
    assert "_network" not in vars(scorer)  # found without loading the weights


def test_rows_are_named_as_in_the_source_also_in_a_subset(llama):
    rows = [[5, 6], [5, 6], [5, 6], [99, 98]]
    part = transcript_of(rows).take([0, 3])
    with pytest.raises(InputError, match="row 3 has token id 99"):
        CausalLMScorer(llama, device="cpu").encode(part)


def test_bos_needs_a_tokenizer_that_has_one(llama, tmp_path):
    folder = add_tokenizer(Path(shutil.copytree(llama, tmp_path / "m")), bos=False)
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        CausalLMScorer(folder, bos=True, device="cpu").encode(transcript_of([[5, 6], [5, 6]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": -1}, "prefix is -1"),
        ({"length": 0}, "length is 0"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=message):
        CausalLMScorer("somewhere", **options)


def test_unknown_device(llama):
    with pytest.raises(InputError, match="device 'abacus' is not available"):
        CausalLMScorer(llama, device="abacus").identity()


# ---------------------------------------------------------------- bad models


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def drop_weights_of_a_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def escaping_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def change_config(**changes):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "model.safetensors").unlink(), r"has no weights \(model\.safetensors\)"),
        (pickle_only, "pickled weights only"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (truncate, "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
        (missing_shard, r"lacks model-00001-of-00001\.safetensors"),
        (escaping_shard, "names no files of its folder"),
    ],
)
def test_each_damaged_folder_has_its_own_error(own_llama, damage, message):
    damage(own_llama)
    with pytest.raises(InputError, match=message):
        CausalLMScorer(own_llama, device="cpu").identity()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(model_type="abacus"), "not one that transformers"),
        (
            change_config(model_type="x", auto_map={"AutoConfig": "evil.Config"}),
            "not one that transformers",
        ),
        (change_config(hidden_size=32), "cannot be loaded as a causal language model"),
        (drop_weights_of_a_layer, r"lack 1 of the model's weights, such as model\.layers\.1\.mlp"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_score(own_llama, damage, message):
    damage(own_llama)
    (own_llama / "evil.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(InputError, match=message):
        score_transcript(transcript_of([[5, 6], [7, 8]]), CausalLMScorer(own_llama, device="cpu"))


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(**(COMMON | {"is_decoder": False}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    scorer = CausalLMScorer(tmp_path / "bert", device="cpu")
    with pytest.raises(InputError, match="bert cannot be scored: its likelihoods depend on later"):
        score_transcript(transcript_of([[5, 6], [7, 8]]), scorer)


def test_weights_that_give_nan_are_refused(own_llama):
    from safetensors.torch import load_file, save_file

    tensors = load_file(own_llama / "model.safetensors")
    tensors["model.embed_tokens.weight"][7] = float("nan")
    save_file(tensors, own_llama / "model.safetensors", metadata={"format": "pt"})
    scorer = CausalLMScorer(own_llama, device="cpu")
    with pytest.raises(InputError, match=r"copy (cannot be scored|gives row \d+ )"):
        score_transcript(transcript_of([[5, 6, 9], [7, 8, 9]]), scorer)


def test_paths_that_are_not_there_and_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        CausalLMScorer("./nowhere").identity()
    with pytest.raises(InputError, match="does not exist"):
        CausalLMScorer(tmp_path / "nowhere").identity()
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        CausalLMScorer(tmp_path / "a.bin").identity()


def test_revision_of_a_folder_is_refused(llama):
    with pytest.raises(InputError, match="leave revision out"):
        CausalLMScorer(llama, revision="main").identity()


# ---------------------------------------------------------------- identity


def test_identity_changes_with_everything_that_changes_a_score(own_llama):
    def key(**options):
        return CausalLMScorer(own_llama, device="cpu", **options).identity().as_dict()

    base = key()
    assert key() == base
    for options in ({"prefix": 1}, {"length": 3}, {"bos": True}, {"dtype": "bfloat16"}):
        assert key(**options) != base
    assert base["dtype"] == "float32"
    assert base["device"] == "cpu"
    assert set(base["library_versions"]) == {"tokenizers", "torch", "transformers"}
    weights = own_llama / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key()["weights_sha256"] != base["weights_sha256"]
    add_tokenizer(own_llama)
    assert key()["tokenizer_sha256"] != base["tokenizer_sha256"]


def test_identity_and_encoding_load_no_weights_and_hash_once(llama, monkeypatch):
    scorer = CausalLMScorer(llama, label="alice", device="cpu")
    assert isinstance(scorer, Scorer)
    assert scorer.identity().model == scorer.identity().label == "alice"
    scorer.encode(transcript_of(mixed_rows()))
    assert "_network" not in vars(scorer)
    monkeypatch.setattr("hashlib.file_digest", lambda *a: pytest.fail("hashed again"))
    assert CausalLMScorer(llama, label="alice", device="cpu").identity() == scorer.identity()


def test_the_same_weights_elsewhere_have_the_same_hash(llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "llama")
    one, other = (CausalLMScorer(f, device="cpu").identity() for f in (llama, copy))
    assert one == other


def test_sharded_checkpoints_score_alike(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    transcript = transcript_of(mixed_rows())
    one, other = (
        score_all(CausalLMScorer(f, device="cpu"), transcript) for f in (llama, tmp_path / "parts")
    )
    np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), atol=TOLERANCE)


def test_half_precision_keeps_a_float32_softmax(llama):
    transcript = transcript_of(mixed_rows())
    exact = score_all(CausalLMScorer(llama, device="cpu"), transcript)
    half = score_all(CausalLMScorer(llama, device="cpu", dtype="bfloat16"), transcript)
    assert all(v.dtype == np.float32 for v in half)
    assert np.abs(np.concatenate(half) - np.concatenate(exact)).max() < 0.5
    assert not np.array_equal(np.concatenate(half), np.concatenate(exact))


# ---------------------------------------------------------------- memory, quiet, resumption


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_the_budget_halves_itself_and_scores_stay_the_same(llama, monkeypatch, error):
    transcript = transcript_of(mixed_rows(40))
    calm = score_all(CausalLMScorer(llama, device="cpu"), transcript)
    true_pass = network.Network._pass
    shapes = []

    def tight(self, rows):
        tokens = sum(row.ids.size for row in rows)
        shapes.append(tokens)
        if tokens > 100:
            raise error
        return true_pass(self, rows)

    scorer = CausalLMScorer(llama, device="cpu")
    assert scorer._network.packs
    monkeypatch.setattr(network.Network, "_pass", tight)
    values = score_all(scorer, transcript)
    np.testing.assert_allclose(np.concatenate(values), np.concatenate(calm), atol=TOLERANCE)
    failed = [tokens for tokens in shapes if tokens > 100]
    assert failed == shapes[: len(failed)]  # once halved, it stays small
    assert all(2 * b <= a + 1 for a, b in pairwise(failed))


def test_memory_for_not_even_one_row_is_an_input_error(llama, monkeypatch):
    def full(self, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = CausalLMScorer(llama, device="cpu")
    assert scorer._network.packs
    monkeypatch.setattr(network.Network, "_pass", full)
    with pytest.raises(InputError, match=r"runs out of memory on a single example of \d+ tokens"):
        score_all(scorer, transcript_of(mixed_rows()))
    with pytest.raises(InputError, match="llama does not fit into the memory of cpu"):
        score_all(CausalLMScorer(llama, device="cpu"), transcript_of(mixed_rows()))


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(llama, monkeypatch):
    def broken(self, rows):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(network.Network, "_pass", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        score_all(CausalLMScorer(llama, device="cpu"), transcript_of(mixed_rows()))


def test_quiet_and_global_state_is_put_back(models, capfd):
    import logging

    from transformers.utils import logging as own_logging

    own_logging.enable_progress_bar()
    own_logging.set_verbosity_warning()
    before = (torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads())
    score_all(CausalLMScorer(models("gpt_neox"), device="cpu"), transcript_of(mixed_rows()))
    assert own_logging.is_progress_bar_enabled()
    assert own_logging.get_verbosity() == logging.WARNING
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")


def test_finished_scores_come_back_without_loading_the_model(llama, monkeypatch, tmp_path):
    transcript = transcript_of(mixed_rows())
    out = tmp_path / "s.parquet"
    first = open_scores(str(llama), transcript, out=out, device="cpu", prefix=1)
    monkeypatch.setattr(network.Network, "load", lambda *a: pytest.fail("loaded"))
    again = open_scores(str(llama), transcript, out=out, device="cpu", prefix=1)
    np.testing.assert_array_equal(first.loglik_sum, again.loglik_sum)
    from_file = open_scores(out, transcript, prefix=1)
    assert from_file.key == first.key
    with pytest.raises(InputError, match="holds scores of another window"):
        open_scores(out, transcript, prefix=2)


SCORE_SLOWLY = """
import sys, time
import numpy as np
from workbench.scorers import CausalLMScorer, score_transcript
from workbench.transcript import Transcript

model, table, out, log, pause = sys.argv[1:]

class Logged(CausalLMScorer):
    def score(self, encoded, rows):
        values = super().score(encoded, rows)
        with open(log, "a") as file:
            file.write(" ".join(map(str, rows)) + "\\n")
        time.sleep(float(pause))
        return values

transcript = Transcript.read(table)
score_transcript(transcript, Logged(model, device="cpu"), out, chunk=10, keep_tokens=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_kill_9_then_the_same_command(llama, tmp_path):
    transcript = transcript_of(mixed_rows(100))
    table = transcript.write(tmp_path / "t.parquet")
    undisturbed = score_transcript(
        Transcript.read(table),
        CausalLMScorer(llama, device="cpu"),
        tmp_path / "calm.parquet",
        chunk=10,
        keep_tokens=True,
    )
    out = tmp_path / "killed.parquet"

    def start(log: str, pause: str):
        command = [sys.executable, "-c", SCORE_SLOWLY, llama, table, out, tmp_path / log, pause]
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # as here: rounding depends on it
        )

    process = start("first.log", "0.3")
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("killed.parquet.parts-*/part-*.parquet"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "no parts after a minute"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(list(tmp_path.glob("killed.parquet.parts-*/part-*.parquet")))
    assert 3 <= kept < 10
    assert not out.exists()
    assert start("second.log", "0").wait(timeout=120) == 0
    first = (tmp_path / "first.log").read_text().splitlines()
    second = (tmp_path / "second.log").read_text().splitlines()
    assert len(second) == 10 - kept  # finished parts are not asked for again
    assert not set(first[:kept]) & set(second)
    resumed = open_scores(out, transcript)
    np.testing.assert_array_equal(resumed.loglik_sum, undisturbed.loglik_sum)
    np.testing.assert_array_equal(resumed.n_tokens, undisturbed.n_tokens)
    assert resumed.token_logliks is not None
    assert undisturbed.token_logliks is not None
    for one, other in zip(resumed.token_logliks, undisturbed.token_logliks, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(tmp_path.glob("killed.parquet.parts-*"))


# ---------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_as_on_a_cpu(models, kind):
    rows = mixed_rows()
    expected = [one_at_a_time(models(kind), row) for row in rows]
    for budget in (7, 10**6):
        scorer = CausalLMScorer(models(kind), batch_tokens=budget)
        values = score_all(scorer, transcript_of(rows))
        assert scorer.identity().device.startswith("cuda")
        for got, want in zip(values, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_checkpoint_has_its_own_precision(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    scorer = CausalLMScorer(tmp_path / "half")
    assert scorer.identity().dtype == "bfloat16"
    assert np.isfinite(np.concatenate(score_all(scorer, transcript_of(mixed_rows())))).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_kernel_gives_what_the_way_without_it_gives(llama, monkeypatch):
    rows = mixed_rows(30)
    with_kernel = CausalLMScorer(llama, dtype="bfloat16")
    got = score_all(with_kernel, transcript_of(rows))
    assert with_kernel._network.packs
    monkeypatch.setattr(attention, "_VARLEN", None)
    want = score_all(CausalLMScorer(llama, dtype="bfloat16"), transcript_of(rows))
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_memory_that_ends_once_changes_nothing(llama, monkeypatch):
    rows = mixed_rows(30)
    want = score_all(CausalLMScorer(llama), transcript_of(rows))
    scorer = CausalLMScorer(llama)
    scorer._network  # noqa: B018
    true_pass, failed = network.Network._pass, []

    def once(self, batch):
        if not failed:
            failed.append(len(batch))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true_pass(self, batch)

    monkeypatch.setattr(network.Network, "_pass", once)
    got = score_all(scorer, transcript_of(rows))
    assert failed
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=1e-2)
