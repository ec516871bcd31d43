"""Figures: the numbers behind them, their text alternatives, colours that all can tell apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from workbench import (
    InputError,
    Scores,
    Transcript,
    query_contrast,
    query_test,
    reshuffle_test,
)
from workbench import figures as module
from workbench.figures import (
    binned,
    checkpoint_curves,
    count_curve,
    evidence_lines,
    evidence_vs_queries,
    loss_curves,
    matrix,
    memorisation_curve,
    null_histogram,
    png,
    power_curve,
    pvalue_uniformity,
    rejection_rates,
    show,
    sibling_dots,
    survival_matrix,
)
from workbench.independence import QueryCase, family_test

N = 1500


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    order = rng.permutation(N)
    transcript = Transcript.from_arrays(order, shuffle="owner")
    easy = rng.normal(size=N)
    models = {
        name: Scores.from_arrays(
            loglik=easy + memory * order / N + 0.3 * rng.normal(size=N), name=name
        )
        for name, memory in (("suspect", 0.6), ("independent", 0.0), ("reference", 0.0))
    }
    return transcript, models


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 200), st.integers(1, 10), st.integers(1, 50), st.integers(0, 2**31))
def test_bins_hold_every_example_once(n, bins, levels, seed):
    rng = np.random.default_rng(seed)
    if n < 2 * bins:
        return
    positions, values = rng.integers(0, levels, n), rng.normal(size=n)
    centre, mean, half = binned(positions, values, bins)
    assert len(centre) == len(mean) == len(half) <= bins
    assert (np.diff(centre) > 0).all()
    assert 0 <= centre[0] <= centre[-1] <= 1
    if levels == 1:
        assert mean[0] == pytest.approx(values.mean())


def test_bins_do_not_depend_on_row_order():
    rng = np.random.default_rng(1)
    positions, values = rng.permutation(100), rng.normal(size=100)
    order = rng.permutation(100)
    np.testing.assert_allclose(
        binned(positions, values)[1], binned(positions[order], values[order])[1]
    )


def test_intervals_cover_the_mean():
    """The 95 % interval of a bin holds its true mean about that often."""
    rng = np.random.default_rng(2)
    positions = np.arange(400)
    covered = 0
    for _ in range(300):
        _, mean, half = binned(positions, rng.normal(size=400), 4)
        covered += int((np.abs(mean) <= half).sum())
    assert 0.92 < covered / 1200 < 0.98


@pytest.mark.parametrize(
    ("positions", "values", "bins"),
    [([1, 2], [1.0], 1), ([1, 2, 3], [1.0, 2.0, 3.0], 2), ([1, 2], [1.0, 2.0], 0)],
)
def test_bad_bins_are_refused(positions, values, bins):
    with pytest.raises(InputError):
        binned(positions, values, bins)


def every_figure(run):
    transcript, models = run
    suspect, reference = models["suspect"], models["reference"]
    contrast = query_contrast(suspect, [reference])
    evidence = query_test(transcript, suspect, [reference], n_resamples=199)
    alone = query_test(transcript, models["independent"], n_resamples=199)
    return {
        "curve": memorisation_curve(
            transcript.positions, {"suspect": contrast, "control": -contrast}
        ),
        "checkpoints": checkpoint_curves(transcript.positions, {0.5: contrast, 1.0: contrast}, 8),
        "null": null_histogram(evidence),
        "null, nothing found": null_histogram(alone),
        "queries": evidence_vs_queries(
            transcript,
            {f"suspect {k}, with a reference": (suspect, [reference]) for k in "abc"},
            [100, 500],
            repeats=5,
        ),
        "loss": loss_curves({"alice": (np.arange(300), 3 + np.ones(300))}),
        "counts": count_curve(transcript.positions, {"text": np.exp(contrast)}),
        "siblings": sibling_dots(
            {
                "derivative at temperature 0.7": reshuffle_test(-2.0, [-2.2, -2.3, -2.25, -2.1]),
                "independent": reshuffle_test(-2.2, [-2.2, -2.3, -2.25, -2.1]),
            }
        ),
        "lines": evidence_lines(
            {name: ([1e3, 1e4, 1e5], [1.0, 5.0, 9.0]) for name in ("alice", "derivative-2000")},
            "tokens of text",
            "z (null standard deviations)",
            log_x=True,
            threshold=6,
            threshold_label="p = 1e-6",
        ),
        "power": power_curve({"text": ([50, 500], [3, 90], 100)}, "queries", level=0.05),
        "uniform": pvalue_uniformity({k: np.linspace(0.01, 1, 99) for k in "abcde"}, columns=3),
        "rates": rejection_rates({"right": (5, 100), "careless way": (80, 100)}, 0.05, ["right"]),
    }


def test_figures_have_alt_text_units_and_readable_type(run):
    for name, figure in every_figure(run).items():
        assert len(figure.alt_text) > 40, name
        assert "nan" not in figure.alt_text, name
        labels = [a.get_xlabel() + a.get_ylabel() for a in figure.axes]
        words = " ".join(labels) + (figure._supylabel.get_text() if figure._supylabel else "")
        units = ("nats", "standard deviations", "density", "text's mean", "share of", "share at")
        assert any(unit in words for unit in units), name
        sizes = [t.get_fontsize() for a in figure.axes for t in a.get_xticklabels()]
        assert min(sizes) >= 12, name
        for word in filter(Text.get_text, figure.findobj(Text)):
            colour = np.array(to_rgb(word.get_color()))
            linear = np.where(colour > 0.04045, ((colour + 0.055) / 1.055) ** 2.4, colour / 12.92)
            contrast = 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05)
            assert contrast >= 4.5, (name, word.get_text())


def test_nothing_is_cut_off(run):
    """Every text lies inside the picture."""
    for name, figure in every_figure(run).items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        width, height = figure.canvas.get_width_height()
        for axes in figure.axes:
            texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += axes.get_legend().get_texts() if axes.get_legend() else []
            for text in texts:
                if text.get_text():
                    box = text.get_window_extent(renderer)
                    assert box.x0 >= -1, (name, text.get_text())
                    assert box.x1 <= width + 1, (name, text.get_text())
                    assert box.y0 >= -1, (name, text.get_text())
                    assert box.y1 <= height + 1, (name, text.get_text())


def test_series_differ_in_more_than_colour(run):
    transcript, models = run
    values = models["suspect"].loglik_mean
    figure = memorisation_curve(transcript.positions, dict.fromkeys("abcd", values))
    lines = [c.lines[0] for c in figure.axes[0].containers]
    assert len({line.get_marker() for line in lines}) == 4
    assert len({str(line.get_linestyle()) for line in lines}) == 4
    # Luminance differs too, for readers who see no hue.
    from matplotlib.colors import to_rgb

    greys = sorted(np.dot(to_rgb(line.get_color()), [0.2126, 0.7152, 0.0722]) for line in lines)
    assert greys[-1] - greys[0] > 0.15


def test_sibling_dots_show_every_model_from_the_siblings_mean():
    found = reshuffle_test(-2.0, [-2.2, -2.3, -2.25, -2.1])
    figure = sibling_dots({"text": found})
    drawn = np.sort(np.concatenate([c.get_offsets()[:, 0] for c in figure.axes[0].collections]))
    mean = np.mean([-2.2, -2.3, -2.25, -2.1])
    np.testing.assert_allclose(drawn, np.array([-2.3, -2.25, -2.2, -2.1, -2.0]) - mean)
    assert "rank 1 of 5" in figure.alt_text


def test_sibling_dots_refuse_other_evidence(run):
    evidence = query_test(run[0], run[1]["suspect"], n_resamples=99)
    with pytest.raises(InputError, match="evidence of a query test, not of a reshuffle"):
        sibling_dots({"text": evidence})


def test_a_text_without_matches_cannot_be_drawn():
    with pytest.raises(InputError, match="text has no matches"):
        count_curve(np.arange(100), {"text": np.zeros(100)})


def test_uniformity_says_inside_or_outside():
    rng = np.random.default_rng(4)
    alt = pvalue_uniformity({"right": rng.random(500), "wrong": rng.random(500) ** 3}).alt_text
    assert "right: largest distance" in alt
    assert alt.count("outside the band") == 1
    assert alt.index("inside the band") < alt.index("wrong")


def test_intervals_of_shares_cover():
    """Clopper and Pearson's interval holds the true share at least 95 % of the time."""
    rng = np.random.default_rng(5)
    for share in (0.01, 0.3, 1.0):
        hits = rng.binomial(40, share, 2000).astype(float)
        low, high = module._interval(hits, np.full(2000, 40.0))
        assert np.mean((low <= share) & (share <= high)) >= 0.94


