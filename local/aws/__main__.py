"""`python -m local.aws` runs the stand-in until SIGTERM or Ctrl-C."""

import argparse
import sys
from pathlib import Path

from local.aws.account import AccountSettings
from local.aws.script import ScriptError, read_script
from local.aws.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.aws", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port of 127.0.0.1 to listen on")
    parser.add_argument("--mail-dir", type=Path, required=True, help="where accepted mails are written")
    parser.add_argument("--ses-script", type=Path, help="a JSON file that says which sends SES refuses")
    parser.add_argument(
        "--max-send-rate",
        type=float,
        default=AccountSettings.max_send_rate,
        help="the account's send rate, in mails a second (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not arguments.max_send_rate >= 0:
        parser.error("--max-send-rate: allowed is a number of at least 0")
    try:
        script = read_script(arguments.ses_script.read_text(encoding="utf-8")) if arguments.ses_script else []
    except (OSError, ScriptError) as error:
        sys.exit(f"--ses-script {arguments.ses_script}: {error}")
    serve(
        arguments.port,
        arguments.mail_dir,
        script,
        AccountSettings(max_send_rate=arguments.max_send_rate),
    )


if __name__ == "__main__":
    main()
