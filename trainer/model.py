"""The model: one Transformer encoder over a user's sequence, and two heads.

The *generative head* writes the next items' Semantic IDs code by code (Rajput et al. 2023, arXiv:2305.05065), and may copy
codes from the history (See et al. 2017, arXiv:1704.04368). The *retrieval head* places users and items in one space, so
that recommending is a vector search. It knows tensors, not data sets, losses or servers; tensor names are those of
`baguni.domain.signature`.
"""

# B = batch, S = history tokens, M = S + queries (which come first), D = width, F = token features, C = context features,
# L = code levels, K = codebook size, Q = decoded sequences per user, N = items, T = text dim, V = vector dim,
# P = item statistics, of which the last K are factors

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from baguni.domain.sequences import DECAYED_SHARE, NUM_ACTIONS, NUM_CONTEXT, NUM_POSITIONS
from baguni.domain.signature import NUM_QUERIES

MASKED = -1e4  # large, finite, and representable in fp16
FACTOR_GAIN = 2.0  # the logarithm of what a user's sum of factors is multiplied by, at the start
MAX_GAIN = 6.0
READ_FEATURES = DECAYED_SHARE  # of a token, the first ones
TINY = 1e-20  # keeps the logarithm of a probability finite


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of the model. `vector_dim` is without the statistics and the bias that `served_vectors` appends;
    `num_factors` of the `num_statistics` are collaborative factors, the last ones (see `trainer.statistics`).

    temperature: divides the learned part of a user's query; at 1, scores stay too small to tell users apart
    identity: whether an item has a learned vector besides that of its text
    interest: whether a user's query starts as a weighted sum of the vectors of their items
    repeat: whether known items gain a repeat score
    habit_weight: what a served repeat score gains for each 1 of the item's decayed share of the user's orders
    copying: whether the generative head may copy codes from the history
    code_attention: whether the decoder reads the codes so far by self-attention; otherwise it reads their sum
    """

    num_items: int
    codebook_sizes: tuple[int, ...]
    text_dim: int
    num_statistics: int = 0
    num_factors: int = 0
    width: int = 128
    num_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 1
    feedforward: int = 256
    vector_dim: int = 128
    dropout: float = 0.1
    id_dropout: float = 0.3
    token_dropout: float = 0.1
    temperature: float = 0.125
    identity: bool = True
    interest: bool = True
    repeat: bool = True
    habit_weight: float = 0.0
    copying: bool = True
    code_attention: bool = False

    @property
    def served_dim(self) -> int:
        """Components of a served vector: V, one per statistic, and the bias."""
        return self.vector_dim + self.num_statistics + 1


class Sequences(NamedTuple):
    """A batch of histories as the models read them: the first six inputs of `baguni.domain.signature`, and the statistics of
    each token's item.

    item_BS: item index + 1, 0 where there is no token or training never saw the item
    codes_BSL: -1 where there is no token
    statistics_BSP: see `trainer.statistics`; zeros where item_BS is 0
    """

    item_BS: Tensor
    codes_BSL: Tensor
    position_BS: Tensor
    actions_BS: Tensor
    features_BSF: Tensor
    context_BC: Tensor
    statistics_BSP: Tensor

    @property
    def present_BS(self) -> Tensor:  # noqa: N802 - a shape suffix
        """True where there is a token."""
        return self.codes_BSL[:, :, 0] >= 0


class Memory(NamedTuple):
    """Output of the encoder for sequences: states_BMD, one token per query first, an additive mask_B11M, the codes of the
    tokens and what speaks for copying each, and per query a weighted sum of the tokens' item vectors and one of their
    factors."""

    states_BMD: Tensor
    mask_B11M: Tensor
    codes_BSL: Tensor
    copy_bias_BS: Tensor
    interest_BqV: Tensor
    factors_BqK: Tensor


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

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        key, value = keys_values
        query = self.heads(self.query(x)) * key.shape[-1] ** -0.5
        # Written out: on a CPU far quicker to train than torch's fused attention.
        weight = (query @ key.transpose(-1, -2) + mask).softmax(-1)
        return self.out((weight @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers, GELU between."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out or width))


class LockedDropout(nn.Module):
    """Dropout that drops the same features of all of a user's tokens (Gal & Ghahramani 2016, arXiv:1512.05287): as good a
    regulariser here, and a mask per user costs nothing beside one per token."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BMD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BMD
        keep = torch.rand(x_BMD.shape[0], 1, x_BMD.shape[2], device=x_BMD.device) >= self.rate
        return x_BMD * (keep / (1 - self.rate))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.dropout = LockedDropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, self.attention.keys_values(y), mask))
        return x + self.dropout(self.feedforward(self.norm2(x)))


