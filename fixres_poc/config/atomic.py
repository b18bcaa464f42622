"""Files that are complete or not there. No large package is imported here: what does little else starts at once."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the path's place once it is whole; its folder is made.

    Args:
        lasting: wait until it is on the disk, so that it is whole also after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """Write a file so that it is either complete or as it was before (see `replacing`)."""
    with replacing(path, lasting) as file:
        file.write(content.encode() if isinstance(content, str) else content)
