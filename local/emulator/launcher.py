"""Starts ministack with our resource handlers: `python launcher.py`, on the Python version of the functions.

ministack runs the functions on its own interpreter and hands them its whole environment. So this program is given a
bare one, and finds our package by itself rather than by PYTHONPATH: functions must find nothing but their layers.
"""

import sys
from pathlib import Path


def main() -> None:
    # In place of this file's directory, which Python has put there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
    from ministack import app

    from local.emulator import permissions, public_parameters, resources, ses_events

    permissions.install()
    public_parameters.install()
    resources.install()
    ses_events.install()
    app.main()


if __name__ == "__main__":
    main()
