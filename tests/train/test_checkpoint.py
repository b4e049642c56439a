import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lanewise.errors import StoreError, UsageError
from lanewise.train import checkpoint
from lanewise.train.checkpoint import Progress
from lanewise.train.checksums import CHECKSUMS_FILE


def trained(seed: int = 0, steps: int = 2) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def progress(next_step: int = 2) -> Progress:
    return Progress(
        next_step=next_step,
        lane_digest="sha256:" + "a" * 64,
        loader={"rows_taken": 7},
        totals={"tokens": 40},
    )


def save(folder: Path, next_step: int = 2, seed: int = 0) -> Path:
    model, optimizer = trained(seed)
    return checkpoint.save(folder, model=model, optimizer=optimizer, progress=progress(next_step))


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, model=model, optimizer=optimizer, progress=progress())
    after_saving = torch.rand(2)
    other, other_optimizer = trained(seed=1, steps=0)
    found = checkpoint.load(
        path, model=other, optimizer=other_optimizer, lane_digest=progress().lane_digest
    )
    assert found == progress()
    assert torch.equal(torch.rand(2), after_saving)  # the random state too
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in optimizer.state[theirs].items():
            assert torch.equal(other_optimizer.state[ours][name], value), name


def test_training_goes_on_bitwise(tmp_path: Path) -> None:
    path = save(tmp_path)
    straight, _ = trained(steps=4)
    resumed, optimizer = trained(seed=5, steps=1)
    checkpoint.load(path, model=resumed, optimizer=optimizer, lane_digest=progress().lane_digest)
    for _ in range(2):
        resumed(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-00000002", "step-00000010"]
    newest = checkpoint.newest(tmp_path)
    assert newest.path == tmp_path / "step-00000010"
    assert newest.messages == ()


def test_half_written_ones_are_ignored_and_named(tmp_path: Path) -> None:
    whole = save(tmp_path, 3)
    (tmp_path / ".writing-step-00000009-123").mkdir()
    (tmp_path / "step-00000008").mkdir()  # e.g. copied without its last file
    found = checkpoint.newest(tmp_path)
    assert found.path == whole
    assert [m.split()[1] for m in found.messages] == [
        ".writing-step-00000009-123:",
        "step-00000008:",
    ]


def test_no_directory_holds_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == checkpoint.Found(path=None, messages=())


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 4, seed=0)
    path = save(tmp_path, 4, seed=1)
    model, optimizer = trained(seed=2)
    checkpoint.load(path, model=model, optimizer=optimizer, lane_digest=progress().lane_digest)
    expected, _ = trained(seed=1)
    assert torch.equal(next(model.parameters()), next(expected.parameters()))


def test_another_lane_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    with pytest.raises(UsageError, match="belongs to lane"):
        checkpoint.load(
            save(tmp_path), model=model, optimizer=optimizer, lane_digest="sha256:" + "b" * 64
        )


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 2}', "[]"])
def test_a_damaged_record_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = save(tmp_path)
    (path / checkpoint.PROGRESS_FILE).write_text(content)
    model, optimizer = trained()
    with pytest.raises(UsageError, match=r"^checkpoint step-00000002 .*[^\n]$"):
        checkpoint.load(path, model=model, optimizer=optimizer, lane_digest="sha256:" + "a" * 64)


def test_lost_tensors_are_one_clear_line(tmp_path: Path) -> None:
    path = save(tmp_path)
    next(path.glob("*.distcp")).unlink()
    model, optimizer = trained()
    with pytest.raises(UsageError, match="cannot be read"):
        checkpoint.load(path, model=model, optimizer=optimizer, lane_digest="sha256:" + "a" * 64)


@pytest.mark.parametrize("content", [b"", b"\x80garbage"])
def test_a_damaged_index_is_one_clear_line_and_nothing_is_logged(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path)
    (path / ".metadata").write_bytes(content)
    model, optimizer = trained()
    with pytest.raises(UsageError, match=r"^checkpoint step-00000002 cannot be read: [^\n]*$"):
        checkpoint.load(path, model=model, optimizer=optimizer, lane_digest="sha256:" + "a" * 64)
    with pytest.raises(UsageError, match=r"^checkpoint step-00000002 cannot be read: [^\n]*$"):
        checkpoint.load_weights(path, model=model)
    # torch logs events to loggers of its own that nobody sees; the root logger is what a person sees.
    assert [record for record in caplog.records if record.name == "root"] == []


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        save(blocked)


def test_a_full_disk_leaves_earlier_checkpoints_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save(tmp_path, 1)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.state_dict_saver, "save", full)
    with pytest.raises(StoreError, match="No space left on device"):
        save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [whole]


def test_progress_is_readable_by_a_person(tmp_path: Path) -> None:
    document = json.loads((save(tmp_path) / checkpoint.PROGRESS_FILE).read_text())
    assert document["next_step"] == 2
    assert document["totals"] == {"tokens": 40}


def every_bit_flip(path: Path, count: int) -> Iterator[tuple[Path, bytes]]:
    """Files of a checkpoint with one bit flipped, evenly over all their bytes; each is put back."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), max(1, len(content) // count)):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            file.write_bytes(damaged)
            yield file, content
            file.write_bytes(content)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    model, optimizer = trained(seed=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    seen = set()
    for file, _content in every_bit_flip(path, 12):
        seen.add(file.name)
        with pytest.raises(UsageError, match=r"^checkpoint step-00000002 [^\n]*$"):
            checkpoint.load(
                path, model=model, optimizer=optimizer, lane_digest="sha256:" + "a" * 64
            )
    assert {"checksums.json", "progress.json", ".metadata"} < seen
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_flipped_bit_of_a_tensor_names_its_file(tmp_path: Path) -> None:
    path = save(tmp_path)
    tensors = next(path.glob("*.distcp"))
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{tensors.name} was altered since it was written"):
        checkpoint.load_weights(path, model=trained()[0])


def test_a_checkpoint_of_an_earlier_version_loads_with_a_note(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert checkpoint.newest(tmp_path).messages == ()
    (path / CHECKSUMS_FILE).unlink()
    model, optimizer = trained(seed=1)
    checkpoint.load(path, model=model, optimizer=optimizer, lane_digest=progress().lane_digest)
    assert checkpoint.newest(tmp_path).messages == (
        "step-00000002 has no checksums, so damaged weights would not be noticed",
    )
