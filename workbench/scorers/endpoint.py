"""Asking a model over HTTP: one client for every scorer that has no weights.

It keeps what was answered, asks nothing twice, stays within a budget, waits and tries again where
that helps, and stops with the server's own words where it does not. The account's key is read from
the environment at the moment of sending, and is kept nowhere. Does not know what the answers mean.
"""

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from workbench.archive import printable
from workbench.errors import InputError
from workbench.home import content_key, home
from workbench.scorers.answers import AnswerStore, Budget, Spend
from workbench.scorers.replies import FaultyReplyError, KeyInEnvironment, Reply, receive, used

__all__ = ["BadAnswerError", "Endpoint", "Item", "RefusedError"]

T = TypeVar("T")

OK = 200
# Worth another try: the request may succeed later as it stands.
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
# Some servers take one prompt at a time and answer a list of several with an error of their own,
# and some wrap the words of a failed check of the request (pydantic's) into one.
INTERNAL_ERROR = 500
UNPROCESSABLE = 422
FAILED_CHECK = re.compile(r"'loc': \(.*'msg': |validation errors? for ")
ERRORS_OF_A_BUNDLE = 3
# Some gateways answer 200 with an error within, whose code is a status or a word.
ERROR_STATUS = re.compile("[45][0-9][0-9]")
PASSING = re.compile("rate.?limit|too.?many|overload|unavailable|time.?out|server.?error", re.I)
# What begins an answer that comes in pieces, although none was asked for.
STREAMS = ("data:", "event:", ":")
# What a prompt can have besides one token per byte: marks of beginning and end, a leading space.
MARKS_PER_PROMPT = 4
LONGEST_MESSAGE = 300


class BadAnswerError(ValueError):
    """An answer that is not what was asked for: cut short, of another request, malformed."""


class RefusedError(InputError):
    """The server refuses the request as it stands; asking again would not help.

    Attributes
    ----------
    status : int
        HTTP status, or the code of an error that came with a 200; 422 also where the server wraps
        a failed check of the request in a 500.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _AgainError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, message: str, after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.after = after
        self.status = status


class _OneAtATimeError(Exception):
    """A request for several prompts keeps failing: each is to be sent alone."""


class _StoppedError(Exception):
    """Not sent, because something else went wrong meanwhile."""


@dataclass(frozen=True)
class Item(Generic[T]):
    """One prompt to be answered.

    Attributes
    ----------
    body : mapping
        The request as it would be for this prompt alone, without the model's name. In a bundle
        of several, the values of `prompt` are joined and everything else must be equal.
    read : callable
        From the choice that answers it (parsed JSON) to a value; raises `BadAnswerError`.
    prompt_tokens, completion_tokens : int
        The most that it can use.
    """

    body: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], T]
    prompt_tokens: int
    completion_tokens: int

    @staticmethod
    def most_tokens(prompt: str | Sequence[int]) -> int:
        """Upper limit of a prompt's tokens: one per byte of text, or the number of ids."""
        size = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
        return size + MARKS_PER_PROMPT


