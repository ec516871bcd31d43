"""The client: what it keeps, what it pays, when it tries again and when it stops."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from servers.app import FAULTS, Server, _Unsupported

from workbench.errors import InputError
from workbench.scorers.answers import AnswerStore, Budget, BudgetSpentError, Spend
from workbench.scorers.endpoint import (
    BadAnswerError,
    Endpoint,
    Item,
    RefusedError,
    _retry_after,
)

KEY = "sk-marked-0123456789-marked"


class Echo:
    """A model of one token per byte whose every answer is the letter after the prompt's last."""

    size = 256

    def encode(self, text):
        return list(text.encode())

    def shown(self, ids):
        return [chr(i) for i in ids]

    def text(self, ids):
        return bytes(ids).decode()

    def logprobs(self, ids):
        return [None] + [-1.0] * (len(ids) - 1)

    def following(self, ids):
        import numpy as np

        values = np.full(256, -20.0)
        values[ids[-1] + 1] = 0.0
        return values


def item(prompt, **changes):
    def read(choice):
        if choice["text"] != chr(ord(prompt[-1]) + 1):
            raise BadAnswerError("another letter")
        return choice["text"]

    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    return Item(body | changes, read, Item.most_tokens(prompt), 1)


def items(n):
    return [item(f"{number}a") for number in range(n)]


@pytest.fixture
def server():
    return Server(Echo(), keep_requests=True)


def endpoint(url, **options):
    options = {"first_wait": 0.01, "timeout": 5.0} | options
    return Endpoint(url, "m", **options)


# ---------------------------------------------------------------- asking


def test_answers_are_in_order_bundled_and_asked_once(server):
    with server.running() as url:
        asked = [*items(10), *items(3), item("xz")]
        one = endpoint(url)
        assert one.ask("completions", asked, bundle=4) == ["b"] * 13 + ["{"]
        assert server.received == 3
        assert sorted(len(body["prompt"]) for body in server.asked) == [3, 4, 4]
        assert endpoint(url).ask("completions", asked, bundle=1) == ["b"] * 13 + ["{"]
        assert server.received == 3
        with one.answers() as store:
            assert len(store) == 11
            assert (store.spend.requests, store.spend.completion_tokens) == (3, 11)


def test_a_fresh_question_is_asked_again_and_not_kept(server):
    with server.running() as url:
        one = endpoint(url)
        for _ in range(2):
            one.ask("completions", [item("a")], fresh=True)
        assert server.received == 2
        with one.answers() as store:
            assert len(store) == 0
            assert store.spend.requests == 2


