"""References, negative controls and the order of measurement: what makes evidence by itself."""

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.evidence import ReferenceCheck
from workbench.gates import gate_references
from workbench.independence import query_test
from workbench.scores import ScorerIdentity, Scores
from workbench.transcript import Transcript

N = 400
RNG = np.random.default_rng(20)
ORDER = RNG.permutation(N)
NOISE = RNG.normal(size=(4, N))
TRANSCRIPT = Transcript.from_arrays(
    ORDER, tokens=[RNG.integers(0, 50, 8) for _ in range(N)], shuffle="owner"
)


def scores(values, name: str, **about) -> Scores:
    return Scores.from_arrays(loglik=values, name=name, **about)


def gate_of(found, number: int, name: str):
    return next(gate for gate in found.gates if (gate.number, gate.name) == (number, name))


def check(correlation: float, corrected: float) -> ReferenceCheck:
    test = {"name": "1: r", "correlation": correlation, "pvalue": corrected, "corrected": corrected}
    return ReferenceCheck((test,), corrected, 0.1, 1999)


def test_one_model_under_two_names_is_refused():
    suspect, other = scores(NOISE[0], "bob"), scores(NOISE[1], "mallory")
    again = scores(NOISE[0], "a stranger", identity=ScorerIdentity("causal_lm", "a stranger"))
    for references, controls in (
        ([again, other], []),
        ([other, scores(NOISE[1], "x")], []),
        ([other], [again]),
        ([other], [scores(NOISE[1], "y")]),
    ):
        with pytest.raises(InputError, match="have the same scores"):
            query_test(TRANSCRIPT, suspect, references, placebos=controls)
    nearly = scores(np.nextafter(NOISE[0], np.inf), "a twin")  # another model, however alike
    assert query_test(TRANSCRIPT, suspect, [nearly], n_resamples=99).verdict != "evidence"


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_a_reference_that_makes_the_evidence_fails_it(alternative):
    """Subtracted, what falls over training leaves a rise."""
    against = {"greater": -0.1, "less": 0.1, "two-sided": 0.1}[alternative]
    for corrected, reached, status in (
        (0.04, True, "failed"), (0.04, False, "declared"), (0.06, True, "verified"),
        (0.0005, True, "failed"), (0.0005, False, "failed"),
    ):  # fmt: skip
        found = gate_references(check(against, corrected), 0, alternative, reached)
        assert found.status == status, (corrected, reached)
    if alternative != "two-sided":  # the other way it costs power, and makes nothing
        assert gate_references(check(-against, 0.04), 0, alternative, True).status == "declared"


def test_a_tilted_reference_is_no_evidence_against_a_stranger():
    """A third of a nat over training, in a reference; the suspect knows nothing of the order."""
    easy = 0.1 * NOISE[2]
    tilted = scores(easy - 0.3 * ORDER / N + 0.02 * NOISE[3], "tilted")
    found = query_test(TRANSCRIPT, scores(easy + 0.05 * NOISE[0], "bob"), [tilted])
    assert found.pvalue <= found.alpha
    assert found.verdict == "not valid"
    assert gate_of(found, 1, "references").status == "failed"


def test_without_reference_and_control_a_curriculum_is_not_told_from_memory():
    curriculum = scores(ORDER / N + 0.1 * NOISE[0], "bob")
    bare = query_test(TRANSCRIPT, curriculum, n_resamples=999)
    assert gate_of(bare, 1, "references").status == "declared"
    assert any("negative control" in caveat for caveat in bare.caveats)
    control = scores(ORDER / N + 0.1 * NOISE[1], "a stranger")
    beside = query_test(TRANSCRIPT, curriculum, placebos=[control], n_resamples=999)
    assert beside.verdict == "not valid"  # the control shows the curriculum
    honest = query_test(TRANSCRIPT, curriculum, placebos=[scores(NOISE[1], "a stranger")])
    assert gate_of(honest, 1, "references").status == "verified"
