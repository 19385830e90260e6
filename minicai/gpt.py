"""A Llama-shaped GPT: RMSNorm before attention and MLP, rotary positions, SwiGLU, grouped-query
attention. Its last five settings are for pretrained weights (pretrained.py).

Dimensions: B batch, T time, S cache slots, C channels (n_embd), H query heads, G key/value heads,
D head size, V vocabulary.

Left out on purpose: dropout (it would make the log-probabilities of reinforcement learning noisy),
attention windows, mixtures of experts, parallelism over several devices.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class GPTConfig:
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int  # below n_head: grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245)
    n_embd: int
    n_hidden: int  # width of the SwiGLU layer
    block_size: int  # the longest sequence, prompt and response together
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    head_size: int | None = None  # default: n_embd / n_head
    qkv_bias: bool = False  # Qwen2: queries, keys and values have biases
    qk_norm: bool = False  # Qwen3: RMSNorm over each head's query and key
    rope_scaling: tuple | None = None  # Llama 3.1: see `rope_table`
    n_frozen: int = 0  # the lowest blocks, which keep their weights in every training; see `freeze`

    def __post_init__(self):
        self.head_size = self.head_size or self.n_embd / self.n_head
        if self.head_size % 2:  # odd, or no whole number
            raise ValueError(f"n_embd {self.n_embd} is not {self.n_head} heads of even size")
        self.head_size = int(self.head_size)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is no multiple of n_kv_head {self.n_kv_head}")


class KVCache:
    """Keys and values of every layer for B rows of S slots each.

    Slot s of a row holds position s of that row's own sequence, whatever the lengths of the other
    rows. So a query at position p may look at the slots 0..p and no others. Slots beyond the end of
    a row hold leftovers that no query can see.
    """

    def __init__(self, config: GPTConfig, rows: int, slots: int, device, dtype):
        shape = (config.n_layer, rows, config.n_kv_head, slots, config.head_size)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0  # attention reads these slots: all that any row has filled

    def reach(self, end: int):
        """Let attention read at least `end` slots: a multiple of 16, because CPU libraries build
        and keep a kernel for every new shape."""
        self.used = max(self.used, min(-(-end // 16) * 16, self.k.shape[3]))

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, G, T, D) at positions (B, T).

        Return everything in the used slots of this layer: keys and values (B, G, used, D).
        """
        rows = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        # Index tensors on both sides of a slice put the indexed axes first: (B, T, G, D).
        self.k[layer, rows, :, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer, rows, :, positions] = v.transpose(1, 2).to(self.v.dtype)
        return self.k[layer, :, :, : self.used], self.v[layer, :, :, : self.used]

    def keep(self, rows: Tensor):
        """Keep only these rows (a 1-D tensor of row numbers)."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


def rope_table(positions: int, head_size: int, theta: float, scaling=None) -> Tensor:
    """cos and sin of position x frequency: (2, positions, D/2). Su et al. 2021 (RoPE), eq. 34.

    scaling = (factor, low, high, context) is Llama 3.1's: a pair that turns less than `low` times
    within `context` turns `factor` times slower, one that turns more than `high` times as before.
    """
    frequency = theta ** (-torch.arange(0, head_size, 2).float() / head_size)
    if scaling:
        factor, low, high, context = scaling
        turns = context * frequency / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (kept + (1 - kept) / factor)
    angle = torch.arange(positions).float()[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+D/2}) of x (B, H, T, D) by the angle of its position.

    This pairing is Hugging Face's. Meta's own Llama code pairs neighbours (x_2i, x_{2i+1}).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention of q (B, H, T, D) to k and v (B, G, S, D) -> (B, H, T, D).

    mask (.., T, S) is true where a query may look. Each key/value head serves H/G query heads that
    lie side by side, so their queries are the rows of one product. Training short sequences on a
    CPU it is 3 to 6 times as fast as PyTorch's fused kernel, which is faster everywhere else.
    """
    B, H, T, D = q.shape
    G, S = k.shape[1:3]
    scores = q.reshape(B, G, H // G * T, D) @ k.transpose(-1, -2) * D**-0.5
    weights = scores.view(B, H, T, S).masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype)
    return (weights.view(B, G, H // G * T, S) @ v).view(B, H, T, D)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        width, kv_width = (n * config.head_size for n in (config.n_head, config.n_kv_head))
        self.q = nn.Linear(config.n_embd, width, bias=config.qkv_bias)
        self.k = nn.Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.out = nn.Linear(width, config.n_embd, bias=False)
        norm = partial(nn.RMSNorm, eps=config.norm_eps) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(config.head_size), norm(config.head_size)

    def forward(self, x, cos, sin, mask, store_kv=None):
        """x (B, T, C) -> (B, T, C). cos and sin turn queries and keys by their positions; mask is
        true where a query may look. With a cache, store_kv(k, v) stores the new keys and values and
        returns all so far; without one it is None."""
        B, T, _ = x.shape
        q = self.q_norm(self.q(x).view(B, T, self.n_head, -1)).transpose(1, 2)  # (B, H, T, D)
        k = self.k_norm(self.k(x).view(B, T, self.n_kv_head, -1)).transpose(1, 2)  # (B, G, T, D)
        v = self.v(x).view(B, T, self.n_kv_head, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if store_kv is not None:
            k, v = store_kv(k, v)  # (B, G, S, D)
            q = q.to(k.dtype)
        if x.device.type == "cpu" and store_kv is None and T <= 256:
            y = attend(q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, mask, store_kv=None):
        x = x + self.attention(self.norm1(x), cos, sin, mask, store_kv)
        return x + self.mlp(self.norm2(x))


def token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """log pi(ids[:, 1:]), each id given those before it, in float32: (B, T-1).

    logits (B, T-1, V) are the model's output for ids[:, :-1]; ids (B, T).
    """
    return logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        rope = config.head_size, config.rope_theta, config.rope_scaling
        self.register_buffer("rope", rope_table(config.block_size, *rope), persistent=False)
        self.apply(self._init)
        # As in GPT-2: the residual stream adds up 2 x n_layer terms, so each starts smaller.
        for block in self.blocks:
            for last in (block.attention.out, block.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * config.n_layer))
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.freeze(config.n_frozen)

    def freeze(self, n: int):
        """Leave the n lowest blocks, the embeddings and the head as they are in every training."""
        self.config.n_frozen = n
        for part in (self.embed, self.head, *self.blocks[:n]) if n else ():
            part.requires_grad_(False)

    @staticmethod
    def _init(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def hidden(
        self, ids: Tensor, cache: KVCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) -> hidden states (B, T, C) after the final norm, which any kind of head reads.

        ids may also be weights over the vocabulary, (B, T, V), that mix the embeddings: a
        gradient with respect to them can be taken (experiments/gcg.py). Without a cache, position
        t of a row sees positions 0..t, so padding on the right changes nothing before it. With a
        cache, `positions` (B, T) gives the position of each id in its own row; its keys and
        values are written there. Raises ValueError when a position lies beyond block_size.
        """
        T = ids.shape[1]
        end = T if positions is None else int(positions.max()) + 1
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit the context of {self.config.block_size}")
        x = ids @ self.embed.weight if ids.is_floating_point() else self.embed(ids)
        if cache is None:
            cos, sin = self.rope[:, :T]  # (T, D/2)
            mask = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
        else:
            cos, sin = self.rope[:, positions].unsqueeze(2)  # (B, 1, T, D/2), equal for all heads
            cache.reach(end)
            slots = torch.arange(cache.used, device=ids.device)
            mask = slots <= positions[:, None, :, None]  # (B, 1, T, S)
        for layer, block in enumerate(self.blocks):
            store_kv = partial(cache.write, layer, positions) if cache is not None else None
            x = block(x, cos, sin, mask, store_kv)
        return self.norm(x)

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V). See `hidden` for the arguments and the error."""
        return self.head(self.hidden(ids, cache, positions))
