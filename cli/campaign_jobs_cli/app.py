"""The command `campaign-jobs`: its options, its commands, and what becomes of errors."""

import sys
from pathlib import Path
from typing import Annotated, Final

import psycopg
import typer
from botocore.exceptions import BotoCoreError, ClientError
from confluent_kafka import KafkaException

from campaign_jobs.errors import CampaignJobsError
from campaign_jobs_cli import (
    analytics,
    doctor,
    enqueue,
    erase,
    explain,
    fraud,
    importing,
    rewards,
    suppressions,
    switches,
    tail,
    templates,
)
from campaign_jobs_cli.asynq import commands as asynq
from campaign_jobs_cli.dead_letters import command as dead_letters
from campaign_jobs_cli.errors import CommandError, ExitCode
from campaign_jobs_cli.lag import command as lag
from campaign_jobs_cli.output import Format, Output, visible
from campaign_jobs_cli.replay import command as replay
from campaign_jobs_cli.session import Session

app = typer.Typer(
    name="campaign-jobs",
    help="Operate campaign-jobs: the local system, or a deployed environment.",
    epilog="Exit codes: 0 done, 1 something did not work or was found wrong, 2 wrong usage, 3 declined, "
    "130 interrupted. "
    "Results go to standard output, everything else to standard error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Joins the lines of a paragraph.
    rich_markup_mode="markdown",
)


@app.callback()
def options(
    context: typer.Context,
    environment: Annotated[
        str, typer.Option("--env", envvar="CAMPAIGN_JOBS_ENV", help="local, dev, staging, prod, ...")
    ] = "local",
    output: Annotated[Format, typer.Option("--output", help="How results are printed.")] = Format.TABLE,
    directory: Annotated[
        Path, typer.Option("--directory", help="Where the local system keeps its files.")
    ] = Path(".local"),
) -> None:
    context.obj = Session(environment, directory, Output(output))


app.command()(doctor.doctor)
app.command()(erase.erase)
app.command()(explain.explain)
app.command("import")(importing.import_people)
app.command()(lag.lag)
app.command()(switches.pause)
app.command()(replay.replay)
app.command()(switches.resume)
app.add_typer(analytics.app, name="analytics")
app.add_typer(asynq.app)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(enqueue.app, name="enqueue")
app.add_typer(tail.app, name="events")
app.add_typer(fraud.app, name="fraud")
app.add_typer(rewards.app, name="rewards")
app.add_typer(suppressions.app, name="suppressions")
app.add_typer(templates.app, name="templates")

_ANYWHERE: Final = ("--env", "--output", "--directory")
"""Options of all commands, which may stand before the command or behind it."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        app(common_first(arguments), prog_name="campaign-jobs")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else ExitCode.DONE
    except CampaignJobsError as error:
        sys.stderr.write(f"{visible(str(error))}\n")
        return error.exit_code if isinstance(error, CommandError) else ExitCode.FAILED
    except (psycopg.Error, BotoCoreError, ClientError, KafkaException) as error:
        # The first line alone: PostgreSQL's details repeat the row.
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sys.stderr.write(f"{visible(first_line)}\n")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


def common_first(arguments: list[str]) -> list[str]:
    """The options that all commands share in front, where the parser wants them; what follows `--` stays."""
    common: list[str] = []
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            others += [argument, *left]
        elif argument in _ANYWHERE:
            common += [argument, *[value for value in [next(left, None)] if value is not None]]
        elif argument.partition("=")[0] in _ANYWHERE:
            common.append(argument)
        else:
            others.append(argument)
    return [*common, *others]
