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

    def __init__(self, log, model="fake", seconds=0.0, fail=None, differ=False):
        self.log = log
        self.model = model
        self.seconds = seconds
        self.fail = fail
        self.differ = differ
        self.made_by = os.getpid()

    def identity(self):
        other = self.differ and "CLUSTER_TEST_DRIVER" not in os.environ
        return ScorerIdentity(
            "fake", self.model, weights_sha256="0" * 64, library_versions={"fake": str(1 + other)}
        )

    def encode(self, transcript):
        rows = transcript.tokens()
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        return Encoded(np.concatenate(rows), offsets, np.ones(len(rows), dtype=np.int64))

    def score(self, encoded, rows):
        names = [int(encoded.row(int(r))[0]) for r in rows]
        self._note("begin", names)
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


def square(number, log=None, seconds=0.0):
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{number} {os.getpid()}\n")
    time.sleep(seconds)
    return number * number


def refuse(number):
    raise InputError(f"number {number} is bad: give another")
