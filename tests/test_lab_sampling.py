"""Sampling: the model's own distribution, one document independent of the next, resumable."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from workbench import InputError, Texts, Transcript  # noqa: E402
from workbench.lab import sampling  # noqa: E402
from workbench.lab.sampling import sample_texts  # noqa: E402

VOCABULARY, CONTEXT = 40, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformers.LlamaForCausalLM(config).save_pretrained(made)
    return made


def probabilities(folder: Path, prompt, temperature=1.0) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    return torch.softmax(logits / temperature, dim=-1).numpy()


PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11]]


def test_temperature_zero_equals_greedy_generate(folder):
    texts = sample_texts(folder, 4, max_new_tokens=9, prompts=PROMPTS, temperature=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, given, completion in zip(PROMPTS, texts.prompts, texts.completions, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=9,
            min_new_tokens=9,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert given.tolist() == prompt
        assert completion.tolist() == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_models_own(folder, temperature):
    texts = sample_texts(
        folder, 4000, max_new_tokens=1, prompts=[[3, 4]], temperature=temperature, seed=11
    )
    seen = np.bincount([int(c[0]) for c in texts.completions], minlength=VOCABULARY)
    expected = probabilities(folder, [3, 4], temperature) * 4000
    common = expected >= 5
    observed = np.append(seen[common], seen[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 0.001


def test_top_p_keeps_the_likeliest_tokens_only(folder):
    expected = probabilities(folder, [3, 4])
    order = np.argsort(-expected, kind="stable")
    kept = set(order[: int(np.searchsorted(expected[order].cumsum(), 0.4)) + 1].tolist())
    texts = sample_texts(folder, 500, max_new_tokens=1, prompts=[[3, 4]], top_p=0.4, seed=3)
    drawn = {int(c[0]) for c in texts.completions}
    assert drawn <= kept
    assert len(drawn) > 1


def test_batch_size_and_company_change_nothing(folder):
    base = sample_texts(folder, 9, max_new_tokens=6, prompts=PROMPTS, batch_size=100, seed=2)
    small = sample_texts(
        folder, 9, max_new_tokens=6, prompts=PROMPTS, batch_size=2, seed=2, out=None
    )
    fewer = sample_texts(folder, 5, max_new_tokens=6, prompts=PROMPTS, seed=2)
    assert base.fingerprint == small.fingerprint
    assert base.take(np.arange(5)).fingerprint == fewer.fingerprint
    other = sample_texts(folder, 9, max_new_tokens=6, prompts=PROMPTS, seed=4)
    assert other.fingerprint != base.fingerprint


def test_of_a_prompt_only_the_last_tokens_logits_are_made(folder, monkeypatch):
    """And the tokens are those that are drawn from the logits of all."""
    model_class, widths = transformers.LlamaForCausalLM, []
    forward = model_class.forward

    @functools.wraps(forward)
    def watched(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        widths.append(output.logits.shape[1])
        return output

    def without_the_option(self, *args, **kwargs):
        return watched(self, *args, **kwargs)

    settings = {"max_new_tokens": 6, "prompts": PROMPTS, "seed": 5}
    monkeypatch.setattr(model_class, "forward", watched)
    sampling.CausalLMScorer(folder).loaded_model()  # looks at logits of its own
    loading = len(widths)
    widths.clear()
    last = sample_texts(folder, 40, **settings)
    assert set(widths[loading:]) == {1}
    monkeypatch.setattr(model_class, "forward", without_the_option)
    widths.clear()
    whole = sample_texts(folder, 40, **settings, overwrite=True)
    assert {1, 2, 3} <= set(widths[loading:])
    assert last.fingerprint == whole.fingerprint


def _short_of_memory(monkeypatch, room: int) -> list[int]:
    """Sizes of the batches that are tried; memory runs out on more than `room` documents."""
    tried: list[int] = []
    complete = sampling._Sampler.complete

    def limited(self, prompts, uniforms):
        tried.append(len(prompts))
        if len(prompts) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return complete(self, prompts, uniforms)

    monkeypatch.setattr(sampling._Sampler, "complete", limited)
    return tried


def test_smaller_batches_where_memory_runs_out(folder, monkeypatch):
    settings = {"max_new_tokens": 6, "prompts": [[3, 4]], "seed": 2}
    base = sample_texts(folder, 9, **settings)
    tried = _short_of_memory(monkeypatch, room=2)
    fewer = sample_texts(folder, 9, **settings, overwrite=True)
    assert tried == [9, 5, 3, 2, 1, 2, 2, 2]
    assert fewer.fingerprint == base.fingerprint


def test_no_memory_for_one_document_is_one_sentence(folder, monkeypatch):
    _short_of_memory(monkeypatch, room=0)
    with pytest.raises(InputError, match=r"out of memory on a single document of 2 \+ 6 tokens"):
        sample_texts(folder, 3, max_new_tokens=6, prompts=[[3, 4]])


def test_other_errors_are_not_taken_for_a_lack_of_memory(folder, monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(sampling._Sampler, "complete", broken)
    with pytest.raises(RuntimeError, match="no kernel"):
        sample_texts(folder, 3, max_new_tokens=2, prompts=[[3, 4]])


def test_random_numbers_are_handed_to_the_device_once(folder, monkeypatch):
    handed = []
    from_numpy = torch.from_numpy

    def counted(array):
        handed.append(array.shape)
        return from_numpy(array)

    sampler = sampling._Sampler(sampling.CausalLMScorer(folder), 1.0, 1.0, None)
    monkeypatch.setattr(torch, "from_numpy", counted)
    uniforms = np.random.default_rng(0).random((3, 7))
    sampler.complete(np.full((3, 2), 5), uniforms)
    assert handed == [(3, 2), (3, 7)]


def test_sums_on_a_gpu_do_not_depend_on_the_order_of_adding(on_gpu):
    row = torch.softmax(torch.linspace(-20, 3, 5000).sin() * 9, dim=0)[None]
    sums = sampling._sums(on_gpu(row))
    assert (sums - row.double().cumsum(dim=1)).abs().max() < 1e-11
    totals = {float(sampling._sums(on_gpu(r))[0, -1]) for r in (row, row.flip(1), row.sort()[0])}
    assert len(totals) == 1
    assert (sums.diff() >= 0).all()


def test_prompts_from_anywhere(folder):
    transcript = Transcript.from_arrays([0, 1], tokens=[[3, 4, 5, 6], [7, 8, 9, 10]])
    texts = sample_texts(folder, 3, max_new_tokens=2, prompts=transcript, prompt_tokens=2)
    assert [p.tolist() for p in texts.prompts] == [[3, 4], [7, 8], [3, 4]]
    again = sample_texts(folder, 3, max_new_tokens=2, prompts=texts)
    assert again.fingerprint == texts.fingerprint
    bare = sample_texts(folder, 2, max_new_tokens=2, prompts=Texts.from_tokens([[3, 4], [7, 8]]))
    assert [p.tolist() for p in bare.prompts] == [[3, 4], [7, 8]]


def test_account_of_how_it_was_made(folder, tmp_path):
    out = tmp_path / "bob.parquet"
    texts = sample_texts(
        folder, 2, max_new_tokens=2, prompts=[[3]], temperature=0.5, top_p=0.9, seed=8, out=out
    )
    back = Texts.read(out)
    assert back.fingerprint == texts.fingerprint
    facts = back.provenance
    assert (facts["temperature"], facts["top_p"], facts["seed"]) == (0.5, 0.9, 8)
    assert len(facts["weights_sha256"]) == 64
    assert list(tmp_path.iterdir()) == [out]  # no parts are left


def test_a_finished_file_is_read_and_another_is_not_replaced(folder, tmp_path, monkeypatch):
    out = tmp_path / "bob.parquet"
    first = sample_texts(folder, 2, max_new_tokens=2, prompts=[[3]], out=out)

    def refuse(*_):
        raise AssertionError("sampled again")

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_Sampler", refuse)
        again = sample_texts(folder, 2, max_new_tokens=2, prompts=[[3]], out=out)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(InputError, match="holds other texts"):
        sample_texts(folder, 2, max_new_tokens=2, prompts=[[3]], out=out, seed=1)
    replaced = sample_texts(
        folder, 2, max_new_tokens=2, prompts=[[3]], out=out, seed=1, overwrite=True
    )
    assert Texts.read(out).fingerprint == replaced.fingerprint


def test_killed_and_resumed(folder, tmp_path):
    """kill -9 after some batches; the same call keeps them and makes the rest."""
    out = tmp_path / "bob.parquet"
    script = textwrap.dedent(
        f"""
        import time
        from workbench.lab import sampling
        whole = sampling._Sampler.complete
        def slow(self, *given):
            time.sleep(0.05)
            return whole(self, *given)
        sampling._Sampler.complete = slow
        sampling.sample_texts({str(folder)!r}, 64, max_new_tokens=3, prompts=[[3, 4]],
                              batch_size=2, seed=6, out={str(out)!r})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.parts/[!.]*.parquet"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.parts/[!.]*.parquet")}
    assert not out.exists()
    # The half of a part that a kill in mid-writing leaves: neither read nor in the way.
    [parts] = tmp_path.glob("*.parts")
    (parts / ".0000000060.parquet.half.parquet").write_bytes(b"PAR1")
    calls = []
    whole = sampling._Sampler.complete

    class Counting(sampling._Sampler):
        def complete(self, prompts, uniforms):
            calls.append(len(prompts))
            return whole(self, prompts, uniforms)

    sampling_class, sampling._Sampler = sampling._Sampler, Counting
    try:
        texts = sample_texts(
            folder, 64, max_new_tokens=3, prompts=[[3, 4]], batch_size=2, seed=6, out=out
        )
    finally:
        sampling._Sampler = sampling_class
    assert sum(calls) == 64 - 2 * len(kept)
    fresh = sample_texts(folder, 64, max_new_tokens=3, prompts=[[3, 4]], seed=6)
    assert texts.fingerprint == fresh.fingerprint


