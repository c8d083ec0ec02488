"""Fetches published files over HTTP(S) into the cache folder, whole and verified.

    from distill.download import Source, fetch

    source = Source(url, num_bytes=..., checksum="sha256:...")
    path = fetch(source, folder, instead="pass --teacher-weights FILE")

- `source.py`: what is known about a file, and whether bytes are it
- `request.py`: one HTTP request, and what its failures mean
- `partial.py`: the bytes that have arrived so far, in `NAME.partial`
- `transfer.py`: requests until the file is whole, over dropped connections
- `record.py`: what was downloaded when, in `NAME.json`
- `cache.py`: `fetch`

Deliberate limits: one connection per file; no credentials but those of a proxy in the environment;
no `Retry-After`. A connection that is alive but slow is never given up.
"""

from distill.download.cache import fetch
from distill.download.source import Source

__all__ = ["Source", "fetch"]
