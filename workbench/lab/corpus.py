"""Corpora for the lab: real text that is at hand, cut into examples of token ids.

The default is the docstrings of installed packages: every machine that runs the workbench has
them, no hub is needed, and they are read, never copied into the project. Files are sorted and
read in a fixed order; what does not parse is named; versions and content are hashed.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from workbench.errors import InputError, optional_libraries
from workbench.folders import check_text_size, folder_files
from workbench.home import content_key, home
from workbench.lab.recipes import DOCSTRING_PACKAGES
from workbench.tables import column_of, complete, find_column, is_text_type, open_table, table_name

__all__ = ["Corpus", "docstring_corpus", "text_corpus"]

FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".tex", ".org")


@dataclass(frozen=True)
class Corpus:
    """Distinct examples of equal length, and the tokenizer that made them.

    Attributes
    ----------
    tokens : ndarray of uint16 or uint32, shape (examples, tokens per example)
    folder : Path
        Cache folder; ``folder / "tokenizer"`` is an ordinary tokenizer folder.
    fingerprint : str
        SHA-256 over token ids, tokenizer, and the versions of Python and the packages read.
    report : dict
        Counts, versions, and the files that could not be read, by name.
    """

    tokens: NDArray[Any]
    folder: Path
    fingerprint: str
    report: dict[str, Any]

    @property
    def tokenizer_folder(self) -> Path:
        """Folder that `transformers.AutoTokenizer` loads."""
        return self.folder / "tokenizer"

    def __str__(self) -> str:
        r = self.report
        unread = f", {len(r['unread'])} files could not be read" if r["unread"] else ""
        return (
            f"{r['source']}: {r['examples']:,} examples of {r['example_tokens']} tokens from "
            f"{r['texts']:,} distinct texts in {r['files']:,} files{unread}; vocabulary "
            f"{r['vocab_size']:,}"
        )


def _check_numbers(vocab_size: int, example_tokens: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"vocab_size is {vocab_size}: a byte-level vocabulary needs at least "
            f"{SMALLEST_VOCABULARY}, one per byte and one for the end of a text"
        )
    if example_tokens < 2:
        raise InputError(
            f"example_tokens is {example_tokens}: an example needs at least 2, one to predict "
            "from and one to predict"
        )


@optional_libraries()
def docstring_corpus(
    packages: Sequence[str] = DOCSTRING_PACKAGES,
    *,
    vocab_size: int = 4096,
    example_tokens: int = 64,
    progress: bool = False,
) -> Corpus:
    """Docstrings of installed packages as a corpus; cached.

    Parameters
    ----------
    packages : sequence of str
        Import names.
    vocab_size, example_tokens : int
    progress : bool
        Show what is being done.

    Returns
    -------
    Corpus

    Raises
    ------
    InputError
        A package is not installed, or a number is out of range.
    """
    _check_numbers(vocab_size, example_tokens)
    versions, roots = {}, {}
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"package {package!r} is not installed, so its docstrings cannot be read: "
                f"pip install {package}, or leave it out"
            )
        roots[package] = spec.submodule_search_locations[0]
        versions[package] = _version_of(package)
    request = {
        "format": FORMAT,
        "kind": "docstrings",
        "versions": versions,
        "python": platform.python_version(),
        "vocab_size": vocab_size,
        "example_tokens": example_tokens,
        "tokenizers": metadata.version("tokenizers"),
    }

    def read() -> tuple[list[str], int, list[str]]:
        files = []
        for package, root in roots.items():
            for path in sorted(Path(root).rglob("*.py")):
                files.append((f"{package}/{path.relative_to(root).as_posix()}", str(path)))
        texts, unread = _extract_in_two_processes(files)
        return texts, len(files), unread

    source = f"docstrings of {', '.join(sorted(packages))}"
    return _cached(request, source, read, vocab_size, example_tokens, progress)


@optional_libraries()
def text_corpus(
    source: str | Path,
    *,
    column: str = "text",
    split: str = "train",
    subset: str | None = None,
    vocab_size: int = 4096,
    example_tokens: int = 64,
    progress: bool = False,
) -> Corpus:
    """A corpus from your own text: a folder, a file with a text column, or a Hugging Face data set.

    Parameters
    ----------
    source : str or Path
        Folder of text files (UTF-8; ``.txt``, ``.md``, ``.rst``, ``.tex``, ``.org``); a table with
        a text column, or a data set, as in `Transcript.read`.
    column, split, subset : str, optional
        Text column; split and configuration of a data set.
    vocab_size, example_tokens : int
    progress : bool

    Raises
    ------
    InputError
        The source is missing or empty, has no such column, or cannot be loaded; a number is out
        of range.
    """
    _check_numbers(vocab_size, example_tokens)
    path = Path(source).expanduser()
    label = path.name or str(source)
    files: list[Path] = []
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if path.is_dir() and not saved:
        files = [p for p in folder_files(path) if p.suffix.lower() in TEXT_SUFFIXES]
        if not files:
            raise InputError(
                f"{source} holds no text files ({', '.join(TEXT_SUFFIXES)}): check the folder"
            )
        check_text_size(files, path)
        texts, unread = _read_text_files(files, path)
    else:
        files = [path] if path.is_file() else []
        texts, unread = _read_column(path if saved or files else source, column, split, subset), []
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text.encode())
    request = {
        "format": FORMAT,
        "kind": "text",
        "content": digest.hexdigest(),
        "vocab_size": vocab_size,
        "example_tokens": example_tokens,
        "tokenizers": metadata.version("tokenizers"),
        "python": platform.python_version(),
    }
    return _cached(
        request, label, lambda: (texts, len(files), unread), vocab_size, example_tokens, progress
    )


def _version_of(package: str) -> str:
    # The distribution may have another name than what is imported (scikit-learn and sklearn).
    for name in (package, *metadata.packages_distributions().get(package, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise InputError(
        f"package {package!r} belongs to no installed distribution, so its version is not known: "
        "install it with pip, or leave it out"
    )


# ---------------------------------------------------------------------- reading


def extract_docstrings(path: str) -> list[str]:
    """Docstrings of one Python file, in the order in which `ast.walk` meets them.

    Raises
    ------
    SyntaxError, ValueError
        The file does not parse; the caller names it.
    """
    with open(path, "rb") as handle:
        tree = ast.parse(handle.read())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]


def _extract_in_two_processes(files: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Docstrings of all files in order. Workers are plain commands, so no script is run twice."""
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        half = -(-len(files) // 2)
        for number, part in enumerate((files[:half], files[half:])):
            job, out = Path(folder) / f"{number}.json", Path(folder) / f"{number}.out"
            job.write_text(json.dumps(part))
            module = ["-W", "ignore", "-m", "workbench.lab.corpus"]
            command = [sys.executable, *module, str(job), str(out)]
            workers.append((subprocess.Popen(command, env=_child_environment()), out))
        texts, unread = [], []
        try:
            for process, out in workers:
                if process.wait() != 0:
                    raise InputError(
                        "reading docstrings failed in a worker process: see its message above"
                    )
                part_texts, part_unread = json.loads(out.read_text())
                texts.extend(part_texts)
                unread.extend(part_unread)
        finally:
            for process, _ in workers:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    return texts, unread


def _child_environment() -> dict[str, str]:
    """The environment of a worker: this package importable, whatever the current folder is."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _extract_worker(job: str, out: str) -> None:
    texts: list[str] = []
    unread: list[str] = []
    for name, path in json.loads(Path(job).read_text()):
        try:
            found = extract_docstrings(path)
        except (SyntaxError, ValueError, OSError, RecursionError) as error:
            unread.append(f"{name}: {type(error).__name__}")
            continue
        # Escapes may put lone surrogates into a docstring; those cannot be UTF-8.
        clean = [text for text in found if not any("\ud800" <= c <= "\udfff" for c in text)]
        if len(clean) < len(found):
            unread.append(f"{name}: {len(found) - len(clean)} docstring(s) with lone surrogates")
        texts.extend(clean)
    Path(out).write_text(json.dumps([texts, unread]))


def _read_text_files(files: Sequence[Path], root: Path) -> tuple[list[str], list[str]]:
    texts, unread = [], []
    for path in files:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            unread.append(f"{path.relative_to(root).as_posix()}: {type(error).__name__}")
    return texts, unread


def _read_column(source: str | Path, column: str, split: str, subset: str | None) -> list[str]:
    data, label = open_table(source, split, [column], subset), table_name(source)
    find_column(data.schema.names, column, (), "text", label)
    values = complete(column_of(data, column, label), column, label)
    if not is_text_type(values.type):
        raise InputError(f"{label}: column {column!r} holds {values.type}, not text")
    texts: list[str] = values.to_pylist()
    return texts


# ---------------------------------------------------------------------- making


def _cached(
    request: dict[str, Any],
    source: str,
    read: Any,
    vocab_size: int,
    example_tokens: int,
    progress: bool,
) -> Corpus:
    """Load the corpus that this request made before, or make it once, whoever else asks."""
    folder = home() / "lab" / "corpora" / content_key(request)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tqdm(total=3, desc="corpus", disable=not progress, unit="step") as bar:
                bar.set_postfix_str("reading")
                texts, files, unread = read()
                distinct = list(dict.fromkeys(texts))
                if not distinct:
                    raise InputError(f"{source} holds no text: nothing to train on")
                bar.update()
                bar.set_postfix_str("tokenizer")
                tokenizer = _train_tokenizer(distinct, vocab_size)
                bar.update()
                bar.set_postfix_str("examples")
                tokens, tails, repeats = _cut(distinct, tokenizer, example_tokens, vocab_size)
                bar.update()
            if len(tokens) < 2:
                raise InputError(
                    f"{source} gives {len(tokens)} example(s) of {example_tokens} tokens: more "
                    "text is needed"
                )
            report = {
                "source": source,
                "files": files,
                "unread": unread,
                "texts": len(distinct),
                "repeated_texts": len(texts) - len(distinct),
                "examples": len(tokens),
                "example_tokens": example_tokens,
                "tail_tokens_left_over": tails,
                "repeated_examples": repeats,
                "vocab_size": tokenizer.get_vocab_size(),
                "request": request,
            }
            _store(folder, tokens, tokenizer, example_tokens, report)
    report = json.loads((folder / "corpus.json").read_text())
    tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    return Corpus(tokens, folder, report["fingerprint"], report)


def _train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE: any text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _cut(
    texts: Sequence[str], tokenizer: Any, example_tokens: int, vocab_size: int
) -> tuple[NDArray[Any], int, int]:
    """Distinct examples of equal length; no example crosses a text. Counts what is left over."""
    kind = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    pieces: list[NDArray[Any]] = []
    tails = 0
    for start in range(0, len(texts), 1000):
        for encoded in tokenizer.encode_batch(
            list(texts[start : start + 1000]), add_special_tokens=False
        ):
            ids = np.asarray(encoded.ids, dtype=kind)
            whole = len(ids) // example_tokens
            tails += len(ids) - whole * example_tokens
            if whole:
                pieces.append(ids[: whole * example_tokens].reshape(whole, example_tokens))
    if not pieces:
        return np.zeros((0, example_tokens), dtype=kind), tails, 0
    examples = np.concatenate(pieces)
    rows = np.ascontiguousarray(examples).view(f"V{examples.itemsize * example_tokens}").ravel()
    _, first = np.unique(rows, return_index=True)
    return examples[np.sort(first)], tails, len(examples) - len(first)


def _store(
    folder: Path, tokens: NDArray[Any], tokenizer: Any, example_tokens: int, report: dict[str, Any]
) -> None:
    from transformers import PreTrainedTokenizerFast

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "tokens.npy", tokens, allow_pickle=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=max(1024, example_tokens),
    ).save_pretrained(partial / "tokenizer")
    digest = hashlib.sha256(json.dumps(report["request"], sort_keys=True).encode())
    digest.update(tokenizer.to_str().encode())
    digest.update(np.ascontiguousarray(tokens).astype("<u4").tobytes())
    content = {**report, "fingerprint": digest.hexdigest()}
    (partial / "corpus.json").write_text(json.dumps(content, indent=1, sort_keys=True))
    os.replace(partial, folder)


def _iterate(arguments: Iterable[str]) -> None:
    job, out = arguments
    _extract_worker(job, out)


if __name__ == "__main__":
    _iterate(sys.argv[1:])
