"""The noise floor: how far does a result move when the same examples are scored again?

A score depends a little on batch size, number type and engine. That is no memory and no error, but
evidence should say how much of its p-value hangs on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError
from workbench.evidence import Evidence
from workbench.independence.query import query_contrast
from workbench.independence.references import two_sided
from workbench.null import Alternative, is_approximable, log10_normal_tail
from workbench.scores import Scores
from workbench.statistics import find_statistic
from workbench.statistics.rank import RankDesign
from workbench.transcript import Transcript

__all__ = ["FOLLOWS_POSITION", "NoiseFloor", "RescoredNoise", "against_position", "noise_floor"]

Floats = NDArray[np.float64]

# Differences whose p against position is below this are said to follow it.
FOLLOWS_POSITION = 1e-3


@dataclass(frozen=True)
class RescoredNoise:
    """What one way of scoring the sample again changes.

    Attributes
    ----------
    name : str
        Of the setting, such as ``bfloat16, batch 8``.
    n : int
        Examples scored again.
    shift, sd, largest : float
        Of the differences, in the scores' units: their mean, their standard deviation about it,
        and the largest |difference|.
    z_low, z_high : float
        Middle 95 % of z when noise of this size is put on every example.
    log10_low, log10_high : float or None
        Smaller and larger log10 of the normal-tail p-values of `z_low` and `z_high`; None where
        that is not allowed.
    pvalue_position : float
        Exact two-sided p of the differences against position: noise that follows the order is
        no noise.
    """

    name: str
    n: int
    shift: float
    sd: float
    largest: float
    z_low: float
    z_high: float
    log10_low: float | None
    log10_high: float | None
    pvalue_position: float


@dataclass(frozen=True)
class NoiseFloor:
    """How far z and log10 p move with the way of scoring; printed as a sentence.

    Attributes
    ----------
    z, log10_pvalue : float, float or None
        Of the scores as they are.
    settings : tuple of RescoredNoise
    repeats : int
        Draws of noise per setting.
    units : str
        Of the scores.
    """

    z: float
    log10_pvalue: float | None
    settings: tuple[RescoredNoise, ...]
    repeats: int
    units: str

    def __str__(self) -> str:
        parts = []
        for found in self.settings:
            moved = f"z {found.z_low:.2f} to {found.z_high:.2f}"
            if found.log10_low is not None and found.log10_high is not None:
                moved += f", log10 p {found.log10_low:.1f} to {found.log10_high:.1f}"
            parts.append(
                f"{found.name} ({found.n:,} examples, sd {found.sd:.2g} {self.units}): {moved}"
            )
        base = f"z {self.z:.2f}"
        if self.log10_pvalue is not None:
            base += f", log10 p {self.log10_pvalue:.1f}"
        return f"{base} as scored; scored again, {'; '.join(parts)} (95 %, approximate)"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the sentence as ``text``."""
        content = asdict(self)
        content["settings"] = list(content["settings"])
        return {**content, "text": str(self)}

    def attach(self, evidence: Evidence) -> Evidence:
        """The evidence with this noise floor among its details; statistic and p stay as they are.

        Raises
        ------
        InputError
            The evidence is of other scores or of another statistic: its z differs.
        """
        if not np.isclose(evidence.z, self.z, rtol=1e-6, atol=1e-6):
            raise InputError(
                f"the noise floor is of z = {self.z:.4f} and the evidence has z = "
                f"{evidence.z:.4f}: measure it with the same scores, references and statistic"
            )
        told = tuple(
            f"Scored again as {found.name}, examples differ in a way that follows their position "
            f"(p {found.pvalue_position:.2g}): the way of scoring knows the order, or drifted."
            for found in self.settings
            if found.pvalue_position < FOLLOWS_POSITION
        )
        return replace(
            evidence,
            details={**evidence.details, "noise_floor": self.as_dict()},
            caveats=(*told, *evidence.caveats),
        )


