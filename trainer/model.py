"""The model: one Transformer encoder over a user's history, and two heads.

The *generative head* writes the next items' Semantic IDs code by code (Rajput et al. 2023, arXiv:2305.05065). The
*retrieval head* places users and items in one space, so that recommending is a vector search. It knows tensors, not
data sets, losses or servers; tensor names are those of `baguni.signature`.
"""

# B = batch, S = history tokens, M = S + 1 (context token first), D = width, F = token features, C = context features,
# L = code levels, K = codebook size, Q = decoded sequences per user, N = items, T = text dim, V = vector dim

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.sequences import NUM_ACTIONS, NUM_CONTEXT, NUM_FEATURES, NUM_POSITIONS
from baguni.signature import EVERYTHING, NUM_QUERIES

MASKED = -1e4  # large, finite, and representable in fp16


@dataclass(frozen=True)
class ModelConfig:
    """Sizes. `vector_dim` is without the bias component that `item_vectors` appends."""

    num_items: int
    codebook_sizes: tuple[int, ...]
    text_dim: int
    width: int = 128
    num_heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    feedforward: int = 256
    vector_dim: int = 128
    dropout: float = 0.1
    id_dropout: float = 0.3
    token_dropout: float = 0.1


class History(NamedTuple):
    """A batch of histories as the models read them: the first six inputs of `baguni.signature`.

    item_BS: item index + 1, 0 where there is no token or training never saw the item
    codes_BSL: -1 where there is no token
    """

    item_BS: Tensor
    codes_BSL: Tensor
    position_BS: Tensor
    actions_BS: Tensor
    features_BSF: Tensor
    context_BC: Tensor


class Memory(NamedTuple):
    """What the encoder made of a history: states_BMD, the context token first, and an additive mask_B11M."""

    states_BMD: Tensor
    mask_B11M: Tensor


ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Modules(nn.ModuleList, Generic[ModuleT]):
    """A ModuleList that knows the type of its members."""

    def __init__(self, modules: Iterable[ModuleT]) -> None:
        super().__init__(modules)

    def __iter__(self) -> Iterator[ModuleT]:
        return super().__iter__()  # type: ignore[return-value]

    def __getitem__(self, index: int) -> ModuleT:  # type: ignore[override]
        return super().__getitem__(index)  # type: ignore[return-value]


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and shared by any number of queries."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Tensor:
        """[B, M, D] → [B, heads, M, D / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context, by head."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self.heads(key), self.heads(value)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        attended = F.scaled_dot_product_attention(self.heads(self.query(x)), *keys_values, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers, GELU between."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out or width))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, self.attention.keys_values(y), mask))
        return x + self.dropout(self.feedforward(self.norm2(x)))


class DecoderBlock(nn.Module):
    """Self-attention over the codes written so far, cross-attention to the history, feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))
        self.own = Attention(config.width, config.num_heads)
        self.cross = Attention(config.width, config.num_heads)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.dropout = nn.Dropout(config.dropout)

    def attend_history(self, x_BQD: Tensor, keys_values: tuple[Tensor, Tensor], mask_B11M: Tensor) -> Tensor:
        """The rest of the block after self-attention: cross-attention, then feed-forward."""
        x_BQD = x_BQD + self.dropout(self.cross(self.norm2(x_BQD), keys_values, mask_B11M))
        return x_BQD + self.dropout(self.feedforward(self.norm3(x_BQD)))


