"""Whether masks concentrate connections in few channels, filters and kernels, compared with random masks."""

from typing import Any

import keras
import numpy as np

from tf_robust_sparse import layers


def mask_structure(network: keras.Model, draws: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Counts how the connections of every kernel are distributed, and compares them with random masks.

    Args:
        network: Any network of the toolkit.
        draws: Number of random masks per layer that the counts are averaged over, at least 1.
        seed: Seed of these masks.

    Returns:
        For each layer its `name`; `by_channel` and `by_filter`: connections of each input and output channel, largest
        first; `kernels`: how many of the `height x width` kernels have 0, 1, ... connections. For each of the three,
        `random_...` is the mean over random masks with the same number of connections, drawn without replacement.
        `empty_...` and `random_empty_...` count `channels`, `filters` and `kernels` without a connection.

    Raises:
        ValueError: if `draws` is not positive.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 5.3.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be the number of random masks, at least 1. Received: draws={draws!r}")
    found = []
    for number, layer in enumerate(layers.kernel_layers(network)):
        mask = keras.ops.convert_to_numpy(layer.effective_kernel) != 0
        random = np.random.default_rng([seed, number])
        here = _counts(np.flatnonzero(mask), mask.shape)
        chance = [np.zeros(len(counts)) for counts in here]
        for _ in range(draws):
            drawn = random.choice(mask.size, int(mask.sum()), replace=False, shuffle=False)
            for total, counts in zip(chance, _counts(drawn, mask.shape), strict=True):
                total += counts / draws
        row: dict[str, Any] = {"name": layer.name}
        for name, ours, theirs in zip(("by_channel", "by_filter", "kernels"), here, chance, strict=True):
            row |= {name: ours.tolist(), f"random_{name}": theirs.tolist()}
        for prefix, spread in (("", list(here)), ("random_", chance)):
            row[f"{prefix}empty_channels"] = float((spread[0] < 0.5).sum())
            row[f"{prefix}empty_filters"] = float((spread[1] < 0.5).sum())
            row[f"{prefix}empty_kernels"] = float(spread[2][0])
        found.append(row)
    return found


def channels_between(first: keras.layers.Layer, second: keras.layers.Layer) -> dict[str, Any]:
    """Compares the output channels of a layer with the input channels of the next layer.

    Args:
        first: A kernel layer of the toolkit.
        second: The kernel layer that takes its outputs, channel by channel, such as the other convolution of a block.

    Returns:
        `outputs` and `inputs`: connections of each channel in `first` and in `second`, in the order of the channels;
        and how many channels have no connection in both (`empty_in_both`), in `first` alone (`without_output`) or in
        `second` alone (`without_input`); `random_empty_in_both` is the expected first number if the two layers were
        independent.

    Raises:
        ValueError: if the numbers of channels differ.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 5.3.
    """
    masks = [keras.ops.convert_to_numpy(layer.effective_kernel) != 0 for layer in (first, second)]
    outputs = masks[0].reshape(-1, masks[0].shape[-1]).sum(0)
    inputs = np.moveaxis(masks[1], -2, 0).reshape(masks[1].shape[-2], -1).sum(1)
    if len(outputs) != len(inputs):
        raise ValueError(
            f"`second` must have as many input channels as `first` has outputs. Received: {first.name} of "
            f"{len(outputs)} outputs, {second.name} of {len(inputs)} inputs"
        )
    no_output, no_input = outputs == 0, inputs == 0
    return {
        "outputs": outputs.tolist(),
        "inputs": inputs.tolist(),
        "empty_in_both": int((no_output & no_input).sum()),
        "without_output": int((no_output & ~no_input).sum()),
        "without_input": int((~no_output & no_input).sum()),
        "random_empty_in_both": float(no_output.sum() * no_input.sum() / len(outputs)),
    }


def relative_cost(network: keras.Model, leave_out: str = "shortcut") -> dict[str, float]:
    """Estimates the cost of a network of signs relative to full-precision weights with the same connections.

    Take a kernel of side k between c and d channels, on maps of side s, with connectivity q. Its forward pass needs
    `q s^2 k^2 c d` additions, and in full precision as many multiplications, plus `11 d s^2` operations of batch norm
    and activation. Its backward pass needs `3 q k^2 s^2 c d + 4 d s^2` operations with signs and
    `4 q k^2 s^2 c d + 4 d s^2 + k^2 c d` in full precision. For dense layers s is 1, and 11 and 4 become 10 and 3. The
    side of the maps is taken as `2048 / d`.

    Args:
        network: A residual network for 32x32 images.
        leave_out: Layers whose names contain this are not counted.

    Returns:
        The ratios of signs to full precision: `forward`, `backward` and `total`. Layers with a `keep_fraction` count
        with it; of the others the connections are counted.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """
    sums = np.zeros((2, 2))
    for layer in layers.kernel_layers(network):
        if leave_out in layer.name:
            continue
        kernel = keras.ops.convert_to_numpy(layer.effective_kernel)
        kept = getattr(layer, "keep_fraction", float((kernel != 0).mean()))
        entries, filters, is_dense = float(kernel.size), kernel.shape[-1], kernel.ndim == 2
        area = 1.0 if is_dense else (2048 / filters) ** 2
        forward, backward = (10, 3) if is_dense else (11, 4)
        work = kept * area * entries
        sums[0] += work + forward * filters * area, 2 * work + forward * filters * area
        sums[1] += 3 * work + backward * filters * area, 4 * work + backward * filters * area + entries
    total = sums.sum(0)
    return {
        "forward": float(sums[0, 0] / sums[0, 1]),
        "backward": float(sums[1, 0] / sums[1, 1]),
        "total": float(total[0] / total[1]),
    }


def _counts(places: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns connections by channel and by filter, largest first, and the number of kernels by connections."""
    channels, filters = shape[-2:]
    area = int(np.prod(shape[:-2]))
    channel, filter_ = places // filters % channels, places % filters
    by_channel = np.sort(np.bincount(channel, minlength=channels))[::-1]
    by_filter = np.sort(np.bincount(filter_, minlength=filters))[::-1]
    by_kernel = np.bincount(channel * filters + filter_, minlength=channels * filters)
    return by_channel, by_filter, np.bincount(by_kernel, minlength=area + 1)
