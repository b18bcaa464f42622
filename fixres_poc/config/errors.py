"""The one error that users are meant to see, the record of a failure, and printable text."""

from dataclasses import dataclass, field
from typing import Literal


def printable(text: str) -> str:
    """The text with what is not printable (line ends, terminal codes) written as escapes."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class InputError(ValueError):
    """Something the user gave is wrong; one line says what, and what is allowed."""

    def __init__(self, message: str) -> None:
        """Keep the message in its printable form."""
        super().__init__(printable(message))


@dataclass(frozen=True)
class Failure:
    """Why a run failed; made where the error is caught, stored as the run's error.json."""

    # input: the user can mend it; error: of the code; killed: it may succeed when tried again
    kind: Literal["input", "error", "killed"]
    message: str  # one printable line
    trace: list[str] = field(default_factory=list)  # lines of the traceback