class CodeAttention(nn.Module):
    """Pre-norm causal self-attention over the inputs of a sequence of codes, [B, W, t, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads)
        later_LL = torch.ones(len(config.codebook_sizes), len(config.codebook_sizes)).triu(1)
        self.register_buffer("mask_LL", later_LL * MASKED, persistent=False)

    mask_LL: Tensor

    def forward(self, x_BWtD: Tensor) -> Tensor:
        length = x_BWtD.shape[2]
        y = self.norm(x_BWtD).flatten(0, 1)
        mixed = self.attention(y, self.attention.keys_values(y), self.mask_LL[:length, :length])
        return x_BWtD + mixed.view_as(x_BWtD)


class DecoderBlock(nn.Module):
    """Cross-attention to the history, feed-forward; before them, the recipe may have self-attention over the codes so far."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.own = CodeAttention(config) if config.code_attention else None
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.cross = Attention(config.width, config.num_heads)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.dropout = LockedDropout(config.dropout)

    def forward(self, x_BWtD: Tensor, keys_values: tuple[Tensor, Tensor], mask_B11M: Tensor) -> Tensor:
        if self.own is not None:
            x_BWtD = self.own(x_BWtD)
        x_BXD = x_BWtD.flatten(1, 2)
        x_BXD = x_BXD + self.dropout(self.cross(self.norm1(x_BXD), keys_values, mask_B11M))
        x_BXD = x_BXD + self.dropout(self.feedforward(self.norm2(x_BXD)))
        return x_BXD.view_as(x_BWtD)


class ItemTower(nn.Module):
    """An item's vector: what its text says, plus what its buyers say (an id embedding, dropped at random in training so
    that an item nobody has bought can stand on its text alone). The last component is the item's bias. `ordered_N`: items
    that some order of the training log names; the others have no identity, for training only ever pushes it away."""

    ordered_N1: Tensor

    def __init__(self, config: ModelConfig, ordered_N: Tensor) -> None:
        super().__init__()
        self.register_buffer("ordered_N1", ordered_N.unsqueeze(1), persistent=False)
        self.id_dropout = config.id_dropout
        self.has_identity = config.identity
        self.content = FeedForward(config.text_dim, config.vector_dim, config.vector_dim + 1)
        self.identity = nn.Embedding(config.num_items if config.identity else 0, config.vector_dim + 1)
        nn.init.normal_(self.identity.weight, std=config.vector_dim**-0.5)  # of length 1

    def from_text(self, text_NT: Tensor) -> Tensor:
        """Vectors of items that training never saw, [N, V + 1]."""
        return self.content(text_NT)

    def forward(self, text_NT: Tensor) -> Tensor:
        if not self.has_identity:
            return self.from_text(text_NT)
        keep_N1 = self.ordered_N1
        if self.training and self.id_dropout > 0:
            keep_N1 = keep_N1 & (torch.rand(len(keep_N1), 1, device=keep_N1.device) >= self.id_dropout)
        return self.content(text_NT) + self.identity.weight * keep_N1


