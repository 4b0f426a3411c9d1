"""Background jobs for waitlist and referral campaigns."""

__version__ = "0.1.0"
