"""A text being written by a checkpoint: what `lanewise generate` runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lanewise.errors import UsageError
from lanewise.models.decode import Decoder, MtpDrafter, Sampling
from lanewise.train import saved
from lanewise.train.saved import SavedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One text.

    Attributes:
        source: the model and its tokenizer.
        decoder: counts drafts and calls while `tokens` is read.
        prompt_ids: the separator that opens every document, then the prompt.
        tokens: ids after the prompt, each computed when it is asked for; they end where the document does.
    """

    source: SavedModel
    decoder: Decoder
    prompt_ids: tuple[int, ...]
    tokens: Iterator[int]


def start(
    checkpoint: Path,
    prompt: bytes,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    draft: bool | None = None,
    device_type: str = "cpu",
) -> Generation:
    """Load a checkpoint and prepare to write on from a prompt.

    Args:
        checkpoint: a checkpoint or a directory of them.
        prompt: UTF-8 text.
        max_new_tokens: most tokens to write.
        sampling: how a token is chosen.
        seed: of the sampling.
        draft: whether MTP drafts; None drafts if the model has it.
        device_type: `cpu` or `cuda`.

    Raises:
        UsageError: `saved.load` refuses the checkpoint, or drafts were asked for and the model has no MTP.
        DataError: the tokenizer is missing.
    """
    source = saved.load(checkpoint, device=torch.device(device_type))
    has_mtp = source.model.mtp is not None
    if draft and not has_mtp:
        raise UsageError(
            f"drafts need MTP, which checkpoint {source.path.name} of lane '{source.lane.name}' does not have; "
            "leave --draft out, or train a lane with the table [model.mtp]"
        )
    tokenizer = source.tokenizer
    decoder = Decoder(
        source.model,
        sampling=sampling,
        generator=torch.Generator().manual_seed(seed),
        num_ids=tokenizer.vocab_size,
    )
    prompt_ids = (tokenizer.separator_id, *(int(i) for i in tokenizer.encode([prompt])[0]))
    drafter = MtpDrafter(source.model) if has_mtp and draft is not False else None
    tokens = decoder.generate(
        prompt_ids,
        max_new_tokens=max_new_tokens,
        stop_id=tokenizer.separator_id,
        drafter=drafter,
    )
    return Generation(source=source, decoder=decoder, prompt_ids=prompt_ids, tokens=tokens)
