"""What gives access to somebody's account: tokens of the Hugging Face Hub, and addresses with a password in them.

Neither may stand in what is saved or published.
"""

from __future__ import annotations

import re

_SECRETS = {
    "what looks like an access token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an address with a password (https://user:password@host)": re.compile(r"""://[^/\s:@"'<>]*:[^/\s@"'<>]+@"""),
}


def secret_in(text: str) -> str | None:
    """Which kind of secret a text holds, in words; None if none of those that are known here."""
    return next((kind for kind, pattern in _SECRETS.items() if pattern.search(text)), None)
