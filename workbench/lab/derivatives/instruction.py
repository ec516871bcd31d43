"""A derivative by instruction-style fine-tuning: prompt and answer, loss on the answer only.

The examples are the corpus's own fresh text in another form, not instructions that somebody
wrote: the first part of each becomes the prompt and the rest the answer.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.lab.corpus import END_OF_TEXT, Corpus
from workbench.lab.derivatives.derivation import Derivation, Parameter, Request
from workbench.lab.derivatives.fine_tuning import N_EXAMPLES, RATE_SHARE, fresh_job
from workbench.lab.derivatives.loop import fit
from workbench.lab.derivatives.models import load_model, publish, save_model
from workbench.lab.training import examples_in_order, next_token_loss

__all__ = ["INSTRUCTION", "as_instructions"]

BEFORE_PROMPT, BEFORE_ANSWER = "Instruction: continue this text.\n", "\nAnswer:\n"


def as_instructions(
    rows: NDArray[np.int64], corpus: Corpus, share: float
) -> tuple[NDArray[np.int64], int]:
    """Examples as instructions, and the number of the token at which all answers begin.

    Parameters
    ----------
    rows : ndarray of int64, shape (examples, tokens)
    corpus : Corpus
        Whose tokenizer cuts the words around them.
    share : float
        Of each example that becomes the prompt; a token at least is left for either part.

    Returns
    -------
    ndarray of int64, shape (examples, more tokens)
        Each answer ends with the end-of-text token.
    int
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_folder / "tokenizer.json"))
    before, between = (
        np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        for text in (BEFORE_PROMPT, BEFORE_ANSWER)
    )
    cut = min(max(1, round(share * rows.shape[1])), rows.shape[1] - 1)
    end = np.array([tokenizer.token_to_id(END_OF_TEXT)], dtype=np.int64)
    parts = (before, rows[:, :cut], between, rows[:, cut:], end)
    whole = [np.broadcast_to(p, (len(rows), p.shape[-1])) for p in parts]
    return np.concatenate(whole, axis=1), len(before) + cut + len(between)


def _instruction(request: Request) -> Path:
    recipe = request.recipe
    count = request.n_examples(recipe.fresh_examples)
    rate = request.rate(recipe.fine_tune_fraction)
    job = fresh_job("instruction", recipe, request.corpus, None, count, rate, request.seed)

    def write(partial: Path) -> None:
        model = load_model(request.parent, job.device)
        fresh = examples_in_order(job, request.corpus.tokens)
        rows, first = as_instructions(fresh, request.corpus, request.number("prompt_share"))
        fit(
            request,
            job,
            model,
            rows,
            partial,
            loss_of=lambda logits, batch: next_token_loss(logits, batch, first),
        )
        save_model(model.cpu(), partial, request.parent.folder)

    return publish(request, write, steps=job.steps, device=job.device, precision=job.precision)


INSTRUCTION = Derivation(
    "instruction",
    "all weights trained further on fresh text as prompts and answers, with loss on the answers",
    "derivative",
    depends=True,
    parameters={
        "prompt_share": Parameter("share of an example that becomes the prompt", 0.5, 0, 1),
        "n_examples": N_EXAMPLES,
        "rate_share": RATE_SHARE,
    },
    make=_instruction,
)
