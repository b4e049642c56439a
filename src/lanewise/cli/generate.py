"""`lanewise generate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.output import JsonFlag, print_json
from lanewise.errors import DataError, RunInterrupted, UsageError

if TYPE_CHECKING:
    from lanewise.models.decode import Decoder, Sampling
    from lanewise.train.data.tokens import Tokenizer
    from lanewise.train.generation import Generation
    from lanewise.train.session import StopRequest

STDIN = "-"
MAX_SEED = 2**53 - 1
"""As of a lane; JSON keeps it exactly."""
UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are no character, or not yet."""


def register(app: typer.Typer) -> None:
    """Add this verb to the command line."""
    app.command("generate", short_help="Write on from a prompt with a trained checkpoint.")(
        generate
    )


def generate(
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="What --checkpoint-dir of `lanewise train` was; its newest is taken. One step-… folder inside works too.",
        ),
    ],
    source: Annotated[
        str | None, typer.Argument(metavar="[-]", help="- reads the prompt from standard input.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Text to go on from.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="File of that text.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Most tokens to write.")
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            min=0.0,
            help="0 always takes the likeliest token; 1 samples as learned.",
        ),
    ] = 0.0,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Sample among this many.", show_default="all"),
    ] = None,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Sample among the likeliest that hold this probability."),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the sampling.")
    ] = 0,
    draft: Annotated[
        bool | None,
        typer.Option(
            "--draft/--no-draft",
            help="Let the MTP block guess ahead; the text is the same, the speed is not.",
            show_default="draft if the model has MTP",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of one op.", show_default="1 on a CPU"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write on from a prompt with a trained checkpoint, token by token.

    The text goes to standard output as it comes, speed and acceptance of drafts to standard error. Generation ends at
    the end of a document as the model sees it, or after --max-new-tokens.

    \b
    lanewise train nam56r-tiny --steps 300 --checkpoint-dir runs/a
    lanewise generate --checkpoint runs/a --prompt "def main("
    lanewise generate --checkpoint runs/a --prompt "import" --temperature 0.8 --top-p 0.95 --seed 1
    cat story.txt | lanewise generate --checkpoint runs/a - --max-new-tokens 500 > more.txt
    """
    text = _prompt(source, prompt, prompt_file)
    _check_top_p(top_p)
    from lanewise.lane.machine import DEFAULT_CPU_THREADS
    from lanewise.receipts.environment import child_environment, exported

    num_threads = threads or DEFAULT_CPU_THREADS
    # Thread pools read these when torch is imported, which the next lines do.
    with exported(child_environment(num_threads)):
        from lanewise.models.decode import Sampling

        _generate(
            checkpoint,
            text,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            seed=seed,
            draft=draft,
            num_threads=num_threads,
            as_json=as_json,
        )


def _generate(
    checkpoint: Path,
    prompt: bytes,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    draft: bool | None,
    num_threads: int,
    as_json: bool,
) -> None:
    from lanewise.train import generation
    from lanewise.train.process import prepare_process
    from lanewise.train.session import stop_on_signals

    prepare_process(num_threads)
    with stop_on_signals() as stop:
        text = generation.start(
            checkpoint,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            draft=draft,
        )
        for message in text.source.messages:
            _say(message)
        writing = _Writing(text.source.tokenizer, quiet=as_json)
        writing.run(text.tokens, stop)
    if as_json:
        ended = stop.reason or ("length" if len(writing.ids) == max_new_tokens else "document end")
        print_json(_document(text, prompt, writing, ended=ended))
    _say(_speed(writing, text.decoder))
    if stop.reason is not None:
        raise RunInterrupted(
            f"stopped by {stop.reason} after {len(writing.ids)} of {max_new_tokens} tokens"
        )


class _Writing:
    """Turns tokens into text as they come, and takes the time.

    Attributes:
        ids: tokens so far.
        text: their text.
        first_seconds: until the first token, the prompt's pass included; None before it.
        seconds: until the last token.
    """

    def __init__(self, tokenizer: Tokenizer, *, quiet: bool) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.first_seconds: float | None = None
        self.seconds = 0.0
        self._tokenizer = tokenizer
        self._quiet = quiet
        self._num_shown = 0

    def run(self, tokens: Iterator[int], stop: StopRequest) -> None:
        """Write until the tokens end or a signal came."""
        start = time.perf_counter()
        for token in tokens:
            self.seconds = time.perf_counter() - start
            if self.first_seconds is None:
                self.first_seconds = self.seconds
            self.ids.append(token)
            self.text = self._tokenizer.decode(self.ids)
            # A character cut in half waits for its other bytes.
            if not self.text.endswith(UNFINISHED):
                self._show()
            if stop.reason is not None:
                break
        self._show()
        if not self._quiet and self.ids:
            sys.stdout.write("\n")
            sys.stdout.flush()

    @property
    def tokens_per_second(self) -> float | None:
        """Rate after the first token; None with fewer than two."""
        if self.first_seconds is None or self.seconds <= self.first_seconds:
            return None
        return (len(self.ids) - 1) / (self.seconds - self.first_seconds)

    def _show(self) -> None:
        if not self._quiet:
            sys.stdout.write(self.text[self._num_shown :])
            sys.stdout.flush()
        self._num_shown = len(self.text)


def _prompt(source: str | None, prompt: str | None, prompt_file: Path | None) -> bytes:
    given = [each is not None for each in (source, prompt, prompt_file)]
    if sum(given) != 1:
        raise UsageError(
            f"{sum(given)} prompts were given and one is needed: --prompt TEXT, --prompt-file FILE, or - for standard input"
        )
    if source is not None and source != STDIN:
        raise UsageError(
            f"{source!r} is no prompt; write --prompt {source!r}, or - for standard input"
        )
    if prompt is not None:
        # Bytes of the shell that are no UTF-8 arrive as lone surrogates, and are refused as such below.
        text, where = prompt.encode("utf-8", "surrogatepass"), "--prompt"
    elif prompt_file is not None:
        if not prompt_file.is_file():
            raise UsageError(f"no prompt file {str(prompt_file)!r}; give one, or --prompt TEXT")
        text, where = prompt_file.read_bytes(), str(prompt_file)
    else:
        text, where = sys.stdin.buffer.read(), "standard input"
    if not text:
        raise UsageError(
            f"the prompt ({where}) is empty; give at least one character to go on from"
        )
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt ({where}) is not UTF-8 text ({error.reason})") from None
    return text


def _check_top_p(top_p: float) -> None:
    if not 0.0 < top_p <= 1.0:
        raise UsageError(f"--top-p {top_p} must be above 0 and at most 1; 1 keeps every token")


def _speed(writing: _Writing, decoder: Decoder) -> str:
    rate = writing.tokens_per_second
    line = f"{len(writing.ids)} tokens" + ("" if rate is None else f", {rate:,.1f} tokens/s")
    if writing.first_seconds is not None:
        line += f", first after {writing.first_seconds:.2f} s"
    if decoder.num_drafted:
        ratio = decoder.num_accepted / decoder.num_drafted
        line += f", drafts {decoder.num_accepted} of {decoder.num_drafted} accepted ({ratio:.0%})"
    return line


def _document(text: Generation, prompt: bytes, writing: _Writing, *, ended: str) -> dict[str, Any]:
    drafted, accepted = text.decoder.num_drafted, text.decoder.num_accepted
    return {
        "lane": text.source.lane.name,
        "checkpoint": str(text.source.path),
        "step": text.source.step,
        "prompt": prompt.decode("utf-8"),
        "text": writing.text,
        "token_ids": writing.ids,
        "num_prompt_tokens": len(text.prompt_ids),
        "ended_by": ended,
        "first_token_seconds": writing.first_seconds,
        "tokens_per_second": writing.tokens_per_second,
        "trunk_calls": text.decoder.num_calls,
        "drafts": {
            "checked": drafted,
            "accepted": accepted,
            "acceptance_ratio": accepted / drafted if drafted else None,
        },
    }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
