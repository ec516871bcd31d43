"""Servers that a browser test opens a page of: started, waited for, and ended with the test."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PATIENCE = 240_000
"""Milliseconds that one step may take on a busy machine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(
    arguments: Sequence[str], environment: Mapping[str, str], address: str, log: Path
) -> Iterator[None]:
    """Run a server until the block ends; inside, it has answered at the address."""
    with log.open("w") as stream:
        server = subprocess.Popen(
            arguments,
            env=dict(environment),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while not _answers(address):
            said = log.read_text()[-2000:]
            assert server.poll() is None, f"the server stopped:\n{said}"
            assert time.monotonic() < deadline, f"the server did not answer:\n{said}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=0.2)
        yield
    finally:
        server.terminate()  # Jupyter's servers then take their kernels down too
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True
