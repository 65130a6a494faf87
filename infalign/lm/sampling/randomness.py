"""Random numbers by counter: one uniform a token, from (seed, prompt, sample index, position).

A token follows from its uniform by the inverse CDF in float64. No state is carried, so order,
restarts, batch size and number of processes change nothing. The mixing function is the finaliser
of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib

import torch

SCORES = 2**24  # next-token scores turned into tokens at once: 128 MiB in float64

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def derive_seed(seed: int, *purpose: str) -> int:
    """A 63-bit seed for one purpose: streams of different purposes are independent."""
    text = "/".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def counter_of(prompt_id: str) -> int:
    """The 64 bits of a prompt id (16 hex digits) as a signed integer."""
    value = int(prompt_id, 16)
    return value - 2**64 if value >= 2**63 else value


def uniforms(
    seed: int,
    counters: torch.Tensor,
    sample_indices: torch.Tensor,
    position: int | torch.Tensor,
) -> torch.Tensor:
    """Uniforms in [0, 1), float64, of the shape that the int64 arguments broadcast to."""
    state = _mix(counters ^ seed)
    state = _mix(state + sample_indices * _GOLDEN)
    state = _mix(state + position)
    return _shift(state, 11).to(torch.float64) * 2.0**-53


def engine_seed(seed: int, prompt_id: str, sample_index: int) -> int:
    """What stands for a response where an engine takes one seed: a signed 64-bit hash.

    Seeds of one prompt are consecutive, as vLLM numbers the responses to a request, and each is the
    state that `uniforms` mixes the position into, over its multiplier: what draws by it as here
    gives the same tokens.
    """
    key = torch.tensor(counter_of(prompt_id) ^ seed)
    inverse = pow(_GOLDEN, -1, 2**64)
    value = (int(_mix(key)) * inverse + sample_index) % 2**64
    return value - 2**64 if value >= 2**63 else value


def draw(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [batch] by inverse CDF, and their log-probabilities [batch], nats.

    Args:
        logits: [batch, vocab].
        uniform: float64 [batch] in [0, 1).
        temperature: what logits are divided by.
    """
    if logits.numel() > SCORES and len(logits) > 1:  # float64 sums of a large vocabulary are large
        halves = zip(logits.chunk(2), uniform.chunk(2), strict=True)
        parts = [draw(*half, temperature) for half in halves]
        return torch.cat([t for t, _ in parts]), torch.cat([p for _, p in parts])
    scores = logits.float() - logits.amax(-1, keepdim=True).float()
    if temperature != 1.0:
        scores /= temperature
    weights = torch.exp(scores)
    cdf = weights.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    token = torch.searchsorted(cdf, (uniform * total)[:, None], right=True)[:, 0]
    token = token.clamp(max=logits.shape[-1] - 1)
    chosen = weights.gather(1, token[:, None])[:, 0].double()
    return token, torch.log(chosen) - torch.log(total)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = value + _GOLDEN
    value = (value ^ _shift(value, 30)) * _MIX1
    value = (value ^ _shift(value, 27)) * _MIX2
    return value ^ _shift(value, 31)
