"""Small tables that the kernels read besides their tensors, and scratch memory, both kept on the device."""

from typing import Any

import torch
from torch import Tensor


class DeviceTables:
    """Tables on a device, each with a name; uploaded from pinned memory, without waiting, if they are new or changed.

    A changed table becomes a new tensor, because the old tensor may belong to a captured graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tables: dict[str, tuple[list[Any], Tensor, Tensor]] = {}
        self._scratch: tuple[Tensor, ...] = ()
        self._captured: list[Any] = []

    def table(self, name: str, values: list[Any], dtype: torch.dtype) -> Tensor:
        """`values`, n numbers or rows of m, as a tensor [n] or [n, m] of `dtype` on the device."""
        known = self._tables.get(name)
        if known is None or known[0] != values:
            known = self._upload(name, values, torch.tensor(values, dtype=dtype))
        return known[2]

    def chunk_tensor(self, bounds: list[int], order: list[int]) -> Tensor:
        """The number of the tensor to which each chunk belongs, int32 [chunks].

        order: the tensors' numbers, in the order of their chunks. bounds: the first chunk of each tensor in this order,
        then the number of chunks. The two lists determine the table, which is longer, so they are compared with those
        of the last call instead of the table itself.
        """
        known = self._tables.get("chunk_tensor")
        if known is None or known[0] != [*bounds, *order]:
            owners = torch.repeat_interleave(torch.tensor(order, dtype=torch.int32), torch.tensor(bounds).diff())
            known = self._upload("chunk_tensor", [*bounds, *order], owners)
        return known[2]

    def scratch(self, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
        """An uninitialised fp32 tensor [length] for each length; the same tensors until the lengths change."""
        if tuple(map(len, self._scratch)) != lengths:
            self._scratch = tuple(torch.empty(length, device=self.device) for length in lengths)
        return self._scratch

    def keep_for_graph(self, *others: Any) -> None:
        """While a graph is recorded, keeps the present tables and `others` alive for good: every replay reads them."""
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._captured.append((list(self._tables.values()), self._scratch, others))

    def _upload(self, name: str, values: list[Any], host: Tensor) -> tuple[list[Any], Tensor, Tensor]:
        host = host.pin_memory() if self.device.type == "cuda" else host
        self._tables[name] = (values, host, host.to(self.device, non_blocking=True))
        return self._tables[name]
