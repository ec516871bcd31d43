"""Fakes that the workers of a test's cluster import: cheap, and they write down what they did."""

import os
import time
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.scorers import Encoded
from workbench.scores import ScorerIdentity


class LoggingScorer:
    """Minus the token id over ten; each call leaves a line with its process and its rows."""

    def __init__(self, log, model="fake", seconds=0.0, fail=None, company=1):
        self.log = log
        self.model = model
        self.seconds = seconds
        self.fail = fail
        self.company = company

    def identity(self):
        # With fail="version" every process has libraries of its own.
        version = str(os.getpid()) if self.fail == "version" else "1"
        return ScorerIdentity(
            "fake", self.model, weights_sha256="0" * 64, library_versions={"fake": version}
        )

    def encode(self, transcript):
        rows = transcript.tokens()
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return Encoded(np.concatenate(rows), offsets, np.ones(len(rows), dtype=np.int64))

    def score(self, encoded, rows):
        names = [int(encoded.row(int(r))[0]) for r in rows]
        self._note("begin", names)
        while len({pid for pid, _ in lines(self.log, "begin")}) < self.company:
            time.sleep(0.02)  # until all the others are at work too
        time.sleep(self.seconds)
        if self.fail == "input":
            raise InputError("row 3 of t.parquet is bad: take it out")
        if self.fail == "bug":
            raise KeyError("a bug")
        if self.fail == "die":
            os.kill(os.getpid(), 9)
        self._note("done", names)
        return [(-encoded.row(int(r))[1:] / 10).astype(np.float32) for r in rows]

    def _note(self, what, names):
        with open(self.log, "a") as log:
            log.write(f"{what} {os.getpid()} {','.join(map(str, names))}\n")


class Forgetful(LoggingScorer):
    """Keeps no argument of its constructor."""

    def __init__(self, path):
        super().__init__(path)


def lines(log, what="done"):
    """Process and rows of each call."""
    found = [line.split() for line in Path(log).read_text().splitlines()]
    return [(int(pid), rows.split(",")) for kind, pid, rows in found if kind == what]


def square(number):
    return number * number


def kill_first_time(number, folder):
    """A process that squares numbers, but dies over the third one when it first sees it."""
    path = Path(folder) / str(number)
    first = not path.exists()
    path.touch()
    if number == 3 and first:
        os.kill(os.getpid(), 9)
    return number * number


def refuse(number):
    raise InputError(f"number {number} is bad: give another")
