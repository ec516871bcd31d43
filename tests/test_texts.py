"""Texts: what was published, prompt and completion apart; files of every kind; clear errors."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench import InputError, Texts


def test_written_texts_come_back_whole(tmp_path):
    texts = Texts.from_tokens(
        [[5, 6, 7], [8]],
        [[1, 2], []],
        tokenizer_sha256="ab",
        provenance={"label": "bob", "temperature": 1.0},
    )
    back = Texts.read(texts.write(tmp_path / "bob.parquet"))
    assert back.kind == "tokens"
    assert [c.tolist() for c in back.completions] == [[5, 6, 7], [8]]
    assert [p.tolist() for p in back.prompts] == [[1, 2], []]
    assert (back.tokenizer_sha256, back.provenance) == ("ab", texts.provenance)
    assert back.fingerprint == texts.fingerprint
    assert (back.label, back.n, back.n_tokens) == ("bob", 2, 4)


def test_ids_beyond_31_bits_are_kept(tmp_path):
    texts = Texts.from_tokens([[2**32 - 1, 0]])
    back = Texts.read(texts.write(tmp_path / "wide.parquet"))
    assert back.completions[0].tolist() == [2**32 - 1, 0]


def test_strings_come_back(tmp_path):
    texts = Texts.from_strings(["a b", "ü"], ["p", ""])
    back = Texts.read(texts.write(tmp_path / "t.parquet"))
    assert (back.kind, back.completions, back.prompts) == ("text", ["a b", "ü"], ["p", ""])


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_json_lines_with_usual_names(tmp_path, name):
    rows = [{"prompt": "once", "completion": " upon"}, {"prompt": "", "completion": "x"}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    texts = Texts.read(tmp_path / name)
    assert (texts.completions, texts.prompts) == ([" upon", "x"], ["once", ""])


def test_json_lines_of_token_ids_with_own_names(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"out": [1, 2], "in": []}\n{"out": [3], "in": [4]}\n')
    texts = Texts.read(tmp_path / "t.jsonl", tokens="out", prompt="in")
    assert [c.tolist() for c in texts.completions] == [[1, 2], [3]]
    assert [p.tolist() for p in texts.prompts] == [[], [4]]


def test_plain_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("zwei\n")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "notes.csv").write_text("no")
    assert Texts.read(tmp_path / "b.txt").completions == ["zwei\n"]
    assert Texts.read(tmp_path).completions == ["one", "zwei\n"]


def test_the_prompt_is_part_of_the_identity_and_its_seam_too():
    one = Texts.from_tokens([[2, 3]], [[1]])
    other = Texts.from_tokens([[3]], [[1, 2]])
    assert one.fingerprint != other.fingerprint
    same = one.as_transcript().examples_fingerprint == other.as_transcript().examples_fingerprint
    assert same  # a scorer sees the same tokens


def test_head_takes_whole_documents():
    texts = Texts.from_tokens([[1, 2], [3, 4], [5]])
    assert texts.head(3).n_tokens == 4
    assert texts.head(5).n == 3
    with pytest.raises(InputError, match="holds 5 tokens"):
        texts.head(6)


def test_which_documents_were_taken_is_written_and_read(tmp_path):
    texts = Texts.from_tokens([[i, 7] for i in range(5)], provenance={"label": "bob"})
    assert texts.head(10) is texts  # all of them: nothing was chosen
    part = texts.take([4, 1, 2]).head(2)
    again = Texts.read(part.write(tmp_path / "part.parquet"))
    assert again.provenance == {
        "label": "bob",
        "selection": "3 of 5 documents taken by hand; 1 of 3 documents taken from the first on",
    }
    assert texts.provenance == {"label": "bob"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Texts.from_tokens([]), "holds no text"),
        (lambda: Texts.from_tokens([[1], []]), "document 1 has an empty completion"),
        (lambda: Texts.from_strings(["a", ""]), "document 1 has an empty completion"),
        (lambda: Texts.from_tokens([[1]], [[1], [2]]), "2 prompts and 1 completions"),
        (lambda: Texts.from_tokens([[1, -2]]), "row 0 has -2 as a token id"),
        (lambda: Texts.from_tokens([[1], [0.5]]), "row 1 has 0.5 as a token id"),
        (lambda: Texts.from_strings(["a", 3]), "document 1 has a completion that is no text"),
        (lambda: Texts.from_strings(["a"]).as_transcript(), "holds strings, and token ids are"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Texts.read(tmp_path / "none.parquet")
    (tmp_path / "latin.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        Texts.read(tmp_path / "latin.txt")
    pq.write_table(pa.table({"tokens": [[1]], "text": ["a"]}), tmp_path / "both.parquet")
    with pytest.raises(InputError, match="has both 'tokens' and 'text'"):
        Texts.read(tmp_path / "both.parquet")
    assert Texts.read(tmp_path / "both.parquet", text="text").kind == "text"
    pq.write_table(pa.table({"story": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no column named tokens or text or completion"):
        Texts.read(tmp_path / "other.parquet")
    pq.write_table(pa.table({"tokens": [[1], None]}), tmp_path / "null.parquet")
    with pytest.raises(InputError, match="row 1 has no tokens"):
        Texts.read(tmp_path / "null.parquet")
    pq.write_table(pa.table({"tokens": [1, 2]}), tmp_path / "flat.parquet")
    with pytest.raises(InputError, match="holds int64: give lists of token ids"):
        Texts.read(tmp_path / "flat.parquet")


def test_digest_does_not_depend_on_how_ids_are_stored():
    narrow = Texts.from_tokens([np.array([1, 2], dtype=np.uint16)])
    assert narrow.fingerprint == Texts.from_tokens([[1.0, 2.0]]).fingerprint
