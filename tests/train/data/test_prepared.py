import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lanewise.errors import DataError
from lanewise.lane.schema import DataSpec
from lanewise.train.data import prepared
from lanewise.train.data.corpus import Corpus, open_corpus
from lanewise.train.data.prepared import is_prepared, write_prepared


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("hello world", encoding="utf-8")
    (tmp_path / "raw" / "b.txt").write_text("world again", encoding="utf-8")
    return tmp_path / "raw"


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> str:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        ["hello world again"], trainers.WordLevelTrainer(special_tokens=["[UNK]"])
    )
    (tmp_path / "words").mkdir()
    path = str(tmp_path / "words" / "words.json")
    tokenizer.save(path)
    return path


def open_at(path: Path, tokenizer: str = "bytes") -> Corpus:
    return open_corpus(DataSpec(tokenizer=tokenizer), path=str(path), sequence_length=2)


def test_a_prepared_corpus_is_the_raw_one(raw: Path, tmp_path: Path):
    original = open_at(raw)
    write_prepared(original, tmp_path / "out", force=False)
    again = open_at(tmp_path / "out")
    assert again.record == original.record
    assert np.array_equal(again.tokens, original.tokens)
    assert np.array_equal(again.offsets, original.offsets)
    assert (again.vocab_size, again.separator_id) == (257, 256)
    assert isinstance(again.tokens, np.memmap)


def test_it_carries_its_tokenizer(raw: Path, tmp_path: Path, tokenizer_file: str):
    original = open_at(raw, tokenizer_file)
    write_prepared(original, tmp_path / "out", force=False)
    again = open_at(tmp_path / "out", tokenizer_file)
    assert again.record == original.record
    assert again.tokenizer.decode(again.tokens.tolist()) == "hello world world again"
    own = open_at(tmp_path / "out", str(tmp_path / "out" / "tokenizer.json"))
    assert own.record == original.record


def test_another_tokenizer_than_the_lanes_is_refused(
    raw: Path, tmp_path: Path, tokenizer_file: str
):
    write_prepared(open_at(raw, tokenizer_file), tmp_path / "out", force=False)
    with pytest.raises(
        DataError, match=r"prepared with tokenizer 'words\.json' and the lane asks for 'bytes'"
    ):
        open_at(tmp_path / "out")


def test_an_existing_corpus_is_replaced_only_by_force(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    write_prepared(open_at(raw), out, force=False)
    (raw / "c.txt").write_text("more", encoding="utf-8")
    with pytest.raises(DataError, match=r"is a prepared corpus already; give --force"):
        write_prepared(open_at(raw), out, force=False)
    assert open_at(out).record.num_documents == 2
    write_prepared(open_at(raw), out, force=True)
    assert open_at(out).record.num_documents == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


@pytest.mark.parametrize("force", [True, False])
def test_anything_else_is_never_replaced(raw: Path, force: bool):
    with pytest.raises(DataError, match="exists and is no prepared corpus"):
        write_prepared(open_at(raw), raw, force=force)
    assert (raw / "a.txt").read_text(encoding="utf-8") == "hello world"


def test_a_failed_write_leaves_nothing_and_keeps_the_old_one(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    write_prepared(open_at(raw), out, force=False)
    before = (out / "manifest.json").read_bytes()

    def disk_full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "_flush_to_disk", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_prepared(open_at(raw), out, force=True)
    assert (out / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_damage_is_named(raw: Path, tmp_path: Path):
    out = tmp_path / "out"
    write_prepared(open_at(raw), out, force=False)
    tokens = bytearray((out / "tokens.npy").read_bytes())
    tokens[-1] ^= 1
    (out / "tokens.npy").write_bytes(tokens)
    with pytest.raises(DataError, match=r"out/tokens\.npy is not what the manifest says"):
        open_at(out)
    (out / "tokens.npy").unlink()
    with pytest.raises(DataError, match=r"out/tokens\.npy is missing"):
        open_at(out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (out / "manifest.json").write_text(json.dumps(manifest | {"version": 2}), encoding="utf-8")
    with pytest.raises(DataError, match=r"out/manifest\.json: version"):
        open_at(out)


def test_a_folder_that_merely_has_a_manifest_is_plain_data(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text('{"format": "other"}', encoding="utf-8")
    assert not is_prepared(tmp_path / "d")
    assert open_at(tmp_path / "d").record.num_documents == 1
