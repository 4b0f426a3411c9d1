"""The email job: decide at send time, render, claim, send through SES, record."""