class Endpoint:
    """An OpenAI-compatible endpoint and one of its models.

    Making one sends nothing and opens nothing.

    Parameters
    ----------
    base_url : str
        With the version, such as ``https://api.example.org/v1``; no keys in it.
    model : str
        As the endpoint calls it.
    api_key_env : str, optional
        *Name* of the environment variable that holds the key; none is sent without it.
    budget : Budget, optional
        No limit by default.
    concurrency : int
        Most requests under way at a time.
    timeout : float
        Seconds until a request without a whole answer counts as failed.
    attempts : int
        How often in a row a request may fail before the run stops.
    first_wait : float
        Seconds; waits grow from it by doubling, with full jitter, and never fall below what the
        server's Retry-After asks for.
    longest_wait : float
        Seconds; a server that asks for a longer pause stops the run.
    store : str or Path, optional
        File of answers; by default in the cache folder, named by address and model.

    Raises
    ------
    InputError
        An address that is none or carries credentials; settings out of range.

    Examples
    --------
    >>> endpoint = Endpoint("http://localhost:8000/v1/", "bob", api_key_env="BOB_KEY")
    >>> endpoint
    Endpoint('http://localhost:8000/v1', 'bob')
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        budget: Budget | None = None,
        concurrency: int = 4,
        timeout: float = 120.0,
        attempts: int = 8,
        first_wait: float = 1.0,
        longest_wait: float = 300.0,
        store: str | Path | None = None,
    ) -> None:
        self.base_url = _checked_address(base_url)
        if not model:
            raise InputError(f"no model is named: say which model of {self.base_url} is asked")
        for name, value in (("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        if not (timeout > 0 and first_wait >= 0 and longest_wait >= 0):
            raise InputError("timeout, first_wait and longest_wait are seconds: give positive ones")
        self.model = model
        self.api_key_env = api_key_env
        self.budget = budget or Budget()
        self.concurrency = concurrency
        self.timeout = timeout
        self.attempts = attempts
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self._store = store
        self.one_at_a_time = False  # found out on the way: the server takes one prompt a request
        self.ids: set[str] = set()  # that the server gave its answers
        self.answered: dict[str, str] = {}  # answer to request, by their hashes
        self.report: Callable[[str], object] | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"

    @property
    def store_path(self) -> Path:
        """The file of answers."""
        if self._store is not None:
            return Path(self._store).expanduser()
        key = content_key({"endpoint": self.base_url, "model": self.model})
        return home() / "answers" / f"{key[:16]}.sqlite"

    @contextlib.contextmanager
    def answers(self) -> Iterator[AnswerStore]:
        """The open store."""
        with AnswerStore(self.store_path, f"{self.base_url} {self.model}") as store:
            yield store

    def ask(
        self, path: str, items: Sequence[Item[T]], *, bundle: int = 1, fresh: bool = False
    ) -> list[T]:
        """Answers to some prompts, in their order; stored ones are not asked for again.

        Parameters
        ----------
        path : str
            Below the base address, such as ``completions``.
        items : sequence of Item
        bundle : int
            Most prompts per request; one at a time where the server turns out to take no more.
        fresh : bool
            Ask although an answer is stored, and do not keep what comes back.

        Returns
        -------
        list
            What each item's `read` made of its answer.

        Raises
        ------
        BudgetSpentError
            The next request could overrun the budget.
        RefusedError
            The server refuses: no access, no such model or address, a request that it does not
            take.
        InputError
            It kept failing, or the key is not in the environment.
        """
        self._check_key()
        keys = [self._key(path, item) for item in items]
        values: dict[bytes, T] = {}
        with self.answers() as store:
            wanted: dict[bytes, Item[T]] = {}
            for key, item in zip(keys, items, strict=True):
                if key in values or key in wanted:
                    continue
                stored = None if fresh else store.get(key)
                if stored is None:
                    wanted[key] = item
                    continue
                try:
                    values[key] = item.read(stored)
                except BadAnswerError:
                    store.damaged.add(key)
                    wanted[key] = item
            if store.damaged and self.report is not None:
                self.report(
                    f"{len(store.damaged):,} answers in {store.path} are damaged: asked again"
                )
            bundles = _bundled(wanted, bundle)
            if bundles:
                values |= self._ask_all(path, bundles, store, keep=not fresh)
        return [values[key] for key in keys]

    def _ask_all(
        self, path: str, bundles: list[dict[bytes, Item[T]]], store: AnswerStore, keep: bool
    ) -> dict[bytes, T]:
        values: dict[bytes, T] = {}
        stop = threading.Event()
        client = httpx.AsyncClient(
            timeout=None,  # each request has a deadline as a whole
            limits=httpx.Limits(max_connections=self.concurrency),
        )
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(client),
            ThreadPoolExecutor(min(self.concurrency, len(bundles))) as pool,
        ):
            errand = _Errand(self, portal, client, store, path, stop, keep)
            waiting: set[Future[dict[bytes, T]]] = set()
            queue = iter(bundles)
            failure: BaseException | None = None
            try:
                while True:
                    # a few at a time, so that a failure finds little in the queue
                    for one in queue:
                        waiting.add(pool.submit(errand.run, one))
                        if len(waiting) >= 2 * self.concurrency:
                            break
                    if not waiting:
                        break
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for finished in done:
                        values |= finished.result()
                    if self.report is not None:
                        self.report(self.budget.words(store.spend))
            except BaseException as error:
                failure = error
                raise
            finally:
                if failure is not None:
                    stop.set()
                    # requests under way are paid for: their answers are awaited and kept
                    pool.shutdown(wait=True, cancel_futures=True)
        return values

    def _key(self, path: str, item: Item[Any]) -> bytes:
        content = {"endpoint": self.base_url, "path": path, "model": self.model, "body": item.body}
        return bytes.fromhex(content_key(content))

    def _check_key(self) -> None:
        if self.api_key_env is None:
            return
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise InputError(
                f"the environment variable {self.api_key_env} is not set: put the key of "
                f"{self.base_url} into it"
            )
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise InputError(
                f"the environment variable {self.api_key_env} holds characters that no key has, "
                "such as spaces or line ends: set it again"
            )


class _Errand:
    """Requests of one `ask`: what the worker threads share."""

    def __init__(
        self,
        endpoint: Endpoint,
        portal: BlockingPortal,
        client: httpx.AsyncClient,
        store: AnswerStore,
        path: str,
        stop: threading.Event,
        keep: bool,
    ) -> None:
        self.endpoint = endpoint
        self.store = store
        self.url = f"{endpoint.base_url}/{path}"
        self.key = KeyInEnvironment(endpoint.api_key_env)
        self.post = partial(portal.call, receive, client, self.url)
        self.stop = stop
        self.keep = keep

    def run(self, items: dict[bytes, Item[T]]) -> dict[bytes, T]:
        """Answers to a bundle, tried until each of its prompts has one."""
        values: dict[bytes, T] = {}
        try:
            self._persist(items, values)
        except _OneAtATimeError:
            for key, item in items.items():
                if key not in values:
                    self._persist({key: item}, values)
                    self._send_rest(items, values)
        return values

    def _persist(self, items: dict[bytes, Item[T]], values: dict[bytes, T]) -> None:
        """Send what is not answered yet as one request, until everything is."""
        backoff = wait_random_exponential(multiplier=self.endpoint.first_wait, max=60)
        errors = 0

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            after = error.after if isinstance(error, _AgainError) else None
            return max(after or 0.0, backoff(state))

        def attempt() -> None:
            nonlocal errors
            if self.stop.is_set():
                raise _StoppedError
            missing = {key: item for key, item in items.items() if key not in values}
            if len(missing) > 1 and self.endpoint.one_at_a_time:
                raise _OneAtATimeError
            try:
                self._send(missing, values)
            except _AgainError as error:
                errors = errors + 1 if error.status == INTERNAL_ERROR else 0
                enough = min(ERRORS_OF_A_BUNDLE, self.endpoint.attempts)
                if len(missing) > 1 and errors == enough:
                    raise _OneAtATimeError from None
                raise

        try:
            Retrying(
                retry=retry_if_exception_type(_AgainError),
                wait=pause,
                stop=stop_after_attempt(self.endpoint.attempts),
                sleep=sleep_using_event(self.stop),
                reraise=True,
            )(attempt)
        except _AgainError as error:
            raise InputError(
                f"{self.url} failed {self.endpoint.attempts} times in a row, at last because "
                f"{error}: run the same again later, all answers so far are kept in "
                f"{self.store.path}"
            ) from None

    def _send_rest(self, items: dict[bytes, Item[T]], values: dict[bytes, T]) -> None:
        """Try a bundle's rest as one request again, after one of its prompts was answered alone.

        An error now is about the bundle; without it the server was out of order for a while.
        """
        rest = {key: item for key, item in items.items() if key not in values}
        if len(rest) > 1 and not self.endpoint.one_at_a_time and not self.stop.is_set():
            try:
                self._send(rest, values)
            except _AgainError as error:
                self.endpoint.one_at_a_time = error.status == INTERNAL_ERROR

    def _send(self, items: dict[bytes, Item[T]], values: dict[bytes, T]) -> None:
        endpoint = self.endpoint
        body = {"model": endpoint.model, **_joined([item.body for item in items.values()])}
        most = Spend(
            1,
            sum(item.prompt_tokens for item in items.values()),
            sum(item.completion_tokens for item in items.values()),
        )
        reserved = self.store.reserve(endpoint.budget, most)
        try:
            reply = self.post(body, self.key, endpoint.timeout)
        except FaultyReplyError as error:
            raise _AgainError(str(error)) from None  # may have been billed
        except httpx.ConnectError as error:
            self.store.settle(reserved, Spend(1))  # it never arrived
            raise _AgainError(f"it cannot be reached ({self._words(str(error))})") from None
        except httpx.HTTPError as error:
            raise _AgainError(f"the connection broke ({self._words(str(error))})") from None
        content = reply.content
        if reply.status != OK:
            self.store.settle(reserved, Spend(1))
            self._raise(reply, reply.status, *_said_in(content))
        if isinstance(content, str) and content.lstrip()[:1] in ("", "{"):
            # cut short; the reservation stays: it may have been billed
            raise _AgainError("its answer is no whole JSON")
        answer = content if isinstance(content, dict) else {}
        if _has_error(answer) or not answer.get("choices"):
            # a stream may have been billed as well
            streamed = isinstance(content, str) and content.lstrip().startswith(STREAMS)
            self.store.settle(reserved, used(answer, most, most if streamed else Spend(1)))
            self._raise(reply, OK, *_said_in(content))
        # A cache that is broken, or a mixed-up gateway, gives a whole answer to another request.
        # Where every answer has the same id, or none, equal answers may be right.
        self.endpoint.ids.add(str(answer.get("id")))
        asked = self.endpoint.answered.setdefault(content_key(answer), content_key(body))
        if asked != content_key(body) and len(self.endpoint.ids) > 1:
            raise _AgainError("its answer is one that it gave to another request")
        kept: dict[bytes, Any] = {}
        fault: BadAnswerError | None = None
        failed: Mapping[str, Any] | None = None
        try:
            choices = self._in_order(answer["choices"], len(items))
            for (key, item), choice in zip(items.items(), choices, strict=True):
                if _has_error(choice) or choice.get("finish_reason") == "error":
                    failed = choice
                    continue
                try:
                    values[key] = item.read(choice)
                except BadAnswerError as error:
                    fault = error
                    continue
                kept[key] = choice
        finally:
            self.store.settle(reserved, used(answer, most, most), kept if self.keep else None)
        if failed is not None:
            named = failed.get("error") or "no answer, finish_reason error"
            self._raise(reply, OK, *_said_in({**failed, "error": named}))
        if fault is not None:
            raise _AgainError(f"its answer is not what was asked for: {fault}")

    def _in_order(self, choices: Any, n: int) -> list[dict[str, Any]]:
        """One choice for each prompt: by its index, which is not needed for a single one."""
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise _AgainError("its choices are not of the form expected")
        indexes = [one.get("index") for one in choices]
        if n == 1 and indexes == [None]:
            return choices
        if n > 1 and (None in indexes or indexes == [indexes[0]] * n):
            # nothing says which is whose
            self.endpoint.one_at_a_time = True
            raise _OneAtATimeError
        ordered = [one for number in range(n) for one in choices if one.get("index") == number]
        if not len(choices) == len(ordered) == len({one["index"] for one in ordered}) == n:
            raise _AgainError(f"it answered with choices {printable(indexes, 30)} to {n} prompts")
        return ordered

    def _raise(self, reply: Reply, status: int, said: str, codes: Sequence[str]) -> NoReturn:
        """Try again where the status may pass, or the code of an error within; else stop."""
        endpoint, answered = self.endpoint, f"{status}"
        said = self._words(said) or self._words(reply.reason) or "no reason given"
        passing = status in TRY_AGAIN
        if status == OK:
            status = next((int(code) for code in codes if ERROR_STATUS.fullmatch(code)), OK)
            answered += "" if status == OK else f" with the error {status}"
            passing = status in TRY_AGAIN or (
                status == OK and any(PASSING.search(code) for code in codes)
            )
        spent = not {"insufficient_quota", "billing_hard_limit_reached"}.isdisjoint(codes)
        if status == INTERNAL_ERROR and FAILED_CHECK.search(said):
            status, passing = UNPROCESSABLE, False
        if not passing or spent:
            remedy = {
                OK: "check the address, or mend what it names",
                401: f"check the key in {endpoint.api_key_env or 'api_key_env'}",
                402: "the account needs credit",
                403: "check what the key may do",
                404: "check the address and the model's name",
                422: "the server does not take requests of this form",
            }.get(status, "mend what it names")
            if 300 <= status < 400:
                said, remedy = "it points elsewhere", "give the address that it points to"
            if spent:
                remedy = "the account needs credit"
            raise RefusedError(f"{self.url} answers {answered}, '{said}': {remedy}", status)
        after = _retry_after(reply.retry_after)
        if after is not None and after > endpoint.longest_wait:
            raise RefusedError(
                f"{self.url} answers {answered}, '{said}', and asks to wait {after:,.0f} seconds: "
                "run the same again then, all answers so far are kept",
                status,
            )
        raise _AgainError(f"it answered {answered}, '{said}'", after, status)

    def _words(self, text: str) -> str:
        return printable(" ".join(self.key.taken_from(text).split()), LONGEST_MESSAGE)


def _bundled(items: Mapping[bytes, Item[T]], size: int) -> list[dict[bytes, Item[T]]]:
    """Items in groups of at most `size` that differ in the prompt only."""
    alike: dict[str, list[bytes]] = {}
    for key, item in items.items():
        rest = content_key({name: v for name, v in item.body.items() if name != "prompt"})
        alike.setdefault(rest, []).append(key)
    return [
        {key: items[key] for key in group[start : start + size]}
        for group in alike.values()
        for start in range(0, len(group), size)
    ]


def _joined(bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One request for several prompts."""
    first = dict(bodies[0])
    if len(bodies) > 1 or "prompt" in first:
        first["prompt"] = [body["prompt"] for body in bodies]
    return first


def _checked_address(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        raise InputError(
            "the address is no URL: give one such as http://localhost:8000/v1"
        ) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{base_url!r} is no address: give one such as http://localhost:8000/v1")
    if url.userinfo or url.query or url.fragment:
        # not repeated in the message: it may hold a key
        raise InputError(
            f"the address of {url.host} carries credentials or a query, which would be written "
            "into results: put the key into an environment variable and name that with api_key_env"
        )
    return str(url).rstrip("/")


def _has_error(content: Mapping[str, Any]) -> bool:
    """Whether an answer, or one of its choices, has an error that says something."""
    error = content.get("error")
    return any(error.values()) if isinstance(error, dict) else bool(error)


def _said_in(content: Any) -> tuple[str, list[str]]:
    """The server's own message, and its codes."""
    if not isinstance(content, dict):
        return str(content), []
    inner = content.get("error") or content
    codes = [
        str(one[name])
        for one in (inner, content)
        for name in ("code", "status", "status_code", "type")
        if isinstance(one, dict) and one.get(name)
    ]
    if not isinstance(inner, dict):
        return str(inner), codes
    said = next((inner[k] for k in ("message", "detail", "error") if inner.get(k)), None)
    return str(said or json.dumps(inner)), codes


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or a date; None if there is none to be read."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
