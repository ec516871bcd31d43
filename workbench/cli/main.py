"""The command ``palimpsest``: thin, every command is a call that a notebook could make.

Exit status: 0 ran, whatever a valid test found, 1 a notebook or a study's cell failed, or a bundle
or a study does not match, 2 bad input, 3 a test was not valid, 130 interrupted.
"""

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from tqdm import tqdm

from workbench import __version__
from workbench.archive import printable, read_limited
from workbench.cli.audit import audit
from workbench.cli.demo import demo
from workbench.cli.design import design_app
from workbench.cli.exhibit import exhibit
from workbench.cli.notebooks import notebooks_app
from workbench.cli.numbers import Commands
from workbench.cli.options import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    INVALID,
    TABLE,
    AccessOption,
    AlphaOption,
    AlternativeOption,
    BosOption,
    BundleOption,
    ClusterOption,
    ColumnOption,
    CommitmentOption,
    CompletionPriceOption,
    ConcurrencyOption,
    DeviceMapOption,
    DeviceOption,
    DrawsOption,
    DtypeOption,
    EndpointOption,
    FormOption,
    JsonOption,
    KeyOption,
    LabelOption,
    LedgerOption,
    LengthOption,
    MaxMoneyOption,
    MaxRequestsOption,
    MaxTokensOption,
    MaxWorkOption,
    OnChangeOption,
    PlaceboOption,
    PlacesOption,
    PlanOption,
    PrefixOption,
    PromptPriceOption,
    QuietOption,
    ReferenceOption,
    ResamplesOption,
    SaltOption,
    SeedBitsOption,
    SeedOption,
    ShuffleOption,
    ShuffleSeedOption,
    SmallestOption,
    SplitOption,
    StampOption,
    StatisticOption,
    SubsampleOption,
    SubsetOption,
    TemperatureOption,
    TextsOption,
    ThroughOption,
    TokenizerOption,
    TopOption,
    TranscriptOption,
    WorkersOption,
    cluster_option,
    committed_option,
    design_option,
    local_option,
    order_option,
    output_option,
    sampling_option,
    say,
    say_committed,
    test_option,
)
from workbench.cli.siblings import siblings_app
from workbench.cli.study import study_app
from workbench.cli.transcript import transcript_app
from workbench.commitment import SUBSAMPLE, Commitment, TimeStamp, committed_test
from workbench.designed import (
    DesignParameters,
    commit_design,
    committed_design,
    committed_pairs,
    committed_settings,
    design_settings,
    learned_sha256,
)
from workbench.errors import InputError, optional_libraries
from workbench.evidence import NOT_VALID, Evidence
from workbench.independence import (
    Ledger,
    PairCase,
    QueryCase,
    partition_test,
    reshuffle_test,
)
from workbench.independence.design import DESIGNS, FILTERS
from workbench.merkle import MasterSalt
from workbench.ngrams import ENGINES, WEIGHTS, ClusterJoin
from workbench.scores import Scores
from workbench.shufflers import SHUFFLERS, KnownShuffle
from workbench.statistics import PARTITION_STATISTICS, PositionWeights
from workbench.texts import Texts
from workbench.transcript import ShuffleClaim, Transcript

__all__ = ["app", "app_main"]

# typer does not export its UsageError; BadParameter is one.
UsageError: Any = typer.BadParameter.__base__


PAIRED = [name for name, windows in DESIGNS.items() if windows is not None]

# The boxes of 'palimpsest --help'.
START, TESTS, OTHERS, RUNS = "First steps", "Tests", "Evidence for others", "Studies and real runs"

app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)
lab_app = typer.Typer(no_args_is_help=True, help="Small real training runs on this machine.")
test_app = typer.Typer(no_args_is_help=True, help="Tests of independence of the training order.")
ledger_app = typer.Typer(no_args_is_help=True, help="The tests of a transcript's order so far.")
app.add_typer(notebooks_app, name="notebooks", rich_help_panel=START)
app.command("demo", rich_help_panel=START)(demo)
app.add_typer(lab_app, name="lab", rich_help_panel=START)
app.add_typer(test_app, name="test", rich_help_panel=TESTS)
app.add_typer(ledger_app, name="ledger", rich_help_panel=TESTS)
app.add_typer(design_app, name="design", rich_help_panel=TESTS)
app.command("audit", rich_help_panel=TESTS)(audit)
app.add_typer(siblings_app, name="siblings", rich_help_panel=OTHERS)
app.command("exhibit", rich_help_panel=OTHERS)(exhibit)
app.add_typer(study_app, name="study", rich_help_panel=RUNS)
app.add_typer(transcript_app, name="transcript", rich_help_panel=RUNS)


def _version(asked: bool) -> None:
    if asked:
        say(f"palimpsest {__version__}")
        raise typer.Exit


@app.callback()
def palimpsest(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and leave.")
    ] = False,
) -> None:
    """Does a language model remember the order of someone's training data?"""


ROLES = ("position", "tokens", "text", "block", "unit", "exposures")


def gather(
    models: Sequence[Sequence[str]],
    sources: Sequence[str],
    quiet: bool,
    columns: list[str] | None = None,
    split: str = "train",
    subset: str | None = None,
    claim: ShuffleClaim | None = None,
    tokenizer: str | None = None,
) -> tuple[list[list[str]], list[Transcript]]:
    """Groups of models, by commit and with their weights fetched, and the transcripts.

    All that the hub may lack is asked for before anything is fetched, and what is here is read
    before weights are.
    """
    from workbench.hub import HubDataset
    from workbench.models.checkpoint import HubModel, tokenizer_folder

    named: dict[str, Any] = {}
    for item in columns or []:
        role, _, name = item.partition("=")
        if role not in ROLES or not name:
            raise InputError(
                f"--column {item!r} is not role=NAME with a role of {', '.join(ROLES)}"
            )
        named[role] = name

    def read(source: str) -> Transcript:
        return Transcript.read(source, split=split, subset=subset, shuffle=claim, **named)

    asked = {
        spec: HubModel.ask(spec)
        for spec in chain(*models)
        # beside a transcript, a bare word may be a column of its table
        if ("/" in spec or "@" in spec or not sources)
        and not spec.startswith(("loss:", "loglik:"))
        and not spec.endswith(".parquet")
        and not Path(spec).expanduser().exists()
    }
    if tokenizer is not None:
        tokenizer_folder(tokenizer)
    local = {source for source in sources if Path(source).expanduser().exists()}
    data = [HubDataset.ask(source, split, subset) for source in sources if source not in local]
    here = {source: read(source) for source in local}
    wanted: list[HubModel | HubDataset] = [*asked.values(), *data]
    for each in wanted:
        each.fetch(progress=not quiet)
    by_commit = [[asked[s].name if s in asked else s for s in group] for group in models]
    return by_commit, [here[s] if s in here else read(s) for s in sources]


def _claim(kind: str | None, seed: int | None, seed_bits: int | None) -> ShuffleClaim | None:
    if (kind, seed, seed_bits) == (None, None, None):
        return None
    return ShuffleClaim.of(kind, seed=seed, seed_bits=seed_bits)


def _check_workers(cluster: str | None, workers: int | None) -> None:
    if workers is not None and cluster is None:
        raise InputError("--workers are a cluster's: add --cluster local, or leave them out")


def read_texts(source: str, tokenizer: str | None) -> Texts:
    texts = Texts.read(source)
    if tokenizer is None:
        return texts
    from workbench.scorers import tokenise_texts

    return tokenise_texts(texts, tokenizer)


def _tokenised_transcript(transcript: Transcript, tokenizer: str | None) -> Transcript:
    from workbench.scorers import tokenise_transcript

    if tokenizer is None:
        raise InputError(
            f"{transcript.source} holds text, and n-grams are of token ids: name the tokenizer "
            "with --tokenizer"
        )
    return tokenise_transcript(transcript, tokenizer)


