"""Enqueues jobs with a peer's own client; runs in the peer's environment, with its directory on the path.

    python -P send.py ROUND COUNT [--rate JOBS_PER_SECOND]

With a rate, prints for each job its id and when it was given to the client, in seconds since 1970.
"""

import argparse

import tasks  # The peer's.
from paced import events

parser = argparse.ArgumentParser()
parser.add_argument("round")
parser.add_argument("count", type=int)
parser.add_argument("--rate", type=float)
arguments = parser.parse_args()
tasks.send(events(arguments.round, arguments.count, arguments.rate))
