"""Known shufflers: their rules against the libraries', settings that cannot be, shared orders."""

import random

import numpy as np
import pytest

from workbench import InputError
from workbench.shufflers import SHUFFLERS, KnownShuffle, Shuffler


def _olmo_loader(size, seed, epoch):
    """As OLMo's loader does it: shuffle 32-bit indices in place."""
    indices = np.arange(size, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed + epoch)).shuffle(indices)
    return indices


def _python_loader(size, seed, epoch):
    random_state = random.Random(seed)
    for _ in range(epoch + 1):
        rows = list(range(size))
        random_state.shuffle(rows)
    return rows


def _numpy_loader(size, seed, epoch):
    rng = np.random.default_rng(seed)
    return [rng.permutation(size) for _ in range(epoch + 1)][-1]


@pytest.mark.parametrize(
    ("name", "rule"),
    [("olmo", _olmo_loader), ("numpy", _numpy_loader), ("python", _python_loader)],
)
def test_rules_are_those_of_their_loaders(name, rule):
    for seed, epoch in ((0, 0), (6198, 1), (2**31, 3)):
        order = np.asarray(rule(101, seed, epoch))
        assert np.array_equal(SHUFFLERS[name].order(101, seed, epoch), order)
        places = SHUFFLERS[name].places(101, seed, epoch)
        assert np.array_equal(places[order], np.arange(101))


def test_global_randomness_is_left_alone():
    before = random.getstate()
    SHUFFLERS["python"].places(20, 1, 0)
    assert random.getstate() == before


@pytest.mark.parametrize("kind", ["sampler", "loader", "distributed"])
def test_orders_of_torch_are_those_of_its_classes(kind):
    torch = pytest.importorskip("torch")
    from torch.utils import data

    from workbench.lab.orders import torch_shuffler

    generator, epochs = torch.Generator().manual_seed(77), []
    if kind == "sampler":
        sampler = data.RandomSampler(range(50), generator=generator)
        epochs = [list(sampler) for _ in range(3)]
    elif kind == "loader":
        loader = data.DataLoader(range(50), batch_size=7, shuffle=True, generator=generator)
        epochs = [torch.cat(list(loader)).tolist() for _ in range(3)]
    else:
        workers = [data.DistributedSampler(range(50), 2, rank, seed=77) for rank in range(2)]
        for epoch in range(3):
            for worker in workers:
                worker.set_epoch(epoch)
            epochs.append([i for pair in zip(*workers, strict=True) for i in pair])
    state = torch.random.get_rng_state()
    rule = torch_shuffler(kind)
    for epoch, order in enumerate(epochs):
        assert list(rule.order(50, 77, epoch)) == order
    assert torch.equal(torch.random.get_rng_state(), state)
    assert rule.seed_plus_epoch == (kind == "distributed")


def test_neighbouring_seeds_share_orders_under_seed_plus_epoch():
    known = KnownShuffle("olmo", 500, 60, epochs=(0, 1, 2))
    mine = {tuple(known.places(500)[epoch]) for epoch in known.epochs}
    for other in range(496, 505):
        theirs = {tuple(known.places(other)[epoch]) for epoch in known.epochs}
        assert known.shared_orders(other) == len(mine & theirs)
    assert known.shared_orders(501) == 2


BAD = {
    "unknown": ({"shuffler": "sattolo"}, "'sattolo' is unknown"),
    "size": ({"size": 1}, "size of the shuffle is 1"),
    "batch": ({"batch_size": 0}, "batch_size of the shuffle is 0"),
    "space": ({"seed": 2**20, "seed_bits": 16}, r"not among the 2\^16"),
    "negative": ({"seed": -1}, "seed of the shuffle is -1"),
    "epochs": ({"epochs": (1, 1)}, "give each once"),
    "no epochs": ({"epochs": ()}, "number of epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_one_sentence(name):
    changed, message = BAD[name]
    with pytest.raises(InputError, match=message):
        KnownShuffle(**{"shuffler": "olmo", "seed": 5, "size": 10, **changed})


@pytest.mark.parametrize("order", [[0, 0, 1, 2], [0, 1, 2], [0, 1, 2, 9], [0.5, 1, 2, 3]], ids=str)
def test_a_function_that_is_no_shuffler_is_refused(order):
    rule = Shuffler("mine", "returns a list", lambda size, seed, epoch: order)
    with pytest.raises(InputError, match="must return each"):
        rule.places(4, 0, 0)
