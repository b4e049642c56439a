"""The command line as a whole: help that can be read, one shape of `--resume`, the same options everywhere."""

import pytest

from lanewise.cli.main import run

GROUPS = ((), ("lane",), ("feature",), ("receipt",), ("data",))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: " ".join(group) or "lanewise")
def test_every_command_is_described_to_the_end(group, capsys):
    assert run([*group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Commands:" in shown
    assert [line for line in shown.splitlines() if line.rstrip().endswith("...")] == [
        line for line in shown.splitlines() if line.startswith("Usage:")
    ]


@pytest.mark.parametrize("verb", ["ablate", "calibrate", "screen"])
def test_a_campaign_is_named_after_resume_and_only_there(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run([verb, "nam56r-tiny", "some-campaign"]) == 2
    assert "add --resume to continue it" in capsys.readouterr().err
    assert run([verb, "nam56r-tiny", "--resume"]) == 2
    assert f"run `lanewise {verb} nam56r-tiny` without --resume" in capsys.readouterr().err
