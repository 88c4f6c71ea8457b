"""What a tag may be: a name that stands in a line and in a path."""

from __future__ import annotations

from collections.abc import Iterable


def tags_from(tags: Iterable[object]) -> tuple[str, ...]:
    """Tags that were given, once each is one.

    Raises:
        TypeError: They are one string, or some are no strings.
        ValueError: Some are empty, or hold a slash, a character that does not print, or a space at an end.

    Example:
        >>> tags_from(["paper", "a/b", ""])
        Traceback (most recent call last):
        ValueError: 'a/b', '' cannot be tags: a tag is a name of printing characters without a slash, as 'paper'
    """
    if isinstance(tags, str):
        raise TypeError(f"tags is {tags!r}: a list of names is wanted, as [{tags!r}]")
    given = tuple(tags)
    names = tuple(tag for tag in given if isinstance(tag, str) and _is_tag(tag))
    wrong = [tag for tag in given if tag not in names]
    if wrong:
        shown, what = ", ".join(map(repr, wrong)), "a tag" if len(wrong) == 1 else "tags"
        kind = ValueError if all(isinstance(tag, str) for tag in wrong) else TypeError
        raise kind(f"{shown} cannot be {what}: a tag is a name of printing characters without a slash, as 'paper'")
    return names


def _is_tag(tag: str) -> bool:
    return bool(tag) and tag == tag.strip() and tag.isprintable() and "/" not in tag
