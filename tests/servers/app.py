"""The server: three forms of likelihoods, chat, sampling, lies that servers tell, and faults.

It follows the interfaces as their documentation has them, but it is ours: what it shows is that a
client survives faults, not that it understands any real server.
"""

import asyncio
import contextlib
import itertools
import json
import math
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES

from servers.keys import spellings

FAULTS = (
    "429",
    "429 date",
    "429 bare",
    "500",
    "hang",
    "drip",
    "truncated",
    "dropped",
    "wrong count",
    "duplicate",
    "stale",
    "no number",
    "absurd usage",
    "nested",
    "bomb",
    "key",
)
# After which a client stops, with the reason.
REFUSALS = ("redirect", "key in the status line")
NUMBERS = itertools.count()
UNASSIGNED = 420  # a status whose words are ours
# Of 100 MB of blanks.
_PACKER = zlib.compressobj(1, wbits=31)
BOMB = b"".join(_PACKER.compress(b" " * 2**20) for _ in range(100)) + _PACKER.flush()
LIES = (
    "zeros",
    "nulls",
    "generated only",
    "early",
    "late",
    "constant",
    "positive",
    "probabilities",
    "base 10",
    "noise",
    "later tokens",
    "again",
    "nothing",
)


@dataclass
class Server:
    """What it serves and what goes wrong; may be changed while it runs.

    Attributes
    ----------
    model :
        See `models`.
    forms : set of str
        Of "echo", "prompt_logprobs", "token_ids", "logprobs" (of generated tokens).
    lie : str, optional
        One of `LIES`.
    fault_rate : float
        Share of requests to which one of `faults` happens.
    swapped : optional
        Another model, which answers from request number `swap_at` on.
    key : str, optional
        Bearer token asked for.
    """

    model: Any
    forms: set[str] = field(
        default_factory=lambda: {"echo", "prompt_logprobs", "token_ids", "logprobs"}
    )
    lie: str | None = None
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    hang_seconds: float = 5.0
    retry_after: float = 0.05
    swapped: Any = None
    swap_at: int | None = None
    key: str | None = None
    refusal: tuple[int, Any] | None = None
    most_prompts: int | None = None
    newer_limit: bool = False  # a chat takes max_completion_tokens alone
    # how it says that these are too many, or that it takes no ids
    complaint: tuple[int, str | None] = (400, None)
    delay: float = 0.0
    under_way: int = 0
    most_under_way: int = 0
    received: int = 0
    prompts: int = 0
    tokens: int = 0
    happened: Counter = field(default_factory=Counter)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keep_requests: bool = False
    _last: dict[str, Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    @contextlib.contextmanager
    def running(self):
        """The address of the server while it runs, in a thread of this process."""
        config = uvicorn.Config(
            self.app(),
            port=0,
            log_level="critical",
            lifespan="off",
            ws="none",
            access_log=False,
            http="h11",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.force_exit = server.should_exit = True
            thread.join(timeout=20)

    # ------------------------------------------------------------------ faults

    async def _answer(self, request: Request, make) -> Response:
        body = await request.json()
        with self._lock:
            self.received += 1
            number = self.received
            if self.keep_requests:
                self.asked.append(body)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            said = f"Incorrect API key provided: {request.headers.get('authorization')}"
            return JSONResponse({"error": {"message": said, "code": "invalid_api_key"}}, 401)
        if self.refusal is not None:
            status, content = self.refusal
            form = Response if isinstance(content, bytes) else JSONResponse
            return form(content, status)
        rng = np.random.default_rng([self.seed, number])
        fault = None
        if rng.random() < self.fault_rate:  # each kind in turn
            fault = self.faults[self.happened.total() % len(self.faults)]
            self.happened[fault] += 1
        if fault in ("429", "429 date"):
            after = f"{self.retry_after}"
            if fault == "429 date":
                after = format_datetime(datetime.now(UTC) + timedelta(seconds=self.retry_after))
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": after})
        if fault == "429 bare":
            return JSONResponse({"error": {"message": "slow down"}}, 429)
        sent_key = request.headers.get("authorization", "Bearer none")
        if fault == "key in the status line":
            STATUS_PHRASES[UNASSIGNED] = sent_key.encode()
            return Response(status_code=UNASSIGNED)
        if fault == "redirect":
            return RedirectResponse(f"http://127.0.0.1:9/{sent_key}", 302)
        if fault == "nested":
            return Response(b"[" * 100_000, media_type="application/json")
        if fault == "bomb":
            return Response(BOMB, headers={"Content-Encoding": "gzip"})
        if fault == "drip":
            return StreamingResponse(self._drip(), media_type="application/json")
        if fault == "500":
            return JSONResponse({"error": {"message": "out of luck"}}, 500)
        if fault == "hang":
            await asyncio.sleep(self.hang_seconds)
        if self.delay:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            await asyncio.sleep(self.delay)
            self.under_way -= 1
        model = self.model
        if self.swapped is not None and self.swap_at is not None and number >= self.swap_at:
            model = self.swapped
        try:
            content = make(model, body)
        except _Unsupported as error:
            status, said = self.complaint
            said = str(error) if said is None else said
            return JSONResponse({"error": {"message": said}}, status)
        with self._lock:
            self.prompts += len(content["choices"])
            self.tokens += content["usage"]["total_tokens"]
            previous, self._last = self._last, content
        if fault == "wrong count":
            for choice in content["choices"]:
                if (choice.get("logprobs") or {}).get("token_logprobs"):
                    del choice["logprobs"]["token_logprobs"][-2]
                if choice.get("prompt_logprobs"):
                    del choice["prompt_logprobs"][-1]
        if fault == "duplicate":
            content["choices"].append(dict(content["choices"][0]))
        if fault == "stale" and previous is not None:
            content = previous
        if fault == "no number":
            content["choices"][0]["score"] = math.nan
        if fault == "absurd usage":
            content["usage"] = {"prompt_tokens": -(10**12), "completion_tokens": 1e300}
        raw = json.dumps(content).encode()
        if fault == "key":  # in each spelling in turn, in a header, and split over chunks
            forms = list(spellings(sent_key.removeprefix("Bearer ")).values())
            form = forms[self.happened["key"] % len(forms)]
            raw = raw.replace(b'"choices": [{', f'"choices": [{{"{form}": "{form}", '.encode())
            pieces = (raw[start : start + 7] for start in range(0, len(raw), 7))
            return StreamingResponse(pieces, headers={"X-Key": sent_key})
        if fault == "truncated":
            return Response(raw[: len(raw) // 2], media_type="application/json")
        if fault == "dropped":  # more is announced than comes
            return Response(
                raw[: len(raw) // 2],
                media_type="application/json",
                headers={"Content-Length": str(len(raw))},
            )
        return Response(raw, media_type="application/json")

    async def _drip(self):
        until = time.monotonic() + self.hang_seconds
        while time.monotonic() < until:
            yield b" "
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------ answers

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, self._complete)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, self._talk)

    def _complete(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if self.most_prompts is not None and len(prompts) > self.most_prompts:
            raise _Unsupported(f"at most {self.most_prompts} prompts")
        choices, used = [], 0
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, str) and "token_ids" not in self.forms:
                raise _Unsupported("prompt must be a string")
            ids = model.encode(prompt) if isinstance(prompt, str) else list(prompt)
            new = self._generate(model, ids, body, index)
            used += len(ids) + len(new)
            echoed = bool(body.get("echo")) and "echo" in self.forms
            text = (model.text(ids) if echoed else "") + model.text(new)
            choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": "length"}
            if body.get("prompt_logprobs") is not None and "prompt_logprobs" in self.forms:
                choice["prompt_logprobs"] = self._prompt_logprobs(model, ids)
            if body.get("logprobs") is not None:
                choice["logprobs"] = self._logprobs(model, ids, new, echoed, body["logprobs"])
            choices.append(choice)
        return _reply("text_completion", body, choices, used)

    def _talk(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        if self.newer_limit:
            if "max_tokens" in body:
                raise _Unsupported(
                    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                    "'max_completion_tokens' instead."
                )
            body = {**body, "max_tokens": body["max_completion_tokens"]}
        prompt = body["messages"][-1]["content"]
        # an assistant begins its answer with a word: the space at the seam is understood
        ids = model.encode(prompt + " ")
        new = self._generate(model, ids, body, 0)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": model.text(new)},
            "finish_reason": "length",
        }
        if body.get("logprobs") and "logprobs" in self.forms:
            content = []
            for number, token in enumerate(new):
                following = model.following(ids + new[:number])
                top = np.argsort(-following)[: body.get("top_logprobs", 0)]
                content.append(
                    {
                        **_shown(model, token, following),
                        "top_logprobs": [_shown(model, int(t), following) for t in top],
                    }
                )
            choice["logprobs"] = {"content": content}
        return _reply("chat.completion", body, [choice], len(ids) + len(new))

    def _generate(self, model: Any, ids: list[int], body: dict[str, Any], index: int) -> list[int]:
        most = body.get("max_tokens", 16)
        temperature = body.get("temperature", 1)
        rng = np.random.default_rng([body.get("seed", 0), index, *ids[-8:]])
        new: list[int] = []
        for _ in range(most):
            following = model.following(ids + new)
            if temperature == 0:
                new.append(int(np.argmax(following)))
            else:
                p = np.exp(following / temperature)
                new.append(int(rng.choice(len(p), p=p / p.sum())))
        return new

    def _values(self, model: Any, ids: list[int]) -> list[float | None]:
        values = model.logprobs(ids)
        known = [v for v in values if v is not None]
        match self.lie:
            case "zeros":
                return [0.0] * len(values)
            case "nulls":
                return [None] * len(values)
            case "early":
                return [*values[1:], known[-1]]
            case "late":
                return [None, *values[:-1]]
            case "constant":
                return [None] + [-2.5] * len(known)
            case "positive":
                return [None] + [-v for v in known]
            case "probabilities":
                return [None] + [math.exp(v) for v in known]
            case "base 10":
                return [None] + [v / math.log(10) for v in known]
            case "noise":  # depends on the tokens before, but on nothing about them
                return [None] + [
                    -float(np.random.default_rng(ids[: at + 2]).exponential(3))
                    for at in range(len(known))
                ]
            case "again":  # as if each token came once more after itself
                return [None] + [
                    float(model.following(ids[: at + 1])[ids[at]]) for at in range(1, len(ids))
                ]
            case "later tokens":
                return [None] + [v + math.sin(len(ids) * (sum(ids) % 97)) - 1 for v in known]
        return values

    def _prompt_logprobs(self, model: Any, ids: list[int]) -> list[dict[str, Any] | None] | None:
        if self.lie == "nothing":
            return None
        names = model.shown(ids)
        values = self._values(model, ids)
        return [
            None if at == 0 else {str(i): {"logprob": v, "rank": 1, "decoded_token": n}}
            for at, (i, n, v) in enumerate(zip(ids, names, values, strict=True))
        ]

    def _logprobs(
        self, model: Any, ids: list[int], new: list[int], echoed: bool, top: int
    ) -> dict[str, Any] | None:
        if self.lie == "nothing":
            return None
        tokens, values, listed = [], [], []
        if echoed and self.lie != "generated only":
            tokens += model.shown(ids)
            values += self._values(model, ids)
            listed += [
                None if at == 0 else self._prompt_top(model, ids[:at], ids[at], top)
                for at in range(len(ids))
            ]
        for number, token in enumerate(new):
            following = model.following(ids + new[:number])
            tokens += model.shown([token])
            values.append(float(following[token]))
            listed.append(self._top(model, ids + new[:number], token, top))
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": listed,
            "text_offset": list(np.cumsum([0, *map(len, tokens[:-1])]).tolist()),
        }

    def _prompt_top(self, model: Any, before: list[int], token: int, top: int) -> dict[str, float]:
        if self.lie == "again":
            return self._top(model, [*before, token], token, top)
        if top <= 1 and self.lie != "base 10":
            return {}  # as some servers do; it would be slow to work out for every place
        return self._top(model, before, token, top)

    def _top(self, model: Any, before: list[int], token: int, top: int) -> dict[str, float]:
        following = model.following(before)
        best = [token, *np.argsort(-following)[: max(top, 1)].tolist()]
        scale = math.log(10) if self.lie == "base 10" else 1.0
        return {model.shown([i])[0]: float(following[i]) / scale for i in best}


class _Unsupported(Exception):
    pass


def _shown(model: Any, token: int, following: np.ndarray) -> dict[str, Any]:
    shown = model.shown([token])[0]
    return {"token": shown, "logprob": float(following[token]), "bytes": None}


def _reply(kind: str, body: dict[str, Any], choices: list[Any], used: int) -> dict[str, Any]:
    new = body.get("max_tokens", 16) * len(choices)
    return {
        "id": f"cmpl-{next(NUMBERS)}",
        "object": kind,
        "model": body["model"],
        "choices": choices,
        "usage": {
            "prompt_tokens": used - new,
            "completion_tokens": new,
            "total_tokens": used,
        },
    }
