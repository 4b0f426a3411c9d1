"""`python -m local.aws` runs the stand-in until SIGTERM or Ctrl-C."""

import argparse
import sys
from pathlib import Path

from local.aws.script import ScriptError, read_script
from local.aws.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.aws", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port of 127.0.0.1 to listen on")
    parser.add_argument("--mail-dir", type=Path, required=True, help="where accepted mails are written")
    parser.add_argument("--ses-script", type=Path, help="a JSON file that says which sends SES refuses")
    arguments = parser.parse_args()
    try:
        script = read_script(arguments.ses_script.read_text(encoding="utf-8")) if arguments.ses_script else []
    except (OSError, ScriptError) as error:
        sys.exit(f"--ses-script {arguments.ses_script}: {error}")
    serve(arguments.port, arguments.mail_dir, script)


if __name__ == "__main__":
    main()
