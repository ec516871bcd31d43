"""Folders: which files are one table, as the writer of the folder meant it.

Splits, configurations, numbered files, second copies, unfinished and hidden files, and tables whose
folders keep removed rows too. Knows names of files, and not what is in them: `workbench.tables`
reads them.
"""

import filecmp
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.errors import InputError, optional_libraries
from workbench.hub import bars

__all__ = ["check_text_size", "files_of_table", "folder_files", "split_of"]

# Folders that keep replaced and removed rows too: only a log in them says which files count.
_LOGS = {
    "a Delta table": r"(.*/)?_delta_log(/.*)?",
    "an Iceberg table": r"(.*/)?metadata/[^/]*\.metadata\.json(\.gz)?",
    "a Hudi table": r"(.*/)?\.hoodie(/.*)?",
    "the output of a Spark stream": r"(.*/)?_spark_metadata(/.*)?",
}
# How browsers and desktops call a second copy.
_COPY = re.compile(r"( ?\(\d+\)| - Copy( \(\d+\))?| copy( \d+)?)(?=\.\w+$)")
# As the library datasets has them, with its order of folders before files.
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\b.*")


# A folder beyond this is a disk that was named by mistake; plain text is held in memory, and takes
# a few times its size there.
MOST_FILES = 100_000
MOST_TEXT = 8 * 2**30


def check_text_size(files: Sequence[Path], folder: Path) -> None:
    """Raise InputError before more plain text is read than memory holds."""
    size = sum(file.stat().st_size for file in files)
    if size > MOST_TEXT:
        raise InputError(
            f"{folder} holds {size / 2**30:,.0f} GiB of text files, and more than "
            f"{MOST_TEXT // 2**30} do not fit in memory: name a folder with fewer, or a table"
        )


