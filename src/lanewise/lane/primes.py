"""Primes below a bound, for tables that are addressed by a hash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice


def largest_primes(count: int, *, at_most: int) -> tuple[int, ...]:
    """The `count` largest primes ≤ `at_most`, falling.

    Raises:
        ValueError: there are not as many.
    """
    found = tuple(islice(_falling(at_most), count))
    if len(found) < count:
        raise ValueError(
            f"{count} distinct primes up to {at_most} are needed and there are {len(found)}; give a larger bound"
        )
    return found


def has_primes(count: int, *, at_most: int) -> bool:
    """Whether there are `count` distinct primes ≤ `at_most`."""
    return sum(1 for _ in islice(_falling(at_most), count)) == count


def _falling(at_most: int) -> Iterator[int]:
    return (number for number in range(at_most, 1, -1) if _is_prime(number))


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
