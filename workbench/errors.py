"""The one exception that bad input raises, also where an optional library is not installed.

Every message is one sentence that says what was wrong, where (file, row) and what to do; the
command line prints it without a traceback and exits with status 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXTRAS", "InputError", "optional_libraries"]

# Extras of pyproject.toml and what is imported of them, dependencies of dependencies included.
EXTRAS = {
    "models": (
        "datasets", "huggingface_hub", "safetensors", "tokenizers", "torch", "transformers",
    ),
    "statistics": ("sklearn", "statsmodels", "threadpoolctl"),
    "api": ("anyio", "httpx", "tenacity"),
    "serve": ("starlette", "uvicorn"),
    "large": ("accelerate", "bitsandbytes"),
    "lora": ("peft",),
    "ngrams": ("infini_gram", "tokengrams"),
    "dedup": ("datasketch",),
    "ray": ("ray",),
    "notebooks": (
        "IPython", "bleach", "ipywidgets", "jinja2", "jupytext", "latex2mathml", "matplotlib",
        "nbclient", "nbconvert", "nbformat", "pandas", "papermill", "seaborn", "traitlets",
    ),
    "demo": ("voila",),
}  # fmt: skip


class InputError(ValueError):
    """Input that cannot be used; the message names the fault, the place and the remedy.

    Examples
    --------
    >>> from workbench.errors import InputError
    >>> raise InputError("t.parquet has no column 'index': name the position column")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: t.parquet has no column 'index': name the position column
    """


@contextmanager
def optional_libraries() -> Iterator[None]:
    """Where a library of an extra is imported: without it, one sentence names the extra.

    Raises
    ------
    InputError
        The library is not installed.

    Examples
    --------
    >>> with optional_libraries():
    ...     raise ModuleNotFoundError(name="torch.nn")
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: this needs torch, which is not installed: pip install
    'palimpsest-workbench[models]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0].replace("-", "_")
        extra = next((name for name, known in EXTRAS.items() if library in known), None)
        if extra is None:
            raise
        raise InputError(
            f"this needs {library}, which is not installed: pip install "
            f"'palimpsest-workbench[{extra}]'"
        ) from error
