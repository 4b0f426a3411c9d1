"""What goes wrong on the road from Asynq."""

from campaign_jobs_cli.errors import CommandError, NotFound, Unreachable, WrongInput


class UnreadableMessage(CommandError):
    """Bytes in Asynq's Redis that are not one of its messages; the task stays where it is."""


class WrongMapping(WrongInput):
    """The mapping file is not there, or says something that is not allowed."""


class UnknownQueue(NotFound):
    """Asynq has no queue of that name."""


class RedisTrouble(Unreachable):
    """Redis does not answer, or refuses us. What was held comes back by itself, and a further move goes on."""


class NotPaused(CommandError):
    """Somebody has resumed the queue, so that old workers could run what has been moved."""


class WorkersRunning(CommandError):
    """Old workers are at work on tasks of the queue, or nobody can tell whether they are."""


class StillInterrupted(CommandError):
    """An earlier move was stopped between publishing and finishing; old workers would run those tasks once more."""
