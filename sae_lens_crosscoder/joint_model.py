"""Several hooked models as one: a `JointModel` has one hook point, where the activations of all sources flow.

`JointModel.view(label)` is the same joint hook continued by one model only, so that SAELens's `run_evals` measures that
model with the crosscoder's reconstruction spliced in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

# Where both TransformerLens 2 and 3 have it without a deprecation warning.
from transformer_lens.HookedTransformer import (
    HookedRootModule,  # pyright: ignore[reportPrivateImportUsage]
)
from typing_extensions import override

from sae_lens_crosscoder.alignment import TextAligner, TokenSequences, kept_shares, unpack
from sae_lens_crosscoder.errors import ShapeError, SourceError
from sae_lens_crosscoder.generation import HookFunction, Stepper, check_length, next_tokens, replacing, stepper
from sae_lens_crosscoder.hooked_models import HookedModel, capture, check_hook, input_device, load_source_model
from sae_lens_crosscoder.sources import Source, Sources
from sae_lens_crosscoder.vocabulary import check_shared_vocabulary

JOINT_HOOK_NAME = "blocks.0.hook_resid_joint"
"""The joint hook point. It is that of a one-block model, so `stop_at_layer=1` means "stop after it" to every tool."""


class _JointBlock(nn.Module):
    """The one block of a joint model: nothing but the joint hook point."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_joint = HookPoint()


