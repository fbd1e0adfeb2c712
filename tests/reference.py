"""The paper's equations in float64 NumPy, written from the paper alone, one image pair at a time, 2D.

Weights come as the Flax parameter tree; nothing else of the package is used.
"""

import numpy as np


def logistic(x):
    return 1.0 / (1.0 + np.exp(-x))


def convolve(x, kernel, bias=0.0, stride=1):
    """[H, W, C] with [k, k, C, C']: every output pixel is the kernel-weighted sum of its zero-padded neighbourhood."""
    width = kernel.shape[0]
    out = [-(-n // stride) for n in x.shape[:2]]
    pads = [max((o - 1) * stride + width - n, 0) for o, n in zip(out, x.shape[:2], strict=True)]
    x = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)])
    total = np.zeros((*out, kernel.shape[3]))
    for i in range(width):
        for j in range(width):
            rows = slice(i, i + stride * (out[0] - 1) + 1, stride)
            columns = slice(j, j + stride * (out[1] - 1) + 1, stride)
            total += x[rows, columns] @ kernel[i, j]
    return total + bias


class Reference:
    """g_theta and the recursion of eq 7. The keyword switches make the mistakes that the tests must notice."""

    def __init__(
        self,
        params,
        *,
        activation="tanh",
        sigma_max=0.3,
        std=False,
        flow=False,
        reset_late=False,
        warp_warped=False,
        skip=True,
        unfaded=False,
    ):
        self.p = params
        self.phi = np.tanh if activation == "tanh" else lambda x: np.where(x > 0, x, 0.01 * x)
        self.sigma_max = sigma_max
        self.std, self.flow = std, flow
        self.reset_late, self.warp_warped, self.skip, self.unfaded = reset_late, warp_warped, skip, unfaded

    def conv(self, p, x, stride=1):
        x = convolve(x, p["conv"]["kernel"], p["conv"]["bias"], stride)
        if "norm" in p:
            x = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
        return x

    def gru(self, p, x, h):
        """Eqs 10 to 13."""
        c = h.shape[-1]
        w, b = p["input"]["kernel"], p["input"]["bias"]
        w_r, w_z, w_h = w[..., :c], w[..., c : 2 * c], w[..., 2 * c :]
        u_r, u_z = p["state_gates"]["kernel"][..., :c], p["state_gates"]["kernel"][..., c:]
        u_h = p["state_proposal"]
        r = logistic(convolve(x, w_r) + convolve(h, u_r) + b[:c])
        z = logistic(convolve(x, w_z) + convolve(h, u_z) + b[c : 2 * c])
        recalled = r * convolve(h, u_h) if self.reset_late else convolve(r * h, u_h)
        proposal = np.tanh(convolve(x, w_h) + recalled + b[2 * c :])
        return (1 - z) * h + z * proposal

    def gr2u(self, p, x, h):
        for block in sorted(name for name in p if name.startswith("residual")):
            x = self.phi(x + self.conv(p[block]["second"], self.phi(self.conv(p[block]["first"], x))))
        h = self.gru(p["gru"], x, h)
        return self.phi(x + h) if self.skip else self.phi(h), h

    def position(self, p, x):
        """Eqs 14, 15, 17."""
        maps = []
        for side in ("left", "right"):
            c = convolve(x, p[side]["kernel"], p[side]["bias"])[..., 0]
            maps.append(np.exp(c) / np.exp(c).sum())
        left, right = maps
        gy, gx = np.meshgrid(*(np.linspace(-1, 1, n) for n in left.shape), indexing="ij")
        return np.array([(left * gx).sum(), (left * gy).sum()]), 2 - np.abs(left - right).sum()

    def parameters(self, p, x):
        """Figure 4b and eq 18."""
        x = self.conv(p["first"], x)
        half = x.shape[-1] // 2
        left, right = self.conv(p["second"], self.phi(x[..., :half])), np.exp(x[..., half:])
        pooled = (left * right / right.sum((0, 1))).sum((0, 1))
        c = self.phi(pooled @ p["hidden"]["kernel"] + p["hidden"]["bias"]) @ p["output"]["kernel"] + p["output"]["bias"]
        sigma = logistic(c[:2]) * self.sigma_max
        return (sigma**2 if self.std else sigma), logistic(c[4]) * np.pi, c[2:4]

    def flow_under(self, fixed, warped, field, window):
        """The least squares for the shift v in F - W = window v . slope, damped, as a stack of all pixels' equations."""
        gy, gx = np.meshgrid(*(np.linspace(-1, 1, n) for n in fixed.shape), indexing="ij")
        seen = (np.abs(gx + field[..., 0]) <= 1) & (np.abs(gy + field[..., 1]) <= 1)
        axes = [np.linspace(-1, 1, n) for n in fixed.shape]
        slopes = np.stack(np.gradient((fixed + warped) / 2, *axes)[::-1], -1)
        equations = (slopes * (seen * (1.0 if self.unfaded else window))[..., None]).reshape(-1, 2)
        damping = 0.05 * (equations**2).sum() + 1e-3
        return np.linalg.solve(equations.T @ equations + damping * np.eye(2), equations.T @ (fixed - warped).ravel())

    def step(self, fixed, moving, field, warped, states):
        """One look; returns the new field, warped image, states and the seven numbers."""
        p = self.p
        gy, gx = np.meshgrid(*(np.linspace(-1, 1, n) for n in fixed.shape), indexing="ij")
        x = self.phi(self.conv(p["stem"], np.stack([fixed, warped, gx, gy], -1), stride=2))
        new_states, positions, weights = [], [], []
        for level, h in enumerate(states):
            x, h = self.gr2u(p[f"gr2u_{level}"], x, h)
            position, weight = self.position(p[f"position_{level}"], x)
            x = self.phi(self.conv(p[f"down_{level}"], x, stride=2))
            new_states.append(h)
            positions.append(position)
            weights.append(weight)
        centre = sum(w * q for w, q in zip(weights, positions, strict=True)) / sum(weights)
        variance, angle, v = self.parameters(p["parameters"], x)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        precision = np.linalg.inv(rotation @ np.diag(variance) @ rotation.T)
        offset = np.stack([gx - centre[0], gy - centre[1]], -1)
        window = np.exp(-0.5 * np.einsum("...i,ij,...j->...", offset, precision, offset))
        v = np.tanh(v + self.flow_under(fixed, warped, field, window) if self.flow else v)
        local = window[..., None] * v
        field = field + local
        warped = sample(warped, gx + local[..., 0], gy + local[..., 1]) if self.warp_warped else None
        if warped is None:
            warped = sample(moving, gx + field[..., 0], gy + field[..., 1])
        return field, warped, new_states, (centre, variance, angle, v)

    def sequence(self, fixed, moving, steps, channels):
        field, warped = np.zeros((*fixed.shape, 2)), moving
        states, shape = [], fixed.shape
        for c in channels:
            shape = tuple(-(-n // 2) for n in shape)
            states.append(np.zeros((*shape, c)))
        looks = []
        for _ in range(steps):
            field, warped, states, numbers = self.step(fixed, moving, field, warped, states)
            looks.append((warped, numbers))
        return field, looks


def sample(image, x, y):
    """Bilinear interpolation on the corner-aligned grid, zero outside [-1, 1]^2."""
    h, w = image.shape
    i, j = (y + 1) * (h - 1) / 2, (x + 1) * (w - 1) / 2
    i0, j0 = np.clip(np.floor(i), 0, h - 2).astype(int), np.clip(np.floor(j), 0, w - 2).astype(int)
    a, b = i - i0, j - j0
    value = (
        (1 - a) * (1 - b) * image[i0, j0]
        + (1 - a) * b * image[i0, j0 + 1]
        + a * (1 - b) * image[i0 + 1, j0]
        + a * b * image[i0 + 1, j0 + 1]
    )
    return np.where((np.abs(x) <= 1) & (np.abs(y) <= 1), value, 0.0)
