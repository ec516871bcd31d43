"""What a query costs: requests, tokens and time for one example scored."""

from dataclasses import dataclass

__all__ = ["QueryCost"]


@dataclass(frozen=True)
class QueryCost:
    """What one query (one example scored) costs; all numbers per query but the fixed ones.

    Attributes
    ----------
    prompts, requests : float
        Prompts, and the requests that carry them.
    prompt_tokens, completion_tokens : float
        As the endpoint counts them, or as estimated.
    seconds : float, optional
        Of waiting, at the pilot's concurrency; None if nothing was measured.
    fixed_requests : float
        Per run: probes of truth and steadiness, repeated failures.
    source : str
        Measured on what, or estimated how.
    """

    prompts: float = 1.0
    requests: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    seconds: float | None = None
    fixed_requests: float = 0.0
    source: str = "given"
