"""A lab model behind an address of its own, for trying black-box access without a provider.

It answers in the forms that servers offer: likelihoods of prompts (``echo`` with ``logprobs``,
``prompt_logprobs``), prompts as token ids, likely next tokens, and sampled text, as completions and
as chat. It follows the interfaces' documentation and is ours: that a scorer understands it does not
show that it understands any other server. For this machine only; it has no limits on anything.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError, optional_libraries
from workbench.models.checkpoint import quiet_transformers

__all__ = ["ServedModel", "answer_chat", "answer_completions", "serving"]

Floats = NDArray[np.float32]

START_SECONDS = 30.0
MOST_NEW_TOKENS = 256
REMEMBERED = 2048  # distributions of next tokens: 64 MB for the lab's vocabularies


class ServedModel:
    """A model folder of transformers, asked about several prompts at a time.

    Parameters
    ----------
    folder : str or Path
        Made by ``save_pretrained``, with its tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not Path(folder).is_dir():
            raise InputError(f"{folder} is no folder of a model: 'palimpsest lab list' shows them")
        with quiet_transformers():
            self.model = AutoModelForCausalLM.from_pretrained(
                str(folder), trust_remote_code=False, use_safetensors=True
            ).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        self._known: dict[tuple[int, ...], Any] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without marks."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def shown(self, ids: Sequence[int]) -> list[str]:
        """Each token as text."""
        return [self.tokenizer.decode([int(i)]) for i in ids]

    def text(self, ids: Sequence[int]) -> str:
        """Tokens together as text."""
        return str(self.tokenizer.decode(list(ids)))

    def every(self, prompts: Sequence[Sequence[int]]) -> list[Floats]:
        """Log-probabilities after each token of some prompts, shaped (tokens, vocabulary)."""
        import torch

        with torch.inference_mode():
            values = self.model(_padded(prompts)).logits.float().log_softmax(-1).numpy()
        return [values[row, : len(ids)] for row, ids in enumerate(prompts)]

    def following(self, prompts: Sequence[Sequence[int]]) -> list[Floats]:
        """Log-probabilities of what comes after each prompt."""
        import torch

        asked = [tuple(ids) for ids in prompts]
        found: dict[tuple[int, ...], Any] = {i: self._known[i] for i in asked if i in self._known}
        # In falling order a beginning comes right after what it begins: one pass answers for both.
        new = sorted((ids for ids in set(asked) if ids not in found), reverse=True)
        hosts: list[tuple[int, ...]] = []
        place = []
        for ids in new:
            if not hosts or hosts[-1][: len(ids)] != ids:
                hosts.append(ids)
            place.append((len(hosts) - 1, len(ids) - 1))
        if new:
            row, end = (torch.tensor(numbers) for numbers in zip(*place, strict=True))
            with torch.inference_mode():
                hidden = self.model.base_model(_padded(hosts)).last_hidden_state[row, end]
                values = self.model.get_output_embeddings()(hidden).float().log_softmax(-1)
            found |= zip(new, values.numpy(), strict=True)
        # Draws after the same beginning come in requests of their own, soon after one another.
        self._known |= found
        for ids in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[ids]
        return [found[ids] for ids in asked]


def _padded(prompts: Sequence[Sequence[int]]) -> Any:
    """Prompts in one tensor. What comes after a token has no part in what it says."""
    import torch

    padded = torch.zeros((len(prompts), max(map(len, prompts))), dtype=torch.long)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    return padded


def answer_completions(model: ServedModel, body: dict[str, Any]) -> dict[str, Any]:
    """What ``/v1/completions`` answers to a request.

    Raises
    ------
    InputError
        A request that it does not take.
    """
    prompts = body.get("prompt")
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    if not prompts:
        raise InputError("prompt is missing")
    ids = [model.encode(p) if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    if not all(ids):
        raise InputError("a prompt is empty")
    echo, listed = bool(body.get("echo")), body.get("logprobs")
    asked = body.get("prompt_logprobs") is not None
    values = model.every(ids) if (echo and listed is not None) or asked else None
    new, chosen = _generated(model, ids, body)
    choices = []
    for index, row in enumerate(ids):
        text = (model.text(row) if echo else "") + model.text(new[index])
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": "length"}
        if asked and values is not None:
            choice["prompt_logprobs"] = _prompt_logprobs(model, row, values[index])
        if listed is not None:
            places = list(chosen[index])
            tokens = new[index]
            if echo and values is not None:
                places = [*values[index][:-1], *places]
                tokens = [*row[1:], *tokens]
            choice["logprobs"] = _logprobs(
                model, tokens, places, int(listed), row[0] if echo else None
            )
        choices.append(choice)
    return _reply("text_completion", body, choices, ids, new)


def answer_chat(model: ServedModel, body: dict[str, Any]) -> dict[str, Any]:
    """What ``/v1/chat/completions`` answers to a request: the last message, continued.

    Raises
    ------
    InputError
        A request that it does not take.
    """
    messages = body.get("messages")
    if not messages:
        raise InputError("messages are missing")
    # an assistant begins its answer with a word: the space at the seam is understood
    seam = "" if body.get("continue_final_message") else " "
    ids = model.encode(str(messages[-1]["content"]) + seam)
    (new,), (chosen,) = _generated(model, [ids], body)
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": model.text(new)},
        "finish_reason": "length",
    }
    if body.get("logprobs"):
        choice["logprobs"] = {
            "content": [
                {
                    **_named(model, token, values),
                    "top_logprobs": [
                        _named(model, int(i), values)
                        for i in np.argsort(-values)[: int(body.get("top_logprobs", 0))]
                    ],
                }
                for token, values in zip(new, chosen, strict=True)
            ]
        }
    return _reply("chat.completion", body, [choice], [ids], [new])


