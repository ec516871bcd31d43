"""Reports: parameters read strictly, failures seen, pages that stand alone and run nothing."""

import base64
import html
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench import Scores, Transcript, query_test
from workbench.errors import InputError
from workbench.pages import print_pdf
from workbench.reports import (
    ReportError,
    build_notebooks,
    convert_parameters,
    notebook_differences,
    page_html,
    read_parameters,
    run_all,
    run_notebook,
    widget_errors,
    write_index,
)

ONE_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)<script> & <img src=x onerror=alert(2)>"
# Text formatting of IPython, without its HTML of the same name, keeps these notebooks small.
WRITE = "from pathlib import Path\nif output_dir: Path(output_dir, 'told.txt').write_text(str(n))"


def notebook(path: Path, *cells: Any) -> Path:
    nb = new_notebook(cells=list(cells))
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, str(path))
    return path


def code(source: str, *tags: str, outputs: tuple[Any, ...] = ()) -> Any:
    return new_code_cell(source, metadata={"tags": list(tags)}, outputs=list(outputs))


def parameters(source: str) -> Any:
    return code(source, "parameters")


# ------------------------------------------------------------------------------- parameters


def test_parameters_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "a.ipynb",
        parameters(
            "from typing import Literal\n"
            "source = 'a # b = c'  # a comment\n"
            "n: int | None = 10\n"
            "mode: Literal['x', 'y'] = 'x'; alpha = 1e-3\n"
            "other: 'str | None' = None\n"
            "flag = False\n"
            "names: list[str] = ['a']\n"
        ),
    )
    known = read_parameters(path)
    assert list(known) == ["source", "n", "mode", "alpha", "other", "flag", "names"]
    assert known["source"].default == "a # b = c"
    given = {
        "n": "none",
        "mode": "y",
        "alpha": ".01",
        "other": "word",
        "flag": "true",
        "names": "['b']",
        "source": "x=y",
    }
    assert convert_parameters(known, given, "a") == {
        "n": None,
        "mode": "y",
        "alpha": 0.01,
        "other": "word",
        "flag": True,
        "names": ["b"],
        "source": "x=y",
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", "many", "n: 'many' is not a whole number or none"),
        ("n", "1.5", "not a whole number"),
        ("n", True, "not a whole number"),
        ("mode", "z", "mode: 'z' is not 'x' or 'y'"),
        ("flag", "maybe", "not true or false"),
        ("alpha", "small", "not a number"),
        ("source", 3, "not text"),
        ("sorce", "tiny", "has no parameter sorce: it has source, n, mode, flag, alpha"),
    ],
)
def test_a_wrong_parameter_is_an_error(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    path = notebook(
        tmp_path / "a.ipynb",
        parameters(
            "source = 'recorded'\nn: int | None = 1\nmode: Literal['x', 'y'] = 'x'\n"
            "flag = True\nalpha = 0.1"
        ),
    )
    with pytest.raises(InputError, match=re.escape(message)):
        run_notebook(path, tmp_path / "out", {name: value})
    assert not (tmp_path / "out").exists(), "checked before anything was written or run"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n = 3 * 4", "not a literal"),
        ("n = None", "cannot be told"),
        ("n: dict = {}", "cannot be told"),
        ("n = (1, 2)", "cannot be told"),
        ("n: int", "has no default"),
        ("n = = 2", "not valid Python"),
    ],
)
def test_a_parameters_cell_that_cannot_be_checked_is_an_error(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_parameters(notebook(tmp_path / "a.ipynb", parameters(source)))


def test_a_notebook_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path)
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(InputError, match="cannot be read as a notebook"):
        run_notebook(tmp_path / "half.ipynb", tmp_path)


# ------------------------------------------------------------------------------- running


