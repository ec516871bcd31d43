"""A family of query tests, closed before the first of them runs: suspects × transcripts.

Holm's correction bounds the chance of any false alarm in the family. It is valid because the
family cannot grow: whoever wants one more test opens another family, or keeps a ledger.
"""

import html
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workbench.errors import InputError
from workbench.evidence import Correction, Evidence, Gate
from workbench.home import atomic_write, content_key
from workbench.independence.cases import QueryCase
from workbench.independence.corrections import Exploration, Rate, explore, holm, holm_log10
from workbench.verdicts import decisive_floor, decisive_pvalue, with_correction

__all__ = ["Family", "family_test"]

FORMAT = "palimpsest family 1"
LARGEST_FILE = 2**24
Name = str | tuple[str, str]


@dataclass(frozen=True, repr=False)
class Family:
    """The outcome of a family that was closed in advance.

    Attributes
    ----------
    name : str
    evidence : dict
        By the names of the tests, each with its `correction`; verdicts rest on it.
    key : str
        SHA-256 of the tests' settings and names.
    alpha : float
        Level of the whole family: the chance of any false alarm.
    """

    name: str
    evidence: dict[Name, Evidence]
    key: str
    alpha: float

    @property
    def corrected(self) -> dict[Name, float]:
        """Corrected exact p-values."""
        return {
            name: found.correction.pvalue
            for name, found in self.evidence.items()
            if found.correction is not None
        }

    def add(self, name: Name, case: object = None) -> NoReturn:
        """Refuse: a family is closed.

        Raises
        ------
        InputError
            Always. Holm's correction computed anew as tests arrive gives 17 % false alarms within
            20 tests at 5 %.
        """
        del case
        raise InputError(
            f"the family {self.name!r} is closed, so {_title(name)} cannot be added: correct it as "
            "a test of an open ledger, or close another family of fresh tests"
        )

    def explore(self, method: Rate = "benjamini-yekutieli") -> Exploration:
        """False discovery rates of the raw p-values: exploratory only (`explore`)."""
        return explore({_title(n): found.pvalue for n, found in self.evidence.items()}, method)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Test, raw p, corrected p, verdict."""
        return [
            (_title(name), f"{found.pvalue:.4g}", f"{self.corrected[name]:.4g}", found.verdict)
            for name, found in self.evidence.items()
        ]

    def summary(self) -> str:
        """Plain text, one line per test."""
        rows = [("test", "raw p", "corrected", "verdict"), *self.rows()]
        width = max(len(row[0]) for row in rows)
        head = f"family {self.name!r}: {len(self.evidence)} tests, Holm, alpha {self.alpha:g}"
        return "\n".join([head, *(f"{a:<{width}} {b:>10} {c:>10}  {d}" for a, b, c, d in rows)])

    def __str__(self) -> str:
        return self.summary()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(line(row, "td") for row in self.rows())
        caption = html.escape(
            f"Family {self.name}: {len(self.evidence)} tests, Holm, alpha {self.alpha:g}"
        )
        head = line(("test", "raw p", "corrected p", "verdict"), "th")
        return (
            f"<table><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"
        )


def family_test(
    name: str,
    cases: Mapping[Name, QueryCase | Evidence],
    *,
    closed: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> Family:
    """Test a family of hypotheses, closed before its first test runs; Holm over all.

    Parameters
    ----------
    name : str
        Of the family, shown in every piece of its evidence.
    cases : mapping
        Tests by name, or by (suspect, transcript). Evidence at hand may stand for a test; that
        the family was fixed before it was seen then rests on the caller's word, and is said.
    closed : str or Path, optional
        File that fixes the family. Where it does not exist it is written before the first test
        runs; where it does, the tests must be exactly those that it names. Unless it was there
        before, that the family was fixed rests on the caller's word, and is said.
    progress : callable, optional
        Called with 1 after each test.

    Returns
    -------
    Family

    Raises
    ------
    InputError
        No tests; one test under two names; several levels; a family other than the one closed in
        the file; evidence that is corrected already.

    Examples
    --------
    >>> import numpy as np
    >>> from workbench import Scores, Transcript
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(800)
    >>> t = Transcript.from_arrays(order, shuffle="owner")
    >>> suspects = {"derivative": order / 800, "stranger": np.zeros(800)}
    >>> found = family_test("two suspects", {
    ...     name: QueryCase(t, Scores.from_arrays(loglik=memory + rng.normal(size=800), name=name),
    ...                     settings={"n_resamples": 1999})
    ...     for name, memory in suspects.items()
    ... })
    >>> found.corrected["derivative"] < 1e-15, found.evidence["derivative"].verdict
    (True, 'evidence')
    """
    keys = _keys(name, cases)
    content = {
        "format": FORMAT,
        "name": name,
        "tests": {_title(label): key for label, key in keys.items()},
    }
    fixed = closed is not None and Path(closed).exists()
    if closed is not None:
        _close(Path(closed), content)
    results: dict[Name, Evidence] = {}
    for label, case in cases.items():
        results[label] = case if isinstance(case, Evidence) else case.run()
        if progress is not None:
            progress(1)
    pvalues = holm([decisive_pvalue(found) for found in results.values()])
    logs = [found.log10_pvalue for found in results.values()]
    known = [value for value in logs if value is not None]
    log10s = holm_log10(known) if len(known) == len(logs) else [None] * len(logs)
    key = content_key(content)
    gate = Gate(
        5,
        "many tests",
        "verified",
        f"one of the {len(results)} tests of the family {name!r}, which a file fixed before this "
        f"run ({key[:12]})",
    )
    told: tuple[str, ...] = ()
    if not fixed or any(isinstance(case, Evidence) for case in cases.values()):
        told = (
            f"That the family {name!r} was closed before any of its tests was seen rests on the "
            "caller's word.",
        )
        gate = Gate(5, "many tests", "declared", told[0])
    corrected = {
        label: with_correction(
            found,
            Correction(
                "holm",
                float(p),
                None if log10 is None else float(log10),
                _floor(found, results.values()),
                number,
                len(results),
                name,
                key,
            ),
            gate,
            told,
        )
        for number, ((label, found), p, log10) in enumerate(
            zip(results.items(), pvalues, log10s, strict=True), 1
        )
    }
    return Family(name, corrected, key, next(iter(corrected.values())).alpha)


def _floor(evidence: Evidence, family: Collection[Evidence]) -> float:
    """Smallest corrected p-value that a test could have got beside the others' results."""
    floor = decisive_floor(evidence)
    below = sum(decisive_pvalue(found) < floor for found in family)
    return (len(family) - below) * floor


