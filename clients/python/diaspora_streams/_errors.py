"""What can go wrong. No error holds a token, or what a server answered."""


class DiasporaError(Exception):
    """Something cannot be done, and the text says what and why.

    It may quote names that a server has chosen, so nothing in it commands a terminal.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


class LoginRequired(DiasporaError):
    """No usable token is left, and only a new login mends it."""


class InsecureFile(DiasporaError):
    """Others may read or change a token file, or change a profile."""


class Untrusted(DiasporaError):
    """A secret does not belong where it was to be sent, so it was not."""


class Unavailable(DiasporaError):
    """Nobody answered, or somebody else. That says nothing about the login; try again later."""

    def __init__(self, text: str, retry_after: float = 0) -> None:
        super().__init__(text)
        self.retry_after = retry_after  # seconds that the server asked to wait
