"""What a Hub keeps: repositories, branches, commits that are whole or not there, and large files by their hash."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

_LARGE = (".safetensors", ".pt", ".bin", ".png", ".parquet")
_SIZE_OF_LARGE = 10 * 2**20


class Refusal(Exception):
    """An answer other than success, with the codes by which the client tells them apart."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    is_large: bool

    @property
    def oid(self) -> str:
        """Git's name of the file: of its content, or of the pointer to it if it is large."""
        content = self.content
        if self.is_large:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """What a listing says of the file."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": len(self.content), "path": path}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class HubRepository:
    """One model repository. A commit is a mapping of paths, made in one step."""

    name: str
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict[str, dict[str, Blob]])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    titles: list[str] = field(default_factory=list[str])
    large: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._store("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.tree(revision).items()}

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def tree(self, revision: str) -> dict[str, Blob]:
        return self.commits[self.resolve(revision)]

    def blob(self, revision: str, path: str) -> Blob:
        tree = self.tree(revision)
        if path not in tree:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return tree[path]

    def branch(self, name: str, start: str) -> None:
        if name in self.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        self.branches[name] = self.resolve(start)

    def mode(self, path: str, size: int) -> str:
        return "lfs" if path.endswith(_LARGE) or size > _SIZE_OF_LARGE else "regular"

    def commit(self, revision: str, lines: list[dict[str, Any]]) -> str:
        """Apply the lines of a commit to a branch: all of them or, if one cannot be, none."""
        header = lines[0]["value"]
        if revision not in self.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, self.branches[revision]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(self.tree(revision))
        for line in lines[1:]:
            self._apply(tree, line["key"], line["value"])
        return self._store(revision, tree, header["summary"])

    def _apply(self, tree: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise Refusal(400, f"Invalid path: {path}")
        if key == "file":
            tree[path] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.large:
                raise Refusal(400, f"LFS object {value['oid']} of {path} was never uploaded")
            tree[path] = Blob(self.large[value["oid"]], True)
        elif key == "deletedFile":
            if path not in tree:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del tree[path]
        else:
            raise Refusal(400, f"Unknown line {key!r} of a commit")

    def _store(self, branch: str, tree: dict[str, Blob], title: str) -> str:
        names = json.dumps({path: blob.oid for path, blob in tree.items()})
        sha = hashlib.sha1(f"{self.name} {next(self._numbers)} {names}".encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        self.titles.append(title)
        return sha
