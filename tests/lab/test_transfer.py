"""A campaign moves to another machine and back as one archive; nothing different is overwritten, nothing half done."""

import errno
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from lanewise.errors import CampaignError, LanewiseError, ReceiptError, UsageError
from lanewise.lab.calibrate import CalibrateOptions, calibrate
from lanewise.lab.calibration import Trials
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.transfer import pack, unpack
from lanewise.receipts.archive import MANIFEST
from lanewise.receipts.calibration import ObserverResult
from lanewise.receipts.document import receipt_id_of
from lanewise.receipts.index import Index
from lanewise.receipts.store import Store, sha256_of
from lanewise.receipts.validate import store_faults
from tests.lab.fake import MACHINE, World, options, place


@pytest.fixture
def there(tmp_path):
    """Another machine of the class."""
    world = World(store=Store(tmp_path / "there"))
    world.script.body = lambda request: {"machine.instance_digest": "sha256:" + "b" * 64}
    return world


def interrupted(world, *, blocks=4, after=2) -> str:
    """A campaign stopped in the block after so many."""
    world.script.interrupt = lambda request, step: place(request).startswith(
        f"fused_moe/{after + 1}/"
    )
    campaign = world.lab().start(options(blocks=blocks, budget_seconds=600.0)).campaign
    world.script.interrupt = lambda request, step: False
    return campaign.campaign_id


def contents(store: Store) -> dict[str, bytes]:
    """Every file of a store but locks and the index."""
    root = Path(store.root)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(("lock", ".sqlite"))
    }


def refusal_of(store: Store, archive: Path) -> str | None:
    try:
        unpack(store, archive)
    except LanewiseError as error:
        return str(error)
    return None


def test_pack_here_run_there_pack_and_unpack_here(world, there, tmp_path) -> None:
    campaign = interrupted(world)
    manifest = pack(world.store, tmp_path / "out.tgz", [campaign])
    assert manifest.campaigns == (campaign,)
    arrived = unpack(there.store, tmp_path / "out.tgz")
    assert arrived.campaigns == {campaign: "new"}
    assert contents(there.store) == contents(world.store)

    resumed = there.lab().resume(options().lane, MACHINE, campaign)
    assert resumed.campaign.status == "COMPLETE"
    assert {where.split("/")[1] for where, _step in there.turns} == {"3", "4"}

    pack(there.store, tmp_path / "back.tgz", None)
    back = unpack(world.store, tmp_path / "back.tgz")
    assert back.campaigns == {campaign: "newer"}
    assert back.num_new > 0
    assert contents(world.store) == contents(there.store)
    assert not [faults for _location, faults in store_faults(world.store) if faults]
    assert world.store.read_decision(f"{campaign}-fused_moe") == resumed.decisions[0]

    again = unpack(world.store, tmp_path / "back.tgz")
    assert (again.num_new, again.num_replaced, dict(again.campaigns)) == (0, 0, {campaign: "same"})
    older = unpack(world.store, tmp_path / "out.tgz")
    assert (older.num_new, older.num_replaced, dict(older.campaigns)) == (0, 0, {campaign: "older"})
    assert contents(world.store) == contents(there.store)


def test_equal_stores_make_equal_archives(world, tmp_path) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "a.tgz", [campaign])
    for path in Path(world.store.root).rglob("*.json"):
        os.utime(path, (1, 1))
    pack(world.store, tmp_path / "b.tgz", None)
    assert (tmp_path / "a.tgz").read_bytes() == (tmp_path / "b.tgz").read_bytes()


def test_only_what_a_campaign_needs_is_packed(world, tmp_path) -> None:
    first = world.lab().start(options(features=("none",), blocks=8, budget_seconds=600.0))
    noise = first.decisions[0].decision_id
    second = world.lab().start(options(blocks=2)).campaign
    third = world.lab().start(options(features=("fused_recurrent",), blocks=2)).campaign
    assert second.noise_source == noise
    names = {
        file.name for file in pack(world.store, tmp_path / "a.tgz", [second.campaign_id]).files
    }
    assert f"campaigns/{second.campaign_id}/journal.jsonl" in names
    assert f"decisions/{second.campaign_id}-fused_moe.json" in names
    assert f"decisions/{noise}.json" in names, "its noise comes from there"
    assert not [name for name in names if third.campaign_id in name]
    receipts = [name for name in names if name.startswith("receipts/")]
    of_noise = (
        8 * 2
    )  # without them nobody could draw the noise again, and `receipt validate` would refuse the decision
    assert sum(not name.endswith(".steps.json") for name in receipts) == 2 * 2 + of_noise
    assert any(name.endswith(".steps.json") for name in receipts)


