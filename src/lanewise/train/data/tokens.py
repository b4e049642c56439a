"""Text → token ids: raw bytes, or a `tokenizers` JSON file. Every tokenizer has one id that separates documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lanewise.errors import DataError

BYTES: Final = "bytes"
NUM_BYTES: Final = 256

END_OF_TEXT_TOKENS: Final = ("<|endoftext|>", "<|end_of_text|>", "<|bos|>", "</s>", "<eos>")
"""Tokens that serve as separator when a tokenizer file has one, in this order; else the id after its last is added."""

TokenIds = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """What the corpus needs from a tokenizer.

    Attributes:
        name: how receipts name it: `bytes`, or the file's name.
        digest: `bytes`, or sha256 of the file.
        vocab_size: ids are below it, the separator included.
        separator_id: stands before every document.
    """

    name: str
    digest: str
    vocab_size: int
    separator_id: int

    def encode(self, texts: Sequence[bytes]) -> list[TokenIds]:
        """Token ids of each UTF-8 text, without separators, in the narrowest unsigned dtype."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Readable text; the separator becomes nothing."""
        ...

    def token_bytes(self) -> list[bytes]:
        """What each id adds to a text, UTF-8; empty for special tokens and ids without a token."""
        ...


class ByteTokenizer:
    """A byte is a token; 256 separates documents."""

    name = BYTES
    digest = BYTES
    vocab_size = NUM_BYTES + 1
    separator_id = NUM_BYTES

    def encode(self, texts: Sequence[bytes]) -> list[TokenIds]:
        """Bytes as uint16."""
        return [np.frombuffer(text, dtype=np.uint8).astype(np.uint16) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """UTF-8 text; a character cut in half becomes the replacement sign."""
        return bytes(i for i in token_ids if i < NUM_BYTES).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[bytes]:
        """Every byte, then nothing for the separator."""
        return [bytes([byte]) for byte in range(NUM_BYTES)] + [b""]


class JsonTokenizer:
    """A `tokenizers` JSON file (Hugging Face), without its automatic special tokens.

    Args:
        path: the file.

    Raises:
        DataError: missing, not JSON, or not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            json.loads(content)
        except FileNotFoundError:
            raise DataError(
                f"no tokenizer at {str(path)!r}; give a `tokenizers` JSON file, or `bytes`"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path.name}: not a tokenizer JSON file ({error})") from None
        self._tokenizer = _parse(content, path.name)
        self.content = content
        self.name = path.name
        self.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        num_ids = max(vocab.values(), default=-1) + 1
        own = next((vocab[token] for token in END_OF_TEXT_TOKENS if token in vocab), None)
        self.separator_id = num_ids if own is None else own
        self.vocab_size = max(num_ids, self.separator_id + 1)

    def encode(self, texts: Sequence[bytes]) -> list[TokenIds]:
        """Ids in the narrowest unsigned dtype that holds the vocabulary."""
        dtype = np.min_scalar_type(self.vocab_size - 1)
        encoded = self._tokenizer.encode_batch(
            [text.decode("utf-8") for text in texts], add_special_tokens=False
        )
        return [np.asarray(one.ids, dtype=dtype) for one in encoded]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text as the tokenizer's own decoder joins it."""
        text: str = self._tokenizer.decode([i for i in token_ids if i != self.separator_id])
        return text

    def token_bytes(self) -> list[bytes]:
        """By decoding; a token that is part of a character becomes the replacement sign.

        Each id is decoded twice in a row and what its first time made is taken off, because decoders drop the blank
        that opens a text.
        """
        ids = range(self.vocab_size)
        once = self._tokenizer.decode_batch([[i] for i in ids])
        twice = self._tokenizer.decode_batch([[i, i] for i in ids])
        texts = [both[len(first) :] for first, both in zip(once, twice, strict=True)]
        return [text.encode("utf-8") for text in texts]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a lane names: `bytes`, or the path of a `tokenizers` JSON file."""
    return ByteTokenizer() if name == BYTES else JsonTokenizer(Path(name).expanduser())


def _parse(content: bytes, name: str) -> Any:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        return HuggingFaceTokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # noqa: BLE001  # the library raises bare Exception for a wrong file
        raise DataError(f"{name}: JSON, but not a tokenizer ({error})") from None
