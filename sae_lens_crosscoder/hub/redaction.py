"""What is taken out of files before they are published: paths, accounts and tokens of the machine that made them.

Models and data sets keep their names if those are names of the Hub or of TransformerLens. A local folder becomes what
the caller says it is on the Hub, or `local:<label>`, which no repository can be called.

What cannot be told from a name of the Hub stays: a relative path of two parts, to a folder that is not here ("out/it").
Labels of sources and data sets are published; that of a data set without one is the last part of its path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from sae_lens_crosscoder.access_token import secret_in
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.hub.names import is_local, looks_like_path
from sae_lens_crosscoder.sources import Sources

LOCAL = "local:"
"""How the name of a model or data set begins that is only on the machine of whoever published."""

_EMPTIED = (
    "output_path",
    "checkpoint_path",
    "cached_activations_path",
    "from_pretrained_path",
    "resume_from_checkpoint",
)
_DROPPED = {"token", "use_auth_token", "api_key", "cache_dir", "proxies", "offload_folder"}
_REMOTE_FILES = re.compile(r"hf://[^?@]*")
_LABEL = re.compile(r"[\w.\- ]+")


class DatasetName(NamedTuple):
    """A data set as this machine and as everybody calls it."""

    label: str
    path: str
    """Empty if it was given in memory."""

    public: str


@dataclass(frozen=True)
class Redaction:
    """Which local names become which public ones, in all files of one crosscoder."""

    models: Mapping[str, str]
    """Public name of each local model."""

    datasets: Sequence[DatasetName]
    """The data sets, in their order."""

    labels: frozenset[str]
    """Labels of sources and data sets, which are published."""

    @classmethod
    def of_run(
        cls,
        sources: Sources,
        runner_cfg: Mapping[str, Any],
        model_names: Mapping[str, str] | None = None,
        dataset_names: Mapping[str, str] | None = None,
    ) -> Redaction:
        """The redaction of a run.

        Args:
            sources: The sources of its crosscoder.
            runner_cfg: Its configuration; empty if it is not known.
            model_names: Name on the Hub of models that were read from a local folder, by the label of the source.
            dataset_names: The same for data sets, by their label.

        Raises:
            ConfigError: A label that no source or data set has, or a configuration whose data sets are none.
        """
        models = {source.label: source.model_name for source in sources}
        paths = _path_by_label(runner_cfg)
        public = _public(models, model_names or {}, "source")
        named = _public(paths, dataset_names or {}, "data set")
        datasets = [DatasetName(label, path, named.get(label, path)) for label, path in paths.items()]
        return cls({models[label]: name for label, name in public.items()}, datasets, frozenset({*models, *paths}))

    def cfg(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The `cfg.json` of an SAE."""
        cleaned = dict(self.value(values))
        cleaned["metadata"] = self._named(values.get("metadata") or {}, cleaned.get("metadata") or {})
        return cleaned

    def runner_cfg(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The `runner_cfg.json` of a run: without its folders, its logger and what it resumed from."""
        cleaned = self._named(values, dict(self.value(values)))
        if cleaned.get("datasets"):
            # Each by its place: several of one path ("json", or none) may have names of their own.
            cleaned["datasets"] = [
                {**entry, "path": dataset.public}
                for entry, dataset in zip(cleaned["datasets"], self.datasets, strict=True)
            ]
        cleaned |= {name: None for name in _EMPTIED if name in values}
        if "logger" in values:
            cleaned["logger"] = {"log_to_wandb": False}
        return cleaned

    def value(self, value: Any) -> Any:
        """Any value of a JSON file: local names replaced, and texts that are paths of this machine emptied."""
        if isinstance(value, Mapping):
            items = cast("Mapping[str, Any]", value).items()
            return {self.text(name): self._field(name, item) for name, item in items if name not in _DROPPED}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in cast("list[Any]", value)]
        if isinstance(value, str):
            replaced = self.text(value)
            return None if looks_like_path(replaced) else replaced
        return value

    def text(self, text: str) -> str:
        """A text with every local name replaced, also where it stands as JSON, HTML or an address writes it."""
        for local, public in self._replacements:
            text = re.sub(_whole(local), lambda _, public=public: public, text)
        return text

    def check(self, name: str, content: bytes, secrets: Iterable[str] = ()) -> None:
        """Look once more for what must not leave this machine.

        Args:
            name: Name of the file, for the message.
            content: The file as it would be published, or the part of it that holds text.
            secrets: What it must not hold in any spelling, besides local names, tokens of the Hub and addresses with a
                password.

        Raises:
            ConfigError: It holds some of it.
        """
        text = content.decode("utf-8", "replace")
        spelt = {form for secret in secrets for form in _spellings(secret)}
        for private in (*(local for local, _ in self._replacements if looks_like_path(local)), *spelt):
            if private in text:
                raise ConfigError(
                    f"{name} would publish something of this machine (a local path) that could not be taken out. "
                    "Remove the file from the folder, or make it again with models and data sets of the Hub."
                )
        if secret := secret_in(text):
            raise ConfigError(f"{name} holds {secret}. Remove it, and revoke it if anybody else may have seen it.")

    @property
    def _replacements(self) -> list[tuple[str, str]]:
        """Local and public names, as they stand in files; the longest first, as one may be part of another.

        A folder that is called as a source or data set is labelled says no more than the label.
        """
        paths = {dataset.path: dataset.public for dataset in self.datasets if is_local(dataset.path)}
        pairs = {local: public for local, public in {**paths, **self.models}.items() if local not in self.labels}
        spelt = {form: public for local, public in pairs.items() for form in _spellings(local)}
        return sorted(spelt.items(), key=lambda pair: -len(pair[0]))

    def _field(self, name: str, value: Any) -> Any:
        if name == "data_files":
            files = [value] if isinstance(value, str) else list(value or [])
            return value if files and all(_REMOTE_FILES.fullmatch(str(file)) for file in files) else None
        if name == "model_name" and isinstance(value, str):
            return self.models.get(value, self.value(value) or f"{LOCAL}model")
        if name == "path" and isinstance(value, str):
            return self.value(value) or f"{LOCAL}data"
        return self.value(value)

    def _named(self, values: Mapping[str, Any], cleaned: dict[str, Any]) -> dict[str, Any]:
        """`model_name` and `dataset_path` joined from the public names, as they were joined from the local ones."""
        if cleaned.get("sources") and "model_name" in values:
            cleaned["model_name"] = Sources.from_metadata({**cleaned}).model_name
        if values.get("dataset_path") == "+".join(dataset.path or dataset.label for dataset in self.datasets):
            cleaned["dataset_path"] = "+".join(dataset.public for dataset in self.datasets)
        elif values.get("dataset_path"):
            parts = self.text(str(values["dataset_path"])).split("+")
            cleaned["dataset_path"] = "+".join(f"{LOCAL}data" if looks_like_path(part) else part for part in parts)
        return cleaned


def datasets_of(runner_cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a run's data sets, of which one may stand as `dataset_path` alone.

    Raises:
        ConfigError: They are no list of mappings.
    """
    listed: Any = runner_cfg.get("datasets") or []
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in cast("list[Any]", listed)):
        raise ConfigError("The run's configuration has datasets that are no list of mappings: it was changed by hand.")
    path = runner_cfg.get("dataset_path")
    return cast("list[Mapping[str, Any]]", listed) or ([{"label": "data", "path": path}] if path else [])


