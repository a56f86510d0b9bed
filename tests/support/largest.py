"""How large the tensors are that a computation makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Elements of the largest floating tensor that any operation makes anew; columns: of those with so many."""

    def __init__(self, columns: int | None = None):
        super().__init__()
        self.columns, self.elements = columns, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for t in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(t, torch.Tensor) or not t.is_floating_point():
                continue
            wanted = self.columns is None or (t.dim() > 0 and t.shape[-1] == self.columns)
            if wanted and t.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, t.numel())
        return result
