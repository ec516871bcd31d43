"""The Hugging Face hub: what a name means there, and why it cannot be read, in one sentence.

Asks through the hub's own client, so its cache, tokens, time-outs and offline mode hold. Does not
know what a model or a transcript is.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Never

from tqdm import tqdm

from workbench.errors import InputError, optional_libraries
from workbench.home import atomic_write, content_key, home

__all__ = ["HubDataset", "Name", "Snapshot", "bars", "parse_name"]

BUSY = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8)  # seconds before a busy hub is asked again, unless it names its own
LONGEST_WAIT = 60  # seconds; a hub that asks for more is not waited for
FEW = 8  # names that a message lists
FILES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".gz", ".arrow", ".feather", ".txt")
PREFIX = {"model": "hf://", "dataset": "hf://datasets/"}
NAME = re.compile(
    r"(?P<id>\w[\w.-]*(?:/[\w.-]+)?)(?:@(?P<at>refs/\w+/[^/]+|[^/@]+))?(?:/(?P<part>[^@]+))?"
    r"(?:@(?P<end>.+))?"
)


class Name(NamedTuple):
    """What a name means on the hub: a repository, a revision and a part of it."""

    id: str
    revision: str | None
    part: str | None


def parse_name(
    name: str | Path, kind: Literal["model", "dataset"], revision: str | None = None
) -> Name:
    """Read ``ID``, ``ID@REVISION``, ``ID/PART`` or ``hf://…``.

    Parameters
    ----------
    name : str or Path
        A path is none of the hub's.
    kind : {"model", "dataset"}
        Only a data set has parts: a configuration, a folder or a file.
    revision : str, optional
        Branch, tag or commit, where the name has none.

    Examples
    --------
    >>> parse_name("hij/sequence_samples/pythia_deduped_100k", "dataset")
    Name(id='hij/sequence_samples', revision=None, part='pythia_deduped_100k')
    >>> parse_name("EleutherAI/pythia-70m@step3000", "model").revision
    'step3000'
    """
    text = str(name)
    found = NAME.fullmatch(text.removeprefix(PREFIX[kind]))
    is_path = isinstance(name, Path) or (
        kind == "dataset" and not text.startswith("hf://") and text.endswith(FILES)
    )
    if found is None or is_path or (kind == "model" and found["part"]):
        raise InputError(f"{name} does not exist: check the path")
    said = [r for r in (found["at"], found["end"], revision) if r is not None]
    if len(set(said)) > 1:
        raise InputError(f"{name} has the revisions {' and '.join(said)}: leave one out")
    return Name(found["id"], said[0] if said else None, found["part"])


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository on the hub, or what the cache on this machine has of it.

    Attributes
    ----------
    id : str
    kind : {"model", "dataset"}
    revision : str
        As it was asked for.
    commit : str
        What it was resolved to.
    files : tuple of str
        Paths.
    trouble : Exception or None
        Why the hub could not be asked, so that `files` are those of the cache.
    """

    id: str
    kind: Literal["model", "dataset"]
    revision: str
    commit: str
    files: tuple[str, ...] = field(repr=False)
    trouble: Exception | None = None

    @classmethod
    def find(cls, id: str, revision: str | None, kind: Literal["model", "dataset"]) -> "Snapshot":
        """Ask for a repository; fetches nothing.

        Raises
        ------
        InputError
            It is not to be had; the message says why and what to do.
        """
        with optional_libraries():
            import huggingface_hub
        try:
            info = _patiently(
                lambda: huggingface_hub.HfApi().repo_info(
                    id, revision=revision, repo_type=kind,
                    timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT,
                )
            )  # fmt: skip
            files = tuple(file.rfilename for file in info.siblings or [])
            return cls(id, kind, revision or "main", str(info.sha), files)
        except huggingface_hub.errors.RevisionNotFoundError as error:
            _refuse(error, id, kind, revision)
        except Exception as error:  # whatever it is, the cache may do
            try:
                folder = Path(
                    huggingface_hub.snapshot_download(
                        id, revision=revision, repo_type=kind, local_files_only=True,
                        allow_patterns=[],
                    )
                )  # fmt: skip
            except (OSError, ValueError):
                _refuse(error, id, kind, revision)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = tuple(path.relative_to(folder).as_posix() for path in paths)
            return cls(id, kind, revision or "main", folder.name, files, error)

    def fetch(self, names: Sequence[str], progress: bool = False) -> Path:
        """Folder that holds these files, fetched where the cache lacks them."""
        import huggingface_hub

        where: dict[str, Any] = {"repo_type": self.kind, "revision": self.commit}
        kept = [huggingface_hub.try_to_load_from_cache(self.id, n, **where) for n in names]
        lacking = [n for n, path in zip(names, kept, strict=True) if not isinstance(path, str)]
        name = ", ".join(lacking)
        try:
            with bars(progress):
                if progress and lacking:
                    tree = huggingface_hub.list_repo_tree(self.id, recursive=True, **where)
                    size = sum(getattr(entry, "size", 0) for entry in tree if entry.path in lacking)
                    text = f"{self.id}: {tqdm.format_sizeof(size, 'B')} to fetch ({_few(lacking)})"
                    tqdm.write(text, file=sys.stderr)
                for name in names:
                    file = huggingface_hub.hf_hub_download(
                        self.id, name, local_files_only=self.trouble is not None, **where
                    )
        except Exception as error:
            _refuse(self.trouble or error, self.id, self.kind, self.commit, name)
        self._remember()
        return Path(file).parents[name.count("/")]

    def _remember(self) -> None:
        """Note the revision's commit in the cache, which answers for it where there is no hub."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        if self.trouble is None and self.revision != self.commit:
            folder = repo_folder_name(repo_id=self.id, repo_type=self.kind)
            ref = Path(constants.HF_HUB_CACHE, folder, "refs", self.revision)
            with suppress(InputError):  # a cache that cannot be written to
                atomic_write(ref, lambda path: path.write_text(self.commit, encoding="utf-8"))

    def check_access(self) -> None:
        """Ask for the headers of a file: a gated repository shows all but content."""
        import huggingface_hub

        content = [n for n in self.files if not n.startswith(".") and not n.endswith(".md")]
        if self.trouble is None and content:
            url = huggingface_hub.hf_hub_url(
                self.id, content[0], repo_type=self.kind, revision=self.commit
            )
            try:
                _patiently(lambda: huggingface_hub.get_hf_file_metadata(url))
            except Exception as error:
                _refuse(error, self.id, self.kind, self.commit, content[0])

    def converted(self) -> str | None:
        """The newest pull request that brings safetensors weights, if there is one."""
        import huggingface_hub

        try:
            refs = huggingface_hub.list_repo_refs(self.id, include_pull_requests=True)
            numbers = [int(r.ref.rsplit("/", 1)[1]) for r in refs.pull_requests or []]
            for number in sorted(numbers, reverse=True)[:20]:
                for name in ("model.safetensors", "model.safetensors.index.json"):
                    if huggingface_hub.file_exists(self.id, name, revision=f"refs/pr/{number}"):
                        return f"refs/pr/{number}"
        except Exception:  # only a hint: the message does without it
            return None
        return None


def _patiently(ask: Callable[[], Any]) -> Any:
    """What the hub answers, asked again while it is busy."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in (*WAITS, None):
        try:
            return ask()
        except HfHubHTTPError as error:
            asked = _asked_wait(error)
            if wait is None or error.response.status_code not in BUSY or asked > LONGEST_WAIT:
                raise
            time.sleep(asked or wait)
    raise AssertionError  # the last round returns or raises


