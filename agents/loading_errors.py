"""What opening a checkpoint raises; apart from the rest, for scripts that need no torch."""


class CheckpointError(OSError, ValueError):
    """A checkpoint cannot be opened; the message is one line."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """There is no checkpoint of that name."""
