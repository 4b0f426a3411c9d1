"""What goes wrong in a command, and the exit code that says so."""

from enum import IntEnum

from campaign_jobs.errors import CampaignJobsError


class ExitCode(IntEnum):
    """What a script may rely on; described in docs/command-line.md."""

    DONE = 0
    FAILED = 1
    """Something did not work, or was found to be wrong; standard error says what."""
    WRONG_USAGE = 2
    """A wrong option, argument or file; nothing was changed."""
    DECLINED = 3
    """Whoever was asked said no, or nobody could be asked and --yes was not given; nothing was changed."""
    INTERRUPTED = 130


class CommandError(CampaignJobsError):
    """A command cannot go on; the message says what was wrong and what to do."""

    exit_code = ExitCode.FAILED


class WrongInput(CommandError):
    """What was given is wrong; nothing was changed."""

    exit_code = ExitCode.WRONG_USAGE


class NotFound(CommandError):
    """What was asked for is not there."""


class Unreachable(CommandError):
    """A part of the environment does not answer, or refuses us."""


class Declined(CommandError):
    """The change was not wanted after all."""

    exit_code = ExitCode.DECLINED
