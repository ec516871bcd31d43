"""``python -m workbench.cli``: the same command."""

from workbench.cli import app_main

app_main()
