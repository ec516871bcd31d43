"""Archives and JSON from strangers: what could harm or mislead is refused in one sentence."""

import io
import stat
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError
from workbench.archive import (
    MAX_MEMBERS,
    Archive,
    archive_bytes,
    canonical_json,
    printable,
    read_limited,
    strict_json,
)

MEMBERS = {"a.json": b'{"a":1}', "scores/b.parquet": b"PAR1" + bytes(50), "empty.bin": b""}


def test_bytes_follow_from_the_content_alone(tmp_path):
    data = archive_bytes(MEMBERS)
    assert archive_bytes(dict(reversed(MEMBERS.items()))) == data
    (tmp_path / "a.zip").write_bytes(data)
    opened = Archive.open(tmp_path / "a.zip")
    assert opened.members == MEMBERS
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == sorted(MEMBERS)
        assert {e.date_time for e in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9-]{1,8}(/[a-z0-9-]{1,8})?\.[a-z]{1,4}", fullmatch=True),
        st.binary(max_size=200),
        max_size=8,
    )
)
def test_what_is_written_is_read(members):
    assert Archive.from_bytes(archive_bytes(members), "a.zip").members == members


def zipped(entries, comment=b"", compression=zipfile.ZIP_STORED):
    """An archive of (ZipInfo or name, data), as a stranger may make it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.comment = comment
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def entry(name, mode=stat.S_IFREG | 0o644, extra=b"", comment=b""):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.extra, info.comment = extra, comment
    return info


def renamed(old, new):
    """Names that zipfile itself would not write."""
    return archive_bytes({old: b"x"}).replace(old.encode(), new)


def encrypted():
    data = bytearray(archive_bytes({"a.json": b"12345678"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def twice():
    one = archive_bytes({"a.json": b"1", "b.json": b"2"})
    return one.replace(b"b.json", b"a.json")


def overlapping():
    """Both directory entries point to one member: the trick of bombs without compression."""
    data = bytearray(archive_bytes({"a.json": b"1" * 50, "b.json": b"2" * 50}))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    data[second + 46 : second + 52] = b"a.jsom"
    return bytes(data)


def hidden_bytes():
    data = archive_bytes({"a.json": b"1", "b.json": b"2"})
    second, start = data.index(b"PK\x03\x04", 4), data.index(b"PK\x01\x02")
    head = data[:second] + b"hidden" + data[second:start]
    tail = bytearray(data[start:])
    place = tail.rindex(b"PK\x01\x02")
    tail[place + 42 : place + 46] = struct.pack("<L", second + 6)
    end = tail.rindex(b"PK\x05\x06")
    tail[end + 16 : end + 20] = struct.pack("<L", start + 6)
    return head + bytes(tail)


def lying_size():
    data = bytearray(archive_bytes({"a.json": b"1" * 50}))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<2L", 2**31, 2**31)
    return bytes(data)


HOSTILE = {
    "zip slip": (renamed("aaaaa.json", b"../../x.js"), "points outside"),
    "zip slip, backslashes": (renamed("aaaaa.json", b"..\\..\\x.js"), "points outside"),
    "absolute": (renamed("aaaaa.json", b"/etc/passw"), "absolute path"),
    "drive": (renamed("aaaaa.json", b"C:\\x\\y.jso"), "absolute path"),
    "twice": (twice(), "is there twice"),
    "symlink": (zipped([(entry("a.json", stat.S_IFLNK | 0o777), b"/etc/passwd")]), "symbolic link"),
    "bomb": (zipped([("a.json", bytes(10**6))], compression=zipfile.ZIP_DEFLATED), "compressed"),
    "encrypted": (encrypted(), "encrypted"),
    "folder": (zipped([("folder/", b"")]), "no member of an archive"),
    "control characters": (renamed("aaaaa.json", b"\x1b[2Ja.json"), "no member of an archive"),
    "zero byte": (renamed("aaaaa.json", b"a.json\0xyz"), "no member of an archive"),
    "overlap": (overlapping(), "overlaps another"),
    "lying size": (lying_size(), "bytes outside|damaged"),
    "hidden bytes": (hidden_bytes(), "hide before it"),
    "extra field": (zipped([(entry("a.json", extra=b"\1\0\2\0ab"), b"1")]), "extra fields"),
    "member's comment": (zipped([(entry("a.json", comment=b"psst"), b"1")]), "extra fields"),
    "comment": (zipped([("a.json", b"1")], comment=b"psst"), "after its end"),
    "prefix": (b"#!/bin/sh\n" + archive_bytes(MEMBERS), "bytes outside|hide before"),
    "suffix": (archive_bytes(MEMBERS) + b"more", "after its end"),
    "cut": (archive_bytes(MEMBERS)[:-30], "after its end"),
    "empty": (b"", "no archive"),
    "many": (zipped([(f"{i}.json", b"") for i in range(MAX_MEMBERS + 1)]), "more than 64"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_archives_are_refused_in_one_sentence(name):
    data, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as refused:
        Archive.from_bytes(data, "b.zip")
    text = str(refused.value)
    assert text.startswith("b.zip")
    assert text.isprintable()


def test_every_changed_byte_of_a_member_is_noticed():
    data = archive_bytes(MEMBERS)
    start = data.index(b"PAR1")
    for offset in range(start, start + 54):
        broken = bytearray(data)
        broken[offset] ^= 0xFF
        with pytest.raises(InputError, match="damaged"):
            Archive.from_bytes(bytes(broken), "b.zip")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_refused_or_leaves_the_members_alone(place, flip):
    data = bytearray(archive_bytes(MEMBERS))
    data[place % len(data)] ^= flip
    try:
        found = Archive.from_bytes(bytes(data), "b.zip").members
    except InputError:
        return
    assert list(found.values()) == [MEMBERS[name] for name in sorted(MEMBERS)]


def test_sizes_are_limited_before_anything_is_read(tmp_path):
    path = tmp_path / "big.zip"
    path.write_bytes(archive_bytes(MEMBERS))
    with pytest.raises(InputError, match="larger than 100 bytes"):
        Archive.open(path, max_bytes=100)
    with pytest.raises(InputError, match="does not exist"):
        read_limited(tmp_path / "absent.zip")
    with pytest.raises(InputError, match="no file"):
        read_limited(tmp_path)


def test_names_that_would_be_refused_are_not_written():
    for name in ("../a.json", "/a.json", "A.json", "a", "a/b/c.json", "a.json/"):
        with pytest.raises(InputError, match="cannot be a member's name"):
            archive_bytes({name: b""})
    with pytest.raises(InputError, match="more than an archive holds"):
        archive_bytes({f"{i}.bin": b"" for i in range(MAX_MEMBERS + 1)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b"[" * 40 + b"]" * 40, "nested more than 32"),
        (b"[" * 200_000 + b"]" * 200_000, "nested"),
        (b'{"a":' * 100_000, "nested|not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"", "not JSON"),
        (b" " * 2000, "more than 1,000"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_hostile_json_is_refused_in_one_sentence(data, message):
    limit = 1000 if len(data) == 2000 else 10**7
    with pytest.raises(InputError, match=message) as refused:
        strict_json(data, "note.json", limit)
    assert str(refused.value).startswith("note.json")
    assert str(refused.value).isprintable()


scalars = st.none() | st.booleans() | st.integers() | st.text(
    st.characters(codec="utf-8"), max_size=20
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(
            st.characters(codec="utf-8"), max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)  # fmt: skip
def test_canonical_json_is_read_back_and_has_one_spelling(content):
    data = canonical_json(content)
    back = strict_json(data, "x")
    assert back == content
    assert canonical_json(back) == data


def test_fractions_have_no_canonical_form():
    for content in (0.5, {"a": [1, {"b": float("nan")}]}):
        with pytest.raises(InputError, match="decimal text"):
            canonical_json(content)


def test_printable_leaves_nothing_for_a_terminal_to_obey():
    hostile = "\x1b]0;title\x07 \u202eright to left \r\n\x9b31m \x00 tab\t"
    shown = printable(hostile)
    assert shown.isprintable()
    assert "right to left" in shown
    assert len(printable("x" * 10_000)) < 400