@pytest.fixture
def calibrated(world):
    """A calibration, and a campaign planned with it."""
    options_of = CalibrateOptions(
        campaign=options(budget_seconds=3600.0), blocks=8, trials=Trials(single=4, looks=1)
    )
    record = calibrate(world.lab(), options_of).calibration
    campaign = world.lab().start(options(blocks=2)).campaign
    assert campaign.noise_source == record.calibration_id
    return record, campaign.campaign_id


def faults_in(store: Store) -> list[list[str]]:
    return [faults for _location, faults in store_faults(store) if faults]


def test_a_calibration_travels_with_its_blocks(world, there, calibrated, tmp_path) -> None:
    record, planned = calibrated
    for number, campaign in enumerate((planned, *record.campaigns)):
        pack(world.store, tmp_path / "a.tgz", [campaign])
        place = Store(tmp_path / f"{number}")
        unpack(place, tmp_path / "a.tgz")
        assert place.read_calibration(record.calibration_id) == record
        assert faults_in(place) == []


def test_a_calibration_that_has_gained_an_observer_is_the_newer(
    world, there, calibrated, tmp_path
) -> None:
    record, planned = calibrated
    pack(world.store, tmp_path / "before.tgz", [planned])
    more = record.model_copy(
        update={"observer": ObserverResult(in_step_ratio=0.01, total_ratio=0.02)}
    )
    world.store.write_calibration(more)
    assert unpack(world.store, tmp_path / "before.tgz").num_replaced == 0
    assert world.store.read_calibration(record.calibration_id) == more
    unpack(there.store, tmp_path / "before.tgz")
    pack(world.store, tmp_path / "after.tgz", [planned])
    assert unpack(there.store, tmp_path / "after.tgz").num_replaced == 1
    assert there.store.read_calibration(record.calibration_id) == more
    there.store.write_calibration(more.model_copy(update={"block_sd_log": 0.5}))
    with pytest.raises(CampaignError, match=r"calibrations/.*differ.*nothing was unpacked"):
        unpack(there.store, tmp_path / "after.tgz")


def test_a_damaged_calibration_is_not_packed(world, calibrated, tmp_path) -> None:
    record, planned = calibrated
    path = Path(world.store.root) / "calibrations" / f"{record.calibration_id}.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CampaignError, match="nothing was packed: calibrations/"):
        pack(world.store, tmp_path / "a.tgz", [planned])


def test_a_campaign_driven_in_two_places_is_refused(world, there, tmp_path) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "out.tgz", [campaign])
    unpack(there.store, tmp_path / "out.tgz")
    world.script.loss = lambda request, step: 5.0 - 0.01 * step
    for driver in (there, world):
        driver.lab().resume(options().lane, MACHINE, campaign)
    pack(there.store, tmp_path / "back.tgz", [campaign])
    before = contents(world.store)
    with pytest.raises(CampaignError, match="was driven in both places"):
        unpack(world.store, tmp_path / "back.tgz")
    assert contents(world.store) == before


def test_another_plan_of_the_same_name_is_a_named_conflict(world, there, tmp_path) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "out.tgz", [campaign])
    there.lab().start(options(blocks=3, seed=5))
    folder = CampaignFolder.find(there.store.root, campaign)
    folder.journal.path.write_bytes(b"")
    before = contents(there.store)
    with pytest.raises(CampaignError, match=r"plan\.json .*differ.*nothing was unpacked"):
        unpack(there.store, tmp_path / "out.tgz")
    assert contents(there.store) == before


def test_a_ledger_of_ones_own_is_kept_and_said(world, there, tmp_path) -> None:
    (Path(world.store.root) / "ledger.toml").parent.mkdir(exist_ok=True)
    campaign = interrupted(world)
    (Path(world.store.root) / "ledger.toml").write_text("# theirs\n")
    pack(world.store, tmp_path / "a.tgz", [campaign])
    Path(there.store.root).mkdir()
    (Path(there.store.root) / "ledger.toml").write_text("# mine\n")
    done = unpack(there.store, tmp_path / "a.tgz")
    assert done.notes == ("ledger.toml differs from the archive's; this store's was kept",)
    assert (Path(there.store.root) / "ledger.toml").read_text() == "# mine\n"