def test_only_prompts_of_equal_requests_share_a_bundle(server):
    with server.running() as url:
        asked = [item("a", seed=1), item("b", seed=2), item("c", seed=1)]
        assert endpoint(url).ask("completions", asked, bundle=8) == ["b", "c", "d"]
    assert sorted((b["seed"], len(b["prompt"])) for b in server.asked) == [(1, 2), (2, 1)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_under_way_are_limited(concurrency, server):
    server.delay = 0.05
    with server.running() as url:
        endpoint(url, concurrency=concurrency).ask("completions", items(20))
    assert server.received == 20
    assert server.most_under_way == concurrency


def test_two_models_and_two_addresses_never_share_answers(server):
    with server.running() as url:
        endpoint(url).ask("completions", items(2))
        Endpoint(url, "other").ask("completions", items(2))
        assert server.received == 4
        with pytest.raises(InputError, match=r"holds answers of .* m, not of .* other"):
            Endpoint(url, "other", store=endpoint(url).store_path).ask("completions", items(1))


# ---------------------------------------------------------------- trying again


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_tried_again_until_the_answer_is_whole(fault):
    server = Server(Echo(), fault_rate=0.4, faults=(fault,), seed=3, hang_seconds=2)
    asked = items(24)
    with server.running() as url:
        one = endpoint(url, timeout=0.5 if fault in ("hang", "drip") else 5, attempts=12)
        # a number before the letter makes every answer of another request wrong
        answers = one.ask("completions", [_numbered(n) for n in range(len(asked))], bundle=2)
    assert answers == list(range(24))
    assert server.happened[fault] >= 2


def _numbered(number):
    def read(choice):
        if choice["logprobs"] is None or len(choice["logprobs"]["token_logprobs"]) != len(
            choice["logprobs"]["tokens"]
        ):
            raise BadAnswerError("wrong count")
        if not choice["text"].startswith(f"<{number}>"):
            raise BadAnswerError("another prompt's answer")
        return number

    body = {"prompt": f"<{number}>a", "max_tokens": 1, "echo": True, "logprobs": 1}
    return Item(body | {"temperature": 0}, read, 10, 1)


def test_a_server_that_keeps_failing_stops_the_run_with_its_words_and_keeps_what_came():
    server = Server(Echo())
    with server.running() as url:
        one = endpoint(url, attempts=3)
        one.ask("completions", items(4))
        server.fault_rate, server.faults = 1.0, ("500",)
        with pytest.raises(InputError, match=r"failed 3 times in a row.*500, 'out of luck'.*kept"):
            one.ask("completions", items(5))
        assert server.received == 7
        with one.answers() as store:
            assert len(store) == 4


def test_a_server_that_takes_one_prompt_gets_one():
    server = Server(Echo(), keep_requests=True, most_prompts=1, complaint=(500, ""))
    with server.running() as url:
        one = endpoint(url, concurrency=1)
        assert one.ask("completions", items(6), bundle=3) == ["b"] * 6
        assert [len(b["prompt"]) for b in server.asked] == [3, 3, 3, 1, 2, 1, 1, 1, 1, 1]
        assert one.ask("completions", items(9), bundle=9) == ["b"] * 9
        assert [len(b["prompt"]) for b in server.asked[10:]] == [1, 1, 1]
        with one.answers() as store:
            assert store.spend.completion_tokens == 9


def test_a_server_out_of_order_for_a_while_still_gets_bundles():
    class OutOfOrder(Server):
        def _complete(self, model, body):
            if self.received <= 3:
                raise _Unsupported("out of order")
            return super()._complete(model, body)

    server = OutOfOrder(Echo(), keep_requests=True, complaint=(500, None))
    with server.running() as url:
        one = endpoint(url, concurrency=1)
        assert one.ask("completions", items(6), bundle=6) == ["b"] * 6
        assert [len(b["prompt"]) for b in server.asked] == [6, 6, 6, 1, 5]
        assert one.ask("completions", [item("x"), item("y")], bundle=2) == ["y", "z"]
        assert len(server.asked[-1]["prompt"]) == 2


def test_nobody_there_is_one_sentence():
    with pytest.raises(InputError, match=r"failed 2 times in a row.*cannot be reached"):
        endpoint("http://127.0.0.1:9/v1", attempts=2).ask("completions", items(1))


def test_retry_after_is_read_as_seconds_and_as_a_date():
    assert _retry_after("7.5") == 7.5
    assert _retry_after(None) is None
    assert _retry_after("soon") is None
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert 28 < _retry_after(moment) <= 30
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    assert _retry_after(past) == 0


def test_retry_after_is_honoured_and_a_long_one_stops_the_run():
    server = Server(Echo(), fault_rate=1.0, faults=("429",), retry_after=0.6)
    times = []
    with server.running() as url:
        one = endpoint(url, attempts=2)
        began = time.monotonic()
        with pytest.raises(InputError, match=r"failed 2 times .*429, 'slow down'"):
            one.ask("completions", items(1))
        times.append(time.monotonic() - began)
        server.retry_after = 4000
        with pytest.raises(RefusedError, match="asks to wait 4,000 seconds"):
            one.ask("completions", items(1))
    assert times[0] >= 0.6  # a lower limit is no matter of the machine's speed
    assert server.received == 3


# ---------------------------------------------------------------- stopping


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422, 501])
def test_refusals_stop_at_once_with_the_servers_own_words(status, server):
    server.refusal = (status, {"error": {"message": "because\n it is Tuesday"}})
    with server.running() as url, pytest.raises(RefusedError) as caught:
        endpoint(url).ask("completions", items(1))
    assert server.received == 1
    assert caught.value.status == status
    assert f"answers {status}, 'because it is Tuesday'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"message": "flat"}, "flat"),
        ({"detail": "detailed"}, "detailed"),
        ({"error": "a string"}, "a string"),
        (["a list"], "a list"),
        ({}, "{}"),
    ],
)
def test_messages_of_many_shapes_are_passed_on(content, words, server):
    server.refusal = (404, content)
    with server.running() as url, pytest.raises(RefusedError, match="404") as caught:
        endpoint(url).ask("completions", items(1))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ({"error": {"message": "no credit", "code": 402}}, 402, "error 402, 'no credit'"),
        ({"error": {"message": "who?", "code": "401"}, "choices": []}, 401, "error 401, 'who?'"),
        ({"error": "no such model", "choices": None}, 200, "answers 200, 'no such model'"),
        ({"error": {"message": "odd", "code": "odd_code"}, "usage": {}}, 200, "200, 'odd'"),
        ({"error": "no", "choices": [{"index": 0, "text": "b"}]}, 200, "200, 'no'"),
        ({"detail": "Not here", "status": 404}, 404, "error 404, 'Not here'"),
        ({"object": "error", "message": "too long", "code": 400}, 400, "error 400, 'too long'"),
        ({"choices": None, "usage": None}, 200, '"choices": null'),
        (["a list"], 200, "200, '['a list']'"),
        (b"<html>\n<b>log in</b>", 200, "200, '<html> <b>log in</b>'"),
        (b"clear \x1b[2J\xe2\x80\xae screen", 200, r"200, 'clear \x1b[2J\u202e screen'"),
        (b"x" * 9999, 200, f"200, '{'x' * 300}…'"),
    ],
)
def test_an_error_within_a_200_stops_at_once_with_the_servers_words(content, status, words, server):
    server.refusal = (200, content)
    with server.running() as url:
        one = endpoint(url)
        with pytest.raises(RefusedError) as caught:
            one.ask("completions", items(1))
        with one.answers() as store:
            assert store.spend == Spend(1)
    assert caught.value.status == status
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "slow down", "code": 429},
        {"message": "slow down", "code": "503"},
        {"message": "slow down", "type": "overloaded_error"},
    ],
)
def test_an_error_within_a_200_that_may_pass_is_tried_again(error, server):
    server.refusal = (200, {"error": error})
    with server.running() as url:
        one = endpoint(url, attempts=3)
        with pytest.raises(InputError, match=r"failed 3 times in a row.*200.*'slow down'"):
            one.ask("completions", items(1))
        with one.answers() as store:
            assert store.spend == Spend(3)


