"""Settings of a lane that reach from the lane file through the whole run into the receipt."""

from pathlib import Path

import pytest
import torch

from lanewise.lane.schema import Lane
from lanewise.models import model
from lanewise.models.model import count_documents
from lanewise.receipts.schema import RunReceipt, StepSeries
from lanewise.receipts.store import Store
from lanewise.train.run import Run
from lanewise.train.session import StopRequest, train_to
from tests.models.micro import micro_lane
from tests.train.runs import micro_request


def trained(folder: Path, lane: Lane, steps: int = 4) -> tuple[RunReceipt, StepSeries]:
    """Receipt and step series of a run in an own store."""
    folder.mkdir()
    run = Run(micro_request(folder, lane, steps=steps))
    finished = train_to(run, steps, stop=StopRequest(), on_step=lambda _: None).finished
    series = Store(str(folder / "store")).read_steps(finished.receipt.receipt_id)
    assert series is not None
    return finished.receipt, series


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_recompute_changes_no_loss_and_is_recorded(tmp_path: Path, policy: str) -> None:
    families = ("attention", "moe", "mamba", "recurrent")
    plain, losses = trained(tmp_path / "plain", micro_lane())
    again, losses_again = trained(
        tmp_path / "again", micro_lane(**{f"recompute__{family}": policy for family in families})
    )
    assert losses.loss == losses_again.loss
    assert losses.grad_norm == losses_again.grad_norm
    assert again.routing == plain.routing
    assert again.lane.spec["recompute"]["mamba"] == policy
    assert again.lane.digest != plain.lane.digest


def test_documents_of_the_corpus_reach_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []

    def counted(document_ids: torch.Tensor) -> torch.Tensor:
        seen.append(document_ids.tolist())
        return count_documents(document_ids)

    monkeypatch.setattr(model, "count_documents", counted)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"document {name}. " * 4, encoding="utf-8")
    lane = micro_lane(data__isolate_documents=True)
    run = Run(micro_request(tmp_path, lane, data_path=str(folder)))
    for _ in range(8):
        run.step()
    assert len(seen) == 8
    rows = [row for batch in seen for row in batch]
    assert any(len(set(row)) == 2 for row in rows)
    assert {document for row in rows for document in row} == {0, 1, 2}


MUON = {"optimizer__name": "muon", "optimizer__learning_rate": 2e-2, "model__hidden_size": 24}


@pytest.mark.parametrize("state", ["off", "on"])
def test_muon_learns_and_resumes_to_the_bit(tmp_path: Path, state: str) -> None:
    lane = micro_lane(**MUON)
    checkpoints = str(tmp_path / "c")

    def build(name: str, **fields: object) -> Run:
        (tmp_path / name).mkdir()
        features = {"fused_optimizer": state}
        return Run(micro_request(tmp_path / name, lane, features=features, **fields))

    whole = build("whole")
    losses = [whole.step().loss for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5
    first = build("first", checkpoint_dir=checkpoints)
    assert [first.step().loss for _ in range(3)] == losses[:3]
    first.save_checkpoint()
    second = build("second", checkpoint_dir=checkpoints, resume=True)
    assert second.messages == ["resumed from step-00000003"]
    assert [second.step().loss for _ in range(3)] == losses[3:]
    for (name, p), q in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    (record,) = (r for r in second.finish().receipt.backends if r.op == "optimizer_step")
    wanted = {"off": "per_tensor.torch", "on": "fused.torch"}[state]
    assert (record.observed, record.launches) == ((wanted,), 3)
