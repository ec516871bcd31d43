"""The open ledger of a transcript: every test of its order counts, also those not yet thought of.

A file of JSON lines that is only ever appended to. A test is entered before it is run, and keeps
its number k and the factor π²k²/6 for good. Each line carries the hash of the line before, so that
lines changed, removed or put in between are found; that lines are missing at the end, or that a
second ledger was kept, no file can show.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from workbench.errors import InputError
from workbench.evidence import Correction, Evidence, Gate
from workbench.home import content_key
from workbench.independence.cases import PairCase, QueryCase
from workbench.independence.corrections import open_ledger_factor
from workbench.transcript import Transcript
from workbench.verdicts import decisive_floor, decisive_pvalue, with_correction

__all__ = ["Ledger", "LedgerEntry", "as_entered"]

LARGEST_FILE, LONGEST_LINE = 2**26, 2**18
FIRST = "0" * 64
LOCK_SECONDS = 60.0
# What the factor π²k²/6 rests on, and no file can show.
CHOSEN_BLIND = (
    "The chance of any false alarm in a ledger is at most alpha if each test was chosen without a "
    "look at scores against positions, the results of earlier entries included; a statistic, "
    "window or subset shaped by them is as many tests as it could have become."
)

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Text = Annotated[str, Field(max_length=40)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    number: Annotated[int, Field(ge=1, le=10**6)]
    when: _Text
    previous: _Hash


class _Registered(_Line):
    event: Literal["registered"]
    transcript: _Hash
    key: _Hash
    settings: dict[str, JsonValue]


class _Result(_Line):
    event: Literal["result"]
    pvalue: Annotated[float, Field(gt=0, le=1)]
    corrected: Annotated[float, Field(gt=0, le=1)]
    log10_pvalue: Annotated[float, Field(le=0)] | None


_LINE: TypeAdapter[_Registered | _Result] = TypeAdapter(
    Annotated[_Registered | _Result, Field(discriminator="event")]
)


@dataclass(frozen=True)
class LedgerEntry:
    """One test of a ledger.

    Attributes
    ----------
    number : int
        k: its p-value counts times π²k²/6.
    key : str
        SHA-256 of the test's settings.
    settings : dict
    when : str
        When it was entered, by this machine's clock (UTC).
    digest : str
        SHA-256 of its line.
    pvalue, corrected, log10_pvalue : float or None
        The p-value on which a verdict of the test alone would rest
        (`workbench.verdicts.decisive_pvalue`), corrected, and log10 of the asymptotic one.
        None as long as no result is entered; the test counts all the same.
    """

    number: int
    key: str
    settings: dict[str, Any]
    when: str
    digest: str
    pvalue: float | None = None
    corrected: float | None = None
    log10_pvalue: float | None = None


@dataclass(frozen=True)
class _Content:
    """A file's lines, checked."""

    transcript: str | None = None
    entries: tuple[LedgerEntry, ...] = ()
    head: str = FIRST
    whole_bytes: int = 0  # up to the end of the last whole line


