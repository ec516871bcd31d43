"""Where a study's models, texts and scores are made, each once; nothing is tested here."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.home import atomic_write, content_key
from workbench.lab.recipes import Recipe
from workbench.studies.study import PAIRED, Cell, Model, Study

if TYPE_CHECKING:
    from workbench.lab.corpus import Corpus
    from workbench.lab.training import TrainingJob
    from workbench.ngrams import NgramMatches
    from workbench.texts import Texts
    from workbench.transcript import Transcript

__all__ = ["Workshop", "sentence_of"]


def sentence_of(error: Exception) -> str:
    """What to record of a failure: the message of bad input, or the kind of another error too."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


class Workshop:
    """Models, texts and scores of a study on this machine; everything slow is cached.

    Parameters
    ----------
    study : Study
    recipe : Recipe
    corpus : Corpus, optional
        By default the docstrings of the recipe's packages.
    records : Path
        Folder for one JSON per model: how it was made, in how many seconds, or why it was not.
    progress : bool
    """

    def __init__(
        self,
        study: Study,
        recipe: Recipe,
        corpus: "Corpus | None",
        records: Path,
        progress: bool = False,
    ) -> None:
        from workbench.lab.corpus import docstring_corpus
        from workbench.lab.derivatives import pretrain
        from workbench.lab.training import training_transcript

        self.study, self.recipe, self.records, self.progress = study, recipe, records, progress
        self.corpus = corpus or docstring_corpus(
            recipe.packages,
            vocab_size=recipe.vocab_size,
            example_tokens=recipe.example_tokens,
            progress=progress,
        )
        self.alice = pretrain(recipe, self.corpus, order=study.order)
        self.transcript: Transcript = training_transcript(self.alice, self.corpus.tokens)
        self.folders: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        self._matched: tuple[tuple[str, float], NgramMatches] | None = None

    # ------------------------------------------------------------------ models

    def make(self, names: Sequence[str]) -> None:
        """Make these models, and what they are made of; a failure is kept, and the others go on."""
        wanted = set(names)
        for model in reversed(self.study.models.values()):
            if model.name in wanted:
                wanted.update(model.needs)
        models = [model for model in self.study.models.values() if model.name in wanted]
        jobs = {m.name: self._job(m) for m in models if m.kind in PAIRED}
        self._train({name: job for name, job in jobs.items() if not isinstance(job, str)})
        for model in models:
            job = jobs.get(model.name)
            self._one(model, lambda m=model, j=job: self._folder(m, j))  # type: ignore[misc]

    def _job(self, model: Model) -> "TrainingJob | str":
        """The training job of a model, or why there is none."""
        from workbench.lab.derivatives import fine_tune, pretrain

        chosen = replace(self.recipe, **model.changes)
        try:
            if model.kind == "pretrain":
                return pretrain(chosen, self.corpus, model.name, **model.parameters)
            return fine_tune(self.alice, chosen, self.corpus, model.name, **model.parameters)
        except InputError as error:
            return str(error)

    def _train(self, jobs: "dict[str, TrainingJob]") -> None:
        """All jobs, two at a time; where one fails, each by itself, so that the others are made."""
        from workbench.lab.training import train_all

        if all(job.complete for job in jobs.values()):
            return
        try:
            train_all(list(jobs.values()), progress=self.progress)
        except InputError:
            for name, job in jobs.items():
                try:
                    train_all([job], progress=self.progress)
                except InputError as error:
                    self.failures[name] = str(error)

    def _folder(self, model: Model, job: "TrainingJob | str | None") -> Path:
        from workbench.lab.derivatives import derive

        if isinstance(job, str):
            raise InputError(job)
        if job is not None:
            if model.name in self.failures:
                raise InputError(self.failures[model.name])
            return job.folder
        assert model.parent is not None
        if model.kind == "checkpoint":
            return self.folder(model.parent) / "checkpoints" / f"{model.parameters['fraction']:g}"
        parent = self.alice if model.parent == "alice" else self.folder(model.parent)
        others = [self.folder(other) for other in model.others]
        return derive(
            model.kind,
            parent,
            self.recipe,
            self.corpus,
            others=others,
            progress=self.progress,
            **model.parameters,
        )

    def _one(self, model: Model, make: Callable[[], Path]) -> None:
        started = time.monotonic()
        sentence = None
        try:
            for name in model.needs:
                self.folder(name)
            folder = make()
            if not folder.is_dir():
                raise InputError(f"{model.name}: {folder.name} was not made")
            self.folders[model.name] = folder
        except Exception as error:
            sentence = sentence_of(error)
            self.failures[model.name] = sentence
        content = {
            "name": model.name,
            "kind": model.kind,
            "parent": model.parent,
            "others": list(model.others),
            "parameters": model.parameters,
            "changes": model.changes,
            # of what was not made together with others, or found in the cache
            "seconds": round(time.monotonic() - started, 2) if model.kind not in PAIRED else None,
            "failed": sentence,
        }
        path = self.records / f"{model.name}.json"
        if sentence is None and path.is_file():
            former = json.loads(path.read_text(encoding="utf-8"))
            if former["failed"] is None:
                return  # the first time is the one that says how long it takes
        text = json.dumps(content, indent=1)
        atomic_write(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))

    def folder(self, name: str) -> Path:
        """Folder of a model that was made.

        Raises
        ------
        InputError
            It could not be made; the message is why.
        """
        if name in self.folders:
            return self.folders[name]
        why = self.failures.get(name, "it was not asked for")
        prefix = f"the model {name!r} is not there: "
        raise InputError(why if why.startswith("the model ") else prefix + why)

    # ------------------------------------------------------------------ numbers

    def logliks(self, name: str) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Mean log-likelihood of each example, nats per token, and who scored."""
        from workbench.scorers import CausalLMScorer, score_transcript

        scorer = CausalLMScorer(str(self.folder(name)), label=name, device="auto")
        scores = score_transcript(self.transcript, scorer, progress=self.progress)
        identity = scores.identity.as_dict() | {"model": name}
        return scores.loglik_mean, {"identity": identity}

    def counts(self, cell: Cell) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """N-gram counts of a partition cell's text per example, and the sizes of the text."""
        assert cell.tokens is not None
        matches = self._matches(cell.suspect, cell.temperature)
        counts = matches.counts(cell.weight, n_tokens=cell.tokens)
        return counts.values, {
            "max_ngram": counts.max_ngram,
            "text_tokens": counts.n_text_tokens,
            "matched": counts.n_matched,
            "text_fingerprint": counts.text["fingerprint"],
        }

    def siblings(self, cell: Cell) -> dict[str, Any]:
        """Mean log-likelihood of a reshuffle cell's text under rerun and siblings."""
        from workbench.lab.siblings import train_siblings
        from workbench.scorers import score_texts

        assert cell.tokens is not None
        made = train_siblings(self.alice, progress=self.progress)
        text = self._text(cell.suspect, cell.temperature).head(cell.tokens)

        def mean(folder: Path) -> float:
            scores = score_texts(text, str(folder), progress=self.progress)
            return float(scores.loglik_sum.sum() / scores.n_tokens.sum())

        return {
            "rerun": mean(made.rerun),
            "siblings": [mean(folder) for folder in made.siblings],
            "procedure": made.procedure,
            "text_tokens": text.n_tokens,
        }

    def _matches(self, model: str, temperature: float) -> "NgramMatches":
        from workbench.lab.observations import MAX_NGRAM
        from workbench.ngrams import match_ngrams

        if self._matched is None or self._matched[0] != (model, temperature):
            text = self._text(model, temperature)
            found = match_ngrams(self.transcript, text, MAX_NGRAM, progress=self.progress)
            self._matched = ((model, temperature), found)
        return self._matched[1]

    def _text(self, model: str, temperature: float) -> "Texts":
        """The longest text that the study asks of a model; shorter ones are its beginning."""
        from workbench.lab.observations import DOCUMENT_TOKENS, PROMPT_TOKENS
        from workbench.lab.sampling import sample_texts
        from workbench.lab.training import training_rows

        longest = max(
            cell.tokens
            for cell in self.study.cells
            if cell.tokens is not None and (cell.suspect, cell.temperature) == (model, temperature)
        )
        # Prompts: the first tokens of examples that neither the owner's model nor a reference saw.
        unseen = replace(self.alice, start=2 * self.recipe.examples, stop=len(self.corpus.tokens))
        if unseen.start >= unseen.stop:
            raise InputError(
                f"the corpus has {len(self.corpus.tokens):,} examples and prompts need some "
                f"beyond {unseen.start:,}: give more text, or fewer examples in the recipe"
            )
        rows = training_rows(unseen, len(self.corpus.tokens))
        return sample_texts(
            self.folder(model),
            -(-longest // DOCUMENT_TOKENS),
            max_new_tokens=DOCUMENT_TOKENS,
            prompts=list(self.corpus.tokens[rows, :PROMPT_TOKENS].astype(np.int64)),
            temperature=temperature,
            seed=int(content_key({"text of": model})[:8], 16),
            progress=self.progress,
        )