@lab_app.command("train")
def lab_train(
    recipe: Annotated[str, typer.Option(help="Named size: smoke, tiny, small, medium.")] = "tiny",
    text: Annotated[
        str | None,
        typer.Option(
            help=f"Your own text in place of docstrings: a folder of text files, a {TABLE} file, "
            "or a data set on the hub."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Text column of --text.")] = "text",
    split: SplitOption = "train",
    subset: SubsetOption = None,
    observations: Annotated[
        bool,
        typer.Option(
            "--observations", help="Also siblings, and sampled texts scored under all of them."
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train and score the walk-through's models (owner's, derivative, controls) if absent."""
    from workbench import lab

    if observations and text is not None:
        raise InputError("--observations is of the docstring corpus: leave out --text")

    chosen = lab.recipe(recipe)
    corpus = None
    if text is not None:
        corpus = lab.text_corpus(
            text,
            column=text_column,
            split=split,
            subset=subset,
            vocab_size=chosen.vocab_size,
            example_tokens=chosen.example_tokens,
            progress=not quiet,
        )
    run = lab.train_walkthrough(chosen, corpus, progress=not quiet)
    run.score_all(progress=not quiet)
    if observations:
        lab.open_observations(recipe, progress=not quiet)
    for name, role in run.roles.items() if not quiet else ():
        say(f"{name:<18} {role}")


@lab_app.command("siblings")
def lab_siblings(
    recipe: Annotated[str, typer.Option(help="Named size: smoke, tiny, small, medium.")] = "tiny",
    fraction: Annotated[
        float, typer.Option(help="Share of training after which the tail begins.")
    ] = 0.9375,
    siblings: Annotated[
        int, typer.Option(help="Fresh shuffles T; the rank p-value's floor is 1/(T + 1).")
    ] = 19,
    fine_tune_on: Annotated[
        str | None,
        typer.Option(
            help="Text on which rerun, siblings and released weights are then fine-tuned, all "
            "alike; score other text than this."
        ),
    ] = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Retrain the last part of the owner's run: once in order, and on fresh shuffles."""
    from workbench import lab

    _check_workers(cluster, workers)

    made = lab.open_siblings(
        recipe,
        fraction=fraction,
        n_siblings=siblings,
        fine_tune_on=None if fine_tune_on is None else read_texts(fine_tune_on, None),
        workers=workers,
        cluster=cluster,
        progress=not quiet,
    )
    # The lines after the first are options of 'palimpsest test reshuffle'.
    say(f"# {made.procedure}")
    say(f"--shuffle owner --alice {made.rerun}")
    for folder in made.siblings:
        say(f"--sibling {folder}")
    say(f"--released {made.released}")


@lab_app.command("serve")
def lab_serve(
    model: Annotated[str, typer.Option(help="A model of the recipe's run.")] = "derivative",
    recipe: Annotated[str, typer.Option(help="Named size: smoke, tiny, small, medium.")] = "tiny",
    port: Annotated[int, typer.Option(help="On this machine only.")] = 8000,
    quiet: QuietOption = False,
) -> None:
    """Serve a lab model as an OpenAI-compatible endpoint, until it is interrupted."""
    from workbench import lab

    run = lab.open_run(recipe, progress=not quiet)
    if model not in run.folders:
        raise InputError(
            f"{model!r} is no model of the run: choose one of {', '.join(run.folders)}"
        )
    with lab.serving(run.folders[model], port) as url:
        if not quiet:
            say(f"{model} answers at {url} (--endpoint {url} --model {model}); Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@lab_app.command("list")
def lab_list() -> None:
    """List the trained models in the cache, with their folders."""
    from workbench import lab

    entries = lab.lab_list()
    if not entries:
        say("no models are cached; train them with: palimpsest lab train")
    for entry in entries:
        say(f"{entry}  {entry.folder}")


@lab_app.command("clean")
def lab_clean(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys as 'lab list' shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All models and corpora.")] = False,
) -> None:
    """Remove cached models."""
    from workbench import lab

    if not keys and not everything:
        raise InputError("nothing to remove: name keys as 'palimpsest lab list' shows, or --all")
    removed = lab.lab_clean(None if everything else list(keys or []))
    say(f"removed {len(removed)} folder(s)")


@lab_app.command("record")
def lab_record(
    out: Annotated[
        Path,
        typer.Option(
            help="Parquet file to write, a .json goes beside it; with --observations, a folder."
        ),
    ],
    recipe: Annotated[str, typer.Option(help="Named size.")] = "tiny",
    observations: Annotated[
        bool,
        typer.Option(
            "--observations", help="Record n-gram counts and siblings' scores of sampled texts."
        ),
    ] = False,
    access: Annotated[
        bool,
        typer.Option("--access", help="Record scores and costs through every form of access."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a run's scores (numbers and provenance, no text) for people without the models."""
    from workbench import lab

    if access:
        if observations:
            raise InputError("--access and --observations are two recordings: make one at a time")
        asked = lab.open_access(recipe, full=True, progress=not quiet)
        say(f"wrote {lab.record_access(asked, out)}")
        return
    if observations:
        if out.suffix:
            raise InputError(f"--out {out} has the ending {out.suffix}: name a folder")
        made = lab.open_observations(recipe, full=True, progress=not quiet)
        for path in lab.record_observations(made, out, recipe):
            say(f"wrote {path}")
        return
    run = lab.open_run(recipe, progress=not quiet)
    lab.record_run(run, out)
    say(f"wrote {out}")


@app.command("sample", rich_help_panel=TESTS)
def sample(
    model: Annotated[str, typer.Option(help="Hub id or folder of a causal language model.")],
    out: Annotated[Path, typer.Option(help="Parquet file of texts to write.")],
    texts: Annotated[int, typer.Option(help="Documents to sample.")] = 1000,
    tokens: Annotated[int, typer.Option(help="Tokens of each completion.")] = 64,
    prompts: Annotated[
        str | None,
        typer.Option(
            help=f"Contexts: a {TABLE} file or folder with a column tokens or text, or .txt. "
            "Without it a document begins at the beginning-of-sequence token."
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Use only so many tokens of each prompt.")
    ] = None,
    temperature: Annotated[
        float, sampling_option(help="0: the likeliest token; 1: the model's own distribution.")
    ] = 1.0,
    top_p: Annotated[
        float, sampling_option(help="Sample from the likeliest tokens of this total probability.")
    ] = 1.0,
    eos: Annotated[
        bool, sampling_option("--eos", help="End at the end-of-sequence token.")
    ] = False,
    seed: Annotated[int, sampling_option(help="Decides each document, with its number.")] = 0,
    batch_size: Annotated[int, sampling_option(help="Documents at a time.")] = 256,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, output_option(help="Replace other texts at --out.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Sample text from a model, prompts and completions apart; resumes where it was stopped."""
    from workbench import lab
    from workbench.scorers import tokenise_texts

    ((model,),), _ = gather([[model]], [], quiet)
    given = None if prompts is None else read_texts(prompts, None)
    if given is not None and given.kind == "text":
        given = tokenise_texts(given, model)
    made = lab.sample_texts(
        model,
        texts,
        max_new_tokens=tokens,
        prompts=given,
        prompt_tokens=prompt_tokens,
        temperature=temperature,
        top_p=top_p,
        eos=eos,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        out=out,
        overwrite=overwrite,
        progress=not quiet,
    )
    if not quiet:
        say(f"{out}: {made.n:,} documents, {made.n_tokens:,} tokens")


@app.command("score", rich_help_panel=TESTS)
def score(
    model: Annotated[
        str,
        typer.Option(
            help="Hub id or folder of a causal language model; with --endpoint, its name there."
        ),
    ],
    transcript: TranscriptOption,
    out: Annotated[Path, typer.Option(help="Parquet file of scores to write.")],
    revision: Annotated[str | None, local_option(help="Hub revision.")] = None,
    label: LabelOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    endpoint: EndpointOption = None,
    access: AccessOption = "completions",
    through: ThroughOption = None,
    form: FormOption = "auto",
    tokenizer: TokenizerOption = None,
    api_key_env: KeyOption = None,
    max_requests: MaxRequestsOption = None,
    max_tokens: MaxTokensOption = None,
    max_money: MaxMoneyOption = None,
    prompt_price: PromptPriceOption = None,
    completion_price: CompletionPriceOption = None,
    concurrency: ConcurrencyOption = 4,
    bundle: BundleOption = 16,
    places: PlacesOption = 8,
    top: TopOption = 20,
    draws: DrawsOption = 4,
    temperature: TemperatureOption = 1.0,
    on_change: OnChangeOption = "warn",
    plan: PlanOption = None,
    keep_tokens: Annotated[bool, output_option(help="Store per-token values too.")] = False,
    overwrite: Annotated[bool, output_option(help="Replace scores of another model.")] = False,
    seed: Annotated[int, output_option(help="Of the order of measurement.")] = 0,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    gpus: Annotated[
        float, cluster_option(help="GPUs of each worker of --cluster; may be a share.")
    ] = 0,
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Score a transcript's examples under a model; resumes where it was stopped."""
    from workbench.scorers import Budget, RayScorer, score_transcript

    _check_workers(cluster, workers)
    if revision is not None and endpoint is None and not Path(model).expanduser().exists():
        model, revision = f"{model}@{revision}", None
    (located,), (examples,) = gather(
        [[model] if endpoint is None else []],
        [transcript],
        quiet,
        column,
        split,
        subset,
        tokenizer=tokenizer,
    )
    if plan is not None:
        examples = _planned(plan, examples)
    scorer: Any
    if endpoint is None:
        from workbench.scorers import CausalLMScorer

        scorer = CausalLMScorer(
            located[0],
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            bos=bos,
            prefix=prefix,
            length=length,
            label=label,
        )
        if cluster is not None:
            scorer = RayScorer(scorer, cluster, workers=workers, num_gpus=gpus)
    else:
        if cluster is not None or device_map is not None:
            raise InputError(
                "a model behind an endpoint is not loaded here: leave out --cluster and "
                "--device-map"
            )
        if revision is not None or bos or (dtype, device) != ("auto", "auto"):
            raise InputError(
                "revision, bos, dtype and device are the server's business: leave them out with "
                "--endpoint"
            )
        scorer = _endpoint_scorer(
            endpoint,
            model,
            access=access,
            through=through,
            form=form,
            places=places,
            top=top,
            draws=draws,
            temperature=temperature,
            tokenizer=tokenizer,
            prefix=prefix,
            length=length,
            label=label,
            bundle=bundle,
            concurrency=concurrency,
            on_change=on_change,
            api_key_env=api_key_env,
            budget=Budget(max_requests, max_tokens, max_money, prompt_price, completion_price),
        )
    scores = score_transcript(
        examples,
        scorer,
        out,
        seed=seed,
        keep_tokens=keep_tokens,
        overwrite=overwrite,
        progress=not quiet,
    )
    if quiet:
        return
    say(
        f"{out}: {scores.n:,} examples, mean {scores.loglik_mean.mean():.4f} {scores.units}, "
        f"{int(scores.n_tokens.sum()):,} {'tokens' if endpoint is None else 'values'}"
    )
    for caveat in scores.caveats:
        say(f"note: {caveat}")


def _endpoint_scorer(
    endpoint: str,
    model: str,
    *,
    access: str,
    through: str | None,
    form: str,
    places: int,
    top: int,
    draws: int,
    temperature: float,
    **options: Any,
) -> Any:
    """The scorer of a way of access, with the options that it has."""
    from workbench.scorers import SCORERS

    asked: dict[str, dict[str, Any]] = {
        "completions": {"form": form},
        "chat": {"top": top, "places": places},
        "sampled": {"draws": draws, "temperature": temperature, "places": places},
    }
    if access not in asked:
        raise InputError(f"access {access!r} is unknown: use one of {', '.join(asked)}")
    if through is not None:
        if access == "completions":
            raise InputError("--through is of chat and sampled access: leave it out")
        asked[access]["access"] = through
    return SCORERS[access].load()(endpoint, model, **options, **asked[access])


def _planned(plan: Path, examples: Transcript) -> Transcript:
    from workbench.independence import QueryPlan

    return QueryPlan.read(plan).test_examples(examples)


@app.command("plan", rich_help_panel=TESTS)
def plan_command(
    transcript: TranscriptOption,
    model: Annotated[
        str,
        typer.Option(
            help="Hub id or folder of a causal language model; with --endpoint, its name there."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="JSON file of the plan to write.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores file, model, or column loss:NAME / loglik:NAME; may be repeated."
        ),
    ] = None,
    effect: Annotated[
        str | None,
        typer.Option(
            help="No pilot, nothing is asked: a rank correlation, or a query test's --json file."
        ),
    ] = None,
    pilot: Annotated[
        int, typer.Option(help="Examples asked about now, and excluded from the test.")
    ] = 300,
    pvalue: Annotated[float, typer.Option(help="To be reached.")] = 1e-8,
    power: Annotated[float, typer.Option(help="Probability of reaching it.")] = 0.9,
    statistic: StatisticOption = "spearman",
    seed: SeedOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    endpoint: EndpointOption = None,
    access: AccessOption = "completions",
    through: ThroughOption = None,
    form: FormOption = "auto",
    tokenizer: TokenizerOption = None,
    api_key_env: KeyOption = None,
    max_requests: MaxRequestsOption = None,
    max_tokens: MaxTokensOption = None,
    max_money: MaxMoneyOption = None,
    prompt_price: PromptPriceOption = None,
    completion_price: CompletionPriceOption = None,
    concurrency: ConcurrencyOption = 4,
    bundle: BundleOption = 16,
    places: PlacesOption = 8,
    top: TopOption = 20,
    draws: DrawsOption = 4,
    temperature: TemperatureOption = 1.0,
    on_change: OnChangeOption = "warn",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """How many queries, requests, tokens, hours and how much money will a test need?"""
    from workbench.independence.plan import Pilot
    from workbench.pilot import plan_query
    from workbench.scorers import Budget, open_scores

    if (prompt_price is None) != (completion_price is None):
        raise InputError("one price is missing: give --prompt-price and --completion-price")
    known = None if effect is None else _effect(effect)
    specs = list(reference or []) if known is None else []
    (located, specs), (examples,) = gather(
        [[model] if endpoint is None else [], specs],
        [transcript],
        quiet,
        column,
        split,
        subset,
        tokenizer=tokenizer,
    )
    suspect: Any
    if endpoint is None:
        from workbench.scorers import CausalLMScorer

        suspect = CausalLMScorer(located[0], prefix=prefix, length=length)
    else:
        suspect = _endpoint_scorer(
            endpoint,
            model,
            access=access,
            through=through,
            form=form,
            places=places,
            top=top,
            draws=draws,
            temperature=temperature,
            tokenizer=tokenizer,
            prefix=prefix,
            length=length,
            bundle=bundle,
            concurrency=concurrency,
            on_change=on_change,
            api_key_env=api_key_env,
            budget=Budget(max_requests, max_tokens, max_money, prompt_price, completion_price),
        )
    references: list[Any] = []
    if specs:
        # Models score no more than the pilot; a file of scores is of the whole transcript.
        drawn = examples.seed_of(seed)
        few, _ = Pilot(examples.fingerprint, pilot, drawn).split(examples)
        references = [
            open_scores(
                spec,
                examples if Path(spec).is_file() else few,
                prefix=prefix,
                length=length,
                progress=not quiet,
            )
            for spec in specs
        ]
    made = plan_query(
        examples,
        suspect,
        references,
        effect=known,
        statistic=statistic,
        pvalue=pvalue,
        power=power,
        pilot=pilot,
        prices=None
        if prompt_price is None or completion_price is None
        else (prompt_price, completion_price),
        seed=seed,
        progress=not quiet,
    )
    if out is not None:
        made.write(out)
    say(made.summary())


def _effect(text: str) -> float | Evidence:
    try:
        return float(text)
    except ValueError:
        return Evidence.read(text)


@test_app.command("query")
def test_query(
    context: typer.Context,
    transcript: TranscriptOption,
    suspect: Annotated[
        str, typer.Option(help="Scores file, model, or column loss:NAME / loglik:NAME.")
    ],
    reference: ReferenceOption = None,
    placebo: PlaceboOption = None,
    json_path: JsonOption = None,
    commitment: Annotated[
        Path | None,
        committed_option(
            help="Test as committed in this file: its settings are taken, and options that differ "
            "from them are refused."
        ),
    ] = None,
    salt_file: Annotated[
        Path | None, committed_option(help="The commitment's secret salt.")
    ] = None,
    time_stamp: StampOption = None,
    statistic: StatisticOption = "spearman",
    weights: Annotated[
        Path | None,
        test_option(help="Table of weights of position, learned on another order (JSON)."),
    ] = None,
    n_resamples: ResamplesOption = 9999,
    alternative: AlternativeOption = "greater",
    seed: SeedOption = None,
    alpha: AlphaOption = 1e-3,
    smallest_effect: SmallestOption = None,
    shuffle: ShuffleOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    shuffler: Annotated[
        str | None,
        order_option(
            help=f"Null of fresh seeds of the owner's shuffler: {', '.join(SHUFFLERS)}; needs "
            "--shuffle-seed, and --seed-bits where seeds came from a smaller space."
        ),
    ] = None,
    shuffle_size: Annotated[
        int | None,
        order_option(help="Of --shuffler: examples of the whole data set (default: the rows)."),
    ] = None,
    shuffle_batch: Annotated[
        int | None, order_option(help="Of --shuffler: examples per step, if positions are steps.")
    ] = None,
    shuffle_epoch: Annotated[
        int | None, order_option(help="Of --shuffler: the epoch of this transcript (default: 0).")
    ] = None,
    seed_drawn: Annotated[
        bool,
        order_option("--seed-drawn", help="Of --shuffler: the owner says that the seed was drawn."),
    ] = False,
    subsample: SubsampleOption = None,
    plan: PlanOption = None,
    ledger: LedgerOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    label: LabelOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Does the suspect's likelihood rise with training position?"""
    models = [[suspect], reference or [], placebo or []]
    if commitment is not None:
        if salt_file is None:
            raise InputError("a committed test needs the commitment's secret: add --salt-file")
        fixed, salt = Commitment.read(commitment), MasterSalt.read(salt_file)
        fixed.check_test("query")
        fixed.refuse(fixed.deviations(_given(context)))
        ((suspect,), specs, others), (whole,) = gather(
            models, [transcript], quiet, column, split, subset, fixed.claim
        )
        examples = _committed_examples(fixed, whole)
        # before any model is asked: a damaged ledger must not cost queries
        book = None if ledger is None else Ledger(ledger, whole)
        window = fixed.window
        scores_of = scores_opener(examples, window.prefix, window.length, bos, dtype, device, quiet)
        scored = scores_of(suspect, label)
        references, placebos = [scores_of(s) for s in specs], [scores_of(s) for s in others]
        stamps = _time_stamps(time_stamp, fixed)

        def as_committed() -> Evidence:
            return committed_test(
                fixed, salt, examples, scored, references, placebos, time_stamps=stamps
            )

        if book is None:
            _conclude(as_committed(), json_path)
            return
        fixed.check_salt(salt)
        fixed.refuse(fixed.data_deviations(examples, scored, references, placebos))
        case = QueryCase(examples, scored, references, {
            **fixed.test_settings(), "placebos": placebos,
        })  # fmt: skip
        settings = {**case.described, "commitment": fixed.sha256}
        _conclude(book.run(settings, as_committed), json_path)
        return
    if time_stamp or salt_file is not None:
        raise InputError(
            "--time-stamp and --salt-file are of a commitment: add --commitment, or leave them out"
        )
    if shuffler is None and (shuffle_size, shuffle_batch, shuffle_epoch, seed_drawn) != (
        None, None, None, False,
    ):  # fmt: skip
        raise InputError(
            "--shuffle-size, --shuffle-batch, --shuffle-epoch and --seed-drawn are of a known "
            "shuffler: add --shuffler, or leave them out"
        )
    claim = _claim(shuffle, shuffle_seed, seed_bits)
    ((suspect,), specs, others), (whole,) = gather(
        models, [transcript], quiet, column, split, subset, claim
    )
    examples = whole
    size = whole.n if shuffle_size is None else shuffle_size
    known = _known_shuffle(
        shuffler, shuffle_seed, seed_bits, size, shuffle_batch, shuffle_epoch, seed_drawn
    )
    # before any model is asked: a damaged ledger must not cost queries
    book = None if ledger is None else Ledger(ledger, whole)
    if subsample is not None:
        if plan is not None:
            raise InputError("--plan says which examples are tested: leave out --subsample")
        examples = examples.subsample(subsample, seed)
    if plan is not None:
        examples = _planned(plan, examples)
    scores_of = scores_opener(examples, prefix, length, bos, dtype, device, quiet)
    case = QueryCase(
        examples,
        scores_of(suspect, label),
        [scores_of(spec) for spec in specs],
        {
            "statistic": statistic,
            "null": known or "permutation",
            "weights": None if weights is None else PositionWeights.read(weights),
            "n_resamples": n_resamples,
            "alternative": alternative,
            "seed": seed,
            "alpha": alpha,
            "smallest_effect": smallest_effect,
            "placebos": [scores_of(spec) for spec in others],
        },
    )
    evidence = case.run() if book is None else book.test(case)
    _conclude(evidence, json_path)


def _known_shuffle(
    name: str | None,
    seed: int | None,
    seed_bits: int | None,
    size: int,
    batch: int | None,
    epoch: int | None,
    drawn: bool,
) -> KnownShuffle | None:
    if name is None:
        return None
    if seed is None:
        raise InputError(f"the shuffler {name!r} gives an order only from a seed: --shuffle-seed")
    return KnownShuffle(
        name,
        seed,
        size,
        epochs=(0 if epoch is None else epoch,),
        batch_size=1 if batch is None else batch,
        seed_bits=seed_bits,
        seed_drawn=drawn,
    )


BudgetOption = Annotated[
    int | None, design_option("--queries", help="Examples to ask about at most.")
]
DesignOption = Annotated[
    str,
    design_option(
        "--design",
        help=f"Pairs of one late and one early unit: {', '.join(PAIRED)}, or a file of "
        "'palimpsest design fit'.",
    ),
]
FilterOption = Annotated[
    str | None,
    design_option(
        "--filter", help=f"Which examples, the same rule for late and early: {', '.join(FILTERS)}."
    ),
]
CompareOption = Annotated[
    str,
    design_option(
        "--compare",
        help="Late and early units in pairs, or windows: all late ones with all early ones, which "
        "takes fewer queries.",
    ),
]
BlockOption = Annotated[
    int | None, design_option("--block", help="Number of the block, if there are several.")
]
DesignOutOption = Annotated[
    Path | None, design_option("--design-json", help="Write what was asked about, as JSON.")
]


CommittedOption = Annotated[
    Path | None,
    committed_option(
        "--commitment",
        help="Test as committed in this file: its settings are taken, and options that differ "
        "from them are refused.",
    ),
]
CommittedSaltOption = Annotated[
    Path | None, committed_option("--salt-file", help="The commitment's secret salt.")
]


def _learned(path: Path) -> Any:
    from workbench.independence.design import LearnedDesign

    try:
        return LearnedDesign.from_json(read_limited(path).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read ({error}): check the path") from error


def _designed(
    transcript: Transcript,
    queries: int | None,
    design: str,
    chosen: str | None,
    block: int | None,
    seed: int | None,
    references: list[str],
    scores_of: Any,
    out: Path | None,
    compare: str = "pairs",
) -> tuple[Any, list[Any]]:
    """The design, and the references' scores: of all examples where the filter looks at them."""
    from workbench.home import atomic_write
    from workbench.independence import design_queries

    if queries is None:
        raise InputError("a design needs to know how many examples to ask about: add --queries")
    asked = _learned(Path(design)) if design.endswith(".json") else design
    looks = chosen is not None or _looks_at_references(getattr(asked, "filter", None))
    whole = [scores_of(spec, transcript) for spec in references] if looks else []
    made = design_queries(
        transcript,
        queries,
        asked,
        filter=chosen,
        references=whole,
        block=block,
        seed=seed,
        compare=cast(Any, compare),
    )
    if out is not None:
        atomic_write(out, lambda path: path.write_text(made.to_json(), encoding="utf-8"))
    return made, whole


@test_app.command("pairs")
def test_pairs(
    context: typer.Context,
    transcript: TranscriptOption,
    suspect: Annotated[
        str, typer.Option(help="Scores file, model, or column loss:NAME / loglik:NAME.")
    ],
    queries: BudgetOption = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="As --suspect; may be repeated.")
    ] = None,
    placebo: PlaceboOption = None,
    commitment: CommittedOption = None,
    salt_file: CommittedSaltOption = None,
    time_stamp: StampOption = None,
    design: DesignOption = "late-vs-early",
    chosen: FilterOption = None,
    block: BlockOption = None,
    compare: CompareOption = "pairs",
    design_json: DesignOutOption = None,
    ledger: LedgerOption = None,
    json_path: JsonOption = None,
    statistic: Annotated[str, test_option(help="A contrast, without weights.")] = "spearman",
    n_resamples: Annotated[
        int, test_option("--n-resamples", help="Flips of sign, or choices of the late units.")
    ] = 9999,
    alternative: AlternativeOption = "greater",
    seed: SeedOption = None,
    alpha: Annotated[float, test_option(help="Level of the certified p-value.")] = 1e-3,
    smallest_effect: SmallestOption = None,
    shuffle: ShuffleOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    label: LabelOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Are designed late examples likelier than early ones, in pairs or all with all?"""
    models = [[suspect], reference or [], placebo or []]
    if commitment is not None:
        if salt_file is None:
            raise InputError("a committed test needs the commitment's secret: add --salt-file")
        fixed, salt = Commitment.read(commitment), MasterSalt.read(salt_file)
        _keep_to_design(fixed, "pairs", context)
        ((suspect,), specs, others), (examples,) = gather(
            models, [transcript], quiet, column, split, subset, fixed.claim
        )
        # before any model is asked: a damaged ledger must not cost queries
        book = None if ledger is None else Ledger(ledger, examples)
        window = fixed.window
        scores_of = _pair_scores(examples, window.prefix, window.length, bos, dtype, device, quiet)
        made, scored = _committed_pairs(fixed, examples, specs, scores_of, design_json)
        asked = scores_of(suspect, made.examples, label)
        placebos = [scores_of(spec, made.examples) for spec in others]
        stamps = _time_stamps(time_stamp, fixed)

        def as_committed() -> Evidence:
            return committed_pairs(
                fixed, salt, examples, asked, scored, placebos, design=made, time_stamps=stamps
            )

        if book is None:
            _conclude(as_committed(), json_path)
            return
        fixed.check_salt(salt)
        settings = {k: v for k, v in fixed.test_settings().items() if k != "null"}
        case = PairCase(made, asked, scored, settings)
        _conclude(book.run({**case.described, "commitment": fixed.sha256}, as_committed), json_path)
        return
    _check_uncommitted(time_stamp, salt_file)
    claim = _claim(shuffle, shuffle_seed, seed_bits)
    ((suspect,), specs, others), (examples,) = gather(
        models, [transcript], quiet, column, split, subset, claim
    )
    # before any model is asked: a damaged ledger must not cost queries
    book = None if ledger is None else Ledger(ledger, examples)
    scores_of = _pair_scores(examples, prefix, length, bos, dtype, device, quiet)
    made, whole = _designed(
        examples, queries, design, chosen, block, seed, specs, scores_of, design_json, compare
    )
    case = PairCase(
        made,
        scores_of(suspect, made.examples, label),
        whole or [scores_of(spec, made.examples) for spec in specs],
        {
            "statistic": statistic,
            "n_resamples": n_resamples,
            "alternative": alternative,
            "seed": seed,
            "alpha": alpha,
            "smallest_effect": smallest_effect,
            "placebos": [scores_of(spec, made.examples) for spec in others],
        },
    )
    evidence = case.run() if book is None else book.test(case)
    _conclude(evidence, json_path)


def _looks_at_references(chosen: Any) -> bool:
    from workbench.independence.design import REFERENCES

    return chosen is not None and chosen.feature == REFERENCES


def _pair_scores(
    examples: Transcript,
    prefix: int,
    length: int | None,
    bos: bool,
    dtype: str,
    device: str,
    quiet: bool,
) -> Any:
    """Scores of a specification: a model is asked about some examples, others are read whole."""
    from workbench.scorers import meaning_of, open_scores

    def scores_of(spec: str, asked: Transcript, label: str | None = None) -> Any:
        return open_scores(
            spec,
            asked if meaning_of(spec, examples) == "model" else examples,
            prefix=prefix,
            length=length,
            bos=bos,
            dtype=dtype,
            device=device,
            label=label,
            progress=not quiet,
        )

    return scores_of


def _keep_to_design(fixed: Commitment, test: str, context: typer.Context) -> None:
    """Raise InputError if options were given that differ from a committed design's test."""
    fixed.check_test(test)
    committed, given = committed_settings(fixed), _given(context)
    if "chosen" in given:
        given["filter"] = given.pop("chosen")
    if str(given.get("design", "")).endswith(".json"):
        digest = learned_sha256(_learned(Path(given["design"])))
        same = digest == DesignParameters.of(fixed).learned_sha256
        given["design"] = committed["design"] if same else f"the learned one {digest[:12]}"
    fixed.refuse(fixed.deviations(given, committed))


def _committed_pairs(
    fixed: Commitment,
    examples: Transcript,
    specs: list[str],
    scores_of: Any,
    out: Path | None,
) -> tuple[Any, list[Any]]:
    """The committed design, and the references' scores as it needs them."""
    from workbench.home import atomic_write

    looks = _looks_at_references(design_settings(fixed).filter)
    whole = [scores_of(spec, examples) for spec in specs] if looks else []
    made = committed_design(fixed, examples, whole)
    if out is not None:
        atomic_write(out, lambda path: path.write_text(made.to_json(), encoding="utf-8"))
    return made, whole or [scores_of(spec, made.examples) for spec in specs]


def _check_uncommitted(time_stamp: list[Path] | None, salt_file: Path | None) -> None:
    if time_stamp or salt_file is not None:
        raise InputError(
            "--time-stamp and --salt-file are of a commitment: add --commitment, or leave them out"
        )


@test_app.command("sequential")
def test_sequential(
    context: typer.Context,
    transcript: TranscriptOption,
    suspect: Annotated[
        str,
        typer.Option(
            help="Scores file, model, or column loss:NAME / loglik:NAME; with --endpoint, the "
            "model's name there."
        ),
    ],
    queries: BudgetOption = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Scores file, model or column; may be repeated."),
    ] = None,
    commitment: CommittedOption = None,
    time_stamp: StampOption = None,
    design: DesignOption = "late-vs-early",
    chosen: FilterOption = None,
    block: BlockOption = None,
    design_json: DesignOutOption = None,
    json_path: JsonOption = None,
    statistic: Annotated[str, test_option(help="A contrast, without weights.")] = "spearman",
    alternative: AlternativeOption = "greater",
    seed: SeedOption = None,
    alpha: Annotated[float, test_option(help="Level of the anytime p-value: stop there.")] = 1e-3,
    batch: Annotated[int, test_option(help="Pairs per step.")] = 16,
    endpoint: EndpointOption = None,
    access: AccessOption = "completions",
    through: ThroughOption = None,
    form: FormOption = "auto",
    tokenizer: TokenizerOption = None,
    api_key_env: KeyOption = None,
    max_requests: MaxRequestsOption = None,
    max_tokens: MaxTokensOption = None,
    max_money: MaxMoneyOption = None,
    prompt_price: PromptPriceOption = None,
    completion_price: CompletionPriceOption = None,
    concurrency: ConcurrencyOption = 4,
    bundle: BundleOption = 16,
    places: PlacesOption = 8,
    top: TopOption = 20,
    draws: DrawsOption = 4,
    temperature: TemperatureOption = 1.0,
    on_change: OnChangeOption = "warn",
    shuffle: ShuffleOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    label: LabelOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Ask pair by pair and stop as soon as the evidence suffices; resumes where it was stopped."""
    from workbench.scorers import Budget, meaning_of, open_scores
    from workbench.scorers.answers import BudgetSpentError
    from workbench.sequential import committed_sequential_test, sequential_test

    fixed = None if commitment is None else Commitment.read(commitment)
    if fixed is None:
        _check_uncommitted(time_stamp, None)
        claim = _claim(shuffle, shuffle_seed, seed_bits)
    else:
        _keep_to_design(fixed, "sequential", context)
        claim, prefix, length = fixed.claim, fixed.window.prefix, fixed.window.length
    (located, specs), (examples,) = gather(
        [[suspect] if endpoint is None else [], reference or []],
        [transcript],
        quiet,
        column,
        split,
        subset,
        claim,
        tokenizer,
    )
    window: dict[str, Any] = {"prefix": prefix, "length": length}
    local: dict[str, Any] = {**window, "bos": bos, "dtype": dtype, "device": device}

    def scores_of(spec: str, asked: Transcript) -> Any:
        return open_scores(spec, asked, progress=not quiet, **local)

    def asked_of(spec: str, label: str | None = None) -> Any:
        if meaning_of(spec, examples) == "model":
            from workbench.scorers import CausalLMScorer

            return CausalLMScorer(spec, label=label, **local)
        return open_scores(spec, examples, label=label, **local)

    bob: Any
    if endpoint is None:
        bob = asked_of(located[0], label)
    else:
        bob = _endpoint_scorer(
            endpoint,
            suspect,
            access=access,
            through=through,
            form=form,
            places=places,
            top=top,
            draws=draws,
            temperature=temperature,
            tokenizer=tokenizer,
            label=label,
            bundle=bundle,
            concurrency=concurrency,
            on_change=on_change,
            api_key_env=api_key_env,
            budget=Budget(max_requests, max_tokens, max_money, prompt_price, completion_price),
            **window,
        )
    if fixed is None:
        made, whole = _designed(
            examples, queries, design, chosen, block, seed, specs, scores_of, design_json
        )
        test = sequential_test(
            examples,
            bob,
            whole or [asked_of(spec) for spec in specs],
            made,
            statistic,
            cast(Any, alternative),
            seed,
            alpha=alpha,
            batch=batch,
        )
    else:
        pair_scores = _pair_scores(examples, prefix, length, bos, dtype, device, quiet)
        made, scored = _committed_pairs(fixed, examples, specs, pair_scores, design_json)
        test = committed_sequential_test(fixed, examples, bob, scored, design=made)
    try:
        for step in test:
            if not quiet:
                say(
                    f"{step.queries:>8,} queries   wealth 10^{step.log10_wealth:<8.2f} anytime p "
                    f"{step.pvalue:.3g}",
                    err=True,
                )
            if step.reached:
                break
    except BudgetSpentError as error:  # it may be stopped at any time, for any reason
        if not test.steps:
            raise
        say(f"note: {error}", err=True)
    found = test.evidence()
    if fixed is not None:
        found = fixed.bind(found, [stamp.account for stamp in _time_stamps(time_stamp, fixed)])
    _conclude(found, json_path)


@test_app.command("partition")
def test_partition(
    context: typer.Context,
    transcript: TranscriptOption,
    texts: TextsOption,
    ledger: LedgerOption = None,
    json_path: JsonOption = None,
    tokenizer: TokenizerOption = None,
    placebo: Annotated[
        list[str] | None,
        typer.Option(help="Text of an independent model, tested the same way; may be repeated."),
    ] = None,
    statistic: Annotated[str, test_option(help=f"One of {', '.join(PARTITION_STATISTICS)}.")] = (
        "count"
    ),
    max_ngram: Annotated[int, test_option(help="Longest n-gram, in tokens.")] = 8,
    weight: Annotated[str, test_option(help=f"One of {', '.join(WEIGHTS)}.")] = "inverse",
    min_n: Annotated[int, test_option(help="Shorter longest n-grams do not count.")] = 1,
    unique: Annotated[bool, test_option(help="Only n-grams that occur once.")] = False,
    engine: Annotated[str, test_option(help=f"One of {', '.join(ENGINES)}.")] = "join",
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    n_blocks: Annotated[int, test_option(help="Blocks of block-likelihood.")] = 50,
    n_resamples: ResamplesOption = 9999,
    alternative: AlternativeOption = "greater",
    seed: SeedOption = None,
    alpha: AlphaOption = 1e-3,
    smallest_effect: SmallestOption = None,
    commit: Annotated[
        Path | None,
        committed_option(
            help="Count nothing yet: fix order, text and settings in this file, and print its "
            "SHA-256."
        ),
    ] = None,
    selection: Annotated[
        str | None,
        committed_option(help="With --commit, one sentence: how the documents were selected."),
    ] = None,
    commitment: CommittedOption = None,
    time_stamp: StampOption = None,
    shuffle: ShuffleOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Do a text's n-grams lie later in the transcript than chance would put them?"""
    from workbench.partition_commitment import PartitionCommitment, committed_partition

    fixed = None if commitment is None else PartitionCommitment.read(commitment)
    if fixed is None:
        _check_uncommitted(time_stamp, None)
    else:
        free = {"texts", "cluster", "workers"}
        fixed.refuse(fixed.settings_deviations(
            {name: value for name, value in _given(context).items() if name not in free}
        ))  # fmt: skip
    if (commit is None) != (selection is None):
        raise InputError("--commit and --selection belong together: give both, or none")
    if commit is not None and commit.exists():
        raise InputError(f"{commit} exists, and a commitment is never replaced: name another file")
    _check_workers(cluster, workers)
    if cluster is not None and engine != "join":
        raise InputError(f"--cluster runs the join, not {engine}: leave out --engine or --cluster")
    claim = _claim(shuffle, shuffle_seed, seed_bits) if fixed is None else fixed.claim
    _, (examples,) = gather([], [transcript], quiet, column, split, subset, claim, tokenizer)
    if examples.kind == "text":
        examples = _tokenised_transcript(examples, tokenizer)
    # before anything is counted: a damaged ledger must not cost an hour
    book = None if ledger is None else Ledger(ledger, examples)
    given = read_texts(texts, tokenizer)
    placebos = [read_texts(path, tokenizer) for path in placebo or []]
    counted: dict[str, Any] = {
        "max_ngram": max_ngram,
        "statistic": statistic,
        "weight": weight,
        "min_n": min_n,
        "unique": unique,
        "n_blocks": n_blocks,
        "n_resamples": n_resamples,
        "alternative": alternative,
        "seed": seed,
    }

    how: dict[str, Any] = {
        "engine": engine if cluster is None else ClusterJoin(cluster, workers),
        "progress": not quiet,
    }
    levels: dict[str, Any] = {"alpha": alpha, "smallest_effect": smallest_effect}
    if commit is not None:
        made = PartitionCommitment.make(
            examples,
            given,
            selection=str(selection),
            placebos=placebos,
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **counted,
            **levels,
        )
        made.write(commit)
        say_committed(made, commit)
        return

    def run() -> Evidence:
        if fixed is not None:
            stamps = [TimeStamp.read(path, fixed) for path in time_stamp or []]
            return committed_partition(fixed, examples, given, placebos, time_stamps=stamps, **how)
        return partition_test(examples, given, placebos=placebos, **levels, **counted, **how)

    if book is None:
        _conclude(run(), json_path)
        return
    suspect = {"label": given.label, "fingerprint": given.fingerprint}
    described = {"test": "partition", "n": examples.n, "suspect": suspect, **counted}
    if fixed is not None:
        fixed.refuse(fixed.deviations(examples, given, placebos))
        described |= {**fixed.settings.model_dump(), "commitment": fixed.sha256}
    _conclude(book.run(described, run), json_path)


@test_app.command("reshuffle")
def test_reshuffle(
    context: typer.Context,
    texts: TextsOption,
    alice: Annotated[
        str, typer.Option(help="Model: the rerun of the owner's order.", show_default=False)
    ],
    sibling: Annotated[
        list[str],
        typer.Option(help="Model retrained on a fresh shuffle; repeat.", show_default=False),
    ],
    json_path: JsonOption = None,
    released: Annotated[
        str | None, typer.Option(help="The owner's released weights: a model-based line.")
    ] = None,
    procedure: Annotated[
        str | None,
        typer.Option(
            help="One sentence that declares how rerun and siblings were made. Siblings of the lab "
            "carry their own."
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    weighting: Annotated[str, test_option(help="tokens or documents.")] = "tokens",
    alpha: Annotated[
        float, test_option(help="Level of the rank p-value; its floor is 1/(siblings + 1).")
    ] = 1e-3,
    smallest_effect: Annotated[
        float | None,
        test_option(help="Smallest difference of interest, nats per token, fixed beforehand."),
    ] = None,
    commitment: Annotated[
        Path | None,
        committed_option(
            help="Test as committed in this file of 'palimpsest siblings commit': options that "
            "differ from it are refused."
        ),
    ] = None,
    time_stamp: StampOption = None,
    shuffle: ShuffleOption = None,
    quiet: QuietOption = False,
) -> None:
    """Does the owner's order explain a text better than fresh shuffles of the same examples?"""
    from workbench.lab import declared_procedure
    from workbench.reshuffle_bundle import ReshuffleCommitment, committed_reshuffle
    from workbench.scorers import score_texts

    fixed = None if commitment is None else ReshuffleCommitment.read(commitment)
    if fixed is None:
        _check_uncommitted(time_stamp, None)
    else:
        free = {"texts", "alice", "sibling", "released"}
        written = {name: v for name, v in _given(context).items() if name not in free}
        fixed.refuse(fixed.deviations(written))
        stamps = [TimeStamp.read(path, fixed) for path in time_stamp or []]
    ((alice,), sibling, last), _ = gather(
        [[alice], sibling, [] if released is None else [released]], [], quiet, tokenizer=tokenizer
    )
    given = read_texts(texts, tokenizer or alice)

    def scored(model: str) -> Any:
        return score_texts(given, model, progress=not quiet)

    own, others = scored(alice), [scored(model) for model in sibling]
    of_released = scored(last[0]) if last else None
    if fixed is not None:
        _conclude(
            committed_reshuffle(fixed, own, others, of_released, time_stamps=stamps), json_path
        )
        return
    evidence = reshuffle_test(
        own,
        others,
        procedure=procedure or declared_procedure([alice, *sibling]),
        released=of_released,
        weighting=weighting,
        shuffle=_claim(shuffle, None, None),
        label=given.label,
        alpha=alpha,
        smallest_effect=smallest_effect,
    )
    _conclude(evidence, json_path)


@app.command("commit", rich_help_panel=OTHERS)
def commit(
    context: typer.Context,
    transcript: TranscriptOption,
    out: Annotated[Path, typer.Option(help="JSON file of the commitment to write.")],
    salt_file: SaltOption,
    reference: ReferenceOption = None,
    placebo: PlaceboOption = None,
    suspect: Annotated[
        str | None, typer.Option(help="The suspect's name, if it is to be fixed too.")
    ] = None,
    statistic: StatisticOption = "spearman",
    n_resamples: ResamplesOption = 9999,
    alternative: AlternativeOption = "greater",
    seed: SeedOption = None,
    alpha: AlphaOption = 1e-3,
    smallest_effect: SmallestOption = None,
    shuffle: ShuffleOption = None,
    shuffle_seed: ShuffleSeedOption = None,
    seed_bits: SeedBitsOption = None,
    subsample: SubsampleOption = None,
    design: Annotated[
        str | None,
        design_option(
            help=f"Commit to designed pairs: {', '.join(PAIRED)}, or a file of 'palimpsest design "
            "fit'; with --queries."
        ),
    ] = None,
    design_file: Annotated[
        Path | None,
        design_option(help="Commit to the pairs of a file that --design-json wrote."),
    ] = None,
    queries: BudgetOption = None,
    chosen: FilterOption = None,
    block: BlockOption = None,
    compare: CompareOption = "pairs",
    sequential: Annotated[
        bool,
        design_option("--sequential", help="Pairs one after the other, to be stopped any time."),
    ] = False,
    batch: Annotated[int, design_option(help="Pairs per step of --sequential.")] = 16,
    prefix: PrefixOption = 0,
    length: LengthOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Fix what will be tested and how, before the suspect is asked; publish the SHA-256."""
    for path, what in ((out, "a commitment"), (salt_file, "a secret salt")):
        if path.exists():
            raise InputError(f"{path} exists, and {what} is never replaced: name another file")
    designed = _designed_options(
        context, design, design_file, queries, chosen, block, sequential, subsample
    )
    (specs, others), (whole,) = gather(
        [reference or [], placebo or []],
        [transcript],
        quiet,
        column,
        split,
        subset,
        _claim(shuffle, shuffle_seed, seed_bits),
    )
    salt = MasterSalt.fresh()
    settings: dict[str, Any] = {
        "suspect": suspect,
        "statistic": statistic,
        "alternative": alternative,
        "seed": seed,
        "alpha": alpha,
        "smallest_effect": smallest_effect,
        "prefix": prefix,
        "length": length,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if designed:
        pair_scores = _pair_scores(whole, prefix, length, bos, dtype, device, quiet)
        learned = None
        if design_file is not None:
            given = [pair_scores(spec, whole) for spec in specs]
            chosen_pairs: Any = _read_design(design_file, whole, given)
        else:
            name = design or ""
            learned = _learned(Path(name)) if name.endswith(".json") else None
            chosen_pairs, given = _designed(
                whole, queries, name, chosen, block, seed, specs, pair_scores, None, compare
            )
        asked = chosen_pairs.examples
        with _rows_bar(whole, quiet) as bar:
            made = commit_design(
                whole,
                salt,
                chosen_pairs,
                test="sequential" if sequential else "pairs",
                references=given or [pair_scores(spec, asked) for spec in specs],
                placebos=[pair_scores(spec, asked) for spec in others],
                learned=learned,
                batch=batch,
                n_resamples=n_resamples,
                progress=bar.update,
                **settings,
            )
        _committed(made, salt, out, salt_file)
        return
    examples = whole if subsample is None else whole.subsample(subsample, seed)
    scores_of = scores_opener(examples, prefix, length, bos, dtype, device, quiet)
    references = [scores_of(spec) for spec in specs]
    placebos = [scores_of(spec) for spec in others]
    with _rows_bar(whole, quiet) as bar:
        made = Commitment.make(
            whole,
            salt,
            rows=None if subsample is None else examples.rows,
            design="all rows" if subsample is None else SUBSAMPLE,
            parameters={} if subsample is None else {"n": subsample, "seed": seed},
            references=references,
            placebos=placebos,
            n_resamples=n_resamples,
            progress=bar.update,
            **settings,
        )
    _committed(made, salt, out, salt_file)


def _designed_options(
    context: typer.Context,
    design: str | None,
    design_file: Path | None,
    queries: int | None,
    chosen: str | None,
    block: int | None,
    sequential: bool,
    subsample: int | None,
) -> bool:
    """Whether a design is committed to; raises InputError on options that do not go together."""
    given = _given(context)
    if design is None and design_file is None:
        names = ("queries", "chosen", "block", "compare", "sequential", "batch")
        odd = [n for n in names if n in given]
        if odd:
            name = odd[0].replace("chosen", "filter")
            raise InputError(f"--{name} is of a design: add --design or --design-file")
        return False
    if design is not None and design_file is not None:
        raise InputError("--design and --design-file are two designs: give one of them")
    if subsample is not None:
        raise InputError("a design says which examples are asked about: leave out --subsample")
    if design_file is not None and {"queries", "chosen", "block", "compare"} & set(given):
        raise InputError(
            "--design-file brings its own --queries, --filter, --block and --compare: leave them "
            "out"
        )
    if sequential and "n_resamples" in given:
        raise InputError("a sequential test draws no flips: leave out --n-resamples")
    if not sequential and "batch" in given:
        raise InputError("--batch is of a sequential test: add --sequential, or leave it out")
    return True


def _read_design(path: Path, whole: Transcript, references: list[Any]) -> Any:
    from workbench.independence import QueryDesign

    try:
        text = read_limited(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read ({error}): check the path") from error
    return QueryDesign.from_json(text, whole, references)


def _committed(made: Commitment, salt: MasterSalt, out: Path, salt_file: Path) -> None:
    salt.write(salt_file)
    made.write(out)
    say_committed(made, out)
    say(f"{salt_file} is secret: keep it, for without it no row can be shown.")


@app.command("reveal", rich_help_panel=OTHERS)
def reveal(
    transcript: TranscriptOption,
    commitment: CommitmentOption,
    salt_file: SaltOption,
    rows: Annotated[str, typer.Option(help="Row numbers from 0, such as 3,17,40-49.")],
    out: Annotated[Path, typer.Option(help="JSON file of the rows to write.")],
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Show some rows, such as a verifier chose, with the proof that they were committed."""
    from workbench.bundle import reveal_rows

    fixed = Commitment.read(commitment)
    salt, numbers = MasterSalt.read(salt_file), _row_numbers(rows)
    _, (whole,) = gather([], [transcript], quiet, column, split, subset, fixed.claim)
    with _rows_bar(whole, quiet) as bar:
        shown = reveal_rows(out, fixed, salt, whole, numbers, bar.update)
    if not quiet:
        say(f"{out}: {len(shown.rows):,} row(s) in clear, each with its own salt")


@app.command("bundle", rich_help_panel=OTHERS)
def bundle(
    transcript: TranscriptOption,
    commitment: CommitmentOption,
    salt_file: SaltOption,
    evidence: Annotated[
        Path, typer.Option(help="JSON that 'palimpsest test … --commitment' wrote.")
    ],
    suspect: Annotated[str, typer.Option(help="As in the test.")],
    out: Annotated[Path, typer.Option(help="File to write (.zip).")],
    reference: ReferenceOption = None,
    placebo: PlaceboOption = None,
    reveal: Annotated[
        str | None, typer.Option(help="Rows to show in clear, such as 3,17,40-49.")
    ] = None,
    time_stamp: StampOption = None,
    label: LabelOption = None,
    bos: BosOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Put a committed test into one file that a stranger can check; publish its SHA-256."""
    from workbench.bundle import write_bundle

    fixed = Commitment.read(commitment)
    salt, tested = MasterSalt.read(salt_file), Evidence.read(evidence)
    shown = [] if reveal is None else _row_numbers(reveal)
    stamps = _time_stamps(time_stamp, fixed)
    ((suspect,), specs, others), (whole,) = gather(
        [[suspect], reference or [], placebo or []],
        [transcript],
        quiet,
        column,
        split,
        subset,
        fixed.claim,
    )
    window = fixed.window
    if fixed.test == "query":
        examples = _committed_examples(fixed, whole)
        scores_of = scores_opener(examples, window.prefix, window.length, bos, dtype, device, quiet)
        scored = scores_of(suspect, label)
        references = [scores_of(spec) for spec in specs]
        placebos = [scores_of(spec) for spec in others]
    else:
        examples = whole
        of_pairs = _pair_scores(whole, window.prefix, window.length, bos, dtype, device, quiet)
        made, references = _committed_pairs(fixed, whole, specs, of_pairs, None)
        scored = of_pairs(suspect, made.examples, label)
        placebos = [of_pairs(spec, made.examples) for spec in others]
    with _rows_bar(whole, quiet) as bar:
        found = write_bundle(
            out,
            fixed,
            salt,
            whole,
            tested,
            scored,
            references,
            placebos,
            rows=None if examples is whole else examples.rows,
            reveal=shown,
            time_stamps=stamps,
            progress=bar.update,
        )
    say(f"{found.sha256}  {out}")
    say("publish this SHA-256; whoever has it can run: palimpsest verify --digest")


@app.command("verify", rich_help_panel=OTHERS)
def verify(
    bundle: Annotated[Path, typer.Argument(help="File that 'palimpsest bundle' wrote.")],
    digest: Annotated[
        str | None, typer.Option(help="SHA-256 of the whole file, as published.")
    ] = None,
    reveal: Annotated[
        list[Path] | None,
        typer.Option(help="Rows that the owner has shown since; may be repeated."),
    ] = None,
    rescore: Annotated[
        str | None,
        typer.Option(help="Model (folder or hub id) with which to rescore revealed rows."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Rows to rescore, such as 3,17,40-49 (default: all shown).")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="Whose scores --rescore is compared with: suspect, reference-1, … (default: "
            "those of its weights)."
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = "auto",
    max_work: MaxWorkOption = 10**11,
) -> None:
    """Recompute a bundle without any model: what matches, what doesn't, what can't be checked."""
    from workbench.reshuffle_bundle import holds_reshuffle, verify_reshuffle_bundle
    from workbench.verification import Reveal, verify_bundle

    if rescore is None and (rows, role, tokenizer) != (None, None, None):
        raise InputError("--rows, --role and --tokenizer are of --rescore: leave them out")
    if holds_reshuffle(bundle, digest):
        if rescore is not None or reveal:
            raise InputError(
                f"{bundle} is of a reshuffle test, without rows of a transcript: leave out "
                "--rescore and --reveal"
            )
        _say(verify_reshuffle_bundle(bundle, digest))
        return
    model = None
    if rescore is not None:
        ((model,),), _ = gather([[rescore]], [], quiet=False, tokenizer=tokenizer)
    found = verify_bundle(
        bundle,
        digest,
        reveals=[Reveal.read(path) for path in reveal or []],
        model=model,
        rows=[] if rows is None else _row_numbers(rows),
        role=role,
        tokenizer=tokenizer,
        device=device,
        max_work=max_work,
    )
    _say(found)


def _say(found: Any) -> None:
    say(str(found))
    count = len(found.mismatches)
    say("nothing mismatches" if found.ok else f"{count} line(s) do not match")
    if not found.ok:
        raise typer.Exit(FAILED)


# Options of a test that a commitment does not fix: where things are, and how models are run.
_FREE = {"transcript", "suspect", "reference", "placebo", "json_path", "commitment", "salt_file",
         "time_stamp", "label", "bos", "dtype", "device", "column", "split", "subset", "quiet",
         "ledger",
         "design_json", "endpoint", "access", "through", "form", "tokenizer", "api_key_env",
         "max_requests", "max_tokens", "max_money", "prompt_price", "completion_price",
         "concurrency", "bundle", "places", "top", "draws", "temperature", "on_change",
         }  # fmt: skip


def _given(context: typer.Context) -> dict[str, Any]:
    """Settings that were written on the command line, not taken by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if name not in _FREE and source is not None and source.name == "COMMANDLINE"
    }


def _committed_examples(commitment: Commitment, whole: Transcript) -> Transcript:
    """The examples that the committed design tests."""
    design = commitment.design
    if design.name == "all rows":
        return whole
    size, seed = design.parameters.get("n"), design.parameters.get("seed")
    if design.name != SUBSAMPLE or not isinstance(size, int) or not isinstance(seed, int | None):
        raise InputError(
            f"the committed design {printable(design.name)!r} cannot be made on the command line: "
            "use workbench.commitment in Python"
        )
    return whole.subsample(size, seed)


def scores_opener(
    examples: Transcript,
    prefix: int,
    length: int | None,
    bos: bool,
    dtype: str,
    device: str,
    quiet: bool,
) -> Callable[..., Scores]:
    from workbench.scorers import open_scores

    encodings: dict[str, Any] = {}  # models of a suite cut the examples alike

    def scores_of(spec: str, label: str | None = None) -> Scores:
        return open_scores(
            spec,
            examples,
            encodings=encodings,
            prefix=prefix,
            length=length,
            bos=bos,
            dtype=dtype,
            device=device,
            label=label,
            progress=not quiet,
        )

    return scores_of


def _time_stamps(paths: list[Path] | None, commitment: Commitment) -> list[TimeStamp]:
    return [TimeStamp.read(path, commitment) for path in paths or []]


def _rows_bar(transcript: Transcript, quiet: bool) -> Any:
    return tqdm(total=transcript.n, desc="rows", unit="row", disable=quiet, unit_scale=True)


def _row_numbers(text: str) -> list[int]:
    """Row numbers of a list such as 3,17,40-49."""
    found: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"rows {printable(text, 60)!r} are not of the form 3,17,40-49")
        if int(last or first) - int(first) >= 100_000:
            raise InputError(f"rows {item.strip()} are more than 100,000: name fewer")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _conclude(evidence: Evidence, json_path: Path | None) -> None:
    if json_path is not None:
        evidence.write(json_path)
    say(evidence.summary())
    if evidence.verdict == NOT_VALID:
        raise typer.Exit(INVALID)


@ledger_app.command("show")
def ledger_show(
    path: Annotated[Path, typer.Argument(help="File of 'palimpsest test query --ledger'.")],
) -> None:
    """List the tests of a ledger, raw and corrected."""
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    say(Ledger(path).summary())


@app.command("report", rich_help_panel=START)
def report(
    notebook: Annotated[
        Path | None, typer.Argument(help="One notebook; all of the project's if absent.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="name=value; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("reports"),
    jobs: Annotated[int, typer.Option(help="Notebooks at a time.")] = 2,
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Print every page as PDF beside it; needs Chromium.")
    ] = False,
    no_text: Annotated[
        bool,
        typer.Option("--no-text", help="Leave out what cells print: it can hold training text."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run notebooks headless and write HTML pages, an index and the evidence files."""
    from workbench import reports

    given: dict[str, str] = {}
    for item in parameter or []:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise InputError(f"-p {item!r} is not of the form name=value")
        given[name] = value
    try:
        page = reports.run_all(
            notebook, out, given, jobs=jobs, progress=not quiet, pdf=pdf, no_text=no_text
        )
    except reports.ReportError as error:
        say(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
    if not quiet:
        say(f"open {page}")


def app_main() -> None:
    """Run the command line; errors of input are one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that a terminal lacks is no traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        with optional_libraries():
            status = app(standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        say(f"error: {printable(error, 10_000)}", err=True)
        sys.exit(BAD_INPUT)
    except RecursionError:
        say("error: a file given is nested too deeply to be read: name another", err=True)
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.filename is None:  # of the output, which Python would try again at its end
            sys.stdout = io.StringIO()
        what = printable(error.filename or "the output")
        say(
            f"error: {what}: {error.strerror or error}: check the path, who may use it, and the "
            "room on the disk",
            err=True,
        )
        sys.exit(BAD_INPUT)
    except UsageError as error:
        say(f"error: {error.format_message()} Try --help.", err=True)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted; finished work is kept, the same command continues", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    app_main()
