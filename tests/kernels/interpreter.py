"""Triton's interpreter: the kernels on the CPU, for hosts without a GPU.

`prepare` must run before anything imports triton: `triton.jit` decides when it decorates.
"""

import os
from typing import Any


def prepare() -> None:
    """Switch the interpreter on, and mend what numpy 2.4 broke in that of triton 3.6.

    The interpreter holds scalars as arrays of one element, and int() of such an array has
    become a TypeError: loops over bounds that a kernel computed could not run.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index
