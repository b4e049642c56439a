"""Entries that speak, that are passed over, and what a lane says about it."""

from lanewise.lane.config import Config
from lanewise.lane.digest import lane_digest, model_digest
from lanewise.lane.ledger import Demotion, Ledger, LedgerEntry, Scope
from lanewise.lane.load import load_lane
from lanewise.lane.resolve import resolve
from lanewise.lane.resolved import FeatureDecision

CPU = "cpu-x86_64-2c"
LANE = load_lane("nam56r-tiny")
VERSIONS = {
    "moe_experts=padded.torch": {"torch": "2.13.0"},
    "moe_experts=sorted.torch": {"torch": "2.13.0", "kernels/moe.py": "sha256:1"},
}
PRESENT = {"torch": "2.13.0", "kernels/moe.py": "sha256:1"}
FILE = "sha256:" + "f" * 64


def entry(state: str = "off", *, model: bool = False, **changes: object) -> LedgerEntry:
    scope = {"models": [model_digest(LANE)]} if model else {"lanes": [lane_digest(LANE)]}
    return LedgerEntry.model_validate(
        {
            "feature": "fused_moe",
            "state": state,
            "scope": Scope.model_validate({"machine_class": CPU, **scope}),
            "evidence": ("decision:one",),
            **changes,
        }
    )


def decided(
    *entries: LedgerEntry, present: dict[str, str] | None = PRESENT, **arguments: object
) -> FeatureDecision:
    found = resolve(
        LANE,
        machine_class=CPU,
        device_type="cpu",
        mode="train",
        version_of=None if present is None else present.get,
        **{"ledger": Ledger(entries=entries, digest=FILE), **arguments},  # type: ignore[arg-type]
    )
    return next(decision for decision in found.features if decision.key == "fused_moe")


def test_a_decision_names_its_source_its_evidence_and_the_file() -> None:
    found = decided(entry(backend_versions=VERSIONS))
    assert (found.state, found.source) == ("off", "ledger_lane")
    assert (found.evidence, found.ledger_digest) == (("decision:one",), FILE)
    assert found.passed_over is None


def test_without_a_matching_entry_nothing_of_the_ledger_is_named() -> None:
    found = decided()
    assert (found.source, found.ledger_digest, found.evidence) == ("stance", None, ())


def test_evidence_expires_with_the_version_of_a_backend_and_says_so() -> None:
    found = decided(entry(backend_versions=VERSIONS), present={**PRESENT, "torch": "2.14.0"})
    assert (found.state, found.source) == ("on", "stance")
    assert found.passed_over == "evidence expired: torch 2.13.0 → 2.14.0"
    assert found.ledger_digest == FILE


def test_evidence_expires_with_the_source_of_a_kernel_and_with_its_end() -> None:
    edited = decided(
        entry(backend_versions=VERSIONS), present={**PRESENT, "kernels/moe.py": "sha256:2"}
    )
    assert edited.passed_over == "evidence expired: kernels/moe.py sha256:1 → sha256:2"
    gone = decided(entry(backend_versions=VERSIONS), present={"torch": "2.13.0"})
    assert gone.passed_over == "evidence expired: kernels/moe.py sha256:1 → gone"


def test_evidence_expires_when_the_state_asks_for_another_backend() -> None:
    old = {"moe_experts=padded.torch": {"torch": "2.13.0"}, "moe_experts=grouped.torch": {}}
    found = decided(entry("on", backend_versions=old))
    assert found.passed_over == "evidence expired: moe_experts is sorted.torch now"


def test_an_entry_written_by_hand_never_expires() -> None:
    assert decided(entry(), present={}).source == "ledger_lane"


def test_of_a_lane_that_will_run_elsewhere_no_version_is_compared() -> None:
    assert decided(entry(backend_versions=VERSIONS), present=None).source == "ledger_lane"


def test_a_demoted_entry_does_not_speak() -> None:
    demotion = Demotion(date="2026-12-01", evidence=(), by="lanewise graduate")
    found = decided(entry(demoted=demotion))
    assert (found.source, found.passed_over) == ("stance", "demoted on 2026-12-01")


def test_where_the_lanes_entry_expired_the_models_speaks_and_the_reason_is_kept() -> None:
    found = decided(
        entry("on", backend_versions={"moe_experts=sorted.torch": {"torch": "2.12.0"}}),
        entry("off", model=True),
    )
    assert (found.state, found.source) == ("off", "ledger_class")
    assert found.passed_over == "evidence expired: torch 2.12.0 → 2.13.0"


def test_a_newer_demotion_does_not_silence_a_later_entry() -> None:
    demotion = Demotion(date="2026-12-01", evidence=(), by="lanewise graduate")
    found = decided(entry("on", demoted=demotion), entry("off"))
    assert (found.state, found.passed_over) == ("off", None)


def test_entries_of_a_configuration_are_asked_first() -> None:
    config = Config(ledger=Ledger(entries=(entry("on"),)))
    assert decided(entry("off"), config=config).state == "on"
    silent = Config(ledger=Ledger(entries=(entry("on", backend_versions={"x": {"torch": "1"}}),)))
    assert decided(entry("off"), config=silent).state == "off"
