"""Recordings: a replay repeats the run that made it to the bit, and what does not fit is refused with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lanewise.errors import UsageError
from lanewise.lane.schema import Lane
from lanewise.models.layers import SKIPPED_ID
from lanewise.receipts.schema import RunReceipt, Warmup
from lanewise.receipts.store import Store
from lanewise.train.routing import RoutingReader, describe
from lanewise.train.routing_receipt import IDS_DIGEST_KEY
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request

CPU = torch.device("cpu")
STEPS = 4


def lane(mode: str = "learned", **changes: Any) -> Lane:
    settings: dict[str, Any] = {
        "model__pattern": "EMER",
        "model__moe__real_slot_ratio": 0.5,
        "batch__gradient_accumulation_steps": 2,
        "batch__micro_batch_size": 1,
        **changes,
    }
    return micro_lane(model__moe__routing_mode=mode, **settings)


def train(
    folder: Path, store: str, lane: Lane, **fields: Any
) -> tuple[RunReceipt, tuple[Any, ...]]:
    """Receipt and losses of a run."""
    request = micro_request(
        folder, lane, **{"steps": STEPS, "store_root": str(folder / store), **fields}
    )
    assert request.steps is not None
    run = Run(request)
    while run.next_step < request.steps:
        run.step()
    run.save_checkpoint()
    finished = run.finish(warmup=Warmup(rule="given", steps=1, steady=True, reason="given"))
    steps = Store(request.store_root).read_steps(finished.receipt.receipt_id)
    assert steps is not None
    return finished.receipt, (steps.loss, steps.grad_norm)


def reader(folder: Path, receipt: RunReceipt) -> RoutingReader:
    return RoutingReader(str(folder), describe(lane("replayed"), receipt.data_digest))


@pytest.fixture(scope="module", name="recorded")
def recorded_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReceipt]:
    """A recording of `lane()`, and the receipt of the run that made it."""
    folder = tmp_path_factory.mktemp("recorded")
    receipt, _ = train(folder, "a", lane(), record_routing=str(folder / "routing"))
    return folder / "routing", receipt


@pytest.fixture(name="recording")
def recording_fixture(recorded: tuple[Path, RunReceipt], tmp_path: Path) -> Path:
    """An own copy of that recording."""
    return Path(shutil.copytree(recorded[0], tmp_path / "routing"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__moe__real_slot_ratio": 1.0, "model__moe__bias_update_rate": 0.1},
        {"model__moe__score_function": "softmax", "model__moe__bias_update": "ema"},
    ],
)
def test_replaying_a_recording_repeats_the_run_to_the_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = str(tmp_path / "routing")
    recorded, losses = train(tmp_path, "a", lane(**changes), record_routing=folder)
    replayed, again = train(tmp_path, "b", lane("replayed", **changes), replay_routing=folder)
    assert again == losses
    assert recorded.routing is not None
    assert replayed.routing is not None
    assert (recorded.routing.mode, replayed.routing.mode) == ("learned", "replayed")
    assert replayed.flops.routing_mode == "replayed"
    assert recorded.routing.expert_picks is not None
    assert replayed.routing == recorded.routing.model_copy(update={"mode": "replayed"})
    digests = [receipt.extensions[IDS_DIGEST_KEY] for receipt in (recorded, replayed)]
    assert digests[0] == digests[1]


def test_recording_changes_nothing(tmp_path: Path) -> None:
    _, plain = train(tmp_path, "a", lane())
    receipt, losses = train(tmp_path, "b", lane(), record_routing=str(tmp_path / "routing"))
    assert losses == plain
    assert IDS_DIGEST_KEY in receipt.extensions


def test_other_weights_follow_the_same_routing(tmp_path: Path) -> None:
    """What replay is for: arms that differ share their experts' work."""
    folder = str(tmp_path / "routing")
    recorded, losses = train(tmp_path, "a", lane(), record_routing=folder)
    other = lane("replayed", seed=7)
    replayed, others = train(tmp_path, "b", other, replay_routing=folder)
    assert others != losses
    assert replayed.extensions[IDS_DIGEST_KEY] == recorded.extensions[IDS_DIGEST_KEY]


