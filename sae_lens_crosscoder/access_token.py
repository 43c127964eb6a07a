"""What an access token of the Hugging Face Hub looks like: none may stand in what is saved or published."""

from __future__ import annotations

import re

HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
