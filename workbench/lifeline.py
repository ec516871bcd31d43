"""A child process that ends with its parent, however the parent ends.

The parent holds one end of a pipe. The system closes it when the parent is gone, killed or not, and
the child, whose standard input is the other end, then ends with its whole group. (Linux can send a
signal instead, but does so when the *thread* that started the child ends.) Kernels of Jupyter are
in groups of their own and look after their parent themselves.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from typing import Any

__all__ = ["start"]


def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Run a module in a process of its own, which ends when its standard input closes.

    Parameters
    ----------
    module : str
        As after ``python -m``.
    *arguments : str
    **options
        Of `subprocess.Popen`.

    Examples
    --------
    >>> with start("this", stdout=subprocess.PIPE) as process:
    ...     print(process.stdout.readline().decode().strip())
    The Zen of Python, by Tim Peters
    """
    command = [sys.executable, "-m", "workbench.lifeline", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
