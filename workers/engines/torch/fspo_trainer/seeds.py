"""The project's random numbers (infra/random.ts), the same on every machine and in both engines."""

import hashlib
import json
import math

_MASK = 0xFFFFFFFF


def canonical_json(value) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def seed_of(*parts) -> int:
    """A seed in [0, 2^31) that depends on each part and on their order."""
    return int.from_bytes(_digest(parts)[:4], "little") >> 1


class Random:
    """The stream of a seed: xoshiro128** of Blackman and Vigna, its state from the seed's SHA-256."""

    def __init__(self, seed):
        digest = _digest([seed])
        self.state = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]

    def next(self) -> float:
        """Uniform in [0, 1), 53 bits."""
        high = self._draw() >> 5
        low = self._draw() >> 6
        return (high * 2**26 + low) / 2**53

    def shuffle(self, values) -> list:
        """A shuffled copy."""
        copy = list(values)
        for last in range(len(copy) - 1, 0, -1):
            other = math.floor(self.next() * (last + 1))
            copy[last], copy[other] = copy[other], copy[last]
        return copy

    def normal(self) -> float:
        """Standard normal (Box-Muller)."""
        radius = math.sqrt(-2 * math.log(1 - self.next()))
        return radius * math.cos(2 * math.pi * self.next())

    def _draw(self) -> int:
        a, b, c, d = self.state
        result = (_rotate((b * 5) & _MASK, 7) * 9) & _MASK
        shifted = (b << 9) & _MASK
        c ^= a
        d ^= b
        b ^= c
        a ^= d
        c ^= shifted
        self.state = [a, b, c, _rotate(d, 11)]
        return result


def _digest(parts) -> bytes:
    return hashlib.sha256(canonical_json(list(parts)).encode()).digest()


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK
