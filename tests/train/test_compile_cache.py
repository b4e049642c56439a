from lanewise.receipts.environment import recorded_variables
from lanewise.train.compile_cache import cache_digest, private_cache


def test_compilers_find_the_folder_while_the_run_lasts(tmp_path):
    before = recorded_variables()
    with private_cache(str(tmp_path / "c")) as empty:
        found = recorded_variables()
        assert found["TORCHINDUCTOR_CACHE_DIR"] == found["TRITON_CACHE_DIR"] == "<set>"
        (tmp_path / "c" / "inductor").mkdir()
        (tmp_path / "c" / "inductor" / "graph").write_text("code")
    assert recorded_variables() == before
    with private_cache(str(tmp_path / "c")) as filled:
        assert filled not in (None, empty)
    with private_cache(None) as nothing:
        assert nothing is None
        assert recorded_variables() == before


def test_the_digest_follows_names_and_sizes_wherever_the_folder_lies(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "longer")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "graph").write_text(text)
    assert cache_digest(tmp_path / "a") == cache_digest(tmp_path / "b")
    assert cache_digest(tmp_path / "a") != cache_digest(tmp_path / "c")
