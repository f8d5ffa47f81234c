"""Triton's interpreter: the kernels on the CPU, for hosts without a GPU.

`prepare` must run before anything imports triton: `triton.jit` decides when it decorates.
"""

import os
from typing import Any


def prepare() -> None:
    """Switch the interpreter of triton 3.6 on, mended and made several times as fast."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    _mend_indices(interpreter)
    _patch_once(interpreter)


def _mend_indices(interpreter: Any) -> None:
    """Loops over bounds that a kernel computed, with numpy 2.4.

    The interpreter holds scalars as arrays of one element, and int() of such an array has
    become a TypeError.
    """
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index


def _patch_once(interpreter: Any) -> None:
    """A launch patches the language module, and so does every call of a function inside of it.

    The latter, which `tl.max` and `tl.zeros` are too, is never undone, so once is enough for
    each module that they come from.
    """
    patched = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
