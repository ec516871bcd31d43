"""Options that several commands share: one spelling, one help text, one box of ``--help``."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from workbench.archive import printable
from workbench.commitment import SELF_DATED, CommitmentFile
from workbench.null import ALTERNATIVES
from workbench.statistics import STATISTICS
from workbench.statistics import WEIGHTS as POSITION_WEIGHTS

# Exit status; 0: the command ran, and its test, if any, was valid.
FAILED, BAD_INPUT, INVALID, INTERRUPTED = 1, 2, 3, 130


def say(text: object, err: bool = False) -> None:
    """Print for a terminal: no name, path or reason in the text moves its cursor or its title."""
    lines = str(text).split("\n")
    typer.echo("\n".join(printable(line, len(line)) for line in lines), err=err)


# The boxes of --help; what a command is about stays in the first one.
data_option = partial(typer.Option, rich_help_panel="Data")
local_option = partial(typer.Option, rich_help_panel="Model on this machine")
endpoint_option = partial(typer.Option, rich_help_panel="Model behind an endpoint")
cluster_option = partial(typer.Option, rich_help_panel="Cluster")
test_option = partial(typer.Option, rich_help_panel="Test")
order_option = partial(typer.Option, rich_help_panel="How the order came about")
sampling_option = partial(typer.Option, rich_help_panel="Sampling")
design_option = partial(typer.Option, rich_help_panel="Design")
committed_option = partial(typer.Option, rich_help_panel="Commitment")
output_option = partial(typer.Option, rich_help_panel="Output")

# What a table may be; `workbench.tables` reads them.
TABLE = "Parquet, JSONL, CSV (.gz) or Arrow"
TranscriptOption = Annotated[
    str,
    typer.Option(
        "--transcript",
        help=f"{TABLE} file, folder, or data set on the hub (ID, ID@REVISION, ID/SUBSET, "
        "hf://datasets/ID/PATH).",
        show_default=False,
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    data_option(
        "--column",
        help="Column of a role, as role=NAME; roles: position, tokens, text, block, unit, "
        "exposures. May be repeated.",
    ),
]
SplitOption = Annotated[str, data_option("--split", help="Split of a Hugging Face data set.")]
SubsetOption = Annotated[
    str | None, data_option("--subset", help="Its configuration, folder or file.")
]
PrefixOption = Annotated[int, data_option(help="Tokens at the start that are context only.")]
LengthOption = Annotated[
    int | None, data_option(help="Tokens scored after the prefix (default: all).")
]


def say_committed(made: CommitmentFile, path: Path) -> None:
    """Print the digest of a commitment that was written, and what to do with it."""
    say(f"{made.sha256}  {path}")
    say(f"{SELF_DATED} until somebody else dates it: publish this SHA-256, or time-stamp {path}.")


def _silence(context: typer.Context, quiet: bool) -> bool:
    if quiet:
        context.with_resource(_silent())
    return quiet


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars, warnings and logs of libraries, here and in processes started here."""
    before = dict(os.environ)
    os.environ.update(
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        PYTHONWARNINGS="ignore",
        TRANSFORMERS_VERBOSITY="critical",
    )
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)


QuietOption = Annotated[
    bool,
    output_option(
        "--quiet", callback=_silence, help="Say nothing but errors and the result asked for."
    ),
]
BosOption = Annotated[bool, local_option("--bos", help="Prepend the tokenizer's BOS token.")]
DeviceOption = Annotated[str, local_option(help="auto, cpu, cuda, cuda:1, …")]
DtypeOption = Annotated[
    str, local_option(help="auto, float32, bfloat16, float16, mixed, 8bit, 4bit.")
]
LabelOption = Annotated[
    str | None,
    local_option(
        "--label",
        help="The suspect's name in scores and evidence (default: its folder's, or hub id and "
        "commit).",
    ),
]
DeviceMapOption = Annotated[
    str | None,
    local_option(help="Spread the model over all devices: auto, balanced, sequential."),
]

ClusterOption = Annotated[
    str | None,
    cluster_option("--cluster", help="Work on a Ray cluster: local, auto, ray://host:port."),
]
WorkersOption = Annotated[
    int | None, cluster_option("--workers", help="Workers of --cluster (default: all that fit).")
]

