"""A stand-in of the Hugging Face hub for its real clients, and a process that uses them.

Serves what `huggingface_hub`, `transformers` and `datasets` ask for when they read: repositories,
trees, refs, and files by HEAD and GET with ranges; large files behind a redirect. Private and gated
repositories answer as the hub answers, and faults can be set. It is ours: nothing is written
through its API, it has no Xet, no pages and no rate limit but one that a fault plays.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

LARGE = ("*.safetensors", "*.bin", "*.parquet")  # kept as the hub keeps large files


@dataclass
class Fault:
    """What goes wrong with requests whose path fits a pattern with ``*``.

    Attributes
    ----------
    status : int, optional
        Answer this instead, with `retry_after` seconds if given.
    cut : int, optional
        Break the connection after so many bytes of the body.
    delay : float
        Seconds to wait before answering.
    times : int
        How often.
    """

    pattern: str
    status: int | None = None
    retry_after: int | None = None
    cut: int | None = None
    delay: float = 0.0
    times: int = 1_000_000


@dataclass
class Hub:
    """Repositories in ``ROOT/KIND/OWNER/NAME/REVISION`` (percent-encoded), and their server.

    Attributes
    ----------
    asked : list of (str, str)
        Method and path of each request.
    """

    root: Path
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    readers: dict[str, tuple[str, str]] = field(default_factory=dict)
    large: dict[str, Path] = field(default_factory=dict)

    def add(self, kind: str, name: str, folder: Path, revision: str = "main") -> None:
        """Copy a folder into a repository as one of its branches."""
        shutil.copytree(folder, self.root / kind / name / quote(revision, safe=""))

    def close(self, name: str, how: str, token: str) -> None:
        """Let only this token read a repository that is "private" or "gated"."""
        self.readers[name] = (how, token)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve in a thread; yields the address, for ``HF_ENDPOINT``."""
        routes = [Route("/{path:path}", self._answer, methods=["GET", "HEAD", "POST"])]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error"))
            thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join(5)

    # ------------------------------------------------------------------ answers

    async def _answer(self, request: Request) -> Response:
        raw = request.scope["raw_path"].decode().partition("?")[0]
        pieces = [unquote(piece) for piece in raw.strip("/").split("/")]
        self.asked.append((request.method, raw))
        fault = next((f for f in self.faults if f.times and fnmatchcase(raw, f.pattern)), None)
        if fault is not None:
            fault.times -= 1
            await anyio.sleep(fault.delay)
            if fault.status is not None:
                wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return _refusal(fault.status, None, wait)
        cut = None if fault is None else fault.cut
        if pieces[0] == "cdn":
            return _file(request, self.large[pieces[1]], {}, cut)
        if pieces[0] == "api":
            return await self._api(request, pieces[1], pieces[2:])
        return self._resolve(request, pieces, cut)

    def _refused(self, request: Request, kind: str, name: str, content: bool) -> Response | None:
        """As the hub refuses: a private repository is hidden, a gated one shows all but content."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        how, token = self.readers.get(name, ("", ""))
        hidden = how == "private" and given != token
        if hidden or not (self.root / kind / name).is_dir():
            return _refusal(404 if given else 401, "RepoNotFound")
        if content and how == "gated" and given != token:
            return _refusal(403 if given else 401, "GatedRepo")
        return None

    def _revision(self, kind: str, name: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a branch or commit."""
        for folder in (self.root / kind / name).iterdir():
            if revision in (unquote(folder.name), _commit(folder)):
                return _commit(folder), folder
        return None

    async def _api(self, request: Request, kind: str, pieces: list[str]) -> Response:
        verbs = ("revision", "tree", "paths-info", "refs")
        at = next((i for i, piece in enumerate(pieces) if piece in verbs), len(pieces))
        name, verb, rest = "/".join(pieces[:at]), (pieces[at:] or [""])[0], pieces[at + 1 :]
        refused = self._refused(request, kind, name, content=False)
        if refused is not None:
            return refused
        if verb == "refs":
            return self._refs(kind, name)
        found = self._revision(kind, name, rest[0] if rest else "main")
        if found is None:
            return _refusal(404, "RevisionNotFound")
        commit, folder = found
        if verb == "tree":
            start = folder.joinpath(*rest[1:])
            if not start.is_dir():
                return _refusal(404, "EntryNotFound")
            deep = request.query_params.get("recursive", "").lower() in ("true", "1")
            paths = sorted(start.rglob("*") if deep else start.iterdir())
            return JSONResponse([_entry(folder, path) for path in paths])
        if verb == "paths-info":
            asked = [folder / str(p) for p in (await request.form()).getlist("paths")]
            return JSONResponse([_entry(folder, path) for path in asked if path.exists()])
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return JSONResponse({"id": name, "sha": commit, "siblings": siblings, "tags": []})

    def _refs(self, kind: str, name: str) -> Response:
        said: dict[str, list[dict[str, str]]] = {
            "branches": [], "converts": [], "tags": [], "pullRequests": []
        }  # fmt: skip
        for folder in sorted((self.root / kind / name).iterdir()):
            branch = unquote(folder.name)
            pull = branch.startswith("refs/pr/")
            ref = branch if pull else f"refs/heads/{branch}"
            said["pullRequests" if pull else "branches"].append(
                {"name": branch, "ref": ref, "targetCommit": _commit(folder)}
            )
        return JSONResponse(said)

    def _resolve(self, request: Request, pieces: list[str], cut: int | None) -> Response:
        kind, pieces = (pieces[0], pieces[1:]) if pieces[0] == "datasets" else ("models", pieces)
        at = pieces.index("resolve")
        name, revision, path = "/".join(pieces[:at]), pieces[at + 1], "/".join(pieces[at + 2 :])
        refused = self._refused(request, kind, name, content=True)
        if refused is not None:
            return refused
        found = self._revision(kind, name, revision)
        if found is None:
            return _refusal(404, "RevisionNotFound")
        headers, file = {"X-Repo-Commit": found[0]}, found[1] / path
        if not file.is_file():
            return _refusal(404, "EntryNotFound", headers)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        headers["ETag"] = f'"{digest}"'
        if not any(fnmatchcase(file.name, pattern) for pattern in LARGE):
            return _file(request, file, headers, cut)
        self.large[digest] = file
        # another host, as on the hub: clients follow it for content, not for metadata
        headers["Location"] = f"http://localhost:{request.url.port}/cdn/{digest}"
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(file.stat().st_size)}
        return Response(status_code=302, headers=headers)


