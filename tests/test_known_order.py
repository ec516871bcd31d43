"""The null of fresh seeds: uniform where seeds were drawn, and refused or flagged where not."""

import numpy as np
import pytest
from scipy import stats

from workbench import InputError, Scores, ShuffleClaim, Transcript, query_test
from workbench.independence import QueryCase
from workbench.known_order import redraws, regenerated
from workbench.lab import open_run
from workbench.null import redrawn_null
from workbench.shufflers import KnownShuffle, Shuffler, lab_seed
from workbench.transcript import digest_fingerprint

BITS = 20


def _nearby(size, seed, epoch):
    """A shuffle through a small buffer: examples stay near where they were."""
    rng = np.random.default_rng([seed, epoch])
    return np.argsort(np.arange(size) + rng.uniform(0, size / 4, size), kind="stable")


BUFFER = Shuffler("buffer", "a buffer of a quarter of the data", _nearby)


def _plain(rng, seed):
    known = KnownShuffle("olmo", seed, 60, seed_bits=BITS)
    return known, Transcript.from_arrays(known.places(seed)[0]), rng.normal(size=60)


def _steps_of_a_subset(rng, seed):
    """Forty of ninety examples, whose positions are steps of eight."""
    items = rng.permutation(90)[:40]
    known = KnownShuffle("python", seed, 90, batch_size=8, seed_bits=BITS, items=items)
    return known, Transcript.from_arrays(known.places(seed)[0][items]), rng.standard_cauchy(40)


def _two_epochs(rng, seed):
    """Both exposures of each example; scores of an example are alike, the second higher."""
    items, epoch = np.tile(np.arange(40), 2), np.repeat([0, 1], 40)
    known = KnownShuffle(
        "olmo", seed, 40, epochs=(0, 1), seed_bits=BITS, items=items, epoch_of_row=epoch
    )
    places = known.places(seed)
    positions = np.concatenate([places[0], 40 + places[1]])
    scores = np.tile(rng.normal(size=40), 2) + 3 * epoch + 0.2 * rng.normal(size=80)
    return known, Transcript.from_arrays(positions, blocks=epoch), scores


def _documents(rng, seed):
    """Documents of unequal length moved whole; longer ones score higher."""
    sizes = rng.integers(1, 6, 30)
    items = np.repeat(np.arange(30), sizes)
    known = KnownShuffle("numpy", seed, 30, seed_bits=BITS, items=items)
    place = known.places(seed)[0]
    start = np.empty(30, dtype=np.int64)
    start[np.argsort(place)] = np.concatenate([[0], np.cumsum(sizes[np.argsort(place)])[:-1]])
    positions = start[items] + np.concatenate([np.arange(size) for size in sizes])
    scores = (rng.normal(size=30) + sizes)[items]
    return known, Transcript.from_arrays(positions, units=items), scores


def _buffered(rng, seed):
    """Topics drift along the data set, and the shuffler keeps examples near their place."""
    known = KnownShuffle(BUFFER, seed, 60, seed_bits=BITS)
    scores = np.linspace(0, 2, 60) + rng.normal(size=60)
    return known, Transcript.from_arrays(known.places(seed)[0]), scores


NULLS = {
    "plain": _plain,
    "steps of a subset": _steps_of_a_subset,
    "two epochs": _two_epochs,
    "documents": _documents,
    "buffered": _buffered,
}


@pytest.mark.parametrize("name", NULLS)
def test_pvalues_are_uniform_where_seeds_were_drawn(name):
    rng = np.random.default_rng([61, *name.encode()])
    drawn = []
    for trial in range(150):
        known, transcript, scores = NULLS[name](rng, int(rng.integers(2**BITS)))
        null = redrawn_null(
            [transcript.design], [[scores]], redraws(transcript, known), 39, seed=trial
        )[0][0]
        drawn.append(null.pvalue_randomised(rng))
    assert stats.kstest(drawn, "uniform").pvalue > 0.001 / len(NULLS)
    rejected = int((np.array(drawn) <= 0.05).sum())
    assert stats.binomtest(rejected, 150, 0.05, "greater").pvalue > 0.001 / len(NULLS)


def test_a_poor_shuffler_needs_its_own_null():
    """The wrong way: permuting what a small buffer kept in place rejects every null."""
    rng = np.random.default_rng(62)
    known, transcript, scores = _buffered(rng, 12345678 % 2**BITS)
    suspect = Scores.from_arrays(loglik=scores)
    careless = query_test(transcript, suspect, n_resamples=999)
    right = query_test(transcript, suspect, n_resamples=999, null=known)
    assert careless.pvalue == 0.001
    assert right.pvalue > 0.001


