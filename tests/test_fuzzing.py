"""Bad values for every option of every command end well: some here, ten thousand in `make fuzz`."""

import numpy as np
import pytest
from fuzzing import COMMANDS, ended, named, placed, tried, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench import InputError, Scores, ShuffleClaim, Transcript, query_test
from workbench.cli.numbers import RANGES
from workbench.independence import design_queries
from workbench.power import queries_needed


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("fuzzing.DEADLINE", 100)  # of what hangs; `make fuzz` has the real one
        yield world(tmp_path_factory.mktemp("fuzzing"))


def parameters():
    return [(words, p) for words, command in COMMANDS.items() for p in command.params]


def test_every_number_of_every_command_has_a_range():
    for words, parameter in parameters():
        declared = str(parameter.type_descriptor.annotation)
        if "int" in declared or "float" in declared:
            assert {f"{words} {named(parameter)}", named(parameter)} & {*RANGES}, words
    assert {name.split()[-1] for name in RANGES} <= {named(p) for _, p in parameters()}


IN_PYTHON = {
    "n_resamples": lambda t, x: query_test(t, *scored(t), n_resamples=x),
    "alpha": lambda t, x: query_test(t, *scored(t), alpha=x),
    "smallest_effect": lambda t, x: query_test(t, *scored(t), smallest_effect=x),
    "seed": lambda t, x: query_test(t, *scored(t), seed=x),
    "subsample": lambda t, x: t.subsample(50, x),
    "design": lambda t, x: design_queries(t, 40, seed=x),
    "seed_bits": lambda t, x: ShuffleClaim("owner", seed_bits=x),
    "correlation": lambda t, x: queries_needed(x, 1e-3, 0.9),
}


def scored(transcript):
    rng = np.random.default_rng(0)
    values = [Scores.from_arrays(loglik=rng.random(transcript.n), name=name) for name in "ab"]
    return values[0], values[1:]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e-300, 1e300, 10**200, True])
@pytest.mark.parametrize("name", IN_PYTHON)
def test_the_same_ranges_hold_in_python(name, value, here):
    transcript = Transcript.read(here / "t.parquet", shuffle="owner")
    if (name, value) in {("alpha", 1e-300), ("smallest_effect", 1e-300)}:
        return
    with pytest.raises(InputError, match="give a"):
        IN_PYTHON[name](transcript, value)


# What did not end well once.
FOUND = [
    ["sample", "--model=model", "--out=OUT", "--texts=99999999999999999999"],
    ["sample", "--model=model", "--out=OUT", "--texts=2147483648"],
    ["sample", "--model=model", "--out=OUT", "--tokens=2147483648"],
    [
        "score",
        "--model=model",
        "--transcript=t.parquet",
        "--out=OUT",
        "--prefix=9223372036854775808",
    ],
    ["score", "--model=model", "--transcript=t.parquet", "--out=OUT", "--max-money=nan"],
    ["transcript", "check", "t.parquet", "--effect=1e-300"],
    ["test", "partition", "--transcript=/proc", "--texts=texts.parquet"],
    ["study", "reproduce", "study", "--out=loop"],
]


@pytest.mark.parametrize("words", FOUND, ids=" ".join)
def test_what_once_ended_wrong_is_one_sentence(words, here, tmp_path):
    done = ended([w if i == 0 else placed(w, here, tmp_path) for i, w in enumerate(words)])
    assert (done.outcome, done.fault) == ("one sentence", None)
    assert (here / "loop").is_symlink()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(command=st.sampled_from(sorted(COMMANDS)), data=st.data())
def test_bad_values_end_well(command, data, here):
    words, done = tried(lambda options: data.draw(st.sampled_from(options)), command, here)
    assert not done.fault, words