def _refusal(status: int, code: str | None, headers: dict[str, str] | None = None) -> Response:
    said = {"X-Error-Message": "refused", **(headers or {})}
    return JSONResponse({}, status, said if code is None else said | {"X-Error-Code": code})


def _commit(folder: Path) -> str:
    """A name of 40 digits that changes with any file."""
    digest = hashlib.sha1(str(folder).encode())
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}


def _file(request: Request, file: Path, headers: dict[str, str], cut: int | None) -> Response:
    """A file's bytes, or those of a range, or its headers alone."""
    content, status = file.read_bytes(), 200
    if request.headers.get("Range", "").startswith("bytes="):
        start, _, end = request.headers["Range"].removeprefix("bytes=").partition("-")
        last = min(int(end or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        content, status = content[int(start) : last + 1], 206
    headers = {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}

    async def body() -> Any:
        yield content[:cut]
        if cut is not None:
            raise ConnectionResetError

    return StreamingResponse(
        body() if request.method == "GET" else iter(()), status, headers, "text/plain"
    )


# ---------------------------------------------------------------------- the client


class Client:
    """A process of its own with the real clients, because they read their settings when imported.

    It is one for all cases, because it imports for seconds.
    """

    def __init__(self, endpoint: str, home: Path) -> None:
        self.home = home
        mine = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home,
            env={**mine, "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "COLUMNS": "200",
                 "PALIMPSEST_HOME": str(home / "own"), "HF_HUB_DISABLE_TELEMETRY": "1"},
        )  # fmt: skip

    def ask(self, call: str, *args: Any, token: str = "", **settings: Any) -> dict[str, Any]:
        """Run one call; returns what it says, raised or found.

        `settings` are constants of `huggingface_hub` for this call, such as ``HF_HUB_OFFLINE``.
        """
        case = {"call": call, "args": args, "token": token, "settings": settings}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def main() -> None:
    """Run the cases that come in, one a line; waiting is written down instead of done."""
    import datasets
    from huggingface_hub import constants
    from typer.testing import CliRunner

    from workbench.cli import app
    from workbench.errors import InputError
    from workbench.lab.corpus import text_corpus
    from workbench.models.checkpoint import Checkpoint, tokenizer_folder
    from workbench.transcript import Transcript

    def read(source: str, options: dict[str, Any]) -> Any:
        return int(Transcript.read(source, **options).n)

    def corpus(source: str, options: dict[str, Any]) -> Any:
        return text_corpus(source, vocab_size=300, example_tokens=4, **options).report["texts"]

    def cli(*args: str) -> Any:
        done = CliRunner().invoke(app, args)
        if isinstance(done.exception, Exception):
            raise done.exception
        return [done.exit_code, done.output]

    calls: dict[str, Any] = {
        "model": lambda *args: Checkpoint.find(*args).revision,
        "tokenizer": lambda name: str(tokenizer_folder(name)),
        "read": read,
        "corpus": corpus,
        "cli": cli,
    }
    slept: list[float] = []
    time.sleep = slept.append
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        case = json.loads(line)
        os.environ["HF_TOKEN"] = case["token"]
        before = {name: getattr(constants, name) for name in case["settings"]}
        for name, value in case["settings"].items():
            setattr(constants, name, value)
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
        slept.clear()
        answer: dict[str, Any]
        try:
            answer = {"found": calls[case["call"]](*case["args"])}
        except InputError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"fault": repr(error)}
        for name, value in before.items():
            setattr(constants, name, value)
        print(json.dumps({**answer, "slept": slept}), file=out, flush=True)


if __name__ == "__main__":
    main()
