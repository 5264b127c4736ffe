"""The one kind of error whose message is meant for people."""


class EngineError(Exception):
    """One line that names the value and the remedy, and a class that programs can tell apart."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind
