"""Delivers user rewards: by email, by webhook, or by an operator's hand."""
