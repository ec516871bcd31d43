"""One reply of a server of unknown manners, read within limits and without the account's key.

Deadline, size, depth and numbers are checked, and the key is taken out of the decoded values, here
and nowhere else, before anything is kept, counted or printed. Does not know what a reply means.
"""

import base64
import json
import logging
import math
import os
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx

from workbench.scorers.answers import Spend

__all__ = ["FaultyReplyError", "KeyInEnvironment", "Reply", "receive", "used"]

MOST_BYTES = 64 * 1024**2  # unpacked; likelihoods of a hundred long prompts have some megabytes
MOST_DEPTH = 32
# Tokens beyond a request's worst case that are believed: a server may put its own words before it.
HIDDEN_TOKENS = 10_000
# What is asked for, and what a reply may be packed with: none that unpacks without end at once.
PACKINGS = ("", "identity", "gzip")
# Their lines repeat what a server says, headers included, and it may say the key.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)


class FaultyReplyError(ValueError):
    """A reply too late, too long, nested too deeply, or with numbers that are none."""


class KeyInEnvironment(httpx.Auth):
    """The account's key by the name of its variable: no object of ours ever holds the key itself.

    Parameters
    ----------
    name : str or None
        Of the environment variable; no key is sent without it.

    Examples
    --------
    >>> os.environ["A_KEY"] = "sk-0123456789"
    >>> KeyInEnvironment("A_KEY").taken_from({"said": ["no sk%2D0123456789", 1.5]})
    {'said': ['no [key]', 1.5]}
    """

    def __init__(self, name: str | None) -> None:
        self.name = name

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the key into a request that is about to be sent."""
        if self.name is not None:
            request.headers["Authorization"] = f"Bearer {os.environ[self.name]}"
        yield request

    def taken_from(self, content: Any) -> Any:
        """A copy of text, or of decoded JSON, with ``[key]`` for the key in whatever spelling."""
        key = os.environ.get(self.name, "") if self.name is not None else ""
        return _each_text(content, partial(_spellings(key).sub, "[key]")) if key else content


@dataclass(frozen=True)
class Reply:
    """What came back, without the key.

    Attributes
    ----------
    status : int
        Of HTTP.
    reason : str
        Words of the status line.
    retry_after : str or None
        The header of that name.
    content
        Decoded JSON; text where it is none.
    """

    status: int
    reason: str
    retry_after: str | None
    content: Any


async def receive(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, Any],
    key: KeyInEnvironment,
    seconds: float,
) -> Reply:
    """Send one request and read its whole reply, within so many seconds.

    Raises
    ------
    FaultyReplyError
        See there.
    httpx.HTTPError
        No connection, or one that broke.
    """
    try:
        with anyio.fail_after(seconds):
            async with client.stream(
                "POST", url, json=body, auth=key, headers={"Accept-Encoding": "gzip"}
            ) as response:
                packing = response.headers.get("Content-Encoding", "")
                if packing.strip().lower() not in PACKINGS:
                    raise FaultyReplyError("its answer is packed in a way not asked for")
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise FaultyReplyError(f"its answer has more than {MOST_BYTES:,} bytes")
    except TimeoutError:
        raise FaultyReplyError(f"no whole answer came in {seconds:g} seconds") from None
    text = data.decode(errors="replace")
    return Reply(
        response.status_code,
        key.taken_from(response.reason_phrase),
        response.headers.get("Retry-After"),
        key.taken_from(_decoded(text) if response.is_success else _words_in(text)),
    )


def used(answer: Mapping[str, Any], most: Spend, unsaid: Spend) -> Spend:
    """One request, and the tokens that its answer counts.

    Parameters
    ----------
    answer : mapping
    most : Spend
        The request's worst case: taken where the answer says a count that cannot be.
    unsaid : Spend
        Taken where it says none.

    Examples
    --------
    >>> used({"usage": {"prompt_tokens": -5, "completion_tokens": 1}}, Spend(1, 90, 8), Spend(1))
    Spend(requests=1, prompt_tokens=90, completion_tokens=1)
    """
    usage = answer.get("usage")

    def count(name: str) -> int:
        said = usage.get(name) if isinstance(usage, dict) else None
        worst: int = getattr(most, name)
        if said is None:
            return int(getattr(unsaid, name))
        whole = type(said) in (int, float) and said == said // 1
        return int(said) if whole and 0 <= said <= worst + HIDDEN_TOKENS else worst

    return Spend(1, count("prompt_tokens"), count("completion_tokens"))


def _decoded(text: str) -> Any:
    """What the JSON holds; the text itself where it is none from its first letter on."""
    try:
        content = json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_finite)
        _each_text(content, str)
    except FaultyReplyError:
        raise
    except RecursionError:
        raise FaultyReplyError("its answer is nested too deeply") from None
    except ValueError:
        return text
    return content


def _words_in(text: str) -> Any:
    """Of a refusal, whose words matter whatever their form."""
    try:
        return _decoded(text)
    except FaultyReplyError:
        return text


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise FaultyReplyError("its answer holds a number that is not finite")
    return value


def _whole(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _each_text(content: Any, change: Callable[[str], str], depth: int = MOST_DEPTH) -> Any:
    """Decoded JSON with every text in it changed, names of fields included."""
    if isinstance(content, str):
        return change(content)
    if not isinstance(content, dict | list):
        return content
    if not depth:
        raise FaultyReplyError("its answer is nested too deeply")
    if isinstance(content, list):
        return [_each_text(value, change, depth - 1) for value in content]
    return {change(name): _each_text(v, change, depth - 1) for name, v in content.items()}


def _spellings(key: str) -> re.Pattern[str]:
    """The key plainly, letter by letter escaped for JSON, HTML or addresses, in hex or base64."""
    letters = "".join(
        rf"(?:\\*{re.escape(c)}|\\+(?:u00|x)(?i:{ord(c):02x})|%(?:25)*(?i:{ord(c):02x})"
        rf"|&\#(?:0*{ord(c)}|[xX]0*(?i:{ord(c):x}));)"
        for c in key
    )
    raw = key.encode()
    # The letters of base64 that the key alone decides, wherever in a group of three it begins.
    inside = []
    for skipped in range(3):
        coded = base64.b64encode(bytes(skipped) + raw).decode().rstrip("=")
        whole = (skipped + len(raw)) * 8 // 6
        inside.append(coded[-(-skipped * 8 // 6) : whole])
    based = [re.sub(r"[+/]", lambda m: "[+-]" if m[0] == "+" else "[/_]", core) for core in inside]
    return re.compile("|".join([letters, f"(?i:{raw.hex()})", *filter(None, based)]))
