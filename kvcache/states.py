"""A cache whose memory is the state of an engine: rows are counted here and moved over there."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import ContextOverflow
from quickdraft.kvcache.growing import GrowingCache, Slots
from quickdraft.types import ModelSpec

Floats = NDArray[np.float32]


class StateMemory(Protocol):
    """The states of one conversation. slots: how many they hold. nbytes: of all of them."""

    slots: int
    nbytes: int

    def read(self) -> tuple[Floats, Floats]:
        """Keys and values of all layers, float32 [KV heads of all layers, slots, head_dim]."""

    def move(self, source: Slots, first: int) -> None:
        """Copy the slots of `source`, which rise and are not below their targets, to those from
        `first` on."""

    def copy(self) -> StateMemory:
        """Independent states with the same content."""


class StateCache(GrowingCache):
    """A KvCache over states of fixed length, which never grow."""

    def __init__(self, spec: ModelSpec, states: StateMemory, limit: int) -> None:
        """limit: slots that committed and staged rows may take, at most those of the memory."""
        super().__init__(spec, limit, alignment=1)
        self._limit = self._capacity = limit
        self.states = states

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return self.states.nbytes

    def fork(self) -> StateCache:
        """An independent copy; all slots are copied, whatever the length."""
        twin = StateCache(self._spec, self.states.copy(), self._limit)
        twin._length, twin._predicted = self._length, self._predicted
        twin.memory = self.memory
        return twin

    def layer(self, index: int) -> tuple[Floats, Floats]:
        """Copies of one layer, [capacity, kv_heads, head_dim]."""
        heads = self._spec.num_kv_heads
        first = sum(heads[:index])
        keys, values = (
            np.ascontiguousarray(
                states[first : first + heads[index], : self._capacity].transpose(1, 0, 2)
            )
            for states in self.states.read()
        )
        return keys, values

    def _resize(self, capacity: int) -> None:
        raise ContextOverflow(capacity, self._limit, "step")

    def _move(self, source: Slots, target: Slots) -> None:
        self.states.move(source, int(target[0]))
