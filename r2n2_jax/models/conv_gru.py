"""The convolutional gated recurrent unit (eqs 10-13) on batches of feature maps ``[B, *spatial, C]``."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2n2_jax.models.convolution import Convolution, convolve

Array = jax.Array


class ConvGRU(nn.Module):
    r"""One step of the C-GRU.

    .. math::
        r &= \psi(x * w_r + h_{t-1} * u_r + b_r) \\
        z &= \psi(x * w_z + h_{t-1} * u_z + b_z) \\
        \tilde h_t &= \phi(x * w + (r \odot h_{t-1}) * u + b) \\
        h_t &= (1 - z) \odot h_{t-1} + z \odot \tilde h_t

    with :math:`\psi` the logistic function, :math:`\phi` the hyperbolic tangent and ``*`` a convolution of width 3. The reset
    gate multiplies the state BEFORE the convolution, each channel by its own gate. The three input convolutions are one of
    three times the channels (``input``, in the order r, z, proposal), the two state convolutions of the gates likewise.

    While training, ``u`` and the emitted output (not the state that is carried on) are multiplied by Gaussian noise of mean
    one and deviation ``noise``, drawn from the ``noise`` random stream; all images of a batch share the kernel's draw.

    Attributes:
        features: channels of the state.
        noise: the noise's standard deviation; zero draws none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = h = jnp.ones((1, 8, 8, 4))
        >>> cell = ConvGRU(features=4)
        >>> (output, state), variables = jax.eval_shape(cell.init_with_output, jax.random.key(0), x, h)
        >>> output.shape, variables["params"]["state_gates"]["kernel"].shape
        ((1, 8, 8, 4), (3, 3, 4, 8))
    """

    features: int
    noise: float = 0.0

    @nn.compact
    def __call__(self, inputs: Array, state: Array) -> tuple[Array, Array]:
        """``(output, new state)`` from the input ``[B, *spatial, C]`` and the state ``[B, *spatial, features]``."""
        from_input = Convolution(3 * self.features, name="input")(inputs)
        from_state = Convolution(2 * self.features, use_bias=False, name="state_gates")(state)
        input_gates, input_proposal = jnp.split(from_input, [2 * self.features], axis=-1)
        reset, update = jnp.split(nn.sigmoid(input_gates + from_state), 2, axis=-1)
        shape = (*(3,) * (inputs.ndim - 2), self.features, self.features)
        kernel = self._noisy(self.param("state_proposal", nn.initializers.lecun_normal(), shape))
        proposal = nn.tanh(input_proposal + convolve(reset * state, kernel.astype(state.dtype), 1))
        state = (1.0 - update) * state + update * proposal
        return self._noisy(state), state

    def _noisy(self, value: Array) -> Array:
        if self.noise == 0:
            return value
        return value * (1.0 + self.noise * jax.random.normal(self.make_rng("noise"), value.shape, value.dtype))
