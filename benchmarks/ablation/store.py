"""The records of finished jobs: one line of JSON each, only ever appended, so that an interrupted run goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from benchmarks.ablation.job import Record

logger = logging.getLogger(__name__)


class Store:
    """Records by key. When a job was measured twice, the later record counts."""

    def __init__(self, path: Path) -> None:
        """Reads the file, where there is one.

        Raises:
            ValueError: a line is not a record; a last line that was cut off is left out with a warning.
        """
        self._path = path
        self.records: dict[str, Record] = {}
        text = path.read_text() if path.exists() else ""
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                record = Record.from_json(line)
            except (ValueError, TypeError, KeyError) as error:
                if number < len(lines) or text.endswith("\n"):
                    raise ValueError(f"{path}, line {number}: not a record of the ablation ({error!r})") from error
                logger.warning("%s: the last record was cut off and is left out", path)
                path.write_text(text[: len(text) - len(line)])
                break
            self.records[record.key] = record

    def append(self, record: Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(record.to_json() + "\n")
        self.records[record.key] = record
