"""What was downloaded when: `NAME.json` beside the file.

It outlives the file: the SHA-256 that was seen first is what later downloads of the URL must have,
unless a published length or SHA-256 says that it was another file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from distill.download.source import Content, DownloadError, Source, split_checksum
from distill.files import write_whole
from distill.parsing import parse_json


@dataclass(frozen=True)
class Record:
    """A file that was whole.

    Attributes:
        url: Where it came from.
        num_bytes: Its length; `bytes` in the file.
        sha256: All hexadecimal digits.
        fetched: When, ISO 8601 in UTC.
    """

    url: str
    num_bytes: int
    sha256: str
    fetched: str

    def is_outdated(self, source: Source) -> bool:
        """Return whether the source says by now that this is another file."""
        algorithm, digits = split_checksum(source)
        return source.num_bytes not in (None, self.num_bytes) or (
            algorithm == "sha256" and not self.sha256.startswith(digits)
        )


def record_path(path: Path) -> Path:
    """Return where the record of a file lies."""
    return path.with_name(path.name + ".json")


def read_record(path: Path) -> Record | None:
    """Read the record of the file `path`; None when there is none.

    Raises:
        DownloadError: When it is damaged.
    """
    file = record_path(path)
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        return Record(
            str(content["url"]),
            int(content["bytes"]),
            str(content["sha256"]),
            str(content["fetched"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DownloadError(
            f"{file.absolute()}, the record of a download, is damaged", "remove it"
        ) from error


def write_record(path: Path, source: Source, content: Content) -> None:
    """Write the record of the file `path`, now."""
    record = {
        "url": source.url,
        "bytes": content.num_bytes,
        "sha256": content.sha256,
        "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_whole(record_path(path), (json.dumps(record, indent=2) + "\n").encode())
