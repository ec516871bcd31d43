"""Ways of asking a model how likely it finds an example: one file each, one registry line each.

Importing this package loads no model library; a scorer's file is imported when its name is used.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, optional_libraries
from workbench.scores import Scores, check_aligned
from workbench.transcript import Transcript

if TYPE_CHECKING:
    from workbench.scorers.answers import Budget
    from workbench.scorers.causal_lm import CausalLMScorer
    from workbench.scorers.chat import ChatScorer
    from workbench.scorers.completions import CompletionsScorer
    from workbench.scorers.lm_eval import lm_eval_scores
    from workbench.scorers.precomputed import PrecomputedScores, precomputed_scores
    from workbench.scorers.ray import RayScorer
    from workbench.scorers.sampled import SampledScorer
    from workbench.scorers.scorer import Encoded, Scorer, score_models, score_transcript
    from workbench.scorers.tokenise import score_texts, tokenise_texts, tokenise_transcript

__all__ = [
    "SCORERS",
    "Budget",
    "CausalLMScorer",
    "ChatScorer",
    "CompletionsScorer",
    "Encoded",
    "PrecomputedScores",
    "RayScorer",
    "SampledScorer",
    "Scorer",
    "ScorerKind",
    "lm_eval_scores",
    "meaning_of",
    "open_scores",
    "precomputed_scores",
    "score_models",
    "score_texts",
    "score_transcript",
    "tokenise_texts",
    "tokenise_transcript",
]

_HOMES = {
    "Budget": "answers",
    "CausalLMScorer": "causal_lm",
    "ChatScorer": "chat",
    "CompletionsScorer": "completions",
    "Encoded": "scorer",
    "PrecomputedScores": "precomputed",
    "RayScorer": "ray",
    "SampledScorer": "sampled",
    "Scorer": "scorer",
    "lm_eval_scores": "lm_eval",
    "precomputed_scores": "precomputed",
    "score_models": "scorer",
    "score_texts": "tokenise",
    "score_transcript": "scorer",
    "tokenise_texts": "tokenise",
    "tokenise_transcript": "tokenise",
}


@dataclass(frozen=True)
class ScorerKind:
    """A way of scoring.

    Attributes
    ----------
    name : str
        As in `ScorerIdentity.scorer`.
    summary : str
        One sentence for menus.
    attribute : str
        Name of its class in this package, imported when it is used.
    """

    name: str
    summary: str
    attribute: str

    def load(self) -> Any:
        """The class itself."""
        return __getattr__(self.attribute)


SCORERS: dict[str, ScorerKind] = {
    "causal_lm": ScorerKind(
        "causal_lm",
        "a causal language model in the format of transformers, from a folder or the hub",
        "CausalLMScorer",
    ),
    "chat": ScorerKind(
        "chat",
        "a model behind an endpoint that lists the likeliest next tokens",
        "ChatScorer",
    ),
    "completions": ScorerKind(
        "completions",
        "a model behind an endpoint that gives the likelihoods of prompts",
        "CompletionsScorer",
    ),
    "precomputed": ScorerKind(
        "precomputed",
        "a column of losses or log-likelihoods in the transcript's own table",
        "PrecomputedScores",
    ),
    "ray": ScorerKind(
        "ray",
        "any of the others on the workers of a Ray cluster, here or elsewhere",
        "RayScorer",
    ),
    "sampled": ScorerKind(
        "sampled",
        "a model behind an endpoint that gives text and nothing more",
        "SampledScorer",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with optional_libraries():
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def open_scores(
    spec: str | Path,
    transcript: Transcript,
    *,
    out: str | Path | None = None,
    revision: str | None = None,
    prefix: int = 0,
    length: int | None = None,
    bos: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    label: str | None = None,
    progress: bool = False,
    encodings: "dict[str, Encoded] | None" = None,
) -> Scores:
    """Scores of a transcript from whatever names them: a column, a file of scores, or a model.

    A spec has exactly one meaning. ``loss:NAME`` and ``loglik:NAME`` are columns of the
    transcript's own table; a path that exists is a file of scores (file) or a model (folder);
    anything else is a model's name on the Hugging Face Hub. Where two of these fit, an error says
    how to write each.

    Parameters
    ----------
    spec : str or Path
        ``loss:NAME``, ``loglik:NAME``, a file that `Scores.write` wrote, a model folder or hub id.
    transcript : Transcript
        What is scored. A file of scores must be of exactly these examples.
    out : str or Path, optional
        Where a model's scores are stored; by default in the cache folder.
    revision : str, optional
        Hub revision of a model.
    prefix, length : int, optional
        The scored window in tokens; for a file of scores it must be the file's own.
    bos, dtype, device :
        As for `CausalLMScorer`; `dtype` and `device` mean nothing to columns and files.
    label : str, optional
        Name of a model in scores and reports, as for `CausalLMScorer`.
    progress : bool
        Show a progress bar while a model scores.
    encodings : dict of str to Encoded, optional
        As for `score_transcript`: give several calls the same dict, and examples are cut into
        tokens once.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        The spec is ambiguous or names nothing; an option does not apply to what it names; the
        scores belong to another transcript.

    Examples
    --------
    >>> t = Transcript.from_arrays([0, 1], texts=["a", "b"], columns={"loss_x": [2.0, 1.0]})
    >>> open_scores("loss:x", t).loglik_mean.tolist()
    [-2.0, -1.0]
    """
    kind = meaning_of(spec, transcript)
    if kind != "model":
        given = {"out": out is not None, "revision": revision is not None, "bos": bos,
                 "label": label is not None}  # fmt: skip
        useless = [name for name, is_given in given.items() if is_given]
        if useless:
            raise InputError(
                f"{spec} is a {kind}, to which {', '.join(useless)} cannot apply: leave that out, "
                "or name a model"
            )
    if kind == "column of the table":
        from workbench.scorers.precomputed import precomputed_scores

        return precomputed_scores(transcript, str(spec), prefix, length)
    if kind == "file of scores":
        return _scores_file(Path(spec), transcript, prefix, length)
    from workbench.scorers.causal_lm import CausalLMScorer
    from workbench.scorers.scorer import score_transcript

    scorer = CausalLMScorer(
        spec,
        revision=revision,
        dtype=dtype,
        device=device,
        bos=bos,
        prefix=prefix,
        length=length,
        label=label,
    )
    return score_transcript(transcript, scorer, out, progress=progress, encodings=encodings)


def meaning_of(spec: str | Path, transcript: Transcript) -> str:
    """``column of the table``, ``file of scores`` or ``model``: exactly one, or an error."""
    text, path = str(spec), Path(spec).expanduser()
    sign, colon, _ = text.partition(":")
    if isinstance(spec, str) and colon and sign in ("loss", "loglik"):
        if path.exists():
            raise InputError(
                f"{text!r} is ambiguous, a column declaration and a path that exists: write "
                f"./{text} for the path, or rename it"
            )
        return "column of the table"
    if text in transcript.columns:
        sides = f"loss:{text} or loglik:{text}"
        if path.exists():
            raise InputError(
                f"{text!r} is ambiguous, a column of {transcript.source} and a path: write {sides} "
                f"for the column, ./{text} for the path"
            )
        raise InputError(
            f"{text!r} is a column of {transcript.source} whose sign is not declared: write {sides}"
        )
    if path.is_file():
        return "file of scores"
    if not path.exists() and path.suffix.lower() == ".parquet":
        raise InputError(f"{text} does not exist: check the path of the file of scores")
    return "model"


def _scores_file(path: Path, transcript: Transcript, prefix: int, length: int | None) -> Scores:
    # absolute, because pyarrow takes a relative name with a colon for an address
    scores = Scores.read(path.expanduser().absolute())
    if not check_aligned(transcript, scores):
        raise InputError(
            f"{path} cannot be shown to belong to {transcript.source}, because one of them does "
            "not say which examples it holds: score the transcript, or bind your numbers with "
            "Scores.from_arrays(transcript=...)"
        )
    own = scores.identity
    if (prefix or length is not None) and (prefix, length) != (own.prefix, own.length):
        raise InputError(
            f"{path} holds scores of another window ({own.window}) than prefix {prefix}, length "
            f"{length}: leave these out, or score again"
        )
    return scores
