"""Batches, budgets and packed attention: bookkeeping against brute force."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from workbench.home import home  # noqa: E402
from workbench.models.attention import Layout, laid_out, packed_attention  # noqa: E402
from workbench.models.batches import TokenBudget, plan_batches, shared_prefix  # noqa: E402


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))


# ---------------------------------------------------------------- batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    budget=st.integers(1, 120),
    packed=st.booleans(),
)
def test_every_row_is_in_one_batch_under_the_budget(lengths, budget, packed):
    sizes = np.array(lengths)
    planned = plan_batches(sizes, budget, packed)
    assert sorted(np.concatenate(planned).tolist()) == list(range(len(lengths)))
    ordered = sizes[np.concatenate(planned)]
    assert (np.diff(ordered) <= 0).all()  # longest first: memory runs out at once or not at all
    for batch in planned:
        tokens = sizes[batch].sum() if packed else sizes[batch].max() * batch.size
        assert tokens <= budget or batch.size == 1
    # no two neighbours would have fitted into one batch
    for one, other in pairwise(planned):
        both = np.concatenate([one, other[:1]])
        tokens = sizes[both].sum() if packed else sizes[both].max() * both.size
        assert tokens > budget


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_shared_prefix_is_the_longest(rows):
    found = shared_prefix([np.array(row) for row in rows])
    brute = 0
    while all(len(r) > brute and r[: brute + 1] == rows[0][: brute + 1] for r in rows):
        brute += 1
    assert found == brute


# ---------------------------------------------------------------- budgets


def feed(budget: TokenBudget, rate_at: dict[int, float], batches: int = 60) -> None:
    for _ in range(batches):
        budget.record(budget.tokens, budget.tokens / rate_at.get(budget.tokens, 1.0))


def test_a_budget_is_doubled_while_that_pays_and_remembered():
    rates = {64: 10.0, 128: 18.0, 256: 25.0, 512: 25.5, 1024: 99.0}
    budget = TokenBudget(64, "key", search=True)
    feed(budget, rates)
    assert budget.tokens == 256  # 512 gained two per cent, so 1,024 was never tried
    assert not budget.searching
    again = TokenBudget(64, "key", search=True)
    assert (again.tokens, again.searching) == (256, False)
    assert TokenBudget(64, "another key").tokens == 64


def test_the_search_ends_at_its_limit():
    budget = TokenBudget(64, "key", search=True, most=256)
    feed(budget, {64: 1.0, 128: 2.0, 256: 4.0, 512: 8.0})
    assert (budget.tokens, budget.searching) == (256, False)


def test_batches_that_fill_little_of_the_budget_say_nothing():
    budget = TokenBudget(64, search=True)
    for _ in range(50):
        budget.record(20, 1.0)
    assert (budget.tokens, budget.searching) == (64, True)


def test_memory_that_ran_out_ends_the_search_and_is_remembered():
    budget = TokenBudget(64, "key", search=True)
    budget.halve(50)
    assert (budget.tokens, budget.searching) == (25, False)
    again = TokenBudget(64, "key", search=True)
    assert (again.tokens, again.searching) == (25, True)  # memory may suffice another day
    budget.halve(1)
    assert budget.tokens == 1


def test_a_search_is_settled_where_too_little_is_left_to_score():
    budget = TokenBudget(64, "key", search=True)
    feed(budget, {64: 10.0, 128: 18.0}, batches=3)
    assert (budget.tokens, budget.searching) == (128, True)
    budget.settle(10_000)
    assert budget.searching
    budget.settle(100)
    assert (budget.tokens, budget.searching) == (64, False)
    assert TokenBudget(64, "key", search=True).tokens == 64


@pytest.mark.parametrize("damage", ["", "[]", "{", json.dumps({"key": "many"})])
def test_a_damaged_memory_is_no_memory(damage):
    (home() / "budgets.json").write_text(damage)
    assert TokenBudget(64, "key").tokens == 64


# ---------------------------------------------------------------- packed attention


def reference(query, key, value, window, softcap, scaling):
    """One row: scores, cap, mask, softmax in float64, as the formulas say."""
    query, key, value = (t.double() for t in (query, key, value))
    groups = query.shape[0] // key.shape[0]
    key, value = (t.repeat_interleave(groups, dim=0) for t in (key, value))
    scores = query @ key.transpose(1, 2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    length = query.shape[1]
    for i in range(length):
        for j in range(length):
            if j > i or (window is not None and i - j >= window):
                scores[:, i, j] = float("-inf")
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("heads", [2, 1])
def test_packed_rows_attend_to_themselves_and_the_prefix(prefix, window, softcap, heads):
    lengths = [6, 6, 4, 1, 1]
    layout = Layout.of(lengths, prefix)
    total = prefix + sum(lengths)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, total, 8, generator=generator)
    key, value = (torch.randn(1, heads, total, 8, generator=generator) for _ in range(2))
    with laid_out(layout):
        found, weights = packed_attention(
            None, query, key, value, None, scaling=0.4, sliding_window=window, softcap=softcap
        )
    assert weights is None
    assert found.shape == (1, total, 2, 8)
    offsets = layout.offsets()
    assert layout.positions().tolist() == [
        *range(prefix),
        *(prefix + i for n in lengths for i in range(n)),
    ]
    for start, stop in pairwise(offsets):
        row = [*range(prefix), *range(start, stop)]
        want = reference(
            query[0][:, row], key[0][:, row], value[0][:, row], window, softcap, 0.4
        ).transpose(0, 1)
        torch.testing.assert_close(
            found[0, row[prefix:]].double(), want[prefix:], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(found[0, :prefix].double(), want[:prefix], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "odd", [{"s_aux": torch.ones(2)}, {"position_bias": torch.ones(1)}, {"is_causal": False}]
)
def test_what_packed_attention_does_not_do_is_refused(odd):
    tensors = [torch.ones(1, 2, 3, 4)] * 3
    with laid_out(Layout.of([3])), pytest.raises(NotImplementedError):
        packed_attention(None, *tensors, None, **odd)
    with pytest.raises(NotImplementedError):
        packed_attention(None, *tensors, None)  # nobody said how the rows lie
