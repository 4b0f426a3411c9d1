"""The analytics job: what happened in each campaign, hour by hour."""
