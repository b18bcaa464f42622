"""The one error that users are meant to see, and text that is safe to print."""


def printable(text: str) -> str:
    """The text with what is not printable (line ends or terminal codes in a file's name, say) written as escapes."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""

    def __init__(self, message: str) -> None:
        """Keep the message in its printable form."""
        super().__init__(printable(message))
