"""Observations: texts sampled from a run's models, counted and scored for the observational tests.

Live observations sample text, count its n-grams and score it under siblings on this machine;
recorded ones have the numbers of some that were recorded. Notebooks use either by the same names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write, recorded
from workbench.lab.recipes import Recipe, recipe
from workbench.lab.runs import Run, open_run
from workbench.ngrams import CountSettings, NgramCounts, NgramMatches, match_ngrams
from workbench.parquet import read_parquet, write_parquet
from workbench.scores import ScorerIdentity, Scores
from workbench.statistics.partition import order_blocks
from workbench.texts import Texts

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus
    from workbench.lab.siblings import Siblings

__all__ = ["Observations", "SiblingScores", "open_observations", "record_observations"]

FORMAT = "palimpsest observations 1"
CLONE = "restore it from the clone"

SOURCES = {
    "alice": "text sampled from the owner's model",
    "derivative": "text sampled from a light fine-tune of the owner's model",
    "derivative-2000": "text sampled from a fine-tune on 2,000 fresh examples",
    "derivative-8000": "text sampled from a fine-tune on 8,000 fresh examples",
    "independent": "text sampled from a model of another order and initialisation",
}
LADDER = {"derivative-2000": 2_000, "derivative-8000": 8_000}

MAX_NGRAM = 8
PROMPT_TOKENS = 8
DOCUMENT_TOKENS = 64
BLOCKS = 50
BLOCK_SEED = 7
# What is recorded of each text besides the default at every amount of text.
VARIANTS = (CountSettings("occurrences"), CountSettings(min_n=4), CountSettings(unique=True))


@dataclass(frozen=True)
class _Setting:
    """How much is observed."""

    documents: int
    token_steps: tuple[int, ...]
    sources: tuple[str, ...]
    sibling_documents: int
    temperatures: tuple[float, ...]
    temperature_documents: int
    fine_tuned: bool


QUICK = _Setting(
    documents=1_600,
    token_steps=(12_800, 25_600, 51_200, 102_400),
    sources=("alice", "derivative", "independent"),
    sibling_documents=100,
    temperatures=(0.7, 1.3),
    temperature_documents=80,
    fine_tuned=False,
)
FULL = _Setting(
    documents=6_250,
    token_steps=(25_000, 50_000, 100_000, 200_000, 400_000),
    sources=tuple(SOURCES),
    sibling_documents=400,
    temperatures=(0.5, 0.7, 0.9, 1.2, 1.5),
    temperature_documents=160,
    fine_tuned=True,
)


@dataclass(frozen=True)
class SiblingScores:
    """One text under the rerun of the owner's order, its siblings, and the released weights.

    Attributes
    ----------
    rerun : Scores
    siblings : list of Scores
    released : Scores
    procedure : str
        How rerun and siblings were made.
    """

    rerun: Scores
    siblings: list[Scores]
    released: Scores
    procedure: str


@dataclass(frozen=True)
class Observations:
    """Counts and likelihoods of texts sampled from a run's models.

    Attributes
    ----------
    run : Run
        Transcript and models.
    texts : dict of str
        Each text of the partition test, and where it comes from.
    token_steps : list of int
        Amounts of text at which counts are at hand; the last is the whole text.
    sibling_texts : list of str
        Texts with scores under the siblings.
    temperatures : dict of float to str
        Sampling temperature, and the name of the derivative's text at it.
    derivatives : dict of str to int
        Derivatives with query scores, and their fine-tuning examples.
    tail : str
        What the siblings retrained, in words.
    fine_tuned : bool
        Whether siblings fine-tuned on Bob's text are at hand.
    provenance : dict
    """

    run: Run
    texts: dict[str, str]
    token_steps: list[int]
    sibling_texts: list[str]
    temperatures: dict[float, str]
    derivatives: dict[str, int]
    tail: str
    fine_tuned: bool
    provenance: dict[str, Any] = field(repr=False)
    _live: "_Live | None" = field(repr=False, default=None)
    _numbers: "_Recorded | None" = field(repr=False, default=None)

    def counts(
        self,
        text: str,
        weight: str = "inverse",
        min_n: int = 1,
        unique: bool = False,
        n_tokens: int | None = None,
    ) -> NgramCounts:
        """N-gram counts of a text per row of the transcript; see `NgramMatches.counts`.

        Raises
        ------
        InputError
            An unknown text; settings that were not recorded.
        """
        self._known(text, list(self.texts))
        settings = CountSettings(weight, min_n, unique)
        if self._live is not None:
            return self._live.matches(text).counts(weight, min_n, unique, n_tokens)
        assert self._numbers is not None
        return self._numbers.counts(text, settings, n_tokens or self.token_steps[-1], self.run)

    def block_logliks(self, text: str) -> NDArray[np.float64]:
        """Text under n-gram models of equal blocks in training order, nats per token, (blocks,)."""
        self._known(text, list(self.texts))
        if self._live is not None:
            transcript = self.run.transcript
            rng = np.random.default_rng(BLOCK_SEED)
            block, _ = order_blocks(
                transcript.positions, transcript.strata, transcript.units, BLOCKS, rng
            )
            return self._live.matches(text).block_logliks(block)
        assert self._numbers is not None
        return np.asarray(self._numbers.content["block_logliks"][text], dtype=np.float64)

    def siblings(self, text: str, fine_tuned: bool = False) -> SiblingScores:
        """A text under rerun, siblings and released weights.

        Parameters
        ----------
        text : str
            One of `sibling_texts`.
        fine_tuned : bool
            All models were first fine-tuned on the first half of the derivative's text, and
            scored on the second (where `Observations.fine_tuned`).

        Raises
        ------
        InputError
            An unknown text, or fine-tuned siblings that are not at hand.
        """
        self._known(text, self.sibling_texts)
        if fine_tuned and not (self.fine_tuned and text == "derivative"):
            raise InputError(
                f"siblings fine-tuned on the text {text!r} are not at hand: open the observations "
                "with full=True, or the recorded ones, and ask for 'derivative'"
            )
        source = self._live or self._numbers
        assert source is not None
        return source.siblings(text, fine_tuned)

    def query_scores(self, name: str) -> Scores:
        """Scores of the transcript under one of the derivatives.

        Raises
        ------
        InputError
            Unknown name.
        """
        self._known(name, list(self.derivatives))
        if name in self.run.roles:
            return self.run.scores(name)
        source = self._live or self._numbers
        assert source is not None
        return source.query_scores(name, self.run)

    def _known(self, name: str, names: list[str]) -> None:
        if name not in names:
            raise InputError(f"{name!r} is not at hand: choose one of {', '.join(names)}")


def open_observations(
    source: str = "tiny", *, full: bool = False, progress: bool = False
) -> Observations:
    """Open observations: a recipe's name makes them here, ``recorded`` reads recorded ones.

    Parameters
    ----------
    source : str
        ``tiny`` or another recipe, trained and sampled if not in the cache; or ``recorded``
        (``recorded:PATH``: see `open_run`).
    full : bool
        400,000 tokens of each text, a ladder of fine-tunes, more temperatures, and fine-tuned
        siblings, in place of 100,000 tokens of three texts. Recorded observations are full.
    progress : bool

    Raises
    ------
    InputError
        Unknown name, or training failed.
    """
    kind, _, name = source.partition(":")
    run = open_run(source, progress=progress)
    if kind == "recorded":
        return _open_recorded(run, name or "tiny")
    setting = FULL if full else QUICK
    live = _Live(run, recipe(source), setting, progress)
    live.prepare()
    return Observations(
        run=run,
        texts={name: SOURCES[name] for name in setting.sources},
        token_steps=list(setting.token_steps),
        sibling_texts=[*_WITH_SIBLINGS, *_temperature_names(setting).values()],
        temperatures=dict(sorted({1.0: "derivative", **_temperature_names(setting)}.items())),
        derivatives={
            "derivative": live.recipe.fresh_examples,
            **{n: LADDER[n] for n in setting.sources if n in LADDER},
        },
        tail=(
            f"the last {100 * (1 - live.made.fraction):.2g} % of training, "
            f"{live.made.tail_examples:,} examples"
        ),
        fine_tuned=setting.fine_tuned,
        provenance=live.provenance(),
        _live=live,
    )


_WITH_SIBLINGS = ("alice", "derivative", "independent")


def _temperature_names(setting: _Setting) -> dict[float, str]:
    return {t: f"derivative at temperature {t:g}" for t in setting.temperatures}


class _Live:
    """Samples, counts and scores on this machine; everything slow is cached by its own key."""

    def __init__(self, run: Run, chosen: Recipe, setting: _Setting, progress: bool) -> None:
        self.run, self.recipe, self.setting, self.progress = run, chosen, setting, progress
        self._matches: dict[str, NgramMatches] = {}
        self._texts: dict[str, Texts] = {}
        self._scores: dict[str, Scores] = {}
        self._tuned: dict[str, Scores] = {}

    def prepare(self) -> None:
        """Train the ladder and the siblings, sample the texts and score them."""
        from workbench.lab.corpus import docstring_corpus
        from workbench.lab.derivatives import fine_tune, pretrain
        from workbench.lab.siblings import train_siblings
        from workbench.lab.training import train_all, training_rows

        chosen = self.recipe
        corpus = docstring_corpus(
            chosen.packages,
            vocab_size=chosen.vocab_size,
            example_tokens=chosen.example_tokens,
            progress=self.progress,
        )
        alice = pretrain(chosen, corpus)
        folders = dict(self.run.folders)
        ladder = {
            name: fine_tune(alice, chosen, corpus, name, n_examples=count)
            for name, count in LADDER.items()
            if name in self.setting.sources
        }
        train_all(list(ladder.values()), progress=self.progress)
        folders |= {name: job.folder for name, job in ladder.items()}
        self.folders: dict[str, Path] = folders
        # Prompts: the first tokens of examples that no model of the run was trained on.
        unseen = replace(
            alice,
            start=2 * chosen.examples + max(chosen.fresh_examples, *LADDER.values()),
            stop=len(corpus.tokens),
        )
        if unseen.start >= unseen.stop:
            raise InputError(
                f"the corpus has {len(corpus.tokens):,} examples and prompts need some beyond "
                f"{unseen.start:,}: give more text, or fewer examples in the recipe"
            )
        rows = training_rows(unseen, len(corpus.tokens))
        self.prompts = list(corpus.tokens[rows, :PROMPT_TOKENS].astype(np.int64))
        self.made = train_siblings(alice, progress=self.progress)
        for number, name in enumerate(self.setting.sources):
            self._texts[name] = self._sample(name, self.setting.documents, 1.0, number)
        for number, (temperature, name) in enumerate(_temperature_names(self.setting).items()):
            self._texts[name] = self._sample(
                "derivative", self.setting.temperature_documents, temperature, 100 + number
            )
        self._score_siblings(alice, corpus)

    def _sample(self, source: str, documents: int, temperature: float, seed: int) -> Texts:
        from workbench.lab.sampling import sample_texts

        sampled = sample_texts(
            self.folders[source],
            documents,
            max_new_tokens=DOCUMENT_TOKENS,
            prompts=self.prompts,
            temperature=temperature,
            seed=seed,
            progress=self.progress,
        )
        named = sampled.provenance | {"label": f"{source}'s text"}
        return replace(sampled, provenance=named)

    def matches(self, text: str) -> NgramMatches:
        if text not in self._matches:
            self._matches[text] = match_ngrams(self.run.transcript, self._texts[text], MAX_NGRAM)
        return self._matches[text]

    def _score_siblings(self, alice: Any, corpus: "Corpus") -> None:
        """Score all texts at once under each model: a model is loaded once."""
        from workbench.lab.siblings import train_siblings

        self._parts: dict[str, slice] = {}
        joined: list[Texts] = []
        at = 0
        for name in [*_WITH_SIBLINGS, *_temperature_names(self.setting).values()]:
            part = self._texts[name]
            part = part.take(np.arange(min(part.n, self.setting.sibling_documents)))
            self._parts[name] = slice(at, at + part.n)
            at += part.n
            joined.append(part)
        self._scores = self._under_all(self.made, _join(joined))
        if not self.setting.fine_tuned:
            return
        text = self._texts["derivative"].take(np.arange(self.setting.sibling_documents))
        half = text.n // 2
        tuned = train_siblings(
            alice, fine_tune_on=text.take(np.arange(half)), progress=self.progress
        )
        self._tuned_procedure = tuned.procedure
        self._tuned = self._under_all(tuned, text.take(np.arange(half, text.n)))

    def _under_all(self, made: "Siblings", texts: Texts) -> dict[str, Scores]:
        from workbench.scorers import score_texts

        models = {"rerun": made.rerun, "released": made.released}
        models |= {f"sibling-{i:02d}": folder for i, folder in enumerate(made.siblings, 1)}
        return {
            name: score_texts(texts, str(folder), label=name, progress=self.progress)
            for name, folder in models.items()
        }

    def siblings(self, text: str, fine_tuned: bool) -> SiblingScores:
        if fine_tuned:
            return _sibling_scores(self._tuned, self._tuned_procedure)
        rows = np.arange(self._parts[text].start, self._parts[text].stop)
        parts = {name: scores.take(rows) for name, scores in self._scores.items()}
        return _sibling_scores(parts, self.made.procedure)

    def query_scores(self, name: str, run: Run) -> Scores:
        from workbench.scorers import CausalLMScorer, score_transcript

        scorer = CausalLMScorer(str(self.folders[name]), label=name)
        return score_transcript(run.transcript, scorer, progress=self.progress)

    def provenance(self) -> dict[str, Any]:
        return {
            "procedure": self.made.procedure,
            "prompt_tokens": PROMPT_TOKENS,
            "document_tokens": DOCUMENT_TOKENS,
            "max_ngram": MAX_NGRAM,
        }


def _join(parts: Sequence[Texts]) -> Texts:
    return Texts.from_tokens(
        [c for part in parts for c in part.completions],
        [p for part in parts for p in part.prompts],
        tokenizer_sha256=parts[0].tokenizer_sha256,
        source="sampled texts",
    )


def _sibling_scores(by_model: Mapping[str, Scores], procedure: str) -> SiblingScores:
    return SiblingScores(
        rerun=by_model["rerun"],
        siblings=[by_model[name] for name in sorted(by_model) if name.startswith("sibling-")],
        released=by_model["released"],
        procedure=procedure,
    )


# ---------------------------------------------------------------------- recording


def record_observations(
    observations: Observations, folder: str | Path, name: str = "tiny"
) -> list[Path]:
    """Write counts, likelihoods and their provenance: numbers only, no text.

    Parameters
    ----------
    observations : Observations
        Live ones.
    folder : str or Path
    name : str
        The files are ``NAME-observations.parquet`` (one row per example of the transcript),
        ``NAME-siblings.parquet`` (one row per document) and ``NAME-observations.json``.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        The observations are recorded ones, or a file cannot be written.
    """
    live = observations._live
    if live is None:
        raise InputError("these observations are a recording already: record live ones")
    folder = Path(folder)
    columns: dict[str, Any] = {}
    accounts: dict[str, Any] = {}
    for text in observations.texts:
        for settings, n_tokens in _recorded_settings(observations.token_steps):
            found = observations.counts(
                text, settings.weight, settings.min_n, settings.unique, n_tokens
            )
            column = _column(text, settings, n_tokens)
            columns[column] = found.values.astype(np.float32)
            accounts[column] = {"n_matched": found.n_matched, "n_text_tokens": n_tokens}
    identities: dict[str, Any] = {}
    for derivative in observations.derivatives:
        if derivative not in observations.run.roles:
            scores = observations.query_scores(derivative)
            columns[f"loglik:{derivative}"] = scores.loglik_mean.astype(np.float32)
            identities[derivative] = scores.identity.as_dict()
            identities[derivative]["scored_tokens"] = int(scores.n_tokens[0])
    rows: dict[str, list[Any]] = {"text": [], "n_tokens": []}
    sets = [(text, False) for text in observations.sibling_texts]
    sets += [("derivative", True)] if observations.fine_tuned else []
    models: dict[str, Any] = {}
    procedures = {}
    for text, fine_tuned in sets:
        found_scores = observations.siblings(text, fine_tuned)
        key = _sibling_key(text, fine_tuned)
        procedures[key] = found_scores.procedure
        rows["text"] += [key] * found_scores.rerun.n
        rows["n_tokens"] += found_scores.rerun.n_tokens.tolist()
        everyone = [found_scores.rerun, found_scores.released, *found_scores.siblings]
        for scores in everyone:
            rows.setdefault(scores.label, []).extend(scores.loglik_sum.tolist())
            models.setdefault(key, {})[scores.label] = scores.identity.as_dict()
    transcript = observations.run.transcript
    content = {
        "format": FORMAT,
        "run": name,
        "examples_fingerprint": transcript.examples_fingerprint,
        "texts": {
            text: {"about": about, "account": live._texts[text].describe()}
            for text, about in observations.texts.items()
        },
        "token_steps": observations.token_steps,
        "sibling_texts": observations.sibling_texts,
        "temperatures": {f"{t:g}": text for t, text in observations.temperatures.items()},
        "derivatives": observations.derivatives,
        "tail": observations.tail,
        "fine_tuned": observations.fine_tuned,
        "provenance": observations.provenance,
        "counts": accounts,
        "identities": identities,
        "models": models,
        "procedures": procedures,
        "block_logliks": {
            text: [round(float(v), 7) for v in observations.block_logliks(text)]
            for text in observations.texts
        },
    }
    sums = {
        column: values if column in ("text", "n_tokens") else np.array(values, dtype=np.float32)
        for column, values in rows.items()
    }
    paths = [
        _write_table(folder / f"{name}-observations.parquet", columns),
        _write_table(folder / f"{name}-siblings.parquet", sums),
    ]
    sidecar = folder / f"{name}-observations.json"
    text_form = json.dumps(content) + "\n"
    atomic_write(sidecar, lambda p: p.write_text(text_form, encoding="utf-8"))
    return [*paths, sidecar]


def _write_table(path: Path, columns: Mapping[str, Any]) -> Path:
    return write_parquet(path, pa.table(dict(columns)), compression="zstd")


def _recorded_settings(token_steps: Sequence[int]) -> list[tuple[CountSettings, int]]:
    found = [(CountSettings(), n) for n in token_steps]
    return found + [(settings, token_steps[-1]) for settings in VARIANTS]


def _column(text: str, settings: CountSettings, n_tokens: int) -> str:
    options = [settings.weight, f"n{settings.min_n}", *(["unique"] if settings.unique else [])]
    return f"count:{text}|{'|'.join(options)}|{n_tokens}"


def _sibling_key(text: str, fine_tuned: bool) -> str:
    return f"{text}, fine-tuned" if fine_tuned else text


@dataclass(frozen=True)
class _Recorded:
    content: dict[str, Any]
    counts_path: Path
    siblings_path: Path

    def counts(self, text: str, settings: CountSettings, n_tokens: int, run: Run) -> NgramCounts:
        column = _column(text, settings, n_tokens)
        if column not in self.content["counts"]:
            steps = ", ".join(f"{n:,}" for n in self.content["token_steps"])
            raise InputError(
                f"counts of {text!r} with {settings} at {n_tokens:,} tokens were not recorded "
                f"(1/occurrences is at {steps} tokens): choose one of those, or live observations"
            )
        values = read_parquet(self.counts_path, CLONE, columns=[column]).column(0).to_numpy()
        account = self.content["counts"][column]
        return NgramCounts(
            values.astype(np.float64),
            settings,
            MAX_NGRAM,
            int(account["n_text_tokens"]),
            int(account["n_matched"]),
            self.content["texts"][text]["account"],
            self.content["examples_fingerprint"],
            "join",
        )

    def siblings(self, text: str, fine_tuned: bool) -> SiblingScores:
        key = _sibling_key(text, fine_tuned)
        table = read_parquet(self.siblings_path, CLONE, filters=[("text", "=", key)])
        n_tokens = table.column("n_tokens").to_numpy().astype(np.int32)
        by_model = {
            label: Scores(
                table.column(label).to_numpy().astype(np.float64),
                n_tokens,
                ScorerIdentity.from_dict(identity),
            )
            for label, identity in self.content["models"][key].items()
        }
        return _sibling_scores(by_model, self.content["procedures"][key])

    def query_scores(self, name: str, run: Run) -> Scores:
        stored = dict(self.content["identities"][name])
        scored = np.full(run.transcript.n, stored.pop("scored_tokens"))
        values = (
            read_parquet(self.counts_path, CLONE, columns=[f"loglik:{name}"]).column(0).to_numpy()
        )
        return Scores.from_arrays(
            loglik=values.astype(np.float64),
            n_tokens=scored,
            transcript=run.transcript,
            identity=ScorerIdentity.from_dict(stored),
        )


def _open_recorded(run: Run, name: str) -> Observations:
    counts_path = recorded(f"{name}-observations")
    sidecar = counts_path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{sidecar} cannot be read ({error}): restore it from the clone"
        ) from error
    if content.get("format") != FORMAT:
        raise InputError(f"{sidecar} is not of the form {FORMAT!r}: restore it from the clone")
    if content["examples_fingerprint"] != run.transcript.examples_fingerprint:
        raise InputError(
            f"{sidecar} was recorded for another transcript than {name}'s: record both again"
        )
    return Observations(
        run=run,
        texts={text: entry["about"] for text, entry in content["texts"].items()},
        token_steps=content["token_steps"],
        sibling_texts=content["sibling_texts"],
        temperatures={float(t): text for t, text in content["temperatures"].items()},
        derivatives=content["derivatives"],
        tail=content["tail"],
        fine_tuned=content["fine_tuned"],
        provenance=content["provenance"],
        _numbers=_Recorded(content, counts_path, recorded(f"{name}-siblings")),
    )
