"""Panels: every control of every panel moves once, and the output follows."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from synthetic import (
    AFTER_THE_BUTTON,
    SyntheticRun,
    make,
    make_observations,
    make_plans,
    make_run,
)
from traitlets import TraitError
from traitlets.config import Config

from workbench import figures, panels
from workbench.errors import InputError
from workbench.lab.runs import Run
from workbench.panels import PANELS
from workbench.panels.controls import BOX, Checkboxes
from workbench.panels.panel import FAILED

ON_RUNS = [name for name, (_, opened) in PANELS.items() if opened == "run"]
ON_OBSERVATIONS = [name for name, (_, opened) in PANELS.items() if opened == "observations"]


# One panel of each name for tests that move nothing.
still = functools.cache(make)


def named_controls() -> list[tuple[str, str]]:
    return [(name, control) for name in PANELS for control in still(name).controls]


def moved(control: Any) -> Any:
    """Another value that the control can take."""
    if isinstance(control, widgets.Dropdown):
        values = [value for _, value in control._options_full]
        return values[(control.index + 1) % len(values)]
    if isinstance(control, Checkboxes):
        return control.value[:1]
    if isinstance(control.value, int):
        middle = (control.min + control.max) // 2
    else:
        middle = round((control.min + control.max) / 2, 3)
    return middle if middle != control.value else control.min


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """A shell as in a kernel, so that figures are drawn to the end; without its history file."""
    config = Config()
    config.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


@pytest.fixture(autouse=True)
def beside_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Panels save here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_public_maker_is_in_the_registry() -> None:
    makers = {name for name in panels.__all__ if name.endswith("_panel")}
    assert makers == {maker.__name__ for maker, _ in PANELS.values()}


@pytest.mark.parametrize("name", PANELS)
def test_panel_opens_with_an_output_of_fixed_height(name: str) -> None:
    panel = make(name)
    assert isinstance(panel, widgets.VBox)
    assert panel.output.layout.height.endswith("px")
    assert panel.output.layout.overflow == "auto"
    assert panel.output in panel.children
    assert panel.text
    assert make(name).text == panel.text, "the same settings show something else"
    assert panel.text != FAILED


@pytest.mark.parametrize(("name", "key"), named_controls())
def test_control_says_what_it_is(name: str, key: str) -> None:
    control = still(name).controls[key]
    assert control.description.strip()
    assert control.tooltip.strip().endswith(".")
    assert getattr(control, "continuous_update", False) is False
    if isinstance(control, Checkboxes):
        assert [box.description for box in control.boxes] == list(control.options)
        assert all(box.tooltip.startswith(f"{control.description}: ") for box in control.boxes)
    elif not isinstance(control, widgets.Button):
        wanted = "0px" if key.endswith(BOX) else "initial"
        assert control.style.description_width == wanted
    if isinstance(control, widgets.IntSlider | widgets.FloatSlider):
        assert key + BOX in still(name).controls, "a slider needs a number box"


@pytest.mark.parametrize(("name", "key"), named_controls())
def test_control_moves_and_the_output_follows(name: str, key: str) -> None:
    panel = make(name)
    control = panel.controls[key]
    before = panel.text
    if isinstance(control, widgets.Button):
        control.click()
        assert not control.disabled
    else:
        control.value = moved(control)
    after = panel.text
    panel.update()  # an exception that a callback swallowed is raised here
    assert panel.text
    assert FAILED not in (after, panel.text)
    later = AFTER_THE_BUTTON.get(name, set())
    if key.removesuffix(BOX) not in later:
        assert after != before


@pytest.mark.parametrize("name", [name for name in PANELS if name in AFTER_THE_BUTTON])
def test_settings_of_the_test_withdraw_its_result_until_it_runs_again(name: str) -> None:
    for key in sorted(AFTER_THE_BUTTON[name]):
        panel = make(name)
        panel.test()
        before, value = panel.text, panel.controls[key].value
        assert "evidence" in before
        panel.controls[key].value = moved(panel.controls[key])
        assert "press the button" in panel.text
        panel.test()
        assert "press the button" not in panel.text
        assert panel.text != before, key
        panel.controls[key].value = value
        assert panel.text == before, "a result that is known was forgotten"


@pytest.mark.parametrize(("name", "key"), [pair for pair in named_controls() if BOX in pair[1]])
def test_number_box_and_slider_stay_in_step(name: str, key: str) -> None:
    panel = make(name)
    slider, box = panel.controls[key.removesuffix(BOX)], panel.controls[key]
    assert (slider.min, slider.max, slider.value) == (box.min, box.max, box.value)
    box.value = moved(box)
    assert slider.value == box.value
    slider.value = slider.max
    assert box.value == slider.max
    assert panel.settings[key.removesuffix(BOX)] == slider.max


def test_boxes_are_ticked_one_by_one_or_all_at_once() -> None:
    panel = make("curve")
    models, seen = panel.controls["models"], []
    assert models.value == ("alice", "derivative", "independent")
    models.observe(lambda change: seen.append(change["new"]), names="value")
    models.boxes[1].value = False
    assert models.value == ("alice", "independent")
    assert "derivative | " not in panel.text
    models.value = ("derivative",)
    assert [box.description for box in models.boxes if box.value] == ["derivative"]
    assert seen == [("alice", "independent"), ("derivative",)], "half-way values were seen"
    with pytest.raises(TraitError, match="'nobody' is none of the boxes of models"):
        models.value = ("nobody",)


def test_bins_keep_the_result_of_the_test() -> None:
    panel = make("query")
    panel.test()
    panel.controls["bins"].value = 5
    assert "in 5 bins" in panel.text
    assert "exact p" in panel.text


def test_query_panel_gives_the_public_functions_answer() -> None:
    from workbench import query_test

    run = make_run()
    panel = panels.query_panel(run)
    panel.controls["examples"].value = 150
    panel.controls["references"].value = ("reference-same",)
    panel.controls["smallest_effect"].value = 0.0
    panel.controls["window"].value = (32, 32)
    panel.test()
    part = run.transcript.subsample(150, seed=0)
    suspect = run.scores("derivative", 32, 32).take(part.rows)
    reference = run.scores("reference-same", 32, 32).take(part.rows)
    expected = query_test(part, suspect, [reference], n_resamples=999)
    assert expected.summary() in panel.text
    assert dict(panel.controls["window"].options) == {
        "all tokens": (0, None),
        "tokens 32 to 63": (32, 32),
    }


@pytest.mark.parametrize("make_panel", [panels.query_panel, panels.report_panel])
def test_panels_offer_every_statistic_by_name(make_panel: Callable[[Run], panels.Panel]) -> None:
    from workbench import query_test
    from workbench.statistics import STATISTICS

    run = make_run()
    panel = make_panel(run)
    assert panel.controls["statistic"].options == tuple(STATISTICS)
    panel.controls["statistic"].value = "residual:late"
    panel.test()
    references = [run.scores(name) for name in panel.controls["references"].value]
    expected = query_test(
        run.transcript,
        run.scores("derivative"),
        references,
        "residual:late",
        n_resamples=panel.controls["permutations"].value
        if "permutations" in panel.controls
        else 9999,
        smallest_effect=panel.controls["smallest_effect"].value or None,
    )
    assert f"z = {expected.z:.2f}" in panel.text
    assert STATISTICS["residual:late"].summary in panel.text or expected.contrast in panel.text
    panel.controls["references"].value = ()
    panel.test()
    assert "takes 1 reference" in panel.text


def test_query_panel_on_part_of_a_transcript_scores_the_right_rows() -> None:
    whole = make_run()
    part = Run.__new__(SyntheticRun)
    part.__dict__.update(whole.__dict__)
    part.__dict__["transcript"] = whole.transcript.take(np.arange(300, 20, -1))
    panel = panels.query_panel(part)
    panel.controls["examples"].value = 100
    panel.test()  # scores carry their examples' digests: a mix-up of rows would be an InputError
    assert "derivative: evidence" in panel.text


def test_design_panel_undeclared_blocks_pass_for_memory() -> None:
    panel = make("design")
    rows = {line.split(" | ")[0]: line.split(" | ") for line in panel.text.splitlines()}
    assert float(rows["declared"][1]) > 0.05
    assert float(rows["not declared"][1]) == 0.001
    panel.controls["blocks"].value = 1
    panel.controls["memory"].value = 1.0
    rows = {line.split(" | ")[0]: line.split(" | ") for line in panel.text.splitlines()}
    assert rows["declared"][1:] == rows["not declared"][1:]
    assert float(rows["declared"][1]) == 0.001


def test_design_panel_shows_an_input_error_as_one_sentence() -> None:
    panel = make("design")
    for key, value in {"examples": 50, "blocks": 20, "ties": 64, "bins": 2}.items():
        panel.controls[key].value = value
    assert "all positions are equal" in panel.text
    assert "Traceback" not in panel.text
    assert len(panel.text.splitlines()) == 1
    panel.controls["ties"].value = 1
    assert "declared | " in panel.text


def test_a_model_that_is_its_own_reference_is_one_sentence() -> None:
    for name in ("query", "report"):
        panel = make(name)
        panel.controls["references"].value = ("derivative",)
        panel.test()
        assert panel.text.startswith("derivative is both suspect and reference")
        assert len(panel.text.splitlines()) == 1
    panel = make("curve")
    panel.controls["models"].value = ("reference-same",)
    assert panel.text.startswith("reference-same is both suspect and reference")
    panel.controls["models"].value = ()
    assert panel.text.startswith("no model is chosen")


@pytest.mark.parametrize("name", ON_OBSERVATIONS)
def test_observations_without_texts_are_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="have no text"):
        PANELS[name][0](make_observations(()))


def test_partition_panel_gives_the_public_functions_answer() -> None:
    from workbench import partition_test

    observations = make_observations()
    panel = panels.partition_panel(observations)
    panel.controls["text"].value = "alice"
    panel.controls["tokens"].value = 1000
    panel.controls["variant"].value = "only n-grams of 4 tokens and more"
    panel.test()
    counts = observations.counts("alice", min_n=4, n_tokens=1000)
    expected = partition_test(observations.run.transcript, counts, n_resamples=999)
    assert expected.summary() in panel.text
    assert "1,000 tokens, of which 200 count" in panel.text


def test_reshuffle_panel_gives_the_public_functions_answer() -> None:
    from workbench import reshuffle_test

    observations = make_observations()
    panel = panels.reshuffle_panel(observations)
    panel.controls["documents"].value = 7
    panel.controls["siblings"].value = 4
    found = observations.siblings("derivative")
    rows = np.arange(7)
    expected = reshuffle_test(
        found.rerun.take(rows), [s.take(rows) for s in found.siblings[:4]], procedure="simulated"
    )
    assert f"rank p, exact | {expected.pvalue:.3f} (rank {expected.details['rank']})" in panel.text
    assert f"model-based p, Student's t | {expected.pvalue_model:.2g}" in panel.text


def test_sequential_panel_gives_the_public_functions_answer_and_goes_on_where_it_was() -> None:
    from workbench import sequential_test
    from workbench.independence import design_queries

    run = make_run()
    panel = panels.sequential_panel(run)
    assert "Nothing was asked yet" in panel.text
    for _ in range(3):
        panel.test()
    design = design_queries(run.transcript, run.transcript.n, "late-vs-early", seed=0)
    references = [run.scores(name) for name in panel.settings["references"]]
    test = sequential_test(
        run.transcript, run.scores("derivative"), references, design, seed=0, batch=8
    )
    steps = [next(test) for _ in range(3)]
    assert f"10^{steps[-1].log10_wealth:.2f}" in panel.text
    assert f"{steps[-1].queries:,} (24 pairs" in panel.text
    panel.controls["alpha"].value = 0.05
    assert "Nothing was asked yet" in panel.text  # another alpha is another test
    panel.controls["alpha"].value = 1e-3
    assert f"{steps[-1].queries:,} (24 pairs" in panel.text


def test_plan_panel_gives_the_plans_own_numbers() -> None:
    plans = make_plans()
    panel = panels.plan_panel(plans)
    plan = plans["echo"]
    low, high = plan.interval
    assert f"echo | {plan.queries:,} ({low:,} to {high:,})" in panel.text
    assert "sampled | beyond any number" in panel.text
    panel.controls["digits"].value = 4
    panel.controls["prompt_price"].value = 2.0
    panel.controls["completion_price"].value = 6.0
    cheaper = plan.for_target(1e-4)
    money = cheaper.queries * (7000 * 2 + 4000 * 6) / 1e6
    assert f"echo | {cheaper.queries:,} (" in panel.text
    assert f" | {money:,.2f}" in panel.text
    panel.controls["shown"].value = ()
    assert panel.text.startswith("no form of access is chosen")


@pytest.mark.parametrize("name", ON_RUNS)
def test_a_run_without_models_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="no scored model"):
        PANELS[name][0](make_run(roles={}))


@pytest.mark.parametrize("name", PANELS)
def test_any_other_exception_is_raised_and_shown_as_a_failure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = make(name)

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a mistake in the program")

    monkeypatch.setattr(panel, "_draw", broken)
    with pytest.raises(ZeroDivisionError):
        panel.update()
    assert panel.text == FAILED
    with pytest.raises(ZeroDivisionError):
        panel.test()
    assert all(not getattr(control, "disabled", False) for control in panel.controls.values())


def test_run_of_one_model_needs_no_owner_and_no_reference() -> None:
    run = make_run(roles={"bob's model": "the only one"})
    for name in ON_RUNS:
        panel = PANELS[name][0](run)
        panel.test()
        assert "bob's model" in panel.text


@pytest.mark.parametrize("name", [*ON_RUNS, *ON_OBSERVATIONS])
@pytest.mark.usefixtures("shell")
def test_names_are_escaped_and_pictures_are_described(name: str) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    if name in ON_RUNS:
        panel = PANELS[name][0](make_run(roles={hostile: "<script>alert(2)</script>"}))
    else:
        panel = PANELS[name][0](make_observations((hostile,)))
    panel.test()
    (output,) = panel.output.outputs
    shown = output["data"]["text/html"]
    assert "&lt;img src=x" in shown
    assert hostile not in shown
    assert "<script" not in shown
    if name != "report":
        two = name in ("query", "partition", "demo")
        assert shown.count('<img src="data:image/png;base64,') == (2 if two else 1)
        assert 'alt="' in shown


@pytest.mark.usefixtures("shell")
def test_drawing_leaves_the_shells_publisher_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Callbacks run in a thread of their own: a kernel that takes a message while its publisher is
    # replaced stops answering.
    from IPython.core.getipython import get_ipython

    publisher, drawn = get_ipython().display_pub, []
    rendered = figures.rendered

    def watched(figure: Any) -> Any:
        assert get_ipython().display_pub is publisher
        drawn.append(figure)
        return rendered(figure)

    monkeypatch.setattr(figures, "rendered", watched)
    make("curve")
    assert drawn
