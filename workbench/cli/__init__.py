"""The command ``palimpsest``: thin, every command is a call that a notebook could make.

`main` has the commands and the way to leave; a larger group of commands is a file of its own.
"""

from workbench.cli.main import app, app_main

__all__ = ["app", "app_main"]
