"""`lanewise train`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lanewise.cli.ledger import LedgerOption, NoLedgerFlag, passed_over_lines, resolve_with_ledger
from lanewise.cli.output import DeviceOption, JsonFlag, StoreOption, console, print_json, store_root
from lanewise.errors import ReceiptError, RunInterrupted, UsageError

if TYPE_CHECKING:
    from lanewise.lane.resolved import ResolvedLane
    from lanewise.train.loop import StepResult
    from lanewise.train.request import RunRequest
    from lanewise.train.run import Run
    from lanewise.train.session import SessionResult

PLAIN_LINES = 20
"""Progress lines of a run that is not on a terminal."""


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.command("train", short_help="Train a lane: checkpoints, exact resume, a receipt.")(train)


def train(
    lane: Annotated[str, typer.Argument(help="Lane name or TOML file; see `lanewise lane list`.")],
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Optimizer steps, counted from step 0.")
    ] = 200,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one setting of the lane."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML or YAML with speed_defaults, taxes and observability."),
    ] = None,
    ledger: LedgerOption = None,
    no_ledger: NoLedgerFlag = False,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text, JSONL or Parquet file or folder, or prepared data."),
    ] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option("--checkpoint-dir", help="Folder for checkpoints.")
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="DIR",
            help="Start with the weights of this checkpoint, of a lane with the same parameters.",
        ),
    ] = None,
    record_routing: Annotated[
        Path | None,
        typer.Option(
            "--record-routing", metavar="DIR", help="Write which experts every token visits."
        ),
    ] = None,
    replay_routing: Annotated[
        Path | None,
        typer.Option(
            "--replay-routing",
            metavar="DIR",
            help="Follow recorded routing; sets model.moe.routing_mode=replayed.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of one op.", show_default="1 on a CPU"),
    ] = None,
    device: DeviceOption = "auto",
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a lane; checkpoints, exact resume, and a receipt even when interrupted."""
    if checkpoint_dir is None and (resume or checkpoint_every is not None):
        raise UsageError("--resume and --checkpoint-every need --checkpoint-dir FOLDER")
    from lanewise.lane.machine import DEFAULT_CPU_THREADS

    resolved = _resolve(
        lane,
        overrides or [],
        config,
        device,
        replays=replay_routing is not None,
        ledger=ledger,
        no_ledger=no_ledger,
        store_root=store_root(store),
    )
    for line in passed_over_lines(resolved):
        _say(line)
    num_threads = threads or DEFAULT_CPU_THREADS

    from lanewise.train.request import RunRequest

    request = RunRequest(
        resolved=resolved,
        store_root=store_root(store),
        num_threads=num_threads,
        steps=steps,
        data_path=data,
        checkpoint_dir=None if checkpoint_dir is None else str(checkpoint_dir),
        checkpoint_interval_steps=checkpoint_every,
        resume=resume,
        init_from=None if init_from is None else str(init_from),
        record_routing=None if record_routing is None else str(record_routing),
        replay_routing=None if replay_routing is None else str(replay_routing),
    )
    _train(request, steps, as_json=as_json)


def _resolve(
    name: str,
    overrides: list[str],
    config: Path | None,
    device: Literal["auto", "cpu", "cuda"],
    *,
    replays: bool,
    **ledger: Any,
) -> ResolvedLane:
    from lanewise.lane.built import require_built
    from lanewise.lane.config import load_config
    from lanewise.lane.load import load_lane
    from lanewise.lane.machine import choose_device, detect_machine_class

    lane = load_lane(name, overrides)
    if replays and lane.model.moe is not None:
        lane = load_lane(name, [*overrides, "model.moe.routing_mode=replayed"])
    require_built(lane)
    device_type = choose_device(device)
    return resolve_with_ledger(
        lane,
        here=True,
        machine_class=detect_machine_class(device_type),
        device_type=device_type,
        mode="train",
        config=None if config is None else load_config(config),
        **ledger,
    )


def _train(request: RunRequest, steps: int, *, as_json: bool) -> None:
    from lanewise.receipts.environment import child_environment, exported

    # Thread pools read these when torch is imported, which the next lines do; receipts record them.
    with exported(child_environment(request.num_threads)):
        _train_in_environment(request, steps, as_json=as_json)


