"""How a server may say the key that it was sent, and every form in which a file may hold one."""

import base64
import contextlib
import html
import json
import sqlite3
import urllib.parse
import zlib
from pathlib import Path

import pyarrow.parquet as pq


def spellings(key: str) -> dict[str, str]:
    """The key as it may stand between the quotation marks of a text in JSON."""
    escaped = "".join(f"\\u{ord(c):04X}" for c in key)
    within = {
        "plain": key,
        "JSON twice": escaped.replace("\\", "\\\\"),
        "percent": urllib.parse.quote(key, safe=""),
        "percent of every letter": "".join(f"%{ord(c):02x}" for c in key),
        "percent twice": urllib.parse.quote(urllib.parse.quote(key, safe="")),
        "HTML": "".join(f"&#{ord(c)};" for c in key),
        "hex": key.encode().hex(),
        **{
            f"base64 after {n}": base64.b64encode(b"x" * n + key.encode() + b"!").decode()
            for n in range(3)
        },
        "base64 of addresses": base64.urlsafe_b64encode(f"Bearer {key}".encode()).decode(),
    }
    return {
        "JSON": escaped,
        "slashes": key.replace("/", r"\/"),
        **{name: json.dumps(form)[1:-1] for name, form in within.items()},
    }


def unspelled(data: bytes) -> list[str]:
    """The data, and what it may stand for."""
    text = data.decode(errors="replace")
    once = urllib.parse.unquote(text)
    forms = [text, once, urllib.parse.unquote(once), html.unescape(text), text.replace("\\/", "/")]
    for doubled in (text, text.replace("\\\\", "\\")):
        forms.append(doubled.encode(errors="replace").decode("unicode_escape", errors="replace"))
    words = "".join(c if c.isalnum() or c in "+/-_=" else " " for c in text).split()
    for word in words:
        with contextlib.suppress(ValueError):
            whole = word.rstrip("=").replace("-", "+").replace("_", "/")
            raw = base64.b64decode(whole + "=" * (-len(whole) % 4))
            forms.append(raw.decode(errors="replace"))
        with contextlib.suppress(ValueError):
            forms.append(bytes.fromhex(word).decode(errors="replace"))
    return forms


def unpacked(path: Path) -> bytes:
    """A file's bytes, and after them what is compressed in it."""
    data = path.read_bytes()
    if data.startswith(b"SQLite format 3"):
        with contextlib.closing(sqlite3.connect(path)) as store:
            rows = store.execute("SELECT answer FROM answers").fetchall()
        data += b"".join(zlib.decompress(row) for (row,) in rows)
    if data.startswith(b"PAR1"):
        table = pq.read_table(path)
        data += f"{table.to_pydict()} {table.schema.metadata}".encode(errors="replace")
    return data
