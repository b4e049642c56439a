"""`lanewise doctor`: the machine, every op × backend, and the measured ceilings."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.output import DeviceOption, JsonFlag, console, print_json, print_table

if TYPE_CHECKING:
    from lanewise.lane.machine import DeviceType
    from lanewise.measure.ceilings import Ceilings
    from lanewise.ops.registry import Availability


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command()(doctor)


def doctor(
    device: DeviceOption = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the copy and matmul measurement (three seconds).")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the machine, which backend of which op runs here or why not, and what the machine can do at best."""
    from lanewise.lane.machine import choose_device
    from lanewise.ops.dispatch import capabilities
    from lanewise.ops.registry import availability

    device_type = choose_device(device)
    offered = capabilities(device_type)
    machine = _machine(device_type, has_cxx_compiler=offered.has_cxx_compiler)
    rows = availability(offered)
    if as_json:
        ceilings = None if quick else _ceilings(device_type, machine["usable_cores"])
        print_json(
            {
                "machine": machine,
                "backends": [asdict(row) | {"available": row.available} for row in rows],
                "ceilings": None if ceilings is None else asdict(ceilings),
            }
        )
        return
    _print_machine(machine)
    _print_backends(rows)
    if not quick:
        _print_ceilings(_ceilings(device_type, machine["usable_cores"]))


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


def _ceilings(device_type: DeviceType, num_threads: int) -> Ceilings:
    import time

    from lanewise.measure.ceilings import measure_ceilings

    if sys.stderr.isatty():
        console(stderr=True).print("measuring memory copy and matmul, about three seconds …")
    return measure_ceilings(device_type, num_threads, clock=time.perf_counter_ns)


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


def _print_ceilings(ceilings: Ceilings) -> None:
    console().print()
    console().print(
        f"ceilings      copy {ceilings.copy_bytes_per_second / 1e9:.1f} GB/s · "
        f"{ceilings.dtype} matmul {ceilings.matmul_flops_per_second / 1e9:,.0f} GFLOP/s, "
        f"measured on {ceilings.num_threads} threads"
    )
