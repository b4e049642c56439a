import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.errors import LaneError
from lanewise.lane.digest import canonical_json
from lanewise.lane.load import list_lanes, load_lane, parse_override, preset_names

SAMPLE_OF_EXPERIENCE_MD = """\
# lanes/my-lane.toml
extends = "nam56r-period"
name = "period-h100"

[batch]
sequence_length = 4096
micro_batch_size = 4
gradient_accumulation_steps = 1

[precision]
compute = "bf16"
residual = "fp32"

[features]                 # unset = ledger, else the feature's stance; `lane show --resolved` says which
regional_compile = "on"
stp = "off"

[topology]
dp_shard = 1
tp = 1
ep = 1
"""


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems_of(name: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(LaneError) as caught:
        load_lane(name, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load_lane(name).name == name


def test_the_presets_ship() -> None:
    assert preset_names() == (
        "nam56r-tiny",
        "nam56r-tiny-full",
        "dense-tiny",
        "nam52-tiny",
        "nam56r-period",
        "nam56r",
        "nam56r-4096",
    )


def test_the_sample_of_the_design_loads(tmp_path: Path) -> None:
    lane = load_lane(write(tmp_path / "my-lane.toml", SAMPLE_OF_EXPERIENCE_MD))
    assert lane.name == "period-h100"
    assert lane.precision.residual == "fp32"
    assert lane.features == {"regional_compile": "on", "stp": "off"}
    assert lane.model == load_lane("nam56r-period").model


def test_extends_merges_tables_and_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", 'extends = "nam56r-tiny"\n[model.moe]\ntop_k = 3\n')
    own = write(tmp_path / "own.toml", 'extends = "base"\n[model.moe]\nnum_experts = 4\n')
    lane = load_lane(own)
    assert lane.model.moe is not None
    assert (lane.model.moe.top_k, lane.model.moe.num_experts) == (3, 4)
    assert lane.model.mamba == load_lane("nam56r-tiny").model.mamba
    assert lane.name == "own"


def test_an_optional_table_is_taken_away_by_none() -> None:
    lane = load_lane("nam56r", ["model.mtp=none", "model.attention.sparse=none"])
    assert lane.model.mtp is None
    assert lane.model.attention is not None
    assert lane.model.attention.sparse is None


def test_lanes_in_the_folder_are_found_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "lanes"
    write(folder / "mine.toml", '# What it is.\nextends = "nam56r-tiny"\nseed = 7\n')
    assert load_lane("mine", folder=folder).seed == 7
    entry = list_lanes(folder=folder)[-1]
    assert (entry.name, entry.summary) == ("mine", "What it is.")
    with pytest.raises(LaneError, match=r"no lane 'mime'\. Did you mean 'mine'\?"):
        load_lane("mime", folder=folder)


def test_a_lane_named_like_a_preset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "nam56r.toml", 'extends = "nam56r-tiny"\n')
    with pytest.raises(LaneError, match=r"names a preset and .*rename the file"):
        load_lane("nam56r", folder=tmp_path)


def test_an_unreadable_lane_does_not_break_the_list(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in list_lanes(folder=tmp_path)[-1].summary


def test_an_unknown_lane_gets_a_suggestion() -> None:
    assert problems_of("nam56r-tinny") == [
        "no lane 'nam56r-tinny'. Did you mean 'nam56r-tiny'? `lanewise lane list` shows all."
    ]


def test_a_missing_file_and_a_missing_base(tmp_path: Path) -> None:
    assert problems_of("no/such.toml") == ["no lane file 'no/such.toml'; check the path"]
    own = write(tmp_path / "own.toml", 'name = "own"\nextends = "nam56r-tinny"\n')
    (line,) = problems_of(own)
    assert line.startswith(f"{own}:2: extends: no lane 'nam56r-tinny'. Did you mean 'nam56r-tiny'?")


def test_lanes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.toml", 'extends = "b.toml"\n')
    write(tmp_path / "b.toml", 'extends = "a.toml"\n')
    assert "extends itself" in problems_of(a)[0]


def test_extends_must_be_a_name(tmp_path: Path) -> None:
    own = write(tmp_path / "own.toml", "extends = 3\n")
    assert problems_of(own) == [f"{own}:1: extends = 3 is not the name or path of a lane"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=3", (("a", "b"), 3)),
        ("a=3e-4", (("a",), 3e-4)),
        ("a=true", (("a",), True)),
        ("a=[1, 2]", (("a",), [1, 2])),
        ('a="3"', (("a",), "3")),
        ("ops.ssm_scan=chunked.torch", (("ops", "ssm_scan"), "chunked.torch")),
        ("data.source=/data/a b.jsonl", (("data", "source"), "/data/a b.jsonl")),
        ("a=b=c", (("a",), "b=c")),
        ("a=on\nb = 2", (("a",), "on\nb = 2")),
    ],
)
def test_overrides_parse_as_toml_or_bare_words(override: str, expected: object) -> None:
    assert parse_override(override) == expected


@given(
    st.integers(-(2**60), 2**60)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: "e" not in repr(x))
)
def test_overrides_restore_numbers_written_by_python(value: float) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    path, parsed = parse_override(f"x.y={text}")
    assert path == ("x", "y")
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text("abcdefgh_/.-", min_size=1).filter(lambda word: not word.startswith("-")))
def test_bare_words_stay_as_they_are(word: str) -> None:
    assert parse_override(f"k={word}") == (("k",), word)


@pytest.mark.parametrize("override", ["a", "=1", "a..b=1", ".a=1", "a=", 'a="x', "a=[1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(LaneError, match=r"^--set "):
        parse_override(override)


def test_overrides_change_the_lane_and_only_it() -> None:
    lane = load_lane("nam56r-tiny", ["batch.micro_batch_size=4", "features.fused_moe=off"])
    assert lane.batch.micro_batch_size == 4
    assert lane.features == {"fused_moe": "off"}
    assert load_lane("nam56r-tiny").batch.micro_batch_size == 8


def test_a_wrong_override_is_placed_at_the_flag() -> None:
    assert problems_of("nam56r-tiny", ("batch.topk=3",)) == [
        "--set batch.topk=3: batch.topk: unknown key. Known: sequence_length, micro_batch_size, "
        "gradient_accumulation_steps."
    ]


def test_a_lane_survives_the_round_trip_through_its_own_json() -> None:
    for name in preset_names():
        lane = load_lane(name)
        again = type(lane).model_validate_json(lane.model_dump_json())
        assert canonical_json(again) == canonical_json(lane)


def test_presets_hold_only_finite_numbers() -> None:
    assert math.isfinite(load_lane("nam56r").optimizer.learning_rate)