def test_an_answer_in_pieces_is_refused_and_may_have_been_billed(server):
    server.refusal = (200, b'data: {"choices": []}\n\ndata: [DONE]')
    with server.running() as url:
        one = endpoint(url)
        with pytest.raises(RefusedError, match=r"200, 'data: "):
            one.ask("completions", [item("xa")])
        with one.answers() as store:
            assert store.spend == Spend(1, 6, 1)


def bent(change):
    """A server whose choices are changed on their way."""

    class Bent(Server):
        def _complete(self, model, body):
            content = super()._complete(model, body)
            change(content)
            return content

    return Bent(Echo(), keep_requests=True)


def test_an_error_in_one_choice_keeps_the_other_answers():
    def spoil(content):
        for choice in content["choices"]:
            if choice["text"] == "z":
                choice |= {"text": "", "finish_reason": "error"} | failure

    asked = [item("a"), item("y"), item("c")]
    with bent(spoil).running() as url:
        one = endpoint(url, attempts=2)
        failure = {"error": {"message": "the provider left", "code": 400}}
        with pytest.raises(RefusedError, match="error 400, 'the provider left'"):
            one.ask("completions", asked, bundle=3)
        failure = {"error": None}
        with pytest.raises(RefusedError, match="finish_reason error"):
            one.ask("completions", asked, bundle=3)
        failure = {"error": {"message": "wait", "code": 502}}
        with pytest.raises(InputError, match=r"failed 2 times in a row.*error 502, 'wait'"):
            one.ask("completions", asked, bundle=3)
        assert one.ask("completions", [asked[0], asked[2]]) == ["b", "d"]
        with one.answers() as store:
            assert len(store) == 2
            assert store.spend.requests == 4


