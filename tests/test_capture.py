"""The capture notes what training saw, survives a kill, and finds a plan that was not kept."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from workbench.capture import Capture, example_digest
from workbench.capture import records as records_module
from workbench.capture.records import Mark, Records, read_records
from workbench.commitment import Commitment
from workbench.errors import InputError
from workbench.independence import query_test
from workbench.merkle import MasterSalt
from workbench.scores import Scores
from workbench.transcript import ShuffleClaim, Transcript

torch = pytest.importorskip("torch")
from torch.utils.data import (  # noqa: E402
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)


class Tokens(torch.utils.data.Dataset):
    def __init__(self, n: int = 22) -> None:
        rng = np.random.default_rng(5)
        self.rows = rng.integers(0, 50, (n, 6))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = torch.tensor(self.rows[i])
        return {"input_ids": row, "labels": row, "number": torch.tensor(i)}


class Stream(IterableDataset):
    def __init__(self, firsts=(4, 9, 4, 2)) -> None:
        self.firsts = firsts

    def __iter__(self):
        return iter(torch.tensor([k, 7]) for k in self.firsts)


class Own(DataLoader):
    def __iter__(self):
        return iter([])


def loader_of(data, seed=3, **options):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size=4, shuffle=True, generator=generator, **options)


def mark(*ids: int) -> Mark:
    return Mark(np.array(ids), b"".join(example_digest(np.array([i])) for i in ids))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_its_own_batches_and_they_are_noted(tmp_path, workers):
    data = Tokens()
    reference = loader_of(data, num_workers=workers)
    plain = [batch["number"].tolist() for _ in range(2) for batch in reference]
    capture = Capture(tmp_path / "notes")
    captured = capture.loader(loader_of(data, num_workers=workers))
    taken = [batch["number"].tolist() for _ in range(2) for batch in captured]
    assert taken == plain
    transcript = capture.finish(tmp_path / "t.parquet", examples=data)
    assert transcript.positions.tolist() == [s for s, b in enumerate(taken) for _ in b]
    assert transcript.column("example_id").tolist() == [i for b in taken for i in b]
    assert transcript.column("block").tolist() == [0] * 22 + [1] * 22
    assert set(transcript.column("exposures").tolist()) == {2}
    assert transcript.blocks == 2
    assert (transcript.kind, transcript.shuffle.seed) == ("tokens", 3)
    assert [row.tolist() for row in transcript.tokens([0])] == [data.rows[taken[0][0]].tolist()]
    # digests noted while training are those that a transcript makes of the token ids
    bare = capture.finish(tmp_path / "bare.parquet")
    assert (bare.row_digests == transcript.row_digests).all()


def test_samplers_with_replacement_accumulation_and_single_examples(tmp_path):
    data = Tokens(6)
    sampler = WeightedRandomSampler([1.0] * 6, 9, generator=torch.Generator().manual_seed(1))
    capture = Capture(tmp_path / "a")
    list(capture.loader(DataLoader(data, batch_size=2, sampler=sampler), accumulate=2))
    transcript = capture.finish(tmp_path / "a.parquet")
    assert transcript.positions.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    ids = transcript.column("example_id")
    assert transcript.column("exposures").tolist() == [(ids == i).sum() for i in ids]
    batches = [[5, 0], [2]]  # a batch sampler that is somebody's own
    own = Capture(tmp_path / "c")
    list(own.loader(DataLoader(data, batch_sampler=batches)))
    listed = own.finish(tmp_path / "c.parquet")
    assert listed.column("example_id").tolist() == [5, 0, 2]
    assert (listed.shuffle.kind, listed.shuffle.seed) == ("unknown", None)
    single = Capture(tmp_path / "b", plans=True)
    seen = [item["number"].item() for item in single.loader(DataLoader(data, batch_size=None))]
    whole = single.finish(tmp_path / "b.parquet")
    assert whole.column("example_id").tolist() == seen
    assert whole.shuffle.kind == "natural"  # a loader that does not shuffle says so


def test_examples_of_a_stream_are_known_by_content(tmp_path):
    capture = Capture(tmp_path / "s")
    list(capture.loader(DataLoader(Stream(), batch_size=2)))
    transcript = capture.finish(tmp_path / "s.parquet")
    assert transcript.column("exposures").tolist() == [2, 1, 2, 1]
    with pytest.raises(InputError, match="a stream is not known before"):
        Capture(tmp_path / "p", plans=True).loader(DataLoader(Stream()))


def claims_of(tmp_path, *loaders) -> tuple[str, int | None]:
    """Kind and seed of the claim of a run with these loaders, in memory and read again."""
    capture = Capture(tmp_path / "notes")
    for loader in loaders:
        list(capture.loader(loader))
    made = capture.finish(tmp_path / "t.parquet").shuffle
    assert Transcript.read(tmp_path / "t.parquet").shuffle == made
    return made.kind, made.seed


def distributed(shuffle: bool) -> DataLoader:
    sampler = DistributedSampler(range(22), num_replicas=1, rank=0, shuffle=shuffle, seed=9)
    return DataLoader(Tokens(), batch_size=4, sampler=sampler)


@pytest.mark.parametrize(
    ("kind", "seed", "loaders"),
    [
        ("owner", 3, lambda: [loader_of(Tokens())]),
        ("owner", 9, lambda: [distributed(True)]),
        ("natural", None, lambda: [distributed(False)]),
        ("natural", None, lambda: [DataLoader(Tokens(), batch_size=4)]),
        ("unknown", None, lambda: [DataLoader(Stream(), batch_size=2)]),
        ("unknown", None, lambda: [DataLoader(Tokens(), batch_size=2, sampler=[3, 1, 2])]),
        ("natural", None, lambda: [loader_of(Tokens()), DataLoader(Tokens(), batch_size=4)]),
        ("owner", None, lambda: [loader_of(Tokens()), loader_of(Tokens(), seed=4)]),
    ],
)
def test_only_a_loader_that_is_known_to_shuffle_is_said_to(tmp_path, kind, seed, loaders):
    assert claims_of(tmp_path, *loaders()) == (kind, seed)


def test_a_sampler_of_another_library_is_not_known_to_shuffle_all(tmp_path):
    class Backwards(RandomSampler):
        def __iter__(self):
            return iter(range(len(self.data_source) - 1, -1, -1))

    data = Tokens()
    samplers = [Backwards(data)]
    if find_spec("transformers"):
        from transformers.trainer_pt_utils import DistributedLengthGroupedSampler

        samplers.append(
            DistributedLengthGroupedSampler(4, data, 1, 0, lengths=list(range(len(data))))
        )
    for number, sampler in enumerate(samplers):
        loader = DataLoader(data, batch_size=4, sampler=sampler)
        assert claims_of(tmp_path / str(number), loader)[0] == "unknown"


@pytest.mark.parametrize("buffer", [None, 8])
def test_a_stream_of_the_library_datasets_is_of_unknown_order(tmp_path, buffer):
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": Tokens(64).rows.tolist()}
    stream = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=4)
    if buffer:
        stream = stream.shuffle(seed=3, buffer_size=buffer)
    assert claims_of(tmp_path, DataLoader(stream, batch_size=4, collate_fn=list))[0] == "unknown"


def test_a_natural_order_is_no_evidence_however_it_was_captured(tmp_path):
    rng, n = np.random.default_rng(0), 200
    loaders = {
        "map": DataLoader(Tokens(n), batch_size=4),
        "stream": DataLoader(Stream(np.arange(n)), batch_size=4, collate_fn=list),
    }
    for name, loader in loaders.items():
        capture = Capture(tmp_path / name)
        list(capture.loader(loader))
        capture.finish(tmp_path / f"{name}.parquet")
        read = Transcript.read(tmp_path / f"{name}.parquet")
        harder = Scores.from_arrays(loglik=np.arange(n) / n + rng.normal(0, 0.3, n))
        assert query_test(read, harder, n_resamples=999).verdict == "not valid"


def test_notes_without_a_loader_claim_nothing(tmp_path):
    capture = Capture(tmp_path / "notes", rank=0, world_size=1)
    capture.record([mark(1, 0)])
    capture.record([mark(2)])
    assert capture.finish(tmp_path / "t.parquet").shuffle == ShuffleClaim()
    said = capture.finish(tmp_path / "u.parquet", shuffle="owner").shuffle
    assert said == Transcript.read(tmp_path / "u.parquet").shuffle == ShuffleClaim("owner")


def test_what_cannot_be_captured_is_refused(tmp_path):
    capture = Capture(tmp_path / "s")
    with pytest.raises(InputError, match=r"list is no torch.utils.data.DataLoader"):
        capture.loader([1])
    with pytest.raises(InputError, match="a Own makes its batches in its own way"):
        capture.loader(Own(Tokens()))
    with pytest.raises(InputError, match="in_order=False"):
        capture.loader(DataLoader(Tokens(), num_workers=1, in_order=False))
    with pytest.raises(InputError, match=r"fields pixels: say where they are with content="):
        list(capture.loader(DataLoader([{"pixels": 1}])))
    with pytest.raises(InputError, match="rank 2 of 2"):
        Capture(tmp_path / "r", rank=2, world_size=2)
    with pytest.raises(InputError, match="no notes"):
        Capture(tmp_path / "empty").finish(tmp_path / "t.parquet")


def test_the_plan_is_committed_before_the_first_batch_and_is_that_of_the_transcript(tmp_path):
    data, events = Tokens(), []
    capture = Capture(tmp_path / "n", plans=True, on_plan=events.append)
    capture.contents = capture.digests_of(data)
    for batch in capture.loader(loader_of(data)):
        events.append(batch["number"].tolist())
    plan = events[0]
    assert (plan.epoch, plan.rows) == (0, 22)
    assert Commitment.read(plan.path).sha256 == plan.sha256
    assert capture.check() == 6
    transcript = capture.finish(tmp_path / "t.parquet", examples=data)
    assert transcript.positions.tolist() == capture.plan(0).positions.tolist()
    # committed with its content, the plan is the finished transcript itself
    assert capture.plan(0, data).fingerprint == transcript.fingerprint
    made = capture.commit(capture.plan(0, data), tmp_path / "c.json", tmp_path / "salt")
    assert made.transcript.fingerprint == transcript.fingerprint
    made.check_salt(MasterSalt.read(tmp_path / "salt"))
    with pytest.raises(InputError, match="never replaced"):
        capture.commit(transcript, tmp_path / "c.json", tmp_path / "other")


def test_what_was_not_planned_is_found(tmp_path):
    data = Tokens()
    capture = Capture(tmp_path / "n", plans=True)
    batches = iter(capture.loader(loader_of(data)))
    next(batches)
    capture.record([mark(1, 2)])  # somebody trains on what was not planned
    with pytest.raises(InputError, match=r"not what was committed: in epoch 0, batch [01] of"):
        capture.check()


def test_a_plan_whose_file_was_changed_is_found(tmp_path):
    capture = Capture(tmp_path / "n", plans=True)
    list(capture.loader(loader_of(Tokens())))
    other = Capture(tmp_path / "m", plans=True)
    list(other.loader(loader_of(Tokens(), seed=4)))
    for name in ("plan-00000.parquet",):
        swapped = (tmp_path / "m/rank-00000" / name).read_bytes()
        (tmp_path / "n/rank-00000" / name).write_bytes(swapped)
    for piece in (tmp_path / "n/rank-00000").glob("steps-*"):
        piece.write_bytes((tmp_path / "m/rank-00000" / piece.name).read_bytes())
    with pytest.raises(InputError, match="the plan of epoch 0 is not the committed one"):
        capture.check()


def test_a_resumed_run_goes_on_and_never_doubles(tmp_path):
    data = Tokens()
    straight = Capture(tmp_path / "straight")
    list(straight.loader(loader_of(data)))
    broken = Capture(tmp_path / "broken", plans=True, every_steps=2)
    for step, _ in enumerate(broken.loader(loader_of(data))):
        if step == 4:
            break
    broken.flush()
    again = Capture(tmp_path / "broken", plans=True)
    with pytest.raises(InputError, match=r"has notes of a run: call resume"):
        again.record([mark(0)])
    with pytest.raises(InputError, match="end after 5 steps, and training resumes at step 9"):
        again.resume(9)
    again.resume(3, skip=True)  # inside a piece, before where the notes end
    assert len(list(again.loader(loader_of(data)))) == 3
    one, other = (
        c.finish(tmp_path / f"{i}.parquet", examples=data) for i, c in enumerate((straight, again))
    )
    assert one.fingerprint == other.fingerprint
    # with another seed the epoch would not be the committed one
    wrong = Capture(tmp_path / "broken", plans=True)
    wrong.resume(2, skip=True)
    with pytest.raises(InputError, match="epoch 0 is not drawn as it was committed, from batch 0"):
        list(wrong.loader(loader_of(data, seed=8)))


def test_pieces_are_joined_and_covered_ones_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "JOINED", 4)
    notes = Records(tmp_path, every_steps=1)
    for step in range(30):
        notes.add(step, 0, step, mark(step, step + 100))
    notes.flush()
    assert len(list(tmp_path.glob("steps-*"))) < 12
    old = Records(tmp_path)  # as a kill between joining and removing leaves it
    table = read_records(tmp_path)
    old._write(table.slice(0, 2))
    assert read_records(tmp_path).column("step").to_pylist() == [s for s in range(30) for _ in "ab"]
    old.keep_before(17)
    assert read_records(tmp_path).column("step").to_numpy()[-1] == 16
    damaged = next(tmp_path.glob("steps-*"))
    damaged.write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        read_records(tmp_path)


def test_processes_are_merged_by_step(tmp_path):
    parts = [Capture(tmp_path / "n", rank=r, world_size=2) for r in range(2)]
    for step in range(3):
        for rank, part in enumerate(parts):
            part.record([mark(10 * step + rank)])
    parts[0].flush()
    with pytest.raises(InputError, match="process 1 of 2 has no notes"):
        parts[0].finish(tmp_path / "t.parquet")
    parts[1].flush()
    whole = parts[0].finish(tmp_path / "t.parquet")
    assert whole.column("example_id").tolist() == [0, 1, 10, 11, 20, 21]
    assert whole.positions.tolist() == [0, 0, 1, 1, 2, 2]
    parts[1].record([mark(99)])
    parts[1].flush()
    with pytest.raises(InputError, match=r"different steps .* resume them all at step 3"):
        parts[0].finish(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="run of 2 processes, and this has 1"):
        Capture(tmp_path / "n")


def test_other_data_than_was_trained_on_is_found(tmp_path):
    capture, data = Capture(tmp_path / "n"), Tokens()
    list(capture.loader(loader_of(data)))
    data.rows[7, 2] += 1
    with pytest.raises(InputError, match="example 7 is not what was trained on"):
        capture.finish(tmp_path / "t.parquet", examples=data)


KILLED = """
import sys, time
import numpy as np
from workbench.capture import Capture, example_digest
from workbench.capture.records import Mark
capture = Capture(sys.argv[1], every_steps=10, every_seconds=60)
capture.begin_epoch(0)
for step in range(10**9):
    capture.record([Mark(np.array([step]), example_digest(np.array([step])))])
    if step == 200:
        print("under way", flush=True)
    time.sleep(0.0005)
