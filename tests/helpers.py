"""Tiny models, tokenizers and runs that the tests share. Everything is made here; nothing is downloaded."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import LoggingConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderRunnerConfig,
    DatasetConfig,
    JointModel,
    PairedActivationsStore,
    Source,
    Sources,
    StandardTrainingCrosscoderConfig,
    StoreConfig,
    TrainingCrosscoder,
)
from sae_lens_crosscoder.activations import CacheReader, CacheRequest, SequenceFormat, describe_cache, write_cache
from sae_lens_crosscoder.training import BatchTopKTrainingCrosscoder, StandardTrainingCrosscoder

D_VOCAB = 300
CONTEXT = 16


def tiny_model(
    seed: int = 0,
    d_model: int = 16,
    n_layers: int = 3,
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
    **fields: Any,
) -> HookedTransformer:
    """A random HookedTransformer, with further fields of its configuration."""
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=2,
        d_head=8,
        d_mlp=32,
        n_ctx=64,
        d_vocab=D_VOCAB,
        act_fn="gelu",
        seed=seed,
        dtype=dtype,
        **fields,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HookedTransformer(cfg)
    model.tokenizer = tokenizer
    return model


def source(label: str, hook_name: str = "blocks.1.hook_resid_pre", d_in: int = 16, **kwargs: Any) -> Source:
    return Source(label=label, model_name=f"tiny-{label}", hook_name=hook_name, d_in=d_in, **kwargs)


def tiny_pair(dtype: torch.dtype = torch.float32, tokenizer: Any = None, **combine: Any) -> JointModel:
    """Two random models of one shape, read at the same hook."""
    sources = Sources((source("base"), source("chat")), **combine)
    return JointModel(sources, [tiny_model(0, dtype=dtype, tokenizer=tokenizer), tiny_model(1, dtype=dtype)])


def token_dataset(n_rows: int = 200, context: int = CONTEXT, seed: int = 0) -> Dataset:
    """Random token rows, each beginning with token 0 as BOS."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, D_VOCAB, (n_rows, context), generator=generator)
    rows[:, 0] = 0
    return Dataset.from_dict({"input_ids": rows.tolist()})


SENTENCES = [
    "the owl flies over the old wall at night",
    "a grammar describes what the parser accepts",
    "names are bound by the following constructs",
    "every value in the list is compared in turn",
    "the fox reads the long book by the warm fire",
]


def text_dataset(n_rows: int = 300) -> Dataset:
    rows = [" ".join(SENTENCES[(i * (j + 3)) % 5] for j in range(3)) + f" {i}." for i in range(n_rows)]
    return Dataset.from_dict({"text": rows})


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly D_VOCAB tokens with BOS as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB,
        special_tokens=["<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>")


def standard_config(d_sae: int = 32, **fields: Any) -> StandardTrainingCrosscoderConfig:
    return StandardTrainingCrosscoderConfig(d_in=fields.pop("d_in", 32), d_sae=d_sae, **fields)


def batchtopk_config(d_sae: int = 32, k: float = 4, **fields: Any) -> BatchTopKTrainingCrosscoderConfig:
    return BatchTopKTrainingCrosscoderConfig(d_in=fields.pop("d_in", 32), d_sae=d_sae, k=float(k), **fields)


def run_config(sae: Any, folder: Path | None = None, **fields: Any) -> CrosscoderRunnerConfig[Any]:
    """A run of a few seconds on the tiny pair."""
    values: dict[str, Any] = {
        "sources": [source("base"), source("chat")],
        "dataset_path": "in-memory",
        "context_size": CONTEXT,
        "training_tokens": 64 * 12,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 2,
        "n_eval_batches": 2,
        "exclude_special_tokens": [0],
        "lr": 1e-3,
        "prepend_bos": False,
        "checkpoint_path": None if folder is None else str(folder / "checkpoints"),
        "output_path": None if folder is None else str(folder / "output"),
        "logger": LoggingConfig(log_to_wandb=False, wandb_log_frequency=1),
        "verbose": False,
    }
    return CrosscoderRunnerConfig(sae=sae, **{**values, **fields})


def fresh_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A copy of `tiny_tokenizer` that a test may change."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<bos>", eos_token="<bos>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def gpt2_folder(folder: Path, seed: int = 0, d_model: int = 16, tokenizer: Any = None) -> str:
    """A tiny random Hugging Face GPT-2 of three blocks, saved with its tokenizer (or `tiny_tokenizer`); its path."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or fresh_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=d_model, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def store_config(**fields: Any) -> StoreConfig:
    values: dict[str, Any] = {
        "sequence_format": SequenceFormat(CONTEXT, prepend_bos=False),
        "batch_size_tokens": 32,
        "batch_size_prompts": 4,
        "buffer_tokens": 128,
    }
    return StoreConfig(**{**values, **fields})


def paired_store(
    model: JointModel | None = None, data: Any = None, label: str = "data", **fields: Any
) -> PairedActivationsStore:
    """A store over one data set of token rows; with mix_fraction=0 it serves rows in the order of the data."""
    documents = token_dataset() if data is None else data
    return PairedActivationsStore(
        model or tiny_pair(), [documents], [DatasetConfig(label=label)], store_config(**fields)
    )


def cache_of(
    folder: Path, store: PairedActivationsStore, n_sequences: int = 40, n_a_shard: int = 8, **fields: Any
) -> CacheReader:
    """A cache of a store's activations, in float32 and shards of a few sequences; a reader of it."""
    values: dict[str, Any] = {"n_tokens": n_sequences * store.cfg.sequence_format.context_size, "dtype": "float32"}
    whole = describe_cache(store, CacheRequest(**{**values, **fields}))
    request = CacheRequest(**{**values, "shard_bytes": n_a_shard * whole.n_bytes_a_sequence, **fields})
    write_cache(store, folder, request)
    return CacheReader(folder, store.cfg.batch_size_prompts, patience_seconds=1)


def crosscoder(
    architecture: str = "standard", widths: tuple[int, ...] = (16, 16), d_sae: int = 32, **fields: Any
) -> TrainingCrosscoder[Any]:
    """A training crosscoder whose weights are all random (biases too), so that no term vanishes."""
    config = {"standard": standard_config, "batchtopk": batchtopk_config}[architecture]
    made = {"standard": StandardTrainingCrosscoder, "batchtopk": BatchTopKTrainingCrosscoder}[architecture]
    cfg = config(d_sae, d_in=sum(widths), source_widths=list(widths), decoder_init_norm=None, **fields)
    sae = made(cfg)
    with torch.no_grad():
        sae.W_enc.normal_(std=0.3)
        sae.W_dec.normal_(std=0.3)
        sae.b_enc.normal_(std=0.2)
        sae.b_dec.normal_(std=0.2)
    return sae


def reference_checkpoint(name: str) -> Path:
    """A folder of /shared/reference/checkpoints beside the repository; the test is skipped where it is absent."""
    for parent in Path(__file__).resolve().parents:
        folder = parent / "shared" / "reference" / "checkpoints" / name
        if folder.is_dir():
            return folder
    pytest.skip(f"no reference checkpoint {name} beside the repository")