def test_run_overrides_drops_panels_and_runs_in_the_output_folder(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "a {odd} name.ipynb",
        new_markdown_cell("# Title of *it*\n\nFirst paragraph."),
        parameters("text = 'a'\nn: int | None = 1\noutput_dir = ''"),
        code(WRITE),
        code("import os; print(os.getcwd(), repr(text))"),
        code("raise RuntimeError('a panel ran')", "panel"),
    )
    text = "quotes \" ' \\ # = Ω {x}"
    out = tmp_path / "out {braces}"
    page = run_notebook(path, out, {"n": "12", "text": text})
    assert page.html == out / "a {odd} name.html"
    assert (page.title, page.summary) == ("Title of it", "First paragraph.")
    assert page.parameters == {"text": text, "n": 12, "output_dir": str(out)}
    assert (out / "told.txt").read_text() == "12"
    printed = nbformat.read(str(page.executed), as_version=4).cells[-1].outputs[0].text
    assert printed == f"{out} {text!r}\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise KeyError('gone')", "cell [2]: KeyError: 'gone'"),
        (
            "from workbench.errors import InputError\nraise InputError('no run: make one')",
            "cell [2]: no run: make one",
        ),
        ("import time; time.sleep(60)", "cell [2]: it took longer than 5 s"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "cell [2]: the kernel died, or does not answer",
        ),
    ],
)
def test_a_failure_says_where_and_why_and_keeps_what_ran(
    tmp_path: Path, source: str, reason: str
) -> None:
    cells = [code("print('be' 'fore')"), new_markdown_cell("# T"), code(source), code("'af' 'ter'")]
    path = notebook(tmp_path / "a.ipynb", *cells)
    where = f"a: {reason}; the part that ran is in {tmp_path / 'out' / 'a.html'}"
    with pytest.raises(ReportError) as failed:
        run_notebook(path, tmp_path / "out", timeout=5)
    assert str(failed.value) == where
    text = html.unescape((tmp_path / "out" / "a.html").read_text(encoding="utf-8"))
    assert f"here is the part that ran.</strong> {reason}" in text
    assert "before" in text
    assert "ter&#39;" not in text
    executed = nbformat.read(str(tmp_path / "out" / "a.ipynb"), as_version=4)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in cells[:3]]
    assert "/tmp" not in str(executed.metadata)


def test_an_exception_hidden_in_a_widget_is_an_error(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "a.ipynb",
        code(
            "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    1 / 0\nout",
            "panel",
            "nbval-ignore-output",
        ),
    )
    assert run_notebook(path, tmp_path / "without").html.is_file()
    with pytest.raises(ReportError, match="swallowed an exception, ZeroDivisionError"):
        run_notebook(path, tmp_path / "with", keep_panels=True)


@pytest.mark.parametrize("last", ["1 / 0", "raise ValueError(text)", "1"])
def test_a_report_without_text_holds_nothing_that_a_cell_printed(tmp_path: Path, last: str) -> None:
    show = "from IPython.display import display, HTML, Image; import base64, ipywidgets, sys\n"
    show += "text = 'NIALP'[::-1]; print(text, file=sys.stderr); display(HTML(f'<b>{text}</b>'))\n"
    show += f"display(Image(base64.b64decode({ONE_PIXEL!r}), alt='a picture'))\n"
    show += "out = ipywidgets.Output()\nwith out: print(text)\ndisplay(out); text"
    path = notebook(tmp_path / "a.ipynb", code(show), code(last))
    for no_text in (False, True):
        out, said = tmp_path / str(no_text), ""
        try:
            run_all(path, out, no_text=no_text)
        except ReportError as error:
            said = str(error)
        written = said + "".join(p.read_text() for p in out.rglob("*") if p.is_file())
        assert ("PLAIN" in written) == (not no_text)
        assert ONE_PIXEL in written


@pytest.mark.slow
def test_a_kernel_that_lost_a_message_is_told_from_a_long_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.reports.SILENCE", 6)
    path = notebook(tmp_path / "a.ipynb", code("import time; time.sleep(9)"), code("'lost'"))
    send = AsyncKernelClient.execute

    def lossy(client: Any, source: str, **options: Any) -> str:
        return "no message" if "lost" in source else send(client, source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AsyncKernelClient, "execute", lossy)
        with pytest.raises(ReportError, match=r"cell \[2\]: the kernel died, or does not answer"):
            run_notebook(path, tmp_path / "lost")
    assert run_notebook(path, tmp_path / "kept").html.is_file()


def test_widget_errors_of_a_notebook_without_widgets() -> None:
    assert widget_errors(new_notebook()) == []


def test_unwritable_output_is_bad_input(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", code("1"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write into"):
        run_notebook(path, tmp_path / "file" / "out")


# ------------------------------------------------------------------------------- pages


def page(*cells: Any) -> str:
    return page_html(new_notebook(cells=list(cells)), "a")


