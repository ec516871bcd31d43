"""The Merkle root against an independent computation; what a reveal shows and what it cannot."""

import hashlib
import hmac
import os
import pickle
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import InputError, Transcript
from workbench.merkle import (
    MasterSalt,
    MerkleTree,
    content_bytes,
    leaves_of,
    marks_of,
    root_from,
    seal,
)

KEY = bytes(range(32))
SALT = MasterSalt(KEY)


def transcript_of(n, units=False, blocks=False, seed=0):
    rng = np.random.default_rng(seed)
    return Transcript.from_arrays(
        rng.permutation(n),
        tokens=[rng.integers(0, 70000, rng.integers(0, 6)) for _ in range(n)],
        units=rng.integers(0, 3, n) if units else None,
        blocks=rng.integers(0, 2, n) if blocks else None,
    )


def u64(number):
    return number.to_bytes(8, "little")


def i64(number):
    return int(number).to_bytes(8, "little", signed=True)


def independent_root(transcript, key):
    """As the docstring says it, row by row, with the recursion left to right."""

    def sha(data):
        return hashlib.sha256(data).digest()

    leaves = []
    for row, tokens in enumerate(transcript.tokens()):
        salt = hmac.new(key, b"palimpsest salt 1\0" + u64(row), "sha256").digest()
        content = b"t" + b"".join(int(t).to_bytes(4, "little") for t in tokens)
        sealed = sha(b"palimpsest content 1\0" + u64(row) + salt + content)
        mark = hmac.new(key, b"palimpsest mark 1\0" + content, "sha256").digest()[:16]
        unit = b"\0" + bytes(8)
        if transcript.units is not None:
            unit = b"\1" + i64(transcript.units[row])
        place = i64(transcript.positions[row]) + i64(transcript.strata[row]) + unit
        leaves.append(sha(b"palimpsest leaf 1\0" + u64(row) + place + mark + sealed))
    level = leaves
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [sha(b"palimpsest node 1\0" + p[0] + p[1]) if len(p) == 2 else p[0] for p in pairs]
    return sha(b"palimpsest root 1\0" + u64(transcript.n) + level[0]).hex()


def leaves_for(transcript, tree, rows):
    units = None if transcript.units is None else transcript.units[rows]
    return leaves_of(
        rows, transcript.positions[rows], transcript.strata[rows], units, tree.marks_of(rows),
        tree.sealed_of(rows),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), units=st.booleans(), blocks=st.booleans(), data=st.data())
def test_any_subset_leads_to_the_independent_root_and_no_other_rows_do(n, units, blocks, data):
    transcript = transcript_of(n, units, blocks)
    tree = MerkleTree.build(transcript, SALT)
    assert tree.root == independent_root(transcript, KEY)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)))
    leaves, proof = leaves_for(transcript, tree, rows), tree.prove(rows)
    assert root_from(rows, leaves, proof, n) == tree.root
    both = bytearray(leaves + proof)
    both[data.draw(st.integers(0, len(both) - 1))] ^= data.draw(st.integers(1, 255))
    assert root_from(rows, bytes(both[: len(leaves)]), bytes(both[len(leaves) :]), n) != tree.root
    other = data.draw(st.lists(st.integers(0, n - 1), min_size=len(rows), max_size=len(rows),
                               unique=True))  # fmt: skip
    if other != rows.tolist():
        try:
            root = root_from(other, leaves, proof, n)
        except InputError:  # the proof has too many nodes for these rows, or too few
            root = None
        assert root != tree.root


def test_all_rows_need_no_proof_and_one_row_a_short_one():
    transcript = transcript_of(100)
    tree = MerkleTree.build(transcript, SALT)
    assert tree.prove(range(100)) == b""
    assert len(tree.prove([57])) <= 32 * 7


def test_every_field_of_a_row_is_in_its_leaf():
    sealed = seal(3, bytes(32), b"sword")
    base = {"rows": [3], "positions": [8], "strata": [1], "units": [2], "marks": bytes(16),
            "sealed": sealed}  # fmt: skip
    first = leaves_of(**base)
    changes = [
        {"rows": [4]}, {"positions": [9]}, {"strata": [0]}, {"units": [3]}, {"units": None},
        {"sealed": seal(3, bytes(32), b"swore")}, {"sealed": seal(3, b"\1" * 32, b"sword")},
        {"sealed": seal(4, bytes(32), b"sword")}, {"positions": [-8]}, {"marks": b"\1" * 16},
    ]  # fmt: skip
    others = [leaves_of(**{**base, **change}) for change in changes]
    assert len({first, *others}) == len(changes) + 1
    # Fields cannot borrow from their neighbours: unit 0 is not "no unit".
    assert leaves_of(**{**base, "units": [0]}) != leaves_of(**{**base, "units": None})


def test_the_number_of_rows_is_committed():
    leaf = leaves_of([0], [0], [0], None, bytes(16), seal(0, bytes(32), b"n"))
    node = leaves_of([1], [1], [0], None, bytes(16), seal(1, bytes(32), b"n"))
    assert root_from([0], leaf, b"", 1) != root_from([0], leaf, node, 2)
    three = MerkleTree.build(transcript_of(3), SALT)
    with pytest.raises(InputError, match="too short"):
        root_from([0], three.levels[0][:32], three.prove([0]), 9)
    with pytest.raises(InputError, match="too long"):
        root_from([0], three.levels[0][:32], three.prove([0]) + bytes(32), 3)


