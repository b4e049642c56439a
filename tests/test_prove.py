"""The runner of proofs, its page, and the proofs of durability at small counts."""

import json
import sys
import types

import pytest

from tools import prove
from tools.proofs import Claim, Proof, fuzz, kill_and_resume, many_writers


def proof_of(*, holds: bool) -> Proof:
    return Proof(
        name="example",
        title="An example",
        counts={"things_tried": 1200},
        claims=(Claim(text="all | hold", measured="1", required="1", holds=holds),),
        tables={"Numbers": [["a", "b"], ["1", "2"]]},
        seconds=1.25,
    )


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A proof of its own instead of those there are."""
    asked: list[float] = []
    module = types.ModuleType("tools.proofs.example")
    module.holds = True
    module.run = lambda scale: asked.append(scale) or proof_of(holds=module.holds)
    monkeypatch.setitem(sys.modules, "tools.proofs.example", module)
    monkeypatch.setattr(prove, "names", lambda: ("example",))
    monkeypatch.setattr(prove, "EVIDENCE", tmp_path / "proofs")
    monkeypatch.setattr(prove, "PAGE", tmp_path / "PROOF.md")
    monkeypatch.setattr(prove, "page", lambda real=prove.page: real(tmp_path / "proofs"))
    module.asked, module.folder = asked, tmp_path
    return module


def test_a_proof_is_run_shown_and_committed(example, capsys) -> None:
    assert prove.main([]) == 0
    assert "An example · 1,200 things tried · 1 s" in capsys.readouterr().out
    document = json.loads((example.folder / "proofs" / "example.json").read_text())
    assert document["claims"] == [
        {"text": "all | hold", "measured": "1", "required": "1", "holds": True}
    ]
    assert document["scale"] == example.asked[0] == 1.0
    assert {"date", "machine_class", "versions", "seconds", "counts"} <= document.keys()
    page = (example.folder / "PROOF.md").read_text()
    assert "| ✓ | all \\| hold | 1 | 1 |" in page
    assert "**Numbers**\n\n| a | b |\n|---|---|\n| 1 | 2 |" in page


def test_a_claim_that_does_not_hold_is_exit_1_and_written_down(example, capsys) -> None:
    example.holds = False
    assert prove.main(["example"]) == 1
    assert "✗ DOES NOT HOLD all | hold" in capsys.readouterr().out
    assert "✗ DOES NOT HOLD" in (example.folder / "PROOF.md").read_text()


def test_fewer_trials_than_claimed_are_not_committed(example) -> None:
    assert prove.main(["--scale", "0.1"]) == 0
    assert example.asked == [0.1]
    assert list(example.folder.iterdir()) == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["--scale", "0"], ["--scale", "nan"]])
def test_bad_arguments_are_exit_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        prove.main(arguments)
    assert left.value.code == 2
    assert "no proof nonsense" in (err := capsys.readouterr().err) or "is no share" in err


def test_the_page_is_what_the_committed_proofs_say(capsys) -> None:
    assert prove.PAGE.read_text(encoding="utf-8") == prove.page(), "run `python -m tools.prove`"
    assert prove.main(["--list"]) == 0
    assert set(capsys.readouterr().out.split()) >= {"fuzz", "kill_and_resume", "many_writers"}


@pytest.mark.parametrize(
    ("module", "scale"), [(kill_and_resume, 0.01), (many_writers, 0.01), (fuzz, 0.002)]
)
def test_the_proofs_of_durability_hold_at_small_counts(module, scale) -> None:
    proof = module.run(scale)
    assert proof.claims
    assert [claim for claim in proof.claims if not claim.holds] == []
    assert proof.name == module.__name__.rpartition(".")[2]
