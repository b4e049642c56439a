"""Named shapes of every op, one place for tests, benchmarks and tuning.

`tiny`, `odd` (63 tokens) and `single` (one token) are small enough for any test; `nam56r-tiny` and `nam56r` are what
those presets ask for per micro-batch; `anchor_*` are the shapes at which public kernels were measured on one H100, or the
sizes of the public model that a block comes from.
Dims carry the names of each op's legend.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TEST_SHAPES: tuple[str, ...] = ("tiny", "odd", "single")
"""Names that every op has and every backend is tested on."""

Dims = Mapping[str, int]

SHAPES: Mapping[str, Mapping[str, Dims]] = MappingProxyType(
    {
        "add_norm": {
            "tiny": {"S": 32, "d": 24},
            "odd": {"S": 63, "d": 17},
            "single": {"S": 1, "d": 8},
            "nam56r-tiny": {"S": 512, "d": 128},
            "nam56r": {"S": 16_384, "d": 3_584},
            "anchor_16k": {"S": 16_384, "d": 3_584},
        },
        "mla_ingress": {
            "tiny": {"B": 2, "T": 8, "H": 3, "D_n": 6, "D_r": 4, "D_v": 5},
            "odd": {"B": 1, "T": 63, "H": 2, "D_n": 5, "D_r": 6, "D_v": 7},
            "single": {"B": 2, "T": 1, "H": 2, "D_n": 4, "D_r": 2, "D_v": 4},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "D_n": 16, "D_r": 16, "D_v": 16},
            "nam56r": {"B": 4, "T": 4_096, "H": 28, "D_n": 64, "D_r": 64, "D_v": 64},
            "anchor_56_heads": {"B": 4, "T": 4_096, "H": 56, "D_n": 64, "D_r": 64, "D_v": 64},
        },
        "attention_core": {
            "tiny": {"B": 2, "T": 8, "H": 3, "H_kv": 3, "D_qk": 10, "D_v": 5, "documents": 0},
            "odd": {"B": 1, "T": 63, "H": 2, "H_kv": 2, "D_qk": 11, "D_v": 7, "documents": 0},
            "single": {"B": 2, "T": 1, "H": 2, "H_kv": 2, "D_qk": 6, "D_v": 4, "documents": 0},
            "wide_v": {"B": 1, "T": 9, "H": 2, "H_kv": 2, "D_qk": 4, "D_v": 6, "documents": 0},
            "equal": {"B": 2, "T": 16, "H": 2, "H_kv": 2, "D_qk": 8, "D_v": 8, "documents": 0},
            "blocks": {"B": 1, "T": 97, "H": 2, "H_kv": 2, "D_qk": 6, "D_v": 4, "documents": 0},
            "documents": {"B": 2, "T": 63, "H": 2, "H_kv": 2, "D_qk": 6, "D_v": 4, "documents": 1},
            "grouped": {"B": 2, "T": 63, "H": 4, "H_kv": 2, "D_qk": 8, "D_v": 8, "documents": 1},
            "one_kv_head": {
                "B": 2,
                "T": 40,
                "H": 3,
                "H_kv": 1,
                "D_qk": 7,
                "D_v": 5,
                "documents": 0,
            },
            "nam56r-tiny": {
                "B": 8,
                "T": 64,
                "H": 4,
                "H_kv": 4,
                "D_qk": 32,
                "D_v": 16,
                "documents": 0,
            },
            "nam56r": {
                "B": 4,
                "T": 4_096,
                "H": 28,
                "H_kv": 28,
                "D_qk": 128,
                "D_v": 64,
                "documents": 0,
            },
            "anchor_56_heads": {
                "B": 4,
                "T": 4_096,
                "H": 56,
                "H_kv": 56,
                "D_qk": 128,
                "D_v": 64,
                "documents": 0,
            },
        },
        "index_topk": {
            "tiny": {"B": 2, "T": 8, "H_I": 3, "D_I": 5, "k": 3},
            "odd": {"B": 1, "T": 63, "H_I": 2, "D_I": 6, "k": 9},
            "single": {"B": 2, "T": 1, "H_I": 2, "D_I": 4, "k": 4},
            "blocks": {"B": 2, "T": 97, "H_I": 2, "D_I": 4, "k": 40},
            "nam56r-tiny": {"B": 8, "T": 64, "H_I": 4, "D_I": 16, "k": 16},
            "nam56r": {"B": 4, "T": 4_096, "H_I": 32, "D_I": 64, "k": 256},
            "anchor_v32": {"B": 1, "T": 4_096, "H_I": 64, "D_I": 128, "k": 2_048},
        },
        "sparse_attention": {
            "tiny": {"B": 2, "T": 8, "H": 3, "C": 5, "D_r": 4, "k": 3},
            "odd": {"B": 1, "T": 63, "H": 2, "C": 6, "D_r": 2, "k": 9},
            "single": {"B": 2, "T": 1, "H": 2, "C": 4, "D_r": 2, "k": 1},
            "blocks": {"B": 2, "T": 97, "H": 2, "C": 4, "D_r": 2, "k": 40},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "C": 32, "D_r": 16, "k": 16},
            "nam56r": {"B": 4, "T": 4_096, "H": 28, "C": 64, "D_r": 64, "k": 256},
            "anchor_v32": {"B": 1, "T": 4_096, "H": 128, "C": 512, "D_r": 64, "k": 2_048},
        },
        "indexer_loss": {
            "tiny": {"B": 2, "T": 8, "H_I": 3, "D_I": 5, "k": 3},
            "odd": {"B": 1, "T": 63, "H_I": 2, "D_I": 6, "k": 9},
            "single": {"B": 2, "T": 1, "H_I": 2, "D_I": 4, "k": 1},
            "blocks": {"B": 2, "T": 97, "H_I": 2, "D_I": 4, "k": 40},
            "nam56r-tiny": {"B": 8, "T": 64, "H_I": 4, "D_I": 16, "k": 16},
            "nam56r": {"B": 4, "T": 4_096, "H_I": 32, "D_I": 64, "k": 256},
            "anchor_v32": {"B": 1, "T": 4_096, "H_I": 64, "D_I": 128, "k": 2_048},
        },
        "indexer_warmup_loss": {
            "tiny": {"B": 2, "T": 8, "H_I": 3, "D_I": 5, "H": 2, "D": 7},
            "odd": {"B": 1, "T": 63, "H_I": 2, "D_I": 6, "H": 3, "D": 5},
            "single": {"B": 2, "T": 1, "H_I": 2, "D_I": 4, "H": 2, "D": 4},
            "blocks": {"B": 2, "T": 97, "H_I": 2, "D_I": 4, "H": 2, "D": 6},
            "nam56r-tiny": {"B": 8, "T": 64, "H_I": 4, "D_I": 16, "H": 4, "D": 48},
            "nam56r": {"B": 4, "T": 4_096, "H_I": 32, "D_I": 64, "H": 28, "D": 128},
            "anchor_v32": {"B": 1, "T": 4_096, "H_I": 64, "D_I": 128, "H": 128, "D": 576},
        },
        "moe_experts": {
            "tiny": {"S": 32, "d": 12, "E": 4, "k": 2, "F": 10},
            "odd": {"S": 63, "d": 9, "E": 5, "k": 3, "F": 7},
            "single": {"S": 1, "d": 8, "E": 4, "k": 2, "F": 6},
            "nam56r-tiny": {"S": 512, "d": 128, "E": 8, "k": 2, "F": 128},
            "nam56r": {"S": 16_384, "d": 3_584, "E": 16, "k": 4, "F": 896},
            "anchor_swiglu": {"S": 16_384, "d": 3_584, "E": 16, "k": 4, "F": 896},
        },
        "ssm_scan": {
            "tiny": {"B": 2, "T": 16, "H": 4, "P": 6, "G": 2, "N": 8, "n": 2},
            "odd": {"B": 1, "T": 63, "H": 2, "P": 5, "G": 1, "N": 6, "n": 1},
            "single": {"B": 2, "T": 1, "H": 2, "P": 4, "G": 1, "N": 4, "n": 1},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "P": 64, "G": 1, "N": 32, "n": 8},
            "nam56r": {"B": 4, "T": 4_096, "H": 112, "P": 64, "G": 8, "N": 128, "n": 32},
            "anchor_siso": {"B": 4, "T": 4_096, "H": 56, "P": 64, "G": 8, "N": 64, "n": 16},
        },
        "mimo_scan": {
            "tiny": {"B": 2, "T": 16, "H": 4, "P": 6, "G": 2, "N": 8, "R": 2, "n": 2},
            "odd": {"B": 1, "T": 63, "H": 2, "P": 5, "G": 1, "N": 6, "R": 3, "n": 1},
            "single": {"B": 2, "T": 1, "H": 2, "P": 4, "G": 1, "N": 4, "R": 2, "n": 1},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "P": 64, "G": 1, "N": 32, "R": 2, "n": 8},
            "nam56r": {"B": 4, "T": 4_096, "H": 112, "P": 64, "G": 8, "N": 128, "R": 4, "n": 32},
            "anchor_kernel": {
                "B": 1,
                "T": 8_192,
                "H": 16,
                "P": 64,
                "G": 1,
                "N": 64,
                "R": 4,
                "n": 16,
            },
        },
        "ssd_scan": {
            "tiny": {"B": 2, "T": 16, "H": 4, "P": 6, "G": 2, "N": 8},
            "odd": {"B": 1, "T": 63, "H": 2, "P": 5, "G": 1, "N": 7},
            "single": {"B": 2, "T": 1, "H": 2, "P": 4, "G": 1, "N": 4},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "P": 64, "G": 1, "N": 32},
            "nam56r": {"B": 4, "T": 4_096, "H": 112, "P": 64, "G": 8, "N": 128},
            "anchor_112_heads": {"B": 4, "T": 4_096, "H": 112, "P": 64, "G": 8, "N": 128},
        },
        "m2rnn_scan": {
            "tiny": {"B": 2, "T": 8, "H": 3, "K": 6, "V": 4},
            "odd": {"B": 1, "T": 63, "H": 2, "K": 5, "V": 3},
            "single": {"B": 2, "T": 1, "H": 2, "K": 4, "V": 2},
            "nam56r-tiny": {"B": 8, "T": 64, "H": 4, "K": 16, "V": 16},
            "nam56r": {"B": 4, "T": 4_096, "H": 44, "K": 64, "V": 16},
            "anchor_44_heads": {"B": 4, "T": 4_096, "H": 44, "K": 64, "V": 16},
        },
        "linear_cross_entropy": {
            "tiny": {"S": 32, "d": 12, "W": 40},
            "odd": {"S": 63, "d": 9, "W": 37},
            "single": {"S": 1, "d": 8, "W": 5},
            "chunks": {"S": 300, "d": 9, "W": 37},
            "nam56r-tiny": {"S": 512, "d": 128, "W": 320},
            "nam56r": {"S": 16_384, "d": 3_584, "W": 65_536},
            "anchor_65536": {"S": 16_384, "d": 3_584, "W": 65_536},
        },
        "optimizer_step": {
            "tiny": {"num_tensors": 3, "numel": 60},
            "odd": {"num_tensors": 2, "numel": 63},
            "single": {"num_tensors": 1, "numel": 1},
            "nam56r-tiny": {"num_tensors": 120, "numel": 1_900_000},
            "nam56r": {"num_tensors": 500, "numel": 4_730_000_000},
            "anchor_103m": {"num_tensors": 16, "numel": 103_000_000},
        },
    }
)
"""Op → shape name → dims."""