def folder_files(folder: Path, is_table: bool = False) -> list[Path]:
    """Files of a folder and those below it, sorted, without hidden and unfinished ones.

    What begins with a dot or an underscore is passed over, as Arrow and Spark do it.

    Raises
    ------
    InputError
        A file is there twice, or more than 100,000 are there; it is to be a table, and its folder
        keeps removed rows too.
    """
    below = (
        os.path.join(root, name)[len(os.path.join(folder, "")) :]
        for root, folders, files in os.walk(folder, followlinks=True)
        for name in (*folders, *files)
    )
    names = sorted(islice(below, MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise InputError(f"{folder} holds more than {MOST_FILES:,} files: name a smaller folder")
    if is_table:
        _refuse_logs(folder, names)
    files = [
        folder / name
        for name in names
        if not any(p[0] == "." or (p[0] == "_" and "=" not in p) for p in Path(name).parts)
        and (folder / name).is_file()
    ]
    known = set(files)
    for file in files:
        first = file.with_name(_COPY.sub("", file.name))
        copied = first != file and first in known
        if copied and (file.suffix == ".parquet" or filecmp.cmp(first, file, shallow=False)):
            _refuse_copies(first, file, folder)
    return files


def _refuse_copies(first: Path, second: Path, folder: Path) -> None:
    raise InputError(
        f"{folder}: {second.relative_to(folder)} is a second copy of {first.relative_to(folder)}: "
        "move one of them out"
    )


def _declared_files(path: Path, split: str, subset: str | None) -> list[Path]:
    """The files of a split, where the README of a data set's folder declares them."""
    card = path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not re.match(r"---\s*\n(?:(?!---).*\n)*?[\s-]*data_files:", text):
        if subset is not None:
            raise InputError(f"{path} has no folder {subset!r}: check the name")
        return []
    with optional_libraries():
        import datasets

    try:
        with bars(False):
            configs = datasets.get_dataset_config_names(str(path))
            if subset not in configs and (subset is not None or len(configs) > 1):
                raise InputError(
                    f"{path} has the configurations {', '.join(configs)}: name one with subset="
                )
            files = datasets.load_dataset_builder(str(path), subset).config.data_files
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{card} declares what is not there ({str(error)[:200]}): correct it"
        ) from error
    return [Path(file) for file in split_of(files, split, str(path))]


def files_of_table(path: Path, split: str = "train", subset: str | None = None) -> list[Path]:
    """The files of one table in a folder.

    Parameters
    ----------
    path : Path
    split : str
        As the names of files and folders say it, or the folder's README.
    subset : str, optional
        A configuration that the README declares.

    Raises
    ------
    InputError
        There are none, or it is not clear which; the message names the file at fault.
    """
    declared = _declared_files(path, split, subset)
    if declared:
        return declared
    files = [
        file
        for file in folder_files(path, is_table=True)
        if re.search(r"\.(parquet|parq|pq)\b", file.name.lower())
    ]
    if not files:
        raise InputError(f"folder {path} holds no Parquet files and no saved data set")
    odd = next((f for f in files if f.suffix != ".parquet"), None)
    if odd is not None:
        raise InputError(
            f"{path}: {odd.relative_to(path)} does not end in .parquet and would be left out: "
            "rename it, or move it out"
        )
    files = _of_split(path, files, split)
    parts = dict.fromkeys(
        "/".join(p for p in file.relative_to(path).parts[:-1] if "=" not in p and not _word_of(p))
        for file in files
    )
    if len(parts) > 1:
        raise InputError(
            f"{path} holds several tables, in the folders {', '.join(p or '.' for p in parts)}: "
            "give one of these folders, or put all files that belong together into one"
        )
    _refuse_shards(path, files)
    seen: dict[tuple[int, bytes], Path] = {}
    for file in files:
        with file.open("rb") as opened:
            key = (file.stat().st_size, opened.read(4096))
        first = seen.setdefault(key, file)
        if first != file and filecmp.cmp(first, file, shallow=False):
            _refuse_copies(first, file, path)
    return files


def _refuse_logs(path: Path, inside: Sequence[str]) -> None:
    """Refuse tables whose folders hold more than their rows, and parts of such tables."""
    around = [
        f"{name}/{entry.name}"
        for parent in path.parents
        for name in ("_delta_log", ".hoodie", "metadata", "_spark_metadata")
        if (parent / name).is_dir()
        for entry in (parent / name).iterdir()
    ]
    for kind, pattern in _LOGS.items():
        if any(re.fullmatch(pattern, name) for name in (*inside, *around)):
            raise InputError(
                f"{path} is {kind}, whose folder keeps removed rows too: export the current rows "
                "to one Parquet file, with a library that knows such tables, and give that"
            )


def _word_of(name: str) -> str | None:
    """The split that one part of a path names."""
    key, is_partition, value = name.lower().partition("=")
    if is_partition:
        return (_word_of(value) or value) if key == "split" else None
    words = set(re.split("[-._ 0-9]+", key))
    found = [split for split, usual in _SPLITS.items() if usual & words]
    if len(found) > 1:
        raise InputError(f"{name} names several splits ({', '.join(found)}): rename it")
    return found[0] if found else None


def _split_named(name: Path) -> str | None:
    """The split of a file, as its folders and its own name say it."""
    shard = _SHARD.fullmatch(name.name)
    stem = shard["stem"] if shard and re.fullmatch(r"\w+(\.\w+)*", shard["stem"]) else ""
    if stem and (name.parts[:-1] == ("data",) or _word_of(stem)):
        return stem
    return next(filter(None, map(_word_of, name.parts)), None)


def _of_split(path: Path, files: list[Path], split: str) -> list[Path]:
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_named(file.relative_to(path)), []).append(file)
    names = [name for name in by_split if name]
    if not names and split == "train":
        return files
    if split not in names:
        raise InputError(
            f"{path} has no split {split!r} (splits: {', '.join(names) or 'none is named'}): "
            "name one with split="
        )
    if None in by_split:
        raise InputError(
            f"{path}: {by_split[None][0].relative_to(path)} names no split, and others do "
            f"({', '.join(names)}): rename it, or move it out"
        )
    return by_split[split]


def _refuse_shards(path: Path, files: list[Path]) -> None:
    """Refuse a set of numbered files that is not whole, or has others beside it."""
    sets: dict[tuple[Path, str], list[str]] = {}
    single = []
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        if shard:
            sets.setdefault((file.parent, shard["stem"]), []).append(shard[0])
        else:
            single.append(file)
    for (_, stem), names in sets.items():
        shards = [m for m in map(_SHARD.fullmatch, names) if m]
        total = int(shards[0]["total"])
        numbers = sorted(int(m["number"]) for m in shards)
        if len({m["total"] for m in shards}) > 1 or len(numbers) > len(set(numbers)):
            raise InputError(
                f"{path} holds several versions of the files {stem}-…-of-…: keep one of them "
                f"({', '.join(names[:4])})"
            )
        if numbers != list(range(total)):
            raise InputError(
                f"{path} holds {len(names):,} of the {total:,} files {stem}-…-of-{total:05}: "
                "fetch the others, or rename those that are meant"
            )
    if sets and single:
        raise InputError(
            f"{path}: {single[0].relative_to(path)} is none of the numbered files beside it: "
            "move it out, or rename all"
        )


def split_of(loaded: Any, split: str, source: str) -> Any:
    """One split of what has several by name, or what has none."""
    if not isinstance(loaded, Mapping):
        return loaded
    if split not in loaded:
        raise InputError(
            f"{source} has no split {split!r} (splits: {', '.join(loaded)}): name one with split="
        )
    return loaded[split]
