"""``palimpsest audit``: a preset of a published suite, and the query test that it stands for."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from workbench.cli.options import (
    AlphaOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LabelOption,
    QuietOption,
    ResamplesOption,
    SeedOption,
    SmallestOption,
    StatisticOption,
    say,
)
from workbench.errors import InputError
from workbench.independence import QueryCase
from workbench.presets import PRESETS, Preset, open_preset
from workbench.transcript import ShuffleClaim

__all__ = ["audit"]


def audit(
    name: Annotated[str | None, typer.Argument(help="A preset; --list shows them.")] = None,
    suspect: Annotated[
        str | None, typer.Option(help="Hub id (ID@REVISION), folder or file of scores.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Hub id (ID@REVISION); may be repeated. Default: the preset's."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Examples, drawn evenly over training.")] = 10_000,
    seed: SeedOption = None,
    json_path: JsonOption = None,
    transcript: Annotated[
        str | None, typer.Option(help="File or folder of the transcript, if it is at hand.")
    ] = None,
    model_folder: Annotated[
        list[str] | None,
        typer.Option(
            help="ID=PATH: files of a model that are at hand; PATH may also be a file of scores "
            "or a column loss:NAME. May be repeated."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the presets and leave.")] = False,
    statistic: StatisticOption = "spearman",
    n_resamples: ResamplesOption = 9999,
    alpha: AlphaOption = 1e-3,
    smallest_effect: SmallestOption = None,
    label: LabelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Test a suspect against a published suite's training order, by one command."""
    if listed:
        _table()
        return
    if name is None or suspect is None:
        raise InputError("an audit needs a preset and --suspect MODEL: --list shows the presets")
    preset = open_preset(name)
    folders = _folders(model_folder)
    references = list(preset.default_references if reference is None else reference)
    notes = []
    for spec in references:
        known = preset.admit(spec.partition("@")[0])
        if known is None or known.independent == "unknown":
            notes.append(
                f"note: that {spec} is independent of this order is your word, not the preset's"
            )
    from workbench.cli.main import _conclude, gather
    from workbench.scorers import open_scores

    given = [_located(s, preset, folders, i == 0) for i, s in enumerate([suspect, *references])]
    source = _transcript_source(preset, transcript)
    (models,), (examples,) = gather([given], [source], quiet, claim=_claim(preset))
    chosen = examples.subsample(n, seed)
    window, encodings = preset.suite.window, cast(dict[str, Any], {})
    scored = [
        open_scores(
            spec,
            chosen,
            prefix=window.prefix,
            length=None if window.length == "all" else window.length,
            dtype=dtype,
            device=device,
            label=label if number == 0 else None,
            progress=not quiet,
            encodings=encodings,
        )
        for number, spec in enumerate(models)
    ]
    case = QueryCase(
        chosen,
        scored[0],
        scored[1:],
        {
            "statistic": statistic,
            "n_resamples": n_resamples,
            "seed": seed,
            "alpha": alpha,
            "smallest_effect": smallest_effect,
        },
    )
    for note in notes:
        say(note)
    for figure in preset.published:
        rho = "" if figure.rho is None else f", ρ {figure.rho} on losses"
        say(
            f"published, {name} itself, {figure.n:,} examples, reference {figure.reference}: "
            f"p {figure.p:g}{rho} ({figure.source})"
        )
    _conclude(case.run(), json_path)


def _table() -> None:
    for name, preset in PRESETS.items():
        place = preset.suite.transcript
        references = ", ".join(preset.default_references) or "none named"
        say(
            f"{name:<20} {preset.suite.title}; transcript {place.dataset}/{place.subset}; "
            f"references: {references}"
        )


def _folders(given: list[str] | None) -> dict[str, str]:
    found = {}
    for item in given or []:
        model, sign, path = item.partition("=")
        if not model or not sign or not path:
            raise InputError(f"--model-folder {item!r} is not of the form ID=PATH")
        if not path.startswith(("loss:", "loglik:")) and not Path(path).expanduser().exists():
            raise InputError(f"--model-folder {item!r}: {path} does not exist: check the path")
        found[model] = path
    return found


def _located(spec: str, preset: Preset, folders: dict[str, str], is_suspect: bool) -> str:
    """What `open_scores` takes: files at hand, or a model on the hub with its revision."""
    model, sign, _ = spec.partition("@")
    for key in (spec, model):
        if key in folders:
            return folders[key]
    if spec.startswith(("loss:", "loglik:")) or Path(spec).expanduser().exists():
        if not is_suspect:
            raise InputError(
                f"{spec} says not which model it is, so whether it may be a reference cannot be "
                f"checked: name the model, and its files with --model-folder ID={spec}"
            )
        return spec
    # a suspect is whatever its owner serves now; of a reference the sources name the revision
    return spec if sign or is_suspect else f"{spec}@{preset.revision(model)}"


def _transcript_source(preset: Preset, given: str | None) -> str:
    if given is not None:
        return given
    dataset, subset, revision = preset.transcript()
    return f"{dataset}/{subset}" + ("" if revision is None else f"@{revision}")


def _claim(preset: Preset) -> ShuffleClaim:
    """A published shuffler's name, seed and data set stand in the file of its sample."""
    order = preset.suite.order
    kind = "not_stated" if order.shuffle == "published_shuffler" else order.shuffle
    return ShuffleClaim(kind, source=order.source)
