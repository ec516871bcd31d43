"""Are the references themselves related to the order, alone or as they are used?

A reference that saw the owner's order cancels the signal, or fakes one: an early checkpoint of the
owner's, subtracted from a stranger, leaves a rise. Its raw score may hardly rank with the order,
since what it remembers best lies in the middle. So waves over training are looked for too.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from workbench.errors import InputError
from workbench.evidence import ReferenceCheck
from workbench.gates import REFERENCE_FAILS
from workbench.independence.corrections import holm
from workbench.independence.sample import Gatherer
from workbench.null import NullDistribution, maximum_null, permutation_null
from workbench.scores import Scores
from workbench.statistics import Contrasted, QueryStatistic
from workbench.statistics.rank import RankDesign

__all__ = [
    "CONSTANT",
    "WAVES",
    "check_references",
    "corrected_check",
    "detectable_correlation",
    "enough_resamples",
    "most_quantities",
    "quantities_of",
    "told_apart",
    "two_sided",
]

Floats = NDArray[np.float64]


def check_references(
    gatherer: Gatherer,
    designs: Sequence[RankDesign],
    contrasted: Sequence[Contrasted],
    references: Sequence[Scores],
    stream: np.random.SeedSequence,
) -> ReferenceCheck | None:
    """Test each reference, each contrasted with the others, and what is subtracted.

    Each by the largest of the standardised statistics of the test's own weights of position and of
    those waves that the design can tell apart, all under the same permutations: exact.
    """
    if not references:
        return None
    family = [*designs, *told_apart(designs[0], WAVES)]
    quantities = quantities_of(gatherer, contrasted, references)
    tested = {
        name: value
        for name, value in quantities.items()
        if not any(design.is_constant(value) for design in designs)
    }
    if not tested:
        raise InputError(CONSTANT)
    resamples = enough_resamples(len(tested))
    pvalues, sd = two_sided(family, list(tested.values()), resamples, stream)
    correlations = [designs[0].correlation(value) for value in tested.values()]
    return corrected_check(
        list(tested), correlations, pvalues, sd, resamples, len(tested) * len(family)
    )


def _wave(half_periods: int) -> Callable[[Floats], Floats]:
    return lambda u: np.cos(half_periods * np.pi * u)


# One half period is close to the ranks themselves. A checkpoint's memory is a peak a tenth of
# training wide, at its end: up to six half periods see it wherever it lies.
WAVES = tuple(_wave(half_periods) for half_periods in range(2, 7))


def told_apart(
    design: RankDesign, weights: Iterable[Callable[[Floats], Floats] | None]
) -> list[RankDesign]:
    """The design under each of these weights of position that do not weigh its places all alike.

    Few places show few waves.
    """
    found = []
    for one in weights:
        try:
            found.append(design.weighted(one))
        except InputError:
            continue
    return found


CONSTANT = "the references' scores are constant: they carry nothing to subtract; choose another"


def quantities_of(
    gatherer: Gatherer, contrasted: Sequence[Contrasted], references: Sequence[Scores]
) -> dict[str, Floats]:
    """By name: each reference's score, each contrasted with the others, and what is subtracted."""
    quantities: dict[str, Floats] = {}
    values = [reference.loglik_mean for reference in references]
    for number, (reference, value) in enumerate(zip(references, values, strict=True)):
        quantities[f"{number + 1}: {reference.label}"] = value
    members = gatherer.statistic.members
    distinct = {id(member.contrast): i for i, member in enumerate(members)}
    for i in sorted(distinct.values()):
        which = f" ({members[i].name})" if len(distinct) > 1 else ""
        if len(values) > 1:
            for number, reference in enumerate(references):
                others = [other for j, other in enumerate(references) if j != number]
                name = f"{number + 1}: {reference.label} {members[i].relation}{which}"
                left = members[i].apply(gatherer.sample(reference, others))
                quantities[name] = left.values
        part = contrasted[i].subtracted
        if part is not None and (len(values) > 1 or not np.array_equal(part, values[0])):
            quantities[f"the part subtracted{which}"] = part
    return quantities


def most_quantities(statistic: QueryStatistic, references: int) -> int:
    """How many `quantities_of` gives for so many references, at most."""
    if not references:
        return 0
    contrasts = len({id(member.contrast) for member in statistic.members})
    return references + contrasts * ((references if references > 1 else 0) + 1)


def enough_resamples(tests: int) -> int:
    """Enough draws for as many corrected tests to reach a thousandth; more decide nothing else."""
    return 2000 * tests


def corrected_check(
    names: Sequence[str],
    correlations: Sequence[float],
    pvalues: Floats,
    sd: float,
    resamples: int,
    comparisons: int,
) -> ReferenceCheck:
    """Holm's correction over all, and the smallest correlation that would have been found."""
    corrected = holm(pvalues)
    return ReferenceCheck(
        tests=tuple(
            {"name": name, "correlation": float(r), "pvalue": float(p), "corrected": float(c)}
            for name, r, p, c in zip(names, correlations, pvalues, corrected, strict=True)
        ),
        smallest_corrected=float(corrected.min()),
        detectable_correlation=detectable_correlation(sd, REFERENCE_FAILS / comparisons),
        n_resamples=resamples,
    )


def detectable_correlation(sd: float, level: float) -> float:
    """Correlation found two-sided at this level nine times in ten (normal approximation)."""
    return float(sd * (norm.isf(level / 2) + norm.ppf(0.9)))


def two_sided(
    designs: Sequence[RankDesign],
    values: Sequence[Floats],
    resamples: int,
    stream: np.random.SeedSequence,
) -> tuple[Floats, float]:
    """Exact two-sided p-values, with the design's weights or the largest over the family's.

    Also the largest null standard deviation, as a correlation.
    """
    if len(designs) == 1:
        nulls = permutation_null(designs[0], values, resamples, stream)
        members: list[tuple[NullDistribution, ...]] = [(null,) for null in nulls]
    else:
        subjects = [[value] * len(designs) for value in values]
        found = maximum_null(designs, subjects, resamples, stream, "two-sided")
        nulls = [best.distribution for best in found]
        members = [best.members for best in found]
    sd = max(
        null.sd * design.scale(value)
        for value, found_here in zip(values, members, strict=True)
        for design, null in zip(designs, found_here, strict=True)
    )
    return np.array([null.pvalue("two-sided") for null in nulls]), sd
