"""`python -m campaign_jobs_cli`: the command `campaign-jobs`, without installing it."""

from campaign_jobs_cli.app import main

main()
