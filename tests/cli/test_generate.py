"""`lanewise generate` as a person types it."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lanewise.cli.main import run
from lanewise.train import saved
from lanewise.train.data.tokens import ByteTokenizer
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request


@pytest.fixture(name="checkpoint", scope="module")
def checkpoint_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one checkpoint of a small model with MTP."""
    return train(tmp_path_factory.mktemp("generate"), model__mtp={"depth": 1, "mlp_hidden_size": 7})


def train(folder: Path, **changes: Any) -> Path:
    lane = micro_lane(
        model__pattern="A", model__num_layers=1, optimizer__learning_rate=2e-2, **changes
    )
    training = Run(micro_request(folder, lane, checkpoint_dir=str(folder / "c")))
    for _ in range(30):
        training.step()
    training.save_checkpoint()
    return folder / "c"


def words(checkpoint: Path, *more: str) -> list[str]:
    return ["generate", "--checkpoint", str(checkpoint), "--max-new-tokens", "16", *more]


def test_text_goes_to_stdout_and_speed_to_stderr(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(checkpoint, "--prompt", "the lane")) == 0
    printed = capsys.readouterr()
    assert len(printed.out.encode()) == 16 + 1  # and the newline
    assert "16 tokens, " in printed.err
    assert "tokens/s" in printed.err
    assert "accepted (" in printed.err


def test_drafts_do_not_change_the_text(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--draft"], ["--no-draft"], []):
        assert run(words(checkpoint, "--prompt", "the lane", *options)) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == second == third


def test_json_is_one_document(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(checkpoint, "--prompt", "the", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["lane"] == "micro"
    assert document["step"] == 30
    assert document["text"] == ByteTokenizer().decode(document["token_ids"])
    assert document["num_prompt_tokens"] == 4
    assert document["ended_by"] == "length"
    drafts = document["drafts"]
    assert drafts["acceptance_ratio"] == drafts["accepted"] / drafts["checked"]
    assert document["trunk_calls"] <= 17 + 3


@pytest.mark.parametrize("way", ["prompt", "file", "stdin"])
def test_a_prompt_comes_by_three_ways(
    way: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = "the länge"
    (tmp_path / "p.txt").write_text(prompt, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    given = {
        "prompt": ["--prompt", prompt],
        "file": ["--prompt-file", str(tmp_path / "p.txt")],
        "stdin": ["-"],
    }
    assert run([*words(checkpoint, *given[way]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == prompt


def test_a_seed_repeats_a_sampled_text(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled = words(checkpoint, "--prompt", "a", "--temperature", "2", "--top-k", "9", "--json")
    texts = []
    for seed in ("3", "3", "4"):
        assert run([*sampled, "--top-p", "0.9", "--seed", seed]) == 0
        texts.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "0 prompts were given and one is needed"),
        (["--prompt", "a", "-"], "2 prompts were given"),
        (["--prompt", ""], "is empty"),
        (["--prompt-file", "/nowhere/p.txt"], "no prompt file"),
        (["words"], "is no prompt"),
        (["--prompt", "a\udcff"], "(--prompt) is not UTF-8 text"),
        (["--prompt", "a", "--seed", str(10**23)], "--seed"),
        (["--prompt", "a", "--top-p", "0"], "--top-p"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "a", "--checkpoint", "/nowhere"], "no checkpoint in '/nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    options: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(checkpoint, *options)) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_bytes_that_are_no_text_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.bin").write_bytes(b"\xff\xfe\x00")
    assert run(words(checkpoint, "--prompt-file", str(tmp_path / "p.bin"))) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_drafts_asked_of_a_model_without_mtp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(tmp_path)
    assert run(words(plain, "--prompt", "a", "--draft")) == 2
    assert "leave --draft out" in capsys.readouterr().err
    assert run(words(plain, "--prompt", "a")) == 0
    assert "accepted" not in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = ByteTokenizer.decode

    def interrupt_after_five(self: ByteTokenizer, token_ids: list[int]) -> str:
        if len(token_ids) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(self, token_ids)

    monkeypatch.setattr(ByteTokenizer, "decode", interrupt_after_five)
    assert run(words(checkpoint, "--prompt", "the lane", "--no-draft")) == 130
    printed = capsys.readouterr()
    assert len(printed.out.encode()) == 5 + 1
    assert "stopped by Ctrl-C after 5 of 16 tokens" in printed.err


def test_a_character_is_shown_when_all_its_bytes_are_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lanewise.cli.generate import _Writing
    from lanewise.train.session import StopRequest

    shown: list[str] = []

    def tokens():
        for byte in "aß€".encode() + b"\xff":
            yield byte
            shown.append(capsys.readouterr().out)

    _Writing(ByteTokenizer(), quiet=False).run(tokens(), StopRequest())
    assert shown == ["a", "", "ß", "", "", "€", ""]
    assert capsys.readouterr().out == "\ufffd\n"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--checkpoint runs/a --prompt" in text
    assert "lanewise train nam56r-tiny" in text


def test_a_checkpoint_knows_its_lane(checkpoint: Path) -> None:
    (path,) = checkpoint.iterdir()
    document = json.loads((path / saved.LANE_FILE).read_text())
    assert (document["format"], document["version"]) == ("lanewise-lane", 1)
