"""`lanewise data`: look at training data, and tokenise it once for many runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lanewise.cli.output import JsonFlag, console, print_json

if TYPE_CHECKING:
    from lanewise.receipts.schema import DataRecord
    from lanewise.train.data.corpus import Corpus

group = typer.Typer(
    name="data",
    help="Training data: inspect it, prepare it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SOURCE_HELP = "`stdlib`, a text, .jsonl or .parquet file, a folder of them, or a prepared folder."

SAMPLED_ROWS = 1_000
"""Rows looked at for one that shows a document boundary."""

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="`bytes`, or a `tokenizers` JSON file.")
]
TextFieldOption = Annotated[
    str, typer.Option("--text-field", help="JSONL field or Parquet column that holds the text.")
]


def register(app: typer.Typer) -> None:
    """Add this verb group to the command line."""
    app.add_typer(group)


@group.command(short_help="Count documents and tokens; show the digest.")
def inspect(
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help=SOURCE_HELP)] = "stdlib",
    tokenizer: TokenizerOption = "bytes",
    text_field: TextFieldOption = "text",
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens of the sample row.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which order, hence row.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Count documents and tokens, show the digest, the unigram entropy and one packed row."""
    corpus = _open(data, tokenizer, text_field, sequence_length=sequence_length)
    sample = _sample_row(corpus, sequence_length, seed)
    if as_json:
        print_json(
            {
                "data": corpus.record,
                "vocab_size": corpus.vocab_size,
                "separator_id": corpus.separator_id,
                "sample": sample,
            }
        )
        return
    _print_facts(corpus.record)
    show = console()
    show.print(f"vocabulary   {corpus.vocab_size} ids, separator {corpus.separator_id}")
    show.print(f"sample row   {sequence_length} tokens, seed {seed}")
    for piece in sample:
        begins = "document" if piece["opens"] else "…inside document"
        show.print(f"  {begins} {piece['document_id']}: {piece['text']!r}", markup=False)


@group.command(short_help="Tokenise SOURCE once into a folder for --data.")
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    tokenizer: TokenizerOption = "bytes",
    text_field: TextFieldOption = "text",
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it is a prepared corpus.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Tokenise SOURCE once into the folder OUT, which `--data OUT` then maps into memory."""
    from pathlib import Path

    from lanewise.train.data.prepared import check_target, write_prepared

    target = Path(out).expanduser()
    check_target(target, force=force)
    corpus = _open(source, tokenizer, text_field, sequence_length=1)
    manifest = write_prepared(corpus, target, force=force)
    if as_json:
        print_json(manifest)
        return
    _print_facts(corpus.record)
    total = sum(file.size_bytes for file in manifest.files.values())
    own = "" if tokenizer == "bytes" else f" --set data.tokenizer={out}/tokenizer.json"
    console().print(
        f"written      {out}, {total / 2**20:.1f} MiB; use it with --data {out}{own}", markup=False
    )


def _open(source: str, tokenizer: str, text_field: str, *, sequence_length: int) -> Corpus:
    from lanewise.lane.schema import DataSpec
    from lanewise.train.data.corpus import open_corpus

    spec = DataSpec(source=source, tokenizer=tokenizer, text_field=text_field)
    return open_corpus(spec, path=None, sequence_length=sequence_length)


def _sample_row(corpus: Corpus, sequence_length: int, seed: int) -> list[dict[str, Any]]:
    """One packed row cut at document boundaries: the first of the epoch's first rows that has a boundary, else row 0."""
    import itertools

    from lanewise.train.data.packing import Loader

    loader = Loader(corpus, micro_batch_size=1, sequence_length=sequence_length, seed=seed)
    rows = [loader.next() for _ in range(min(loader.rows_per_epoch, SAMPLED_ROWS))]
    row = next((row for row in rows if row.document_ids[0, 0] != row.document_ids[0, -1]), rows[0])
    pairs = zip(row.document_ids[0].tolist(), row.tokens[0].tolist(), strict=True)
    pieces = []
    for document_id, piece in itertools.groupby(pairs, key=lambda pair: pair[0]):
        tokens = [token for _, token in piece]
        pieces.append(
            {
                "document_id": document_id,
                "opens": tokens[0] == corpus.separator_id,
                "num_tokens": len(tokens),
                "text": corpus.tokenizer.decode(tokens),
            }
        )
    return pieces


def _print_facts(record: DataRecord) -> None:
    show = console()
    show.print(f"data         {record.source}, tokens by {record.tokenizer}", markup=False)
    show.print(f"documents    {record.num_documents:,}")
    show.print(f"tokens       {record.num_tokens:,}, one separator a document included")
    if record.unigram_entropy_nats is not None:
        show.print(
            f"entropy      {record.unigram_entropy_nats:.4f} nats per token from frequencies alone"
        )
    show.print(f"digest       {record.digest}")
