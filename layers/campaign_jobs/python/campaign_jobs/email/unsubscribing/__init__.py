"""Unsubscribing from a campaign's mail: signed links, and the page that they lead to (RFC 8058)."""
