"""`lanewise doctor`: the machine, every op × backend, and the measured ceilings, which later runs cite."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.output import (
    DeviceOption,
    JsonFlag,
    StoreOption,
    console,
    print_json,
    print_table,
    store_root,
)

if TYPE_CHECKING:
    from lanewise.lane.machine import DeviceType
    from lanewise.measure.ceilings import Ceilings
    from lanewise.ops.registry import Availability


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command(short_help="This machine: every op and backend, and what it can do at best.")(
        doctor
    )


def doctor(
    device: DeviceOption = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the copy and matmul measurement (five seconds).")
    ] = False,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the machine, which backend of which op runs here or why not, and what the machine can do at best.

    The ceilings are kept in the store; runs on this machine cite them for their FLOPs utilisation.
    """
    from lanewise.lane.machine import choose_device
    from lanewise.ops.dispatch import capabilities
    from lanewise.ops.registry import availability

    device_type = choose_device(device)
    offered = capabilities(device_type)
    machine = _machine(device_type, has_cxx_compiler=offered.has_cxx_compiler)
    rows = availability(offered)
    if as_json:
        measured = () if quick else _ceilings(device_type, machine["usable_cores"])
        kept = _keep(device_type, measured, machine, store) if measured else None
        print_json(
            {
                "machine": machine,
                "backends": [asdict(row) | {"available": row.available} for row in rows],
                "ceilings": [asdict(each) for each in measured] or None,
                "kept": kept,
            }
        )
        return
    _print_machine(machine)
    _print_backends(rows)
    if not quick:
        measured = _ceilings(device_type, machine["usable_cores"])
        _print_ceilings(measured)
        console().print(f"{'':<13} {_keep(device_type, measured, machine, store)}", markup=False)


def _machine(device_type: DeviceType, *, has_cxx_compiler: bool) -> dict[str, Any]:
    from lanewise.lane.machine import detect_machine_class, usable_cores
    from lanewise.receipts.environment import collect_environment

    environment = collect_environment()
    return {
        "class": detect_machine_class(device_type),
        "cpu_model": environment.host_cpu_model_name,
        "usable_cores": usable_cores(),
        "memory_bytes": environment.host_memory_bytes,
        "os": environment.os_description,
        "python": environment.python_version,
        "torch": environment.packages.get("torch"),
        "triton": environment.packages.get("triton"),
        "cxx_compiler": has_cxx_compiler,
        "gpu": _gpu_class(),
        "packages": environment.packages,
        "variables": environment.variables,
    }


def _gpu_class() -> str | None:
    from lanewise.errors import UsageError
    from lanewise.lane.machine import detect_machine_class

    try:
        return detect_machine_class("cuda")
    except UsageError:
        return None


def _ceilings(device_type: DeviceType, usable_cores: int) -> tuple[Ceilings, ...]:
    """With the threads a run on a CPU takes by default, then with every core; a GPU needs one measurement."""
    import time

    from lanewise.lane.machine import DEFAULT_CPU_THREADS
    from lanewise.measure.ceilings import measure_ceilings

    if sys.stderr.isatty():
        console(stderr=True).print("measuring memory copy and matmul, about five seconds …")
    threads = {DEFAULT_CPU_THREADS, usable_cores} if device_type == "cpu" else {usable_cores}
    return tuple(
        measure_ceilings(device_type, num_threads, clock=time.perf_counter_ns)
        for num_threads in sorted(threads)
    )


def _keep(
    device_type: DeviceType,
    measured: tuple[Ceilings, ...],
    machine: dict[str, Any],
    store: str | None,
) -> str:
    """Write the ceilings to the store; returns where, or why not: a doctor must not need a writable disk."""
    from datetime import UTC, datetime

    from lanewise import __version__
    from lanewise.errors import StoreError
    from lanewise.lane.gpu import find_gpu
    from lanewise.receipts.ceilings import FOLDER, CeilingRecord
    from lanewise.receipts.machine import collect_machine
    from lanewise.receipts.schema import Producer
    from lanewise.receipts.store import Store

    place = Store(store_root(store))
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    on_gpu = device_type == "cuda"
    identity = collect_machine(machine["class"], gpu=find_gpu() if on_gpu else None)
    try:
        for each in measured:
            place.write_ceilings(
                CeilingRecord(
                    measured_at=now,
                    producer=Producer(name="lanewise", version=__version__),
                    machine=identity,
                    torch_version=machine["torch"],
                    # How many threads launch a product says nothing about what a GPU does with it.
                    **(asdict(each) | ({"num_threads": None} if on_gpu else {})),
                )
            )
    except StoreError as error:
        return f"not kept: {error}"
    return f"kept in {place.root}/{FOLDER}"


def _print_machine(machine: dict[str, Any]) -> None:
    memory = machine["memory_bytes"]
    gpu = machine["gpu"]
    facts = {
        "machine": f"{machine['class']} · {machine['cpu_model'] or 'unnamed CPU'}",
        "cores": f"{machine['usable_cores']} usable",
        "memory": "unknown" if memory is None else f"{memory / 2**30:.1f} GiB",
        "system": machine["os"],
        "python": machine["python"],
        "torch": machine["torch"] or "not installed",
        "triton": machine["triton"] or "not installed",
        "C++ compiler": "found"
        if machine["cxx_compiler"]
        else "none: regional_compile cannot be measured; install g++ or set CXX",
        "GPU": "none" if gpu is None else gpu,
    }
    for name, value in facts.items():
        console().print(f"{name:<13} {value}", markup=False)


def _print_backends(rows: tuple[Availability, ...]) -> None:
    console().print()
    print_table(
        ("op", "backend", "here", "what it is"),
        ((row.op, _name(row), _status(row), row.note) for row in rows),
    )


def _name(row: Availability) -> str:
    return f"{row.backend} (oracle)" if row.is_reference else row.backend


def _status(row: Availability) -> str:
    if row.reason is not None:
        return f"no: {row.reason}"
    return "yes, for some shapes" if row.depends_on_shape else "yes"


def _print_ceilings(measured: tuple[Ceilings, ...]) -> None:
    console().print()
    for number, each in enumerate(measured):
        threads = f"{each.num_threads} thread{'s' * (each.num_threads != 1)}"
        console().print(
            f"{'ceilings' if number == 0 else '':<13} copy {each.copy_bytes_per_second / 1e9:.1f} GB/s · "
            f"{each.dtype} matmul {each.matmul_flops_per_second / 1e9:,.0f} GFLOP/s, measured on {threads}"
        )