def test_memory_is_found_with_fresh_seeds_too():
    rng = np.random.default_rng(63)
    known = KnownShuffle("olmo", 918273, 300, seed_drawn=True)
    place = known.places(known.seed)[0]
    transcript = Transcript.from_arrays(
        place,
        shuffle=ShuffleClaim("owner", seed=918273, source="a loader"),
    )
    easy = rng.normal(size=300)
    suspect, reference, placebo = (
        Scores.from_arrays(loglik=easy + m * place / 300 + 0.3 * rng.normal(size=300), name=name)
        for name, m in (("suspect", 1.0), ("reference", 0.0), ("placebo", 0.0))
    )
    found = query_test(
        transcript, suspect, [reference], n_resamples=999, null=known, placebos=[placebo]
    )
    assert found.verdict == "evidence"
    assert found.pvalue == 0.001
    assert "999 fresh seeds of the shuffler 'olmo'" in found.summary()
    assert "by the owner's shuffler" in found.asymptotic_text
    assert "had the seed been chosen, p would count times 2^32" in found.summary()
    best = query_test(
        transcript, suspect, [reference], "max(spearman, residual)", n_resamples=199, null=known
    )
    assert best.pvalue == 0.005
    keys = {
        QueryCase(transcript, suspect, (), {"null": null}).key
        for null in ("permutation", known, KnownShuffle("olmo", 918273, 300, seed_bits=40))
    }
    assert len(keys) == 3


def test_the_recorded_run_by_its_own_shuffler():
    """Real scores: the order is regenerated from its seed, and z is that of permutations."""
    run = open_run("recorded")
    rows = np.random.default_rng(67).choice(run.transcript.n, 1500, replace=False)
    part = run.transcript.take(rows)
    seed = lab_seed(run.provenance["recipe"]["seed"], 0)
    known = KnownShuffle("lab", seed, run.transcript.n, seed_drawn=True)
    reference = run.scores("reference-other").take(rows)
    for name in ("derivative", "independent"):
        suspect = run.scores(name).take(rows)
        fresh, permuted = (
            query_test(part, suspect, [reference], n_resamples=399, null=null)
            for null in (known, "permutation")
        )
        # the standard deviation of 399 draws is off by 3.5 %
        assert fresh.z == pytest.approx(permuted.z, rel=0.15, abs=0.25)
        assert (fresh.pvalue == fresh.pvalue_floor) == (name == "derivative")
    other = KnownShuffle("lab", run.transcript.shuffle.seed + 1, run.transcript.n)
    with pytest.raises(InputError, match="rows differ in rank"):
        redraws(part, other)


def _digests(size):
    return np.random.default_rng(68).integers(0, 256, (size, 16)).astype(np.uint8)


DATA = digest_fingerprint(_digests(50))


def _gate(known, claim=None):
    rng = np.random.default_rng(64)
    items = np.arange(known.size) if known.items is None else known.items
    place = known.places(known.seed)[0][items]
    digests = _digests(known.size)[items]
    transcript = Transcript.from_arrays(place, digests=digests, shuffle=claim)
    suspect = Scores.from_arrays(loglik=rng.normal(size=len(place)))
    found = query_test(transcript, suspect, n_resamples=19, null=known)
    return next(gate for gate in found.gates if gate.name == "known shuffler")


def test_what_makes_fresh_seeds_exact_is_said():
    for name, status in {"numpy": "verified", "olmo": "declared"}.items():
        public = ShuffleClaim("public_randomness", shuffler=name, size=50, randomness="5f3a",
                              beacon_round="round 7", data_sha256=DATA)  # fmt: skip
        found = _gate(public.known(1), public)
        assert found.status == status
        assert ("neighbouring seeds share orders" in found.detail) == (name == "olmo")
    items = np.arange(50)
    given = _gate(KnownShuffle("numpy", public.known(1).seed, 50, items=items), public)
    assert given.status == "declared"
    assert "by numbers of one's own choice any order can be made again" in given.detail
    owner = _gate(KnownShuffle("numpy", 918273, 50, seed_drawn=True))
    assert owner.status == "declared"
    assert "is declared by the owner and not verified here" in owner.detail
    chosen = _gate(KnownShuffle("numpy", 918273, 2000, seed_drawn=True, settings=6))
    assert "p would count times 2^32 × 6 (by the normal tail" in chosen.detail
    assert "nobody says" in _gate(KnownShuffle("numpy", 918273, 50)).detail
    for seed in (0, 42, 1234):
        habitual = _gate(KnownShuffle("numpy", seed, 50, seed_drawn=True), public)
        assert habitual.status == "declared"
        assert "no draw from 2^32" in habitual.detail
    cut = KnownShuffle("numpy", 918273, 50, divisor=8, drop_last=True, items=np.arange(40))
    assert "only 2^8 seeds" in _gate(KnownShuffle("numpy", 200, 50, seed_bits=8), public).detail
    assert "2 example(s) an epoch were cut off" in _gate(cut, public).detail