def _path_by_label(runner_cfg: Mapping[str, Any]) -> dict[str, str]:
    listed = datasets_of(runner_cfg)
    paths = {str(entry.get("label") or f"data-{n}"): str(entry.get("path") or "") for n, entry in enumerate(listed)}
    if len(paths) < len(listed):
        raise ConfigError("Two data sets of the run's configuration have one label: it was changed by hand.")
    return paths


def _public(names: Mapping[str, str], given: Mapping[str, str], what: str) -> dict[str, str]:
    """The public names of what is local and of what was given one, by label."""
    if unknown := sorted(set(given) - set(names)):
        known = ", ".join(map(repr, names)) or "none"
        raise ConfigError(f"There is no {what} {unknown[0]!r} to name. There are: {known}.")
    public = {
        label: f"{LOCAL}{label if _LABEL.fullmatch(label) else position}"
        for position, (label, name) in enumerate(names.items())
        if is_local(name) or not name
    }
    return {**public, **given}


def _spellings(local: str) -> set[str]:
    spelt = json.dumps(local)[1:-1]
    return {local, spelt, json.dumps(local, ensure_ascii=False)[1:-1], escape(local), escape(spelt), quote(local)}


def _whole(name: str) -> str:
    """The name where it stands alone, and not as part of a longer word or path."""
    before = r"(?<![\w./-])" if name[0].isalnum() else ""
    return rf"{before}{re.escape(name)}(?![\w-])"