def test_models_without_a_cache_of_keys_and_values(folder, monkeypatch):
    cached = sample_texts(folder, 3, max_new_tokens=5, prompts=PROMPTS, temperature=0)
    model_class = transformers.LlamaForCausalLM
    forward = model_class.forward

    def forgetful(self, *args, **kwargs):
        output = forward(self, *args, **(kwargs | {"use_cache": False}))
        output.past_key_values = None
        return output

    monkeypatch.setattr(model_class, "forward", forgetful)
    plain = sample_texts(
        folder, 3, max_new_tokens=5, prompts=PROMPTS, temperature=0, out=None, seed=1
    )
    assert [c.tolist() for c in plain.completions] == [c.tolist() for c in cached.completions]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_texts": 0}, "n_texts is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
        ({"prompts": [[3], [VOCABULARY]]}, "row 1 has token id 40, outside the vocabulary"),
        ({"prompts": [[3] * 22]}, "has 27 tokens and .* takes 24"),
        ({"prompts": None}, "has no tokenizer"),
        ({"prompts": Texts.from_strings(["a"])}, "holds strings, and token ids are needed"),
        ({"eos": True}, "has no tokenizer"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(folder, settings, message):
    settings = {"n_texts": 2, "max_new_tokens": 5, "prompts": [[3]]} | settings
    with pytest.raises(InputError, match=message):
        sample_texts(folder, **settings)


def test_unprompted_and_ended_by_the_tokenizers_tokens(folder, tmp_path):
    import shutil

    from tokenizers import Tokenizer, models

    own = Path(shutil.copytree(folder, tmp_path / "m"))
    vocabulary = {"<s>": 1, "</s>": 2} | {f"t{i}": i for i in (0, *range(3, VOCABULARY))}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(own)
    bare = sample_texts(own, 30, max_new_tokens=1, seed=5)
    assert all(len(p) == 0 for p in bare.prompts)
    first = np.bincount([int(c[0]) for c in bare.completions], minlength=VOCABULARY)
    assert probabilities(own, [1])[first > 0].min() > 0
    ended = sample_texts(own, 60, max_new_tokens=15, eos=True, temperature=1.5, seed=5)
    for completion in ended.completions:
        assert 2 not in completion[:-1].tolist()
        assert len(completion) == 15 or completion[-1] == 2
    assert min(map(len, ended.completions)) < 15
