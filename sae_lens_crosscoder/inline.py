"""What stands inside an HTML page: data that cannot end their element, and hashes by which a policy allows parts."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def inline_json(value: Any) -> str:
    """ASCII JSON in which no "<" can end or comment out the element that holds it.

    Raises:
        ValueError: NaN or an infinity, which are no JSON.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def policy_hash(content: str) -> str:
    """The source expression of a script or style in a Content-Security-Policy, without its quotes."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