def _train_in_environment(request: RunRequest, steps: int, *, as_json: bool) -> None:
    from lanewise.train.process import prepare_process
    from lanewise.train.run import Run
    from lanewise.train.session import stop_on_signals, train_to

    host_allocator = prepare_process(request.num_threads)
    with stop_on_signals() as stop:
        run = Run(request, host_allocator=host_allocator)
        _say(f"{request.resolved.canonical_name} · {run.describe()}")
        for message in run.messages:
            _say(message)
        first_step = run.next_step
        with _progress(run, steps) as on_step:
            result = train_to(run, steps, stop=stop, on_step=on_step)
    summary = _summary(run, result, first_step)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)
    if result.interrupted is not None:
        kept = f"; checkpoint {result.checkpoint}, go on with --resume" if result.checkpoint else ""
        raise RunInterrupted(
            f"stopped by {result.interrupted} after {run.next_step} of {steps} steps{kept}"
        )
    if result.diverged is not None:
        raise ReceiptError(
            f"training diverged: {result.diverged}; the receipt is kept and is invalid. "
            "Lower optimizer.learning_rate or raise optimizer.warmup_steps with --set"
        )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


@contextlib.contextmanager
def _progress(run: Run, steps: int) -> Iterator[Any]:
    """A bar on a terminal, a line now and then elsewhere; yields what is called after each step."""
    rate = _TokenRate(run.tokens_per_step)
    if not sys.stderr.isatty():
        every = max(1, steps // PLAIN_LINES)

        def print_line(result: StepResult) -> None:
            rate.add(result)
            done = result.step + 1
            if done % every == 0 or done == steps:
                left_seconds = (steps - done) * run.tokens_per_step / rate.value
                _say(
                    f"step {done}/{steps}  loss {result.loss:.4f}  {rate.value:,.0f} tokens/s  "
                    f"ETA {left_seconds:.0f} s"
                )

        yield print_line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} tokens/s  ETA"),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(
            "train", total=steps, completed=run.next_step, loss=float("nan"), rate=0
        )

        def move_bar(result: StepResult) -> None:
            rate.add(result)
            bar.update(task, completed=result.step + 1, loss=result.loss, rate=rate.value)

        yield move_bar


class _TokenRate:
    """Tokens per second over the last steps, exponentially smoothed."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._seconds: float | None = None

    def add(self, result: StepResult) -> None:
        """Take in one step."""
        seconds = result.duration_seconds
        self._seconds = seconds if self._seconds is None else 0.8 * self._seconds + 0.2 * seconds

    @property
    def value(self) -> float:
        """Tokens per second."""
        return self._tokens_per_step / self._seconds if self._seconds else 0.0


def _summary(run: Run, result: SessionResult, first_step: int) -> dict[str, Any]:
    from lanewise.train.loss_record import AUXILIARY_KEY

    receipt = result.finished.receipt
    return {
        "steps": {"first": first_step, "next": run.next_step},
        "loss_first": receipt.numerics.loss_first,
        "loss_last": receipt.numerics.loss_last,
        "auxiliary_losses": receipt.extensions.get(AUXILIARY_KEY, {}),
        "unigram_entropy_nats": receipt.data.unigram_entropy_nats,
        "tokens_per_second": receipt.throughput.tokens_per_second,
        "goodput_ratio": None if receipt.goodput is None else receipt.goodput.goodput_ratio,
        "status": receipt.outcome.status,
        "validity": receipt.outcome.validity,
        "reasons": list(result.finished.reasons),
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        "receipt_id": result.finished.receipt.receipt_id,
        "receipt_path": result.finished.location,
    }


def _print_summary(summary: dict[str, Any]) -> None:
    def shown(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    steps = summary["steps"]
    entropy = shown(summary["unigram_entropy_nats"], ".4f")
    lines = [
        f"steps      {steps['first']} to {steps['next']}, {summary['status']}",
        f"loss       {shown(summary['loss_first'], '.4f')} to {shown(summary['loss_last'], '.4f')} nats; "
        f"unigram entropy of the corpus {entropy}",
        f"speed      {_speed(summary['tokens_per_second'])}",
        f"goodput    {shown(summary['goodput_ratio'], '.1%')}",
    ]
    for name, values in summary["auxiliary_losses"].items():
        first, last = (shown(values[place], ".4f") for place in ("first", "last"))
        lines.append(f"{name:10} {first} to {last}, before its weight")
    if summary["checkpoint"]:
        lines.append(f"checkpoint {summary['checkpoint']}")
    lines.append(f"receipt    {summary['receipt_path']} ({summary['validity']})")
    lines += [f"           {reason}" for reason in summary["reasons"]]
    console().print("\n".join(lines), markup=False)


def _speed(tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return "not measured: no steady steps"
    return f"{tokens_per_second:,.0f} tokens/s in steady steps"
