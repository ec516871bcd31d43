"""The server of llama-cpp-python as a process of its own, stopped whatever happens."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

NAME = "bob"
SECONDS_TO_START = 60
# Half precision in the attention's memory is llama.cpp's default; these are the numbers of ggml's
# type for 32-bit floats.
FULL_PRECISION = {"type_k": 0, "type_v": 0}


@contextlib.contextmanager
def llama_server(model: Path, log: Path, **settings: object) -> Iterator[str]:
    """The address of a server with this GGUF file, while it runs.

    Parameters
    ----------
    model : Path
    log : Path
        What the server prints.
    **settings
        As its command line has them, on top of one thread, a short context and log-probabilities.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "model": model,
        "model_alias": NAME,
        "host": "127.0.0.1",
        "port": port,
        # it works out the probabilities of the whole context for each request
        "n_ctx": 256,
        "n_threads": 1,
        "n_threads_batch": 1,
        "logits_all": "true",
        "verbose": "false",
        **settings,
    }
    command = [sys.executable, "-m", "llama_cpp.server"]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await(f"http://127.0.0.1:{port}/v1/models", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _await(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == 200:
                return
        said = log.read_text(errors="replace")[-2000:]
        assert process.poll() is None, f"the server stopped:\n{said}"
        assert time.monotonic() < deadline, f"the server did not answer:\n{said}"
        time.sleep(0.2)
