import json
from pathlib import Path

import pytest

from lanewise.cli.main import run
from tests.lab.fake import options


@pytest.fixture
def world(tmp_path):
    from lanewise.receipts.store import Store
    from tests.lab.fake import World

    return World(store=Store(tmp_path / "store"))


def test_pack_and_unpack_say_what_they_did(world, tmp_path, capsys) -> None:
    campaign = world.lab().start(options(blocks=2)).campaign.campaign_id
    archive, here, there = str(tmp_path / "a.tgz"), world.store.root, str(tmp_path / "there")
    assert run(["receipt", "pack", archive, "--campaign", campaign, "--store", here]) == 0
    assert f"MiB unfolded, of {campaign}" in capsys.readouterr().out
    assert run(["receipt", "unpack", archive, "--store", there]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{there}: ")
    assert said[1] == f"campaign {campaign} new here"
    assert run(["receipt", "unpack", archive, "--store", there, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["campaigns"] == {campaign: "same"}
    assert document["num_new"] == 0
    assert run(["receipt", "pack", archive, "--all", "--store", there, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["campaigns"] == [campaign]


def test_what_to_pack_must_be_said(tmp_path, capsys) -> None:
    for arguments in ([], ["--all", "--campaign", "x"]):
        assert run(["receipt", "pack", str(tmp_path / "a"), *arguments]) == 2
        assert "say what to pack" in capsys.readouterr().err
    Path(tmp_path / "b").write_bytes(b"no archive")
    assert run(["receipt", "unpack", str(tmp_path / "b"), "--store", str(tmp_path / "s")]) == 3
    assert "no archive of lanewise" in capsys.readouterr().err
