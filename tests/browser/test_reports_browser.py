"""Pages of reports in a real browser: read by axe-core, and silent on the network."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe import grave, lightness

from workbench.reports import ReportPage, page_html, write_index

ROOT = Path(__file__).resolve().parent.parent.parent
STOCK = "No description has been provided"
# A kind of page each: a lesson with figures, evidence, tables, formulas; and the report.
PAGES = ("02_query_test", "05_calibration_and_power", "90_report")
NAMES = [*PAGES, "index"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of the committed notebooks, as they are, and an index; nothing is run."""
    from workbench import query_test
    from workbench.lab import open_run

    folder = tmp_path_factory.mktemp("report")
    pages = []
    for name in PAGES:
        notebook = nbformat.read(str(ROOT / "notebooks" / f"{name}.ipynb"), as_version=4)
        html = folder / f"{name}.html"
        html.write_text(
            page_html(notebook, name, {"source": "recorded"}, with_index=True), encoding="utf-8"
        )
        hero, picture = None, _first_picture(notebook)
        if not pages and picture is not None:
            hero = base64.b64decode(picture)
        pages.append(
            ReportPage(
                name=name,
                title=name.replace("_", " "),
                summary="A page.",
                html=html,
                executed=html.with_suffix(".ipynb"),
                parameters={},
                seconds=1.0,
                hero=hero,
                hero_alt="The main figure" if hero else "",
            )
        )
    run = open_run("recorded")
    for suspect in ("derivative", "independent"):
        found = query_test(
            run.transcript, run.scores(suspect), [run.scores("reference-same")], n_resamples=99
        )
        found.write(folder / "evidence" / f"{suspect}.json")
    write_index(pages, folder)
    return folder


def _first_picture(notebook: Any) -> str | None:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                return str(output.data["image/png"])
    return None


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 480)])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_grave(
    chromium: Any, folder: Path, name: str, theme: str, width: int
) -> None:
    # axe is put into the page, whose own policy allows no script.
    context = chromium.new_context(
        color_scheme=theme, bypass_csp=True, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    try:
        page.goto((folder / f"{name}.html").as_uri())
        assert grave(page) == []
    finally:
        context.close()


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_as_dark_as_the_theme_and_light_on_paper(
    chromium: Any, folder: Path, screenshots: Path, name: str
) -> None:
    with chromium.new_page(viewport={"width": 1280, "height": 720}) as page:
        page.goto((folder / f"{name}.html").as_uri())
        figure = page.locator("figure img").first
        page.emulate_media(color_scheme="dark")
        figure.scroll_into_view_if_needed()
        page.screenshot(path=screenshots / f"{name}-dark.png")
        assert lightness(figure) < 0.25
        page.emulate_media(color_scheme="light")
        assert lightness(figure) > 0.75
        page.emulate_media(color_scheme="dark", media="print")
        assert lightness(figure) > 0.75


@pytest.mark.parametrize("name", NAMES)
def test_page_asks_for_nothing_and_describes_its_pictures(
    chromium: Any, folder: Path, watch: Any, name: str
) -> None:
    page = chromium.new_page()
    try:
        watch.follow(page)
        page.goto((folder / f"{name}.html").as_uri(), wait_until="load")
        elsewhere = [url for url in watch.requests if not url.startswith(("file:", "data:"))]
        files = [url for url in watch.requests if url.startswith("file:")]
        assert elsewhere == []
        assert len(files) == 1, "a page is one file"
        assert watch.problems() == []
        watch.requests.clear()
        assert STOCK not in page.content()
        without = page.locator("img").evaluate_all(
            "images => images.filter(image => !image.alt?.trim()).map(image => image.outerHTML)"
        )
        assert without == []
        cut = page.locator("img").evaluate_all(
            "images => images.filter(image => !image.complete || !image.naturalWidth).length"
        )
        assert cut == 0
        assert page.locator("script").count() == 0
    finally:
        page.close()
