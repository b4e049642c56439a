"""Parts of a long proof, kept as they are finished: a run that is cut off is continued, and says how long it will take.

    .proofs/<proof>/parts.jsonl   what the parts belong to, then one line a part, synced
    .proofs/<proof>/…             whatever else the proof keeps, e.g. its stores

Parts of other sources, counts or of another machine are thrown away: a proof is of one program. They are thrown away too when
the proof has been made, whatever it found, so that nothing can be tried again in part until it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lanewise
from lanewise.lane.machine import detect_machine_class

FOLDER = Path(__file__).resolve().parents[2] / ".proofs"


class Parts:
    """Finished parts of one proof."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], *, total: int, folder: Path | None = None
    ) -> None:
        """Take up what an earlier run of the same proof has left.

        Args:
            name: of the proof.
            settings: counts and budgets; parts of others are not taken.
            total: expected number of parts, for the remaining time.
            folder: replaces `.proofs/<name>`.
        """
        self.folder = folder or FOLDER / name
        self._total = total
        self._file = self.folder / "parts.jsonl"
        self._known: dict[str, Any] = {}
        self._spent: list[float] = []
        head = {"of": _identity(), "settings": dict(settings)}
        if self._read(head):
            self._tell(f"{len(self._known)} parts of an earlier run are kept in {self.folder}")
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._append(head)

    @property
    def seconds(self) -> float:
        """Wall time of all finished parts, in this run and in earlier ones."""
        return math.fsum(self._spent)

    def get(self, part: str) -> Any:
        """What a finished part found; None for one that is missing."""
        return self._known.get(part)

    def add(self, part: str, found: Any, *, started: float, words: str) -> None:
        """Keep a part.

        Args:
            part: its name.
            found: plain data.
            started: `time.monotonic` when it began.
            words: what it found, for a person who waits.
        """
        seconds = time.monotonic() - started
        self._append({"part": part, "seconds": seconds, "found": found})
        self._known[part] = found
        self._spent.append(seconds)
        left = max(0, self._total - len(self._known))
        remaining = left * self.seconds / len(self._spent)
        self._tell(f"{part}: {words} · {left} to go, about {remaining / 60:.0f} min")

    def close(self) -> None:
        """Throw the parts away: the proof is made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, head: Mapping[str, Any]) -> bool:
        """Whether there are parts of the same proof; a line that was cut off ends them."""
        try:
            lines = self._file.read_text("utf-8").splitlines()
        except OSError:
            return False
        documents = []
        for line in lines:
            try:
                documents.append(json.loads(line))
            except ValueError:
                break
        if not documents or documents[0] != json.loads(json.dumps(head)):
            return False
        for document in documents[1:]:
            self._known[document["part"]] = document["found"]
            self._spent.append(document["seconds"])
        if len(documents) < len(lines):
            whole = "".join(json.dumps(document) + "\n" for document in documents)
            self._file.write_text(whole, "utf-8")
        return True

    def _append(self, document: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _tell(self, words: str) -> None:
        print(f"  {words}", file=sys.stderr, flush=True)


def _identity() -> dict[str, str]:
    """What parts must share: every source of the lab and of the proofs, the class of machine, Python."""
    content = hashlib.sha256()
    roots = (Path(lanewise.__file__).parent, Path(__file__).parent)
    for path in sorted(path for root in roots for path in root.rglob("*.py")):
        content.update(str(path.name).encode() + b"\0" + path.read_bytes())
    return {
        "sources": content.hexdigest(),
        "machine": detect_machine_class("cpu"),
        "python": platform.python_version(),
    }
