"""Reads a BPF ring buffer by mmap, in batches, without a callback or a copy per record.

The layout is the kernel's (kernel/bpf/ringbuf.c): one page with the consumer's position, which is
ours to write; one with the producer's; then the data, mapped twice in a row so that a record that
wraps is still contiguous. Each record has an 8-byte header whose first word is its length and two
flags. x86-64 orders these loads and stores as the kernel's protocol needs them.
"""

from __future__ import annotations

import mmap

_BUSY = 1 << 31  # reserved, not committed yet: everything behind it waits
_DISCARD = 1 << 30
_LENGTH = _DISCARD - 1


class Ring:
    """One ring. fd: of its map (also pollable); size: bytes of data, a power of two."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd, self.size = fd, size
        self._mask = size - 1
        self._own = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._shared = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # Positions are read and written as one 64-bit word: struct would do it byte by byte.
        self._consumer = memoryview(self._own)[:8].cast("Q")
        self._producer = memoryview(self._shared)[:8].cast("Q")
        self._data = memoryview(self._shared)[page:]
        self._words = self._data.cast("I")
        self._next = self._consumer[0]

    def records(self, limit: int = 1 << 62) -> list[memoryview]:
        """Records committed and not yet released, oldest first, at most `limit` bytes of them.

        They lie in the ring itself: copy what is to outlive `release`.
        """
        found: list[memoryview] = []
        data, words, mask = self._data, self._words, self._mask
        position, end = self._consumer[0], self._producer[0]
        end = min(end, position + limit)
        while position < end:
            offset = position & mask
            header = words[offset >> 2]
            if header & _BUSY:
                break
            length = header & _LENGTH
            if not header & _DISCARD:
                found.append(data[offset + 8 : offset + 8 + length])
            position += (length + 15) & ~7
        self._next = position
        return found

    def release(self) -> None:
        """Gives the room of what `records` returned last back to the kernel."""
        self._consumer[0] = self._next

    @property
    def pending(self) -> int:
        """Bytes written and not released."""
        return int(self._producer[0] - self._consumer[0])

    @property
    def waiting(self) -> int:
        """Records committed and not released."""
        found, position, end = 0, self._consumer[0], self._producer[0]
        words, mask = self._words, self._mask
        while position < end:
            header = words[(position & mask) >> 2]
            if header & _BUSY:
                break
            found += not header & _DISCARD
            position += ((header & _LENGTH) + 15) & ~7
        return found

    def close(self) -> None:
        for view in (self._words, self._data, self._producer, self._consumer):
            view.release()
        self._shared.close()
        self._own.close()
