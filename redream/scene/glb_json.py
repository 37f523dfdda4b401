"""Values taken out of a GLB's JSON, each checked: whatever is missing, of another type or out of range raises `GlbError`."""

from redream.scene.glb import malformed


def whole(owner: dict, key: str, below: int, default: int | None = None, least: int = 0) -> int:
    """The whole number owner[key] in [least, below); `default` where there is none, which may be `below` itself."""
    if key not in owner and default is not None:
        return default
    value = owner.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < below:
        raise malformed(f"its number {key} is missing or out of range")
    return value


def indices(values: object, below: int) -> list[int]:
    """A list of whole numbers in [0, below)."""
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < below for v in values):
        raise malformed("its scene names parts that do not exist")
    return values


def numbers(values: object, length: int | None = None) -> list[float]:
    """A list of `length` finite numbers, far below the largest float, so that products stay finite."""
    right = isinstance(values, list) and length in (None, len(values))
    if not right or not all(type(v) in (int, float) and -1e12 < v < 1e12 for v in values):
        raise malformed("it holds numbers that are missing or not finite")
    return [float(v) for v in values]


def number(owner: dict, key: str, default: float) -> float:
    """The finite number owner[key]."""
    return numbers([owner.get(key, default)], 1)[0]


def section(owner: dict, *path: str) -> dict:
    """The object that `path` leads to, empty where there is none."""
    for key in path:
        owner = owner.get(key, {})
        if not isinstance(owner, dict):
            raise malformed(f"its part {key} is not readable")
    return owner


def entries(owner: dict, name: str) -> list[dict]:
    """The list of objects owner[name], empty where there is none."""
    found = owner.get(name, [])
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise malformed(f"its list of {name} is not a list")
    return found
