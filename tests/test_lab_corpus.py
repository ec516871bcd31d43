"""Corpora: what is read, what is left out, and that the same text gives the same fingerprint."""

import gzip
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.errors import InputError
from workbench.home import home
from workbench.lab import corpus as corpus_module
from workbench.lab import docstring_corpus, text_corpus

WORDS = ("shuffle", "order", "token", "model", "weight", "memory", "trace", "page", "ink", "text")
SMALL = {"vocab_size": 300, "example_tokens": 16}


def prose(seed, n=60):
    """Distinct sentences, the same for the same seed."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=40)) + f" {seed}-{i}" for i in range(n)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path, with what real packages hold."""
    root = tmp_path / "site" / "inkwell"
    (root / "sub").mkdir(parents=True)
    shared = '    """The same docstring, twice: ' + " ".join(prose(3, 2)) + '"""\n'
    (root / "__init__.py").write_text(
        '"""' + "\n".join(prose(1)) + '"""\n\n\ndef f():\n' + shared, encoding="utf-8"
    )
    (root / "sub" / "__init__.py").write_text("class C:\n" + shared + "\n    x = 1\n")
    (root / "sub" / "words.py").write_text(
        f'async def g():\n    """Ünïcödé 漢字 🖋 {" ".join(prose(2, 3))}"""\n', encoding="utf-8"
    )
    (root / "future.py").write_text("def broken(:\n")
    (root / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    (root / "nul.py").write_bytes(b'"""a\0b"""\n')
    (root / "surrogate.py").write_text('"""half a character: \\ud800"""\n')
    monkeypatch.syspath_prepend(str(root.parent))
    set_version(root, "1.2.3")
    return root


def set_version(root, version):
    """What pip would have left; the distribution has another name than the package."""
    info = root.parent / "ink_well-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ink-well\nVersion: {version}\n")
    (info / "top_level.txt").write_text("inkwell\n")


class TestDocstrings:
    def test_report_names_what_does_not_parse(self, package):
        corpus = docstring_corpus(["inkwell"], **SMALL)
        report = corpus.report
        unread = {entry.split(":")[0] for entry in report["unread"]}
        assert {"inkwell/future.py", "inkwell/latin.py", "inkwell/nul.py"} <= unread
        assert "inkwell/surrogate.py" in unread
        assert report["files"] == 7
        assert report["repeated_texts"] == 1
        assert report["request"]["versions"] == {"inkwell": "1.2.3"}
        assert report["request"]["python"].startswith(f"{sys.version_info.major}.")
        assert "4 " in str(corpus)

    def test_example_counts_add_up(self, package):
        from transformers import AutoTokenizer

        corpus = docstring_corpus(["inkwell"], **SMALL)
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
        texts = []
        for path in sorted(package.rglob("*.py")):
            try:
                texts += corpus_module.extract_docstrings(str(path))
            except (SyntaxError, ValueError):
                continue
        texts = [t for t in dict.fromkeys(texts) if "\ud800" not in t]
        assert len(texts) == corpus.report["texts"]
        total = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
        cut = (len(corpus.tokens) + corpus.report["repeated_examples"]) * 16
        assert total == cut + corpus.report["tail_tokens_left_over"]
        assert len(np.unique(corpus.tokens, axis=0)) == len(corpus.tokens)
        assert corpus.tokens.dtype == np.uint16
        assert corpus.tokens.max() < 300

    def test_text_survives_the_tokenizer(self, package):
        from transformers import AutoTokenizer

        corpus = docstring_corpus(["inkwell"], **SMALL)
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
        for text in ("Ünïcödé 漢字 🖋", "  two  spaces\n\ttab", "<script>", "\u202eright"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text

    def test_fingerprint_is_stable_and_knows_content(self, package, monkeypatch, tmp_path):
        first = docstring_corpus(["inkwell"], **SMALL)
        assert docstring_corpus(["inkwell"], **SMALL).fingerprint == first.fingerprint
        monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "elsewhere"))
        again = docstring_corpus(["inkwell"], **SMALL)
        assert again.folder != first.folder
        assert again.fingerprint == first.fingerprint
        assert np.array_equal(again.tokens, first.tokens)
        (package / "sub" / "words.py").write_text(f'"""{" ".join(prose(9, 3))}"""\n')
        monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "third"))
        assert docstring_corpus(["inkwell"], **SMALL).fingerprint != first.fingerprint

    def test_versions_are_part_of_it(self, package):
        first = docstring_corpus(["inkwell"], **SMALL)
        set_version(package, "1.2.4")
        assert docstring_corpus(["inkwell"], **SMALL).fingerprint != first.fingerprint

    def test_package_that_is_not_there(self):
        with pytest.raises(InputError, match="'no_such_package' is not installed"):
            docstring_corpus(["no_such_package"], **SMALL)
        with pytest.raises(InputError, match="'json' belongs to no installed distribution"):
            docstring_corpus(["json"], **SMALL)

    def test_a_real_package(self):
        corpus = docstring_corpus(["filelock"], **SMALL)
        assert corpus.report["unread"] == []
        assert len(corpus.tokens) > 100


