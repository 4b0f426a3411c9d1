"""Fraud: checks find signals, signals combine into one case for each user, cases hold or block."""
