"""Questions to the server of llama-cpp-python, and its answers as they came, for a contract test.

The answers are kept in ``llama_cpp_completion.json``, so that what we understand of this server is
tested where it cannot be run.
"""

import json
import re
from pathlib import Path
from typing import Any

import httpx

RECORDED = Path(__file__).with_name("llama_cpp_completion.json")
TEXT = "The value of é 中文 is"
ECHO = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
# Two beginnings that are the same up to the last token.
FORKED = ("The value of the", "The value of a")
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "echo": ("completions", {"prompt": [TEXT], **ECHO}),
    "fork one": ("completions", {"prompt": [FORKED[0]], **ECHO}),
    "fork two": ("completions", {"prompt": [FORKED[1]], **ECHO}),
    "several prompts": ("completions", {"prompt": list(FORKED), **ECHO}),
    "token ids": ("completions", {"prompt": [[5, 6, 7]], **ECHO}),
    "prompt_logprobs": (
        "completions",
        {"prompt": [TEXT], "prompt_logprobs": 0, "max_tokens": 1, "temperature": 0},
    ),
    "likeliest": (
        "completions",
        {"prompt": ["The value of"], "logprobs": 5, "max_tokens": 1, "temperature": 0},
    ),
    "chat": (
        "chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Continue the text."},
                {"role": "user", "content": "The value of"},
            ],
            "logprobs": True,
            "top_logprobs": 5,
            "max_tokens": 1,
            "temperature": 0,
        },
    ),
    "too long": ("completions", {"prompt": ["a b " * 300], **ECHO}),
}


def ask_all(url: str, model: str) -> dict[str, dict[str, Any]]:
    """Every question with the status and the answer."""
    return {
        name: _ask(url, path, {"model": model, **body}) for name, (path, body) in QUESTIONS.items()
    }


def _ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(f"{url}/{path}", json=body, timeout=60)
    # an error tells where on the machine the server is installed
    answer = re.sub(r'[^"\\]*/site-packages/', "", response.text)
    return {"request": body, "status": response.status_code, "response": json.loads(answer)}


def shape(content: Any) -> Any:
    """Names and types, without values; lists by the set of what they hold."""
    match content:
        case dict():
            # listed tokens are names of the model, not of the format
            named = {k: shape(v) for k, v in content.items()}
            floats = bool(content) and all(isinstance(v, float) for v in content.values())
            return {"TOKEN": "float"} if floats else named
        case list():
            kinds = {repr(shape(one)) for one in content}
            return sorted(kinds)
        case _:
            return type(content).__name__