def test_a_damaged_receipt_is_not_packed_and_is_made_good_by_an_archive(world, tmp_path) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "sound.tgz", [campaign])
    sound = contents(world.store)
    receipt = sorted(Path(world.store.root).glob("receipts/*/*/*.json"))[0]
    receipt.write_bytes(receipt.read_bytes()[:100])
    with pytest.raises(LanewiseError, match=rf"{receipt.stem[:12]}"):
        pack(world.store, tmp_path / "damaged.tgz", [campaign])
    assert not (tmp_path / "damaged.tgz").exists()
    assert unpack(world.store, tmp_path / "sound.tgz").num_replaced == 1
    assert contents(world.store) == sound


def test_a_running_campaign_is_not_packed_or_merged(world, there, tmp_path) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "a.tgz", [campaign])
    with CampaignFolder.find(world.store.root, campaign).locked():
        with pytest.raises(CampaignError, match="is being driven"):
            pack(world.store, tmp_path / "b.tgz", [campaign])
        with pytest.raises(CampaignError, match="is being driven"):
            unpack(world.store, tmp_path / "a.tgz")


def test_names_that_are_not_there(world, tmp_path) -> None:
    with pytest.raises(UsageError, match="no campaign in"):
        pack(world.store, tmp_path / "a.tgz", None)
    with pytest.raises(UsageError, match="no campaign 'x'"):
        pack(world.store, tmp_path / "a.tgz", ["x"])
    with pytest.raises(UsageError, match="no archive"):
        unpack(world.store, tmp_path / "a.tgz")
    assert not Path(world.store.root).exists()


def test_a_full_disk_at_any_rename_leaves_the_store_as_it_was(
    world, there, tmp_path, monkeypatch
) -> None:
    campaign = interrupted(world)
    pack(world.store, tmp_path / "out.tgz", [campaign])
    unpack(there.store, tmp_path / "out.tgz")
    there.lab().resume(options().lane, MACHINE, campaign)
    pack(there.store, tmp_path / "back.tgz", [campaign])
    before, real = contents(world.store), os.replace
    for failing in range(1, 40, 3):
        calls = 0

        def replace(source, target, failing=failing):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        refusal = refusal_of(world.store, tmp_path / "back.tgz")
        if refusal is None:
            break
        assert "No space left" in refusal
        assert contents(world.store) == before
    monkeypatch.undo()
    assert failing > 5
    assert contents(world.store) == contents(there.store)
    assert not list(Path(world.store.root).glob(".unpacking-*"))


def archive_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info


def manifest(*files: tuple[str, bytes], version: str = "1.0.0", size: int | None = None) -> bytes:
    described = [
        {"name": name, "size_bytes": len(c) if size is None else size, "sha256": sha256_of(c)}
        for name, c in files
    ]
    return json.dumps(
        {
            "schema_version": version,
            "kind": "archive",
            "producer": {"name": "x", "version": "1"},
            "campaigns": [],
            "files": described,
        }
    ).encode()


def crafted(path: Path, listed: bytes, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    return archive_of(path, [(member(MANIFEST, listed), listed), *members])


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "/etc/cron.d/x",
        "receipts/../../x.json",
        "receipts//x.json",
        "receipts/a/./x.json",
        "receipts/.hidden.json",
        "index.sqlite",
        "elsewhere/x.json",
        "receipts/a/b/c/d/e.json",
        "receipts/a\nb.json",
        "receipts/" + "x" * 300,
        "receipts",
        "",
    ],
)
def test_names_outside_of_a_store_are_refused(tmp_path, name) -> None:
    path = crafted(tmp_path / "a.tgz", manifest((name, b"x")), (member(name, b"x"), b"x"))
    with pytest.raises(ReceiptError, match=r"is no file of a store"):
        unpack(Store(tmp_path / "store"), path)
    assert sorted(found.name for found in (tmp_path / "store").iterdir()) == [".unpacking.lock"]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.tgz", "store"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind) -> None:
    info = member("decisions/a.json", kind=kind)
    info.linkname = "/etc/passwd"
    path = crafted(tmp_path / "a.tgz", manifest(("decisions/a.json", b"")), (info, b""))
    with pytest.raises(ReceiptError, match="is not the file that its manifest names"):
        unpack(Store(tmp_path / "store"), path)


