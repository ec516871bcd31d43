"""A derivative by adapters of low rank (LoRA), merged back into the parent's weights."""

from dataclasses import replace
from pathlib import Path

from workbench.errors import InputError, optional_libraries
from workbench.lab.derivatives.derivation import Derivation, Parameter, Request
from workbench.lab.derivatives.fine_tuning import N_EXAMPLES, RATE_SHARE, fresh_job
from workbench.lab.derivatives.loop import fit
from workbench.lab.derivatives.models import load_model, publish, save_model
from workbench.lab.training import examples_in_order

__all__ = ["LORA"]


def _lora(request: Request) -> Path:
    with optional_libraries():
        from peft import LoraConfig, get_peft_model
    count = request.n_examples(request.recipe.fresh_examples)
    job = fresh_job(
        "lora", request.recipe, request.corpus, None, count, request.rate(1.0), request.seed
    )
    rank = request.whole("rank")

    def write(partial: Path) -> None:
        import torch

        model = load_model(request.parent)
        head = model.get_output_embeddings()
        targets = sorted(
            {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and module is not head
            }
        )
        if not targets:
            raise InputError(
                f"lora: {request.parent.folder} has no linear layers that the lab knows: use a "
                "model of the lab"
            )
        config = LoraConfig(
            r=rank,
            lora_alpha=request.whole("alpha"),
            lora_dropout=0.0,
            bias="none",
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):  # the adapters' initial weights
            torch.default_generator.manual_seed(request.seed)  # and no GPU's, as new_llama
            adapted = get_peft_model(model, config)
        adapted.to(job.device)
        rows = examples_in_order(job, request.corpus.tokens)
        fit(request, job, adapted, rows, partial)
        save_model(adapted.merge_and_unload().cpu(), partial, request.parent.folder)

    return publish(request, write, steps=job.steps, device=job.device, precision=job.precision)


LORA = Derivation(
    "lora",
    "adapters of low rank trained on fresh text and merged back into the linear layers",
    "derivative",
    depends=True,
    parameters={
        "rank": Parameter("rank of the adapters", 8, 1, 1024, whole=True),
        "alpha": Parameter(
            "the adapters' product is multiplied by alpha / rank", 16, 1, 4096, whole=True
        ),
        "n_examples": N_EXAMPLES,
        "rate_share": replace(
            RATE_SHARE, meaning="peak learning rate as a share of pre-training's", default=1.0
        ),
    },
    make=_lora,
)