def shown(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> Any:
    return new_output("display_data", data=data, metadata=metadata or {})


def test_a_page_asks_for_nothing_and_runs_nothing() -> None:
    text = page(
        new_markdown_cell("# T\n\n$x_1$ and\n\n$$\\frac{a}{b}$$\n\n<script>bad()</script>"),
        code(
            "show()",
            outputs=(
                shown(
                    {"text/html": "<b onclick='bad()'>bold</b><script src='http://a.b'></script>"}
                ),
                shown({"application/javascript": "bad()", "text/plain": "plain"}),
                shown({"text/markdown": HOSTILE}),
                shown({"text/plain": HOSTILE}),
                new_output("stream", name="stdout", text=HOSTILE + " \x1b[31mred\x1b[0m"),
            ),
        ),
    )
    assert "<script" not in text
    assert not re.search(r"<[^>]+\son\w+=", text)
    assert not re.search(r"""<[^>]*\b(src|href)=["']?(https?:)?//""", text)
    assert text.count("<math ") == 2
    assert 'lang="en"' in text
    assert "default-src 'none'" in html.unescape(text)
    assert "bad()&lt;/script&gt;" in text, "shown, not dropped"
    assert text.count("alert(1)") == 3


def test_pictures_have_a_text_alternative() -> None:
    png = {"image/png": ONE_PIXEL, "text/plain": "<Figure>"}
    text = page(
        new_markdown_cell("# T\n\n## Order"),
        code(
            "fig",
            outputs=(
                shown(png, {"image/png": {"alt": 'Means "rise"', "width": 300}}),
                shown(png, {"alt": "Second"}),
                shown(png),
                shown({"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"}),
            ),
        ),
    )
    alternatives = re.findall(r'<img src="data:image/[^"]+" alt="([^"]*)"', text)
    assert alternatives[:2] == ["Means &#34;rise&#34;", "Second"] or alternatives[:2] == [
        "Means &quot;rise&quot;",
        "Second",
    ]
    assert alternatives[2:] == ["Figure in the section “Order”"] * 2
    assert "No description has been provided" not in text


def test_tex_in_code_and_prices_stay() -> None:
    text = page(new_markdown_cell("# T\n\nIt costs $5 and $6, `$a$`.\n\n```\n$b$\n```\n\n\\$c$"))
    assert "<math" not in text
    assert "$5 and $6" in text
    assert "<code>$a$</code>" in text


def test_tex_that_cannot_be_read_is_shown_as_it_is() -> None:
    text = page(new_markdown_cell("# T\n\n$\\frac{a}$ b"))
    assert "\\frac{a}" in text


def test_links_to_notebooks_lead_to_their_pages_or_nowhere() -> None:
    cell = new_markdown_cell("# T\n\n[The *next*](02_next.ipynb), [home](https://a.b/x.ipynb)")
    whole = page_html(new_notebook(cells=[cell]), "a", with_index=True)
    assert '<a href="02_next.html">The <em>next</em></a>' in whole
    alone = page(cell)
    assert "The <em>next</em>," in alone
    assert "02_next" not in alone
    assert "https://a.b/x.ipynb" in alone, "an address elsewhere stays"


def test_contents_link_to_headings_of_the_same_name() -> None:
    text = page(new_markdown_cell("# T\n\n## Order & *time*\n\n## Order & *time*\n\n### Über"))
    anchors = re.findall(r'<li class="level-\d"><a href="#([^"]+)">', text)
    assert anchors == ["order-time", "order-time-2", "über"]
    for anchor in anchors:
        assert f'id="{anchor}"' in text


def test_code_on_demand_and_never() -> None:
    text = page(code("asked = 1", "hide-input"), code("never = 1", "remove-input"))
    assert re.search(r"<details><summary>Code</summary>.*asked", text, re.S)
    assert "never" not in text


def test_tables_of_pandas_lose_their_style_sheet() -> None:
    import pandas as pd

    table = pd.DataFrame({"model": [HOSTILE], "p": [0.5]})
    forms = ({"text/html": table._repr_html_()}, {"text/html": "<style>img {}</style>"})
    text = page(code("table", outputs=tuple(map(shown, forms))))
    assert text.count('<div class="output">') == 1, "a style sheet alone is nothing to read"
    assert "tbody tr th" not in text
    assert 'class="dataframe"' in text
    assert "&lt;script&gt;alert(1)" in text


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_colour_can_be_read_on_every_ground() -> None:
    import workbench.reports

    folder = Path(workbench.reports.__file__).parent / "templates"
    css = (folder / "report.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    for theme in (light, dark):
        for ground in ("ground", "panel", "warn"):
            for text in ("text", "quiet", "link", "keyword", "string", "number", "comment", "name"):
                a, b = sorted((_luminance(theme[text]), _luminance(theme[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (text, ground, theme[text])


# ------------------------------------------------------------------------------- whole reports

EVIDENCE = (
    "from pathlib import Path\nimport numpy as np\n"
    "from workbench import Scores, Transcript, query_test\n"
    "positions = np.arange(300)\n"
    "noise = np.random.default_rng(0).normal(size=300)\n"
    "rising = Scores.from_arrays(loglik=positions / 100 + noise, name=label)\n"
    "transcript = Transcript.from_arrays(positions, shuffle='owner')\n"
    "found = query_test(transcript, rising, n_resamples=999)\n"
    "if output_dir: found.write(Path(output_dir) / 'evidence' / 'rising.json')\n"
    "found"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a whole small report, whose model has a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    common = "source = 'recorded'\noutput_dir = ''"
    picture = f"display({{'image/png': {ONE_PIXEL!r}}}, raw=True, metadata={{'alt': 'One dot'}})"
    notebook(
        folder / "nbs" / "00_start_here.ipynb",
        new_markdown_cell("# Start\n\nIt starts."),
        parameters(common),
        code(f"from IPython.display import display\n{picture}", "hero"),
    )
    notebook(
        folder / "nbs" / "02_query_test.ipynb",
        new_markdown_cell("# Test"),
        parameters(f"{common}\nlabel = 'model'"),
        code(EVIDENCE),
        code("print(label)"),
    )
    notebook(
        folder / "nbs" / "90_report.ipynb",
        new_markdown_cell("# Report"),
        parameters(common),
        code(
            "from pathlib import Path\n"
            "print(source, [p.name for p in Path(output_dir, 'evidence').iterdir()])"
        ),
    )
    (folder / "out" / "evidence").mkdir(parents=True)
    (folder / "out" / "evidence" / "earlier.json").write_text("{}")
    index = run_all(
        folder / "nbs", folder / "out", {"source": "tiny", "label": HOSTILE}, progress=True
    )
    assert index == folder / "out" / "index.html"
    return index


def test_index_shows_picture_tests_and_pages(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "<script" not in text
    order = [text.index(mark) for mark in ('alt="One dot"', "Tests of this run", 'id="pages"')]
    assert order == sorted(order)
    links = re.findall(r'<li><a href="([^"]+)">', text)
    assert links == ["00_start_here.html", "02_query_test.html", "90_report.html"]
    assert "at its floor" in text
    assert "evidence/rising.json" in text
    assert "earlier" not in text, "left by another run"
    assert "breach of a licence" in text
    assert (report.parent / "hero.png").read_bytes() == base64.b64decode(ONE_PIXEL)
    found = json.loads((report.parent / "evidence" / "rising.json").read_text())
    assert found["verdict"] in text


def test_report_notebook_starts_after_the_others_have_ended(report: Path) -> None:
    text = (report.parent / "90_report.html").read_text(encoding="utf-8")
    assert "tiny [&#39;" in text or "tiny ['" in text
    assert "rising.json" in text


def _links(file: Path) -> Iterator[str]:
    yield from re.findall(r'href="([^"#:]+)"', file.read_text(encoding="utf-8"))


def test_links_between_pages_lead_somewhere(report: Path) -> None:
    for file in report.parent.glob("*.html"):
        for link in _links(file):
            assert (report.parent / link).is_file(), (file.name, link)


@pytest.mark.browser
def test_hostile_names_are_shown_and_nothing_runs_or_is_fetched(report: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        pytest.skip("no chromium on this machine")
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    requests: list[str] = []
    events: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=options)
        view = browser.new_page()
        view.on("request", lambda request: requests.append(request.url))
        view.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
        view.on("console", lambda message: events.append(message.text))
        view.on("pageerror", lambda error: events.append(str(error)))
        pages = sorted(report.parent.glob("*.html"))
        for file in pages:
            view.goto(file.as_uri())
            assert view.evaluate("document.images.length === 0 || document.images[0].complete")
            assert view.evaluate("document.scripts.length") == 0
            # No page is wider than a small screen.
            view.set_viewport_size({"width": 360, "height": 700})
            assert view.evaluate("document.documentElement.scrollWidth") <= 360, file.name
        view.goto((report.parent / "02_query_test.html").as_uri())
        assert HOSTILE in view.inner_text("main")
        view.goto(report.as_uri())
        assert HOSTILE in view.inner_text("table.tests")
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert events == []


def test_without_a_browser_nothing_runs_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    notebook(tmp_path / "a.ipynb", parameters("source = 'recorded'"))
    with pytest.raises(InputError, match="no PDF can be made"):
        run_all(tmp_path, tmp_path / "out", pdf=True)
    assert not list((tmp_path / "out").glob("*.html"))


@pytest.mark.browser
def test_the_index_prints_without_naming_its_folder(report: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no chromium on this machine")
    data = print_pdf(report, tmp_path / "index.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert str(report.parent).encode() not in data
    assert b".html)" not in data


def test_a_parameter_that_no_notebook_has_is_an_error(tmp_path: Path) -> None:
    notebook(tmp_path / "a.ipynb", parameters("source = 'recorded'"))
    with pytest.raises(InputError, match="no notebook has a parameter sorce: they have source"):
        run_all(tmp_path, tmp_path / "out", {"sorce": "tiny"})


def test_a_folder_without_notebooks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no notebooks in"):
        run_all(tmp_path, tmp_path / "out")


def test_one_notebook_gives_its_page_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = notebook(tmp_path / "good.ipynb", code("1"))
    bad = notebook(tmp_path / "bad.ipynb", code("raise OSError('disk')"))
    assert run_all(good, tmp_path / "out") == tmp_path / "out" / "good.html"
    assert list(_links(tmp_path / "out" / "good.html")) == []
    assert capsys.readouterr() == ("", "")
    page = tmp_path / "out" / "bad.html"
    with pytest.raises(ReportError, match=re.escape(f"bad: cell [1]: OSError: disk; open {page}")):
        run_all(bad, tmp_path / "out")
    assert page.is_file()


def test_a_failure_leaves_the_other_pages_and_an_index_that_says_so(tmp_path: Path) -> None:
    nbs, out = tmp_path / "nbs", tmp_path / "out"
    cells = (new_markdown_cell("# Bad & *worse*"), code(f"raise OSError({HOSTILE!r})"))
    notebook(nbs / "00_bad.ipynb", *cells)
    # The process that runs the notebook dies, not only its kernel.
    died = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(9)"
    notebook(nbs / "01_died.ipynb", code(died))
    notebook(nbs / "02_test.ipynb", parameters("output_dir = ''\nlabel = 'm'"), code(EVIDENCE))
    notebook(nbs / "90_report.ipynb", code("print('the last')"))
    arguments = ["report", str(nbs), "--out", str(out), "--jobs", "1"]
    call = "import sys; from workbench.cli import app_main; app_main()"
    done = subprocess.run(
        [sys.executable, "-c", call, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    index = out / "index.html"
    last = f"error: 2 of 4 notebooks failed (00_bad, 01_died); open {index}"
    assert done.stderr.splitlines()[-1] == last
    assert "90_report: done in" in done.stderr
    text = index.read_text(encoding="utf-8")
    assert "<script" not in text
    failed, _, rest = text.partition("Tests of this run")
    assert "2 of 4 notebooks failed" in failed
    assert '<a href="00_bad.html">Bad &amp; worse</a> (00_bad): cell [1]: OSError: ' in failed
    assert html.escape(HOSTILE, quote=False) in failed
    assert '<a href="01_died.html">01_died</a> (01_died): its process ended with' in failed
    assert "evidence/rising.json" in rest
    assert re.findall(r'<li><a href="([^"]+)">', rest) == ["02_test.html", "90_report.html"]
    for file in out.glob("*.html"):
        assert all((out / link).is_file() for link in _links(file))


def test_pages_of_an_earlier_run_say_so(tmp_path: Path) -> None:
    nbs, out = tmp_path / "nbs", tmp_path / "out"
    earlier = "From an earlier run."
    again = notebook(nbs / "a.ipynb", code("print(1)"))
    notebook(nbs / "b.ipynb", code("print(2)"))
    run_all(nbs, out)
    (out / "b.pdf").write_text("printed")
    foreign = out / "foreign.html"
    foreign.write_bytes(b'<main id="main">\xff</main>')
    assert not any(earlier in page.read_text(errors="replace") for page in out.glob("*.html"))
    for _ in range(2):
        run_all(again, out)
        marks = {p.stem: p.read_text(errors="replace").count(earlier) for p in out.glob("*.html")}
        assert marks == {"a": 0, "b": 1, "index": 1, "foreign": 0}
    assert foreign.read_bytes() == b'<main id="main">\xff</main>'
    assert (out / "b.earlier.pdf").is_file()
    assert not (out / "b.pdf").exists()
    run_all(nbs, out)
    assert not any(earlier in page.read_text(errors="replace") for page in out.glob("*.html"))


@pytest.mark.slow
def test_an_interruption_stops_every_kernel(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    source = "import os, time, pathlib\npathlib.Path(note).write_text(str(os.getpid()))\n"
    for name in ("a", "b"):
        notebook(
            tmp_path / "nbs" / f"{name}.ipynb",
            parameters(f"note = {str(note) + name!r}"),
            code(source + "time.sleep(600)"),
        )
    call = "import sys; from workbench.cli import app_main; app_main()"
    arguments = ["report", str(tmp_path / "nbs"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", call, *arguments], stderr=subprocess.PIPE, text=True
    )
    notes = [Path(f"{note}{name}") for name in ("a", "b")]
    kernels: list[int] = []
    deadline = time.monotonic() + 120
    while len(kernels) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        kernels = [int(file.read_text()) for file in notes if file.exists() and file.read_text()]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert len(kernels) == 2
    assert process.returncode == 130
    assert "Traceback" not in said
    # A busy kernel ends by itself when it finds its parent gone; it looks every second.
    gone = time.monotonic() + 20
    while any(map(psutil.pid_exists, kernels)) and time.monotonic() < gone:
        time.sleep(0.2)
    assert not [pid for pid in kernels if psutil.pid_exists(pid)]


def test_an_index_of_something_that_is_not_evidence_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "x.json").write_text("{}")
    with pytest.raises(InputError, match=r"x\.json"):
        write_index([], tmp_path)


def test_an_index_alone(tmp_path: Path) -> None:
    positions = np.arange(200)
    scores = Scores.from_arrays(loglik=np.random.default_rng(1).normal(size=200), name="other")
    found = query_test(Transcript.from_arrays(positions, shuffle="owner"), scores, n_resamples=99)
    found.write(tmp_path / "evidence" / "b.json")
    text = write_index([], tmp_path).read_text(encoding="utf-8")
    assert found.verdict in text
    assert ">other<" in text


# ------------------------------------------------------------------------------- building

SOURCE = """# %% [markdown]
# # Title

# %% tags=["parameters"]
source = "recorded"

# %%
print(source)
print("more")

# %% tags=["panel", "nbval-ignore-output"]
import ipywidgets
ipywidgets.IntSlider(description="n")
"""


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "00_a.py").write_text(SOURCE)
    assert notebook_differences(tmp_path / "source", tmp_path) == [
        "00_a has a source but no notebook"
    ]
    [path] = build_notebooks(tmp_path / "source", tmp_path)
    first = path.read_bytes()
    build_notebooks(tmp_path / "source", tmp_path, only=["00_a"])
    assert path.read_bytes() == first
    assert notebook_differences(tmp_path / "source", tmp_path) == []

    nb = nbformat.read(str(path), as_version=4)
    assert [cell.id for cell in nb.cells] == ["cell-00", "cell-01", "cell-02", "cell-03"]
    assert [c.execution_count for c in nb.cells if c.cell_type == "code"] == [1, 2, 3]
    assert nb.cells[2].outputs[0].text == "recorded\nmore\n"
    assert nb.cells[3].outputs == []
    assert nb.metadata.kernelspec.name == "python3"
    assert set(nb.metadata) == {"kernelspec", "language_info"}

    nb.cells[2].source += "\nprint('edited here')"
    nbformat.write(nb, str(path))
    assert notebook_differences(tmp_path / "source", tmp_path) == [
        "00_a: cell 2 differs between source and notebook"
    ]


def test_a_source_that_fails_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.py").write_text("# %%\n1 / 0\n")
    (tmp_path / "a.ipynb").write_text("as it was")
    with pytest.raises(ReportError, match=r"a\.py: a cell raised ZeroDivisionError"):
        build_notebooks(tmp_path / "source", tmp_path)
    assert (tmp_path / "a.ipynb").read_text() == "as it was"
    with pytest.raises(InputError, match="no source of b: it has a"):
        build_notebooks(tmp_path / "source", tmp_path, only=["b"])