class _JointHookedModule(HookedRootModule):
    """What a joint model and its views share: the joint hook point, and what SAELens asks a model for."""

    def __init__(self, tokenizer: Any, device: torch.device, d_vocab: int | None, model_name: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.blocks = nn.ModuleList([_JointBlock()])
        self.cfg = SimpleNamespace(device=device, d_vocab=d_vocab, model_name=model_name, n_layers=1)
        self.setup()

    @property
    def joint_hook(self) -> HookPoint:
        """The hook point that joint activations flow through."""
        return cast(_JointBlock, self.blocks[0]).hook_resid_joint


class JointModel(_JointHookedModule):
    """N hooked models as one hooked model (`JOINT_HOOK_NAME`), each read at its source's hook.

    The joint activation has shape (batch, position, d_in), `d_in` being the sum of the sources' widths (or the common
    width for a difference). Sources on one model share one forward pass, and every model stops at the last layer that
    is read. Models are held by reference, not as submodules: TransformerLens would rename their hook points.

    With `token_alignment="character_offsets"` each model reads the text in its own tokens, and the joint activation has
    shape (place, d_in): one row for each place where tokens of all models end at the same character, in the order of
    the text. What then stands for "tokens" are rows in which `to_tokens` and the store pack the tokens of all models.

    Args:
        sources: What is read, in the order of the columns.
        models: One hooked model a source, in the same order; sources on one model pass the same object.
        device: Where joint activations are assembled; the first model's device by default.

    Raises:
        SourceError: Another number of models than of sources, or a hook that a model does not have.
        ShapeError: A source's width is not that of its activations.
        VocabularyError: Tokenizers that differ, while all models are to read the same ids.
    """

    def __init__(
        self, sources: Sources, models: Sequence[HookedModel], device: torch.device | str | None = None
    ) -> None:
        if len(models) != len(sources):
            raise SourceError(
                f"{len(models)} models were given for {len(sources)} sources ({', '.join(sources.labels)}). Give one "
                "model for each source; sources on one model pass the same object."
            )
        for source, model in zip(sources, models, strict=True):
            check_hook(source, model)
        tokenizers = [(s.label, getattr(m, "tokenizer", None)) for s, m in zip(sources, models, strict=True)]
        aligns = sources.token_alignment == "character_offsets"
        if not aligns:
            check_shared_vocabulary(tokenizers)
        super().__init__(
            tokenizer=_preferred_tokenizer([tokenizer for _, tokenizer in tokenizers]),
            device=torch.device(device) if device is not None else input_device(models[0]),
            d_vocab=getattr(getattr(models[0], "cfg", None), "d_vocab", None),
            model_name=sources.model_name,
        )
        self.sources = sources
        self.aligner = TextAligner(tokenizers) if aligns else None
        """The tokenizers, if each model reads tokens of its own."""
        # A tuple, because nn.Module would register models it finds in attributes or lists of modules.
        self.source_models: tuple[HookedModel, ...] = tuple(models)
        self._check_widths()

    @classmethod
    def from_pretrained(
        cls, sources: Sources, device: str | torch.device | None = None, default_device: str = "cpu"
    ) -> JointModel:
        """Load every model that the sources name, each once, with SAELens's loader.

        Args:
            sources: What is read.
            device: Where all models live; None puts each where its source says.
            default_device: Where models live whose source names no device.

        Raises:
            SourceError: A model class that is unknown.
            NotFoundError: A model that cannot be loaded.
        """
        hooks: dict[tuple[Any, ...], list[str]] = {}
        for source in sources:
            hooks.setdefault(source.model_key, []).append(source.hook_name)
        loaded: dict[tuple[Any, ...], HookedModel] = {}
        for source in sources:
            if source.model_key not in loaded:
                place = str(device or source.device or default_device)
                loaded[source.model_key] = load_source_model(source, hooks[source.model_key], place)
        return cls(sources, [loaded[source.model_key] for source in sources], device or default_device)

    def view(self, label: str) -> JointModelView:
        """The model of one source, continued from the joint hook.

        It returns that model's logits and loss, and a hook at `JOINT_HOOK_NAME` that replaces the joint activations
        patches this model with its slice. For a difference the patch is `base + new_difference` for the second
        source and `finetuned - new_difference` for the first.

        Raises:
            SourceError: No source has this label.
        """
        return JointModelView(self, self.sources.position(label))

    @torch.no_grad()
    def source_activations(self, tokens: Int[Tensor, "batch pos"]) -> list[Float[Tensor, "*rows _d_source"]]:
        """The activations of each source for the same tokens, each on its own model's device, without gradients.

        Their shape is (batch, position, width), or (place, width) where each model reads tokens of its own.
        """
        by_model: dict[int, list[int]] = {}
        for i, model in enumerate(self.source_models):
            by_model.setdefault(id(model), []).append(i)
        activations: dict[int, Tensor] = {}
        for positions in by_model.values():
            own = self.own_tokens(positions[0], tokens)
            ids = tokens if own is None else own.ids
            captured = capture(self.source_models[positions[0]], ids, [self.sources[i].hook_name for i in positions])
            for i in positions:
                acts = captured[self.sources[i].hook_name]
                activations[i] = acts if own is None else acts[own.is_aligned.to(acts.device)]
        return [activations[i] for i in range(len(self.sources))]

    def own_tokens(self, position: int, tokens: Int[Tensor, "batch row"]) -> TokenSequences | None:
        """What the model of the source at this position reads of packed rows; None if all models read the same ids."""
        if self.aligner is None:
            return None
        return unpack(tokens, len(self.aligner.tokenizers))[self.aligner.of_source[position]]

    def n_places(self, tokens: Int[Tensor, "batch row"]) -> Int[Tensor, " batch"]:
        """How many rows of the joint activation each sequence gives."""
        own = self.own_tokens(0, tokens)
        return torch.full((len(tokens),), tokens.shape[1]) if own is None else own.is_aligned.sum(dim=1)

    def kept_shares(self, tokens: Int[Tensor, "batch row"]) -> dict[str, float]:
        """For each source the share of the text's tokens at which the tokens of all models end together."""
        if self.aligner is None:
            return dict.fromkeys(self.sources.labels, 1.0)
        shares = kept_shares(unpack(tokens, len(self.aligner.tokenizers))).tolist()
        return {label: shares[i] for label, i in zip(self.sources.labels, self.aligner.of_source, strict=True)}

    def join(self, activations: Sequence[Float[Tensor, "*rows _d_source"]]) -> Float[Tensor, "*rows d_in"]:
        """One joint activation from those of the sources, on the joint model's device."""
        here = [a.to(self.cfg.device) for a in activations]
        if self.sources.combine == "difference":
            return here[1] - here[0]
        return torch.cat(here, dim=-1)

    def read_with(
        self, steppers: Mapping[int, Stepper], tokens: Int[Tensor, "batch n_new"]
    ) -> list[Float[Tensor, "batch n_new _d_source"]]:
        """The activations of each source for further tokens, each model read by its stepper (by the model's id)."""
        captured: dict[tuple[int, str], Tensor] = {}
        places = [(id(model), s.hook_name) for s, model in zip(self.sources, self.source_models, strict=True)]

        def capturing(place: tuple[int, str]) -> tuple[str, HookFunction]:
            def capture(activation: Tensor, hook: HookPoint) -> None:
                captured[place] = activation.flatten(2)

            return place[1], capture

        for model, step in steppers.items():
            step(tokens, [capturing(place) for place in dict.fromkeys(places) if place[0] == model])
        return [captured[place] for place in places]

    @override
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: str | None = None,
        stop_at_layer: int | None = None,
        **_: Any,
    ) -> Float[Tensor, "*rows d_in"]:
        """The joint activation of the tokens.

        Raises:
            SourceError: Logits or a loss are asked for; several models have several, `view(label)` gives one's.
        """
        if stop_at_layer is None and return_type is not None:
            raise SourceError(
                f"A joint model of {len(self.sources)} sources has no single {return_type}. Use "
                f"joint_model.view(label), with label one of {', '.join(map(repr, self.sources.labels))}."
            )
        return self.joint_hook(self.join(self.source_activations(tokens)))

    def to_tokens(self, text: str | list[str], prepend_bos: bool = True, **_: Any) -> Int[Tensor, "batch pos"]:
        """Tokens of one text or of several of equal length in tokens, after BOS unless `prepend_bos=False`.

        Where each model reads tokens of its own, texts of any length as packed rows; a tokenizer without BOS adds none.

        Raises:
            SourceError: No model has a tokenizer, or it has no BOS to prepend.
            ShapeError: Texts of different length, while all models read the same ids.
        """
        if self.tokenizer is None:
            raise SourceError("No model of this joint model has a tokenizer. Give token ids, or models with one.")
        texts = [text] if isinstance(text, str) else text
        if self.aligner is not None:
            return self.aligner.rows(texts, prepend_bos)
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ShapeError(
                f"The texts have from {lengths[0]} to {lengths[-1]} tokens, and padding would be read as text. Pass "
                "texts of one length in tokens, or one at a time."
            )
        ids = torch.tensor(rows, dtype=torch.long)
        if not prepend_bos:
            return ids
        if self.tokenizer.bos_token_id is None:
            raise SourceError("The tokenizer has no BOS token. Pass prepend_bos=False.")
        return torch.cat([torch.full((len(ids), 1), self.tokenizer.bos_token_id), ids], dim=1)

    def compile_models(self, mode: str | None = None) -> None:
        """Compile the forward pass of every model with `torch.compile`."""
        for model in {id(m): m for m in self.source_models}.values():
            model.forward = torch.compile(model.forward, mode=mode)

    def _check_widths(self) -> None:
        n_tokenizers = 1 if self.aligner is None else len(self.aligner.tokenizers)
        activations = self.source_activations(torch.zeros(1, 2 * n_tokenizers, dtype=torch.long))
        for source, acts in zip(self.sources, activations, strict=True):
            if acts.shape[-1] != source.d_in:
                raise ShapeError(
                    f"Source {source.label!r} has d_in={source.d_in}, but {source.model_name!r} is {acts.shape[-1]} "
                    f"wide at {source.hook_name!r}. Set d_in={acts.shape[-1]}."
                )