def _title(name: object) -> str:
    return " × ".join(name) if isinstance(name, tuple) else str(name)


def _keys(name: str, cases: Mapping[Name, QueryCase | Evidence]) -> dict[Name, str]:
    if not cases:
        raise InputError(f"the family {name!r} has no tests: name at least one")
    levels = {case.alpha for case in cases.values()}
    if len(levels) > 1:
        raise InputError(
            f"the tests of the family {name!r} have the levels "
            f"{', '.join(f'{level:g}' for level in sorted(levels))}: a family has one alpha"
        )
    keys: dict[Name, str] = {}
    for label, case in cases.items():
        if isinstance(case, Evidence) and case.correction is not None:
            raise InputError(
                f"{_title(label)} is corrected already ({case.correction.name}): give the evidence "
                "of the test itself"
            )
        key = case.key if isinstance(case, QueryCase) else _key_of(case)
        same = next((other for other, known in keys.items() if known == key), None)
        if same is not None:
            raise InputError(
                f"{_title(same)} and {_title(label)} are one and the same test: name it once"
            )
        keys[label] = key
    return keys


def _key_of(evidence: Evidence) -> str:
    """Key of evidence at hand, from what it carries."""
    content: dict[str, Any] = evidence.to_dict()
    kept = ("test", "contrast", "transcript", "suspect", "references", "alternative", "seed",
            "n_resamples", "details", "statistic", "null")  # fmt: skip
    return content_key({key: content[key] for key in kept})


def _close(path: Path, content: dict[str, Any]) -> None:
    """Write what the family is, or compare it with what was written."""
    if not path.exists():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        atomic_write(path, lambda p: p.write_text(text, encoding="utf-8"))
        return
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("too large")
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as a closed family ({type(error).__name__}): check the path, "
            "or restore it from a copy"
        ) from error
    tests = known.get("tests") if isinstance(known, dict) else None
    if not isinstance(tests, dict) or known.get("format") != FORMAT:
        raise InputError(f"{path} is no closed family of the form {FORMAT!r}: check the path")
    if known == content:
        return
    if known.get("name") != content["name"]:
        raise InputError(
            f"{path} closed the family {str(known.get('name'))[:80]!r}, not {content['name']!r}: "
            "give each family a file of its own"
        )
    mine = content["tests"]
    other = sorted(label for label in {*mine, *tests} if mine.get(label) != tests.get(label))
    raise InputError(
        f"{path} closed the family {content['name']!r} with {len(tests)} test(s), and "
        f"{str(other[0])[:80] if other else 'something'} is not as it was then: a closed family "
        "cannot be changed; keep an open ledger for further tests"
    )
