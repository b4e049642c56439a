"""From a training run to a text: what a checkpoint keeps is enough."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lanewise.errors import DataError, UsageError
from lanewise.lane.schema import Lane
from lanewise.models.decode import GREEDY, Sampling
from lanewise.train import checkpoint, generation, saved
from lanewise.train.checksums import write_checksums
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request

MTP = {"depth": 2, "mlp_hidden_size": 7}


def attention_lane(**changes: Any) -> Lane:
    return micro_lane(**{"model__pattern": "AD", "model__num_layers": 2, **changes})


def write_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(["the lane is the lane and the lane is long."], trainer)
    tokenizer.save(str(path))
    return path


def trained(folder: Path, lane: Lane, *, steps: int = 2, **features: str) -> tuple[Run, Path]:
    run = Run(micro_request(folder, lane, features=features, checkpoint_dir=str(folder / "c")))
    for _ in range(steps):
        run.step()
    path = run.save_checkpoint()
    assert path is not None
    return run, path


def written(path: Path, **options: Any) -> list[int]:
    defaults = {"max_new_tokens": 12, "sampling": GREEDY, "seed": 0}
    return list(generation.start(path, b"the lane", **{**defaults, **options}).tokens)


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({}, {}),
        ({"model__mtp": MTP}, {}),
        ({"model__mtp": MTP}, {"mtp": "off"}),
        ({}, {"metadata_embeddings": "on", "hyper_connections": "on"}),
    ],
)
def test_the_model_of_a_checkpoint_is_the_model_that_was_trained(
    tmp_path: Path, changes: dict[str, Any], features: dict[str, str]
) -> None:
    run, path = trained(tmp_path, attention_lane(**changes), **features)
    found = saved.load(path, device=torch.device("cpu"))
    assert found.step == 2
    assert found.lane == run.lane
    assert not found.model.training
    ours, theirs = run.model.state_dict(), found.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (found.model.mtp is not None) == ("model__mtp" in changes and not features)


def test_the_newest_of_a_directory_is_taken(tmp_path: Path) -> None:
    run, path = trained(tmp_path, attention_lane())
    run.step()
    newest = run.save_checkpoint()
    assert saved.load(path.parent, device=torch.device("cpu")).path == newest
    assert saved.load(path, device=torch.device("cpu")).path == path
    (path.parent / ".writing-step-00000009-1").mkdir()
    (message,) = saved.load(path.parent, device=torch.device("cpu")).messages
    assert "never finished" in message


def test_a_trained_text_goes_on_and_drafts_do_not_change_it(tmp_path: Path) -> None:
    lane = attention_lane(model__mtp=MTP, optimizer__learning_rate=1e-2)
    _, path = trained(tmp_path, lane, steps=60)
    drafted = generation.start(path, b"the lane", max_new_tokens=40, sampling=GREEDY, seed=0)
    text = list(drafted.tokens)
    assert text == written(path, max_new_tokens=40, draft=False)
    assert set(text) <= set(b"the lane is the lane and the lane is long. ")
    assert drafted.decoder.num_drafted > 0
    assert drafted.prompt_ids == (256, *b"the lane")


def test_a_seed_decides_the_sampling(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane())
    hot = Sampling(temperature=2.0)
    assert written(path, sampling=hot, seed=1) == written(path, sampling=hot, seed=1)
    assert written(path, sampling=hot, seed=1) != written(path, sampling=hot, seed=2)
    assert max(written(path, sampling=Sampling(temperature=1e6), max_new_tokens=200)) < 256


def test_a_tokenizer_file_travels_with_the_checkpoint(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path / "words.json")
    lane = attention_lane(data__tokenizer=str(file))
    _, path = trained(tmp_path, lane)
    file.unlink()
    found = saved.load(path, device=torch.device("cpu"))
    assert found.tokenizer.name == "words.json"
    assert written(path)
    (path / saved.TOKENIZER_FILE).unlink()
    with pytest.raises(DataError, match=r"'words\.json' it was trained with; put it back"):
        saved.load(path, device=torch.device("cpu"))


def test_drafts_need_mtp(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane())
    with pytest.raises(UsageError, match=r"does not have; leave --draft out"):
        written(path, draft=True)


def test_an_earlier_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane())
    (path / saved.LANE_FILE).unlink()
    with pytest.raises(UsageError, match="does not say which lane"):
        written(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("version", 2, "version"), ("lane", None, "lane"), ("format", "other", "format")],
)
def test_a_record_of_another_version_is_one_line(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    _, path = trained(tmp_path, attention_lane())
    document = json.loads((path / saved.LANE_FILE).read_text())
    (path / saved.LANE_FILE).write_text(json.dumps({**document, key: value}))
    with pytest.raises(UsageError, match=rf"lane\.json: {said}: [^\n]*; use the version"):
        written(path)


def test_the_record_of_another_lane_is_refused(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane())
    document = json.loads((path / saved.LANE_FILE).read_text())
    document["lane"]["model"]["hidden_size"] = 24
    (path / saved.LANE_FILE).write_text(json.dumps(document))
    with pytest.raises(UsageError, match="weights belong to another one"):
        written(path)


def test_weights_of_another_assembly_are_refused(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane(model__mtp=MTP), mtp="off")
    document = json.loads((path / saved.LANE_FILE).read_text())
    document["model_switches"]["mtp"] = True
    (path / saved.LANE_FILE).write_text(json.dumps(document))
    write_checksums(path)
    with pytest.raises(UsageError, match=r"cannot be read: [^\n]*mtp[^\n]*; give another one"):
        written(path)


def test_weights_that_the_record_leaves_out_are_refused(tmp_path: Path) -> None:
    """Else a model without its hyper-connections would be built, and write nonsense."""
    _, path = trained(tmp_path, attention_lane(), hyper_connections="on")
    document = json.loads((path / saved.LANE_FILE).read_text())
    document["model_switches"]["hyper_connections"] = False
    (path / saved.LANE_FILE).write_text(json.dumps(document))
    write_checksums(path)
    with pytest.raises(UsageError, match=r"tensors that the model does not have, .*residual"):
        written(path)


def test_a_record_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    _, path = trained(tmp_path, attention_lane())
    (path / saved.LANE_FILE).unlink()
    (path / saved.LANE_FILE).mkdir()
    with pytest.raises(UsageError, match=r"lane\.json cannot be read \(Is a directory\)"):
        written(path)


def test_a_checkpoint_is_found_from_inside_and_by_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = trained(tmp_path, attention_lane())
    (tmp_path / "latest").symlink_to(path)
    monkeypatch.chdir(path)
    for folder in (Path(), tmp_path / "latest"):
        assert saved.load(folder, device=torch.device("cpu")).path == path.resolve()


def test_lost_tensors_and_no_checkpoint_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint in .*; train one with"):
        written(tmp_path / "nowhere")
    _, path = trained(tmp_path, attention_lane())
    next(path.glob("*.distcp")).unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        written(path)


@pytest.mark.parametrize("key", ["mtp", "hyper_connections", "metadata_embeddings", "stp"])
@pytest.mark.parametrize(("before", "after"), [("on", "off"), ("off", "on")])
def test_training_goes_on_with_the_features_it_began_with(
    tmp_path: Path, key: str, before: str, after: str
) -> None:
    """Weights alone would not tell: a model without a tax finds all weights that it has."""
    lane = attention_lane(model__mtp=MTP)
    _, path = trained(tmp_path, lane, **{key: before})
    request = micro_request(
        tmp_path, lane, features={key: after}, checkpoint_dir=str(path.parent), resume=True
    )
    with pytest.raises(UsageError, match=f"{path.name} was trained with {key} {before} and this"):
        Run(request)


def test_resumed_training_still_knows_its_lane(tmp_path: Path) -> None:
    lane = attention_lane()
    trained(tmp_path, lane)
    run = Run(micro_request(tmp_path, lane, checkpoint_dir=str(tmp_path / "c"), resume=True))
    run.step()
    path = run.save_checkpoint()
    assert path is not None
    assert checkpoint.read_progress(path).next_step == 3
    assert written(path)