def test_null_histogram_works_from_stored_evidence(run):
    from workbench import Evidence

    transcript, models = run
    evidence = query_test(transcript, models["suspect"], n_resamples=199)
    again = Evidence.from_json(evidence.to_json())
    assert null_histogram(again).alt_text == null_histogram(evidence).alt_text


def test_evidence_grows_with_queries_only_for_the_suspect(run):
    transcript, models = run
    figure = evidence_vs_queries(
        transcript,
        {
            "suspect": (models["suspect"], [models["reference"]]),
            "independent": (models["independent"], [models["reference"]]),
        },
        [200, 1400],
        repeats=10,
        alpha=1e-4,
    )
    assert figure.crossings["suspect"] is not None
    assert figure.crossings["independent"] is None


def test_show_passes_the_alt_text_on(run, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, raw, metadata=None: shown.update(data=data, meta=metadata),
    )
    figure = loss_curves({"a": (np.arange(50), np.ones(50))})
    show(figure)
    assert shown["meta"]["image/png"]["alt"] == figure.alt_text
    assert shown["meta"]["needs_background"] == "light"  # what a dark theme looks for
    assert shown["data"]["image/png"].startswith(b"\x89PNG")
    first = shown["data"]["image/png"]
    show(loss_curves({"a": (np.arange(50), np.ones(50))}))
    assert shown["data"]["image/png"] == first  # the same figure, the same bytes