def noise_floor(
    transcript: Transcript,
    suspect: Scores,
    rescored: Mapping[str, Scores],
    rows: ArrayLike,
    references: Sequence[Scores] = (),
    statistic: str = "spearman",
    *,
    alternative: Alternative = "greater",
    repeats: int = 99,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> NoiseFloor:
    """How far z and log10 p would move if all examples were scored another way.

    A sample was scored again. Its differences from the scores as they are, less their mean, are
    drawn with replacement and added to every example's score; contrast, statistic and z are then
    computed anew, `repeats` times. (The mean is left out: a shift of all scores moves no rank.)

    What is approximate: the noise is taken to be alike for all examples and independent of them
    and of position (the latter is tested); it is put on top of the noise that the scores already
    have, so z is slightly understated; the references stay as they are.

    Parameters
    ----------
    transcript : Transcript
    suspect : Scores
        As tested, for all examples.
    rescored : mapping of name to Scores
        The sample under other batch sizes, number types or engines.
    rows : array_like of int, shape (k,)
        Rows of `transcript` that were scored again, in the order of the rescored values.
    references : sequence of Scores
    statistic : str
        One that is a single statistic, not a family.
    alternative : {"greater", "less", "two-sided"}
    repeats : int
        Draws of noise per setting.
    seed : int, optional
        Of the test, for its folds; the noise is drawn from a stream of its own.
    progress : callable, optional
        Called with 1 after each draw.

    Returns
    -------
    NoiseFloor

    Raises
    ------
    InputError
        Nothing was scored again; rows, windows, units or examples that do not fit.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> order = rng.permutation(400)
    >>> values = order / 400 + rng.normal(size=400)
    >>> t, s = Transcript.from_arrays(order), Scores.from_arrays(loglik=values)
    >>> again = Scores.from_arrays(loglik=values[:100] + 0.01 * rng.normal(size=100))
    >>> floor = noise_floor(t, s, {"bfloat16": again}, np.arange(100))
    >>> found = floor.settings[0]
    >>> round(found.sd, 3), found.z_high - found.z_low < 0.1
    (0.01, True)
    """
    chosen = find_statistic(statistic)
    if chosen.family:
        raise InputError(
            f"the statistic {statistic!r} is a family: measure the noise floor of the member that "
            "the test took"
        )
    if repeats < 2:
        raise InputError(f"repeats is {repeats}: an interval needs at least 2 draws of noise")
    picked = np.asarray(rows)
    if not rescored or picked.ndim != 1 or picked.dtype.kind not in "iu" or len(picked) < 2:
        raise InputError(
            "nothing was scored again: give scores of at least two rows, and their row numbers"
        )
    sample = transcript.take(picked)
    design = transcript.design.weighted(chosen.weights)

    def z_of(scores: Scores) -> tuple[float, bool]:
        values = query_contrast(scores, references, statistic, transcript, seed)
        return _z(design, values)

    seed = transcript.seed_of(seed)
    base, allowed = z_of(suspect)
    streams = np.random.SeedSequence([seed, 0x4015E]).spawn(len(rescored))
    settings = []
    for (name, again), stream in zip(rescored.items(), streams, strict=True):
        noise = _differences(name, suspect, again, picked)
        rng = np.random.default_rng(stream)
        centred = noise - noise.mean()
        zs = np.empty(repeats)
        for j in range(repeats):
            drawn = rng.choice(centred, size=suspect.n)
            zs[j] = z_of(_with_noise(suspect, drawn))[0]
            if progress is not None:
                progress(1)
        low, high = (float(q) for q in np.quantile(zs, [0.025, 0.975]))
        tails = [log10_normal_tail(z, alternative) for z in (low, high)] if allowed else []
        settings.append(
            RescoredNoise(
                name,
                len(picked),
                float(noise.mean()),
                float(noise.std(ddof=1)),
                float(np.abs(noise).max()),
                low,
                high,
                min(tails) if tails else None,
                max(tails) if tails else None,
                against_position([sample.design], noise, stream)[0],
            )
        )
    return NoiseFloor(
        base,
        log10_normal_tail(base, alternative) if allowed else None,
        tuple(settings),
        repeats,
        suspect.units,
    )


def _z(design: RankDesign, values: Floats) -> tuple[float, bool]:
    """Z with the closed-form null deviation, and whether a normal tail may be taken of it."""
    sd = design.null_sd(values)
    if sd == 0:
        raise InputError("the scores are constant wherever positions vary: nothing can be tested")
    return design.statistic(values) / sd, is_approximable(design, values)


def _differences(name: str, suspect: Scores, again: Scores, rows: NDArray[Any]) -> Floats:
    """Scored again minus as it was, per row of the sample."""
    if again.n != len(rows):
        raise InputError(
            f"{name}: {again.n} scores for {len(rows)} rows that were scored again: give one each"
        )
    if again.units != suspect.units or again.identity.window != suspect.identity.window:
        raise InputError(
            f"{name}: scored on {again.identity.window} in {again.units}, and {suspect.label} on "
            f"{suspect.identity.window} in {suspect.units}: score both the same way"
        )
    part = suspect.take(rows)
    if (
        again.digests is not None
        and part.digests is not None
        and not np.array_equal(again.digests, part.digests)
    ):
        row = int(np.flatnonzero((again.digests != part.digests).any(axis=1))[0])
        raise InputError(
            f"{name}: value {row} is of another example than row {rows[row]}: give rows in the "
            "order in which they were scored again"
        )
    return np.asarray(again.loglik_mean - part.loglik_mean, dtype=np.float64)


def _with_noise(scores: Scores, noise: Floats) -> Scores:
    """The same scores, each example's mean moved; values per token move alike."""
    kept = scores.token_logliks
    return replace(
        scores,
        loglik_sum=scores.loglik_sum + noise * scores.n_tokens,
        token_logliks=None
        if kept is None
        else [(row + shift).astype(np.float32) for row, shift in zip(kept, noise, strict=True)],
    )


def against_position(
    designs: Sequence[RankDesign], noise: Floats, stream: np.random.SeedSequence
) -> tuple[float, float]:
    """Do differences between two ways of scoring follow the position of the examples?

    Parameters
    ----------
    designs : sequence of RankDesign
        One design under the weights of position that are looked at.
    noise : ndarray of float64, shape (n,)
    stream : numpy.random.SeedSequence

    Returns
    -------
    tuple of float
        Exact two-sided p of the largest of the standardised statistics, and the null standard
        deviation as a correlation: 1 and 0 where differences are alike, as of examples scored again
        to the last bit.
    """
    varying = [design for design in designs if not design.is_constant(noise)]
    if not varying:
        return 1.0, 0.0
    pvalues, sd = two_sided(varying, [noise], 1999, stream.spawn(1)[0])
    return float(pvalues[0]), float(sd)
