"""The one exception that bad input raises.

Every message is one sentence that says what was wrong, where (file, row) and what to do; the
command line prints it without a traceback and exits with status 2.
"""

__all__ = ["InputError"]


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
