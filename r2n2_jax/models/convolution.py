"""Convolutions of batches of feature maps ``[B, *spatial, C]`` whose gradients are as fast in a loop as outside."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(features: Array, kernel: Array, stride: int) -> Array:
    """Cross-correlation padded to ``ceil(n / stride)`` pixels per axis, in 2D or 3D.

    Its gradients are the ordinary ones, in reverse mode only. On a CPU they are written as plain convolutions of transposed
    operands, because XLA (0.10 of jaxlib and before) brings a gradient's convolution into the form its fast kernels take only
    in the outermost computation: inside a ``scan`` the ordinary gradient runs through a plain loop, ten to thirty times slower.
    Of a larger stride it is slow anywhere; there every block of pixels becomes one of more channels. In 3D there is no fast
    kernel at all; a plane's neighbours become channels of it, and the planes a batch.

    Args:
        features: ``[B, *spatial, C]``.
        kernel: ``[*width, C, K]``; where the stride is 2, of odd width.
        stride: 1 or 2, the same for every axis.

    Returns:
        ``[B, *ceil(spatial / stride), K]``.
    """
    return _correlate(features, kernel, stride)


def _convolve_forward(features: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(features, kernel, stride), (features, kernel)


def _convolve_backward(stride: int, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    def ordinary(features: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_ordinary, stride=stride), features, kernel)[1](cotangent)

    def on_cpu(features: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        if stride > 1:
            return jax.vjp(functools.partial(_by_phases, stride=stride), features, kernel)[1](cotangent)
        if cotangent.ndim == 5:
            return jax.vjp(_by_planes, features, kernel)[1](cotangent)
        return _transposed_correlations(features, kernel, cotangent)

    return jax.lax.platform_dependent(*operands, cotangent, cpu=on_cpu, default=ordinary)


convolve.defvjp(_convolve_forward, _convolve_backward)


class Convolution(nn.Module):
    """``convolve`` with a learned kernel and bias, float32 both, in the precision of the features.

    Attributes:
        features: channels out.
        width: kernel width along every axis.
        stride: the same for every axis.
        use_bias: add one learned number a channel.
    """

    features: int
    width: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """``[B, *ceil(spatial / stride), features]``."""
        shape = (*(self.width,) * (features.ndim - 2), features.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        result = convolve(features, kernel.astype(features.dtype), self.stride)
        if not self.use_bias:
            return result
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return result + jnp.expand_dims(bias, range(features.ndim - 1)).astype(features.dtype)


def _correlate(features: Array, kernel: Array, stride: int) -> Array:
    ordinary = functools.partial(_ordinary, stride=stride)
    if features.ndim == 4:
        return ordinary(features, kernel)
    on_cpu = _by_planes if stride == 1 else functools.partial(_by_phases, stride=stride)
    return jax.lax.platform_dependent(features, kernel, cpu=on_cpu, default=ordinary)


def _ordinary(features: Array, kernel: Array, stride: int) -> Array:
    return _convolution(features, kernel, _padding(features, kernel, stride), stride=stride)


def _by_phases(features: Array, kernel: Array, stride: int) -> Array:
    """``_correlate`` as one of stride one of blocks of pixels, which are their channels."""
    spatial, width = features.shape[1:-1], kernel.shape[:-2]
    before_image, before_kernel = [], []
    for (low, _), taps in zip(_padding(features, kernel, stride), width, strict=True):
        # A kernel of blocks looks back by whole ones; what ``low`` is more or less is padded.
        shift = low - stride * ((-(-taps // stride) - 1) // 2)
        before_image.append(max(shift, 0))
        before_kernel.append(max(-shift, 0))
    image = _in_blocks(features, before_image, [-(-n // stride) for n in spatial], 1, stride)
    blocks = _in_blocks(kernel, before_kernel, [-(-k // stride) for k in width], 0, stride)
    return convolve(image, blocks, 1)


def _in_blocks(values: Array, before: list[int], blocks: list[int], axis: int, stride: int) -> Array:
    """Values whose spatial axes, from ``axis`` on, are padded to so many blocks, of which the pixels are channels."""
    lead, (*spatial, channels), d = values.shape[:axis], values.shape[axis : axis + len(blocks) + 1], len(blocks)
    rest = values.shape[axis + d + 1 :]
    after = [count * stride - n - low for n, low, count in zip(spatial, before, blocks, strict=True)]
    padding = [(0, 0)] * axis + list(zip(before, after, strict=True)) + [(0, 0)] * (1 + len(rest))
    split = [size for count in blocks for size in (count, stride)]
    padded = jnp.pad(values, padding).reshape(*lead, *split, channels, *rest)
    inner = jnp.moveaxis(padded, range(axis + 1, axis + 2 * d, 2), range(axis + d, axis + 2 * d))
    return inner.reshape(*lead, *blocks, stride**d * channels, *rest)


def _by_planes(features: Array, kernel: Array) -> Array:
    """``_correlate`` of stride one in 3D as ONE in 2D: of every plane those that the kernel reaches are further channels."""
    batch, *size, channels = features.shape
    width, out = kernel.shape[0], kernel.shape[-1]
    padded = jnp.pad(features, [(0, 0), _padding(features, kernel, 1)[0], *[(0, 0)] * 3])
    stacked = jnp.concatenate([padded[:, k : k + size[0]] for k in range(width)], axis=-1)
    stacked = stacked.reshape(batch * size[0], *size[1:], width * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], width * channels, out)
    return convolve(stacked, flat, 1).reshape(batch, *size, out)


def _transposed_correlations(features: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    """Both gradients of ``_correlate`` of stride one; equal to the bit to the ordinary ones if those run the same kernels."""
    axes = tuple(range(features.ndim - 2))
    padding = _padding(features, kernel, 1)
    turned = jnp.flip(kernel, axes).swapaxes(-1, -2)
    by_features = _convolution(cotangent, turned, [(high, low) for low, high in padding])
    # Channels take the place of the batch, and the batch that of the channels summed over.
    by_kernel = _convolution(features.swapaxes(0, -1), jnp.moveaxis(cotangent, 0, -2), padding)
    return by_features, jnp.moveaxis(by_kernel, 0, -2)


def _convolution(features: Array, kernel: Array, padding: Sequence[tuple[int, int]], *, stride: int = 1) -> Array:
    ndim = features.ndim - 2
    spatial = "DHW"[-ndim:]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(features, kernel, (stride,) * ndim, padding, dimension_numbers=numbers)


def _padding(features: Array, kernel: Array, stride: int) -> list[tuple[int, int]]:
    width = kernel.shape[:-2]
    return jax.lax.padtype_to_pads(features.shape[1:-1], width, (stride,) * len(width), "SAME")