def test_a_public_text_cannot_be_recognised_without_its_salt():
    transcript = Transcript.from_arrays([0, 1], texts=["the public domain", "the public domain"])
    tree = MerkleTree.build(transcript, SALT)
    guess = content_bytes("text", "the public domain")
    assert seal(0, SALT.row(0), guess) == tree.sealed[:32]
    assert tree.sealed[:32] != tree.sealed[32:], "equal texts look equal"
    for salt in (bytes(32), SALT.row(1), hashlib.sha256(KEY).digest()):
        assert seal(0, salt, guess) != tree.sealed[:32]
    assert MerkleTree.build(transcript, MasterSalt.fresh()).root != tree.root


@pytest.mark.parametrize("kind", ["tokens", "text", "digest", "nothing"])
def test_content_of_each_kind(kind):
    given = {
        "tokens": {"tokens": [[1, 2], [2**32 - 1]]},
        "text": {"texts": ["a", "Straße\n"]},
        "digest": {"digests": np.arange(32, dtype=np.uint8).reshape(2, 16)},
        "nothing": {},
    }[kind]
    transcript = Transcript.from_arrays([1, 0], **given)
    tree = MerkleTree.build(transcript, SALT)
    second = {
        "tokens": b"t\xff\xff\xff\xff",
        "text": b"s" + "Straße\n".encode(),
        "digest": b"d" + bytes(range(16, 32)),
        "nothing": b"n",
    }[kind]
    assert tree.sealed[32:] == seal(1, SALT.row(1), second)


def test_root_does_not_depend_on_how_the_table_is_stored(tmp_path):
    transcript = transcript_of(500, units=True)
    transcript.write(tmp_path / "t.parquet")
    again = Transcript.read(tmp_path / "t.parquet")
    assert MerkleTree.build(again, SALT).root == MerkleTree.build(transcript, SALT).root
    texts = Transcript.from_arrays(range(300), texts=[f"text {i}" for i in range(300)])
    texts.write(tmp_path / "s.parquet")
    steps = []
    tree = MerkleTree.build(Transcript.read(tmp_path / "s.parquet"), SALT, steps.append)
    assert tree.root == MerkleTree.build(texts, SALT).root
    assert sum(steps) == 300


def test_marks_tell_equal_rows_and_nothing_else():
    texts = ["a", "b", "a", "c"]
    marks = marks_of(Transcript.from_arrays(range(4), texts=texts), SALT)
    assert marks.tobytes() == MerkleTree.build(
        Transcript.from_arrays(range(4), texts=texts), SALT
    ).marks  # fmt: skip
    assert (marks[0] == marks[2]).all()
    assert len({mark.tobytes() for mark in marks}) == 3
    others = marks_of(Transcript.from_arrays(range(4), texts=texts), MasterSalt.fresh())
    assert not (others == marks).all(axis=1).any()
    assert marks_of(Transcript.from_arrays(range(4)), SALT) is None


def test_row_salts_are_hmac_and_differ():
    salts = {SALT.row(i) for i in range(1000)}
    assert len(salts) == 1000
    assert SALT.row(7) == hmac.new(KEY, b"palimpsest salt 1\0" + u64(7), "sha256").digest()


def test_master_salt_is_private_and_never_shown(tmp_path):
    path = SALT.write(tmp_path / "secret.salt")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MasterSalt.read(path).row(5) == SALT.row(5)
    for text in (repr(SALT), str(SALT), f"{SALT!r}", f"{[SALT]}"):
        assert KEY.hex() not in text
        assert "secret" in text
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(SALT)
    with pytest.raises(InputError, match="never replaced"):
        MasterSalt.fresh().write(path)
    path.chmod(0o644)
    if os.name == "posix":
        with pytest.raises(InputError, match="chmod 600"):
            MasterSalt.read(path)


def test_bad_salts_and_rows_are_one_sentence(tmp_path):
    (tmp_path / "note").write_text("hello")
    with pytest.raises(InputError, match="no file of a secret salt"):
        MasterSalt.read(tmp_path / "note")
    with pytest.raises(InputError, match="cannot be read"):
        MasterSalt.read(tmp_path / "absent")
    with pytest.raises(InputError, match="32 bytes"):
        MasterSalt(b"short")
    tree = MerkleTree.build(transcript_of(5), SALT)
    for rows in ([], [5], [-1], [1, 1]):
        with pytest.raises(InputError, match="distinct and between 0 and 4"):
            tree.prove(rows)
    with pytest.raises(InputError, match="differ in number"):
        leaves_of([1, 2], [1], [0, 0], None, bytes(32), bytes(64))
    with pytest.raises(InputError, match="differ in number"):
        leaves_of([1, 2], [1, 2], [0, 0], None, bytes(31), bytes(64))
    for tokens in ([-1], [2**32], [0.5]):
        with pytest.raises(InputError, match="whole numbers"):
            content_bytes("tokens", tokens)
    with pytest.raises(InputError, match="UTF-8"):
        content_bytes("text", "\ud800")