def _generated(
    model: ServedModel, ids: list[list[int]], body: dict[str, Any]
) -> tuple[list[list[int]], list[list[Floats]]]:
    """New tokens of each prompt, and the log-probabilities from which each was drawn."""
    most = min(int(body.get("max_tokens", 16)), MOST_NEW_TOKENS)
    temperature = float(body.get("temperature", 1))
    streams = [
        np.random.default_rng([abs(int(body.get("seed") or 0)), index, len(row)])
        for index, row in enumerate(ids)
    ]
    new: list[list[int]] = [[] for _ in ids]
    chosen: list[list[Floats]] = [[] for _ in ids]
    for _ in range(most):
        following = model.following([[*a, *b] for a, b in zip(ids, new, strict=True)])
        for index, values in enumerate(following):
            chosen[index].append(values)
            if temperature == 0:
                new[index].append(int(values.argmax()))
            else:
                # Gumbel's trick: the largest of noisy log-probabilities is a draw from them
                noise = streams[index].gumbel(size=values.size)
                new[index].append(int((values / temperature + noise).argmax()))
    return new, chosen


def _prompt_logprobs(model: ServedModel, ids: list[int], values: Floats) -> list[Any]:
    names = model.shown(ids)
    return [None] + [
        {str(ids[at]): {"logprob": float(values[at - 1, ids[at]]), "decoded_token": names[at]}}
        for at in range(1, len(ids))
    ]


def _logprobs(
    model: ServedModel, tokens: list[int], places: list[Floats], top: int, first: int | None
) -> dict[str, Any]:
    """Of an answer's tokens; `first` is the echoed prompt's first token, which has none."""
    names = model.shown(tokens)
    values: list[float | None] = [float(v[t]) for t, v in zip(tokens, places, strict=True)]
    likely: list[Any] = [
        {name: float(v[t])} | _likely(model, v, top)
        for t, name, v in zip(tokens, names, places, strict=True)
    ]
    if first is not None:
        names, values, likely = [*model.shown([first]), *names], [None, *values], [None, *likely]
    offsets = np.cumsum([0, *map(len, names[:-1])]).tolist()
    return {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": likely,
        "text_offset": offsets,
    }


def _likely(model: ServedModel, values: Floats, top: int) -> dict[str, float]:
    if top < 1:
        return {}
    if top == 1:
        best = [int(values.argmax())]
    else:
        best = np.argpartition(-values, top)[:top].tolist()
        best.sort(key=lambda i: -values[i])
    return dict(zip(model.shown(best), (float(values[i]) for i in best), strict=True))


def _named(model: ServedModel, token: int, values: Floats) -> dict[str, Any]:
    name = model.shown([token])[0]
    return {"token": name, "logprob": float(values[token]), "bytes": list(name.encode())}


def _reply(
    kind: str, body: dict[str, Any], choices: list[Any], ids: list[list[int]], new: list[list[int]]
) -> dict[str, Any]:
    prompt, completion = sum(map(len, ids)), sum(map(len, new))
    return {
        "id": "lab",
        "object": kind,
        "model": body.get("model", ""),
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


@contextlib.contextmanager
def serving(model: str | Path | ServedModel, port: int = 0) -> Iterator[str]:
    """Serve a model on this machine for the length of a ``with`` block.

    Parameters
    ----------
    model : str, Path or ServedModel
        A model folder, such as the lab's, or one that is loaded.
    port : int
        0: any that is free.

    Yields
    ------
    str
        The base address, ``http://127.0.0.1:port/v1``.

    Raises
    ------
    InputError
        The server's libraries are missing; no such folder; the port is taken.
    """
    with optional_libraries():
        import uvicorn
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import Response
        from starlette.routing import Route
    served = model if isinstance(model, ServedModel) else ServedModel(model)

    def route(path: str, answer: Any) -> Route:
        async def asked(request: Request) -> Response:
            try:
                content, status = answer(served, await request.json()), 200
            except (InputError, KeyError, TypeError, ValueError) as error:
                content, status = {"error": {"message": str(error)}}, 400
            return Response(json.dumps(content), status, media_type="application/json")

        return Route(path, asked, methods=["POST"])

    app = Starlette(
        routes=[
            route("/v1/completions", answer_completions),
            route("/v1/chat/completions", answer_chat),
        ]
    )
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="critical",
        lifespan="off",
        ws="none",
        access_log=False,
    )
    server = uvicorn.Server(config)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except SystemExit as stop:  # how uvicorn says that it cannot begin
            ended.append(stop)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until = time.monotonic() + START_SECONDS
    while not server.started:
        if ended or not thread.is_alive() or time.monotonic() > until:
            raise InputError(f"no server could be started on port {port}: choose another, or 0")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(timeout=20)
