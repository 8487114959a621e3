"""Every random stream has a name; its seed is a hash of that name, so streams never share or shift each other."""

import hashlib


def seed_for(base: int, *names) -> int:
    """Return a 63-bit seed that depends on `base` and on every name, in order."""
    text = "\x1f".join([str(base), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
