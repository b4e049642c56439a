import pytest

from lanewise.receipts.store import Store
from tests.lab.fake import World


@pytest.fixture
def world(tmp_path):
    return World(store=Store(tmp_path / "store"))
