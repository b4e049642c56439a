import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lanewise.errors import BackendError
from lanewise.ops.spec import Capabilities
from lanewise.parallel import compile_regions
from lanewise.parallel.compile_regions import compile_blocks
from tests.models.micro import micro_model

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def capabilities(*, has_cxx_compiler: bool) -> Capabilities:
    return Capabilities(
        device_type="cpu",
        compute_capability=None,
        packages={},
        has_cxx_compiler=has_cxx_compiler,
    )


def test_without_a_compiler_the_reason_is_named() -> None:
    with pytest.raises(BackendError, match="no C\\+\\+ compiler"):
        compile_blocks(micro_model().blocks, capabilities(has_cxx_compiler=False))


def test_names_of_parameters_and_modules_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, object]] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda _self, **options: compiled.append(options)
    )
    model = micro_model()
    names, blocks = list(model.state_dict()), list(model.blocks)
    compile_blocks(model.blocks, capabilities(has_cxx_compiler=True))
    assert compiled == [{"fullgraph": True}] * 4
    assert list(model.state_dict()) == names
    assert list(model.blocks) == blocks


@pytest.mark.parametrize(
    ("hits", "misses", "state"),
    [(0, 0, "unused"), (0, 3, "cold"), (3, 0, "warm"), (1, 2, "mixed")],
)
def test_cache_state_follows_hits_and_misses(hits: int, misses: int, state: str) -> None:
    assert compile_regions._cache_state(hits, misses) == state


COMPILED_RUN = """
import sys
from pathlib import Path
from lanewise.receipts.store import Store
from lanewise.train.run import Run
from tests.models.micro import micro_lane
from tests.train.runs import micro_request

full = {f"recompute__{family}": "full" for family in ("attention", "moe", "mamba", "recurrent")}
for name, state, policies in (("eager", "off", {}), ("compiled", "on", {}), ("again", "on", full)):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    lane = micro_lane(**policies)
    run = Run(micro_request(folder, lane, features={"regional_compile": state}))
    losses = [run.step().loss for _ in range(3)]
    receipt = run.finish().receipt
    print(name, *losses, sep="\\t")
    if name == "compiled":
        record = receipt.compile
        assert record.enabled and record.graph_breaks == 0, record
        assert record.compile_duration_seconds > 0
        assert receipt.goodput.badput_seconds["compile"] > 0
        assert "compile" not in receipt.timing.step_tags, receipt.timing.step_tags
        assert {b.proof for b in receipt.backends if b.op in ("ssm_scan", "moe_experts")} == {"trace"}
        wrong = [c for c in receipt.outcome.checks if not c.ok and c.name != "steady_state"]
        assert not wrong, wrong
"""


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_give_the_same_losses_without_compiling_in_a_step(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", COMPILED_RUN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    eager, compiled, again = (
        [float(x) for x in line.split("\t")[1:]] for line in answer.stdout.splitlines()
    )
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert again == compiled  # recomputed in the backward pass: the same code on the same numbers
