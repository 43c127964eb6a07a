from __future__ import annotations

from pathlib import Path

import pytest

from sae_lens_crosscoder.errors import NotFoundError
from sae_lens_crosscoder.training.saved_run import SavedRun


def test_a_crosscoder_without_a_run_is_refused_with_what_can_be_done_with_it(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"holds no runner_cfg\.json.*--decoder-only.*DiffSubject"):
        SavedRun(tmp_path).config()
