"""Synthesises the stack of one environment: `npx cdk synth -c env=dev`."""

import sys

import aws_cdk as cdk

from campaign_jobs.errors import SettingsError
from infra import command_line, environments
from infra.stack import CampaignJobsStack

app = cdk.App()
try:
    command_line.check()
    environment = environments.load(app.node.try_get_context("env"))
except SettingsError as error:
    sys.exit(str(error))
CampaignJobsStack(app, f"campaign-jobs-{environment.name}", environment=environment)
app.synth()
