"""What can go wrong. No error holds a token, or what a server answered."""


class DiasporaError(Exception):
    """Something cannot be done, and the text says what and why."""


class LoginRequired(DiasporaError):
    """No usable token is left, and only a new login mends it."""


class InsecureFile(DiasporaError):
    """Others may read or change a token file."""


class Untrusted(DiasporaError):
    """A secret does not belong where it was to be sent, so it was not."""


class Unavailable(DiasporaError):
    """Nobody answered. That says nothing about the login; try again."""

    def __init__(self, text: str, retry_after: float = 0) -> None:
        super().__init__(text)
        self.retry_after = retry_after  # seconds that the server asked to wait
