"""What a training process sets about itself."""

import ctypes
import platform

import pytest
import torch

from lanewise.train.process import keep_freed_memory, prepare_process


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_fixed(restored_threads):
    prepare_process(3)
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_keeps_what_is_freed():
    assert keep_freed_memory().startswith("glibc malloc keeps freed blocks up to ")


def test_another_c_library_is_left_alone_and_said_so(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)  # nothing may be loaded
    assert keep_freed_memory() == "the C library's default"


def test_a_refusal_of_malloc_is_said(monkeypatch):
    class Refusing:
        def __init__(self, _name):
            pass

        def mallopt(self, _option, _value):
            return 0

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    assert keep_freed_memory() == "glibc malloc refused to keep freed memory"