def _asked_wait(error: Any) -> int:
    """Seconds after which a busy server wants to be asked again; 0 where it does not say."""
    said = error.response.headers.get("Retry-After", "").strip()
    return int(said) if said.isdigit() else 0


@contextmanager
def bars(progress: bool) -> Iterator[None]:
    """The progress bars of the hub's client and of `datasets`, or none."""
    libraries = [import_module("huggingface_hub.utils.tqdm")]
    if "datasets" in sys.modules:
        libraries.append(import_module("datasets.utils"))
    silenced = [m for m in libraries if not progress and not m.are_progress_bars_disabled()]
    for library in silenced:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in silenced:
            library.enable_progress_bars()


# ---------------------------------------------------------------------- what went wrong


def _refuse(
    error: BaseException, id: str, kind: str, revision: str | None = None, lacks: str = ""
) -> Never:
    """Raise one sentence: what the hub said, where, and what to do."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain:
        chain.append(inner)
        inner = inner.__cause__ or inner.__context__
    sentence = _sentence(chain, id, kind, revision, lacks)
    raise InputError(_without_token(sentence)) from error


def _sentence(
    chain: list[BaseException], id: str, kind: str, revision: str | None, lacks: str
) -> str:
    from huggingface_hub import constants, errors, get_token

    what = f"the {'data set' if kind == 'dataset' else kind} {id}"
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{id}"
    give = "give a token that may read it (HF_TOKEN, or 'hf auth login')"
    part = f"{lacks} of {what}" if lacks else what

    def first(*kinds: type[BaseException]) -> Any:
        return next((error for error in chain if isinstance(error, kinds)), None)

    if first(errors.GatedRepoError):
        if get_token() is None:
            return f"{what} is gated: accept its terms at {page}, and {give}"
        return (
            f"{what} is gated, and the account of your token has not been let in: ask for access "
            f"at {page}"
        )
    if first(errors.RevisionNotFoundError):
        there = _revisions(id, kind)
        return f"{what} has no revision {revision!r}{there}: correct it, or leave it out"
    if first(errors.RepositoryNotFoundError):
        if get_token() is None:
            return f"the hub shows no {what[4:]}: check the name; if it is private, {give}"
        return (
            f"the hub shows no {what[4:]} to your token: check the name, and whether the token "
            "may read it"
        )
    if first(errors.HFValidationError):
        return f"{id} is no file or folder here, and no name of the hub: check the path"
    answered = first(errors.HfHubHTTPError)
    if answered is not None:
        status = answered.response.status_code
        if status == 401:
            return f"the hub does not take your token: renew it, and {give}"
        busy = "too many requests" if status == 429 else answered.response.reason_phrase
        wait = _asked_wait(answered)
        later = f"in {wait} s" if wait else "later"
        if status in BUSY:
            return (
                f"the hub does not give {part} ({status}, {busy}), though it was asked again: try "
                f"{later}{', or with a token' if status == 429 and get_token() is None else ''}"
            )
        return f"the hub does not give {part} ({status}, {busy}): see {page}"
    if first(errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return (
            f"the hub is not asked (HF_HUB_OFFLINE is set), and its cache here lacks {part}: fetch "
            "it with HF_HUB_OFFLINE=0, or give a file or folder"
        )
    late = next((e for e in chain if "Timeout" in type(e).__name__), None)
    if late is not None:
        return (
            f"the hub took too long to give {part} ({type(late).__name__}): try again, or raise "
            f"HF_HUB_ETAG_TIMEOUT ({constants.HF_HUB_ETAG_TIMEOUT} s) or HF_HUB_DOWNLOAD_TIMEOUT "
            f"({constants.HF_HUB_DOWNLOAD_TIMEOUT} s)"
        )
    cause = next((e for e in chain if not type(e).__name__.startswith("DatasetGen")), chain[0])
    said = (str(cause).strip().splitlines() or [""])[0][:200]
    return (
        f"{part} could not be had from the hub ({type(cause).__name__}: {said}): check the "
        "network, or give a file or folder"
    )


def _revisions(id: str, kind: str) -> str:
    import huggingface_hub

    try:
        refs = huggingface_hub.list_repo_refs(id, repo_type=kind)
    except Exception:  # only a hint: the message does without it
        return ""
    return f" (it has {_few([ref.name for ref in (*refs.branches, *refs.tags)])})"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _without_token(sentence: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return sentence if not token else sentence.replace(token, "…")


# ---------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class HubDataset:
    """A split of a data set on the hub, asked for, though no rows are fetched yet.

    Attributes
    ----------
    snapshot : Snapshot
    files : tuple of str
    """

    snapshot: Snapshot
    files: tuple[str, ...]

    @classmethod
    def ask(cls, name: str | Path, split: str = "train", subset: str | None = None) -> "HubDataset":
        """Ask for a data set, its configuration and split.

        Parameters
        ----------
        name : str
            ``ID``, ``ID@REVISION``, ``ID/PART`` or ``hf://datasets/ID[@REVISION]/PART``. A part
            is a configuration, a folder, a file, or what its files' names begin with.
        split : str
        subset : str, optional
            The part, if the name has none.

        Raises
        ------
        InputError
            It is not to be had, or has no such part or split; the message says which there are.
        """
        id, revision, part = parse_name(name, "dataset")
        if subset is not None and part not in (None, subset):
            raise InputError(f"{name} names the part {part}, and subset {subset!r} another")
        part = part or subset
        snapshot = Snapshot.find(id, revision, "dataset")
        key = content_key({"id": id, "commit": snapshot.commit, "part": part, "split": split})
        memory = home() / "hub" / f"{key[:16]}.json"  # for where there is no hub
        if snapshot.trouble is None:
            snapshot.check_access()
            files = _files_of(snapshot, part, split)
            atomic_write(memory, lambda path: path.write_text(json.dumps(files), encoding="utf-8"))
        elif memory.exists():
            files = json.loads(memory.read_text(encoding="utf-8"))
            snapshot.fetch(files)
        else:
            _refuse(snapshot.trouble, id, "dataset", revision, part or "")
        return cls(snapshot, tuple(files))

    def fetch(self, progress: bool = False) -> list[Path]:
        """Its files, fetched where the cache lacks them."""
        folder = self.snapshot.fetch(self.files, progress)
        return [folder / name for name in self.files]


def _files_of(snapshot: Snapshot, part: str | None, split: str) -> list[str]:
    """The files of a split, as `datasets` finds them."""
    with optional_libraries():
        import datasets
    try:
        with bars(False):
            configs = datasets.get_dataset_config_names(snapshot.id, revision=snapshot.commit)
            chosen = _chosen(snapshot, part, configs)
            made = datasets.load_dataset_builder(snapshot.id, revision=snapshot.commit, **chosen)
        by_split = {str(name): list(urls) for name, urls in made.config.data_files.items()}
    except InputError:
        raise
    except Exception as error:
        _refuse(error, snapshot.id, "dataset", snapshot.revision)
    if split not in by_split:
        where = snapshot.id if part is None else f"{snapshot.id}/{part}"
        raise InputError(
            f"{where} has no split {split!r} (splits: {_few(list(by_split))}): name one with split="
        )
    return [url.partition(f"@{snapshot.commit}/")[2] for url in by_split[split]]


def _chosen(snapshot: Snapshot, part: str | None, configs: list[str]) -> dict[str, Any]:
    """What `datasets` calls a part: a configuration, a folder or files."""
    if part in configs or (part is None and len(configs) == 1):
        return {"name": part}
    if part is None:
        raise InputError(
            f"{snapshot.id} has several configurations ({_few(configs)}): name one, as in "
            f"{snapshot.id}/{configs[0]}"
        )
    if any(name.startswith(f"{part}/") for name in snapshot.files):
        return {"data_dir": part}
    begins = re.compile(rf"(.*/)?{re.escape(part)}(-\d+-of-\d+)?(\.\w+)*")
    files = [name for name in snapshot.files if name == part or begins.fullmatch(name)]
    if len({os.path.dirname(name) for name in files}) == 1:
        return {"data_files": files}
    what = "several files or folders" if files else "no configuration, folder or file"
    raise InputError(
        f"{snapshot.id} has {what} named {part!r} (configurations: {_few(configs)}): name another"
    )
