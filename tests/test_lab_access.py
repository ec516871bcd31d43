"""What each form of access finds: measured on a server, recorded without text, read again."""

import json

import numpy as np
import pytest
from servers.models import train_small, training_text

from workbench import InputError, Transcript, query_test
from workbench.lab import access as room
from workbench.lab import open_access
from workbench.lab.access import AccessForm, record_access
from workbench.lab.runs import Run

SMALL = (
    AccessForm("token ids", "likelihoods", 30, 30, "completions", {"form": "token_ids"}),
    AccessForm(
        "drawn",
        "text",
        40,
        40,
        "sampled",
        {"match": "next", "places": 2, "draws": 4, "new_tokens": 1},
        guided=True,
    ),
    AccessForm(
        "drawn once",
        "text",
        40,
        40,
        "sampled",
        {"match": "next", "places": 2, "draws": 1, "new_tokens": 1},
        guided=True,
        part_of="drawn",
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model") / "small"
    train_small(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer(training_text()[:8000], add_special_tokens=False)["input_ids"]
    rows = [ids[i * 24 : i * 24 + 24] for i in range(60)]
    names = (*room.SUSPECTS, room.REFERENCE)
    return Run(
        name="small",
        transcript=Transcript.from_arrays(np.random.default_rng(0).permutation(60), tokens=rows),
        roles=dict.fromkeys(names, "the same small model"),
        checkpoints=[],
        windows=[(0, None)],
        provenance={},
        folders=dict.fromkeys(names, folder),
        loss_curves={},
    )


@pytest.mark.slow
def test_measured_recorded_and_read_again(run, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "ACCESS_FORMS", SMALL)
    monkeypatch.setattr(room, "open_run", lambda source, progress=False: run)
    live = open_access("tiny", full=True)
    whole, once = (live.cost(form, "derivative") for form in ("drawn", "drawn once"))
    assert whole.prompts == 8
    assert whole.completion_tokens == pytest.approx(8, abs=1)  # one each, and the probes'
    assert once.prompts == 2
    assert once.prompt_tokens == pytest.approx(whole.prompt_tokens / 4)
    drawn, first = (live.scores(form, "derivative").loglik_mean for form in ("drawn", "drawn once"))
    assert set(np.unique(first)) <= {0.0, 0.5, 1.0}
    assert first.any()
    assert (drawn >= first / 4 - 1e-6).all()  # the first draw is among the four
    reference = live.scores("drawn", room.REFERENCE)
    assert reference.identity.settings["draws"] == "expectation"
    examples = live.transcript("drawn")
    evidence = query_test(examples, live.scores("drawn", "alice"), [reference], n_resamples=99)
    assert evidence.n == 40
    path = record_access(live, tmp_path / "small-access.parquet")
    text = path.with_suffix(".json").read_text()
    assert str(tmp_path) not in text
    assert "127.0.0.1:" not in text
    monkeypatch.setattr(room, "recorded", lambda name: tmp_path / f"{name}.parquet")
    again = open_access("recorded:small")
    for form in again.forms:
        for model in (*again.suspects, room.REFERENCE):
            one, two = live.scores(form, model), again.scores(form, model)
            np.testing.assert_allclose(one.loglik_mean, two.loglik_mean, atol=1e-6)
            assert one.units == two.units
            assert (one.identity.endpoint is None) == (two.identity.endpoint is None)
            assert live.cost(form, model) == again.cost(form, model)
    with pytest.raises(InputError, match="is unknown: choose one of token ids"):
        again.scores("telepathy", "alice")
    with pytest.raises(InputError, match="was not asked through"):
        again.scores("drawn", "eve")
    content = json.loads(text)
    content["examples_fingerprint"] = "other"
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is of other examples"):
        open_access("recorded:small")


def test_the_recorded_run_shows_what_each_form_should():
    """Alice and a light fine-tune below 1e-8 through every form; the independent model not."""
    access = open_access("recorded")
    assert set(access.forms) == {form.name for form in room.ACCESS_FORMS}
    for form in access.forms:
        reference = access.scores(form, room.REFERENCE)
        for model in access.suspects:
            suspect = access.scores(form, model)
            found = query_test(access.transcript(form), suspect, [reference], n_resamples=999)
            if model == "independent":
                assert found.pvalue > 0.01, form
            elif form != "sampled once":  # there to show what more draws buy
                assert found.log10_pvalue < -8, (form, model)
