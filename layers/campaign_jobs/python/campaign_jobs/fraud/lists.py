"""What the outside world knows: disposable mail domains, privacy relays and the user agents of crawlers."""

from importlib.metadata import version
from typing import Final

import crawleruseragents
import disposable_email_domains

# A relay forwards to a person's real mailbox, so its addresses say nothing about fraud, although some lists of
# disposable domains contain them. Apple, Mozilla, DuckDuckGo, Proton (SimpleLogin, Pass) and addy.io publish these.
PRIVACY_RELAYS: Final = frozenset({
    "privaterelay.appleid.com", "mozmail.com", "relay.firefox.com", "duck.com",
    "simplelogin.com", "simplelogin.co", "simplelogin.fr", "simplelogin.io", "aleeas.com", "slmails.com", "slmail.me",
    "8alias.com", "8shield.net", "silomails.com", "dralias.com",
    "passmail.com", "passmail.net", "passinbox.com", "passfwd.com",
    "addy.io", "addymail.com", "anonaddy.com", "anonaddy.me",
})  # fmt: skip


def versions() -> str:
    """Which lists these are; results that depend on them are found anew when it changes."""
    relays = ",".join(sorted(PRIVACY_RELAYS))
    packages = ("disposable-email-domains", "crawler-user-agents")
    return " ".join([*(f"{name}={version(name)}" for name in packages), f"relays={relays}"])


def is_disposable(domain: str) -> bool:
    """Whether mail to the domain, or to a domain above it, goes to a throw-away mailbox."""
    labels = domain.lower().rstrip(".").split(".")
    parents = [".".join(labels[start:]) for start in range(len(labels) - 1)]
    if any(parent in PRIVACY_RELAYS or parent in disposable_email_domains.allowlist for parent in parents):
        return False
    return any(parent in disposable_email_domains.blocklist for parent in parents)


def is_crawler(user_agent: str) -> bool:
    """Whether the user agent names a program rather than a person's browser."""
    return bool(crawleruseragents.is_crawler(user_agent))
