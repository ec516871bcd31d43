"""What a preset needs from the Hugging Face Hub: asked for once, quickly, before any work.

The hub's client tries again for half a minute where there is no network; a question with a time
limit of its own comes first.
"""

from pathlib import Path

from workbench.errors import InputError

__all__ = ["fetch_transcript", "require"]

SECONDS = 3.0


def require(name: str, revision: str | None, kind: str, remedy: str) -> None:
    """Check that a model or a data set is in the hub's cache here, or can be fetched.

    Parameters
    ----------
    name : str
    revision : str or None
    kind : {"model", "dataset"}
    remedy : str
        What to do where it is not; ends the message.

    Raises
    ------
    InputError
        It is neither; also where the hub's client is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{name} is no file here, and the hub needs the package 'huggingface_hub': pip install "
            "'palimpsest-workbench[models]'"
        ) from error
    if _cached(name, revision, kind):
        return
    try:
        huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=SECONDS)
    except Exception as error:  # offline, no network, gated, not found: nothing was begun yet
        at = "" if revision is None else f" at {revision}"
        what = "data set" if kind == "dataset" else kind
        raise InputError(
            f"the {what} {name}{at} is not on this machine, and the hub does not give it "
            f"({type(error).__name__}): {remedy}"
        ) from error


def _cached(name: str, revision: str | None, kind: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            name, revision=revision, repo_type=kind, local_files_only=True
        )
    except Exception:  # whatever keeps it from being found here
        return False
    return True


def fetch_transcript(dataset: str, subset: str, revision: str | None) -> Path:
    """Folder with the Parquet files of one part of a data set on the hub.

    Raises
    ------
    InputError
        It cannot be fetched, or has no such part.
    """
    import huggingface_hub

    patterns = [f"{subset}/*.parquet", f"{subset}*.parquet", f"*/{subset}*.parquet"]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                dataset, revision=revision, repo_type="dataset", allow_patterns=patterns
            )
        )
    except Exception as error:
        raise InputError(
            f"the data set {dataset} could not be fetched ({type(error).__name__}): download it "
            "and give the file with --transcript"
        ) from error
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        raise InputError(
            f"the data set {dataset} has no Parquet file of {subset!r}: download the part that you "
            "mean and give it with --transcript"
        )
    parents = {path.parent for path in found}
    inside = [path for parent in parents for path in parent.glob("**/*.parquet")]
    if len(found) == 1:
        return found[0]
    if len(parents) == 1 and len(inside) == len(found):
        return parents.pop()
    raise InputError(
        f"the data set {dataset} has several parts named {subset!r}: download the one that you "
        "mean and give it with --transcript"
    )
