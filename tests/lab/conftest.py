import pytest
from tests.lab.fake import World

from lanewise.receipts.store import Store


@pytest.fixture
def world(tmp_path):
    return World(store=Store(tmp_path / "store"))
