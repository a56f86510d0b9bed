"""What a user can meet: one line each, no stack trace needed to understand it."""


class TrainError(Exception):
    """Wrong use or a run that cannot go on. The message names what came, what was expected and, if any, the cure."""


class Interrupted(TrainError):
    """Training was stopped from outside (Ctrl-C, SIGTERM) after its state was saved. The message says how to resume."""


class UsageError(TrainError):
    """A command was called wrongly; nothing was done. Its exit status is 2."""