@pytest.mark.parametrize("index", [None, 0, "absent"])
def test_choices_that_do_not_say_whose_they_are_are_asked_for_one_by_one(index):
    def spoil(content):
        for choice in content["choices"]:
            choice["index"] = index
            if index == "absent":
                del choice["index"]

    server = bent(spoil)
    with server.running() as url:
        asked = items(4)
        assert endpoint(url, concurrency=1).ask("completions", asked, bundle=4) == ["b"] * 4
    assert [len(body["prompt"]) for body in server.asked] == [4, 1, 1, 1, 1]


def test_choices_in_another_order_are_taken_by_their_index():
    with bent(lambda content: content["choices"].reverse()).running() as url:
        asked = [item("a"), item("m"), item("x")]
        assert endpoint(url).ask("completions", asked, bundle=3) == ["b", "n", "y"]


def test_a_choice_too_many_is_not_guessed_about():
    def spoil(content):
        content["choices"] = [{"text": "b"}, {"text": "c"}]

    with bent(spoil).running() as url, pytest.raises(InputError, match=r"choices .* to 1 prompts"):
        endpoint(url, attempts=2).ask("completions", items(1))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (6, 1)),
        ({}, (6, 1)),
        ({"prompt_tokens": 2, "completion_tokens": None}, (2, 1)),
        ({"prompt_tokens": None, "completion_tokens": 0}, (6, 0)),
        ({"prompt_tokens": 2.0, "completion_tokens": 1.0}, (2, 1)),
        ({"prompt_tokens": -1, "completion_tokens": 1e300}, (6, 1)),
        ("many", (6, 1)),
    ],
)
def test_a_good_answer_is_kept_whatever_its_usage_says(usage, tokens, server):
    server.refusal = (200, {"choices": [{"index": 0, "text": "b"}], "usage": usage, "error": None})
    with server.running() as url:
        one = endpoint(url)
        assert one.ask("completions", [item("xa")]) == ["b"]
        with one.answers() as store:
            assert store.spend == Spend(1, *tokens)
            assert len(store) == 1


def test_an_empty_account_is_not_asked_eight_times(server):
    server.refusal = (429, {"error": {"message": "no credit", "code": "insufficient_quota"}})
    with server.running() as url, pytest.raises(RefusedError, match=r"no credit.*needs credit"):
        endpoint(url).ask("completions", items(1))
    assert server.received == 1


def test_after_a_refusal_little_more_is_sent(server):
    server.refusal = (403, {"error": "no"})
    with server.running() as url, pytest.raises(RefusedError):
        endpoint(url, concurrency=2).ask("completions", items(500))
    assert server.received <= 10


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000/v1", "ftp://a/v1", "http://", "https://me:secret@a.org/v1",
     "https://a.org/v1?key=secret"],
)  # fmt: skip
def test_addresses_that_are_none_or_carry_a_secret(address):
    with pytest.raises(InputError) as caught:
        Endpoint(address, "m")
    assert "secret" not in str(caught.value)


def test_settings_out_of_range():
    for options in ({"concurrency": 0}, {"attempts": 0}, {"timeout": 0}, {"first_wait": -1}):
        with pytest.raises(InputError):
            Endpoint("http://a/v1", "m", **options)
    with pytest.raises(InputError, match="no model"):
        Endpoint("http://a/v1", "")


# ---------------------------------------------------------------- the key


def test_the_key_is_sent_and_written_nowhere(server, monkeypatch, tmp_path, caplog, capfd):
    monkeypatch.setenv("BOB_KEY", KEY)
    caplog.set_level(0)
    server.key = KEY
    store = tmp_path / "a.sqlite"
    with server.running() as url:
        one = endpoint(url, api_key_env="BOB_KEY", store=store)
        assert one.ask("completions", items(3)) == ["b"] * 3
        server.key = "another"
        with pytest.raises(RefusedError, match=r"401.*\[key\].*check the key in BOB_KEY") as caught:
            one.ask("completions", items(4))
    written = store.read_bytes() + repr((one, vars(one))).encode() + caplog.text.encode()
    error = caught.value
    while error is not None:
        written += repr(error).encode() + repr(vars(error)).encode()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    written += "".join(capfd.readouterr()).encode()
    assert KEY.encode() not in written


def test_a_key_that_a_server_repeats_is_not_kept(server, monkeypatch, tmp_path):
    monkeypatch.setenv("BOB_KEY", KEY)
    store = tmp_path / "a.sqlite"
    prompt = f"my key is {KEY}"
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True}
    with server.running() as url:
        one = endpoint(url, api_key_env="BOB_KEY", store=store)
        (text,) = one.ask("completions", [Item(body, lambda c: c["text"], 99, 1)])
        assert text == "my key is [key]e"


@pytest.mark.parametrize("form", [b"%s", b'{"error": "%s"}', b'{"choices": [], "x": "%s"}'])
def test_a_key_that_a_200_repeats_is_not_said(form, server, monkeypatch):
    monkeypatch.setenv("BOB_KEY", KEY)
    for key in (KEY, "".join(f"\\u{ord(letter):04x}" for letter in KEY)):
        server.refusal = (200, form % f"no {key}".encode())
        with server.running() as url, pytest.raises(RefusedError) as caught:
            endpoint(url, api_key_env="BOB_KEY").ask("completions", items(1))
        assert KEY not in str(caught.value)


def test_a_key_that_is_missing_or_no_key_sends_nothing(server, monkeypatch):
    with server.running() as url:
        one = endpoint(url, api_key_env="BOB_KEY")
        monkeypatch.delenv("BOB_KEY", raising=False)
        with pytest.raises(InputError, match="BOB_KEY is not set"):
            one.ask("completions", items(1))
        monkeypatch.setenv("BOB_KEY", f"{KEY}\n")
        with pytest.raises(InputError, match="BOB_KEY holds characters") as caught:
            one.ask("completions", items(1))
    assert KEY not in str(caught.value)
    assert server.received == 0


# ---------------------------------------------------------------- the budget


@pytest.mark.parametrize("most", [0, 1, 7])
def test_no_request_beyond_the_budget_is_sent(most, server):
    with server.running() as url:
        one = endpoint(url, budget=Budget(requests=most), concurrency=6)
        with pytest.raises(BudgetSpentError, match=f"budget of {most} requests"):
            one.ask("completions", items(40))
        assert server.received == most
        with pytest.raises(BudgetSpentError):
            endpoint(url, budget=Budget(requests=most)).ask("completions", items(40))
        assert server.received == most
        with one.answers() as store:
            assert len(store) == most


def test_failed_requests_count_too():
    server = Server(Echo(), fault_rate=1.0, faults=("500",))
    with server.running() as url, pytest.raises(BudgetSpentError):
        endpoint(url, budget=Budget(requests=5), attempts=9).ask("completions", items(1))
    assert server.received == 5


@pytest.mark.parametrize("concurrency", [1, 5])
def test_tokens_and_money_are_never_overrun(server, concurrency):
    """Requests under way hold their worst case, so with several of them less may be spent."""
    least = {1: 80, 5: 0}[concurrency]
    with server.running() as url:
        with pytest.raises(BudgetSpentError, match="budget of 100 tokens"):
            endpoint(url, budget=Budget(tokens=100), concurrency=concurrency).ask(
                "completions", items(60)
            )
        assert least < server.tokens <= 100
        before = server.tokens
        prices = {
            "price_per_million_prompt_tokens": 1e6,
            "price_per_million_completion_tokens": 2e6,
        }
        with pytest.raises(BudgetSpentError, match=r"budget of 200 in money.*cost \d+\.0000/200"):
            endpoint(url, budget=Budget(money=200, **prices), concurrency=concurrency).ask(
                "completions", items(99)
            )
        # a prompt of 3 tokens and 1 generated cost 5; the store's earlier answers count
        assert before < server.tokens <= 200 / 5 * 4


