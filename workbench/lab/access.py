"""What each way of reaching a model finds on a lab run, and what it costs.

The owner's model, a light fine-tune of it and an independent model are served on this machine and
asked through every form of access; the reference is asked the same way, or its expectation is
worked out from its weights. Recorded are values and costs, no text.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from workbench.costs import QueryCost
from workbench.errors import InputError
from workbench.home import atomic_write, content_key, home, recorded
from workbench.lab.runs import Run, open_run
from workbench.parquet import read_parquet, write_parquet
from workbench.scores import NATS, ScorerIdentity, Scores
from workbench.transcript import Transcript

if TYPE_CHECKING:
    from workbench.scorers.remote import RemoteScorer

__all__ = ["ACCESS_FORMS", "AccessForm", "AccessRun", "open_access", "record_access"]

FORMAT = "palimpsest access 1"
SUSPECTS = ("alice", "derivative", "independent")
REFERENCE = "reference-same"
SEED = 0
ADDRESS = "http://127.0.0.1/v1"  # recorded without the port, which says nothing
_PORT = re.compile(re.escape(ADDRESS).replace(r"/v1", r":\d+/v1"))
BUNDLE = 64


@dataclass(frozen=True)
class AccessForm:
    """A way of asking.

    Attributes
    ----------
    name : str
    gives : str
        What the endpoint has to give.
    queries, quick : int
        Examples asked about, in full and for a first look.
    kind : str
        Name of the scorer in `workbench.scorers.SCORERS`.
    options : mapping
        Of the scorer.
    guided : bool
        Whether a reference chooses the places.
    part_of : str, optional
        A form with more draws at the same places: these are the first of them, and nothing more is
        asked.
    """

    name: str
    gives: str
    queries: int
    quick: int
    kind: str
    options: Mapping[str, Any]
    guided: bool = False
    part_of: str | None = None


ACCESS_FORMS = (
    AccessForm(
        "token ids",
        "likelihoods of prompts, which may be token ids",
        1000,
        1000,
        "completions",
        {"form": "token_ids"},
    ),
    AccessForm(
        "prompt_logprobs",
        "likelihoods of prompts, as vLLM gives them",
        1000,
        200,
        "completions",
        {"form": "prompt_logprobs"},
    ),
    AccessForm(
        "echo",
        "likelihoods of prompts, echoed",
        1000,
        200,
        "completions",
        {"form": "echo"},
    ),
    AccessForm(
        "top 20",
        "the 20 likeliest next tokens of a completion",
        8192,
        500,
        "chat",
        {"access": "completions", "top": 20, "places": 8},
    ),
    AccessForm(
        "sampled, T = 1",
        "text alone, drawn at temperature 1",
        16_384,
        500,
        "sampled",
        {"match": "next", "places": 8, "draws": 4, "new_tokens": 1},
        guided=True,
    ),
    AccessForm(
        "sampled once",
        "text alone, drawn once at temperature 1",
        16_384,
        500,
        "sampled",
        {"match": "next", "places": 8, "draws": 1, "new_tokens": 1},
        guided=True,
        part_of="sampled, T = 1",
    ),
    AccessForm(
        "sampled, T = 0",
        "text alone, the likeliest",
        16_384,
        500,
        "sampled",
        {"match": "next", "places": 16, "temperature": 0.0, "new_tokens": 1},
        guided=True,
    ),
    AccessForm(
        "top 20, chat",
        "the 20 likeliest next tokens of a chat's answer",
        4096,
        100,
        "chat",
        {"access": "chat", "top": 20, "places": 8, "prefill": True},
    ),
)


@dataclass(frozen=True)
class AccessRun:
    """Scores of the same examples through every form of access.

    Attributes
    ----------
    run : Run
        The models and the transcript.
    forms : dict of str to AccessForm
    suspects : tuple of str
    provenance : dict
    """

    run: Run
    forms: dict[str, AccessForm]
    suspects: tuple[str, ...]
    provenance: dict[str, Any]
    _measured: Callable[[str, str], tuple[Scores, QueryCost]] = field(repr=False)

    def transcript(self, form: str) -> Transcript:
        """The examples that a form of access was used on."""
        return _examples(self.run, self._form(form).queries)

    def scores(self, form: str, model: str) -> Scores:
        """Values of a suspect, or of the reference (``reference-same``), through a form."""
        self._form(form)
        return self._measured(form, model)[0]

    def cost(self, form: str, model: str) -> QueryCost:
        """What a query cost, measured."""
        self._form(form)
        return self._measured(form, model)[1]

    def _form(self, name: str) -> AccessForm:
        if name not in self.forms:
            raise InputError(f"access {name!r} is unknown: choose one of {', '.join(self.forms)}")
        return self.forms[name]


def open_access(source: str = "tiny", *, full: bool = False, progress: bool = False) -> AccessRun:
    """Open a run's scores through every form of access.

    Parameters
    ----------
    source : str
        A recipe, whose models are served and asked here if they were not yet; or ``recorded``.
    full : bool
        As many examples as each form needs for a clear result, in place of a first look.
        Recorded runs are full.
    progress : bool

    Raises
    ------
    InputError
        Unknown name; training or asking failed.
    """
    kind, _, name = source.partition(":")
    run = open_run(source, progress=progress)
    if kind == "recorded":
        return _recorded(run, name or "tiny")
    forms = {form.name: form if full else _quick(form, run.transcript.n) for form in ACCESS_FORMS}
    known: dict[tuple[str, str], tuple[Scores, QueryCost]] = {}

    def measured(form: str, model: str) -> tuple[Scores, QueryCost]:
        if (form, model) not in known:
            part_of = forms[form].part_of
            whole = None if part_of is None else (forms[part_of], measured(part_of, model)[1])
            known[form, model] = _measure(run, forms[form], model, whole, progress)
        return known[form, model]

    return AccessRun(run, forms, SUSPECTS, dict(run.provenance), measured)


def _quick(form: AccessForm, n: int) -> AccessForm:
    return AccessForm(**{**asdict(form), "queries": min(form.quick, n)})


def _examples(run: Run, queries: int) -> Transcript:
    if queries >= run.transcript.n:
        return run.transcript
    return run.transcript.subsample(queries, SEED, stratify=False)


def _measure(
    run: Run,
    form: AccessForm,
    model: str,
    whole: tuple[AccessForm, QueryCost] | None,
    progress: bool,
) -> tuple[Scores, QueryCost]:
    from workbench.scorers import SCORERS, CausalLMScorer, SampledScorer, score_transcript

    examples = _examples(run, form.queries)
    reference = run.folders[REFERENCE]
    options: dict[str, Any] = {
        **form.options,
        "tokenizer": str(run.folders["alice"]),
        "bundle": BUNDLE,
        "label": model,
    }
    by_weights: Scores | None = None
    if form.guided:
        scorer = CausalLMScorer(str(reference), label=REFERENCE)
        by_weights = score_transcript(examples, scorer, keep_tokens=True, progress=progress)
        options["guide"] = by_weights
    load: Any = SCORERS[form.kind].load()
    if form.guided and model == REFERENCE:
        assert by_weights is not None
        expectation: SampledScorer = load("http://127.0.0.1:1/v1", model, **options)
        return expectation.expected(examples, by_weights), QueryCost(source="by its weights")
    asked = form if whole is None else whole[0]
    # Everything in a store is one bill: of this form, these weights, so many examples.
    about = {"form": asked.name, "options": dict(asked.options), "queries": form.queries}
    key = content_key({**about, "model": model, "weights": run.folders[model].name})
    folder = home() / "access"
    scores, cost = _asked(
        lambda url, name: load(url, model, **options, store=folder / f"{key[:16]}{name}.sqlite"),
        run.folders[model],
        examples,
        progress,
    )
    if whole is None:
        return scores, cost
    share = form.options["draws"] / whole[0].options["draws"]
    return scores, replace(
        whole[1],
        **{name: share * getattr(whole[1], name) for name in _PER_DRAW},
        source=f"{share:g} of what {whole[0].name!r} cost",
    )


_PER_DRAW = ("prompts", "requests", "prompt_tokens", "completion_tokens")


def _asked(
    make: "Callable[[str, str], RemoteScorer]", folder: Path, examples: Transcript, progress: bool
) -> tuple[Scores, QueryCost]:
    """Scores through a server on this machine, and what all answers in the store have cost."""
    from workbench.lab.serving import ServedModel, serving
    from workbench.scorers import score_transcript

    with contextlib.ExitStack() as stack:
        served = ServedModel(folder)
        # A fixed port, if it is free: the address is part of what an answer is stored under.
        try:
            scorer = make(stack.enter_context(serving(served, port=_port(folder))), "")
        except InputError:
            url = stack.enter_context(serving(served))
            scorer = make(url, url.rsplit(":", 1)[1].removesuffix("/v1"))
        scores = score_transcript(examples, scorer, seed=SEED, progress=progress)
        with scorer.endpoint.answers() as store:
            spent = store.spend
        prompts = len(scorer.questions(scorer.encode(examples), np.arange(examples.n)))
    n = examples.n
    return scores, QueryCost(
        prompts / n,
        spent.requests / n,
        spent.prompt_tokens / n,
        spent.completion_tokens / n,
        source=f"measured on {n:,} examples, probes included",
    )


def _port(folder: Path) -> int:
    """A port of its own for each model, out of those that nobody has registered."""
    return 49_152 + int(content_key({"folder": folder.name})[:8], 16) % 16_000


# ---------------------------------------------------------------------- recordings


def record_access(access: AccessRun, path: str | Path) -> Path:
    """Write values and costs as Parquet and JSON: numbers only, no text.

    Raises
    ------
    InputError
        The access is itself a recording, or the files cannot be written.
    """
    if not access.run.live:
        raise InputError("this access is a recording already: record a live one")
    path = Path(path)
    if path.suffix != ".parquet":
        raise InputError(f"{path} must end in .parquet: the provenance goes beside it as .json")
    columns: dict[str, Any] = {}
    content: dict[str, Any] = {
        "format": FORMAT,
        "examples_fingerprint": access.run.transcript.examples_fingerprint,
        "forms": {},
        "columns": {},
    }
    for name, form in access.forms.items():
        content["forms"][name] = asdict(form)
        rows = access.transcript(name).rows
        for model in (*access.suspects, REFERENCE):
            scores, cost = access.scores(name, model), access.cost(name, model)
            values = np.full(access.run.transcript.n, np.nan, dtype=np.float32)
            values[rows] = scores.loglik_mean
            column = f"{name}|{model}"
            identity = scores.identity
            if identity.endpoint is not None:  # an expectation asked nobody
                identity = replace(identity, endpoint=ADDRESS)
            columns[column] = pa.array(values, mask=np.isnan(values))
            content["columns"][column] = {
                "identity": identity.as_dict(),
                "cost": asdict(cost),
                "caveats": [_PORT.sub(ADDRESS, caveat) for caveat in scores.caveats],
            }
    content["versions"] = {
        package: metadata.version(package) for package in ("numpy", "torch", "transformers")
    }
    table = pa.table(columns)
    write_parquet(path, table, compression="zstd")
    text = json.dumps(content, indent=1)
    atomic_write(path.with_suffix(".json"), lambda p: p.write_text(text + "\n", encoding="utf-8"))
    return path


def _recorded(run: Run, name: str) -> AccessRun:
    path = recorded(f"{name}-access")
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        forms = {key: AccessForm(**form) for key, form in content["forms"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{sidecar} cannot be read ({error}): restore it from the clone"
        ) from error
    if content.get("format") != FORMAT:
        raise InputError(f"{sidecar} is not of the form {FORMAT!r}: restore it from the clone")
    if content["examples_fingerprint"] != run.transcript.examples_fingerprint:
        raise InputError(f"{path} is of other examples than {name}.parquet: restore both")
    table = read_parquet(path, "restore it from the clone")

    def measured(form: str, model: str) -> tuple[Scores, QueryCost]:
        column = f"{form}|{model}"
        if column not in table.column_names:
            raise InputError(
                f"{model!r} was not asked through {form!r}: choose one of "
                f"{', '.join((*SUSPECTS, REFERENCE))}"
            )
        about = content["columns"][column]
        examples = _examples(run, forms[form].queries)
        values = table[column].to_numpy()[examples.rows].astype(np.float64)
        scores = Scores.from_arrays(
            loglik=values,
            transcript=examples,
            identity=ScorerIdentity.from_dict({"units": NATS, **about["identity"]}),
        )
        return replace(scores, caveats=tuple(about["caveats"])), QueryCost(**about["cost"])

    provenance = {**run.provenance, "versions": content["versions"]}
    return AccessRun(run, forms, SUSPECTS, provenance, measured)
