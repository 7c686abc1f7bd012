"""When APGD reconsiders its step size."""


def windows(num_steps: int) -> list[int]:
    """Numbers of steps between checkpoints, the last perhaps cut off by the end."""
    window = max(int(0.22 * num_steps), 1)
    found: list[int] = []
    while sum(found) < num_steps:
        found.append(window)
        window = max(window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    return found


def checkpoints(num_steps: int) -> list[int]:
    """Numbers of steps after which the step size is reconsidered, `[22, 41, 57, 70, 80, 87, 93, 99]` for 100."""
    found = windows(num_steps)
    ends = [sum(found[: i + 1]) for i in range(len(found))]
    return [end for end in ends if end <= num_steps]