def test_two_processes_share_one_budget(server, tmp_path):
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_endpoint import *\n"
        "try:\n"
        "    endpoint(sys.argv[1], store=sys.argv[2], budget=Budget(requests=9), concurrency=3)"
        ".ask('completions', items(200))\n"
        "except BudgetSpentError:\n"
        "    sys.exit(7)\n"
    )
    with server.running() as url:
        running = [
            subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path / "a.sqlite")])
            for _ in range(2)
        ]
        assert [one.wait(timeout=60) for one in running] == [7, 7]
    assert server.received == 9


def test_a_lost_answer_keeps_its_worst_case_and_an_error_costs_no_tokens(server):
    with server.running() as url:
        one = endpoint(url, attempts=1)
        for fault, tokens in (("500", 0), ("truncated", 7), ("dropped", 14)):
            server.fault_rate, server.faults = 1.0, (fault,)
            with pytest.raises(InputError):
                one.ask("completions", [item("xa")])
            with one.answers() as store:
                assert store.spend.tokens == tokens
        server.fault_rate = 0
        one.ask("completions", [item("xa")])
        with one.answers() as store:
            assert store.spend == Spend(4, 2 + 12, 1 + 2)


def test_budgets_that_make_no_sense():
    for options in ({"requests": -1}, {"tokens": float("nan")}, {"money": 3.0}):
        with pytest.raises(InputError, match="budget"):
            Budget(**options)


# ---------------------------------------------------------------- the store


def test_the_store_only_grows(tmp_path):
    with AnswerStore(tmp_path / "a.sqlite", "e") as store:
        store.settle(Spend(), Spend(), {b"k": 1})
        store.settle(Spend(), Spend(), {b"k": 2})
        assert store.get(b"k") == 1
        for statement in ("UPDATE answers SET answer = x''", "DELETE FROM answers"):
            with pytest.raises(sqlite3.Error, match="append-only"):
                store._connection.execute(statement)


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_truncated_last_record_is_dropped_and_the_rest_is_there(cut, tmp_path):
    """What a kill in the middle of a write leaves: the log ends inside a record."""
    path = tmp_path / "a.sqlite"
    program = (
        "import os, sys\n"
        "from workbench.scorers.answers import AnswerStore, Spend\n"
        "store = AnswerStore(sys.argv[1], 'e')\n"
        "for n in range(20):\n"
        "    store.settle(Spend(), Spend(1), {b'%d' % n: 'x' * 50})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    log = path.with_name("a.sqlite-wal")
    os.truncate(log, log.stat().st_size - cut)
    with AnswerStore(path, "e") as store:
        assert len(store) == store.spend.requests == 19
        assert store.get(b"18") == "x" * 50
        store.settle(Spend(), Spend(1), {b"19": "again"})
        assert len(store) == 20


def test_a_file_that_is_no_store(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_text("no database, and long enough to be told from one" * 40)
    with pytest.raises(InputError, match="no store of answers"):
        AnswerStore(path, "e")
    with pytest.raises(InputError, match="cannot write"):
        AnswerStore(path / "inside" / "b.sqlite", "e")


def test_ctrl_c_keeps_the_answers_of_requests_under_way(server, tmp_path):
    server.delay = 0.3
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_endpoint import *\n"
        "try:\n"
        "    endpoint(sys.argv[1], store=sys.argv[2], concurrency=3)"
        ".ask('completions', items(200))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    store_path = tmp_path / "a.sqlite"
    with server.running() as url:
        running = subprocess.Popen([sys.executable, "-c", program, url, str(store_path)])
        while server.received < 4:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
        with AnswerStore(store_path, f"{url} m") as store:
            assert len(store) == server.received == store.spend.requests


def test_reports_of_spending_say_what_was_spent(server):
    lines = []
    with server.running() as url:
        one = endpoint(url, budget=Budget(requests=50))
        one.report = lines.append
        one.ask("completions", items(5))
    assert lines[-1] == "5/50 requests, 15 tokens"
    assert json.dumps(lines)  # plain text
