"""From a network to predictions, structures and files."""

TASKS: tuple[str, ...] = ("reactivity", "structure", "coordinates")
"""What can be asked of a prediction; every part of it that was not asked for is empty."""


def check_tasks(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks without repeats, in the order of `TASKS`.

    Raises:
        ValueError: no task, or one that is not in `TASKS`.

    >>> check_tasks(("structure", "reactivity", "structure"))
    ('reactivity', 'structure')
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"expected tasks out of {', '.join(TASKS)}, got {', '.join(unknown) or 'none'}")
    return tuple(task for task in TASKS if task in tasks)
