"""Counter-based uniforms: against plain Python, and as random numbers."""

import numpy as np
import torch

from infalign.lm.sampling.randomness import counter_of, derive_seed, uniforms

MASK = 2**64 - 1


def mix(value: int) -> int:
    """SplitMix64's step in unbounded integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def slow_uniform(seed: int, key: int, index: int, position: int) -> float:
    state = mix((key & MASK) ^ seed)
    state = mix((state + index * 0x9E3779B97F4A7C15) & MASK)
    state = mix((state + position) & MASK)
    return (state >> 11) * 2.0**-53


def test_equals_plain_python():
    seed = derive_seed(7, "sample")
    keys = [counter_of(h) for h in ("0000000000000000", "ffffffffffffffff", "8123456789abcdef")]
    for position in (0, 1, 30):
        for index in (0, 5, 100_000):
            found = uniforms(seed, torch.tensor(keys), torch.tensor([index] * 3), position)
            assert found.tolist() == [slow_uniform(seed, k, index, position) for k in keys]


def test_splitmix_reference_value():
    # The first output of SplitMix64 from state 0, as published with the algorithm.
    assert mix(0) == 0xE220A8397B1DCDAF


def test_uniform_and_independent():
    keys = torch.arange(200).repeat_interleave(100)
    indices = torch.arange(100).repeat(200)
    draws = np.stack([uniforms(1, keys, indices, p).numpy() for p in range(3)])
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / draws.size)
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < 63 + 5 * np.sqrt(2 * 63)
    across = np.corrcoef(draws.reshape(3, -1))
    assert np.abs(across - np.eye(3)).max() < 5 / np.sqrt(draws.shape[1])


def test_purposes_give_different_streams():
    assert derive_seed(0, "sample") != derive_seed(0, "align") != derive_seed(1, "align")
    assert 0 <= derive_seed(0, "sample") < 2**63