class ItemTower(nn.Module):
    """An item's vector: what its text says, plus what its buyers say (an id embedding, dropped at random in training so
    that an item nobody has bought can stand on its text alone). The last component is the item's bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.id_dropout = config.id_dropout
        self.content = FeedForward(config.text_dim, 2 * config.vector_dim, config.vector_dim + 1)
        self.identity = nn.Embedding(config.num_items, config.vector_dim + 1)
        nn.init.normal_(self.identity.weight, std=0.02)

    def from_text(self, text_NT: Tensor) -> Tensor:
        """Vectors of items that training never saw, [N, V + 1]."""
        return self.content(text_NT)

    def forward(self, text_NT: Tensor, item_N: Tensor) -> Tensor:
        identity = self.identity(item_N)
        if self.training and self.id_dropout > 0:
            keep = torch.rand(len(item_N), 1, device=item_N.device) >= self.id_dropout
            identity = identity * keep
        return self.content(text_NT) + identity


class DualHeadModel(nn.Module):
    """Encoder, generative head and retrieval head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.item_embedding = nn.Embedding(config.num_items + 1, width, padding_idx=0)
        self.code_embeddings = Modules(nn.Embedding(size + 1, width, padding_idx=0) for size in config.codebook_sizes)
        self.position_embedding = nn.Embedding(NUM_POSITIONS, width)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, width)
        self.feature_projection = FeedForward(NUM_FEATURES, width, width)
        self.context_projection = FeedForward(NUM_CONTEXT, width, width)
        self.encoder = Modules(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.queries = Modules(FeedForward(width, 2 * width, config.vector_dim) for _ in range(NUM_QUERIES))
        self.repeat_head = FeedForward(width + NUM_FEATURES, width, 1)
        self.item_tower = ItemTower(config)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.level_embedding = nn.Embedding(len(config.codebook_sizes), width)
        self.decoder = Modules(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.code_heads = Modules(nn.Linear(width, size) for size in config.codebook_sizes)
        for module in self.modules():
            if isinstance(module, nn.Embedding) and module is not self.item_tower.identity:
                nn.init.normal_(module.weight, std=0.05)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx : module.padding_idx + 1])

    def encode(self, history: History) -> Memory:
        """Read the history. Padding never changes an output."""
        x_BSD = self.item_embedding(history.item_BS.long()) + self.feature_projection(history.features_BSF)
        for level, embedding in enumerate(self.code_embeddings):
            x_BSD = x_BSD + embedding(history.codes_BSL[:, :, level].long() + 1)
        x_BSD = x_BSD + self.position_embedding(history.position_BS.long())
        x_BSD = x_BSD + self.action_embedding(history.actions_BS.long())
        context_B1D = self.context_projection(history.context_BC).unsqueeze(1)
        visible_BS = self._visible(history)
        mask_BM = F.pad(torch.where(visible_BS, 0.0, MASKED), (1, 0))
        x_BMD = torch.cat([context_B1D, x_BSD], dim=1)
        mask = mask_BM[:, None, None, :]
        for block in self.encoder:
            x_BMD = block(x_BMD, mask)
        return Memory(self.encoder_norm(x_BMD), mask)

    def _visible(self, history: History) -> Tensor:
        visible_BS = history.codes_BSL[:, :, 0] >= 0
        if self.training and self.config.token_dropout > 0:
            visible_BS = visible_BS & (
                torch.rand(visible_BS.shape, device=visible_BS.device) >= self.config.token_dropout
            )
        return visible_BS

    def user_embedding(self, memory: Memory) -> Tensor:
        """[B, queries, V + 1]; the last component is 1, and meets the item's bias."""
        pooled_BD = memory.states_BMD[:, 0]
        embedding = torch.stack([query(pooled_BD) for query in self.queries], dim=1)
        return F.pad(embedding, (0, 1), value=1.0)

    def repeat_score(self, memory: Memory, history: History) -> Tensor:
        """[B, S]: what each token's item gains in the query for everything, because the user knows it. 0 = padding."""
        states = torch.cat([memory.states_BMD[:, 1:], history.features_BSF], dim=-1)
        return self.repeat_head(states).squeeze(-1) * (history.codes_BSL[:, :, 0] >= 0)

    def item_vectors(self, text_NT: Tensor, item_N: Tensor) -> Tensor:
        """[N, V + 1]."""
        vectors: Tensor = self.item_tower(text_NT, item_N)
        return vectors

    def cross_keys_values(self, memory: Memory) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the history for each decoder layer: computed once, shared by every query."""
        return [block.cross.keys_values(memory.states_BMD) for block in self.decoder]

    def first_input(self, memory: Memory) -> Tensor:
        """[B, 1, D] what the decoder starts from: the user as a whole, so that cross-attention need only add details."""
        return self.start + memory.states_BMD[:, :1]

    def code_logits(self, memory: Memory, codes_BQL: Tensor) -> list[Tensor]:
        """Logits of every level, given the true codes before it: one [B, Q, K of the level] per level, in one pass."""
        batch, num_queries, levels = codes_BQL.shape
        inputs = [self.first_input(memory).expand(-1, num_queries, -1)]
        inputs += [self.code_embeddings[level](codes_BQL[:, :, level].long() + 1) for level in range(levels - 1)]
        x = torch.stack(inputs, dim=2) + self.level_embedding.weight  # [B, Q, L, D]
        x = x.flatten(0, 1)
        causal_LL = torch.full((levels, levels), MASKED, device=x.device).triu(1)
        for block, keys_values in zip(self.decoder, self.cross_keys_values(memory), strict=True):
            y = block.norm1(x)
            x = x + block.dropout(block.own(y, block.own.keys_values(y), causal_LL))
            flat = x.reshape(batch, num_queries * levels, -1)
            x = block.attend_history(flat, keys_values, memory.mask_B11M).reshape(batch * num_queries, levels, -1)
        states = self.decoder_norm(x).reshape(batch, num_queries, levels, -1)
        return [head(states[:, :, level]) for level, head in enumerate(self.code_heads)]

    def log_likelihood(self, memory: Memory, codes_BQL: Tensor) -> Tensor:
        """[B, Q] log-likelihood of Semantic IDs, in nats: the sum over levels of log softmax (the teacher's score)."""
        logits = self.code_logits(memory, codes_BQL)
        levels = [
            F.log_softmax(level_logits.float(), -1).gather(-1, codes_BQL[:, :, level, None].long())
            for level, level_logits in enumerate(logits)
        ]
        return torch.cat(levels, dim=-1).sum(-1)


def full_scores(user_embedding_BQV: Tensor, repeat_score_BS: Tensor, item_BS: Tensor, vectors_NV: Tensor) -> Tensor:
    """[B, N] scores of the query for everything over the whole catalogue: u · v, plus the repeat score where there is a
    token. `item_BS` is item index + 1, 0 = no token."""
    scores_BN = user_embedding_BQV[:, EVERYTHING] @ vectors_NV.T
    padded = F.pad(scores_BN, (1, 0))
    return padded.scatter_add(1, item_BS.long(), repeat_score_BS)[:, 1:]