class TestText:
    def test_folder(self, tmp_path):
        folder = tmp_path / "texts"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.txt").write_text("\n".join(prose(1)), encoding="utf-8")
        (folder / "deep" / "b.md").write_text("Ünïcödé 漢字 🖋 " * 30, encoding="utf-8")
        (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
        (folder / "image.png").write_bytes(b"\x89PNG")
        (folder / "folder.txt").mkdir()
        corpus = text_corpus(folder, **SMALL)
        assert corpus.report["files"] == 3
        assert corpus.report["unread"] == ["bad.txt: UnicodeDecodeError"]
        assert corpus.report["texts"] == 2

    def test_every_form_of_a_table_gives_the_same_corpus(self, tmp_path):
        import datasets

        texts = [*prose(1), "Ünïcödé 漢字 🖋 " * 20]
        table = pa.table({"text": texts, "n": range(len(texts))})
        pq.write_table(table, tmp_path / "t.parquet")
        lines = "".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts))
        (tmp_path / "t.jsonl").write_text(lines, encoding="utf-8")
        with gzip.open(tmp_path / "t.jsonl.gz", "wt", encoding="utf-8") as handle:
            handle.write(lines)
        table.to_pandas().to_csv(tmp_path / "t.csv")
        saved = datasets.Dataset(table)
        saved.save_to_disk(str(tmp_path / "saved"))
        datasets.DatasetDict(train=saved).save_to_disk(str(tmp_path / "splits"))
        found = {
            text_corpus(tmp_path / name, **SMALL).fingerprint
            for name in ("t.parquet", "t.jsonl", "t.jsonl.gz", "t.csv", "saved", "splits")
        }
        assert len(found) == 1

    def test_other_column(self, tmp_path):
        pq.write_table(pa.table({"body": prose(1)}), tmp_path / "t.parquet")
        assert len(text_corpus(tmp_path / "t.parquet", column="body", **SMALL).tokens) > 10

    @pytest.mark.parametrize(
        ("name", "content", "options", "message"),
        [
            ("t.parquet", {"other": ["a"]}, {}, r"t\.parquet has no column 'text' .*other"),
            ("t.parquet", {"text": [1, 2]}, {}, "column 'text' holds int64, not text"),
            ("t.parquet", {"text": ["a", None]}, {}, "row 1 has no text"),
            ("t.parquet", {"text": [""]}, {}, "t.parquet gives 0 example"),
            ("t.parquet", {"text": pa.array([], pa.string())}, {}, "holds no text"),
            ("t.parquet", {"text": ["a few words"]}, {}, "0 example.* of 16 tokens: more text"),
            ("t.parquet", b"PAR1 and nothing more", {}, "cannot be read"),
            ("t.jsonl", b'{"text": "a"}\n{"text": ', {}, "not valid JSON lines"),
            ("t.jsonl", b'{"text": "a"}\n{"text": 2}\n', {}, "not valid JSON lines"),
            ("t.jsonl", b"", {}, "0 bytes"),
            ("t.doc", b"text\na\n", {}, "no known kind: give .parquet, .jsonl"),
            ("t.jsonl", b'{"text": "a"}\n', {"vocab_size": 256}, "vocab_size is 256"),
            ("t.jsonl", b'{"text": "a"}\n', {"example_tokens": 1}, "example_tokens is 1"),
        ],
    )
    def test_bad_file(self, tmp_path, name, content, options, message):
        if isinstance(content, dict):
            pq.write_table(pa.table(content), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            text_corpus(tmp_path / name, **{**SMALL, **options})
        assert "\n" not in str(caught.value)
        assert not list((home() / "lab").glob("corpora/*.partial"))

    def test_bad_folder(self, tmp_path):
        with pytest.raises(InputError, match="holds no text files"):
            text_corpus(tmp_path, **SMALL)

    def test_missing_path(self, tmp_path):
        with pytest.raises(InputError, match="does not exist: check the path"):
            text_corpus(tmp_path / "nothing.parquet", **SMALL)

    def test_data_set_that_cannot_be_had(self, monkeypatch):
        import datasets
        import huggingface_hub

        # Without a network the hub's client tries again for half a minute; offline it does not.
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="cache here lacks the data set nobody") as caught:
            text_corpus("nobody-at-all/nothing", **SMALL)
        assert "\n" not in str(caught.value)

    def test_missing_split_and_damaged_data_set(self, tmp_path):
        import datasets

        folder = tmp_path / "splits"
        table = pa.table({"text": prose(1)})
        datasets.DatasetDict(train=datasets.Dataset(table)).save_to_disk(str(folder))
        with pytest.raises(InputError, match=r"no split 'test' \(splits: train\)"):
            text_corpus(folder, split="test", **SMALL)
        (folder / "train" / "state.json").unlink()
        with pytest.raises(InputError, match="cannot be loaded"):
            text_corpus(folder, **SMALL)


def test_two_processes_make_it_once(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(prose(1)))
    script = (
        "import sys\n"
        "from workbench.lab import corpus\n"
        "train = corpus._train_tokenizer\n"
        "def counted(*arguments):\n"
        "    print('made', flush=True)\n"
        "    return train(*arguments)\n"
        "corpus._train_tokenizer = counted\n"
        f"c = corpus.text_corpus({str(tmp_path)!r}, vocab_size=300, example_tokens=16)\n"
        "print(c.fingerprint)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [process.communicate(timeout=60)[0].split() for process in both]
    assert sum(line.count("made") for line in lines) == 1
    assert lines[0][-1] == lines[1][-1]


def test_importing_the_lab_imports_no_torch():
    code = (
        "import sys, workbench.lab as lab; dir(lab); lab.RECIPES; lab.Corpus; lab.Run; "
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
