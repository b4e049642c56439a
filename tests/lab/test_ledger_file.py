"""The ledger on disk: round trip, hand-written parts, edits noticed, two writers at once."""

import errno
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.errors import LaneError, StoreError, UsageError
from lanewise.lab.ledger_file import MARK, locked, read_ledger, write_ledger
from lanewise.lane.config import load_config
from lanewise.lane.ledger import Demotion, Effect, LedgerEntry, Scope, TaxRecord

CPU = "cpu-x86_64-2c"
HAND = """\
# what we know about our own machines
[speed_defaults]
fused_mamba = true   # proven on paper

[observability]
goodput = false
"""


def entry(feature: str = "fused_moe", lane: str = "sha256:9c2f", **changes: object) -> LedgerEntry:
    return LedgerEntry.model_validate(
        {
            "feature": feature,
            "state": "on",
            "scope": {"lanes": [lane], "machine_class": CPU},
            "evidence": ["decision:one", "decision:two (confirmatory)"],
            "effect": {"step_time_ratio": 0.874, "interval": [0.869, 0.88]},
            "lane_names": ["nam56r-tiny"],
            "model_digest": "sha256:71aa",
            "date": "2026-11-25",
            "backend_versions": {
                "moe_experts=sorted.torch": {"torch": "2.13.0", "kernels/moe.py": "sha256:1"}
            },
            "made_by": "graduate",
            **changes,
        }
    )


TAX = TaxRecord(
    feature="stp", state="off", budget_ratio=1.01, last="decision:three", made_by="graduate"
)


def write(path: Path, *entries: LedgerEntry, taxes: tuple[TaxRecord, ...] = ()) -> bool:
    with locked(path):
        before = read_ledger(path)
        return write_ledger(path, before.composed(entries, taxes), before)


def test_a_ledger_reads_back_as_it_was_written_and_writing_again_changes_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "ledger.toml"
    demoted = entry(
        lane="sha256:71aa",
        demoted=Demotion(date="2026-12-01", evidence=("decision:x",), by="lanewise graduate"),
    )
    assert write(path, entry(), demoted, taxes=(TAX,))
    read = read_ledger(path)
    assert read.entries == (entry(), demoted)
    assert read.taxes == (TAX,)
    config = load_config(path)
    assert config.ledger.entries == (entry(), demoted)
    assert config.observability == {"goodput": True, "temporal_perf": True, "measurements": True}
    text = path.read_text(encoding="utf-8")
    assert "[[speed_defaults.fused_moe]]" in text
    assert "[experimental_taxes.stp]" in text
    stamp = path.stat().st_mtime_ns
    assert not write(path, entry(), demoted, taxes=(TAX,))
    assert path.stat().st_mtime_ns == stamp


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOAT = st.floats(0.001, 1000.0)


@given(
    evidence=st.lists(TEXT, max_size=3),
    names=st.lists(TEXT, max_size=2),
    ratio=FLOAT,
    interval=st.tuples(FLOAT, FLOAT),
    versions=st.dictionaries(TEXT, st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    state=st.sampled_from(["on", "off"]),
    single=st.booleans(),
)
def test_any_entry_survives_toml(
    tmp_path_factory: pytest.TempPathFactory,
    evidence: list[str],
    names: list[str],
    ratio: float,
    interval: tuple[float, float],
    versions: dict[str, dict[str, str]],
    state: str,
    single: bool,
) -> None:
    written = LedgerEntry(
        feature="fused_moe",
        state=state,
        scope=Scope(lanes=("sha256:1",), machine_class=CPU),
        evidence=tuple(evidence),
        effect=Effect(step_time_ratio=ratio, interval=interval),
        lane_names=tuple(names),
        single_device=single,
        backend_versions=versions,
        made_by="graduate",
    )
    path = tmp_path_factory.mktemp("ledger") / "ledger.toml"
    write(path, written)
    assert read_ledger(path).entries == (written,)


def test_what_people_wrote_stays_to_the_byte_and_their_features_are_theirs(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    path.write_text(HAND, encoding="utf-8")
    mamba = entry("fused_mamba")
    assert write(path, mamba, entry())
    text = path.read_text(encoding="utf-8")
    assert text.startswith(HAND)
    assert text.count("fused_mamba") == 1
    assert "[observability]" not in text.removeprefix(HAND)
    read = read_ledger(path)
    assert read.by_hand == {"fused_mamba"}
    assert read.entries == (entry(),)
    config = load_config(path)
    assert config.features == {"fused_mamba": "on"}
    assert config.observability == {"goodput": False}
    assert write(path)  # nothing is earned any more
    assert path.read_text(encoding="utf-8") == HAND


def test_a_hand_written_ledger_entry_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    hand = (
        '[speed_defaults.fused_moe]\nstate = "off"\nevidence = []\n'
        f'scope = {{ lanes = ["sha256:1"], machine_class = "{CPU}" }}\n'
    )
    path.write_text(hand, encoding="utf-8")
    assert not write(path, entry())
    assert path.read_text(encoding="utf-8") == hand


def test_an_edit_below_the_line_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    write(path, entry())
    edited = path.read_text(encoding="utf-8").replace('state = "on"', 'state = "off"')
    path.write_text(edited, encoding="utf-8")
    with pytest.raises(UsageError, match=r"somebody edited .* move the edit above its line"):
        write(path, entry())
    assert path.read_text(encoding="utf-8") == edited


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[speed_defaults\n", "1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[speed_defaults]\nfused_moo = true\n", "fused_moe"),
        (b"[speed_defaults.fused_moe]\nstate = 3\n", "fused_moe"),
        (b"speed_defaults = 3\n", "not a table"),
        (MARK.encode() + b"sha256:0\n[[speed_defaults.fused_moe]]\n", "is missing"),
        (
            b'[[speed_defaults.fused_moe]]\nstate = "on"\nevidence = []\nbackend_versions = 3\n'
            b'scope = { lanes = ["x"], machine_class = "y" }\n',
            "backend_versions",
        ),
    ],
)
def test_an_unreadable_ledger_is_named_and_left_alone(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "ledger.toml"
    path.write_bytes(content)
    with pytest.raises(LaneError, match=r"ledger\.toml") as caught:
        write(path, entry())
    assert says in str(caught.value)
    assert path.read_bytes() == content


def test_inline_tables_leave_no_room_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    hand = "speed_defaults = { fused_mamba = true }\n"
    path.write_text(hand, encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"leaves no room .* write its tables as \[speed_defaults\]"
    ):
        write(path, entry())
    assert path.read_text(encoding="utf-8") == hand


def test_a_full_disk_leaves_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.toml"
    write(path, entry())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match="disk is full"):
        write(path, entry(), entry("fused_residual"))
    assert path.read_bytes() == before


def add(path: Path, number: int) -> None:
    """Read, add one's own entry, write: what graduate does, from a process of its own."""
    own = entry(lane=f"sha256:{number}")
    with locked(path):
        before = read_ledger(path)
        write_ledger(path, before.composed([*before.entries, own], ()), before)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add, args=(path, number)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 6
    lanes = {found.scope.lanes[0] for found in read_ledger(path).entries}
    assert lanes == {f"sha256:{number}" for number in range(6)}