def test_tokens_that_skip_the_block_are_recorded_and_no_null_picks(tmp_path: Path) -> None:
    folder = str(tmp_path / "routing")
    kept = {"model__depth_routing__num_first_layers_kept": 0, "model__moe__real_slot_ratio": 1.0}
    features = {"features": {"depth_routing": "on"}}
    recorded, losses = train(tmp_path, "a", lane(**kept), record_routing=folder, **features)
    replayed, again = train(
        tmp_path, "b", lane("replayed", **kept), replay_routing=folder, **features
    )
    assert again == losses
    assert recorded.routing is not None
    assert replayed.routing == recorded.routing.model_copy(update={"mode": "replayed"})
    assert recorded.routing.null_ratio == 0.0
    with np.load(tmp_path / "routing" / "step-00000000.npz") as stored:
        assert (stored["layer_0"] == SKIPPED_ID).any()
    # Followed without depth routing, tokens that skipped would silently visit no expert.
    with pytest.raises(UsageError, match="state of the feature depth_routing: it has True, this"):
        train(tmp_path, "c", lane("replayed", **kept), replay_routing=folder)


def test_files_are_small_and_hold_every_pick(recording: Path) -> None:
    names = sorted(path.name for path in recording.iterdir())
    assert names == ["routing.json", *(f"step-{step:08d}.npz" for step in range(STEPS))]
    with np.load(recording / names[1]) as stored:
        assert sorted(stored) == ["layer_0", "layer_1"]
        for layer in stored.values():
            assert layer.dtype == np.int8
            assert layer.shape == (2, 10, 4)  # micro-batches, tokens, picks
            assert layer.min() == -1
            assert layer.max() < 4


def test_a_profiled_step_is_neither_recorded_nor_read(tmp_path: Path) -> None:
    folder = tmp_path / "routing"
    recorded, _ = train(tmp_path, "a", lane(), record_routing=str(folder), measure_memory=True)
    assert len(list(folder.glob("*.npz"))) == STEPS
    replayed, _ = train(
        tmp_path, "b", lane("replayed"), replay_routing=str(folder), measure_memory=True
    )
    assert replayed.memory.peak_allocated_bytes is not None
    assert replayed.extensions[IDS_DIGEST_KEY] == recorded.extensions[IDS_DIGEST_KEY]


def test_a_resumed_run_goes_on_with_its_recording(tmp_path: Path) -> None:
    folder = str(tmp_path / "routing")
    checkpoints = {"checkpoint_dir": str(tmp_path / "c"), "record_routing": folder}
    train(tmp_path, "a", lane(), steps=2, **checkpoints)
    with pytest.raises(UsageError, match="already holds a recording"):
        train(tmp_path, "a", lane(), steps=2, record_routing=folder)
    train(tmp_path, "a", lane(), steps=STEPS, resume=True, **checkpoints)
    _, whole = train(tmp_path, "b", lane())
    _, replayed = train(tmp_path, "c", lane("replayed"), replay_routing=folder)
    assert replayed == whole


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_resumed_run_goes_on_with_the_average_load_error(tmp_path: Path, ratio: float) -> None:
    """The bias of `ema` hangs on all loads so far, so the average must be in the checkpoint."""
    changed = lane(
        model__moe__real_slot_ratio=ratio,
        model__moe__bias_update="ema",
        model__moe__bias_update_rate=0.1,
    )
    checkpoints = {"checkpoint_dir": str(tmp_path / "c")}
    train(tmp_path, "a", changed, steps=2, **checkpoints)
    train(tmp_path, "a", changed, steps=STEPS, resume=True, **checkpoints)
    train(tmp_path, "b", changed, checkpoint_dir=str(tmp_path / "whole"))
    resumed, whole = (
        Run(
            micro_request(
                tmp_path, changed, steps=STEPS, resume=True, checkpoint_dir=str(tmp_path / name)
            )
        )
        for name in ("c", "whole")
    )
    buffers, expected = dict(resumed.model.named_buffers()), dict(whole.model.named_buffers())
    averages = [name for name in expected if name.endswith("load_error")]
    assert len(averages) == 2
    for name in averages:
        assert expected[name].any()
        for buffer in (name, name.replace("load_error", "bias")):
            assert torch.equal(buffers[buffer], expected[buffer])


