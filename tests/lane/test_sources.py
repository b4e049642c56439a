from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanewise.errors import LaneError
from lanewise.lane.sources import parse_toml, parse_yaml, read_text

TOML = '''\
# comment
top = 1

[model]
hidden_size = 128
pattern = """
A = 1
"""
ranks = [
  1,  # one
  2,
]
"quoted key" = true
moe.top_k = 2

[model.mamba] # comment
size = { a = 1, b = { c = 2 } }

[[list]]
x = 1
[[list]]
x = 2
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("model",), 4),
        (("model", "hidden_size"), 5),
        (("model", "pattern"), 6),
        (("model", "ranks"), 9),
        (("model", "quoted key"), 13),
        (("model", "moe"), 14),
        (("model", "moe", "top_k"), 14),
        (("model", "mamba"), 16),
        (("model", "mamba", "size", "b", "c"), 17),
        (("list", 0, "x"), 20),
        (("list", 1, "x"), 22),
    ],
)
def test_toml_keys_have_lines(path: tuple[str | int, ...], line: int) -> None:
    assert parse_toml(TOML, name="f.toml").where(path) == f"f.toml:{line}"


def test_a_missing_key_is_placed_at_its_nearest_table_or_the_file() -> None:
    document = parse_toml(TOML, name="f.toml")
    assert document.where(("model", "mamba", "nothing")) == "f.toml:16"
    assert document.where(("nothing",)) == "f.toml"


@given(st.dictionaries(st.text("abcxyz_-", min_size=1), st.integers(), min_size=1))
def test_flat_toml_lines_count_up(table: dict[str, int]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in table.items())
    document = parse_toml(text, name="f")
    assert [document.lines[(key,)] for key in table] == list(range(1, len(table) + 1))


@pytest.mark.parametrize(
    ("text", "where"),
    [("a = 1\nb = = 2\n", "f.toml:2"), ("a = 1\n\n[x", "f.toml:3"), ("a = 1\na = 2", "f.toml:2")],
)
def test_toml_syntax_errors_name_the_line(text: str, where: str) -> None:
    with pytest.raises(LaneError) as caught:
        parse_toml(text, name="f.toml")
    (problem,) = caught.value.problems
    assert problem.where == where
    assert problem.message.startswith("not valid TOML: ")


def test_yaml_keys_have_lines() -> None:
    document = parse_yaml("a:\n  b: 1\n  c: [1, 2]\n", name="f.yaml")
    assert document.tables == {"a": {"b": 1, "c": [1, 2]}}
    assert document.where(("a", "c", 1)) == "f.yaml:3"


def test_yaml_faults_name_the_line() -> None:
    with pytest.raises(LaneError, match=r"f.yaml:3: not valid YAML"):
        parse_yaml("a: 1\nb: [\n", name="f.yaml")
    with pytest.raises(LaneError, match=r"f.yaml:3: a\.b: set twice, first on line 2; keep one"):
        parse_yaml("a:\n  b: 1\n  b: 2\n", name="f.yaml")
    with pytest.raises(LaneError, match="not a mapping"):
        parse_yaml("- 1\n", name="f.yaml")
    with pytest.raises(LaneError, match="not a mapping"):
        parse_yaml("", name="f.yaml")


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"a = \xff")
    with pytest.raises(LaneError, match=r"not UTF-8 text \(byte 4\)"):
        read_text(binary, what="lane")
    with pytest.raises(LaneError, match="is a folder, not a lane file"):
        read_text(tmp_path, what="lane")
    with pytest.raises(LaneError, match="no lane file"):
        read_text(tmp_path / "absent.toml", what="lane")
