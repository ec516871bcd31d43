"""Options that several commands share: one spelling, one help text."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.null import ALTERNATIVES
from workbench.statistics import STATISTICS
from workbench.statistics import WEIGHTS as POSITION_WEIGHTS

# Exit status; 0: the command ran, and its test, if any, was valid.
FAILED, BAD_INPUT, INVALID, INTERRUPTED = 1, 2, 3, 130

TranscriptOption = Annotated[
    str,
    typer.Option(
        "--transcript",
        help="Parquet, JSONL (.gz), Arrow file, folder, or data set on the hub "
        "(ID, ID@REVISION, ID/SUBSET, hf://datasets/ID/PATH).",
        show_default=False,
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Column of a role, as role=NAME; roles: position, tokens, text, block, unit, "
        "exposures. May be repeated.",
    ),
]
SplitOption = Annotated[str, typer.Option("--split", help="Split of a Hugging Face data set.")]
SubsetOption = Annotated[
    str | None, typer.Option("--subset", help="Its configuration, folder or file.")
]
PrefixOption = Annotated[int, typer.Option(help="Tokens at the start that are context only.")]
LengthOption = Annotated[
    int | None, typer.Option(help="Tokens scored after the prefix (default: all).")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
BosOption = Annotated[bool, typer.Option("--bos", help="Prepend the tokenizer's BOS token.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
DtypeOption = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16, mixed, 8bit, 4bit.")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(help="Spread the model over all devices: auto, balanced, sequential."),
]

ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="Work on a Ray cluster: local, auto, ray://host:port."),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Workers of --cluster (default: all that fit).")
]

TextsOption = Annotated[
    str,
    typer.Option(
        "--texts",
        help="Parquet or JSONL (one document per row), a .txt file, or a folder of .txt files.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Folder or hub id whose tokenizer cuts strings."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Address of an OpenAI-compatible server that serves the model, such as "
        "http://localhost:8000/v1.",
    ),
]
AccessOption = Annotated[
    str,
    typer.Option(
        help="With --endpoint: completions (likelihoods of prompts), chat (likeliest next tokens) "
        "or sampled (text only)."
    ),
]
ThroughOption = Annotated[
    str | None, typer.Option(help="Where chat and sampled access ask: chat or completions.")
]
FormOption = Annotated[
    str, typer.Option(help="Of completions: auto, echo, prompt_logprobs, token_ids.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env", help="Name of the environment variable that holds the endpoint's key."
    ),
]
MaxRequestsOption = Annotated[int | None, typer.Option(help="Hard limit, failures included.")]
MaxTokensOption = Annotated[int | None, typer.Option(help="Hard limit.")]
MaxMoneyOption = Annotated[float | None, typer.Option(help="Hard limit; needs the prices.")]
PromptPriceOption = Annotated[float | None, typer.Option(help="Per million prompt tokens.")]
CompletionPriceOption = Annotated[float | None, typer.Option(help="Per million completion tokens.")]
ConcurrencyOption = Annotated[int, typer.Option(help="Requests under way at a time.")]
BundleOption = Annotated[int, typer.Option(help="Prompts per request.")]
PlacesOption = Annotated[int, typer.Option(help="Of chat and sampled access, per example.")]
TopOption = Annotated[int, typer.Option(help="Likeliest tokens that chat access asks for.")]
DrawsOption = Annotated[int, typer.Option(help="Samples per place.")]
TemperatureOption = Annotated[float, typer.Option(help="Of sampled access.")]
OnChangeOption = Annotated[
    str, typer.Option(help="If the model behind the endpoint changes: warn or stop.")
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
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
    typer.Option(
        "--ledger",
        help="Open ledger of the transcript: the test is entered, and corrected as its k-th.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the evidence as JSON.")]
ResamplesOption = Annotated[int, typer.Option("--n-resamples", help="Permutations.")]
AlternativeOption = Annotated[
    str, typer.Option("--alternative", help=f"One of {', '.join(ALTERNATIVES)}.")
]
AlphaOption = Annotated[float, typer.Option("--alpha", help="Level of the exact p-value.")]
SmallestOption = Annotated[
    float | None,
    typer.Option("--smallest-effect", help="Smallest correlation of interest, fixed beforehand."),
]
ShuffleOption = Annotated[
    str | None,
    typer.Option(
        "--shuffle",
        help="How the order came about: owner (says that it was shuffled at random), "
        "public_randomness, published_shuffler, unknown, natural (default: what the file says).",
    ),
]
ShuffleSeedOption = Annotated[
    int | None, typer.Option("--shuffle-seed", help="The shuffle's seed, if known.")
]
SeedBitsOption = Annotated[
    int | None, typer.Option("--seed-bits", help="Bits of the shuffle's seed space.")
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
    typer.Option(
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
    typer.Option(
        "--statistic",
        help=f"One of {', '.join(STATISTICS)}; others are put together from such names: "
        f"NAME:WEIGHTS with {', '.join(POSITION_WEIGHTS)}, max(A, B), held-out(A, B), "
        "tokens-top30, residual-degree3.",
    ),
]
SubsampleOption = Annotated[
    int | None,
    typer.Option("--subsample", help="Test a random subset of this many examples."),
]
