"""Bundles as a cheat would make them: members changed, the inner hashes made to fit again.

Written apart from the code under test, which makes its manifests itself.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.archive import archive_bytes


def with_manifest(content: Mapping[str, bytes], form: str = "palimpsest bundle 1") -> bytes:
    """An archive of these members, the manifest made anew."""
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content.items()
        if name != "manifest.json"
    }
    manifest = json.dumps({"format": form, "members": listed}, sort_keys=True)
    return archive_bytes({**content, "manifest.json": manifest.encode()})


def edited(made: Mapping[str, Any], name: str, change: Callable[[Any], object]) -> bytes:
    """A JSON member after a change."""
    content = json.loads(made["members"][name])
    change(content)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def changed_bytes(path: Path, data: bytes, every: int = 1) -> Iterable[int]:
    """Write the file, and change one byte of it at a time; it is whole again at the end."""
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for offset in range(0, len(data), every):
            os.pwrite(file.fileno(), bytes([data[offset] ^ (1 << offset % 8)]), offset)
            yield offset
            os.pwrite(file.fileno(), data[offset : offset + 1], offset)