class DualHeadModel(nn.Module):
    """Encoder, generative head and retrieval head. `ordered_N`: see `ItemTower`; None = all of them."""

    def __init__(self, config: ModelConfig, ordered_N: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_described = config.num_statistics - config.num_factors
        width, described = config.width, READ_FEATURES + self.num_described
        self.item_tower = ItemTower(
            config, torch.ones(config.num_items, dtype=torch.bool) if ordered_N is None else ordered_N
        )
        self.item_projection = nn.Linear(config.vector_dim, width)
        self.code_embeddings = Modules(nn.Embedding(size + 1, width, padding_idx=0) for size in config.codebook_sizes)
        self.position_embedding = nn.Embedding(NUM_POSITIONS, width)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, width)
        self.feature_projection = FeedForward(described, width, width)
        self.context_projection = FeedForward(NUM_CONTEXT, width, width)
        self.query_embedding = nn.Embedding(NUM_QUERIES, width)
        self.encoder = Modules(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.input_dropout = LockedDropout(config.dropout)
        self.queries = Modules(FeedForward(width, 2 * width, config.vector_dim) for _ in range(NUM_QUERIES))
        self.query_dropout = nn.Dropout(config.dropout)
        self.interest_share = nn.Linear(width, NUM_QUERIES)
        self.interest_projections = Modules(nn.Linear(config.vector_dim, config.vector_dim) for _ in range(NUM_QUERIES))
        self.statistics_weights = Modules(_linear(width, self.num_described) for _ in range(NUM_QUERIES))
        self.factor_weight = FeedForward(described, width, NUM_QUERIES)
        self.factor_gain = nn.Linear(width, NUM_QUERIES)
        self.repeat_head = FeedForward(width + described, width, 1)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.level_embedding = nn.Embedding(len(config.codebook_sizes), width)
        self.decoder = Modules(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.code_heads = Modules(nn.Linear(width, size) for size in config.codebook_sizes)
        self.copy_bias = FeedForward(width + described, width, 1)
        self.copy_query, self.copy_key = nn.Linear(width, width), nn.Linear(width, width)
        self.copy_gate = nn.Linear(width, 1)
        # What the item is must speak as loud in a token as what was done with it, or only popularity is ever learned.
        nn.init.normal_(self.item_projection.weight, std=0.3)
        # A user's query starts as what they have: a path from item vectors to item vectors that need not be learned first.
        for projection in self.interest_projections:
            nn.init.eye_(projection.weight)
        nn.init.zeros_(self.factor_gain.weight)
        nn.init.constant_(self.factor_gain.bias, FACTOR_GAIN)
        for module in self.modules():
            if isinstance(module, nn.Embedding) and module is not self.item_tower.identity:
                nn.init.normal_(module.weight, std=0.05)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx : module.padding_idx + 1])

    def encode(self, sequences: Sequences, vectors_NX: Tensor) -> Memory:
        """Read the history. `vectors_NX` are the item vectors (at least their first V components), so that an item means
        the same where it is read and where it is found. Padding never changes an output."""
        identity = F.pad(vectors_NX[:, : self.config.vector_dim], (0, 0, 1, 0))
        item_BSV = F.embedding(sequences.item_BS.long(), identity)
        x_BSD = self.item_projection(item_BSV)
        described_BSF = self._described(sequences)
        x_BSD = x_BSD + self.feature_projection(described_BSF)
        for level, embedding in enumerate(self.code_embeddings):
            x_BSD = x_BSD + embedding(sequences.codes_BSL[:, :, level].long() + 1)
        x_BSD = x_BSD + self.position_embedding(sequences.position_BS.long())
        x_BSD = x_BSD + self.action_embedding(sequences.actions_BS.long())
        context_BqD = self.context_projection(sequences.context_BC).unsqueeze(1) + self.query_embedding.weight
        visible_BS = self._visible(sequences)
        mask_BM = F.pad(torch.where(visible_BS, 0.0, MASKED), (NUM_QUERIES, 0))
        x_BMD = self.input_dropout(torch.cat([context_BqD, x_BSD], dim=1))
        mask = mask_BM[:, None, None, :]
        for block in self.encoder:
            x_BMD = block(x_BMD, mask)
        states_BMD = self.encoder_norm(x_BMD)
        copy_bias_BS = self.copy_bias(self._known(states_BMD, sequences)).squeeze(-1)
        share_BSq = (self.interest_share(states_BMD[:, NUM_QUERIES:]) + mask_BM[:, NUM_QUERIES:, None]).softmax(1)
        # Of about the length of one item vector however many there are: a mean of a hundred would hardly be heard.
        interest_BqV = F.normalize(share_BSq, dim=1).transpose(1, 2) @ item_BSV
        weight_BSq = F.softplus(self.factor_weight(described_BSF)) * visible_BS.unsqueeze(-1)
        factors_BqK = weight_BSq.transpose(1, 2) @ sequences.statistics_BSP[:, :, self.num_described :]
        return Memory(states_BMD, mask, sequences.codes_BSL, copy_bias_BS, interest_BqV, factors_BqK)

    def _described(self, sequences: Sequences) -> Tensor:
        """What is known of each token in numbers, [B, S, F + P - K]: factors are no description, their axes turn."""
        return torch.cat(
            [sequences.features_BSF[:, :, :READ_FEATURES], sequences.statistics_BSP[:, :, : self.num_described]], dim=-1
        )

    def _known(self, states_BMD: Tensor, sequences: Sequences) -> Tensor:
        """All that is known of each token: its state, and the numbers it was made of."""
        return torch.cat([states_BMD[:, NUM_QUERIES:], self._described(sequences)], dim=-1)

    def _visible(self, sequences: Sequences) -> Tensor:
        visible_BS = sequences.present_BS
        if self.training and self.config.token_dropout > 0:
            visible_BS = visible_BS & (
                torch.rand(visible_BS.shape, device=visible_BS.device) >= self.config.token_dropout
            )
        return visible_BS

    def user_embedding(self, memory: Memory) -> Tensor:
        """[B, queries, V + P + 1]: the query, the user's weight on each item statistic, the sum of the factors of
        what they have, and a 1 that meets the item's bias."""
        state_BqD = memory.states_BMD[:, :NUM_QUERIES]
        gain_Bq = (state_BqD * self.factor_gain.weight).sum(-1) + self.factor_gain.bias
        expected_BqK = gain_Bq.clamp(max=MAX_GAIN).exp().unsqueeze(-1) * memory.factors_BqK
        parts = []
        for number, (query, weights) in enumerate(zip(self.queries, self.statistics_weights, strict=True)):
            state_BD, interest_BV = state_BqD[:, number], memory.interest_BqV[:, number]
            wanted_BV = query(state_BD) / self.config.temperature
            if self.config.interest:
                wanted_BV = wanted_BV + self.interest_projections[number](interest_BV)
            wanted_BV = self.query_dropout(wanted_BV)
            parts.append(torch.cat([wanted_BV, weights(state_BD), expected_BqK[:, number]], dim=-1))
        return F.pad(torch.stack(parts, dim=1).float(), (0, 1), value=1.0)

    def repeat_score(self, memory: Memory, sequences: Sequences) -> Tensor:
        """[B, S]: what each token's item gains in the query for everything, because the user knows it. 0 = padding."""
        if not self.config.repeat:
            return torch.zeros_like(sequences.item_BS, dtype=torch.float32)
        return self.repeat_head(self._known(memory.states_BMD, sequences)).squeeze(-1).float() * sequences.present_BS

    def served_repeat_score(self, memory: Memory, sequences: Sequences) -> Tensor:
        """[B, S]: the repeat score, and the item's decayed share of the user's orders times a constant weight. The share is no
        part of training, which would learn the opposite and take it away again (ADR 32)."""
        habit_BS = self.config.habit_weight * sequences.features_BSF[:, :, DECAYED_SHARE]
        return self.repeat_score(memory, sequences) + habit_BS

    def item_vectors(self, text_NT: Tensor) -> Tensor:
        """[N, V + 1]: the learned part of the whole catalogue's item vectors, the bias last."""
        vectors: Tensor = self.item_tower(text_NT)
        return vectors.float()

    def served_vectors(self, text_NT: Tensor, statistics_NP: Tensor) -> Tensor:
        """[N, V + P + 1] item vectors as the vector index stores them: learned part, statistics, bias."""
        return with_statistics(self.item_vectors(text_NT), statistics_NP)

    def cross_keys_values(self, memory: Memory) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the history for each decoder layer: computed once, shared by every query."""
        return [block.cross.keys_values(memory.states_BMD) for block in self.decoder]

    def first_prefix(self, memory: Memory) -> Tensor:
        """Return [B, 1, 1, D], what the decoder starts from: the user as a whole; cross-attention only adds details."""
        return (self.start + memory.states_BMD[:, :1]).unsqueeze(2)

    def extended(self, prefix_BWtD: Tensor, level: int, code_BW: Tensor) -> Tensor:
        """Return prefixes with one code more: [B, W, t + 1, D] if the decoder attends to codes, else a sum, [B, W, 1, D]."""
        code_BW1D = self.code_embeddings[level](code_BW.long() + 1).unsqueeze(2)
        if not self.config.code_attention:
            return prefix_BWtD + code_BW1D
        shared_BW1D = code_BW1D.expand(prefix_BWtD.shape[0], -1, -1, -1)  # of all users, if it has a batch of one
        return torch.cat([prefix_BWtD.expand(-1, shared_BW1D.shape[1], -1, -1), shared_BW1D], dim=2)

    def next_code_log_prob(
        self,
        prefix_BWtD: Tensor,
        level: int,
        keys_values: list[tuple[Tensor, Tensor]],
        memory: Memory,
        match_BWS: Tensor,
    ) -> Tensor:
        """Return [B, W, K] log-probabilities of the next code of any number of prefixes, in nats. `match_BWS`: which tokens of
        the history have the codes of the prefix."""
        first, head = level + 1 - prefix_BWtD.shape[2], self.code_heads[level]
        x_BWtD = prefix_BWtD + self.level_embedding.weight[first : level + 1]
        for block, shared in zip(self.decoder, keys_values, strict=True):
            x_BWtD = block(x_BWtD, shared, memory.mask_B11M)
        state_BWD = self.decoder_norm(x_BWtD[:, :, -1])
        written_BWK = F.log_softmax(head(state_BWD).float(), -1)
        if not self.config.copying:
            return written_BWK
        gate_BW, weight_BWS = self.copy_weights(state_BWD, memory, match_BWS)
        copied_BWK = weight_BWS @ _one_hot(memory.codes_BSL[:, :, level], head.out_features)
        return mix_copied(gate_BW.unsqueeze(-1), copied_BWK, written_BWK)

    def _all_states(self, memory: Memory, codes_BQL: Tensor) -> list[Tensor]:
        """Return the decoder states of whole sequences at every level, [B, Q, D] each, or [B, 1, D] if all share one."""
        shared, prefix_BWtD = self.cross_keys_values(memory), self.first_prefix(memory)
        last = len(self.code_heads) - 1
        if self.config.code_attention:
            for level in range(last):
                prefix_BWtD = self.extended(prefix_BWtD, level, codes_BQL[:, :, level])
            x_BQLD = prefix_BWtD + self.level_embedding.weight
            for block, keys_values in zip(self.decoder, shared, strict=True):
                x_BQLD = block(x_BQLD, keys_values, memory.mask_B11M)
            return list(self.decoder_norm(x_BQLD).unbind(2))
        inputs = [prefix_BWtD]
        for level in range(last):
            inputs.append(self.extended(inputs[-1], level, codes_BQL[:, :, level]))
        levels = zip(inputs, self.level_embedding.weight, strict=True)
        x_BW1D = torch.cat([each + level_D for each, level_D in levels], dim=1)
        for block, keys_values in zip(self.decoder, shared, strict=True):
            x_BW1D = block(x_BW1D, keys_values, memory.mask_B11M)
        return list(self.decoder_norm(x_BW1D[:, :, 0]).split([each.shape[1] for each in inputs], dim=1))

    def copy_weights(self, states_BWD: Tensor, memory: Memory, match_BWS: Tensor) -> tuple[Tensor, Tensor]:
        """How likely the next code is copied, gate_BW, and from which token, weight_BWS. Only tokens whose codes began as the
        prefix did match; where none does, the gate is 0."""
        key_BSD = self.copy_key(memory.states_BMD[:, NUM_QUERIES:])
        score_BWS = self.copy_query(states_BWD) @ key_BSD.transpose(1, 2) * key_BSD.shape[-1] ** -0.5
        score_BWS = (score_BWS + memory.copy_bias_BS.unsqueeze(1)).float()
        match_BWS = match_BWS & (memory.mask_B11M[:, 0, :, NUM_QUERIES:] == 0)
        weight_BWS = torch.where(match_BWS, score_BWS, MASKED).softmax(-1)
        gate_BW = torch.sigmoid(self.copy_gate(states_BWD).squeeze(-1).float()) * match_BWS.any(-1)
        return gate_BW, weight_BWS

    def code_log_likelihood(self, memory: Memory, codes_BQL: Tensor) -> Tensor:
        """[B, Q, L] log-likelihood of every code of Semantic IDs, given the codes before it, in nats, in one pass."""
        states = self._all_states(memory, codes_BQL)
        written = []
        for level, (head, state_BWD) in enumerate(zip(self.code_heads, states, strict=True)):
            log_prob_BQK = F.log_softmax(head(state_BWD).float(), -1).expand(-1, codes_BQL.shape[1], -1)
            code_BQ1 = codes_BQL[:, :, level, None].long().clamp(min=0)
            written.append(log_prob_BQK.gather(-1, code_BQ1).squeeze(-1))
        written_BQL = torch.stack(written, dim=-1)
        return self._with_copies(memory, codes_BQL, states, written_BQL) if self.config.copying else written_BQL

    def _with_copies(self, memory: Memory, codes_BQL: Tensor, states: list[Tensor], written_BQL: Tensor) -> Tensor:
        """Return the log-likelihoods of codes that may be copied from the history instead of written, [B, Q, L]."""
        matches = [torch.ones_like(memory.codes_BSL[:, None, :, 0], dtype=torch.bool)]
        for level in range(codes_BQL.shape[2]):
            matches.append(matches[-1] & (codes_BQL[:, :, None, level] == memory.codes_BSL[:, None, :, level]))
        widths = [each.shape[1] for each in states]
        before = zip(matches[:-1], widths, strict=True)
        before_BWS = torch.cat([match.expand(-1, width, -1) for match, width in before], dim=1)
        gate, weight = self.copy_weights(torch.cat(states, dim=1), memory, before_BWS)
        parts = zip(gate.split(widths, dim=1), weight.split(widths, dim=1), matches[1:], strict=True)
        copied = [(gate_BW, (weight_BWS * match_BQS).sum(-1)) for gate_BW, weight_BWS, match_BQS in parts]
        mixed = [
            mix_copied(gate_BW, copied_BQ, written_BQL[:, :, level])
            for level, (gate_BW, copied_BQ) in enumerate(copied)
        ]
        return torch.stack(mixed, dim=-1)

    def log_likelihood(self, memory: Memory, codes_BQL: Tensor) -> Tensor:
        """[B, Q] log-likelihood of Semantic IDs, in nats: the sum over levels (the teacher's score)."""
        return self.code_log_likelihood(memory, codes_BQL).sum(-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that may have no output: torch would warn that there is nothing to initialise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inputs, outputs)


def _one_hot(code_BS: Tensor, num_codes: int) -> Tensor:
    """[B, S, K] floats; a row of zeros for code -1."""
    return (code_BS.unsqueeze(-1) == torch.arange(num_codes, device=code_BS.device)).float()


def mix_copied(gate: Tensor, copied: Tensor, written: Tensor) -> Tensor:
    """Log-likelihood of codes that are copied with probability `gate` (then with probability `copied`) and else written
    (then with log-probability `written`)."""
    return torch.logaddexp((gate * copied).clamp(min=TINY).log(), (1 - gate).clamp(min=TINY).log() + written)


def with_statistics(vectors_NX: Tensor, statistics_NP: Tensor) -> Tensor:
    """[N, V + P + 1]: statistics go before the bias."""
    return torch.cat([vectors_NX[:, :-1], statistics_NP, vectors_NX[:, -1:]], dim=-1)
