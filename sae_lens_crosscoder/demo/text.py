"""Real text that every Python has: the language reference and the standard library's docstrings, and its tokenizer."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS = "<|endoftext|>"


def standard_library_text(n_chars: int) -> str:
    """English about Python, at most `n_chars` characters: `pydoc_data.topics`, then docstrings.

    Nothing but `pydoc_data` is imported, and only files of the standard library are read, so that installed packages do
    not change the text.
    """
    from pydoc_data import topics

    parts: list[str] = [topics.topics[name] for name in sorted(topics.topics)]
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        path = root / f"{name}.py"
        path = path if path.is_file() else root / name / "__init__.py"
        if path.is_file():
            parts += _docstrings(path.read_text(encoding="utf-8", errors="replace"))
    lines = (" ".join(line.split()) for part in parts for line in [*part.splitlines(), ""])
    return "\n".join(lines)[:n_chars]


def train_tokenizer(text: str, vocab_size: int, context: int, words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the text, in which each of the words is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*text.splitlines(keepends=True), *list(words) * 5000], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=context)


def _docstrings(source: str) -> list[str]:
    """All docstrings of a module's source, in order; none if this Python cannot parse it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text and len(text) > 40]
