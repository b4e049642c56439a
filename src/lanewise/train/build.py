"""From a lane and its tokenizer to a model whose weights are not drawn yet."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lanewise.lane.schema import Lane
from lanewise.models.model import HybridModel
from lanewise.ops.opset import OpSet
from lanewise.train.data.token_facts import token_facts
from lanewise.train.data.tokens import Tokenizer


def build_model(
    lane: Lane, *, model_switches: Mapping[str, bool], ops: OpSet, tokenizer: Tokenizer
) -> HybridModel:
    """Assemble the model of a lane.

    Args:
        lane: a validated lane.
        model_switches: features read at assembly.
        ops: resolved for this lane, these switches and the device.
        tokenizer: metadata embeddings are built from its vocabulary.
    """
    facts = None
    if model_switches.get("metadata_embeddings", False):
        facts = torch.from_numpy(token_facts(tokenizer, lane.model.vocab_size))
    return HybridModel(lane, model_switches=model_switches, ops=ops, token_facts=facts)
