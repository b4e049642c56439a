import builtins
import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lanewise.errors import DataError
from lanewise.train.data.documents import find_documents, standard_library


def read(path: Path, text_field: str = "text") -> list[bytes]:
    return list(find_documents(str(path), text_field=text_field))


def write_jsonl(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n", encoding="utf-8")
    return path


def test_a_text_file_is_one_document(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("grüße\n", encoding="utf-8")
    documents = find_documents(str(path), text_field="text")
    assert list(documents) == ["grüße\n".encode()]
    assert [(entry.name, entry.size_bytes) for entry in documents.files] == [("one.txt", 8)]
    assert documents.label == "one.txt"


def test_a_folder_is_read_in_the_order_of_relative_names_without_hidden_and_empty_files(
    tmp_path: Path,
):
    for name, text in {"b.txt": "b", "a/z.md": "az", "a/.hidden": "x", "empty.txt": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    documents = find_documents(str(tmp_path), text_field="text")
    assert list(documents) == [b"az", b"b"]
    assert [entry.name for entry in documents.files] == ["a/z.md", "b.txt", "empty.txt"]
    assert list(documents) == [b"az", b"b"]
    assert len(documents.files) == 3


def test_file_entries_name_no_machine_path(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", {"text": "x"})
    documents = find_documents(str(path), text_field="text")
    assert list(documents) == [b"x"]
    assert str(tmp_path) not in repr(documents.files) + documents.label


def test_jsonl_takes_the_text_field_and_skips_blank_lines(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "tw\\u00f6", "id": 2}\n', encoding="utf-8")
    assert read(path, "body") == [b"one", "twö".encode()]


def test_parquet_takes_the_text_column(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["one", None, "three"], "id": [1, 2, 3]}), path)
    assert read(path) == [b"one", b"three"]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    real_import = builtins.__import__

    def without_pyarrow(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match=r"needs pyarrow; install it with `pip install"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nul.txt", b"ab\0c", r"nul\.txt: binary, NUL byte at offset 2"),
        ("latin.txt", b"caf\xe9!", r"latin\.txt: not UTF-8, byte 0xe9 at offset 3"),
        ("d.jsonl", b'{"text": "a"}\n{"text": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", b'{"text": "a"}\n\xff\xfe{}\n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", b"[1]\n", r"d\.jsonl:1: a JSON list; every line must be an object"),
        (
            "d.jsonl",
            b'{"b": 1, "a": 2}\n',
            r"d\.jsonl:1: no field 'text'; it has a, b; .*text_field",
        ),
        ("d.jsonl", b'{"text": 5}\n', r"d\.jsonl:1: field 'text' is a int, not a string"),
        ("d.jsonl", b'{"text": "\\ud800"}\n', r"d\.jsonl:1: field 'text' has a lone surrogate"),
        ("d.parquet", b"not parquet", r"d\.parquet: not a Parquet file"),
    ],
)
def test_bad_content_names_place_and_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_parquet_with_another_column_or_type_is_refused(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"id": [1, 2], "body": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"no column 'text'; it has id, body"):
        read(path)
    with pytest.raises(DataError, match=r"column 'id' is int64, not a string column"):
        read(path, "id")


def test_parquet_damaged_anywhere_is_named(tmp_path: Path):
    path = tmp_path / "d.parquet"
    table = pa.table({"text": [f"some text {i}" for i in range(50)]})
    pq.write_table(table, path, use_dictionary=False)
    whole = path.read_bytes()
    messages = set()
    for offset in range(4, len(whole) - 8, 16):
        path.write_bytes(whole[:offset] + b"\xff" * 8 + whole[offset + 8 :])
        with contextlib.suppress(DataError):
            read(path)
            continue
        with pytest.raises(DataError, match=r"d\.parquet: (damaged|not a|no column)") as caught:
            read(path)
        messages.add(str(caught.value).split(" (")[0])
    assert {"d.parquet: damaged Parquet file", "d.parquet: not a Parquet file"} <= messages


def test_a_missing_path_says_what_to_give(tmp_path: Path):
    with pytest.raises(DataError, match=r"no data at '.*nowhere'; give a text"):
        read(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no files"):
        read(tmp_path)


def test_standard_library_leaves_out_packages_tests_build_leftovers_and_undecodable_files(
    tmp_path: Path,
):
    kept = {"abc.py": "import this\n", "email/utils.py": "x = 1\n"}
    left_out = {
        "site-packages/numpy/core.py": "no",
        "test/test_abc.py": "no",
        "idlelib/idle_test/test_x.py": "no",
        "lib2to3/tests/data.py": "no",
        "__pycache__/abc.py": "no",
        "config-3.11-x86_64-linux-gnu/python-config.py": "no",
        "_sysconfigdata__linux_.py": "no",
        "LICENSE.txt": "no",
    }
    for name, text in (kept | left_out).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    documents = standard_library(tmp_path)
    assert list(documents) == [b"import this\n", b"x = 1\n"]
    assert [entry.name for entry in documents.files] == ["abc.py", "email/utils.py"]


def test_a_python_without_sources_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="carries no standard library sources"):
        standard_library(tmp_path)


def test_the_machines_own_standard_library_is_real_text():
    documents = find_documents("stdlib", text_field="text")
    names = {path.name for path in documents.paths}
    assert {"argparse.py", "typing.py"} <= names
    assert len(documents.paths) > 300