def test_other_lies_of_an_archive_are_refused(tmp_path) -> None:
    one, two = ("decisions/a.json", b"{}"), ("decisions/b.json", b"{}")
    good = (member(*one), b"{}")
    lies = {
        "is missing": [manifest(one, two), good],
        "holds more than its manifest names": [manifest(one), good, (member(*two), b"{}")],
        "a.json was altered": [manifest((one[0], b"[]")), good],
        "names a file twice": [manifest(one, one), good, good],
        "is not the file that its manifest names": [manifest(one, size=3), good],
        "100000000000000 bytes": [manifest(one, size=10**14), good],
        "pip install --upgrade lanewise": [manifest(one, version="2.0.0"), good],
        "it is no archive of lanewise": [],
    }
    for words, (listed, *members) in ((k, v or [None]) for k, v in lies.items()):
        path = tmp_path / "a.tgz"
        if listed is None:
            archive_of(path, [good])
        else:
            crafted(path, listed, *members)
        with pytest.raises(ReceiptError, match=words):
            unpack(Store(tmp_path / "store"), path)
        assert not list((tmp_path / "store").glob("[!.]*"))


def test_a_bomb_stops_at_what_the_manifest_says(tmp_path) -> None:
    """Zeros behind an extended header that claims to be a small file's."""
    path = tmp_path / "a.tgz"
    listed = manifest(("decisions/a.json", b"x"))
    with gzip.open(path, "wb") as packed:
        with tarfile.open(fileobj=packed, mode="w|") as tar:
            tar.addfile(member(MANIFEST, listed), io.BytesIO(listed))
            bomb = member("x", kind=tarfile.XHDTYPE)
            bomb.size = 2**22
            tar.fileobj.write(bomb.tobuf(tarfile.USTAR_FORMAT))
        packed.write(b"\0" * 2**22)
    with pytest.raises(ReceiptError, match="truncated, altered or no archive"):
        unpack(Store(tmp_path / "store"), path)


def test_an_archive_cut_or_flipped_anywhere_changes_nothing(world, tmp_path) -> None:
    campaign = interrupted(world, blocks=2, after=1)
    path = tmp_path / "a.tgz"
    pack(world.store, path, [campaign])
    content = path.read_bytes()
    spoiled = tmp_path / "spoiled.tgz"
    target = Store(tmp_path / "target")
    for position in range(0, len(content), max(1, len(content) // 12)):
        flipped = bytearray(content)
        flipped[position] ^= 0x20
        for damaged in (content[:position], bytes(flipped)):
            spoiled.write_bytes(damaged)
            refusal = refusal_of(target, spoiled)
            if refusal is None:  # e.g. a flag of gzip's header that nobody reads
                assert contents(target) == contents(world.store)
                target = Store(tmp_path / f"target{position}")
            else:
                assert "\n" not in refusal
                assert not list(Path(target.root).glob("[!.]*"))


def newer(world, campaign: str, version: str) -> Path:
    """A receipt of the campaign as a later lanewise may write it, with a field nobody knows here."""
    entry = CampaignFolder.find(world.store.root, campaign).journal.read()[0]
    location = Path(world.store.locate_receipt(entry.receipts["A"][0]))
    document = {**json.loads(location.read_bytes()), "schema_version": version, "surprise": [1, {}]}
    identity = receipt_id_of(document)
    path = location.with_name(f"{identity.removeprefix('sha256:')}.json")
    path.write_text(json.dumps({**document, "receipt_id": identity}))
    return path


def test_fields_of_a_newer_minor_travel_and_a_newer_major_is_refused(
    world, there, tmp_path
) -> None:
    campaign = interrupted(world)
    name = newer(world, campaign, "1.99.0").name
    pack(world.store, tmp_path / "a.tgz", [campaign])
    unpack(there.store, tmp_path / "a.tgz")
    assert contents(there.store) == contents(world.store)
    assert any(path.endswith(name) for path in contents(there.store))
    newer(world, campaign, "2.0.0")
    Index(world.store).reindex()
    assert Index(world.store).query(limit=0).unreadable[0].count("pip install --upgrade lanewise")
