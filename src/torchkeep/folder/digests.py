"""XXH3-128 over what a checkpoint holds: chunks of tensors, headers, shards, small files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import xxhash

CHUNK_BYTES = 64 * 2**20
DIGEST_DIGITS = 32


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The digest of some bytes as 32 lower-case hexadecimal digits.

    Example:
        >>> digest_of(b"")
        '99aa06d3014798d86001c324468d497f'
    """
    return xxhash.xxh3_128_hexdigest(data)


def chunk_ranges(nbytes: int) -> Iterator[tuple[int, int]]:
    """The ranges that a tensor's bytes are digested in, end exclusive: whole chunks, then the rest."""
    for begin in range(0, nbytes, CHUNK_BYTES):
        yield begin, min(begin + CHUNK_BYTES, nbytes)


def count_chunks(nbytes: int) -> int:
    """How many ranges `chunk_ranges` gives."""
    return -(-nbytes // CHUNK_BYTES)


def chunk_digests(data: memoryview) -> tuple[str, ...]:
    """The digest of every chunk of a tensor's bytes."""
    return tuple(digest_of(data[begin:end]) for begin, end in chunk_ranges(len(data)))


def shard_digest(header_digest: str, chunks: Iterable[str]) -> str:
    """A shard's digest: over the raw digest of its header and those of its chunks in file order."""
    return digest_of(bytes.fromhex(header_digest) + b"".join(bytes.fromhex(chunk) for chunk in chunks))


def is_digest(text: object) -> bool:
    """Whether a value is 32 lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == DIGEST_DIGITS and not set(text) - set("0123456789abcdef")
