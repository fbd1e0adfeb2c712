"""Convolutions of batches of feature maps ``[B, *spatial, C]`` whose gradients are as fast in a loop as outside."""

import functools

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
    In 3D it has no fast kernel at all; there a plane's neighbours become channels of it, and the planes a batch.

    Args:
        features: ``[B, *spatial, C]``.
        kernel: ``[*width, C, K]``.
        stride: the same for every axis.

    Returns:
        ``[B, *ceil(spatial / stride), K]``.
    """
    return _correlate(features, kernel, stride)


def _convolve_forward(features: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _correlate(features, kernel, stride), (features, kernel)


def _convolve_backward(stride: int, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    def ordinary(features: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_ordinary, stride=stride), features, kernel)[1](cotangent)

    def by_planes(features: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(_by_planes, stride=stride), features, kernel)[1](cotangent)

    on_cpu = by_planes if cotangent.ndim == 5 else functools.partial(_transposed_correlations, stride=stride)
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
    if features.ndim == 4:
        return _ordinary(features, kernel, stride)
    on_cpu, elsewhere = (functools.partial(one, stride=stride) for one in (_by_planes, _ordinary))
    return jax.lax.platform_dependent(features, kernel, cpu=on_cpu, default=elsewhere)


def _ordinary(features: Array, kernel: Array, stride: int) -> Array:
    return _convolution(features, kernel, _padding(features, kernel, stride), stride=stride)


def _by_planes(features: Array, kernel: Array, stride: int) -> Array:
    """``_correlate`` in 3D as ONE in 2D: every plane with the planes that the kernel reaches as further channels."""
    batch, *size, channels = features.shape
    width, out = kernel.shape[0], kernel.shape[-1]
    padded = jnp.pad(features, [(0, 0), _padding(features, kernel, stride)[0], *[(0, 0)] * 3])
    planes = -(-size[0] // stride)
    reached = [jax.lax.slice_in_dim(padded, k, k + (planes - 1) * stride + 1, stride, 1) for k in range(width)]
    stacked = jnp.concatenate(reached, axis=-1).reshape(batch * planes, *size[1:], width * channels)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], width * channels, out)
    result = convolve(stacked, flat, stride)
    return result.reshape(batch, planes, *result.shape[1:])


def _transposed_correlations(features: Array, kernel: Array, cotangent: Array, stride: int) -> tuple[Array, Array]:
    """Both gradients of ``_correlate``; equal to the ordinary ones to the bit where those run the same kernels."""
    axes = tuple(range(features.ndim - 2))
    to_features, to_kernel = [], []
    sizes = zip(features.shape[1:-1], kernel.shape[:-2], cotangent.shape[1:-1], strict=True)
    for (size, width, reached), (low, _) in zip(sizes, _padding(features, kernel, stride), strict=True):
        span = (reached - 1) * stride + 1
        to_features.append((width - 1 - low, size + low - span))
        to_kernel.append((low, span - 1 + width - size - low))
    turned = jnp.flip(kernel, axes).swapaxes(-1, -2)
    by_features = _convolution(cotangent, turned, to_features, spread=stride)
    # Channels take the place of the batch, and the batch that of the channels summed over.
    by_kernel = _convolution(features.swapaxes(0, -1), jnp.moveaxis(cotangent, 0, -2), to_kernel, dilation=stride)
    return by_features, jnp.moveaxis(by_kernel, 0, -2)


def _convolution(
    features: Array, kernel: Array, padding: list[tuple[int, int]], *, stride: int = 1, spread: int = 1, dilation: int = 1
) -> Array:
    ndim = features.ndim - 2
    spatial = "DHW"[-ndim:]
    return jax.lax.conv_general_dilated(
        features,
        kernel,
        (stride,) * ndim,
        padding,
        lhs_dilation=(spread,) * ndim,
        rhs_dilation=(dilation,) * ndim,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )


def _padding(features: Array, kernel: Array, stride: int) -> list[tuple[int, int]]:
    width = kernel.shape[:-2]
    return jax.lax.padtype_to_pads(features.shape[1:-1], width, (stride,) * len(width), "SAME")
