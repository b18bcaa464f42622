"""The one error that users are meant to see, the record of a failure, and printable text."""

from dataclasses import dataclass, field
from typing import Literal


def printable(text: str) -> str:
    """The text with escapes for characters that are not printable (line ends, terminal codes)."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class InputError(ValueError):
    """Wrong input of the user; its line names the input and what is allowed."""

    def __init__(self, message: str) -> None:
        """Keep the message in its printable form."""
        super().__init__(printable(message))


@dataclass(frozen=True)
class Failure:
    """Why a run failed, stored as the run's error.json."""

    # input: wrong input; error: an error of the code; killed: another try may succeed
    kind: Literal["input", "error", "killed"]
    message: str  # one printable line
    trace: list[str] = field(default_factory=list)  # lines of the traceback
