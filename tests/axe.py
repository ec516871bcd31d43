"""A page, or a part of one, as its readers meet it: what keeps them out, and how light it is."""

import io
from typing import Any

import pytest
from PIL import Image, ImageStat

GRAVE = ("serious", "critical")


def grave(page: Any, part: str | None = None) -> list[str]:
    """Serious and critical findings, each with its first place; skipped where axe is missing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, context=part).response
    assert found["testEngine"]["name"] == "axe-core"
    return [
        f"{v['id']}: {v['help']} ({len(v['nodes'])} times, first {v['nodes'][0]['html'][:200]})"
        for v in found["violations"]
        if v["impact"] in GRAVE
    ]


def lightness(part: Any) -> float:
    """Mean of the picture of a part of a page, from 0 (black) to 1 (white)."""
    picture = Image.open(io.BytesIO(part.screenshot())).convert("L")
    return float(ImageStat.Stat(picture).mean[0]) / 255