def test_dealt_routing_can_be_recorded_and_replayed(tmp_path: Path) -> None:
    folder = str(tmp_path / "routing")
    even = {"model__moe__real_slot_ratio": 1.0}
    _, losses = train(tmp_path, "a", lane("forced_balanced", **even), record_routing=folder)
    _, again = train(tmp_path, "b", lane("replayed", **even), replay_routing=folder)
    assert again == losses


@pytest.mark.parametrize(
    ("changes", "fields", "said"),
    [
        ({"model__hidden_size": 24}, {}, "belongs to another model"),
        ({"model__moe__top_k": 1}, {}, "belongs to another model"),
        (
            {"batch__micro_batch_size": 2},
            {},
            "another tokens_per_micro_batch: it has 10, this run has 20",
        ),
        ({"batch__gradient_accumulation_steps": 1}, {}, "another micro_batches"),
        ({"data__seed": 1}, {}, "another order of the data"),
        ({}, {"steps": STEPS + 1}, "no routing of step 4, and this run takes steps 0 to 4"),
        ({}, {"data_path": "other.txt"}, "belongs to other data"),
        ({}, {"replay_routing": None}, "needs a recording; give"),
        ({"model__moe__routing_mode": "learned"}, {}, "routing_mode=replayed"),
        ({"model__pattern": "M"}, {}, "no E layers"),
        ({}, {"replay_routing": "nowhere"}, "holds no recording"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, recording: Path, changes: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    if "data_path" in fields:
        other = tmp_path / fields["data_path"]
        other.write_text("something else entirely. " * 40)
        fields = {"data_path": str(other)}
    wanted = lane("replayed", **changes) if "model__moe__routing_mode" not in changes else lane()
    with pytest.raises(UsageError, match=said):
        train(tmp_path, "b", wanted, **{"replay_routing": str(recording), **fields})


def test_a_lane_without_experts_records_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no routing to record"):
        train(tmp_path, "a", micro_lane(model__pattern="M"), record_routing=str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda layer: layer[:1], r"ids are int8 \[1, 10, 4\], expected integers \[2, 10, 4\]"),
        (lambda layer: layer.astype(np.float32), "ids are float32"),
        (lambda layer: layer + 4, "ids run from 3 to"),
    ],
)
def test_a_damaged_step_is_refused(
    recording: Path, recorded: tuple[Path, RunReceipt], damage: Any, said: str
) -> None:
    file = recording / "step-00000001.npz"
    with np.load(file) as stored:
        layers = {name: damage(stored[name]) for name in stored}
    np.savez(file, **layers)
    with pytest.raises(UsageError, match=said):
        reader(recording, recorded[1]).read(1, CPU)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_an_unreadable_step_is_refused(
    recording: Path, recorded: tuple[Path, RunReceipt], content: bytes
) -> None:
    (recording / "step-00000001.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read: .*; record it again"):
        reader(recording, recorded[1]).read(1, CPU)


def test_a_recording_of_another_format_is_refused(
    recording: Path, recorded: tuple[Path, RunReceipt]
) -> None:
    manifest = recording / "routing.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(UsageError, match="has format 2, this version reads 1"):
        reader(recording, recorded[1])
    manifest.write_text(json.dumps({**document, "surprise": 1}))
    with pytest.raises(UsageError, match="cannot be read"):
        reader(recording, recorded[1])


def test_ids_come_back_by_micro_batch_and_layer(recorded: tuple[Path, RunReceipt]) -> None:
    source = reader(*recorded)
    micro_batches = source.read(0, CPU)
    assert [len(layers) for layers in micro_batches] == [2, 2]
    for layers in micro_batches:
        for ids in layers:
            assert ids.dtype == torch.int64
            assert ids.shape == (10, 4)
    with pytest.raises(UsageError, match="no routing of step 9"):
        source.read(9, CPU)
