"""axe-core on a page, or on a part of one: what keeps readers out."""

from typing import Any

import pytest

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