class JointModelView(_JointHookedModule):
    """One model of a joint model, continued from the joint hook. Made by `JointModel.view`."""

    def __init__(self, joint: JointModel, position: int) -> None:
        source, model = joint.sources[position], joint.source_models[position]
        d_vocab = getattr(getattr(model, "cfg", None), "d_vocab", None)
        super().__init__(joint.tokenizer, joint.cfg.device, d_vocab, source.model_name)
        # In a tuple for the same reason as JointModel.source_models.
        self._joint = (joint,)
        self.source = source

    @property
    def source_model(self) -> HookedModel:
        """The model whose logits this view returns."""
        joint = self._joint[0]
        return joint.source_models[joint.sources.position(self.source.label)]

    @override
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the source's model returns for the tokens, patched by the hooks on the joint hook point.

        Where each model reads tokens of its own, logits and loss stand at this model's own tokens (`own_tokens`), and
        the model is patched only where tokens of all models end together.

        With `stop_at_layer` (or `return_type=None`) the joint activation itself.
        """
        joint = self._joint[0]
        stops = stop_at_layer is not None or return_type is None
        own = self.own_tokens(tokens)
        ids = tokens if own is None else own.ids
        if not stops and not self.joint_hook.fwd_hooks:
            # Nothing reads or replaces the joint activation: the other models need not run.
            return self.source_model(ids, return_type=return_type, **kwargs)
        activations = joint.source_activations(tokens)
        joined = self.joint_hook(joint.join(activations))
        if stops:
            return joined
        where = None if own is None else own.is_aligned
        hook = (self.source.hook_name, replacing(self._patch(joined, activations), where))
        return self.source_model.run_with_hooks(ids, return_type=return_type, fwd_hooks=[hook], **kwargs)

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        max_new_tokens: int = 32,
        edit: Callable[[Tensor], Tensor] | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch n_total"]:
        """The tokens, continued by the source's model, with caches of keys and values kept.

        The edit acts as a hook on the joint hook point does in `forward`: at every position it gets the joint
        activation of the unchanged models and returns it changed, and the source's model goes on from its slice.

        Args:
            tokens: Prompts of equal length.
            max_new_tokens: Tokens that are added.
            edit: Changes joint activations, (batch, n_new, d_in), of the tokens that were just read; None changes none.
            temperature: 0 takes the likeliest token, larger draws from softmax(logits / temperature).
            generator: Random numbers of the draws.

        Raises:
            SourceError: A kind of model whose cache is not known here, or models with tokens of their own.
            ConfigError: More tokens than a model has positions for, or a temperature below 0.
        """
        joint = self._joint[0]
        if joint.aligner is not None:
            raise SourceError(
                "The models read tokens of their own (token_alignment='character_offsets'), and a token that one says "
                "may be none of another's. Generate with models that share a vocabulary."
            )
        for source, model in zip(joint.sources, joint.source_models, strict=True):
            if edit is not None or source is self.source:  # without an edit no other model runs
                check_length(model, source.label, tokens.shape[1] + max_new_tokens)
        write = self._stepper(self.source, self.source_model, len(tokens))
        readers = {
            id(model): self._stepper(source, model, len(tokens))
            for source, model in zip(joint.sources, joint.source_models, strict=True)
            if edit is not None
        }
        new = tokens
        for _ in range(max_new_tokens):
            hooks: list[tuple[str, HookFunction]] = []
            if edit is not None:
                activations = joint.read_with(readers, new)
                patch = self._patch(edit(joint.join(activations)), activations)
                hooks = [(self.source.hook_name, replacing(patch))]
            logits = write(new, hooks)
            new = next_tokens(logits[:, -1], temperature, generator)[:, None].to(tokens.device)
            tokens = torch.cat([tokens, new], dim=1)
        return tokens

    @staticmethod
    def _stepper(source: Source, model: HookedModel, batch_size: int) -> Stepper:
        return stepper(model, source.model_class_name, batch_size)

    def own_tokens(self, tokens: Int[Tensor, "batch row"]) -> TokenSequences | None:
        """What this model reads of packed rows; None if all models read the same ids."""
        joint = self._joint[0]
        return joint.own_tokens(joint.sources.position(self.source.label), tokens)

    def _patch(self, joined: Tensor, activations: Sequence[Tensor]) -> Tensor:
        sources = self._joint[0].sources
        if sources.combine == "concat":
            return joined[..., sources.columns(self.source.label)]
        base, finetuned = (a.to(joined.device) for a in activations)
        return base + joined if sources.position(self.source.label) == 1 else finetuned - joined


def _preferred_tokenizer(tokenizers: Sequence[Any]) -> Any:
    """The first tokenizer with a chat template, else the first: a base model's often has none, the chat model's has."""
    present = [t for t in tokenizers if t is not None]
    return next((t for t in present if getattr(t, "chat_template", None)), present[0] if present else None)