class Ledger:
    """The ledger of one transcript, in a file; made with the first test.

    The k-th test gets min(1, p·π²k²/6), never revised: the chance of any false alarm among all
    tests that are ever entered is at most α if each was chosen without a look at scores against
    positions, the results of earlier entries included. Another seed, window, subset, statistic,
    reference or alternative is another test; exactly the same test again is not. A statistic,
    window or subset shaped by earlier results is as many tests as it could have become, and one
    entry does not cover it.

    Parameters
    ----------
    path : str or Path
        Appended to under a lock beside it (`path` with ``.lock`` added), by any number of
        processes. A line cut off by a crash was never answered for, and is dropped.
    transcript : Transcript, optional
        The whole transcript whose order is tested: needed to enter tests.

    Raises
    ------
    InputError
        The file is no ledger, was altered, or is another transcript's.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(500)
    >>> transcript = Transcript.from_arrays(order, shuffle="owner")
    >>> from workbench.scores import Scores
    >>> suspect = Scores.from_arrays(loglik=order / 500 + rng.normal(size=500))
    >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "ledger.jsonl", transcript)
    >>> case = QueryCase(transcript, suspect, settings={"n_resamples": 1999, "alpha": 0.01})
    >>> evidence = ledger.test(case)
    >>> evidence.correction.pvalue < 1e-9, evidence.verdict
    (True, 'evidence')
    """

    def __init__(self, path: str | Path, transcript: Transcript | None = None) -> None:
        self.path = Path(path)
        self._transcript = transcript
        self._check_transcript(self._read())

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All tests entered so far, read anew from the file."""
        return self._read().entries

    @property
    def transcript(self) -> str | None:
        """Fingerprint of the transcript; None for a ledger without tests."""
        return self._read().transcript

    @property
    def head(self) -> str:
        """SHA-256 of the last line: publish it, and the file up to here cannot be changed."""
        return self._read().head

    def test(self, case: QueryCase | PairCase) -> Evidence:
        """Enter a test, run it, and correct it for its number.

        Raises
        ------
        InputError
            Examples of another transcript; a result other than the one entered before; a damaged
            file; bad input of the test itself (it keeps its number).
        """
        self._check_part(case.transcript)
        return self.run(case.described, case.run)

    def run(self, settings: Mapping[str, Any], test: Callable[[], Evidence]) -> Evidence:
        """Enter a test of any kind before it is run, run it, and correct it for its number.

        Parameters
        ----------
        settings : mapping
            JSON-ready: all that can change the p-value; equal settings are the same test.
        test : callable
            Returns the evidence, uncorrected.

        Raises
        ------
        InputError
            As for `test`.
        """
        number = self.register(settings)
        return self._record(number, test())

    def register(self, settings: Mapping[str, Any]) -> int:
        """Number of a test that is about to be run: the next, or its own if it was entered before.

        Raises
        ------
        InputError
            The ledger was opened without its transcript; a damaged file; no writing.
        """
        if self._transcript is None:
            raise InputError(
                f"{self.path} was opened to be read: open the ledger with its transcript to enter "
                "tests"
            )
        try:
            content: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the settings of this test are not JSON ({error}): give numbers, strings and lists"
            ) from error
        key = content_key(content)
        with self._locked():
            found = self._read()
            self._check_transcript(found)
            for entry in found.entries:
                if entry.key == key:
                    return entry.number
            number = len(found.entries) + 1
            self._append(
                found,
                _Registered(
                    event="registered",
                    number=number,
                    when=_now(),
                    previous=found.head,
                    transcript=self._transcript.fingerprint,
                    key=key,
                    settings=content,
                ),
            )
        return number

    def _record(self, number: int, evidence: Evidence) -> Evidence:
        pvalue = decisive_pvalue(evidence)
        with self._locked():
            found = self._read()
            entry = found.entries[number - 1]
            if entry.pvalue is None:
                self._append(
                    found,
                    _Result(
                        event="result",
                        number=number,
                        when=_now(),
                        previous=found.head,
                        pvalue=pvalue,
                        corrected=min(1.0, pvalue * open_ledger_factor(number)),
                        log10_pvalue=evidence.log10_pvalue,
                    ),
                )
            elif not np.isclose(entry.pvalue, pvalue, rtol=1e-9, atol=0):
                raise InputError(
                    f"{self.path}: test {number} was entered with p = {entry.pvalue:.6g} and now "
                    f"gives {pvalue:.6g}: entries are never revised; find out what "
                    "changed (versions of the software?), and report the entered result"
                )
        tests = max(number, len(found.entries))
        return as_entered(evidence, number, tests, self.path.name, entry.digest)

    # ------------------------------------------------------------------ checks

    def _check_transcript(self, found: _Content) -> None:
        whole = self._transcript
        if whole is not None and found.transcript not in (None, whole.fingerprint):
            raise InputError(
                f"{self.path} is the ledger of another transcript ({str(found.transcript)[:12]}), "
                f"and {whole.source} is {whole.fingerprint[:12]}: name this transcript's own ledger"
            )

    def _check_part(self, part: Transcript) -> None:
        """The examples tested are of this ledger's transcript, at the same positions."""
        whole = self._transcript
        if whole is None or part is whole:
            return
        by_row = np.argsort(whole.rows, kind="stable")
        place = np.searchsorted(whole.rows, part.rows, sorter=by_row)
        place = by_row[np.minimum(place, whole.n - 1)]
        same = (
            np.array_equal(whole.rows[place], part.rows)
            and np.array_equal(whole.positions[place], part.positions)
            and np.array_equal(whole.strata[place], part.strata)
        )
        if same and part._data is not whole._data:
            mine, theirs = whole.row_digests, part.row_digests
            same = (mine is None) == (theirs is None) and (
                mine is None or theirs is None or np.array_equal(mine[place], theirs)
            )
        if not same:
            raise InputError(
                f"the examples of this test are not rows of {whole.source}, whose ledger "
                f"{self.path} is: draw them from it with subsample or take"
            )

    # ------------------------------------------------------------------ the file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else reads or appends; the system frees the lock of a process that is killed."""
        lock = FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{self.path} is being written by another process for {LOCK_SECONDS:.0f} seconds: "
                "wait for it, then run the test again"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write {self.path} ({error.strerror or error}): choose a path in a folder "
            "that you can write to"
        )

    def _append(self, found: _Content, line: _Registered | _Result) -> None:
        data = line.model_dump_json().encode() + b"\n"
        if len(data) > LONGEST_LINE:
            raise InputError(
                f"{self.path}: the settings of this test take {len(data):,} bytes, more than a "
                f"line may have ({LONGEST_LINE:,}): give fewer references or a smaller table"
            )
        try:
            with self.path.open("ab") as file:
                # what a crash left of a line; nobody was told of it
                file.truncate(found.whole_bytes)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self) -> _Content:
        if not self.path.exists():
            return _Content()
        if not self.path.is_file():
            raise InputError(f"{self.path} is no file: name the file of a ledger")
        try:
            with self.path.open("rb") as file:
                data = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror or error}): check the path"
            ) from error
        if len(data) > LARGEST_FILE:
            raise InputError(
                f"{self.path} has more than {LARGEST_FILE:,} bytes, too many for a ledger: check "
                "the path"
            )
        *lines, _ = data.split(b"\n")
        transcript: str | None = None
        entries: list[LedgerEntry] = []
        head = FIRST
        for place, text in enumerate(lines, 1):
            line = self._parse(text, place)
            if line.previous != head:
                raise self._altered(place, "does not follow from the line before it")
            head = hashlib.sha256(text).hexdigest()
            if isinstance(line, _Registered):
                if line.number != len(entries) + 1:
                    raise self._altered(place, f"has number {line.number} out of turn")
                if line.transcript != (transcript or line.transcript):
                    raise self._altered(place, "is of another transcript")
                if line.key != content_key(line.settings):
                    raise self._altered(place, "has a key that is not its settings'")
                if any(entry.key == line.key for entry in entries):
                    raise self._altered(place, "repeats a test")
                transcript = line.transcript
                entries.append(
                    LedgerEntry(line.number, line.key, dict(line.settings), line.when, head)
                )
                continue
            if line.number > len(entries) or entries[line.number - 1].pvalue is not None:
                raise self._altered(place, "is a result that no open test waits for")
            expected = min(1.0, line.pvalue * open_ledger_factor(line.number))
            if not np.isclose(line.corrected, expected, rtol=1e-9, atol=0):
                raise self._altered(place, "has a corrected p-value that its number does not give")
            entry = entries[line.number - 1]
            entries[line.number - 1] = LedgerEntry(
                entry.number, entry.key, entry.settings, entry.when, entry.digest,
                line.pvalue, line.corrected, line.log10_pvalue,
            )  # fmt: skip
        return _Content(transcript, tuple(entries), head, sum(len(text) + 1 for text in lines))

    def _parse(self, text: bytes, place: int) -> _Registered | _Result:
        if len(text) > LONGEST_LINE:
            raise self._altered(place, f"has {len(text):,} bytes")
        try:
            return _LINE.validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in fault["loc"][1:])
            what = f"{where + ': ' if where else ''}{fault['msg']}"[:120]
            raise self._altered(place, f"is no entry ({_printable(what)})") from error

    def _altered(self, place: int, what: str) -> InputError:
        return InputError(
            f"{self.path}: line {place} {what}: a ledger is only ever appended to, so this file "
            "was altered or is none; restore it from a copy"
        )

    # ------------------------------------------------------------------ forms

    def summary(self) -> str:
        """Plain text, one line per test."""
        found = self._read()
        if not found.entries:
            return f"{self.path}: no tests are entered"
        lines = [
            f"ledger of transcript {str(found.transcript)[:12]}, {len(found.entries)} test(s), "
            f"head {found.head[:12]}",
            f"{'k':>4} {'factor':>9} {'raw p':>10} {'corrected':>10}  test",
        ]
        for entry in found.entries:
            raw, corrected = (
                "open" if value is None else f"{value:.4g}"
                for value in (entry.pvalue, entry.corrected)
            )
            lines.append(
                f"{entry.number:>4} {open_ledger_factor(entry.number):>9.2f} {raw:>10} "
                f"{corrected:>10}  {_printable(_words(entry.settings))}"
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()

    __repr__ = __str__


def _words(settings: Mapping[str, Any]) -> str:
    """What was tested, in a line."""
    suspect = settings.get("suspect")
    label = suspect.get("label") if isinstance(suspect, Mapping) else suspect
    shown = [str(label)] if label is not None else []
    references = settings.get("references")
    if isinstance(references, list) and references:
        names = [str(r.get("label")) if isinstance(r, Mapping) else str(r) for r in references]
        shown.append(f"minus {', '.join(names)}")
    design = settings.get("design")
    if isinstance(design, Mapping):
        shown.append(f"design={design.get('design')}")
    for name in ("statistic", "alternative", "n", "n_resamples", "seed"):
        if name in settings:
            shown.append(f"{name}={settings[name]}")
    if "commitment" in settings:
        shown.append(f"committed {str(settings['commitment'])[:12]}")
    return " · ".join(shown) or content_key(settings)[:12]


def _printable(text: str) -> str:
    """Without what could move a terminal's cursor; not too long for a line."""
    return "".join(c if c.isprintable() else "�" for c in text)[:200]


def as_entered(evidence: Evidence, number: int, tests: int, name: str, digest: str) -> Evidence:
    """The evidence as the k-th test of an open ledger.

    Parameters
    ----------
    evidence : Evidence
        Uncorrected.
    number, tests : int
        k, and how many were entered by then.
    name : str
        Of the ledger's file.
    digest : str
        SHA-256 of the entry's line.

    Raises
    ------
    InputError
        A number below 1; evidence that is corrected already.
    """
    factor, log10 = open_ledger_factor(number), evidence.log10_pvalue
    return with_correction(
        evidence,
        Correction(
            "open ledger",
            min(1.0, decisive_pvalue(evidence) * factor),
            None if log10 is None else min(0.0, log10 + float(np.log10(factor))),
            decisive_floor(evidence) * factor,
            number,
            tests,
            name,
            digest,
        ),
        Gate(
            5,
            "many tests",
            "declared",
            f"Entered as test {number} before it was run, in a ledger that is only appended to "
            f"(entry {digest[:12]}). {CHOSEN_BLIND}",
        ),
        [
            CHOSEN_BLIND,
            "That this transcript has no other ledger, and that no test of its order was made "
            "outside it, rests on the owner's word.",
        ],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
