import json
from pathlib import Path

import pytest

from lanewise.cli.main import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"text": text}) for text in ("first [bold] text", "zweiter Töxt", "third")]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_inspect_prints_facts_and_a_row_with_boundaries(capsys: Capture, corpus: Path):
    code, out, err = call(capsys, "data", "inspect", "--data", corpus, "--sequence-length", 30)
    assert (code, err) == (0, "")
    assert "documents    3\n" in out
    assert "tokens       38, one separator a document included" in out
    assert "257 ids, separator 256" in out
    assert "digest       sha256:" in out
    assert out.count("  document ") >= 1
    assert "first [bold] text" in out or "zweiter Töxt" in out


def test_inspect_as_json_is_one_document(capsys: Capture, corpus: Path):
    code, out, err = call(
        capsys, "data", "inspect", "--data", corpus, "--sequence-length", 38, "--json"
    )
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["data"]["source"] == "d.jsonl"
    assert document["data"]["num_tokens"] == 38
    pieces = document["sample"]
    assert sorted(piece["text"] for piece in pieces) == [
        "first [bold] text",
        "third",
        "zweiter Töxt",
    ]
    assert all(piece["opens"] for piece in pieces)
    assert sum(piece["num_tokens"] for piece in pieces) == 38


def test_inspect_without_data_shows_the_standard_library(capsys: Capture):
    code, out, _ = call(capsys, "data", "inspect", "--json")
    assert code == 0
    assert json.loads(out)["data"]["source"] == "stdlib"


def test_what_prepare_wrote_is_the_same_data(capsys: Capture, corpus: Path, tmp_path: Path):
    out_folder = tmp_path / "prepared"
    code, out, err = call(capsys, "data", "prepare", corpus, out_folder)
    assert (code, err) == (0, "")
    assert f"use it with --data {out_folder}\n" in out
    options = ("--sequence-length", 10, "--json")
    _, raw, _ = call(capsys, "data", "inspect", "--data", corpus, *options)
    _, prepared, _ = call(capsys, "data", "inspect", "--data", out_folder, *options)
    assert json.loads(prepared) == json.loads(raw)


def test_prepare_as_json_prints_the_manifest(capsys: Capture, corpus: Path, tmp_path: Path):
    _, out, _ = call(capsys, "data", "prepare", corpus, tmp_path / "p", "--json")
    assert json.loads(out) == json.loads((tmp_path / "p" / "manifest.json").read_text("utf-8"))


def test_prepare_overwrites_only_a_prepared_corpus_and_only_by_force(
    capsys: Capture, corpus: Path, tmp_path: Path
):
    target = tmp_path / "p"
    assert call(capsys, "data", "prepare", corpus, target)[0] == 0
    code, out, err = call(capsys, "data", "prepare", corpus, target)
    assert (code, out) == (2, "")
    assert "give --force to replace it" in err
    assert call(capsys, "data", "prepare", corpus, target, "--force")[0] == 0
    code, _, err = call(capsys, "data", "prepare", corpus, corpus, "--force")
    assert code == 2
    assert "is no prepared corpus; it will not be replaced" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "no data at 'nowhere'"),
        (("--data", "{corpus}", "--text-field", "body"), "d.jsonl:1: no field 'body'; it has text"),
        (("--data", "{corpus}", "--sequence-length", "39"), "38 tokens in 3 documents"),
        (("--data", "{corpus}", "--tokenizer", "nowhere.json"), "no tokenizer at 'nowhere.json'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: Capture, corpus: Path, arguments: tuple[str, ...], message: str
):
    filled = [argument.format(corpus=corpus) for argument in arguments]
    code, out, err = call(capsys, "data", "inspect", *filled)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
