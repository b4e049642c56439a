"""Statements of TOML and their lines, also where brackets and quotes stand in strings."""

import tomllib

import pytest

from lanewise.errors import LaneError
from lanewise.lane.load import load_lane
from lanewise.lane.sources import MAX_BYTES, MAX_DEPTH, parse_toml, parse_yaml
from lanewise.lane.statements import statements

TEXT = '''\
# a comment with an odd line end \u2028[not.a.header] = [
a = 1 # [ {
b = [ # ]
  "]", ']',
  """]
"" ""]""", [1,
  2],
]

[table.'x#y']
c = """
[d]
\\"""" # the string ends with a quote
d = { e = "}", f = [ "{" ] }
g = \'\'\'it's
[[h]]\'\'\'
[[h]]
i = "\\\\"
'''


def test_statements_and_their_lines() -> None:
    found = list(statements(TEXT))
    assert [(line, text.partition("=")[0].strip()) for line, text in found] == [
        (2, "a"),
        (3, "b"),
        (10, "[table.'x#y']"),
        (11, "c"),
        (14, "d"),
        (15, "g"),
        (17, "[[h]]"),
        (18, "i"),
    ]
    assert all(tomllib.loads(text) for _line, text in found)
    assert parse_toml(TEXT, name="x").where(("table", "x#y", "d")) == "x:14"


def test_ten_thousand_lines_of_one_list_are_read_once() -> None:
    """Trying to parse after every line took time in the square of their number: minutes for a file like this."""
    text = "a = [\n" + "1,\n" * 50_000 + "]\nb = 1\n"
    assert parse_toml(text, name="x").where(("b",)) == "x:50003"


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "a = " + "[" * 40 + "]" * 40,
        ".".join("a" * 5_000) + " = 1",
        "a = " + "9" * 5_000,
        "a = 2026-02-31",
    ],
)
def test_toml_that_parsers_choke_on_is_a_problem_with_a_place(text: str) -> None:
    with pytest.raises(LaneError, match=r"^x(:1)?: [^\n]*$"):
        parse_toml(text, name="x")


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5_000, "a: &x [1]\nb: *x", "a: 2026-02-31", "x: " + "{y: " * 40 + "}" * 40],
)
def test_yaml_that_unfolds_or_nests_without_end_is_refused(text: str) -> None:
    with pytest.raises(LaneError, match=r"^x: [^\n]*$"):
        parse_yaml(text, name="x")


def test_a_deep_path_to_set_is_refused() -> None:
    with pytest.raises(LaneError, match=r"a path of 3001 parts"):
        load_lane("nam56r-tiny", ["a." * 3_000 + "b=1"])
    with pytest.raises(LaneError, match=f"nested deeper than {MAX_DEPTH}|is not TOML"):
        load_lane("nam56r-tiny", ["model.moe=" + "[" * 5_000])


def test_files_that_are_no_lanes_by_their_size_or_name(tmp_path) -> None:
    path = tmp_path / "big.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(LaneError, match="is longer than 1048576 bytes"):
        load_lane(path)
    for name in ("a\0b.toml", "x" * 5_000 + ".toml"):
        with pytest.raises(LaneError) as caught:
            load_lane(name)
        assert str(caught.value).isprintable()
    for base in ("a\\u0000b", "x" * 5_000, "x/" * 9_000):
        (tmp_path / "own.toml").write_text(f'extends = "{base}"\n')
        with pytest.raises(LaneError) as caught:
            load_lane(tmp_path / "own.toml")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2_000


def test_a_long_chain_is_refused(tmp_path) -> None:
    for number in range(60):
        (tmp_path / f"l{number}.toml").write_text(f'extends = "l{number + 1}.toml"\n')
    with pytest.raises(LaneError, match="extends through more than 16 files"):
        load_lane(tmp_path / "l0.toml")


def test_problems_show_foreign_text_on_one_line(tmp_path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('extends = "nam56r-tiny"\n"x\\ny" = 1\nname = "' + "y" * 9_000 + '"\n')
    with pytest.raises(LaneError) as caught:
        load_lane(path)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems) == 2
    assert all(len(line) < 2_000 and line.isprintable() for line in str(caught.value).splitlines())
