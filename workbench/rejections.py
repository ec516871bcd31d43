"""How often does every test reject where there is nothing to find? One table of all of them.

Rows are ways of testing: each query statistic under each simulated null and under fresh orders of
fixed models, the observational tests, each design with its exact and its certified p, and the
sequential test. Counts alone are kept, so that a table of many thousand experiments is a small
file; it goes on where it stopped. Does not know what a fault is: `workbench.calibration` breaks the
tests on purpose.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from workbench import calibration
from workbench.errors import InputError
from workbench.home import atomic_write, home
from workbench.independence import design_queries, query_contrast
from workbench.independence.comparisons import ComparedWindows
from workbench.independence.design import DESIGNS
from workbench.null import permutation_null, rejection_limit, sign_flip_null
from workbench.scores import ScorerIdentity, Scores
from workbench.sequential import sequential_test
from workbench.statistics import STATISTICS, RankDesign, certified_log10, find_statistic
from workbench.transcript import Transcript

__all__ = [
    "LEVELS",
    "RejectionRow",
    "fixed_model_rejections",
    "read_rejections",
    "rejection_limit",
    "rejection_table",
    "write_rejections",
]

Floats = NDArray[np.float64]
Generator = np.random.Generator

LEVELS = (0.05, 0.01, 0.001)
BINS = 20
# Draws of one piece of work: what a kill can lose.
PIECE = 250
FORMAT = "palimpsest rejections 1"


@dataclass(frozen=True)
class RejectionRow:
    """One way of testing under one null.

    Attributes
    ----------
    test : str
        Statistic or design.
    null : str
        What was drawn.
    kind : {"uniform", "bound"}
        Whether p should be uniform (randomised at ties), or is only promised not to be too small
        (certified p, anytime p).
    draws : int
        Experiments, or fresh orders.
    rejections : tuple of int
        p at most each of `LEVELS`.
    bins : tuple of int
        Twenty equal parts of [0, 1].
    """

    test: str
    null: str
    kind: str
    draws: int
    rejections: tuple[int, ...]
    bins: tuple[int, ...]

    def __add__(self, other: "RejectionRow") -> "RejectionRow":
        if (self.test, self.null, self.kind) != (other.test, other.null, other.kind):
            raise InputError(
                f"rows of {self.test} under {self.null} and of {other.test} under {other.null} "
                "cannot be added: add draws of one test and one null"
            )
        return RejectionRow(
            self.test,
            self.null,
            self.kind,
            self.draws + other.draws,
            tuple(np.add(self.rejections, other.rejections).tolist()),
            tuple(np.add(self.bins, other.bins).tolist()),
        )


def _row(
    test: str, null: str, pvalues: Sequence[float] | Floats, bound: bool = False
) -> RejectionRow:
    p = np.asarray(pvalues, dtype=np.float64)
    return RejectionRow(
        test,
        null,
        "bound" if bound else "uniform",
        len(p),
        tuple(int((p <= level).sum()) for level in LEVELS),
        tuple(np.histogram(np.clip(p, 0.0, 1.0), BINS, (0.0, 1.0))[0].tolist()),
    )


# ---------------------------------------------------------------------- pieces of work


def _simulated(null: str, draws: int, seed: int) -> list[RejectionRow]:
    return [_row(null, "whole experiments", calibration.null_pvalues(null, draws, seed))]


def _statistics(null: str, draws: int, seed: int) -> list[RejectionRow]:
    found = calibration.statistic_pvalues(null, draws, seed)
    return [_row(name, null, p) for name, p in found.items()]


def _boosted(null: str, draws: int, seed: int) -> list[RejectionRow]:
    names = [name for name in STATISTICS if "boosted" in name]
    found = calibration.statistic_pvalues(null, draws, seed, names)
    return [_row(name, null, p) for name, p in found.items()]


def _scored(rng: Generator) -> tuple[Transcript, Scores, list[Scores]]:
    """Units of one to four examples in a fresh order; harder where longer; half of them rounded."""
    size = rng.integers(1, 5, 220)
    unit = np.repeat(np.arange(220), size)
    n = len(unit)
    easy = rng.standard_t(2, 220)[unit] - size[unit]
    values = [easy + rng.standard_cauchy(n) for _ in range(2)]
    if rng.random() < 0.5:
        values = [np.round(v) for v in values]  # ties, and differences of zero
    start = np.concatenate([[0], np.cumsum(size)])[unit]
    within = np.arange(n) - start
    # A unit's place among the units decides where all of its rows were seen.
    seen = np.argsort(rng.permutation(220))
    first = np.zeros(220, dtype=np.int64)
    first[seen] = np.concatenate([[0], np.cumsum(size[seen])[:-1]])
    tokens = rng.integers(0, 800, (n, 5))
    transcript = Transcript.from_arrays(first[unit] + within, tokens=tokens, units=unit)
    scores = [
        Scores.from_arrays(loglik=v, identity=ScorerIdentity("simulated", f"m{k}"))
        for k, v in enumerate(values)
    ]
    return transcript, scores[0], scores[1:]


def _designs(null: str, draws: int, seed: int) -> list[RejectionRow]:
    """Every design with and without a filter on the reference, on the same experiments."""
    seeds = np.random.SeedSequence([seed, *null.encode()]).spawn(draws)
    chosen = [(name, kept) for name in DESIGNS for kept in (None, "hardest-50")]
    exact: dict[str, list[float]] = {}
    bound: dict[str, list[float]] = {}
    for stream in seeds:
        rng = np.random.default_rng(stream)
        transcript, suspect, references = _scored(rng)
        contrast = query_contrast(suspect, references)
        for name, kept in chosen:
            label = name if kept is None else f"{name}, {kept}"
            number = int(rng.integers(2**31))
            design = design_queries(
                transcript,
                80,
                name,
                filter=kept,
                references=references if kept else (),
                seed=number,
            )
            if DESIGNS[name] is None:
                null_of = permutation_null(
                    design.examples.design, [contrast[design.rows]], 99, number, threads=1
                )[0]
                exact.setdefault(label, []).append(null_of.pvalue_randomised(rng))
                continue
            differences = design.differences(contrast[design.rows])
            bound.setdefault(f"{label}: certified", []).append(10 ** certified_log10(differences))
            if differences.any():
                null_of = sign_flip_null([differences], 99, number, threads=1)[0]
                exact.setdefault(f"{label}: exact", []).append(null_of.pvalue_randomised(rng))
        watched = design_queries(transcript, 80, "late-vs-early", seed=number)
        steps = sequential_test(transcript, suspect, references, watched, seed=0, batch=8)
        smallest = min(step.pvalue for step in steps)
        bound.setdefault("sequential, stopped at its best moment", []).append(smallest)
    return [_row(name, null, p) for name, p in exact.items()] + [
        _row(name, null, p, bound=True) for name, p in bound.items()
    ]


def _windows(null: str, draws: int, seed: int) -> list[RejectionRow]:
    """Designs whose windows are compared, with and without a filter, on the same experiments."""
    chosen = [(n, kept) for n, w in DESIGNS.items() if w for kept in (None, "hardest-50")]
    exact: dict[str, list[float]] = {}
    bound: dict[str, list[float]] = {}
    for stream in np.random.SeedSequence([seed, *null.encode()]).spawn(draws):
        rng = np.random.default_rng(stream)
        transcript, suspect, references = _scored(rng)
        contrast = query_contrast(suspect, references)
        for name, kept in chosen:
            number = int(rng.integers(2**31))
            design = design_queries(
                transcript,
                80,
                name,
                filter=kept,
                references=references if kept else (),
                seed=number,
                compare="windows",
            )
            label = f"{name if kept is None else f'{name}, {kept}'}, windows"
            compared = ComparedWindows.of(design, contrast[design.rows])
            certified = compared.certified("greater")["log10_pvalue"]
            bound.setdefault(f"{label}: certified", []).append(10**certified)
            if compared.varies:
                null_of = compared.nulls([compared], 99, np.random.SeedSequence(number))[0]
                exact.setdefault(f"{label}: exact", []).append(null_of.pvalue_randomised(rng))
    return [_row(name, null, p) for name, p in exact.items()] + [
        _row(name, null, p, bound=True) for name, p in bound.items()
    ]


_WORK: dict[str, Callable[[str, int, int], list[RejectionRow]]] = {
    "simulated": _simulated,
    "statistics": _statistics,
    "boosted": _boosted,
    "designs": _designs,
    "windows": _windows,
}
DESIGN_NULL = "units that move whole, heavy tails, ties"


def _piece(work: str, null: str, draws: int, seed: int) -> list[dict[str, Any]]:
    return [asdict(row) for row in _WORK[work](null, draws, seed)]


def _from_json(row: Mapping[str, Any]) -> RejectionRow:
    return RejectionRow(
        str(row["test"]),
        str(row["null"]),
        str(row["kind"]),
        int(row["draws"]),
        tuple(int(v) for v in row["rejections"]),
        tuple(int(v) for v in row["bins"]),
    )


def rejection_table(
    draws: int = 5000,
    seed: int = 0,
    *,
    boosted_draws: int | None = None,
    only: str | None = None,
    workers: int = 2,
    progress: bool = False,
) -> list[RejectionRow]:
    """Simulated nulls: every statistic, observational test and design.

    Pieces of 250 experiments are kept in the cache as they are done; the same call goes on there.

    Parameters
    ----------
    draws : int
        Independent experiments per null.
    seed : int
    boosted_draws : int, optional
        Experiments of the boosted residuals, whose fits take a second each; a fiftieth of `draws`.
    only : str, optional
        One kind of work: ``simulated``, ``statistics``, ``boosted``, ``designs`` or ``windows``.
    workers : int
        Processes.
    progress : bool

    Returns
    -------
    list of RejectionRow

    Raises
    ------
    InputError
        No draws; unknown kind of work.
    """
    if only is not None and only not in _WORK:
        raise InputError(f"{only!r} is no kind of work: choose one of {', '.join(_WORK)}")
    if draws < 1 or workers < 1:
        raise InputError(f"draws is {draws} and workers {workers}: give at least one of each")
    few = max(1, draws // 50) if boosted_draws is None else boosted_draws
    wanted = [("simulated", null, draws) for null in calibration.NULLS]
    wanted += [("statistics", null, draws) for null in calibration.STATISTIC_NULLS]
    wanted += [("boosted", null, few) for null in calibration.STATISTIC_NULLS]
    wanted += [("designs", DESIGN_NULL, draws), ("windows", DESIGN_NULL, draws)]
    pieces = [
        (work, null, min(PIECE, total - start), seed * 1_000_003 + start)
        for work, null, total in wanted
        if only in (None, work)
        for start in range(0, total, PIECE)
    ]
    folder = home() / "rejections" / FORMAT.split()[-1]
    paths = {
        piece: folder / f"{'-'.join(str(part).replace(' ', '_') for part in piece)}.json"
        for piece in pieces
    }
    todo = {piece: path for piece, path in paths.items() if not path.is_file()}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            running = {pool.submit(_piece, *piece): path for piece, path in todo.items()}
            bar = tqdm(total=len(todo), desc="calibration", unit="piece", disable=not progress)
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    content = json.dumps(future.result())
                    atomic_write(running.pop(future), _writer(content))
                    bar.update()
            bar.close()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows: dict[tuple[str, str], RejectionRow] = {}
    for path in paths.values():
        for given in json.loads(path.read_text(encoding="utf-8")):
            row = _from_json(given)
            key = (row.test, row.null)
            rows[key] = rows[key] + row if key in rows else row
    return list(rows.values())


def _writer(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def fixed_model_rejections(
    transcript: Transcript,
    suspects: Mapping[str, Scores],
    references: Sequence[Scores],
    orders: int = 5000,
    *,
    sample: int = 1000,
    seed: int = 0,
    statistics: Sequence[str] | None = None,
    progress: bool = False,
) -> list[RejectionRow]:
    """Fixed models under fresh orders: real scores, with all their ties and tails.

    Each fresh order is of a fresh random sample of the examples, with 99 permutations of its own.

    Parameters
    ----------
    transcript : Transcript
        Its positions are not used.
    suspects : mapping of str to Scores
    references : sequence of Scores
    orders : int
        Fresh orders per suspect; statistics of a suspect share them.
    sample : int
        Examples per order.
    seed : int
    statistics : sequence of str, optional
        All registered ones that keep no part for themselves, but for boosted fits.
    progress : bool

    Returns
    -------
    list of RejectionRow

    Raises
    ------
    InputError
        Fewer examples than the sample; unknown statistic.
    """
    if not 2 <= sample <= transcript.n:
        raise InputError(f"sample is {sample}, and there are {transcript.n} examples")
    if statistics is None:
        statistics = [n for n in STATISTICS if "boosted" not in n and not find_statistic(n).family]
    chosen = [find_statistic(name) for name in statistics]
    rows = []
    for name, suspect in suspects.items():
        # Fits see no position: one fit serves every order.
        values: dict[int, Floats] = {}
        for found in chosen:
            used = references[: found.most] if found.most else references
            if id(found.contrast) not in values:
                values[id(found.contrast)] = query_contrast(suspect, used, found.name, transcript)
        rng = np.random.default_rng(np.random.SeedSequence([seed, *name.encode()]))
        pvalues: dict[str, list[float]] = {found.name: [] for found in chosen}
        for number in tqdm(range(orders), desc=name, disable=not progress):
            picked = rng.choice(transcript.n, sample, replace=False)
            plain = RankDesign(rng.permutation(sample))
            for weights in {id(found.weights): found.weights for found in chosen}.values():
                group = [found for found in chosen if found.weights is weights]
                nulls = permutation_null(
                    plain.weighted(weights),
                    [values[id(found.contrast)][picked] for found in group],
                    99,
                    number,
                    threads=1,
                )
                for found, null in zip(group, nulls, strict=True):
                    pvalues[found.name].append(null.pvalue_randomised(rng))
        rows += [_row(test, f"fresh orders: {name}", p) for test, p in pvalues.items()]
    return rows


def write_rejections(
    path: str | Path, rows: Sequence[RejectionRow], provenance: Mapping[str, Any]
) -> Path:
    """Keep a table as JSON.

    Parameters
    ----------
    path : str or Path
    rows : sequence of RejectionRow
    provenance : mapping
        Command, seed, versions.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        The file cannot be written.
    """
    content = {
        "format": FORMAT,
        "levels": LEVELS,
        "provenance": dict(provenance),
        "rows": [asdict(row) for row in rows],
    }
    lines = json.dumps(content, indent=None, separators=(",", ":")).replace('{"test"', '\n{"test"')
    return atomic_write(path, _writer(lines + "\n"))


def read_rejections(path: str | Path) -> tuple[list[RejectionRow], dict[str, Any]]:
    """A table that `write_rejections` kept.

    Returns
    -------
    rows : list of RejectionRow
    provenance : dict

    Raises
    ------
    InputError
        No such file, or no table.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        return [_from_json(row) for row in content["rows"]], dict(content["provenance"])
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): name a table's file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no table of rejections of this version: make one with "
            "benchmarks/calibration.py"
        ) from error
