"""Scores from the samples that lm-evaluation-harness logged with ``--log_samples``.

Such a file holds one sum of log-likelihoods per document and no number of tokens: the model's
tokenizer counts again what the tool scored. Runs no model.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from workbench.errors import InputError
from workbench.models.checkpoint import quiet_transformers, tokenizer_folder, tokenizer_sha256_of
from workbench.scorers.tokenise import fast_tokenizer
from workbench.scores import ScorerIdentity, Scores
from workbench.transcript import Transcript

__all__ = ["lm_eval_scores"]


def lm_eval_scores(
    path: str | Path,
    transcript: Transcript,
    *,
    tokenizer: str | Path | None = None,
    name: str | None = None,
) -> Scores:
    """Scores from a file ``samples_<task>_<date>.jsonl`` of lm-evaluation-harness (0.4).

    The task's documents must be the rows of the transcript's table, as in a task whose
    ``dataset_path`` reads that table: a row is found by its number (``doc_id``) and must have the
    document's content.

    Parameters
    ----------
    path : str or Path
        Of a task of type ``loglikelihood_rolling`` (the whole text is scored) or
        ``loglikelihood`` (text given a context; together they are the transcript's row).
    transcript : Transcript
        Of text, or of token ids of `tokenizer`. Documents that it lacks are left out.
    tokenizer : str or Path
        Folder or hub id of the model's own tokenizer; that it is this model's is not checked. The
        count is exact for causal models of transformers: the tool puts a beginning-of-sequence
        token before the first and gives every token of the text after its context one value, long
        texts in windows. What a tokenizer adds by itself the tool scores too in
        ``loglikelihood_rolling``; then a caveat says so.
    name : str, optional
        Of the model, which the file does not say; the file's name by default.

    Returns
    -------
    Scores
        Mean nats per token, higher = likelier, in the transcript's row order. A text longer than
        the model's context was read in windows, its later tokens with less before them.

    Raises
    ------
    InputError
        No tokenizer, a row without a document, another content, answers of another kind of task.

    Examples
    --------
    >>> lm_eval_scores("samples_t.jsonl", Transcript.from_arrays([1, 0], texts=["a", "b"]))
    Traceback (most recent call last):
    ...
    workbench.errors.InputError: samples_t.jsonl holds sums, and nats per token are needed: name
    the model's tokenizer with tokenizer=, so that tokens can be counted
    """
    if tokenizer is None:
        raise InputError(
            f"{path} holds sums, and nats per token are needed: name the model's tokenizer with "
            "tokenizer=, so that tokens can be counted"
        )
    logged, file_sha256 = _logged(Path(path).expanduser())
    answers = []
    for row in transcript.rows.tolist():
        if row not in logged:
            raise InputError(
                f"{path} has no document with doc_id {row} for row {row} of {transcript.source}: "
                "run the task on all rows, without --limit"
            )
        answers.append(logged[row])
    wholes = [context + scored for context, scored, _, _ in answers]
    cut = fast_tokenizer(tokenizer)
    with quiet_transformers():
        ids = cut(wholes, add_special_tokens=False)["input_ids"]
        # The tool gives white space at the end of a context to what follows it.
        contexts = [context.rstrip() for context, _, _, _ in answers]
        before = cut(contexts, add_special_tokens=False)["input_ids"]
        added = len(cut("")["input_ids"])
    _check_content(transcript, wholes, ids, path)
    beginning = cut.bos_token_id if cut.bos_token_id is not None else cut.eos_token_id
    opening = "" if beginning is None else cut.decode(beginning)
    counts, specials = [], False
    for (context, scored, _, rolling), all_ids, context_ids in zip(
        answers, ids, before, strict=True
    ):
        count = len(all_ids) - len(context_ids)
        if rolling and added and not (opening and scored.startswith(opening)):
            count, specials = count + added, True
        elif not rolling and not context and all_ids[:1] == [beginning]:
            count -= 1  # it is the context of the others
        counts.append(count)
    return Scores(
        np.array([total for _, _, total, _ in answers]),
        np.array(counts, dtype=np.int32),
        ScorerIdentity(
            scorer="lm_eval",
            model=name or Path(path).stem,
            tokenizer_sha256=tokenizer_sha256_of(tokenizer_folder(tokenizer)),
            bos="unknown" if any(contexts) else "prepended",
            settings={"file_sha256": file_sha256},
        ),
        transcript.row_digests,
        caveats=(
            (
                f"the tokenizer puts {added} token(s) of its own into a text, which the tool "
                "scored and which are counted",
            )
            if specials
            else ()
        ),
    )


Answer = tuple[str, str, float, bool]


def _logged(path: Path) -> tuple[dict[int, Answer], str]:
    """By doc_id: context, scored text, summed nats, whether rolling; and the file's SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    found: dict[int, Answer] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
            ((*contexts, scored),) = (texts.values() for texts in row["arguments"].values())
            ((answer,),) = row["resps"]
            rolling = not contexts
            value, _greedy = (answer, None) if rolling else answer
            doc, total, context = row["doc_id"], float(value), "".join(contexts)
            if not isinstance(doc, int) or not isinstance(scored, str) or len(contexts) > 1:
                raise ValueError
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: line {number} is no document with one sum of log-likelihoods: give the "
                "samples of a task of type loglikelihood or loglikelihood_rolling"
            ) from error
        if doc in found:
            raise InputError(
                f"{path}: line {number} has doc_id {doc} again: give the samples of one run with "
                "one filter"
            )
        found[doc] = (context, scored, total, rolling)
    return found, hashlib.sha256(content).hexdigest()


def _check_content(
    transcript: Transcript, texts: list[str], ids: list[list[int]], path: str | Path
) -> None:
    if transcript.kind == "text":
        same = [a == b for a, b in zip(transcript.texts(), texts, strict=True)]
    else:
        rows = transcript.tokens()
        same = [np.array_equal(a, b) for a, b in zip(rows, ids, strict=True)]
    if not all(same):
        row = transcript.rows[same.index(False)]
        raise InputError(
            f"{path}: the document with doc_id {row} is not row {row} of {transcript.source}, "
            f"nor are {same.count(False) - 1} more: run the task on the transcript's table, whole "
            "texts unchanged and in its row order"
        )
