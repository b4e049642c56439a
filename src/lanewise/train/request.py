"""What a child process is asked to do. Torch-free, shared by the lab and by `lanewise train`.

Lockstep protocol over one `multiprocessing.connection` pipe, messages are plain dicts:

    child  → parent   {"event": "ready", "pid": int, "setup_seconds": float}
    parent → child    {"command": "step", "count": int}
    child  → parent   {"event": "stepped", "duration_seconds": [float], "loss": [float], "tags": [[str]],
                       "device_bytes": int | None}                         taken from the GPU so far; None on a CPU
    parent → child    {"command": "finish", "warmup": Warmup as a dict | None}
                       steps to drop, decided by the parent for both arms; None lets the child detect its own.
                       "host": HostWindow as a dict, or {"missing": why}: what the parent saw over the timed steps
    child  → parent   {"event": "finished", "receipt_id": str, "receipt_path": str, "validity": str, "reasons": [str]}
    child  → parent   {"event": "failed", "error": str, "exit_code": int, "failure": {…} | None}
                       instead of any of the above; the facts are a record of `receipts.failures`, None for refused input
    parent → child    {"command": "abort"}                                     the child writes no receipt and exits

A parent that goes away (end of file) is an abort.

A screen's child holds both arms (`PairRequest`, `train/toggle.py`). It differs in three messages:

    parent → child    {"command": "turns", "order": "ABBA"}                    one step for each letter, in this order
    child  → parent   {"event": "stepped", ...}                                lists in the order of the letters
    child  → parent   {"event": "finished", "receipts": {"A": str, "B": str}, "validity": {"A": str, "B": str}}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lanewise.lane.resolved import ResolvedLane
from lanewise.lane.spec import Spec
from lanewise.receipts.schema import Experiment


class RunRequest(Spec):
    """One run, completely.

    Attributes:
        resolved: the lane with every default decided.
        store_root: folder (or fsspec URI) that holds `receipts/`.
        num_threads: intra-op threads of this process.
        steps: optimizer steps to take; None in lockstep, where the parent asks for steps.
        data_path: replaces the lane's data source; None keeps it.
        checkpoint_dir: where checkpoints go; None writes none.
        checkpoint_interval_steps: steps between checkpoints; None only at the end.
        resume: continue from the newest checkpoint in `checkpoint_dir`.
        init_from: checkpoint whose weights a run starts with at step 0, of a lane with the same parameters.
        record_routing: folder to write the routing of every E layer to; None records nothing.
        replay_routing: folder of a recording to follow; a lane whose routing mode is `replayed` needs one.
        experiment: place in a campaign; None for a plain training run.
        protocol: the measurement protocol's parameters, hashed into `protocol_digest`.
        measure_memory: take one profiled step after the timed window to count peak tensor memory.
        planted_delay_ratio: prolongs every step by this share of its own time, inside the timed step: the positive
            control of a campaign, whose true effect is known. None plants nothing.
        cores: processors the steps run on; None leaves the process where the system puts it.
        compile_cache_dir: folder for the caches of torch's compilers, this run's alone; None leaves them where they are.
    """

    resolved: ResolvedLane
    store_root: str
    num_threads: int
    steps: int | None = None
    data_path: str | None = None
    checkpoint_dir: str | None = None
    checkpoint_interval_steps: int | None = None
    resume: bool = False
    init_from: str | None = None
    record_routing: str | None = None
    replay_routing: str | None = None
    experiment: Experiment | None = None
    protocol: dict[str, str | int | float | bool] = Field(default_factory=dict)
    measure_memory: bool = True
    planted_delay_ratio: Annotated[float, Field(gt=0.0)] | None = None
    cores: tuple[int, ...] | None = None
    compile_cache_dir: str | None = None


class PairRequest(Spec):
    """Two runs of one process, for a screen.

    Attributes:
        control: arm A.
        treated: arm B.
    """

    control: RunRequest
    treated: RunRequest


def sharing_fault(control: ResolvedLane, treated: ResolvedLane) -> str | None:
    """Why two lanes cannot be run in one process, or None.

    Compiled code is cached per Python function and counted per process: two compiled models would fill each other's caches
    (torch recompiles a function for every set of guards, up to a limit, then gives up) and their counts could not be told
    apart. One compiled model beside an eager one is safe: only its own modules enter the compiler.
    """
    if all(lane.runtime_switches.get("regional_compile", False) for lane in (control, treated)):
        return (
            "both arms compile, and in one process they would share the compiler's caches; "
            "measure this feature with `lanewise ablate`, or switch regional_compile off for the screen"
        )
    return None
