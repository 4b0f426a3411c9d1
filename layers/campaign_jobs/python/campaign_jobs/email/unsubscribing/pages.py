"""The pages that an unsubscribe link shows.

They are the same for everybody: nothing of the request is in them, so there is nothing to escape, and nothing to learn
from them. The form has no action, so it posts to the address that the page came from, token and all.
"""

import base64
import hashlib
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --page: #f3f4f7; --card: #fff; --edge: #e3e5ea; --title: #1b1e25; --copy: #4a4f5a;
  --button: #3f51c7; --hover: #3444ad; --label: #fff; --focus: #1b1e25; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1e2127; --edge: #2e323a; --title: #f4f5f7; --copy: #c9cdd5;
    --button: #aebfff; --hover: #c6d2ff; --label: #14161a; --focus: #f4f5f7; }
}
* { box-sizing: border-box; }
html { background: var(--page); -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; min-height: 100vh; min-height: 100svh; display: grid; place-items: center; padding: 24px 16px;
  font: 1.0625rem/1.53 -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  color: var(--copy); }
main { width: 100%; max-width: 480px; padding: 44px 48px; background: var(--card); border: 1px solid var(--edge);
  border-radius: 14px; overflow-wrap: anywhere; }
h1 { margin: 0 0 12px; font-size: 1.6875rem; line-height: 1.3; letter-spacing: -0.3px; color: var(--title);
  text-wrap: balance; }
p { margin: 0; text-wrap: pretty; }
form { margin: 28px 0 0; }
button { width: 100%; padding: 15px 12px; border: 0; border-radius: 9px; background: var(--button); color: var(--label);
  font: inherit; font-weight: 600; cursor: pointer; }
button:hover { background: var(--hover); }
button:focus-visible { outline: 3px solid var(--focus); outline-offset: 3px; }
@media (max-width: 520px) { main { padding: 32px 24px; } h1 { font-size: 1.5rem; } }
@media (forced-colors: active) { button { border: 2px solid; } }
"""

_FORM: Final = '\n<form method="post"><button type="submit">Unsubscribe</button></form>'


def _page(title: str, text: str, form: str = "") -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{text}</p>{form}
</main>
</body>
</html>
"""


ASK: Final = _page(
    "Unsubscribe?",
    "This waitlist will then no longer write to you about news, your position or milestones. Your place on it stays "
    "yours.",
    _FORM,
)
DONE: Final = _page(
    "You are unsubscribed",
    "This waitlist will no longer write to you about news, your position or milestones. You still get mail that you "
    "ask for, and rewards that you have earned. You can close this page.",
)
NOT_FOUND: Final = _page(
    "This link does not work",
    "It may have been cut off, or be too old. Please open the link in the newest mail that you have from the waitlist.",
)
NOT_ALLOWED: Final = _page(
    "That does not work here",
    "Please open the link from the mail that it came in.",
)
TRY_AGAIN: Final = _page(
    "You are not unsubscribed yet",
    "Something on our side does not answer. Nothing is wrong with your link: please try again in a minute.",
    _FORM,
)

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")

HEADERS: Final = {
    "content-type": "text/html; charset=utf-8",
    # The address of the page is a capability: it stays out of caches, other sites' logs and search engines.
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-robots-tag": "noindex, nofollow",
    "x-content-type-options": "nosniff",
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
}
