"""The steps after which APGD reconsiders its step size.

Both functions follow section 3.1 of [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690).
"""


def windows(num_steps: int) -> list[int]:
    """Returns the numbers of steps between checkpoints; the end may cut off the last one."""
    # The first window is 22% of the steps; each later one is shorter by 3% of the steps, down to 6%.
    window = max(int(0.22 * num_steps), 1)
    found: list[int] = []
    while sum(found) < num_steps:
        found.append(window)
        window = max(window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    return found


def checkpoints(num_steps: int) -> list[int]:
    """Returns the steps after which the step size is reconsidered, `[22, 41, 57, 70, 80, 87, 93, 99]` for 100."""
    found = windows(num_steps)
    ends = [sum(found[: i + 1]) for i in range(len(found))]
    return [end for end in ends if end <= num_steps]