TextsOption = Annotated[
    str,
    typer.Option(
        "--texts",
        help=f"{TABLE} file or folder (one document per row), or .txt and .md files or a folder "
        "of them.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    str | None,
    data_option("--tokenizer", help="Folder or hub id whose tokenizer cuts strings."),
]
EndpointOption = Annotated[
    str | None,
    endpoint_option(
        "--endpoint",
        help="Address of an OpenAI-compatible server that serves the model, such as "
        "http://localhost:8000/v1.",
    ),
]
AccessOption = Annotated[
    str,
    endpoint_option(
        help="With --endpoint: completions (likelihoods of prompts), chat (likeliest next tokens) "
        "or sampled (text only)."
    ),
]
ThroughOption = Annotated[
    str | None, endpoint_option(help="Where chat and sampled access ask: chat or completions.")
]
FormOption = Annotated[
    str, endpoint_option(help="Of completions: auto, echo, prompt_logprobs, token_ids.")
]
KeyOption = Annotated[
    str | None,
    endpoint_option(
        "--api-key-env", help="Name of the environment variable that holds the endpoint's key."
    ),
]
MaxRequestsOption = Annotated[int | None, endpoint_option(help="Hard limit, failures included.")]
MaxTokensOption = Annotated[int | None, endpoint_option(help="Hard limit.")]
MaxMoneyOption = Annotated[float | None, endpoint_option(help="Hard limit; needs the prices.")]
PromptPriceOption = Annotated[float | None, endpoint_option(help="Per million prompt tokens.")]
CompletionPriceOption = Annotated[
    float | None, endpoint_option(help="Per million completion tokens.")
]
ConcurrencyOption = Annotated[int, endpoint_option(help="Requests under way at a time.")]
BundleOption = Annotated[int, endpoint_option(help="Prompts per request.")]
PlacesOption = Annotated[int, endpoint_option(help="Of chat and sampled access, per example.")]
TopOption = Annotated[int, endpoint_option(help="Likeliest tokens that chat access asks for.")]
DrawsOption = Annotated[int, endpoint_option(help="Samples per place.")]
TemperatureOption = Annotated[float, endpoint_option(help="Of sampled access.")]
OnChangeOption = Annotated[
    str, endpoint_option(help="If the model behind the endpoint changes: warn or stop.")
]
PlanOption = Annotated[
    Path | None,
    data_option(
        "--plan", help="File of 'palimpsest plan': only the examples that it gives to the test."
    ),
]
MaxWorkOption = Annotated[
    int,
    typer.Option(
        help="Examples times permutations, scores and weights of position that are recomputed at "
        "most, the references' check included."
    ),
]
LedgerOption = Annotated[
    Path | None,
    output_option(
        "--ledger",
        help="Open ledger of the transcript: the test is entered, and corrected as its k-th.",
    ),
]
JsonOption = Annotated[Path | None, output_option("--json", help="Write the evidence as JSON.")]
ResamplesOption = Annotated[int, test_option("--n-resamples", help="Permutations.")]
AlternativeOption = Annotated[
    str, test_option("--alternative", help=f"One of {', '.join(ALTERNATIVES)}.")
]
AlphaOption = Annotated[float, test_option("--alpha", help="Level of the exact p-value.")]
SmallestOption = Annotated[
    float | None,
    test_option("--smallest-effect", help="Smallest correlation of interest, fixed beforehand."),
]
SeedOption = Annotated[
    int | None,
    test_option(
        "--seed",
        help="Of every random step (default: the examples give it, nothing is chosen).",
    ),
]
ShuffleOption = Annotated[
    str | None,
    order_option(
        "--shuffle",
        help="How the order came about: owner (says that it was shuffled at random), "
        "public_randomness, published_shuffler, unknown, natural, or a claim in a .json file "
        "(default: what the file says).",
    ),
]
ShuffleSeedOption = Annotated[
    int | None, order_option("--shuffle-seed", help="The shuffle's seed, if known.")
]
SeedBitsOption = Annotated[
    int | None, order_option("--seed-bits", help="Bits of the shuffle's seed space.")
]

CommitmentOption = Annotated[
    Path,
    typer.Option("--commitment", help="File that 'palimpsest commit' wrote.", show_default=False),
]
SaltOption = Annotated[
    Path,
    typer.Option(
        "--salt-file",
        help="The owner's secret salt, in a file of its own; keep it, and show it to nobody.",
        show_default=False,
    ),
]
StampOption = Annotated[
    list[Path] | None,
    committed_option(
        "--time-stamp",
        help="OpenTimestamps (.ots) or RFC 3161 (.tsr) file of the commitment; may be repeated.",
    ),
]
ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        help="Scores file, model, or column loss:NAME / loglik:NAME; may be repeated.",
    ),
]
PlaceboOption = Annotated[
    list[str] | None,
    typer.Option("--placebo", help="Independent model tested the same way; may be repeated."),
]
StatisticOption = Annotated[
    str,
    test_option(
        "--statistic",
        help=f"One of {', '.join(STATISTICS)}; others are put together from such names: "
        f"NAME:WEIGHTS with {', '.join(POSITION_WEIGHTS)}, max(A, B), held-out(A, B), "
        "tokens-top30, residual-degree3.",
    ),
]
SubsampleOption = Annotated[
    int | None,
    data_option("--subsample", help="Test a random subset of this many examples."),
]
