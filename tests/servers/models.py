"""Language models small enough for a test: one of byte n-grams, one of transformers.

Each gives token ids of a text, how it shows them, and log-probabilities; nothing else is asked.
"""

import math
import re
from collections import Counter, defaultdict
from functools import cache

import numpy as np


class NgramModel:
    """Interpolated n-grams of bytes, learnt from Python's own documentation: no two runs differ."""

    size = 256

    def __init__(self, order: int = 5) -> None:
        self.order = order
        self.counts = _counts(order)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def shown(self, ids: list[int]) -> list[str]:
        return [chr(i) if i < 128 else f"bytes:\\x{i:02x}" for i in ids]

    def text(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def logprobs(self, ids: list[int]) -> list[float | None]:
        data = bytes(ids)
        values: list[float | None] = [None]
        for at in range(1, len(data)):
            p = 1 / 256
            for size in range(min(self.order, at + 1)):
                following = self.counts[size].get(data[at - size : at])
                if following is None:
                    break
                p = (following[data[at]] + 4 * p) / (following.total() + 4)
            values.append(math.log(p))
        return values

    def following(self, ids: list[int]) -> np.ndarray:
        """Log-probabilities of all tokens that may come next."""
        data = bytes(ids)
        p = np.full(256, 1 / 256)
        for size in range(min(self.order, len(data) + 1)):
            found = self.counts[size].get(data[len(data) - size :])
            if found is None:
                break
            p *= 4
            for byte, count in found.items():
                p[byte] += count
            p /= found.total() + 4
        return np.log(p)


@cache
def _counts(order: int) -> list[dict[bytes, Counter]]:
    data = training_text().encode()
    counts: list[dict[bytes, Counter]] = []
    for size in range(order):
        table: dict[bytes, Counter] = defaultdict(Counter)
        for at in range(size, len(data)):
            table[data[at - size : at]][data[at]] += 1
        counts.append(dict(table))
    return counts


@cache
def training_text() -> str:
    """English prose about Python that every installation of it holds."""
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics))
    return re.sub(r"\s+", " ", text)[:150_000]


class CausalModel:
    """A model folder of transformers, one prompt at a time by its full logits."""

    def __init__(self, folder) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from workbench.models.checkpoint import quiet_transformers

        with quiet_transformers():
            self.model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.size = int(self.model.config.vocab_size)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def shown(self, ids: list[int]) -> list[str]:
        return [self.tokenizer.decode([i]) for i in ids]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def _all(self, ids: list[int]):
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def logprobs(self, ids: list[int]) -> list[float | None]:
        every = self._all(ids)
        return [None, *(float(every[at - 1, ids[at]]) for at in range(1, len(ids)))]

    def following(self, ids: list[int]) -> np.ndarray:
        return self._all(ids)[-1].numpy()


def train_small(folder, steps: int = 150) -> None:
    """A small Llama with a byte-level tokenizer, trained for seconds on `training_text`."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from workbench.models.checkpoint import quiet_transformers

    text = training_text()
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
    )
    tokenizer.train_from_iterator([text], trainer)
    ids = torch.tensor(tokenizer.encode(text).ids)
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=600,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=256,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        rows = ids[: ids.numel() // 64 * 64].reshape(-1, 64)
        rate = 5e-3
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1, step / 20) * (1 - step / steps)
            batch = rows[torch.randint(len(rows), (16,))]
            model(batch, labels=batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