def test_no_global_state(run):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    every_figure(run)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    assert module.STYLE.is_file()


def test_matrix_shows_every_cell_and_frames_evidence(run):
    transcript, models = run
    other = Transcript.from_arrays(np.random.default_rng(1).permutation(N))
    cases = {
        (name, model): QueryCase(order, models[name], [models["reference"]], {"n_resamples": 7999})
        for model, order in (("ours", transcript), ("theirs", other))
        for name in ("suspect", "independent")
    }
    del cases["independent", "theirs"]  # not tested: an empty cell
    family = family_test("matrix", cases)
    figure = matrix(family.evidence)
    strong = family.evidence["suspect", "ours"]
    assert f"suspect × ours: {strong.correction.log10_pvalue:.1f} (evidence)" in figure.alt_text
    assert "corrected p-value of 2 suspect(s) by 2 model(s)" in figure.alt_text
    axes = figure.axes[0]
    assert len(axes.texts) == 3
    frames = [p for p in axes.patches if not p.get_fill()]
    assert len(frames) == 1
    FigureCanvasAgg(figure).draw()
    z = matrix(family.evidence, "z")
    assert f"suspect × ours: {strong.z:.1f}" in z.alt_text
    raw = matrix({pair: case.run() for pair, case in cases.items()})
    assert raw.alt_text.startswith("Log10 of the p-value, not corrected")


def test_names_are_words_and_no_formulas():
    name = r"$\q$<b>"  # no command of any formula
    cell = {"z": 1.0, "verdict": "evidence"}
    for figure in (
        memorisation_curve(np.arange(50), {name: np.arange(50.0)}),
        survival_matrix({(name, name): cell}),
        evidence_lines({name: ([1, 2], [3, 4])}, name, "z"),
    ):
        assert png(figure).startswith(b"\x89PNG")


def test_the_chosen_cell_is_marked_where_it_stands():
    cells = {
        (row, column): {"z": z, "verdict": "evidence" if z > 4 else "no evidence"}
        for row, column, z in (("pruned", "query", 9.0), ("pruned", "text", 1.0), ("x", "text", 0))
    }
    plain = survival_matrix(cells)
    figure = survival_matrix(cells, chosen=("x", "text"), xlabel="heat")
    marks = figure.axes[0].patches[len(plain.axes[0].patches) :]
    assert {(mark.get_x(), mark.get_y()) for mark in marks} == {(0.5, 0.5)}
    assert figure.alt_text.endswith("x, text: 0.0 (no evidence). Chosen: x, text.")
    assert "2 derivatives and controls by 2 columns (heat);" in figure.alt_text
    assert "by 2 tests;" in plain.alt_text
    with pytest.raises(InputError, match=r"\('x', 'query'\) is not among those given"):
        survival_matrix(cells, chosen=("x", "query"))
    ringed = evidence_lines({"a": ([1, 2], [3.0, 4.0])}, "x", "z", chosen=(2, 4.0))
    assert ringed.alt_text == "z against x. a: 3.00 at 1 to 4.00 at 2; chosen: 4.00 at 2."
    assert ringed.axes[0].lines[-1].get_xydata().tolist() == [[2.0, 4.0]]


def test_matrix_refuses_what_it_cannot_draw(run):
    transcript, models = run
    evidence = query_test(transcript, models["suspect"], n_resamples=99)
    with pytest.raises(InputError, match="no evidence"):
        matrix({})
    with pytest.raises(InputError, match="no pair"):
        matrix({"suspect": evidence})
    with pytest.raises(InputError, match="'p' is unknown"):
        matrix({("suspect", "ours"): evidence}, "p")