def test_a_shuffler_that_gives_every_epoch_one_order_is_drawn_whole():
    """Permuting block by block would be wrong; fresh seeds repeat the order as the loader did."""
    once = Shuffler(
        "once",
        "one order for every epoch",
        lambda size, seed, _: np.random.default_rng(seed).permutation(size),
    )
    items, epoch = np.tile(np.arange(50), 4), np.repeat(np.arange(4), 50)
    known = KnownShuffle(
        once, 777, 50, epochs=range(4), seed_bits=BITS, items=items, epoch_of_row=epoch
    )
    place = known.places(777)[0]
    transcript = Transcript.from_arrays(
        50 * epoch + place[items],
        blocks=epoch,
        digests=np.tile(
            np.random.default_rng(8).integers(0, 256, (50, 16)).astype(np.uint8), (4, 1)
        ),
        shuffle="owner",
    )
    loglik = np.random.default_rng(9).normal(size=50) + 0.9 * place / 50
    suspect = Scores.from_arrays(loglik=np.tile(loglik, 4))
    careless, right = (
        query_test(transcript, suspect, n_resamples=999, null=null)
        for null in ("permutation", known)
    )
    assert "ran through one and the same order" in careless.verdict_reason
    assert next(gate for gate in right.gates if gate.number == 2).status == "verified"
    assert careless.pvalue < right.pvalue


def test_another_order_is_refused():
    rng = np.random.default_rng(65)
    known, transcript, _ = _plain(rng, 777)
    assert np.array_equal(regenerated(transcript, known), transcript.positions)
    for other in (
        KnownShuffle("olmo", 778, 60),
        KnownShuffle("python", 777, 60),
        KnownShuffle("olmo", 777, 61),
        KnownShuffle("olmo", 777, 60, epochs=(1,)),
        KnownShuffle("olmo", 777, 60, batch_size=4),
    ):
        with pytest.raises(InputError, match=r"puts row \d+ at .* check seed"):
            redraws(transcript, other)
    # what does not matter to a test of ranks: positions counted from another number
    redraws(Transcript.from_arrays(transcript.positions * 8 + 1000), known)
    # a part of the rows keeps its own order
    redraws(transcript.subsample(20, 0), known)


def test_rows_that_no_shuffle_can_place_are_refused():
    rng = np.random.default_rng(66)
    known, transcript, _ = _two_epochs(rng, 777)
    with pytest.raises(InputError, match="size of the whole data set"):
        redraws(transcript, KnownShuffle("olmo", 777, 30, items=known.items))
    with pytest.raises(InputError, match="give epoch_of_row"):
        redraws(transcript, KnownShuffle("olmo", 777, 40, epochs=(0, 1), items=known.items))
    pooled = Transcript.from_arrays(transcript.positions)
    with pytest.raises(InputError, match="a block of its own"):
        redraws(pooled, known)
    with pytest.raises(InputError, match="name all epochs"):
        redraws(
            transcript,
            KnownShuffle("olmo", 777, 40, items=known.items, epoch_of_row=known.epoch_of_row),
        )
    with pytest.raises(InputError, match="one whole number per row"):
        redraws(transcript, KnownShuffle("olmo", 777, 40, items=np.arange(5)))
    known, transcript, _ = _documents(rng, 777)
    with pytest.raises(InputError, match="needs items"):
        redraws(transcript, KnownShuffle("numpy", 777, 30))
    loose = Transcript.from_arrays(transcript.positions)
    with pytest.raises(InputError, match="one unit is one example"):
        redraws(loose, known)
    with pytest.raises(InputError, match="takes a KnownShuffle"):
        query_test(transcript, Scores.from_arrays(loglik=rng.normal(size=transcript.n)), null="x")