"""


def test_a_kill_loses_only_what_was_not_due(tmp_path):
    folder = tmp_path / "n"
    root = Path(__file__).resolve().parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "RANK": "0", "WORLD_SIZE": "1"},
    )
    assert child.stdout.readline().strip() == "under way"
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    steps = read_records(folder / "rank-00000").column("step").to_pylist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 190
    capture = Capture(folder, rank=0, world_size=1)
    capture.resume(150)
    for step in range(150, 160):
        capture.record([mark(step)])
    whole = capture.finish(tmp_path / "t.parquet")
    assert whole.column("example_id").tolist() == list(range(160))
    about = json.loads((folder / "rank-00000/capture.json").read_text())
    assert about["world_size"] == 1


@pytest.fixture(scope="module")
def trainer_of(one_thread):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=50,
    )  # fmt: skip

    def make(folder, seen, **options):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2,
            num_train_epochs=2, save_steps=4, report_to=[], disable_tqdm=True, use_cpu=True,
            logging_strategy="no", dataloader_pin_memory=False, seed=11, **options,
        )  # fmt: skip
        trainer = transformers.Trainer(
            transformers.LlamaForCausalLM(config), arguments, train_dataset=Tokens()
        )
        step = trainer.training_step

        def noting(model, inputs, *others):
            seen.append(inputs["input_ids"].tolist())
            return step(model, inputs, *others)

        trainer.training_step = noting
        return trainer

    return make


def test_a_trainer_is_followed_and_resumed(tmp_path, trainer_of):
    data, seen, plain = Tokens(), [], []
    trainer = trainer_of(tmp_path / "run", seen)
    capture = Capture(tmp_path / "notes", plans=True)
    capture.follow(trainer)
    trainer.train()
    whole = capture.finish(tmp_path / "t.parquet", examples=data)
    assert [row.tolist() for row in whole.tokens()] == [row for batch in seen for row in batch]
    # 11 batches an epoch, two a step and one left over
    assert whole.positions.max() == trainer.state.global_step - 1 == 11
    assert whole.blocks == 2
    assert capture.check() == 22
    assert (whole.shuffle.kind, whole.shuffle.seed) == ("owner", 11)
    trainer_of(tmp_path / "plain", plain).train()
    assert plain == seen  # the capture changes nothing
    resumed = trainer_of(tmp_path / "run", [])
    again = Capture(tmp_path / "notes", plans=True)
    again.follow(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    same = again.finish(tmp_path / "u.parquet", examples=data)
    assert same.fingerprint == whole.fingerprint
    assert not list((tmp_path / "notes").rglob("*.p[kt]*l*"))


@pytest.mark.parametrize(
    ("strategy", "kind"), [("sequential", "natural"), ("group_by_length", "unknown")]
)
def test_a_trainer_that_does_not_shuffle_all_is_not_said_to(tmp_path, trainer_of, strategy, kind):
    try:
        trainer = trainer_of(tmp_path / "run", [], train_sampling_strategy=strategy)
    except TypeError:
        pytest.skip("this version of transformers has no train_sampling_strategy")
    capture = Capture(tmp_path / "notes")
    capture.follow(trainer)
    trainer.train()
    capture.finish(tmp_path / "t.parquet", examples=Tokens())
    assert Transcript.read(tmp_path / "t.parquet").shuffle.kind == kind


def test_a_trainer_that_hands_out_from_one_process_is_refused(tmp_path, trainer_of):
    trainer = trainer_of(tmp_path / "run", [], accelerator_config={"dispatch_batches": True})
    with pytest.raises(InputError, match="dispatch_batches"):
        Capture(tmp_path / "n").follow(trainer)


def test_lightning_takes_batches_ahead(tmp_path, monkeypatch):
    """A stub of its loop: one batch is fetched before the one before it is trained on."""
    capture = Capture(tmp_path / "n")
    if not any(map(find_spec, ("lightning", "pytorch_lightning"))):
        with pytest.raises(InputError, match="Lightning is not installed"):
            capture.lightning()
        package, pytorch = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
        package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        pytorch.Callback = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lightning", package)
        monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    callback, state = capture.lightning(), types.SimpleNamespace(global_step=0)
    callback.on_train_start(state, None)
    loader = capture.loader(loader_of(Tokens()), ahead=True)
    batches, used = iter(loader), []
    ahead = next(batches)
    while ahead is not None:
        batch, ahead = ahead, next(batches, None)
        callback.on_train_batch_start(state, None, batch, len(used))
        used += batch["number"].tolist()
        state.global_step += 1
        callback.on_train_batch_end(state, None, None, batch, len(used))
    callback.on_train_epoch_end(state, None)
    callback.on_train_end(state, None)
    whole = capture.finish(tmp_path / "t.parquet")
    assert whole.column("example_id").tolist() == used
    assert isinstance(Transcript.read(tmp_path / "t.parquet"), Transcript)
    with pytest.raises(InputError, match="ahead=True"):
        callback.on_train_batch_end(state, None, None, None, 0)
