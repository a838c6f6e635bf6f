"""Devices "ipu:0" and "ipu:1" on a machine without GPUs: tensors that know where they lie and refuse to be mixed.

A `Placed` tensor holds its values in an ordinary CPU tensor. Within `fake_devices()` every operation on such tensors is
done on the CPU, once it is sure that all of them lie on the same device, as CUDA would have it: only scalars and
indices may come from the CPU. Enough of a device for accelerate to spread a model over two of them.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KIND = "ipu"  # a type that torch knows, and for which it looks for no driver
FIRST, SECOND = torch.device(KIND, 0), torch.device(KIND, 1)
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default}
INDEXING |= {aten._index_put_impl_.default}
TRANSFERS = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}


class Placed(torch.Tensor):
    """`values`, a CPU tensor, as if on `place`."""

    @staticmethod
    def __new__(cls, values, place):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device="meta", requires_grad=False,
        )  # fmt: skip
        tensor.values, tensor.place = values, place
        return tensor

    @property
    def device(self):
        return self.place

    def data_ptr(self):
        return self.values.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args, kwargs):
    flat, spec = tree_flatten((args, kwargs))
    places = {value.place for value in flat if isinstance(value, Placed)}
    if function is not aten.copy_.default:
        refuse_mixing(function, args, kwargs)
    asked = kwargs.get("device")
    place = torch.device(asked) if asked is not None and torch.device(asked).type == KIND else None
    if place is None and asked is not None and torch.device(asked).type == "cpu":
        places = set()
    target = place or next((v.place for v in flat if isinstance(v, Placed)), None) if places or place else None
    values = [v.values if isinstance(v, Placed) else v for v in flat]
    args, kwargs = tree_unflatten(values, spec)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    originals = {id(v.values): v for v in flat if isinstance(v, Placed)}

    def wrap(result):
        if not isinstance(result, torch.Tensor) or target is None:
            return result
        return originals.get(id(result)) if id(result) in originals else Placed(result, target)

    return tree_map(wrap, function(*args, **kwargs))


def refuse_mixing(function, args, kwargs):
    """Tensors must share a device, except for scalars of the CPU, and indices, which may be on the CPU."""
    indices = [i for i in args[1] if i is not None and i.device.type == "cpu"] if function in INDEXING else []
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    devices = {str(v.device) for v in tensors if not any(v is index for index in indices)
               and (v.dim() or v.device.type != "cpu")}  # fmt: skip
    if len(devices) > 1:
        raise RuntimeError(f"{function}: tensors on {sorted(devices)}")


class Transfer(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where it came from."""

    @staticmethod
    def forward(context, tensor, place):
        context.back = tensor.device
        return moved(tensor, place)

    @staticmethod
    def backward(context, gradient):
        return moved(gradient, context.back), None


def moved(tensor, place):
    values = tensor.values if isinstance(tensor, Placed) else tensor
    values = values.detach().clone()
    return values if place.type == "cpu" else Placed(values, place)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in TRANSFERS:
            return transfer(function, args, kwargs)
        return function(*args, **kwargs)


def transfer(function, args, kwargs):
    tensor, *rest = args
    if function is torch.Tensor.cpu:
        rest = ["cpu"]
    targets = [r.device if isinstance(r, torch.Tensor) else r for r in (*rest, kwargs.pop("device", None))]
    place = next((torch.device(t) for t in targets if isinstance(t, (str, torch.device, int))), tensor.device)
    dtypes = [r.dtype if isinstance(r, torch.Tensor) else r for r in (*rest, kwargs.get("dtype"))]
    dtype = next((d for d in dtypes if isinstance(d, torch.dtype)), tensor.dtype)
    if place != tensor.device:
        tensor = Transfer.apply(tensor, place)
    return torch.ops.aten._to_copy(tensor, dtype=dtype) if dtype != tensor.dtype else tensor


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


@contextmanager
def fake_devices():
    """Within the block there are two GPUs."""
    with _Functions(), _Dispatch():
        yield
